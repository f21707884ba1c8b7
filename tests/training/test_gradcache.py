"""GradCache equals the whole batch, whatever the chunks, with dropout too."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from grit_mlx.datasets.tokens import TokenizedText
from grit_mlx.model.loading import load
from grit_mlx.model.options import ModelChoice
from grit_mlx.model.settings import Settings
from grit_mlx.model.world import World
from grit_mlx.training import TrainingSettings
from grit_mlx.training.adapters import AdapterLayout, attach_adapter
from grit_mlx.training.arrays import named_arrays, number
from grit_mlx.training.data import EmbeddingBatch
from grit_mlx.training.gradcache import cached_gradients, vector_jacobian
from grit_mlx.training.losses import contrastive_loss
from grit_mlx.training.recompute import checkpoint_layers
from grit_mlx.training.step import Trainee, TrainingStep


def assert_equal_gradients(ours: Any, theirs: Any, tolerance: float = 1e-5) -> None:
    first, second = dict(named_arrays(ours)), dict(named_arrays(theirs))
    assert first.keys() == second.keys()
    error = sum(number(mx.sum((first[name] - second[name]) ** 2)) for name in first)
    size = sum(number(mx.sum(value**2)) for value in second.values())
    assert size > 0 and (error / size) ** 0.5 < tolerance


@pytest.mark.parametrize("chunk", [1, 3, 16])
def test_cached_gradients_of_any_model(chunk: int) -> None:
    mx.random.seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.GELU(), nn.Linear(8, 4))
    rows = mx.random.normal((16, 5))

    def value(representations: mx.array) -> mx.array:
        return contrastive_loss(representations[:4], representations[4:], temperature=0.3)

    def loss(parts: Sequence[mx.array]) -> tuple[float, list[mx.array]]:
        found, gradient = mx.value_and_grad(value)(mx.concatenate(list(parts)))
        return number(found), [gradient[at : at + chunk] for at in range(0, 16, chunk)]

    chunks = [rows[at : at + chunk] for at in range(0, 16, chunk)]
    found, gradients = cached_gradients(chunks, model, vector_jacobian(model, model), loss)
    whole, expected = nn.value_and_grad(model, lambda x: value(model(x)))(rows)
    assert found == pytest.approx(whole.item(), rel=1e-6)
    assert_equal_gradients(gradients, expected)


def texts(count: int, seed: int) -> list[TokenizedText]:
    rng = np.random.default_rng(seed)
    return [
        TokenizedText(rng.integers(3, 384, rng.integers(6, 30)).astype(np.int32), int(rng.integers(0, 4)))
        for _ in range(count)
    ]


def step_of(folder: Path, *, dropout: float = 0.0, settings: Settings | None = None, **changes: Any) -> TrainingStep:
    loaded = load(ModelChoice(folder))
    mx.random.seed(3)
    attach_adapter(loaded.model, AdapterLayout("lora", -1, 4, 2.0, dropout, ("self_attn.q_proj", "mlp.down_proj")))
    for name, module in loaded.model.named_modules():
        if name.endswith("q_proj") and hasattr(module, "lora_b"):
            module.lora_b = mx.random.normal(module.lora_b.shape) * 0.1
    trainee = Trainee(loaded.model, learn_temperature=True)
    trainee.train()
    training = TrainingSettings(**{"group_size": 2, "temperature": 0.1, **changes})
    return TrainingStep(trainee, training, settings or loaded.settings, world=World())


@pytest.mark.parametrize("pooling", ["mean", "weightedmean", "lasttoken", "cls"])
def test_the_embedding_step_equals_the_whole_batch(tiny_model: Path, pooling: str) -> None:
    batch = EmbeddingBatch(texts(6, 0), texts(12, 1), np.arange(12, dtype=np.int32))
    settings = Settings(pooling=pooling)
    whole = step_of(tiny_model, chunk_size=100, settings=settings).embedding(batch, seed=1)
    for changes in (
        {"chunk_size": 1},
        {"chunk_size": 5},
        {"chunk_tokens": 64},
        {"chunk_size": 4, "grad_checkpoint": True},
    ):
        step = step_of(tiny_model, settings=settings, **changes)
        parts = step.embedding(batch, seed=1)
        assert parts.losses == pytest.approx(whole.losses, rel=1e-5)
        assert step.embedding_loss(batch) == pytest.approx(whole.losses, rel=1e-5)
        assert_equal_gradients(parts.gradients, whole.gradients)
    assert abs(number(whole.gradients["temperature_change"])) > 1e-3


def test_the_gradient_is_that_of_the_loss(tiny_model: Path) -> None:
    """Not only equal to itself: the learned temperature and a weight by finite differences."""
    batch = EmbeddingBatch(texts(4, 0), texts(8, 1), np.arange(8, dtype=np.int32))
    step = step_of(tiny_model, chunk_size=3, symmetric=True)
    gradients = step.embedding(batch, seed=0).gradients
    change, losses = 1e-2, []
    for sign in (1, -1):
        step.trainee.temperature_change = mx.array(sign * change)
        losses.append(step.embedding_loss(batch)["total"])
    step.trainee.temperature_change = mx.array(0.0)
    expected = (losses[0] - losses[1]) / (2 * change)
    assert number(gradients["temperature_change"]) == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("recompute", [False, True])
def test_the_gradient_with_dropout_is_that_of_the_loss(tiny_model: Path, recompute: bool) -> None:
    """By finite differences: were masks drawn anew for the gradient, it would belong to another loss."""
    batch = EmbeddingBatch(texts(4, 0), texts(8, 1), np.arange(8, dtype=np.int32))
    step = step_of(tiny_model, dropout=0.5, chunk_size=5)
    if recompute:
        checkpoint_layers(step.trainee.model.layers)
    found = step.embedding(batch, seed=1)
    gradient = found.gradients["model"]["model"]["layers"][0]["self_attn"]["q_proj"]["lora_b"]
    layer = step.trainee.model.layers[0].self_attn.q_proj
    before, losses = layer.lora_b, []
    direction = gradient / mx.linalg.norm(gradient)
    for sign in (1, -1):
        layer.lora_b = before + sign * 2e-3 * direction
        losses.append(step.embedding(batch, seed=1).losses["total"])
    slope = (losses[0] - losses[1]) / 4e-3
    assert slope == pytest.approx(number(mx.linalg.norm(gradient)), rel=2e-2)


def test_dropout_is_the_same_in_both_passes(tiny_model: Path) -> None:
    batch = EmbeddingBatch(texts(4, 0), texts(8, 1), np.arange(8, dtype=np.int32))
    step = step_of(tiny_model, dropout=0.5, chunk_size=4)
    first, again = step.embedding(batch, seed=1), step.embedding(batch, seed=1)
    other = step.embedding(batch, seed=2)
    assert first.losses == again.losses != other.losses
    assert_equal_gradients(first.gradients, again.gradients, 1e-7)
    # Had the second pass drawn other numbers, the gradient would not be that of the first pass's loss.
    chunks = step._embedding_chunks(batch, 1)
    passes = [[step._forward(chunk) for chunk in chunks] for _ in range(2)]
    assert all(mx.array_equal(a, b).item() for a, b in zip(*passes, strict=True))
