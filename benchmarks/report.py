"""Write the tables and plots of docs/ from benchmarks/results/*.json.

    python benchmarks/report.py

If matplotlib is installed, the plot of docs/rag.md is drawn as well. Only the text between the markers
``<!-- results -->`` (or ``<!-- NAME -->``) and ``<!-- end -->`` is replaced.
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
        f"({results['matmul_gflops']} GFLOP/s). Largest difference between an element of the two sides' vectors: "
        f"{max(row['largest_difference'] for row in results['corpora']):.1e}.",
    ]
    if results["memory"]:
        rows = [[f"{r['texts']:,}", r["peak_resident_mb"], r["texts_per_second"]] for r in results["memory"]]
        parts += [
            "Peak memory of a process that embeds a stream of short texts with `encode_iter` (a random model with one "
            "small layer, so most of it is the interpreter, mlx and the tokenizer):",
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
            described({"model": "One batch of 2048 tokens, hidden size 512, 8 heads, vocabulary 32,000", **results}),
            table(["operation", "ms", "ns per element"], rows),
            table(["1024 x 1024 product, weights in", "GFLOP/s"], [list(item) for item in results["gflops"].items()]),
        ]
    )


def timed(run: dict[str, float]) -> str:
    return f"{run['seconds']:.1f} ({run['cpu_seconds']:.1f})"


def conversion(results: dict[str, Any]) -> str:
    rows = results["rows"]
    head = ["checkpoint", "GB", "mlx_lm: MB", "grit: MB", "mlx_lm: s (CPU)", "grit: s (CPU)", "same bytes"]
    without_proof = [
        [
            row["kind"],
            row["gb"],
            *(row[way]["peak_mb_beyond_imports"] for way in ("mlx_lm", "uniform")),
            *(timed(row[way]) for way in ("mlx_lm", "uniform")),
            "yes" if row["same_bytes"] else "NO",
        ]
        for row in rows
    ]
    proofs = (("OpenBLAS", "grit", "proof"), ("without", "grit_bundled", "proof_bundled"))
    with_proof = [
        [
            row["kind"],
            row["gb"],
            name,
            *(row[way]["peak_mb_beyond_imports"] for way in (without, proof)),
            *(timed(row[way]) for way in (without, proof)),
            f"{row['added'][proof]['time_ratio']:.1f} ({row['added'][proof]['cpu_ratio']:.1f})",
        ]
        for row in rows
        for name, without, proof in proofs
    ]
    model = f"Random weights, to 4 bits, best of {results['repeat']}"
    machine = {**results["machine"], "blas": ""}  # each row has its own
    return "\n\n".join(
        [
            described({"model": model, **results, "machine": machine}),
            "The same work without the proof:",
            table(head, without_proof),
            "The default recipe without and with the proof:",
            table(["checkpoint", "GB", "BLAS", "MB", "with proof", "s (CPU)", "with proof", "ratio (CPU)"], with_proof),
        ]
    )


def quantization(results: dict[str, Any]) -> str:
    parts = [described({"model": "64 built-in texts", **results})]
    head = ["quantised", "bits per weight", "mean cosine", "1st percentile", "worst", "same 10 nearest", "KL, nats"]
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
        parts.append("Drift if only one kind of module is quantised, to 3 bits, summed over its modules:")
        parts.append(table(["kind", "parameters", "1 - cosine", "KL, nats", "sum per million parameters"], kinds))
        law = ", ".join(f"{r['bits']} bits {r['measured']:.4f} ({r['predicted']:.4f})" for r in model["law"])
        parts.append(
            "Drift summed over all modules, each quantised alone, relative to 3 bits (in brackets: as assumed by the "
            f"search): {law}."
        )
    return "\n\n".join(parts)


def real_quantization(results: dict[str, Any]) -> str:
    sizes = results["sizes"]
    parts = [
        described(results),
        f"Perplexity, KL and the likeliest token of {sizes['texts']} passages of at most {sizes['length']} tokens; "
        f"nDCG@10 of {sizes['queries']} questions among {sizes['passages']} passages.",
    ]
    head = ["weights", "bits per weight", "perplexity", "KL, nats", "same likeliest token", "mean cosine", "nDCG@10"]
    for name in ("searches", "recipes"):
        rows = [
            [
                row["way"],
                row["bits_per_weight"],
                f"{row['perplexity']:.1f}",
                f"{row['kl']:.3f}",
                f"{row['top_token']:.1%}",
                f"{row['cosine_mean']:.3f}",
                f"{row['ndcg']:.3f}",
            ]
            for row in results.get(name, [])
        ]
        parts += [table(head, rows)] if rows else []
    cached = [
        [f"{row['bits']} bits", f"{row['perplexity']:.2f}", f"{row['kl']:.4f}", f"{row['top_token']:.1%}"]
        for row in results.get("keys", [])
    ]
    if cached:
        parts.append("The second halves of the passages, from cached keys and values of the first halves:")
        parts.append(table(["keys and values", "perplexity", "KL, nats", "same likeliest token"], cached))
    return "\n\n".join(parts)


def gradcache(results: dict[str, Any]) -> str:
    chunk = results["chunk"]
    head = ["rows", f"GradCache, chunks of {chunk}: MB", "s", "full batch: MB", "s", "time ratio"]
    rows = []
    for row in results["rows"]:
        cached, whole = row["gradcache"], row.get("whole")
        line = [row["rows"], cached["megabytes"], f"{cached['seconds']:.2f}"]
        ratio = "" if whole is None else f"{cached['seconds'] / whole['seconds']:.2f}"
        rows.append([*line, *(["", ""] if whole is None else [whole["megabytes"], f"{whole['seconds']:.2f}"]), ratio])
    model = f"A random Llama of 4 layers, hidden size 128, {results['length']} tokens per row"
    return "\n\n".join([described({"model": model, **results}), table(head, rows)])


SCORES = ("clapnq_dev", "fairytaleqa_val", "pubmedqa", "scitldr_test", "xquad_en")


def stories(results: dict[str, Any]) -> str:
    runs = results["runs"]
    lines = {
        **{f"{name}, nDCG@10": [run["scores"][name] for run in runs.values()] for name in SCORES},
        "mean of the five": [sum(run["scores"][name] for name in SCORES) / len(SCORES) for run in runs.values()],
        "stsb, Spearman": [run["scores"]["stsb"] for run in runs.values()],
        "held-out embedding loss": [run["losses"]["embedding"] for run in runs.values()],
        "held-out generative loss": [run["losses"]["generative"] for run in runs.values()],
    }
    rows = [[label, *(f"{value:.3f}" for value in values)] for label, values in lines.items()]
    rows.append(
        ["million tokens", *("" if "tokens" not in run else f"{run['tokens'] / 1e6:.1f}" for run in runs.values())]
    )
    return "\n\n".join([described({"model": "stories260k", **results}), table(["", *runs], rows)])


def real_training(results: dict[str, Any]) -> str:
    runs, sizes = list(results["runs"].values()), results["sizes"]
    lines: dict[str, list[str]] = {}
    for name in SCORES:
        if name in runs[0]["retrieval"]:
            for way in ("dense", "hybrid"):
                lines[f"{name}, nDCG@10, {way}"] = [f"{run['retrieval'][name][way]:.3f}" for run in runs]
    for way in ("dense", "hybrid"):
        lines[f"mean nDCG@10, {way}"] = [f"{run['retrieval']['mean'][way]:.3f}" for run in runs]
    for label, key in (("holds the answer", "match"), ("is the answer", "exact")):
        lines[f"what is written {label}"] = [f"{run['answers'][key]:.0%}" for run in runs]
    lines["words written"] = [f"{run['answers']['words']:.1f}" for run in runs]
    for name in runs[0]["perplexity"]:
        lines[f"perplexity of passages of {name}"] = [f"{run['perplexity'][name]:.1f}" for run in runs]
    kept = runs[0].get("held_out", {"losses": {}})
    for name in kept["losses"]:
        lines[f"{name} loss of held-out rows"] = [f"{run['held_out']['losses'][name]:.2f}" for run in runs]
    rows = [[label, *cells] for label, cells in lines.items()]
    return "\n\n".join(
        [
            described(results),
            f"Retrieval among the first {sizes['documents']} documents of each set, for at most {sizes['queries']} "
            f"queries; {sizes['questions']} questions from the passage that answers them; perplexity of "
            f"{sizes['texts']} passages of each set"
            + (f"; losses of {kept['pairs']} pairs and {kept['answers']} answers." if kept["losses"] else "."),
            table(["", *results["runs"]], rows),
        ]
    )


RAG_SIDES = ("none", "doc", "doc, in memory", "query", "doc-query", "query-doc", "auto", "prompt file", "floor")


def rag(results: dict[str, Any]) -> str:
    def row(run: dict[str, Any], number: int) -> list[object]:
        seconds = run["seconds"]
        documents = f"{run['document_tokens']}" + (f" in {run['documents']}" if run["documents"] > 1 else "")
        cells: list[object] = [f"{run['query_tokens']} / {documents}"]
        for side in RAG_SIDES:
            took = f" ({run['auto_took']})" if side == "auto" else ""
            cells.append(f"{seconds[side][number]:.2f}{took}")
        return [*cells, f"{1 - seconds['doc'][number] / seconds['none'][number]:.0%}"]

    head = ["query / documents", *RAG_SIDES, "`doc` cuts"]
    new = results["new_tokens"]
    losses = [auto_loss(run, results["auto_modes"]) for run in results["rows"]]
    first_use = [
        f"{run['document_tokens']} tokens {run['seconds']['doc, first use'][0]:.2f} s "
        f"({run['seconds']['none'][0]:.2f} s)"
        for run in results["rows"]
        if "doc, first use" in run["seconds"] and run["documents"] == 1 and run["query_tokens"] > 8
    ]
    storage = [
        [
            name,
            f"{sizes['bytes_per_1000_tokens'] / 1e6:.2f}",
            f"{sizes['gritlm_7b_bytes_per_1000_tokens'] / 1e6:.1f}",
            *drift_cells(results["drift"].get(name)),
        ]
        for name, sizes in results["storage"].items()
    ]
    return "\n\n".join(
        [
            described(results),
            "Seconds to the first token:",
            table(head, [row(run, 0) for run in results["rows"]]),
            f"Seconds for all {new} tokens:",
            table(head, [row(run, 1) for run in results["rows"]]),
            "`auto` against the best of the modes that it chooses from, to the first token: "
            f"{sum(loss <= 0.05 for loss in losses)} of {len(losses)} rows within 5 %, at worst {max(losses):+.0%}.",
            "The first answer from a document, which computes and keeps it, to the first token (with nothing cached): "
            + ", ".join(first_use)
            + ". (With nothing cached mlx-lm leaves out what the last layer does with the prompt: of two layers nearly "
            "half of the work, of 32 a thirtieth.)",
            "What a cached document takes, and what keeping it in fewer bits does to the next token of this model (24 "
            "documents of 256 tokens):",
            table(
                [
                    "precision",
                    "MB for 1000 tokens",
                    "GritLM-7B: MB",
                    "KL, nats",
                    "largest log-probability",
                    "same token",
                ],
                storage,
            ),
            "![Seconds to the first token by length of the document](rag-first-token.png)",
        ]
    )


def auto_loss(run: dict[str, Any], modes: Sequence[str]) -> float:
    return float(run["seconds"]["auto"][0] / min(run["seconds"][mode][0] for mode in modes) - 1)


def drift_cells(drift: dict[str, float] | None) -> list[str]:
    if drift is None:
        return ["0", "0", "100%"]
    return [f"{drift['kl_mean']:.1e}", f"{drift['largest_difference']:.4f}", f"{drift['same_token']:.0%}"]


def curve_of(runs: Sequence[dict[str, Any]], length: int) -> list[dict[str, Any]]:
    """The runs with queries of one length; empty if a single point."""
    found = [run for run in runs if run["query_tokens"] == length]
    return found if len(found) > 1 else []


def rag_curves(results: dict[str, Any], path: Path) -> None:
    """Seconds to the first token by document length, one panel per query length."""
    from matplotlib.figure import Figure

    single = [run for run in results["rows"] if run["documents"] == 1]
    lengths = [n for n in sorted({run["query_tokens"] for run in single}) if curve_of(single, n)]
    figure = Figure(figsize=(4 * len(lengths), 3.6), layout="constrained")
    for axes, length in zip(figure.subplots(1, len(lengths), squeeze=False)[0], lengths, strict=True):
        runs = curve_of(single, length)
        for side in RAG_SIDES:
            style = ":" if side == "floor" else "--" if side in ("prompt file", "auto") else "-"
            points = [(run["document_tokens"], run["seconds"][side][0]) for run in runs]
            axes.plot(*zip(*points, strict=True), style, marker=".", label=side)
        axes.set(xscale="log", yscale="log", title=f"query: {length} tokens", xlabel="tokens of the document")
        lengths_of_documents = [run["document_tokens"] for run in runs]
        axes.set_xticks(lengths_of_documents, labels=map(str, lengths_of_documents))
        axes.minorticks_off()
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", fontsize="small")
    figure.axes[0].set_ylabel("seconds to the first token")
    figure.savefig(path, dpi=110, metadata={"Software": None})


def rag_index(results: dict[str, Any]) -> str:
    sizes = results["sizes"]
    shares = list(sizes[0]["resident_mb"])
    phases = list(sizes[0]["phases"])
    heads = ["passages", "per second of CPU", "bytes each", *shares, *phases]
    rows = [
        [
            f"{one['passages']:,}",
            round(one["passages"] / one["cpu_seconds"]),
            round(one["bytes_on_disk"] / one["passages"]),
            *one["resident_mb"].values(),
            *(one["phases"][phase]["most_mb"] for phase in phases),
        ]
        for one in sizes
    ]
    latencies = [
        [search, *(f"{one['searches'][search]['p50_ms']} / {one['searches'][search]['p95_ms']}" for one in sizes)]
        for search in sizes[0]["searches"]
    ]
    busy = any(map(_is_crowded, sizes))
    crowded = " Other work kept the machine busy, which makes every search slower than it is alone." if busy else ""
    made_up = f" Their vectors, of {results['size']} numbers, are made up." if results["vectors"] == "random" else ""
    recalls = ", ".join(f"{one['recall_at_10']:.3f}" for one in sizes)
    again = ", ".join(f"{one['unchanged_seconds']}" for one in sizes)
    build = ", ".join(f"{one['phases']['index of vectors']['seconds']}" for one in sizes)
    return "\n\n".join(
        [
            described(results) + made_up,
            "Bytes on disk include files that were replaced and are kept for an hour. Resident memory of the process "
            "in MB: when a share of the passages was embedded and written, and at most in each of the steps after it:",
            table(heads, rows),
            f"Milliseconds of a search, median / 95th percentile.{crowded}",
            table(["search", *(f"{one['passages']:,}" for one in sizes)], latencies),
            f"Recall at 10 of the approximate index against exact search, over {results['queries']} queries: "
            f"{recalls}. Seconds to build it: {build}. Run again with nothing changed: {again} s.",
            *([extrapolated(*sizes[-2:])] if len(sizes) > 1 and sizes[-1]["passages"] >= _LARGE else []),
        ]
    )


# Passages of a run that says something of a hundred times as many.
_LARGE = 100_000


def extrapolated(small: dict[str, Any], large: dict[str, Any], passages: int = 10_000_000) -> str:
    """What a store of ten million passages would take, from the slope between two sizes."""

    def line(value: Callable[[dict[str, Any]], float]) -> float:
        slope = (value(large) - value(small)) / (large["passages"] - small["passages"])
        return value(large) + slope * (passages - large["passages"])

    def search(name: str) -> str:
        return f"{line(lambda one: one['searches'][name]['p50_ms']):,.0f} ms"

    hours = passages * large["cpu_seconds"] / large["passages"] / 3600
    said = (
        f"On the line through {small['passages']:,} and {large['passages']:,}, ten million would take "
        f"{line(lambda one: one['bytes_on_disk']) / 1e9:.1f} GB on disk and {hours:.1f} hours of CPU without the model"
    )
    if _is_crowded(large):
        return said + "."
    names = {"bm25": "words", "dense, exact": "exact vectors", "dense, approximate": "approximate ones"}
    return f"{said}; a search {', '.join(f'{search(name)} by {what}' for name, what in names.items())}."


def _is_crowded(one: dict[str, Any]) -> bool:
    """Whether other work kept the machine busy: then the clock says little, and the CPU's own time more."""
    return bool(one["seconds"] > 2 * one["cpu_seconds"])


