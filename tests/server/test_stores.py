"""Stores over HTTP: search, files, answers with citations, and updates while they are served."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from grit_mlx import GritLM
from grit_mlx.errors import StoreError
from grit_mlx.rag import Rag
from grit_mlx.rag.store import Store
from tests.server.conftest import NOTES, Server


def ask(server: Server, question: str, model: str = "rag:notes", **fields: Any) -> Any:
    messages = [{"role": "user", "content": question}]
    return server.post("/v1/chat/completions", {"model": model, "messages": messages, "max_tokens": 12, **fields})


def test_a_search_is_the_librarys(server: Server, notes: Path) -> None:
    found = server.post("/v1/stores/notes/search", {"query": "When is the boiler serviced?", "top_k": 2})
    expected = Store(notes / "store", server.model).search("When is the boiler serviced?", top=2)
    assert [one["id"] for one in found["results"]] == [one.passage.id for one in expected]
    first, passage = found["results"][0], expected[0].passage
    assert (first["path"], first["line"], first["text"]) == (passage.source, passage.line, passage.text)
    assert found["relevant"] == expected.relevant
    some = server.post("/v1/stores/notes/search", {"query": "boiler", "paths": [str(notes / "garden.md")]})
    assert {Path(one["path"]).name for one in some["results"]} == {"garden.md"}


@pytest.mark.parametrize(
    "body",
    [{}, {"query": " "}, {"query": "a", "top_k": 0}, {"query": "a", "paths": ["none.md"]}, {"query": "a", "x": 1}],
)
def test_searches_that_are_refused(server: Server, body: Any) -> None:
    status, _, data = server.request("POST", "/v1/stores/notes/search", body)
    assert status == 400, data


def test_the_status(server: Server) -> None:
    status = server.get("/v1/stores/notes")
    assert (status["id"], status["files"]) == ("notes", len(NOTES))
    assert server.get("/v1/stores")["data"] == [status]
    assert server.request("GET", "/v1/stores/none")[0] == 404


def test_a_part_of_a_file(server: Server, notes: Path) -> None:
    path = notes / "boiler.md"
    part = server.get(f"/v1/stores/notes/file?path={path}&line=3&count=2")
    assert part["text"] == "\n".join(NOTES["boiler.md"].splitlines()[2:4])
    assert (part["unit"], part["total"], part["end_line"]) == ("line", 5, 4)


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../../etc/passwd", "store", "", "%00", "boiler.md/../../../etc/passwd"]
)
def test_no_file_that_was_not_indexed(server: Server, notes: Path, path: str) -> None:
    for asked in (path, f"{notes}/{path}"):
        status, _, data = server.request("GET", f"/v1/stores/notes/file?path={asked}")
        assert status in (400, 404), data
        assert b"root:" not in data


def test_a_link_in_an_indexed_files_place_shows_what_was_indexed(
    start: Callable[..., Server], tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("nobody may read this", encoding="utf-8")
    (tmp_path / "a.md").write_text("# A\n\nIndexed.\n", encoding="utf-8")
    Store(tmp_path / "store", GritLM(tiny_model)).index([tmp_path / "a.md"])
    server = start(stores={"s": str(tmp_path / "store")})
    assert server.get(f"/v1/stores/s/file?path={tmp_path / 'a.md'}")["text"] == "# A\n\nIndexed."
    (tmp_path / "a.md").unlink()
    (tmp_path / "a.md").symlink_to(tmp_path / "secret")
    part = server.get(f"/v1/stores/s/file?path={tmp_path / 'a.md'}")
    assert (part["text"], part["passages"]) == ("# A\n\nIndexed.", True)


def test_an_answer_with_citations(server: Server, notes: Path) -> None:
    question = "When is the boiler serviced?"
    answer = ask(server, question)
    rag = Rag(server.model, Store(notes / "store", server.model))
    expected = rag.ask(question, max_tokens=12)
    message = answer["choices"][0]["message"]
    if expected.text is None:
        assert message["content"] == "Nothing relevant was found."
        return
    text, _, sources = message["content"].partition("\n\nSources:\n")
    assert text == expected.text
    assert [one["id"] for one in answer["citations"]] == [one.passage.id for one in expected.sources]
    assert sources.splitlines()[0].startswith("[1] ")
    assert message["citations"] == answer["citations"]


def test_an_answer_that_is_cut_has_its_citations(server: Server) -> None:
    """By its length, by a stop text, and by a client that leaves after the first words."""
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")
    asked: dict[str, Any] = {"model": "rag:notes", "messages": [{"role": "user", "content": "When is it serviced?"}]}
    whole = client.chat.completions.create(**asked, max_tokens=40)
    expected = whole.model_extra["citations"]
    assert expected, "this question finds something"
    text = (whole.choices[0].message.content or "").partition("\n\nSources:\n")[0]
    stop = text[len(text) // 2 : len(text) // 2 + 3]
    for cut in ({"max_tokens": 1}, {"max_tokens": 40, "stop": stop}):
        answer = client.chat.completions.create(**asked, **cut)
        assert answer.model_extra["citations"] == expected
        said, _, sources = (answer.choices[0].message.content or "").partition("\n\nSources:\n")
        assert text.startswith(said) and len(said) < len(text) and sources
    chunks = iter(client.chat.completions.create(**asked, max_tokens=5000, stream=True))
    assert next(chunks).model_extra["citations"] == expected
    chunks.close()
    server.settle()
    claude = anthropic.Anthropic(base_url=server.url, api_key="none")
    with claude.messages.stream(**{**asked, "max_tokens": 5000}) as stream:
        start: Any = next(iter(stream))
        assert start.message.model_extra["grit_citations"] == expected
    server.settle()


def test_the_second_time_passages_are_not_read_again(server: Server) -> None:
    first = ask(server, "When are tomatoes sown in the garden in March?")
    second = ask(server, "When are tomatoes sown in the garden in March?")
    assert first["choices"] == second["choices"]
    usage = second["usage"]
    if usage["prompt_tokens"]:
        assert usage["prompt_tokens_details"]["cached_tokens"] == usage["prompt_tokens"] - 1


def test_a_chat_about_a_store(server: Server) -> None:
    """Answers come back with the sources that were listed below them."""
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")
    chat: list[Any] = [{"role": "system", "content": "Be brief."}]
    for question in ("When is the boiler serviced?", "By whom?"):
        chat.append({"role": "user", "content": question})
        stream = client.chat.completions.create(model="rag:notes", messages=chat, stream=True, max_tokens=9)
        chunks = list(stream)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert text and chunks[-1].choices[0].finish_reason
        assert isinstance(chunks[-1].model_extra["citations"], list)  # type: ignore[index]
        chat.append({"role": "assistant", "content": text})
    status, _, data = server.request("POST", "/v1/chat/completions", {"model": "rag:notes", "messages": chat})
    assert (status, json.loads(data)["error"]["param"]) == (400, "messages")


def test_a_store_that_changes_while_it_is_served(
    start: Callable[..., Server], notes: Path, tmp_path: Path, tiny_model: Path
) -> None:
    shutil.copytree(notes / "store", tmp_path / "store")
    server = start(stores={"notes": str(tmp_path / "store")})
    assert server.get("/v1/stores/notes")["files"] == 2
    before = server.post("/v1/stores/notes/search", {"query": "quantum chromodynamics", "top_k": 1, "method": "bm25"})
    (tmp_path / "new.md").write_text("Quantum chromodynamics explains quarks.\n", encoding="utf-8")
    Store(tmp_path / "store", GritLM(tiny_model)).index([tmp_path / "new.md"])
    after = server.post("/v1/stores/notes/search", {"query": "quantum chromodynamics", "top_k": 1, "method": "bm25"})
    assert not before["results"]
    assert [one["path"] for one in after["results"]] == [str(tmp_path / "new.md")]
    assert server.get("/v1/stores/notes")["files"] == 3


def test_stores_of_another_model_are_refused(start: Callable[..., Server], notes: Path, tiny_mixtral: Path) -> None:
    with pytest.raises(StoreError, match="model"):
        start(models={"other": tiny_mixtral}, stores={"notes": str(notes / "store")})
    with pytest.raises(StoreError, match="no store"):
        start(stores={"none": str(notes / "nothing")})


def test_a_store_is_read_by_the_model_that_it_was_made_with(
    start: Callable[..., Server], notes: Path, tiny_mixtral: Path, tiny_model: Path
) -> None:
    server = start(models={"other": tiny_mixtral, "tiny": tiny_model}, stores={"notes": str(notes / "store")})
    assert server.post("/v1/stores/notes/search", {"query": "boiler"})["results"]
    assert list(server.host.names()) == ["other", "tiny", "rag:notes"]
    vectors = server.post("/v1/embeddings", {"model": "other", "input": "a"})["data"][0]["embedding"]
    assert len(vectors) == server.host.models["other"].lane().model.embedding_size
