"""Scores of rankings and correlations (pure functions).

Rankings are scored as by trec_eval, which BEIR and MTEB use: gains are linear, a document is relevant if its gain is
above 0, and of two documents with the same score the one with the larger id comes first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["ndcg", "pearson", "ranked", "ranks", "recall", "reciprocal_rank", "spearman"]


def ranked(scores: Mapping[str, float]) -> list[str]:
    """Ids of documents, best first; of equal scores the larger id comes first, as in trec_eval."""
    return sorted(scores, key=lambda document: (scores[document], document), reverse=True)


def ndcg(ranking: Sequence[str], relevant: Mapping[str, float], *, depth: int = 10) -> float:
    """Normalised discounted cumulative gain of one query, with linear gains as in trec_eval and BEIR.

    Args:
        ranking: ids of documents, best first.
        relevant: gain of each judged document; one below 0 counts as 0.
        depth: how far down the ranking counts.

    Returns:
        0 to 1; 0 if nothing is relevant.
    """
    best = sorted((gain for gain in relevant.values() if gain > 0), reverse=True)
    ideal = _discounted(best[:depth])
    return (
        _discounted([max(relevant.get(document, 0.0), 0.0) for document in ranking[:depth]]) / ideal if ideal else 0.0
    )


def _discounted(gains: Sequence[float]) -> float:
    return sum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, start=1))


def reciprocal_rank(ranking: Sequence[str], relevant: Mapping[str, float], *, depth: int = 10) -> float:
    """1 / rank of the first relevant document of one query; 0 if it is beyond ``depth``."""
    for rank, document in enumerate(ranking[:depth], start=1):
        if relevant.get(document, 0.0) > 0:
            return 1 / rank
    return 0.0


def recall(ranking: Sequence[str], relevant: Mapping[str, float], *, depth: int = 10) -> float:
    """Share of the relevant documents of one query that are among the first ``depth``; 0 if nothing is relevant."""
    wanted = {document for document, gain in relevant.items() if gain > 0}
    return len(wanted.intersection(ranking[:depth])) / len(wanted) if wanted else 0.0


def ranks(values: ArrayLike) -> NDArray[np.float64]:
    """Rank of each value from 1; equal values share their mean rank."""
    array = np.asarray(values, dtype=np.float64)
    _, inverse, counts = np.unique(array, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


def pearson(first: ArrayLike, second: ArrayLike) -> float:
    """Pearson's correlation; 0 if one side is constant."""
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    a, b = a - a.mean(), b - b.mean()
    scale = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / scale) if scale > 0 else 0.0


def spearman(first: ArrayLike, second: ArrayLike) -> float:
    """Spearman's rank correlation, with ties; 0 if one side is constant."""
    return pearson(ranks(first), ranks(second))