def rag_quality(results: dict[str, Any]) -> str:
    keys = ("set", "documents", "passages", "queries", "bm25", "dense", "rrf", "hybrid")
    head = ["nDCG@10", *keys[1:]]
    parts = [described(results), table(head, [[row[key] for key in keys] for row in results["sets"]])]
    if "answers" in results:
        match = results["answers"]["match"]
        parts += [
            f"Match over {results['answers']['questions']} questions, by cache mode:",
            table(["", *match], [["match", *match.values()]]),
        ]
    return "\n\n".join(parts)


def words(results: dict[str, Any]) -> str:
    ways = list(results["sets"][0]["recall"])
    cells = [[row["recall"][way] for way in ways] for row in results["sets"]]
    mean = [[sum(column) / len(column) for column in zip(*pairs, strict=True)] for pairs in zip(*cells, strict=True)]
    names = [f"{row['language']}, {row['queries']} queries" for row in results["sets"]]
    rows = [
        [name, *(f"{first:.2f} / {third:.2f}" for first, third in row)]
        for name, row in zip([*names, "mean"], [*cells, mean], strict=True)
    ]
    return table(["recall at 1 / at 3", *ways], rows)


def ranking(results: dict[str, Any]) -> str:
    methods = list(results["corpora"][0]["found"])
    rows = [
        [
            f"{row['corpus']}, {row['questions']} questions, {row['passages']:,} passages",
            *(" / ".join(map(str, row["found"][method])) for method in methods),
            f"{row['answered']} of {row['questions']}",
            f"{row['refused']} of {row['unrelated']}",
        ]
        for row in results["corpora"]
    ]
    head = ["first / in three / in ten", *methods, "related, answered", "unrelated, refused"]
    return "\n\n".join([described(results), table(head, rows)])


