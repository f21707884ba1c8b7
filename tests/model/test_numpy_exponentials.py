"""Softmax and SwiGLU through NumPy are mlx's, and only there where no gradient follows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.models import llama
from mlx_lm.models.activations import swiglu
from mlx_lm.models.base import scaled_dot_product_attention

from grit_mlx import GritLM
from grit_mlx.model import numpy_exponentials
from grit_mlx.model.numpy_exponentials import _attention, _swiglu
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


@pytest.mark.parametrize(("length", "before"), [(1, 0), (1, 40), (5, 0), (17, 0), (17, 23), (70, 5)])
@pytest.mark.parametrize("rows", [4, 256])
def test_causal_attention_is_computed_in_parts(
    length: int, before: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(numpy_exponentials, "_CAUSAL_ROWS", rows)
    queries = mx.random.normal((2, 6, length, 8)) * 20
    keys, values = (mx.random.normal((2, 2, before + length, 8)) for _ in range(2))
    causal: Any = "causal"
    expected = scaled_dot_product_attention(queries, keys, values, None, scale=0.3, mask=causal)
    with through_numpy():
        found = _attention(_unused, queries, keys, values, None, scale=0.3, mask="causal")
    np.testing.assert_allclose(np.array(found), np.array(expected), atol=2e-5)


@pytest.mark.parametrize("masked", [None, "padding", "window", "each"])
def test_many_scores_are_computed_in_parts(masked: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numpy_exponentials, "_SCORES", 300)
    queries, keys, values = (mx.random.normal((2, 2, 19, 8)) for _ in range(3))
    near = mx.abs(mx.arange(19)[:, None] - mx.arange(19)) < 4
    real = mx.arange(19) < mx.array([[[[19]]], [[[7]]]])
    mask = {None: None, "padding": real, "window": near, "each": near[None, None] & real}[masked]
    expected = scaled_dot_product_attention(queries, keys, values, None, scale=0.3, mask=mask)
    with through_numpy():
        found = _attention(_unused, queries, keys, values, None, scale=0.3, mask=mask)
    real_rows = np.array(expected)  # rows of padding see something else in both, and nobody reads them
    np.testing.assert_allclose(np.array(found)[0], real_rows[0], atol=2e-5)
    np.testing.assert_allclose(np.array(found)[1, :, :7], real_rows[1, :, :7], atol=2e-5)


def test_swiglu_is_mlx_swiglu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numpy_exponentials, "_GATES", 100)
    gate, x = mx.random.normal((3, 7, 41)) * 60, mx.random.normal((3, 7, 41))  # exponentials overflow
    with through_numpy():
        np.testing.assert_allclose(np.array(_swiglu(_unused, gate, x)), np.array(swiglu(gate, x)), rtol=2e-6, atol=1e-6)
    calls: list[Any] = []
    _swiglu(lambda *pair: calls.append(pair) or pair[0], gate, x)  # type: ignore[func-returns-value]
    with through_numpy():
        half = gate.astype(mx.float16)
        _swiglu(lambda *pair: calls.append(pair) or pair[0], half, half)  # type: ignore[func-returns-value]
    assert len(calls) == 2


@pytest.fixture(autouse=True)
def _always_worthwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numpy_exponentials, "_WORTHWHILE", 0)


def test_small_calls_are_left_to_mlx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numpy_exponentials, "_WORTHWHILE", 100)
    ones = mx.ones((1, 1, 9, 4))
    with through_numpy():
        assert _attention(lambda *_, **__: ones, ones, ones, ones, None, scale=1.0, mask=None) is ones
        assert _swiglu(lambda *_: ones, ones, ones) is ones


def _unused(*_: Any, **__: Any) -> mx.array:
    raise AssertionError("mlx computed it")


@pytest.mark.parametrize("case", ["gradient", "half", "added mask", "sinks"])
def test_everything_else_is_left_to_mlx(case: str) -> None:
    ones = mx.ones((1, 1, 2, 4), dtype=mx.float16 if case == "half" else mx.float32)
    mask = mx.zeros((2, 2)) if case == "added mask" else None
    others = {"sinks": mx.zeros(1)} if case == "sinks" else {}
    calls: list[Any] = []

    def forward(*arguments: Any, **options: Any) -> mx.array:
        calls.append(options)
        return ones

    if case == "gradient":
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
    real = numpy_exponentials._exponentials

    def watched(scores: Any) -> Any:
        calls.append(scores.shape)
        return real(scores)

    monkeypatch.setattr(numpy_exponentials, "_exponentials", watched)
    found = model.encode(texts)
    assert len(calls) > 1
    calls.clear()
    prompt = "a keel keeps a ship upright " * 40
    answer = model.generate(prompt, max_tokens=8)
    assert calls
    calls.clear()
    ids = mx.array([[1, 5, 7]])
    nn.value_and_grad(model.model, lambda it: it(ids).square().sum())(model.model)
    assert not calls
    monkeypatch.setattr(numpy_exponentials, "computes_through_numpy", lambda: False)
    np.testing.assert_allclose(found, model.encode(texts), atol=1e-5)
    assert model.generate(prompt, max_tokens=8) == answer
