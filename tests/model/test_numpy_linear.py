"""Products through NumPy are mlx's; everything that only reads or writes uses them, and no gradient does."""

from __future__ import annotations

import json
import queue
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from numpy.typing import NDArray

from grit_mlx import GritLM
from grit_mlx.evaluation.answers import answer_loss
from grit_mlx.evaluation.drift import outputs_of
from grit_mlx.evaluation.sets import AnswerSet, load_set
from grit_mlx.model import device, numpy_linear
from grit_mlx.model.numpy_linear import through_numpy
from grit_mlx.model.options import GenerationOptions
from grit_mlx.rag.encoding import Encoder
from grit_mlx.rag.likelihood import likelihood
from grit_mlx.server.decoding import Prompt, Token
from grit_mlx.server.engine import Engine
from grit_mlx.server.scoring import scored

TEXTS = ["a keel", "the hull of a ship is long", "wind"]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was handed to NumPy."""
    handed: list[Any] = []
    real = np.asarray

    def watched(values: mx.array) -> NDArray[np.float32]:
        handed.append(values)
        return real(values)

    monkeypatch.setattr(numpy_linear, "np", SimpleNamespace(asarray=watched))
    return handed


@pytest.fixture(params=["bundled", "openblas"])
def prepared(request: pytest.FixtureRequest, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> GritLM:
    """A model that was loaded where mlx has this BLAS."""
    here = replace(device.current_device(), blas=request.param)
    monkeypatch.setattr(device, "current_device", lambda: here)
    return GritLM(tiny_model, dtype="float32")


@pytest.fixture
def plain(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> GritLM:
    """The same where all is left to mlx, as on a Mac."""
    with monkeypatch.context() as patch:
        here = replace(device.current_device(), blas="system")
        patch.setattr(device, "current_device", lambda: here)
        return GritLM(tiny_model, dtype="float32")


def served(model: GritLM) -> list[int]:
    """An answer of the server's engine."""
    engine = Engine()
    items: queue.Queue[Token | Exception] = queue.Queue()
    try:
        lane = engine.open(model)
        lane.generate(
            Prompt(model.prompt_tokens("a keel", raw=False, continues=False), GenerationOptions(max_tokens=4)),
            items.put,
        )
        written: list[int] = []
        while True:
            item = items.get(timeout=60)
            assert isinstance(item, Token), item
            written.append(item.id)
            if item.finish_reason:
                return written
    finally:
        engine.stop()


def log_probabilities(model: GritLM) -> list[float]:
    steps = scored(model, [1, 5, 7, 9], 1)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return [one.logprob for one in end.value[1:]]


def perplexity(model: GritLM) -> float:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "answers.jsonl"
        path.write_text(json.dumps({"instruction": "A keel?", "output": "A fin below the hull."}))
        data = load_set(path)
    assert isinstance(data, AnswerSet)
    return answer_loss(model, data).nats


def question_after_document(model: GritLM) -> float:
    encoder = Encoder(model)
    return likelihood(encoder, "a keel", encoder.query("the hull of a ship")[1])


# Whatever reads or writes without training, each once.
WAYS: dict[str, Callable[[GritLM], Any]] = {
    "embed": lambda model: model.encode(TEXTS),
    "generate": lambda model: model.generate("a keel", max_tokens=4),
    "several": lambda model: model.generate_batch(["a keel", "wind"], max_tokens=4),
    "serve": served,
    "log-probabilities": log_probabilities,
    "perplexity": perplexity,
    "drift": lambda model: outputs_of(model, TEXTS).log_probabilities,
    "rerank": question_after_document,
}


@pytest.mark.parametrize("way", WAYS)
def test_whatever_reads_or_writes_computes_through_numpy(
    prepared: GritLM, plain: GritLM, seen: list[Any], way: str
) -> None:
    found, expected = WAYS[way](prepared), WAYS[way](plain)
    if isinstance(found, str | list) and not isinstance(found[0], float):
        assert found == expected
    else:
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    # A text alone may be no single row, and then an OpenBLAS of mlx's own is as good.
    one_row = way in ("generate", "serve")
    assert seen or (device.current_device().blas == "openblas" and not one_row)


@pytest.mark.parametrize("shape", [(1, 1, 16), (1, 16), (16,)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_row_is_multiplied_as_by_mlx(shape: tuple[int, ...], bias: bool, seen: list[Any]) -> None:
    layer, table = nn.Linear(16, 40, bias=bias), nn.Embedding(40, 16)
    row = mx.random.normal(shape)
    expected = [layer(row), table.as_linear(row)]
    holder = nn.Sequential(layer, table)
    numpy_linear.prepare_rows(holder)
    assert np.array_equal(layer(row), expected[0]) and not seen
    with through_numpy():
        found = [layer(row), table.as_linear(row)]
        assert len(seen) == 4  # rows and weights
        rows = mx.stack([row, row])
        assert layer(rows).shape == (2, *shape[:-1], 40)
        assert layer(row.astype(mx.bfloat16)).shape == (*shape[:-1], 40)
        assert len(seen) == 4
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, atol=1e-5)
    assert np.array_equal(table(mx.array([3])), table.weight[3:4])


def test_no_gradient_is_computed_through_numpy(prepared: GritLM, plain: GritLM, seen: list[Any]) -> None:
    ids = mx.array([[1]])

    def gradient(model: GritLM) -> mx.array:
        found: Any = nn.value_and_grad(model.model, lambda it: it(ids).square().sum())(model.model)[1]
        weight: mx.array = found["model"]["layers"][0]["self_attn"]["v_proj"]["weight"]
        return weight

    np.testing.assert_allclose(gradient(prepared), gradient(plain), rtol=1e-3, atol=1e-3)  # they reach 90
    assert not seen