def quotes(results: dict[str, Any]) -> str:
    head = [
        "right first quote",
        "questions",
        "passage",
        "quotes",
        "any of the quotes",
        "vectors alone",
        "first sentence",
    ]
    keys = ("passage", "quotes", "any of the quotes", "vectors", "first")
    rows = [
        [f"{name}, {how}", results[name]["questions"], *(f"{results[name][how][key]:.1%}" for key in keys)]
        for name in ("xquad", "clapnq")
        for how in ("passage given", "searched")
    ]
    return f"{described(results)}\n\n{table(head, rows)}"


def serve(results: dict[str, Any]) -> str:
    embeddings, first, memory = results["embeddings"], results["first_tokens"], results["memory"]
    used = any("cpu_ratio" in row for row in results["generation"])
    theirs = "mlx_lm.server"
    head = ["completions at a time", "tokens/s", theirs, "ratio", *(["CPU ratio"] if used else [])]
    head += ["first token, s", theirs]
    rows = [
        [
            f"{row['at_once']}{', while another client embeds' if row['with_embeddings'] else ''}",
            f"{row['tokens_per_second']:.0f}",
            f"{row['mlx_lm_tokens_per_second']:.0f}",
            f"{row['speed_ratio']:.2f}",
            *([f"{row['cpu_ratio']:.2f}" if "cpu_ratio" in row else ""] if used else []),
            f"{row['first_token_seconds']:.2f}",
            f"{row['mlx_lm_first_token_seconds']:.2f}",
        ]
        for row in results["generation"]
    ]
    mixed = [row for row in results["generation"] if row["with_embeddings"]]
    here, there = (
        ", ".join(f"{row[key]:.0f}" for row in mixed) for key in ("texts_per_second", "second_process_texts_per_second")
    )
    parts = [
        described(results),
        f"- {embeddings['clients']} clients with a text each take {embeddings['time_ratio']:.2f} times as long as one "
        f"request with all of them, in {embeddings['batches']:.0f} batches.\n"
        f"- First token: {first['first turn']:.2f} s for a prompt of about 900 tokens, "
        f"{first['second turn']:.2f} s for the next turn of that chat; from a store {first['store']:.2f} s, "
        f"{first['store again']:.2f} s for the same question again.\n"
        f"- Memory: {memory['bytes'] / 1e6:,.0f} MB after {memory['requests']:,} requests, "
        f"{memory['bytes_later'] / 1e6:,.0f} MB after {memory['requests_later']:,} ({memory['growth']:+.1%}).",
        table(head, rows),
        f"Each figure is a median of {results['rounds']} rounds, the ratio that of the rounds' ratios. "
        + ("The CPU ratio compares the CPU's time for each token, which others change less than the clock. " * used)
        + f"mlx_lm.server cannot embed: beside it a second `grit serve` does, which embedded {there} texts a second "
        f"meanwhile, the one process {here}.",
    ]
    return "\n\n".join(parts)


