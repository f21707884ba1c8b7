"""Softmax through NumPy is mlx's, and only there while texts are embedded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models import llama
from mlx_lm.models.base import scaled_dot_product_attention

from grit_mlx import GritLM
from grit_mlx.model import numpy_attention
from grit_mlx.model.numpy_attention import _attention
from grit_mlx.model.numpy_linear import through_numpy


@pytest.mark.parametrize("heads", [(4, 4), (6, 2), (5, 1)])
@pytest.mark.parametrize("masked", [None, "padding", "window"])
def test_it_is_mlx_attention(heads: tuple[int, int], masked: str | None) -> None:
    mx.random.seed(0)
    many, few = heads
    queries = mx.random.normal((3, many, 17, 8)) * 30  # exponentials of its scores would overflow
    keys, values = (mx.random.normal((3, few, 17, 8)) for _ in range(2))
    real = mx.arange(17)[None, None, None] < mx.array([17, 9, 1]).reshape(3, 1, 1, 1)
    near = mx.abs(mx.arange(17)[:, None] - mx.arange(17)) < 4
    mask = {None: None, "padding": real, "window": near}[masked]
    expected = scaled_dot_product_attention(queries, keys, values, None, scale=0.3, mask=mask)
    with through_numpy():
        found = _attention(_unused, queries, keys, values, None, scale=0.3, mask=mask)
    np.testing.assert_allclose(np.array(found), np.array(expected), atol=2e-5)


def _unused(*_: Any, **__: Any) -> mx.array:
    raise AssertionError("mlx computed it")


@pytest.mark.parametrize("case", ["not embedding", "causal", "half", "added mask", "sinks"])
def test_everything_else_is_left_to_mlx(case: str) -> None:
    ones = mx.ones((1, 1, 2, 4), dtype=mx.float16 if case == "half" else mx.float32)
    mask = {"causal": "causal", "added mask": mx.zeros((2, 2))}.get(case)
    others = {"sinks": mx.zeros(1)} if case == "sinks" else {}
    calls: list[Any] = []

    def forward(*arguments: Any, **options: Any) -> mx.array:
        calls.append(options)
        return ones

    if case == "not embedding":
        _attention(forward, ones, ones, ones, None, scale=1.0, mask=None)
    else:
        with through_numpy():
            _attention(forward, ones, ones, ones, None, scale=1.0, mask=mask, **others)
    assert len(calls) == 1


def test_a_loaded_model_embeds_through_it(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = GritLM(tiny_model, dtype="float32")
    layer = model.model.layers[0].self_attn
    assert isinstance(layer, llama.Attention) and type(layer).__name__ == "Attention"
    assert llama.Attention.__call__ is not type(layer).__call__  # only this model's layers are another class
    texts = ["A keel.", "A mast carries the sails of a ship."]
    calls: list[Any] = []
    real = numpy_attention._exponentials

    def watched(scores: Any) -> Any:
        calls.append(scores.shape)
        return real(scores)

    monkeypatch.setattr(numpy_attention, "_exponentials", watched)
    found = model.encode(texts)
    assert calls
    calls.clear()
    model.generate("a keel", max_tokens=2)
    assert not calls
    monkeypatch.setattr(numpy_attention, "embeds_through_numpy", lambda: False)
    np.testing.assert_allclose(found, model.encode(texts), atol=1e-5)
