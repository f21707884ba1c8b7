"""The engine without HTTP: batches, failures that stay alone, caches, and that no stream stalls."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from grit_mlx import GritLM
from grit_mlx.errors import ArgumentError, MemoryLimitError, ModelError, ServerError, TextError
from grit_mlx.model.options import GenerationOptions
from grit_mlx.server.decoding import Prompt, Token
from grit_mlx.server.engine import Engine, Lane


@pytest.fixture
def lane(tiny_model: Path) -> Iterator[Lane]:
    engine = Engine()
    yield engine.open(GritLM(tiny_model))
    engine.stop()


class Reader:
    """Collects an answer."""

    def __init__(self, lane: Lane, text: str, **options: Any) -> None:
        self.items: queue.Queue[Token | Exception] = queue.Queue()
        self.times: list[float] = []
        tokens = lane.model.prompt_tokens(text, raw=False, continues=False)
        self.answer = lane.generate(Prompt(tokens, GenerationOptions(**options)), self.deliver)

    def deliver(self, item: Token | Exception) -> None:
        self.times.append(time.perf_counter())
        self.items.put(item)

    def text(self) -> str:
        text = ""
        while True:
            item = self.items.get(timeout=60)
            if isinstance(item, Exception):
                raise item
            text += item.text
            if item.finish_reason:
                return text


def settle(engine: Engine) -> None:
    deadline = time.monotonic() + 20
    while engine.active:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_requests_of_any_instruction_share_a_batch(lane: Lane) -> None:
    hold = threading.Event()
    lane.engine.call(hold.wait)
    roles = ["query", "document", "similarity"] * 5
    futures = [lane.embed([f"text {i}"], role=role) for i, role in enumerate(roles)]
    hold.set()
    for i, (role, future) in enumerate(zip(roles, futures, strict=True)):
        expected = lane.model.encode([f"text {i}"], role=role)
        np.testing.assert_allclose(future.result(20).vectors, expected, atol=2e-6)
    assert lane.engine.counts.embedding_batches <= 3


def test_a_wrong_text_is_refused_before_it_joins_others(lane: Lane) -> None:
    with pytest.raises(TextError) as caught:
        lane.embed(["fine", ""])
    assert caught.value.index == 1
    assert lane.embed([]).result(5).vectors.shape == (0, lane.model.embedding_size)


def test_what_fails_in_a_batch_fails_alone(lane: Lane, monkeypatch: pytest.MonkeyPatch) -> None:
    compute = lane.embedder._compute

    def failing(batch: Any, **options: Any) -> Any:
        vectors, caches = compute(batch, **options)
        for row, piece in enumerate(batch):
            if len(piece.ids) > 100:
                vectors[row] = np.nan
        return vectors, caches

    monkeypatch.setattr(lane.embedder, "_compute", failing)
    hold = threading.Event()
    lane.engine.call(hold.wait)
    futures = [lane.embed([text]) for text in ("one", "long " * 100, "three")]
    hold.set()
    assert np.isfinite(futures[0].result(20).vectors).all() and np.isfinite(futures[2].result(20).vectors).all()
    with pytest.raises(ModelError, match="NaN"):
        futures[1].result(20)
    settle(lane.engine)


def test_an_answer_that_does_not_fit_leaves_the_others_alone(lane: Lane, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory runs out as soon as three are written at a time: the third ends, the other two are what they were."""
    expected = [lane.model.generate(text, max_tokens=30) for text in ("One", "Two")]
    model = lane.model.model
    forward = type(model).__call__

    def bounded(self: Any, inputs: mx.array, *rest: Any, **options: Any) -> Any:
        if self is model and inputs.shape[0] > 2:
            raise RuntimeError("[malloc] Unable to allocate 123 bytes.")
        return forward(self, inputs, *rest, **options)

    first = [Reader(lane, text, max_tokens=30) for text in ("One", "Two")]
    while not all(reader.times for reader in first):
        time.sleep(0.005)
    monkeypatch.setattr(type(model), "__call__", bounded)
    third = Reader(lane, "Three", max_tokens=30)
    with pytest.raises(MemoryLimitError):
        third.text()
    assert [reader.text() for reader in first] == expected
    monkeypatch.undo()
    assert Reader(lane, "Three", max_tokens=5).text() == lane.model.generate("Three", max_tokens=5)
    settle(lane.engine)


