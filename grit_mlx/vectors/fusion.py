"""Several rankings of the same items as one: hybrid search (pure functions).

Each side gives its items a share, and the shares of an item are added up. A share is made from a score, relative to
the best and the lowest score of its side, or from a rank alone.

Scores say how far apart two items are, which ranks forget. On the development sets fusing by scores is better than
either side alone, and fusing by ranks is pulled down to between the two (docs/rag.md has the figures; Bruch, Gai and
Ingber 2023, "An Analysis of Fusion Functions for Hybrid Retrieval", found the same on others).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

__all__ = ["fuse_shares", "rank_shares", "score_shares"]

Item = TypeVar("Item", bound=Hashable)

# Reciprocal rank fusion: Cormack, Clarke and Büttcher 2009, with their constant.
_CONSTANT = 60


def rank_shares(ranking: Sequence[Item]) -> dict[Item, float]:
    """``1 / (60 + rank)`` of each item, for items in order, best first."""
    return {item: 1 / (_CONSTANT + rank) for rank, item in enumerate(ranking, start=1)}


def score_shares(scores: Mapping[Item, float], lowest: float) -> dict[Item, float]:
    """1 for the best item, 0 for one whose score is the lowest, and in proportion between them.

    Args:
        scores: of the items that a side found.
        lowest: the score of the worst item there is, found or not; or of those found, if both sides score the same
            items.
    """
    span = max(scores.values(), default=lowest) - lowest
    return {item: (score - lowest) / span if span > 0 else 1.0 for item, score in scores.items()}


def fuse_shares(sides: Sequence[Mapping[Item, float]], weights: Sequence[float] | None = None) -> dict[Item, float]:
    """The sum of each item's shares, best first; of equals the one that an earlier side names earlier.

    An item that a side does not hold has no share of it.

    Args:
        sides: the shares of each side's items.
        weights: of the sides; None for 1 each.
    """
    sums: dict[Item, float] = {}
    for side, weight in zip(sides, weights or [1.0] * len(sides), strict=True):
        for item, share in side.items():
            sums[item] = sums.get(item, 0.0) + weight * share
    return dict(sorted(sums.items(), key=lambda pair: -pair[1]))  # stable
