"""Question, documents and answer always fit into the model's context, or the question is refused with its length."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from grit_mlx import GritLM
from grit_mlx.errors import ArgumentError
from grit_mlx.rag import Answerer, Document, Rag, Store, Turn
from grit_mlx.rag.limits import check_length, context_of, fitted
from grit_mlx.rag.modes import MODES

QUESTION = "What keeps a ship upright?"
CONTEXT = 1024


@pytest.fixture(scope="module")
def many() -> list[Document]:
    return [Document(f"Document {i}: " + "The wind leans on the sails. " * 3, str(i)) for i in range(200)]


def read(answerer: Answerer, answer: Any) -> int:
    """Tokens that the model has seen when an answer is complete."""
    assert answer.text is not None
    return int(answerer._last[1].layers[0].offset)


@pytest.mark.parametrize("mode", MODES)
def test_the_last_documents_are_left_out(model: GritLM, many: list[Document], mode: str) -> None:
    assert context_of(model) == CONTEXT
    answerer = Answerer(model)
    answer = answerer.answer(QUESTION, many, cache=mode, max_tokens=64)
    assert 150 < answer.left_out < 200
    assert CONTEXT - 280 < read(answerer, answer) <= CONTEXT
    few = answerer.answer(QUESTION, many[: 200 - answer.left_out], cache=mode, max_tokens=64)
    assert few.left_out == 0 and few.text == answer.text


def test_an_answer_ends_where_the_context_does(model: GritLM, many: list[Document]) -> None:
    answerer = Answerer(model)
    for longest in (5000, -1):
        answer = answerer.answer(QUESTION, many, cache="doc", max_tokens=longest)
        assert answer.left_out and read(answerer, answer) <= CONTEXT
        assert answer.finish_reason == "stop" or answer.generated_tokens >= CONTEXT // 2 - 200


def test_history_is_shortened_from_its_beginning(model: GritLM, many: list[Document]) -> None:
    answerer = Answerer(model)
    history = [Turn(f"Question {i}?", "An answer. " * 6) for i in range(20)]
    for mode in ("none", "doc", "auto"):
        answer = answerer.answer(QUESTION, many[:1], cache=mode, history=history, max_tokens=32)
        assert 0 < answer.forgotten < 20 and answer.left_out == 0 and read(answerer, answer) <= CONTEXT
    text = model.tokenizer.decode(answerer._last[1].tokens)
    assert "Question 19?" in text and "Question 0?" not in text


def test_a_long_question_is_refused_with_its_length(model: GritLM) -> None:
    encoder = Answerer(model).encoder
    question = "keel " * 17_600
    assert len(question) == 88_000
    start = time.perf_counter()
    with pytest.raises(ArgumentError, match=rf"has {encoder.count(question):,} tokens, .* context is 1,024 tokens"):
        Answerer(model).answer(question, [Document("A keel.")])
    with pytest.raises(ArgumentError, match=r"more than [0-9,]+ tokens"):
        check_length(encoder, "a" * 50_000_000)
    assert time.perf_counter() - start < 20


def test_what_leaves_no_room_is_refused(model: GritLM) -> None:
    encoder = Answerer(model).encoder
    fits = "a " * 400
    with pytest.raises(ArgumentError, match=r"and the best document .* does not fit"):
        fitted(encoder, fits, ["b " * 400], mode="doc", history=[], max_tokens=256)
    assert fitted(encoder, QUESTION, ["b"], mode="doc", history=[], max_tokens=256).max_tokens == 256


def test_without_a_known_context_nothing_is_left_out(model: GritLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(model.config, "max_position_embeddings", None)
    encoder = Answerer(model).encoder
    check_length(encoder, "a " * 9000)
    fit = fitted(encoder, "a " * 9000, ["b"] * 500, mode="none", history=[("a", "b")], max_tokens=7)
    assert (fit.documents, fit.forgotten, fit.max_tokens) == (500, 0, 7)


def test_a_store_is_asked_within_the_context(
    make_store: Callable[..., Store], model: GritLM, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "many.txt").write_text("\n\n".join(f"Paragraph {i} of many sails. " * 4 for i in range(60)))
    store = make_store()
    store.index([folder])
    rag = Rag(model, store, top=200, min_score=-1, cache="doc")
    response = rag.ask(QUESTION, max_tokens=16)
    assert response.answer is not None and response.answer.left_out
    assert len(response.sources) + response.answer.left_out == len(rag.find(QUESTION)) and response.text is not None
    for _ in range(4):
        response = rag.chat("Sails? " * 30, max_tokens=16)
        assert response.text is not None and response.answer is not None
        rag.remember("Sails? " * 30, response.text)
    assert response.answer is not None and (response.answer.forgotten == 3 or response.answer.left_out)
    long = "sails " * 15_000

    def computed(*_: Any, **__: Any) -> Any:
        raise AssertionError("something was computed")

    monkeypatch.setattr(GritLM, "encode", computed)
    for ask in (rag.ask, rag.chat, store.search):
        with pytest.raises(ArgumentError, match=r"The question has .* tokens"):
            ask(long)