def test_a_prompt_that_was_read_is_not_read_again(lane: Lane) -> None:
    text = "A long introduction to something. " * 20
    first = Reader(lane, text, max_tokens=10)
    answer = first.text()
    assert first.answer.reused == 0
    messages = [
        {"role": "user", "content": text},
        {"role": "assistant", "content": answer},
        {"role": "user", "content": "And then?"},
    ]
    tokens = lane.model.prompt_tokens(messages, raw=False, continues=False)
    items: queue.Queue[Any] = queue.Queue()
    again = lane.generate(Prompt(tokens, GenerationOptions(max_tokens=8)), items.put)
    found = "".join(items.get(timeout=20).text for _ in range(8))
    assert found == lane.model.generate(messages, max_tokens=8)
    assert again.reused is not None and again.reused > 150
    same = Reader(lane, text, max_tokens=10)
    assert same.text() == answer
    assert same.answer.reused == len(same.answer.prompt.tokens) - 1


def test_memory_of_prompts_is_bounded(tiny_model: Path) -> None:
    engine = Engine(prefix_bytes=100_000)
    lane = engine.open(GritLM(tiny_model))
    for i in range(12):
        Reader(lane, f"{i} " * 100, max_tokens=3).text()
        assert engine.prefixes.nbytes <= 100_000
    engine.stop()


def test_a_stop_text_ends_an_answer_and_is_not_shown(lane: Lane) -> None:
    whole = lane.model.generate("Write", max_tokens=40)
    stop = whole[8:11]
    reader = Reader(lane, "Write", max_tokens=40, stop=(stop,))
    assert reader.text() == lane.model.generate("Write", max_tokens=40, stop=(stop,))
    settle(lane.engine)


def test_a_form_is_kept_beside_answers_without_one(lane: Lane) -> None:
    pytest.importorskip("llguidance")
    readers = [
        Reader(lane, "Say", max_tokens=30, choice=("yes", "no")),
        Reader(lane, "Say", max_tokens=30),
        Reader(lane, "Give", max_tokens=12, regex="[0-9]{4}", temperature=1.0, seed=3),
    ]
    texts = [reader.text() for reader in readers]
    assert texts[0] in ("yes", "no")
    assert texts[1] == lane.model.generate("Say", max_tokens=30)
    assert len(texts[2]) == 4 and texts[2].isdecimal()


def test_no_stream_stalls_behind_a_large_request(lane: Lane) -> None:
    """Also for the library's tests: between two tokens there is never more than a bounded batch."""
    reader = Reader(lane, "Write", max_tokens=300)
    while len(reader.times) < 20:
        time.sleep(0.005)
    large = lane.embed(["some words to embed " * 20] * 600)
    reader.text()
    assert large.result(120).vectors.shape[0] == 600
    # A machine that is busy with other things doubles and trebles it; a whole batch would take seconds.
    gaps = np.diff(reader.times)
    assert np.quantile(gaps, 0.95) < 0.4, np.quantile(gaps, [0.5, 0.95, 1])


def test_a_large_request_that_nobody_wants_any_more_is_abandoned(lane: Lane) -> None:
    future = lane.embed(["some words to embed " * 20] * 3000)
    small = lane.embed(["x"])
    small.result(30)  # does not wait for the large one
    assert not future.done()
    assert future.cancel()
    settle(lane.engine)
    assert lane.engine.counts.texts == 1


def test_a_closed_model_and_a_stopped_engine(lane: Lane) -> None:
    reader = Reader(lane, "Write", max_tokens=5000)
    waiting = lane.embed(["some words " * 50] * 2000)
    lane.engine.stop()
    with pytest.raises((ModelError, ServerError)):
        reader.text()
    with pytest.raises(ServerError):
        waiting.result(5)
    with pytest.raises(ServerError):
        lane.embed(["x"])
    lane.engine.stop()


def test_options_that_cannot_work(lane: Lane) -> None:
    with pytest.raises(ArgumentError):
        lane.embed(["x"], role="nonsense")
    with pytest.raises(ArgumentError):
        lane.generate(Prompt([1], GenerationOptions(temperature=-1)), print)
