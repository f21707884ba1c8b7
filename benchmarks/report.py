"""Write the tables of docs/performance.md and docs/convert.md from benchmarks/results/*.json.

    python benchmarks/report.py

Everything between ``<!-- results -->`` and ``<!-- end -->`` is replaced; the words around it stay.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
BEGIN, END = "<!-- results -->", "<!-- end -->"


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def described(results: dict[str, Any]) -> str:
    m = results["machine"]
    blas = f", {m['blas']} BLAS" if m["blas"] else ""
    return (
        f"*{results['model']}, on {m['chip']} ({m['device']}{blas}), {m['cores']} cores, {m['memory_gb']} GB, "
        f"{m['system']}; mlx {m['mlx']}, mlx-lm {m['mlx_lm']}, Python {m['python']}; {m['date']}.*"
    )


def embed(results: dict[str, Any]) -> str:
    head = ["corpus", "texts", "tokens", "useful", "official useful", "tokens/s", "official tokens/s", "speed-up"]
    keys = ("corpus", "texts", "tokens", "useful_fraction", "official_useful_fraction", "tokens_per_second",
            "official_tokens_per_second", "speedup")  # fmt: skip
    parts = [
        "## Embedding",
        described(results),
        table(head, [[row[key] for key in keys] for row in results["corpora"]]),
        f"{results['fraction_of_matmul_rate']:.0%} of the rate of a large float32 product on the same device "
        f"({results['matmul_gflops']} GFLOP/s). Largest difference of a number between the two sides: "
        f"{max(row['largest_difference'] for row in results['corpora']):.1e}.",
    ]
    if results["memory"]:
        rows = [[f"{r['texts']:,}", r["peak_resident_mb"], r["texts_per_second"]] for r in results["memory"]]
        parts += [
            "Peak memory of a whole process that embeds a stream of short texts with `encode_iter` (a random model of "
            "one small layer; the interpreter, mlx and the tokenizer are most of it):",
            table(["texts", "peak memory, MB", "texts/s"], rows),
        ]
    return "\n\n".join(parts)


def generate(results: dict[str, Any]) -> str:
    head = ["prompt tokens", "new tokens", "tokens/s", "mlx_lm tokens/s", "time ratio", "first-token ratio"]
    keys = ("prompt_tokens", "new_tokens", "tokens_per_second", "mlx_lm_tokens_per_second", "time_ratio",
            "first_token_ratio")  # fmt: skip
    turn = results["second_turn"]
    return "\n\n".join(
        [
            "## Generating",
            described(results),
            table(head, [[row[key] for key in keys] for row in results["runs"]]),
            f"The second turn of a chat reuses {turn['reused_tokens']} tokens: {turn['first_token_seconds']} s to its "
            f"first token, against {turn['without_cache']} s without the cache.",
        ]
    )


def operations(results: dict[str, Any]) -> str:
    rows = [[r["operation"], r["milliseconds"], r["nanoseconds_each"]] for r in results["operations"]]
    return "\n\n".join(
        [
            "## Single operations",
            described({"model": "One batch of 2048 tokens, hidden size 512, 8 heads", **results}),
            table(["operation", "ms", "ns each number"], rows),
            table(
                ["product of 1024 x 1024, weights in", "GFLOP/s"], [list(item) for item in results["gflops"].items()]
            ),
        ]
    )


def timed(run: dict[str, float]) -> str:
    return f"{run['seconds']:.1f} ({run['cpu_seconds']:.1f})"


def conversion(results: dict[str, Any]) -> str:
    head = [
        "checkpoint",
        "GB",
        "mlx_lm: MB",
        "grit: MB",
        "mlx_lm: s (CPU)",
        "grit: s (CPU)",
        "recipe grit: MB",
        "s (CPU)",
        "same bytes",
    ]
    rows = [
        [
            row["kind"],
            row["gb"],
            row["mlx_lm"]["peak_mb_beyond_imports"],
            row["uniform"]["peak_mb_beyond_imports"],
            timed(row["mlx_lm"]),
            timed(row["uniform"]),
            row["grit"]["peak_mb_beyond_imports"],
            timed(row["grit"]),
            "yes" if row["same_bytes"] else "NO",
        ]
        for row in results["rows"]
    ]
    model = f"Random weights, to 4 bits, best of {results['repeat']}"
    return "\n\n".join([described({"model": model, **results}), table(head, rows)])


def quantization(results: dict[str, Any]) -> str:
    parts = [described({"model": "64 built-in texts", **results})]
    head = ["quantised", "bits a weight", "mean cosine", "1st percentile", "worst", "same 10 nearest", "KL, nats"]
    keys = ("cosine_mean", "cosine_p1", "cosine_worst", "neighbour_overlap", "kl")
    for model in results["models"]:
        rows = [[r["way"], r["bits_per_weight"], *(f"{r[key]:.4f}" for key in keys)] for r in model["drift"]]
        parts += [f"### {model['model']}, groups of {model['group_size']}", table(head, rows)]
        kinds = [
            [
                r["kind"],
                f"{r['parameters']:,}",
                f"{r['cosine']:.4f}",
                f"{r['kl']:.4f}",
                f"{1e6 * (r['cosine'] + r['kl']) / r['parameters']:.3f}",
            ]
            for r in model["kinds"]
        ]
        parts.append("One kind of module alone at 3 bits, the sum over its modules:")
        parts.append(table(["kind", "parameters", "1 - cosine", "KL, nats", "both, for a million parameters"], kinds))
        law = ", ".join(f"{r['bits']} bits {r['measured']:.4f} ({r['predicted']:.4f})" for r in model["law"])
        parts.append(f"Drift of all modules, each alone, against that at 3 bits, and as the search assumes it: {law}.")
    return "\n\n".join(parts)


PAGES: dict[str, dict[str, Callable[[dict[str, Any]], str]]] = {
    "performance.md": {"embed": embed, "generate": generate, "operations": operations},
    "convert.md": {"convert": conversion, "quantization": quantization},
}


def main() -> None:
    for page, sections in PAGES.items():
        text = (DOCS / page).read_text(encoding="utf-8")
        # One pair of marks for the whole page, or one for each section.
        marks = [f"<!-- {name} -->" for name in sections]
        groups = [[name] for name in sections] if marks[0] in text else [list(sections)]
        for begin, names in zip(marks if marks[0] in text else [BEGIN], groups, strict=True):
            parts = [
                sections[name](json.loads(path.read_text(encoding="utf-8")))
                for name in names
                for path in sorted((HERE / "results").glob(f"{name}-*.json"))
            ]
            before, rest = text.split(begin)
            after = rest.split(END, 1)[1]
            text = f"{before}{begin}\n\n" + "\n\n".join(parts) + f"\n\n{END}{after}"
        (DOCS / page).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
