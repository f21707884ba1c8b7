"""The main score of a model on a set, in one call: nDCG@10 on retrieval, Spearman on sentence pairs."""

from __future__ import annotations

from grit_mlx.evaluation.scoring import evaluate
from grit_mlx.evaluation.sets import AnswerSet, LabelledSet, PairSet, RetrievalSet, load_set
from grit_mlx.evaluation.systems import GritSystem
from grit_mlx.gritlm import GritLM

__all__ = ["AnswerSet", "PairSet", "RetrievalSet", "evaluate_set", "load_set"]


def evaluate_set(model: GritLM, data: LabelledSet) -> float:
    """The set's main score: nDCG@10, Spearman's correlation, or the perplexity of answers (where less is better).

    Args:
        model: loaded in a mode that does what the set asks for.
        data: from ``load_set``.
    """
    (score,) = evaluate([lambda: GritSystem(model)], [data])
    return score.values[score.main]
