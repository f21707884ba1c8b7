"""Models that are not GritLM: a warning before their scores, plain prompts in their own chat, caches that hold."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grit_mlx import GritLM
from grit_mlx.convert import convert
from grit_mlx.model.prompts import PLAIN_RAG_PROMPTS, chat_tokens, rag_tokens
from grit_mlx.model.settings import Settings, write_settings
from grit_mlx.rag import Answerer, Document, DocumentCaches, Rag, Store, Turn
from grit_mlx.rag.modes import MODES

CHATML = (
    "{% for message in messages %}[{{ message['role'] }}]{{ message['content'] }}[end]{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
GRIT = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ '<|user|>\\n' + "
    "message['content'] + '\\n<|assistant|>\\n' }}{% else %}{{ message['content'] + eos_token }}"
    "{% if not loop.last %}{{ '\\n' }}{% endif %}{% endif %}{% endfor %}"
)
DOCUMENTS = [Document("A keel keeps a ship upright.", "1"), Document("Bread rises because yeast eats sugar.", "2")]
QUESTION = "What keeps a ship upright?"


@pytest.fixture
def instruct(model_copy: Callable[..., Path]) -> Callable[..., Path]:
    """A copy of the tiny model with a chat of its own."""

    def make(template: str | None = CHATML, name: str = "Instruct", **config: Any) -> Path:
        folder = model_copy(name=name, **config)
        path = folder / "tokenizer_config.json"
        values = json.loads(path.read_text())
        path.unlink()
        path.write_text(json.dumps({**values, "chat_template": template} if template else values))
        return folder

    return make


def warned(model: GritLM, caplog: pytest.LogCaptureFixture) -> list[str]:
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="grit_mlx"):
        model.encode(["a", "b"])
        model.encode("c")
    return [record.getMessage() for record in caplog.records if "was not trained to embed" in record.getMessage()]


def test_a_model_that_was_not_trained_to_embed_says_so_once(
    instruct: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    [message] = warned(GritLM(instruct()), caplog)
    assert message.startswith("Instruct was not trained to embed, so its scores say little.")
    assert "grit train --init" in message
    writer = GritLM(instruct(name="other"))
    writer.generate("Hi", max_tokens=2)
    assert not caplog.records[1:]


def test_a_conversion_does_not_train(
    instruct: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    convert(instruct(), output=tmp_path / "made", verify=False)
    assert (tmp_path / "made" / "grit.json").exists()
    assert len(warned(GritLM(tmp_path / "made"), caplog)) == 1


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        (Settings(), 0),  # by hand
        (Settings(about={"made_with": "grit-mlx", "tuned_from": "x"}), 0),
        (Settings(pooling="lasttoken", about={"made_with": "grit-mlx"}), 0),
        (Settings(about={"made_with": "grit-mlx"}), 1),
    ],
    ids=str,
)
def test_settings_say_whether_it_was_trained(
    instruct: Callable[..., Path], caplog: pytest.LogCaptureFixture, settings: Settings, count: int
) -> None:
    folder = instruct()
    write_settings(folder, settings)
    assert len(warned(GritLM(folder), caplog)) == count


@pytest.mark.parametrize("template", [None, GRIT])
def test_gritlm_itself_needs_no_settings(
    instruct: Callable[..., Path], caplog: pytest.LogCaptureFixture, template: str | None
) -> None:
    assert not warned(GritLM(instruct(template)), caplog)


# Prompts


@pytest.mark.parametrize("mode", MODES)
def test_prompts_are_plain_and_in_the_models_own_chat(instruct: Callable[..., Path], mode: str) -> None:
    model = GritLM(instruct())
    _, tokens = Answerer(model).prompt(QUESTION, DOCUMENTS[:1], cache=mode)
    text = model.tokenizer.decode(tokens)
    wanted = PLAIN_RAG_PROMPTS[mode].format(query=QUESTION, document=DOCUMENTS[0].content)
    assert text == f"[user]{wanted}[end][assistant]"
    for words in ("prior", "Optionally", "<|user|>", "<|assistant|>"):
        assert words not in text


def test_prompts_of_a_template_that_begins_with_bos(instruct: Callable[..., Path]) -> None:
    """What is cached begins with it already."""
    tokenizer = GritLM(instruct("{{ bos_token }}" + CHATML)).tokenizer
    alone = rag_tokens(tokenizer, "none", ["a"], document="b")
    after = rag_tokens(tokenizer, "doc", ["a"], document="b")
    assert alone[0] == tokenizer.bos_token_id and tokenizer.bos_token_id not in after


def test_a_conversation_is_one_chat(instruct: Callable[..., Path]) -> None:
    model = GritLM(instruct())
    tokens = rag_tokens(model.tokenizer, "none", ["a?", "b?"], document="d", answers=["yes"])
    first = PLAIN_RAG_PROMPTS["none"].format(query="a?", document="d")
    messages = [
        {"role": "user", "content": first},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "b?"},
    ]
    assert tokens == chat_tokens(model.tokenizer, messages)
    answer = Answerer(model).answer("b?", DOCUMENTS, cache="doc", history=[Turn("a?", "yes")], max_tokens=4)
    assert answer.text is not None and answer.finish_reason


def test_cached_documents_are_what_the_model_reads_itself(instruct: Callable[..., Path], tmp_path: Path) -> None:
    """It writes from left to right, so a cached document and the prompt are one text, read once."""
    model = GritLM(instruct())
    answerer = Answerer(model, DocumentCaches(tmp_path / "caches"))
    layers, tokens = answerer.prompt(QUESTION, DOCUMENTS[:1], cache="doc")
    [held] = [model.tokenizer.encode(answerer.encoder.document_prompt + DOCUMENTS[0].content)]
    assert layers[0].offset == len(held)
    continued = next(iter(model.stream_responses(tokens, max_tokens=1, cache=layers)))
    whole = next(iter(model.stream_responses([*held, *tokens], max_tokens=1)))
    np.testing.assert_allclose(np.array(continued.logprobs), np.array(whole.logprobs), atol=1e-4)
    again = Answerer(model, DocumentCaches(tmp_path / "caches"))
    assert again.answer(QUESTION, DOCUMENTS[:1], cache="doc", max_tokens=3).cached_tokens == len(held)


def test_vectors_are_those_of_the_models_settings(instruct: Callable[..., Path]) -> None:
    model = GritLM(instruct())
    encoder = Answerer(model).encoder
    vectors, layers = encoder.vectors_and_caches(["A keel.", "Bread."])
    np.testing.assert_array_equal(vectors, encoder.vectors(["A keel.", "Bread."]))
    vector, _ = encoder.query(QUESTION)
    np.testing.assert_array_equal(vector, encoder.queries([QUESTION])[0])
    assert len(layers) == 2


def test_a_store_of_such_a_model(instruct: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("A keel keeps a ship upright.\n\nBread needs yeast.\n")
    model = GritLM(instruct())
    store = Store(tmp_path / "store", model)
    store.index([tmp_path / "a.txt"], cache_ahead="all")
    for rerank in (False, True):
        rag = Rag(model, store, top=1, min_score=-1, cache="doc", rerank=rerank)
        response = rag.ask(QUESTION, max_tokens=4)
        assert response.text is not None and response.answer is not None
        assert response.answer.cached_tokens > 0
    first = rag.chat(QUESTION, max_tokens=3)
    rag.remember(QUESTION, first.text or "")
    assert rag.chat("And why?", max_tokens=3).text is not None
