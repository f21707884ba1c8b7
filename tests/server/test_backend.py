"""What the adapters for other tools are told by a server is what a model in this process says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from grit_mlx.errors import ArgumentError, ServerError
from grit_mlx.integrations.backend import LocalBackend, ServerBackend, answer, connect
from tests.server.conftest import Server

TEXTS = ["The boiler is serviced each October.", "Tomatoes are sown in March.", "A"]
CHAT = [{"role": "user", "content": "When is the boiler serviced?"}]


@pytest.fixture
def remote(server: Server) -> ServerBackend:
    return ServerBackend(f"{server.url}/v1/")


@pytest.fixture
def local(server: Server) -> LocalBackend:
    return LocalBackend(server.model)


@pytest.mark.parametrize("options", [{}, {"instruction": "Find it"}], ids=str)
@pytest.mark.parametrize("role", ["query", "document", "similarity"])
def test_vectors(remote: ServerBackend, local: LocalBackend, role: str, options: dict[str, str]) -> None:
    if role == "document" and options:
        pytest.skip("documents have no instruction of their own")
    found = remote.embed(TEXTS, role=role, **options)
    np.testing.assert_allclose(found, local.embed(TEXTS, role=role, **options), atol=2e-6)


def test_answers(remote: ServerBackend, local: LocalBackend) -> None:
    options = {"max_tokens": 9, "temperature": 0}
    pieces = list(remote.chat(CHAT, **options))
    assert answer(iter(pieces)) == answer(local.chat(CHAT, **options))
    assert len(pieces) > 2
    assert answer(iter(pieces)).finish_reason == "length"
    stopped = answer(local.chat(CHAT, **options)).text[:3]
    assert (
        answer(remote.chat(CHAT, stop=stopped, **options)).text
        == answer(local.chat(CHAT, stop=stopped, **options)).text
    )


def test_reranking(remote: ServerBackend, local: LocalBackend) -> None:
    for method in ("likelihood", "cosine"):
        there, here = (backend.rerank("When?", TEXTS, method=method) for backend in (remote, local))
        assert np.argsort(there).tolist() == np.argsort(here).tolist()


def test_stores(remote: ServerBackend, local: LocalBackend, notes: Path) -> None:
    question = "When is the boiler serviced?"
    for options in ({"top": 2}, {"method": "bm25"}, {"paths": [str(notes / "garden.md")]}):
        there, here = (
            remote.search("notes", question, **options),
            local.search(str(notes / "store"), question, **options),
        )
        assert [(one.text, one.source, one.place, one.metadata) for one in there] == [
            (one.text, one.source, one.place, one.metadata) for one in here
        ]
        assert [one.score for one in there] == pytest.approx([one.score for one in here], abs=1e-5)


def test_what_goes_wrong(start: Callable[..., Server], remote: ServerBackend) -> None:
    with pytest.raises(ServerError, match="nowhere"):
        remote.search("nowhere", "a")
    with pytest.raises(ServerError, match="empty"):
        remote.embed([""], role="query")
    with pytest.raises(ArgumentError, match="tools"):
        remote.chat(CHAT, tools=[{}]).__next__()
    with pytest.raises(ServerError, match="answer"):
        ServerBackend("http://127.0.0.1:1").embed(["a"], role="query")
    guarded = start(keys=["right"])
    with pytest.raises(ServerError, match="key"):
        ServerBackend(guarded.url, api_key="wrong").embed(["a"], role="query")
    assert len(connect("tiny", base_url=guarded.url, api_key="right").embed(["a"], role="query")) == 1
