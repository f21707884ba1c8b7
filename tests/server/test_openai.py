"""OpenAI's endpoints, with OpenAI's own client."""

from __future__ import annotations

import base64
import json
import threading
from typing import Any

import numpy as np
import openai
import pytest

from grit_mlx.server import streaming
from tests.server.conftest import Server


@pytest.fixture(scope="module")
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def test_the_health_and_the_models(server: Server, client: openai.OpenAI) -> None:
    assert server.get("/health") == {"status": "ok"}
    assert [model.id for model in client.models.list()] == ["tiny", "rag:notes"]
    assert client.models.retrieve("tiny").id == "tiny"
    assert None not in server.get("/v1/models")["data"][0].values()


@pytest.mark.parametrize("form", ["float", "base64"])
def test_vectors_are_the_librarys_bit_for_bit(server: Server, form: Any) -> None:
    texts = ["The boiler.", "Tomatoes are sown in March. " * 9, "x"]
    answer = server.post("/v1/embeddings", {"model": "tiny", "input": texts, "encoding_format": form, "user": None})
    given = [one["embedding"] for one in answer["data"]]
    if form == "base64":
        given = [np.frombuffer(base64.b64decode(one), dtype="<f4") for one in given]
    expected = server.model.encode(texts, role="document")
    assert (np.array(given, dtype=np.float32) == expected).all()
    assert [one["index"] for one in answer["data"]] == [0, 1, 2]
    tokens = sum(len(server.model.tokenizer.encode("<|embed|>\n" + text)) for text in texts)
    assert answer["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({"model": "tiny:query"}, {"role": "query"}),
        ({"input_type": "search_query"}, {"role": "query"}),
        ({"input_type": "search_document"}, {"role": "document"}),
        ({"input_type": "clustering"}, {"role": "similarity"}),
        ({"instruction": "Find the rhyme"}, {"role": "document", "instruction": "Find the rhyme"}),
        ({"model": "tiny:query", "input_type": "search_document"}, {"role": "document"}),
    ],
)
def test_three_ways_to_say_what_a_text_is(
    server: Server, client: openai.OpenAI, fields: dict[str, Any], options: dict[str, Any]
) -> None:
    fields = dict(fields)
    model = fields.pop("model", "tiny")
    answer = client.embeddings.create(model=model, input="When?", extra_body=fields)
    assert (np.array(answer.data[0].embedding, dtype=np.float32) == server.model.encode("When?", **options)).all()


def test_many_clients_with_one_text_each(server: Server) -> None:
    texts = [f"text number {i}" for i in range(48)]
    expected = server.model.encode(texts, role="document")
    found: dict[int, Any] = {}

    def ask(i: int) -> None:
        found[i] = server.post("/v1/embeddings", {"input": texts[i]})["data"][0]["embedding"]

    before = server.host.engine.counts.embedding_batches
    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(texts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_allclose(np.array([found[i] for i in range(len(texts))]), expected, atol=2e-6)
    assert server.host.engine.counts.embedding_batches - before < len(texts)


PROMPTS = ["Write about rain.", "Once upon a time", "List three colours of the sky", "Why?", "A" * 150]


def test_a_greedy_chat_is_generates(server: Server, client: openai.OpenAI) -> None:
    for prompt in PROMPTS[:2]:
        answer = client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": prompt}], max_completion_tokens=24
        )
        assert answer.choices[0].message.content == server.model.generate(prompt, max_tokens=24)
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage is not None and answer.usage.completion_tokens == 24


def test_chats_side_by_side_are_what_each_is_alone(server: Server, client: openai.OpenAI) -> None:
    """Greedy and seeded, streamed, with embeddings mixed in."""
    found: dict[int, str] = {}

    def ask(i: int) -> None:
        stream = client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": PROMPTS[i % 5]}],
            max_tokens=20 + i,
            stream=True,
            stream_options={"include_usage": True},
            temperature=0.8 if i % 2 else 0,
            seed=i,
        )
        found[i] = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(10)]
    for thread in threads:
        thread.start()
    for i in range(10):
        server.post("/v1/embeddings", {"input": [f"text {i}"] * 5})
    for thread in threads:
        thread.join()
    for i in range(10):
        temperature = 0.8 if i % 2 else 0.0
        assert found[i] == server.model.generate(PROMPTS[i % 5], 20 + i, temperature, seed=i)
    server.settle()


def test_a_stream_in_openais_shape(server: Server) -> None:
    body = {"messages": [{"role": "user", "content": "Hello"}], "stream": True, "max_tokens": 4, "stream_options": {}}
    _, headers, data = server.request("POST", "/v1/chat/completions", body)
    assert headers["content-type"].startswith("text/event-stream")
    events = [line.removeprefix("data: ") for line in data.decode().split("\n\n") if line]
    assert events[-1] == "[DONE]"
    chunks = [json.loads(one) for one in events[:-1]]
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert all("usage" not in chunk for chunk in chunks)
    assert len({chunk["id"] for chunk in chunks}) == 1


def test_a_stream_that_waits_shows_that_it_lives(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "_SILENCE", 0.05)
    hold = threading.Event()
    server.host.engine.call(lambda: hold.wait(20))
    threading.Timer(0.5, hold.set).start()
    body: Any = {"messages": [{"role": "user", "content": "Hello"}], "stream": True, "max_tokens": 2}
    _, _, data = server.request("POST", "/v1/chat/completions", body)
    assert data.count(b": keep-alive\n\n") > 2
    assert data.endswith(b"data: [DONE]\n\n")
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")
    assert len(list(client.chat.completions.create(model="tiny", **body))) > 1


def test_an_error_in_mid_stream(server: Server, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told in the stream, and the place is free again."""
    decoder = server.host.models["tiny"].lane().decoder
    if decoder is None:
        client.completions.create(model="tiny", prompt="x", max_tokens=1)
        decoder = server.host.models["tiny"].lane().decoder
    assert decoder is not None
    body: Any = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "stream": True}
    stream = client.chat.completions.create(**body, max_tokens=3000)
    next(iter(stream))

    def fail() -> Any:
        raise RuntimeError("something with\na traceback")

    monkeypatch.setattr(decoder, "_next", fail)
    with pytest.raises(openai.APIError, match="The model failed: something with"):
        list(stream)
    monkeypatch.undo()
    server.settle()
    assert client.completions.create(model="tiny", prompt="x", max_tokens=1).choices