def warm(results: dict[str, Any]) -> str:
    head = ["whole command, seconds", "without a server", "with one", "ratio"]
    rows = [
        [name, *(f"{row[key]:.2f}" for key in ("cold", "warm")), f"{row['ratio']:.1f}"]
        for name, row in results["commands"].items()
    ]
    return f"{described(results)}\n\n{table(head, rows)}"


PEERS = {
    "grit": "grit-mlx",
    "mlx_lm": "mlx_lm",
    "llama": "llama.cpp",
    "gritlm": "gritlm (PyTorch)",
    "sentence-transformers": "sentence-transformers",
}


def peers(results: dict[str, Any]) -> str:
    """Our CPU seconds, and how many times as many each peer took: above 1 ours is faster."""
    names = [name for name in PEERS if name in results["versions"]]
    rows = []
    for label, row in results["rows"].items():
        measures = [("all of it", "cpu_seconds", "cpu_ratio")]
        if "first_cpu_seconds" in row["grit"]:
            measures = [("first token", "first_cpu_seconds", "first_cpu_ratio"), *measures]
        if "remember_cpu_seconds" in row["grit"]:
            measures = [("reading the document", "remember_cpu_seconds", "remember_cpu_ratio"), *measures]
        for what, seconds, ratio in measures:
            others = [f"{row[name][ratio]:.2f}" if ratio in row.get(name, {}) else "" for name in names[1:]]
            rows.append([f"{label}: {what}", f"{row['grit'][seconds]:.2f}", *others])
    versions = {name: number for found in results["versions"].values() for name, number in found.items()}
    return "\n\n".join(
        [
            "## Beside other programs",
            described(results),
            "The same weights and texts in one run, each program in an environment of its own, with "
            f"{results['threads']} thread{'s' if results['threads'] > 1 else ''} "
            f"({', '.join(f'{name} {number}' for name, number in sorted(versions.items()))}). Our CPU seconds, and for "
            "each program how many times as many it took: above 1, grit-mlx is faster. The load of "
            f"the machine was {results['load']}.",
            table(["", "grit-mlx, CPU s", *(PEERS[name] for name in names[1:])], rows),
        ]
    )


