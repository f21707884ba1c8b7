"""Scores of rankings and correlations (pure functions)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["ndcg", "ranks", "spearman"]


def ndcg(ranking: Sequence[str], relevant: Mapping[str, float], *, depth: int = 10) -> float:
    """Normalised discounted cumulative gain of one query, with linear gains as in trec_eval and BEIR.

    Args:
        ranking: ids of documents, best first.
        relevant: gain of each relevant document.
        depth: how far down the ranking counts.

    Returns:
        0 to 1; 0 where nothing is relevant.
    """
    discounts = 1 / np.log2(np.arange(2, depth + 2))
    gains = [relevant.get(document, 0.0) for document in ranking[:depth]]
    best = sorted(relevant.values(), reverse=True)[:depth]
    ideal = float(np.dot(best, discounts[: len(best)]))
    return float(np.dot(gains, discounts[: len(gains)])) / ideal if ideal > 0 else 0.0


def ranks(values: ArrayLike) -> NDArray[np.float64]:
    """Rank of each value from 1; equal values share the mean of theirs."""
    array = np.asarray(values, dtype=np.float64)
    _, inverse, counts = np.unique(array, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


def spearman(first: ArrayLike, second: ArrayLike) -> float:
    """Spearman's rank correlation, with ties; 0 where one side is constant."""
    a, b = ranks(first), ranks(second)
    a, b = a - a.mean(), b - b.mean()
    scale = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / scale) if scale > 0 else 0.0
