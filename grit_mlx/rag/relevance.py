"""When is a passage relevant? Two signs of it, one in the units of the store and its model. Pure.

- Meaning: the cosine. What a good one is depends on the model: GritLM-7B scores unrelated texts around 0.1, a small or
  an untuned model 0.8. So a store measures how well unrelated questions do: two dozen questions from all walks of life
  are asked, and the best cosine of each is noted. A store may well be about what some of them ask for, so only the
  median counts, and the spread below it.
- Words: the share of what the question asks for that a passage has, each word weighted by how rare it is in the store.
  Of an unrelated question the rare words, which say what it is about, are missing.

Neither is enough: a small model knows few names, and any question shares some words with something. Their sum is. Its
two constants were chosen on the development sets, whose questions were asked of each other's documents as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from grit_mlx.rag.words import parts_of, terms_of

__all__ = ["NEEDED", "PROBES", "Unrelated", "coverage", "relevance"]

NEEDED: Final = 0.6

# This many spreads above what unrelated questions find are worth as much as all words of the question.
_SPREADS: Final = 8
_SMALLEST_SPREAD: Final = 0.005

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
class Unrelated:
    """The best cosines that unrelated questions find in a store: their median, and how far they spread below it."""

    median: float
    spread: float

    @classmethod
    def of(cls, cosines: Sequence[float]) -> Unrelated:
        """From the best cosine that each of ``PROBES`` found."""
        values = np.asarray(cosines)
        median = np.median(values)
        below = values[values <= median] - median
        return cls(float(median), float(np.sqrt(np.mean(below**2))))


def relevance(cosine: float, covered: float, unrelated: Unrelated) -> float:
    """How relevant the best passages are; what exceeds ``NEEDED`` can be answered from.

    Args:
        cosine: the best of them.
        covered: the best coverage.
        unrelated: what a cosine is compared with.
    """
    return covered + (cosine - unrelated.median) / (_SPREADS * max(unrelated.spread, _SMALLEST_SPREAD))


def coverage(weights: Mapping[str, float], text: str) -> float:
    """The share of a question's terms that a text has, from 0 to 1.

    Args:
        weights: of each term. One that the text lacks counts by the square of the share of its parts that the text
            has: it may have another form of the word.
        text: a passage.
    """
    terms = set(terms_of(text))
    missing = [term for term in weights if term not in terms]
    parts = set(parts_of(text)) if missing else set()
    have = dict.fromkeys(weights, 1.0) | {term: _share(parts_of(term), parts) ** 2 for term in missing}
    total = sum(weights.values())
    return sum(weight * have[term] for term, weight in weights.items()) / total if total else 0.0


def _share(wanted: Sequence[str], parts: set[str]) -> float:
    return sum(part in parts for part in wanted) / len(wanted) if wanted else 0.0
