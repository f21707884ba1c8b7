"""When is a passage relevant? Thresholds that are measured for each store and model. Pure.

What a good cosine is depends on the model: GritLM-7B scores unrelated texts around 0.1, a small or an untuned model
0.8. So a store measures how well unrelated questions do: two dozen questions from all walks of life are asked, and the
best cosine of each is noted. A question whose best passage does not exceed the upper quartile of these has found
nothing. The quartile, because a store may well be about what one or two of the questions ask for.

Words can make a passage relevant where its vector does not: a small model knows few names. But any question shares a
word with something, so its BM25 score has to exceed that of all of these questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

__all__ = ["PROBES", "Scores", "thresholds"]

_QUANTILE: Final = 0.75

# Short, plain, and far from each other.
PROBES: Final = (
    "How long do I boil an egg?",
    "Who won the football match last night?",
    "What is the capital of Mongolia?",
    "How do I remove a red wine stain from a carpet?",
    "When does the next train to the airport leave?",
    "Which vaccine does a puppy need first?",
    "How is the price of a share option calculated?",
    "Why did the Roman Empire fall?",
    "What causes a sore throat?",
    "How do I change a flat tyre on a bicycle?",
    "Which key is Beethoven's fifth symphony in?",
    "How many moons does Jupiter have?",
    "What is the penalty for parking on a pavement?",
    "How do I knit a scarf?",
    "Which wood burns best in a stove?",
    "How do I reset a forgotten password?",
    "What is the boiling point of ethanol?",
    "Who painted the ceiling of the Sistine Chapel?",
    "When should tomatoes be planted outside?",
    "How do bees make honey?",
    "What does a notary do?",
    "How deep is the Pacific Ocean?",
    "Which exercises strengthen the lower back?",
    "How do I write a letter of resignation?",
)


@dataclass(frozen=True)
class Scores:
    """A cosine and a BM25 score; None where there is none."""

    cosine: float | None = None
    bm25: float | None = None


def thresholds(cosines: Sequence[float], bm25: Sequence[float]) -> Scores:
    """What a passage must exceed, in either score, to be relevant.

    Args:
        cosines: the best cosine that each of ``PROBES`` found.
        bm25: the best BM25 score that each of them found, if it shared a word with any passage.
    """
    return Scores(float(np.quantile(np.asarray(cosines), _QUANTILE)), max(bm25, default=0.0))
