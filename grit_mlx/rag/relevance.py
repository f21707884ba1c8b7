"""When is a passage relevant? Thresholds that are measured for each store and model.

What a good cosine is depends on the model: GritLM-7B scores unrelated texts around 0.1, a small or an untuned model
0.8. So a store measures what questions that have nothing to do with it reach at best: two dozen questions from as
many walks of life are asked, and the best cosine that each finds is noted. A question whose best passage does not
score higher than the upper quartile of these has found nothing. The quartile, because a store may well be about
what one or two of the questions ask for.

Words can speak for a passage where vectors do not: a small model knows few names. But any question shares a word with
something, so BM25 has to be better than for all of the questions that are asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

__all__ = ["PROBES", "bm25_threshold", "threshold"]

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


def threshold(best: Sequence[float]) -> float:
    """The cosine above which a passage is relevant.

    Args:
        best: the best cosine that each of ``PROBES`` found.
    """
    return float(np.quantile(np.asarray(best), _QUANTILE))


def bm25_threshold(best: Sequence[float]) -> float:
    """BM25's score above which a passage is relevant whatever its cosine.

    Args:
        best: the best score that each of ``PROBES`` found; 0 where it shares no word with any passage.
    """
    return max(best)
