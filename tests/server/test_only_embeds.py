"""A model that only embeds: it says so where it is asked to write, and answers from stores with quotes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from grit_mlx import GritLM
from grit_mlx.rag import Rag
from grit_mlx.rag.store import Store
from tests.server.conftest import Server

HELLO = [{"role": "user", "content": "When is the boiler serviced?"}]


@pytest.fixture(scope="module")
def server(start: Callable[..., Server], notes: Path, tmp_path_factory: pytest.TempPathFactory) -> Server:
    """The built-in model, and what was indexed with it."""
    folder = tmp_path_factory.mktemp("embeds")
    model = GritLM()
    Store(folder / "store", model).index([notes / "boiler.md", notes / "garden.md"])
    return start(models={"grit-tiny": model.folder}, stores={"notes": str(folder / "store")})


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": HELLO}),
        ("/v1/chat/completions", {"messages": HELLO, "stream": True}),
        ("/v1/chat/completions", {"messages": HELLO, "model": "rag:notes", "response_format": {"type": "json_object"}}),
        ("/v1/completions", {"prompt": "Once"}),
        ("/v1/messages", {"messages": HELLO, "max_tokens": 5}),
    ],
)
def test_it_says_that_it_does_not_write(server: Server, path: str, body: Any) -> None:
    status, _, data = server.request("POST", path, body)
    assert status == 400
    assert "only embeds" in json.loads(data)["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_answers_are_quotes(server: Server, stream: bool) -> None:
    rag = Rag(server.model, Store(server.host.stores["notes"].uri, server.model))
    expected = rag.ask(HELLO[0]["content"])
    body = {"model": "rag:notes", "messages": HELLO, "stream": stream}
    _, _, data = server.request("POST", "/v1/chat/completions", body)
    if stream:
        events = [json.loads(line[6:]) for line in data.decode().split("\n\n") if line.startswith("data: {")]
        text = "".join(event["choices"][0]["delta"].get("content", "") for event in events)
        citations = events[-1]["citations"]
    else:
        answer = json.loads(data)
        text, citations = answer["choices"][0]["message"]["content"], answer["citations"]
    assert expected.text and "serviced each October" in expected.text
    assert text == expected.text
    assert [one["id"] for one in citations] == [one.passage.id for one in expected.sources]


def test_it_reranks_by_cosine(server: Server) -> None:
    answer = server.post("/rerank", {"query": "rain", "documents": ["Cars are red.", "Rain falls from clouds."]})
    assert answer["results"][0]["index"] == 1
