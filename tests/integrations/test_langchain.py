"""LangChain's own standard tests, and what they do not ask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.integrations.tools import tool

tool("langchain_core")
tool("langchain_tests")

from langchain_core.documents import Document
from langchain_core.messages import HumanMessage
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_tests.integration_tests import (
    ChatModelIntegrationTests,
    EmbeddingsIntegrationTests,
    RetrieversIntegrationTests,
)
from langchain_tests.unit_tests import ChatModelUnitTests, EmbeddingsUnitTests
from pydantic import BaseModel

from grit_mlx import GritLM
from grit_mlx.errors import ArgumentError
from grit_mlx.integrations.backend import LocalBackend
from grit_mlx.integrations.langchain import ChatGrit, GritEmbeddings, GritReranker, GritRetriever

TINY = str(Path(__file__).parents[1] / "golden" / "mistral")


class TestEmbeddingsUnit(EmbeddingsUnitTests):
    embeddings_class = GritEmbeddings


class TestEmbeddings(EmbeddingsIntegrationTests):
    embeddings_class = GritEmbeddings


class _Chat:
    chat_model_class = ChatGrit
    chat_model_params = {"model": TINY}  # noqa: RUF012 - the suite's own form
    has_tool_calling = False
    has_structured_output = False  # random weights do not say what the suite wants to hear; see below
    supports_image_inputs = False


class TestChatUnit(_Chat, ChatModelUnitTests):
    pass


class TestChat(_Chat, ChatModelIntegrationTests):
    pass


class TestRetriever(RetrieversIntegrationTests):
    @pytest.fixture(autouse=True)
    def _store(self, notes: str) -> None:
        type(self)._notes = notes

    @property
    def retriever_constructor(self) -> type[GritRetriever]:
        return GritRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"store": self._notes, "k": 2}

    @property
    def retriever_query_example(self) -> str:
        return "When is the boiler serviced?"


def test_queries_are_embedded_as_queries(grit: GritLM) -> None:
    embeddings = GritEmbeddings(grit)
    np.testing.assert_allclose(embeddings.embed_query("yeast"), grit.encode_queries("yeast"), rtol=1e-6)
    np.testing.assert_allclose(embeddings.embed_documents(["yeast"]), grit.encode_corpus(["yeast"]), rtol=1e-6)
    assert not np.allclose(embeddings.embed_query("yeast"), embeddings.embed_documents(["yeast"])[0])


def test_a_chat_is_what_generate_says(tiny_model: Path) -> None:
    chat = ChatGrit(model=str(tiny_model), max_tokens=8)
    expected = GritLM(tiny_model).generate("Hello", max_tokens=8)
    assert chat.invoke("Hello").content == expected
    assert "".join(str(chunk.content) for chunk in chat.stream("Hello")) == expected
    with pytest.raises(ArgumentError, match="with_structured_output"):
        chat.invoke("Hello", tools=[{"type": "function"}])
    image = HumanMessage([{"type": "image", "url": "http://127.0.0.1/cat.png"}])
    with pytest.raises(ArgumentError, match="Only text"):
        chat.invoke([image])


def test_structured_output_is_an_object(tiny_model: Path) -> None:
    tool("llguidance")

    class Person(BaseModel):
        name: str
        age: int

    chat = ChatGrit(model=str(tiny_model), max_tokens=400, seed=1)
    person = chat.with_structured_output(Person, include_raw=True).invoke("Who?")
    assert isinstance(person["parsed"], Person) or person["raw"].response_metadata["finish_reason"] == "length"


def test_models_are_loaded_once() -> None:
    first, second = GritEmbeddings().backend, GritEmbeddings().backend
    assert isinstance(first, LocalBackend) and isinstance(second, LocalBackend)
    assert first.model is second.model


def test_a_vector_store_finds_and_a_reranker_reorders(grit: GritLM) -> None:
    texts = ["Yeast makes bread rise.", "The keel keeps a ship upright.", "Rain falls in spring."]
    store = InMemoryVectorStore(GritEmbeddings(grit))
    store.add_texts(texts)
    assert store.similarity_search("Why does bread rise?", k=1)[0].page_content == texts[0]
    reranker = GritReranker(model=grit, method="cosine", top_n=2)
    documents = [Document(text, metadata={"n": n}) for n, text in enumerate(texts)]
    best = reranker.compress_documents(documents, "What keeps a ship upright?")
    assert len(best) == 2
    assert best[0].page_content == texts[1]
    assert best[0].metadata["n"] == 1
    assert best[0].metadata["relevance_score"] > best[1].metadata["relevance_score"]


def test_a_retriever_filters_and_names_its_sources(notes: str, grit: GritLM) -> None:
    retriever = GritRetriever(
        store=notes, model=grit, k=3, search_options={"paths": [str(Path(notes).with_name("files") / "bread.md")]}
    )
    found = retriever.invoke("When is the boiler serviced?")
    assert found
    assert all(Path(document.metadata["source"]).name == "bread.md" for document in found)
    assert all(document.metadata["place"] for document in found)
