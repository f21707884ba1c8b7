"""Indexing many passages: speed, memory by phase, search latency, recall of the approximate index, size on disk.

    python benchmarks/rag_index.py [--passages N ...] [--vectors model|random] [--size E] [--queries N]

The passages are texts from ../shared/data/train, and beyond those the halves of two of them. Each row of one JSONL file
is a document; the queries are the first words of random rows.

With ``--vectors model`` they are embedded by a random model with one small layer, so the figures show everything except
the model: reading, splitting, tokenising, storing, indexing, searching. With ``--vectors random`` their vectors are
made up, in clusters, and the model does nothing: for sizes that would take hours.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grit_mlx  # noqa: F401 - before mlx, to load the fast BLAS

# isort: split
import numpy as np
from common import RESULTS, SHARED, machine, peak_memory, random_model, save
from numpy.typing import NDArray

from grit_mlx import GritLM
from grit_mlx.rag import Store
from grit_mlx.rag.table import PassageTable

DEPTH = 10
CLUSTERS = 1000

# The steps of indexing whose memory is told apart, by the methods of the table that do them.
PHASES = {"update_text_index": "index of words", "publish": "merging files", "build_vector_index": "index of vectors"}


def texts(count: int) -> Iterator[str]:
    """Distinct texts of the training data that are long enough for a passage, and then halves of two of them."""
    real = list(islice(real_texts(), count))
    yield from real
    chance = random.Random(1)
    for number in range(count - len(real)):
        first, second = chance.choice(real), chance.choice(real)
        yield f"{first[: len(first) // 2]} {number} {second[len(second) // 2 :]}"


def real_texts() -> Iterator[str]:
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


def write(path: Path, count: int, sample: int) -> list[str]:
    """Write the passages, and return some of them."""
    chance = random.Random(0)
    wanted = set(chance.sample(range(count), sample))
    with path.open("w", encoding="utf-8") as file:
        chosen = []
        for number, text in enumerate(texts(count)):
            file.write(json.dumps({"text": text}) + "\n")
            if number in wanted:
                chosen.append(text)
    return chosen


@dataclass
class StandIn:
    """Made-up vectors of unit length in clusters, the same for the same text: ``(N, E)``."""

    size: int
    centers: NDArray[np.float32] = field(init=False)

    def __post_init__(self) -> None:
        self.centers = np.random.default_rng(0).standard_normal((CLUSTERS, self.size)).astype(np.float32)

    def __call__(self, contents: Sequence[str], *, noise: float = 0.7) -> NDArray[np.float32]:
        seeds = [zlib.crc32(content.encode()) for content in contents]
        chance = np.random.default_rng(seeds)
        vectors = self.centers[np.array(seeds) % CLUSTERS]
        vectors = vectors + noise * chance.standard_normal(vectors.shape).astype(np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


class StandInStore(Store):
    """A store whose passages get made-up vectors."""

    vectors: StandIn

    def _embed(self, _ids: Sequence[str], passages: Sequence[Any], progress: Any) -> NDArray[np.float32]:
        return self.vectors([passage.content for passage in passages])

    def _measure_unrelated(self, table: PassageTable) -> None:
        """They mean nothing."""


class Memory:
    """Resident memory of this process, in MB: while passages are embedded, and the most of each later phase."""

    def __init__(self) -> None:
        self.curve: list[tuple[float, int]] = []  # the share of the bytes that was read, and MB
        self.phases: dict[str, dict[str, float]] = {}
        self._most = 0
        self._ended = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while not self._ended.wait(0.05):
            self._most = max(self._most, resident())

    def progress(self, done: int, total: int) -> None:
        self.curve.append((done / max(1, total), resident()))

    def during(self, phase: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            self._most, before, start = resident(), resident(), time.perf_counter()
            result = work(*arguments, **options)
            seconds = round(time.perf_counter() - start, 1)
            figures = {"before_mb": before, "most_mb": self._most, "after_mb": resident(), "seconds": seconds}
            self.phases.setdefault(phase, figures)
            return result

        return timed

    def at(self, share: float) -> int:
        return next((held for done, held in self.curve if done >= share), self.curve[-1][1])

    def end(self) -> None:
        self._ended.set()


@contextmanager
def phases(memory: Memory) -> Iterator[None]:
    """Watch the steps of indexing that follow the embedding."""
    originals = {name: getattr(PassageTable, name) for name in PHASES}
    for name, original in originals.items():
        setattr(PassageTable, name, memory.during(PHASES[name], original))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(PassageTable, name, original)
        memory.end()


def resident() -> int:
    """Resident memory of this process, in MB."""
    return round(int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6)


@dataclass
class Run:
    """One size: where its files are, and what its queries are."""

    folder: Path
    open: Callable[..., Store]
    vector: Callable[[str], NDArray[np.float32] | None]
    queries: list[tuple[str, str]]  # the passage, and its first words

    def timed(self, store: Store, **options: Any) -> dict[str, float]:
        times = []
        for text, question in [self.queries[0], *self.queries]:  # the first is a warm-up
            vector = self.vector(text)
            start = time.perf_counter()
            store.search(question, vector=vector, top=DEPTH, **options)
            times.append(time.perf_counter() - start)
        p50, p95 = (1000 * float(np.percentile(times[1:], p)) for p in (50, 95))
        return {"p50_ms": round(p50, 2), "p95_ms": round(p95, 2)}

    def nearest(self, store: Store) -> list[set[str]]:
        searches = (
            store.search(question, vector=self.vector(text), top=DEPTH, method="dense")
            for text, question in self.queries
        )
        return [{hit.passage.id for hit in found} for found in searches]


def measured(run: Run, count: int) -> dict[str, Any]:
    """Index and search one size."""
    files = [run.folder / "files" / "passages.jsonl"]
    memory = Memory()
    start, cpu = time.perf_counter(), time.process_time()
    with phases(memory):
        report = run.open(exact_bytes=1 << 40).index(files, progress=memory.progress, approximate=False)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    again = run.open().index(files, approximate=False).seconds
    store = run.open(exact_bytes=1 << 40)
    searches = {"bm25": run.timed(store, method="bm25")}
    for method in ("dense", "hybrid"):
        searches[f"{method}, exact"] = run.timed(store, method=method)
    wanted = run.nearest(store)
    files.append(run.folder / "files" / "more.txt")
    files[1].write_text("One more passage.")  # a change, so that there is a new version to publish
    later = Memory()
    with phases(later):
        run.open(exact_bytes=0).index(files, approximate=True)
    store = run.open(exact_bytes=0)
    for method in ("dense", "hybrid"):
        searches[f"{method}, approximate"] = run.timed(store, method=method)
    found = run.nearest(store)
    recall = float(np.mean([len(a & b) / len(a) for a, b in zip(wanted, found, strict=True)]))
    return {
        "rows": count,
        "passages": report.total,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds, 1),
        "passages_per_second": round(count / seconds, 1),
        "unchanged_seconds": round(again, 2),
        "resident_mb": {f"{share:.0%}": memory.at(share) for share in (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)},
        "phases": {**memory.phases, "index of vectors": later.phases["index of vectors"]},
        "peak_mb": round(peak_memory() / 1e6),
        "bytes_on_disk": store.stats().bytes,
        "searches": searches,
        "recall_at_10": round(recall, 4),
        "recall_measured_by_the_store": store.stats().recall,
    }


def alone(work: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns, called in a process of its own, whose memory nobody else has used."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(work, *arguments).result()


def of_size(options: argparse.Namespace, count: int) -> dict[str, Any]:
    shape = {"layers": 1, "intermediate": 128, "heads": 4, "kv_heads": 2}
    with TemporaryDirectory() as name, random_model(hidden=options.size, **shape) as model_folder:
        model = GritLM(model_folder, mode="embedding")
        folder = Path(name)
        (folder / "files").mkdir()
        chosen = alone(write, folder / "files" / "passages.jsonl", count, options.queries)
        kind: type[Store] = Store
        if options.vectors == "random":
            kind = StandInStore
            StandInStore.vectors = StandIn(options.size)

        def opened(**keywords: Any) -> Store:
            return kind(folder / "store", model, **keywords)

        def vector(text: str) -> NDArray[np.float32] | None:
            return StandInStore.vectors([text], noise=0.8)[0] if options.vectors == "random" else None

        small = folder / "small.jsonl"
        small.write_text("".join(json.dumps({"text": text}) + "\n" for text in chosen[:100]))
        kind(folder / "warm", model).index([small])
        queries = [(text, " ".join(text.split()[:8])) for text in chosen]
        return measured(Run(folder, opened, vector, queries), count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", type=int, nargs="+", default=[100_000], help="sizes, each measured on its own")
    parser.add_argument("--vectors", choices=("model", "random"), default="model")
    parser.add_argument("--size", type=int, default=64, help="E, of the vectors")
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--keep", action="store_true", help="keep the other sizes of the results that are there")
    options = parser.parse_args()
    name = f"{'rag_index' if options.vectors == 'model' else 'rag_index_random'}-{machine()['device']}"
    kept = json.loads((RESULTS / f"{name}.json").read_text())["sizes"] if options.keep else []
    sizes = {one["rows"]: one for one in kept}
    for count in options.passages:
        sizes[count] = alone(of_size, options, count)
        print(json.dumps(sizes[count], indent=1), file=sys.stderr)
    results = {
        "model": f"random Mistral, 1 layer of {options.size}, vocabulary 32,000",
        "vectors": options.vectors,
        "size": options.size,
        "queries": options.queries,
        "sizes": [sizes[count] for count in sorted(sizes)],
    }
    save(name, results)


if __name__ == "__main__":
    main()