# Fewer than these were measured before "grit bench" did everything once first, when kernels were still being compiled.
FEW_TEXTS, FEW_TOKENS = 4, 2


def bench(results: dict[str, Any]) -> str:
    """What ``grit bench --json`` printed on a GPU."""
    m, model, document = results["machine"], results["model"], results["document"]
    machine = (
        f"*{model['name']} in {model['types']}, on {m['name']} ({m['kind']}), {m['memory_bytes'] / 1e9:.0f} GB, "
        f"{m['system']}; mlx {m['mlx']}, mlx-lm {m['mlx_lm']}, Python {m['python']}; {results['date']}.*"
    )
    embedded = [
        [
            f"{row['length'] or 'mixed'}",
            f"{row['texts']:,}",
            f"{row['tokens_per_second']:,.0f}",
            f"{row['padding']:.1%}",
        ]
        for row in results["embedding"]
        if row["texts"] > FEW_TEXTS
    ]
    written = [
        [
            f"{row['prompt_tokens']:,}",
            row["new_tokens"],
            f"{row['prompt_tokens_per_second']:,.0f}",
            f"{row['prompt_ratio']:.2f}",
            f"{row['tokens_per_second']:.0f}",
            f"{row['ratio']:.2f}",
        ]
        for row in results["generation"]
        if row["new_tokens"] > FEW_TOKENS
    ]
    head = ["prompt tokens", "new tokens", "prompt, tokens/s", "beside mlx_lm", "answer, tokens/s", "beside mlx_lm"]
    return "\n\n".join(
        [
            "## On a GPU",
            machine,
            'Printed by `grit bench --seconds 25 --json`. "Beside mlx_lm": above 1, grit-mlx is faster.',
            table(["texts of, tokens", "texts", "tokens/s", "padding"], embedded),
            table(head, written),
            f"The first token of an answer from a document of {document['tokens']:,} tokens took "
            f"{1000 * document['read_seconds']:.0f} ms without its cache and "
            f"{1000 * document['cached_seconds']:.0f} ms with it ({document['speedup']:.1f} times as fast). "
            f"Peak memory of arrays: {results['memory']['array_bytes'] / 1e9:.1f} GB.",
        ]
    )


