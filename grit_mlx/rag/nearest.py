"""The nearest vectors: all of them compared on the device, and how well Lance's approximate index finds the same.

Shapes: N passages, E embedding size, Q queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from grit_mlx.model import device, threads
from grit_mlx.rag.table import PassageTable
from grit_mlx.vectors.compression import top_k

__all__ = ["ExactIndex", "fits_in_memory", "recall"]

_LARGEST_EXACT: Final = 4 << 30  # bytes
_EXACT_FRACTION: Final = 0.25  # of the free memory

# Queries that the recall of the approximate index is measured with, and the depth it is measured at.
_RECALL_QUERIES, _RECALL_DEPTH = 64, 10


def fits_in_memory(table: PassageTable, limit: int | None = None) -> bool:
    """Whether all vectors can be held for exact search.

    Args:
        table: the passages.
        limit: in bytes; None for a quarter of the free memory, at most 4 GiB.
    """
    if limit is None:
        limit = min(_LARGEST_EXACT, int(_EXACT_FRACTION * device.available_memory()))
    return len(table) * table.embedding_size * _dtype().size <= limit


def _dtype() -> mx.Dtype:
    """The precision that vectors are compared in: on a CPU only float32 is fast."""
    return mx.float32 if device.current_device().kind == "cpu" else mx.float16


@threads.computes
def _on_device(vectors: NDArray[Any]) -> mx.array:
    array = mx.array(vectors).astype(_dtype())
    mx.eval(array)
    return array


class ExactIndex:
    """All vectors of a table, on the device."""

    def __init__(self, table: PassageTable) -> None:
        row_ids = [np.empty(0, np.uint64)]
        self._blocks: list[mx.array] = []
        for ids, vectors in table.vectors():
            row_ids.append(ids)
            self._blocks.append(_on_device(vectors))
        self.row_ids = np.concatenate(row_ids)
        self._order = np.argsort(self.row_ids)
        self._sorted = self.row_ids[self._order]

    def positions(self, row_ids: Sequence[int]) -> NDArray[np.intp]:
        """Where some rows stand among ``cosines``."""
        # Of the same type: NumPy would convert all rows to compare them with others.
        wanted = np.asarray(row_ids, np.uint64)
        return self._order[np.searchsorted(self._sorted, wanted)]

    @threads.computes
    def cosines(self, vector: NDArray[np.float32]) -> NDArray[np.float32]:
        """Cosines of a unit vector ``(E,)`` with all vectors ``(N,)``."""
        query = mx.array(vector)
        scores = [block.astype(mx.float32) @ query for block in self._blocks]
        return np.array(mx.concatenate(scores)) if scores else np.empty(0, np.float32)

    def nearest(
        self, scores: NDArray[np.float32], count: int, allowed: NDArray[np.uint64] | None = None
    ) -> list[tuple[int, float]]:
        """Row ids and cosines, best first, of all rows or of those that are allowed."""
        candidates = None if allowed is None else np.flatnonzero(np.isin(self.row_ids, allowed))
        among = scores if candidates is None else scores[candidates]
        if not len(among):
            return []
        best, values = top_k(np.ones(1, np.float32), among[:, None], count)
        rows = self.row_ids[best if candidates is None else candidates[best]]
        return list(zip(rows.tolist(), values.tolist(), strict=True))


def recall(table: PassageTable) -> float:
    """Recall at 10 of the approximate index: stored vectors, slightly moved, are searched both ways."""
    queries = _moved_vectors(table)
    scores, row_ids = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.uint64)
    for ids, vectors in table.vectors():  # block by block: memory is why there is an index
        cosines = queries @ vectors.astype(np.float32).T  # (Q, N of the block)
        scores = np.concatenate([scores, cosines], axis=1)
        row_ids = np.concatenate([row_ids, np.broadcast_to(ids, cosines.shape)], axis=1)
        best = np.argsort(-scores, axis=1)[:, :_RECALL_DEPTH]
        scores, row_ids = np.take_along_axis(scores, best, 1), np.take_along_axis(row_ids, best, 1)
    shares = [
        len({row for row, _ in table.nearest(query, _RECALL_DEPTH)} & set(exact.tolist())) / len(exact)
        for query, exact in zip(queries, row_ids, strict=True)
    ]
    return float(np.mean(shares))


def _moved_vectors(table: PassageTable) -> NDArray[np.float32]:
    """Stored vectors, evenly spread over the table, with noise: ``(Q, E)``, of length 1."""
    every = max(1, len(table) // _RECALL_QUERIES)
    picked: list[NDArray[np.float32]] = []
    seen = 0
    for _, vectors in table.vectors():
        picked += list(vectors[np.arange(-seen % every, len(vectors), every)].astype(np.float32))
        seen += len(vectors)
    queries = np.stack(picked[:_RECALL_QUERIES])
    spread = queries.std(axis=0, keepdims=True) + 1e-6
    noise = np.random.default_rng(0).standard_normal(queries.shape).astype(np.float32)
    queries = queries + 0.5 * spread * noise
    return np.asarray(queries / np.linalg.norm(queries, axis=1, keepdims=True), np.float32)
