"""What the paper says of GritLM, to stand beside a score: a target for a conversion or a model of your own.

Source: Muennighoff et al. 2024, "Generative Representational Instruction Tuning", its tables as the authors' slides
show them. Prompts and numbers of examples are the authors'; lm-evaluation-harness has its own, so its scores may
differ by a few points for that reason alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

__all__ = ["FIGURES", "MODELS", "Figure", "published"]

MODELS: Final = ("GritLM-7B", "GritLM-8x7B")


@dataclass(frozen=True)
class Figure:
    """A published score.

    Attributes:
        group: the table that it is in.
        name: of the set or task.
        scores: in percent, by model.
        metrics: what scores that it can stand beside are called, up to their first words; none for a mean of sets.
    """

    group: str
    name: str
    scores: Mapping[str, float]
    metrics: tuple[str, ...] = ()


def _figures(group: str, scores: Mapping[str, float], *metrics: str) -> list[Figure]:
    return [Figure(group, name, {"GritLM-7B": score}, metrics) for name, score in scores.items()]


_RETRIEVAL: Final = {"NFCorpus": 40.9, "SciFact": 79.2, "SCIDOCS": 24.4, "ArguAna": 63.2}
_SIMILARITY: Final = {"STSBenchmark": 85.6, "SICK-R": 83.1, "STS12": 77.3}
_KINDS: Final = {
    "classification": 79.5,
    "clustering": 50.6,
    "pair classification": 87.2,
    "reranking": 60.5,
    "retrieval": 57.4,
    "STS": 83.4,
    "summarisation": 30.4,
}
_MATCHES: Final = {
    "no passage": 21.00,
    "query, then document": 30.50,
    "query cached": 25.46,
    "query, then document, both cached": 21.63,
    "document, then query": 30.47,
    "document cached": 33.38,
    "document, then query, both cached": 18.39,
}

FIGURES: Final[tuple[Figure, ...]] = (
    *_figures("MTEB, sets", _RETRIEVAL, "nDCG@10", "ndcg_at_10"),
    *_figures("MTEB, sets", _SIMILARITY, "Spearman", "cosine_spearman"),
    *_figures("MTEB, means", _KINDS),
    Figure("MTEB, means", "all 56 sets", {"GritLM-7B": 66.8, "GritLM-8x7B": 65.7}),
    *_figures("generation", {"MMLU": 57.6}, "acc"),
    *_figures("generation", {"GSM8K": 57.5, "BBH": 54.8}, "exact_match"),
    *_figures("generation", {"TyDi QA": 55.4}),
    *_figures("generation", {"HumanEval": 32.8}, "pass@1"),
    *_figures("generation", {"AlpacaEval": 74.8}),
    Figure("generation", "mean", {"GritLM-8x7B": 65.7}),
    *_figures("Natural Questions, match", _MATCHES),
)


def published(name: str, metric: str, model: str = MODELS[0]) -> float | None:
    """The published score of a set, between 0 and 1; None if there is none.

    Args:
        name: of a set or task, however it is spelled: ``scifact``, ``SciFact``, ``sick_r``.
        metric: what was computed.
        model: one of ``MODELS``.
    """
    for figure in FIGURES:
        if _plain(figure.name) == _plain(name) and metric.split(" ")[0] in figure.metrics and model in figure.scores:
            return figure.scores[model] / 100
    return None


def _plain(name: str) -> str:
    return re.sub(r"[\W_]", "", name).casefold()
