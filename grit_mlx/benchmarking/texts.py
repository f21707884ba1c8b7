"""Texts of a length in tokens, made of plain English sentences."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import cycle, islice

from grit_mlx.evaluation.drift import TEXTS

__all__ = ["mixed_lengths", "texts_of"]

# The shortest of texts of mixed lengths, in tokens.
_SHORTEST = 8


def texts_of(lengths: Sequence[int], count: Callable[[str], int]) -> list[str]:
    """Texts of about these lengths, each with other words at its beginning.

    Args:
        lengths: in tokens; real text is a few percent longer or shorter.
        count: how many tokens a text has.
    """
    words = " ".join(TEXTS).split()
    tokens_per_word = count(" ".join(words)) / len(words)
    texts = []
    for number, length in enumerate(lengths):
        start = 17 * number % len(words)
        wanted = max(1, round(length / tokens_per_word))
        texts.append(" ".join(islice(cycle(words), start, start + wanted)))
    return texts


def mixed_lengths(number: int, longest: int) -> list[int]:
    """Lengths as of passages, comments and titles: as many between 8 and 16 tokens as between 256 and 512."""
    draw = random.Random(0)
    shortest = min(_SHORTEST, longest)
    return [round(shortest * (longest / shortest) ** draw.random()) for _ in range(number)]
