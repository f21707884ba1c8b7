"""Indexing many passages: indexing speed, memory, search latency and recall of the approximate index.

    python benchmarks/rag_index.py [--passages N] [--queries N]

The passages are texts from ../shared/data/train. The model is a random one with one small layer, so the figures show
everything except the model: reading, splitting, tokenising, storing, indexing, searching. Each row of the file is a
document; the queries are the first words of random rows.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grit_mlx  # noqa: F401 - before mlx, to load the fast BLAS

# isort: split
import numpy as np
from common import SHARED, machine, peak_memory, random_model, save

from grit_mlx import GritLM
from grit_mlx.rag import Store

DEPTH = 10


def texts() -> Iterator[str]:
    """All distinct texts of the training data that are long enough for a passage."""
    seen = set()
    for path in sorted((SHARED / "data" / "train").glob("*/*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                for text in strings(json.loads(line)):
                    for start in range(0, len(text), 400):
                        part = text[start : start + 400].strip()
                        if len(part) >= 100 and part not in seen:
                            seen.add(part)
                            yield part


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from strings(part)


def resident() -> int:
    """Resident memory of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS:")).split()[1]) * 1024


def write(path: Path, count: int) -> list[str]:
    chosen: list[str] = []
    with path.open("w", encoding="utf-8") as file:
        for text in texts():
            file.write(json.dumps({"text": text}) + "\n")
            chosen.append(text)
            if len(chosen) == count:
                return chosen
    sys.exit(f"../shared/data/train has only {len(chosen):,} passages.")


def timed(store: Store, queries: list[str], **options: Any) -> dict[str, float]:
    store.search(queries[0], top=DEPTH, **options)  # warm-up
    times = []
    for query in queries:
        start = time.perf_counter()
        store.search(query, top=DEPTH, **options)
        times.append(time.perf_counter() - start)
    p50, p95 = (1000 * float(np.percentile(times, p)) for p in (50, 95))
    return {"p50_ms": round(p50, 2), "p95_ms": round(p95, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=200)
    options = parser.parse_args()
    with (
        random_model(hidden=64, layers=1, intermediate=128, heads=4, kv_heads=2) as folder,
        TemporaryDirectory() as name,
    ):
        model = GritLM(folder, mode="embedding")
        files, uri = Path(name) / "files", Path(name) / "store"
        files.mkdir()
        chosen = write(files / "passages.jsonl", options.passages)
        small = Path(name) / "small.jsonl"
        small.write_text("".join(json.dumps({"text": text}) + "\n" for text in chosen[:100]))
        Store(Path(name) / "warm", model).index([small])
        held = [resident()]
        start = time.perf_counter()
        cpu = time.process_time()
        report = Store(uri, model).index([files], progress=lambda _done, _all: held.append(resident()))
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
        peak = peak_memory()
        again = Store(uri, model).index([files]).seconds
        chance = random.Random(0)
        queries = [" ".join(text.split()[:8]) for text in chance.sample(chosen, options.queries)]
        store = Store(uri, model)
        searches = []
        for method in ("dense", "bm25", "hybrid"):
            times = timed(store, queries, method=method)
            searches.append({"search": f"{method}, exact" if method != "bm25" else method, **times})
        start = time.perf_counter()
        (files / "more.txt").write_text("One more passage.")  # a change, so that there is a new version to publish
        approximate = Store(uri, model, exact_bytes=0)
        approximate.index([files], approximate=True)
        rebuild = time.perf_counter() - start
        store = Store(uri, model, exact_bytes=0)
        for method in ("dense", "hybrid"):
            searches.append({"search": f"{method}, approximate", **timed(store, queries, method=method)})
        approximately = [[hit.passage.text for hit in store.search(q, top=DEPTH, method="dense")] for q in queries]
        exactly = Store(uri, model)
        wanted = [[hit.passage.text for hit in exactly.search(q, top=DEPTH, method="dense")] for q in queries]
        pairs = zip(wanted, approximately, strict=True)
        recall = float(np.mean([len(set(a) & set(b)) / len(set(a)) for a, b in pairs]))
        results = {
            "model": "random Mistral, 1 layer of 64, vocabulary 32,000",
            "passages": report.total,
            "seconds": round(seconds, 1),
            "cpu_seconds": round(cpu_seconds, 1),
            "passages_per_second": round(report.passages / seconds, 1),
            "unchanged_seconds": round(again, 2),
            "approximate_index_seconds": round(rebuild, 1),
            "resident_mb": [round(value / 1e6) for value in held],
            "peak_mb": round(peak / 1e6),
            "bytes_on_disk": store.stats().bytes,
            "searches": searches,
            "queries": options.queries,
            "recall_at_10": round(recall, 4),
            "recall_measured_by_the_store": store.stats().recall,
        }
        print(json.dumps(results, indent=1), file=sys.stderr)
        save(f"rag_index-{machine()['device']}", results)


if __name__ == "__main__":
    main()
