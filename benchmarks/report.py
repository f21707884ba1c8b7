"""Write the tables of docs/performance.md from benchmarks/results/*.json.

    python benchmarks/report.py

Everything between ``<!-- results -->`` and ``<!-- end -->`` is replaced; the words around it stay.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "performance.md"
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


SECTIONS = {"embed": embed, "generate": generate, "operations": operations}


def main() -> None:
    parts = []
    for name, section in SECTIONS.items():
        for path in sorted((HERE / "results").glob(f"{name}-*.json")):
            parts.append(section(json.loads(path.read_text(encoding="utf-8"))))
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n\n" + "\n\n".join(parts) + f"\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
