"""Finding passages: exact and approximate nearest vectors, BM25, both fused, filters, reranking.

Shapes: N passages, E embedding size.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from grit_mlx.errors import ArgumentError
from grit_mlx.model import device
from grit_mlx.rag.table import PassageTable, Row, is_remote, sql_text
from grit_mlx.text.walking import stored_name
from grit_mlx.vectors.compression import top_k
from grit_mlx.vectors.fusion import fuse_shares, rank_shares, score_shares

__all__ = ["METHODS", "ExactIndex", "Hit", "Retriever", "condition", "exact_budget", "place_of"]

# Fused by scores, fused by ranks, by meaning, by words.
METHODS: Final = ("hybrid", "rrf", "dense", "bm25")

# Items that each side contributes to what is fused.
_DEPTH: Final = 100

_LARGEST_EXACT: Final = 4 << 30  # bytes
_EXACT_FRACTION: Final = 0.25  # of the free memory


@dataclass(frozen=True)
class Hit:
    """A passage that was found.

    Attributes:
        row: the passage and where it stands.
        score: what it is ranked by: the cosine, BM25's score, the fused one, or the reranker's.
        cosine: of its vector and the query's; None where no vector was asked for.
        bm25: its score among those that share words with the query; None where it is not among them.
    """

    row: Row
    score: float
    cosine: float | None = None
    bm25: float | None = None


def place_of(row: Row) -> str:
    """Where a passage stands, as editors and people understand it: ``notes.md:3-9``, ``book.pdf, page 7``.

    Relative to the current folder for what lies in it.
    """
    path = Path(row.name)
    here = Path(stored_name(Path.cwd()))
    shown = path.relative_to(here).as_posix() if path.is_relative_to(here) else row.name
    first, last = row.passage.line, row.passage.end_line
    span = f"{first}" if first == last else f"{first}-{last}"
    return f"{shown}:{span}" if row.unit == "line" else f"{shown}, {row.unit} {span}"


def exact_budget() -> int:
    """Bytes of vectors up to which every one is compared with: a quarter of the free memory, at most 4 GiB."""
    return min(_LARGEST_EXACT, int(_EXACT_FRACTION * device.available_memory()))


def bytes_in_memory(rows: int, size: int) -> int:
    """Bytes of N vectors where they are searched: float32 on a CPU, whose only fast dtype it is."""
    return rows * size * (4 if device.current_device().kind == "cpu" else 2)


class ExactIndex:
    """All vectors of a table, on the accelerator.

    Args:
        table: what they are read from.
    """

    def __init__(self, table: PassageTable) -> None:
        dtype = mx.float32 if device.current_device().kind == "cpu" else mx.float16
        numbers: list[NDArray[np.uint64]] = []
        self._blocks: list[mx.array] = []
        for row_ids, vectors in table.vectors():
            numbers.append(row_ids)
            self._blocks.append(mx.array(vectors).astype(dtype))
            mx.eval(self._blocks[-1])
        self.row_ids = np.concatenate([np.empty(0, np.uint64), *numbers])
        self._order = np.argsort(self.row_ids)

    def position(self, row_id: int) -> int:
        """Where a row stands among ``cosines``."""
        return int(self._order[np.searchsorted(self.row_ids, row_id, sorter=self._order)])

    def cosines(self, vector: NDArray[np.float32]) -> NDArray[np.float32]:
        """Of a unit vector ``(E,)`` with all ``(N,)``."""
        query = mx.array(vector)
        scores = [block.astype(mx.float32) @ query for block in self._blocks]
        return np.array(mx.concatenate(scores)) if scores else np.empty(0, np.float32)

    def nearest(
        self, scores: NDArray[np.float32], count: int, allowed: NDArray[np.uint64] | None = None
    ) -> list[tuple[int, float]]:
        """Row numbers and cosines, best first, of all rows or of those that are allowed."""
        candidates = np.arange(len(scores)) if allowed is None else np.flatnonzero(np.isin(self.row_ids, allowed))
        if not len(candidates):
            return []
        best, values = top_k(np.ones(1, np.float32), scores[candidates, None], count)
        return list(zip(self.row_ids[candidates[best]].tolist(), values.tolist(), strict=True))


class Retriever:
    """Searches one version of a table.

    Args:
        table: the passages.
        exact_bytes: most bytes of vectors that are held for exact search; None for ``exact_budget``.
    """

    def __init__(self, table: PassageTable, *, exact_bytes: int | None = None) -> None:
        self.table = table
        budget = exact_budget() if exact_bytes is None else exact_bytes
        small = bytes_in_memory(len(table), table.embedding_size) <= budget
        self.approximate = not small and table.has_vector_index
        self._exact: ExactIndex | None = None

    @property
    def exact(self) -> ExactIndex:
        """All vectors, read when they are first needed."""
        if self._exact is None:
            self._exact = ExactIndex(self.table)
        return self._exact

    def search(
        self,
        question: str,
        vector: NDArray[np.float32] | None,
        *,
        method: str = "hybrid",
        top: int = 10,
        where: str | None = None,
    ) -> list[Hit]:
        """The passages that suit a question, best first.

        Args:
            question: for BM25.
            vector: the question's, ``(E,)``; None only for "bm25".
            method: one of ``METHODS``.
            top: most hits.
            where: a condition of SQL, see ``condition``.

        Raises:
            ArgumentError: an unknown method, or ``top`` below 1.
        """
        if method not in METHODS:
            raise ArgumentError(f"Unknown search method {method!r}: use one of {', '.join(METHODS)}.")
        if top < 1:
            raise ArgumentError(f"top must be at least 1, not {top}.")
        if not len(self.table):
            return []
        depth = max(_DEPTH, 2 * top) if method in ("hybrid", "rrf") else top
        words = self.table.matching(question, depth, where) if method != "dense" else []
        if method == "bm25":
            return self._hits(words[:top], {}, dict(words))
        assert vector is not None
        vectors, cosines_of, lowest = self._dense(vector, depth, where)
        if method == "dense":
            return self._hits(vectors[:top], dict(vectors), {})
        known = dict(vectors)
        known.update(cosines_of([row for row, _ in words if row not in known]))
        if method == "rrf":
            sides = [rank_shares([row for row, _ in found]) for found in (vectors, words)]
        else:
            sides = [score_shares(known, lowest), score_shares(dict(words), 0.0)]
        return self._hits(list(fuse_shares(sides).items())[:top], known, dict(words))

    def _dense(
        self, vector: NDArray[np.float32], depth: int, where: str | None
    ) -> tuple[list[tuple[int, float]], Callable[[Sequence[int]], Mapping[int, float]], float]:
        """The nearest rows, what tells the cosines of any others, and the lowest cosine of all."""
        unit = vector / max(float(np.linalg.norm(vector)), 1e-12)
        if self.approximate:
            # Unrelated texts have a cosine of 0 or more with most models; only the shares' scale depends on it.
            return self.table.nearest(unit, depth, where), lambda rows: self.table.cosines(rows, unit), 0.0
        scores = self.exact.cosines(unit)
        allowed = None if where is None else self.table.row_ids(where)
        return (
            self.exact.nearest(scores, depth, allowed),
            lambda rows: {row: float(scores[self.exact.position(row)]) for row in rows},
            float(scores.min(initial=1.0)),
        )

    def _hits(
        self, ranked: Sequence[tuple[int, float]], cosines: Mapping[int, float], words: Mapping[int, float]
    ) -> list[Hit]:
        rows = self.table.rows([row for row, _ in ranked])
        return [
            Hit(row, score, cosines.get(number), words.get(number))
            for row, (number, score) in zip(rows, ranked, strict=True)
        ]


def reranked(hits: Sequence[Hit], scores: Sequence[float]) -> list[Hit]:
    """Hits in the order of new scores."""
    pairs = sorted(zip(hits, scores, strict=True), key=lambda pair: -pair[1])
    return [replace(hit, score=float(score)) for hit, score in pairs]


def condition(paths: Sequence[str] = (), metadata: Sequence[str] = (), *, uri: str = "") -> str | None:
    """A condition of SQL: any of some paths, and all of some metadata.

    Args:
        paths: files, folders, or patterns with ``*``, ``?`` and ``[...]``, relative to the current folder.
        metadata: "key=value", each of which must hold.
        uri: of the store.

    Raises:
        ArgumentError: metadata without "=".
    """
    parts = []
    if paths:
        parts.append("(" + " OR ".join(_path_condition(path) for path in paths) + ")")
    for pair in metadata:
        if "=" not in pair:
            raise ArgumentError(f"Metadata is filtered by KEY=VALUE, not by {pair!r}.")
        parts.append(f"array_has(metadata, {sql_text(pair)})")
    return " AND ".join(parts) or None


def _path_condition(path: str) -> str:
    whole = stored_name(Path.cwd() / Path(path).expanduser()) if not is_remote(path) else path
    if re.search(r"[*?\[]", path):
        # The regular expression of a shell's pattern; Rust's dialect has no \Z.
        pattern = fnmatch.translate(whole).replace(r"\Z", "$").replace(r"\z", "$").replace("(?s:", "^(?s:")
        return f"regexp_like(name, {sql_text(pattern)})"
    resolved = stored_name(Path(whole).resolve())
    return f"(name = {sql_text(resolved)} OR starts_with(name, {sql_text(resolved.rstrip('/') + '/')}))"