SIZES = {
    "convert": "conversion to 4 bits, with its proof",
    "embed": "embedding 2 texts",
    "ctrl_c": "Ctrl-C in a batch, to the end",
    "sigterm": "SIGTERM in a batch, to the end",
    "generate": "a prompt and 4 new tokens",
    "train": "a LoRA step, both tasks",
}


def seed_sizes(results: dict[str, Any]) -> str:
    """Seconds and memory of whole commands, by checkpoint."""
    rows = results["rows"]
    head = ["whole command: s (CPU), peak MB"]
    head += [f"{row['kind'].capitalize()}, {row['layers']} layers, {row['parameters'] / 1e9:.1f} B" for row in rows]

    def cell(key: str, run: dict[str, float] | None) -> str:
        if run is None:
            return ""
        if key in ("ctrl_c", "sigterm"):  # its CPU seconds are those before the signal, too
            return f"{run['seconds']:.1f}"
        return f"{timed(run)}, {run['peak_mb']:,}"

    lines = [[label, *(cell(key, row.get(key)) for row in rows)] for key, label in SIZES.items()]
    lines.insert(0, ["checkpoint in bfloat16, GB", *(row["gb"] for row in rows)])
    lines.insert(1, ["model in 4 bits, GB", *(row["converted_gb"] for row in rows)])
    lines = [line for line in lines if any(line[1:])]  # a stopped run has not measured all
    busy = f" The load of the machine was {results['load']}: CPU seconds say more." if "load" in results else ""
    heading, machine = "## GritLM's own sizes", described({"model": "Random weights", **results})
    return "\n\n".join([heading, machine + busy, table(head, lines)])


