"""Validation during a run: losses on held-out data, and scores on given sets."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from grit_mlx.datasets.examples import EMBEDDING, GENERATIVE
from grit_mlx.evaluation.scoring import evaluate_set
from grit_mlx.evaluation.sets import LabelledSet
from grit_mlx.gritlm import GritLM
from grit_mlx.training.preparation import Data, Preparation

__all__ = ["held_out_batches", "held_out_losses", "set_scores"]


def held_out_batches(data: Data, *, max_batches: int) -> int:
    """How many batches ``held_out_losses`` computes."""
    return sum(min(max_batches, batches.sampler.batches_per_epoch) for batches in data.held_out.values())


def held_out_losses(
    prepared: Preparation, data: Data, *, max_batches: int, advance: Callable[[], None] = lambda: None
) -> dict[str, float]:
    """The mean of each loss over the held-out batches, without their total; ``advance`` is called after each batch."""
    sums: dict[str, list[float]] = defaultdict(list)
    step = prepared.validation_step
    computations: dict[str, Callable[[Any], dict[str, float]]] = {
        EMBEDDING: step.embedding_loss,
        GENERATIVE: step.generative_loss,
    }
    for kind, batches in data.held_out.items():
        for number in range(min(max_batches, batches.sampler.batches_per_epoch)):
            for name, value in computations[kind](batches.batch(number)).items():
                sums[name].append(value)
            advance()
    return {name: sum(values) / len(values) for name, values in sums.items() if name != "total"}


def set_scores(
    prepared: Preparation, sets: Sequence[LabelledSet], *, advance: Callable[[], None]
) -> Mapping[str, float]:
    """The main score of each set, by its name; ``advance`` is called after each set."""
    if not sets:
        return {}
    # The projection may be among what is trained.
    model = GritLM.from_loaded(replace(prepared.loaded, model=prepared.trainee.model), mode="unified")
    scores = {}
    for one in sets:
        scores[one.name] = evaluate_set(model, one)
        advance()
    return scores