def speculative(results: dict[str, Any]) -> str:
    """How much faster mlx-lm writes with a draft."""
    rows = [
        [row["draft"], row["tokens"], f"{row['from_draft']:.0%}", f"{row['speedup']:.2f}"] for row in results["rows"]
    ]
    return "\n\n".join(
        [
            "## Speculative decoding",
            described(results) + " The drafts are the model in 4 bits and its first ten blocks.",
            table(["draft", "drafted tokens", "taken over", "speed-up"], rows),
            "It does not pay here and is not offered: a draft has to share the tokenizer and cost a fraction of the "
            "model, and none of GritLM's tokenizer and size is known to us.",
        ]
    )


def shared_caches(results: dict[str, Any]) -> str:
    sides = ("compute", "bucket", "bucket, again", "disk", "give")
    head = ["seconds, by tokens of the document", "MB", *sides, "`bucket` cuts"]
    rows = [
        [
            f"{row['tokens']:,}",
            f"{row['bytes'] / 1e6:.1f}",
            *(f"{row[side]:.3f}" for side in sides),
            f"{1 - row['bucket'] / row['compute']:.0%}",
        ]
        for row in results["rows"]
    ]
    lists = ", ".join(
        f"{row['documents']:,} documents ({row['bytes'] / 1e6:.2f} MB) {row['read']:.3f} and {row['note']:.3f} s"
        for row in results["lists"]
    )
    return f"{described(results)}\n\n{table(head, rows)}\n\nTo read a list, and to note a use in it: {lists}."


PAGES: dict[str, dict[str, Callable[[dict[str, Any]], str]]] = {
    "performance.md": {
        "embed": embed,
        "generate": generate,
        "operations": operations,
        "peers": peers,
        "seed_sizes": seed_sizes,
        "speculative": speculative,
        "bench": bench,
    },
    "rag.md": {
        "rag": rag,
        "rag_index": rag_index,
        "rag_index_random": rag_index,
        "words": words,
        "rag_quality": rag_quality,
        "ranking": ranking,
        "quotes": quotes,
    },
    "serve.md": {"serve": serve, "warm": warm},
    "convert.md": {"convert": conversion, "quantization": quantization, "real_quantization": real_quantization},
    "scale.md": {"shared_caches": shared_caches},
    "training.md": {"gradcache": gradcache, "stories": stories, "real_training": real_training},
}


def main() -> None:
    for page, sections in PAGES.items():
        text = (DOCS / page).read_text(encoding="utf-8")
        # One pair of markers for the page, or one per section.
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
    for path in (HERE / "results").glob("rag-*.json"):
        try:
            rag_curves(json.loads(path.read_text(encoding="utf-8")), DOCS / "rag-first-token.png")
        except ImportError:
            print("The curves need matplotlib.")


if __name__ == "__main__":
    main()
