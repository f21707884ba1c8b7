"""Haystack pipelines end to end, saved and loaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.integrations.tools import tool

tool("haystack")

from haystack import Document, Pipeline
from haystack.components.builders import ChatPromptBuilder
from haystack.components.retrievers.in_memory import InMemoryEmbeddingRetriever
from haystack.dataclasses import ChatMessage
from haystack.document_stores.in_memory import InMemoryDocumentStore

from grit_mlx import GritLM
from grit_mlx.integrations.haystack import (
    GritChatGenerator,
    GritDocumentEmbedder,
    GritRanker,
    GritRetriever,
    GritTextEmbedder,
)

TEXTS = ["Yeast makes bread rise.", "The keel keeps a ship upright.", "Rain falls in spring."]


def test_queries_are_embedded_as_queries(grit: GritLM) -> None:
    documents = GritDocumentEmbedder(meta_fields_to_embed=["title"])
    embedded = documents.run([Document(content="rises", meta={"title": "Bread"}), Document(content=None)])["documents"]
    np.testing.assert_allclose(embedded[0].embedding, grit.encode_corpus("Bread\nrises"), rtol=1e-5, atol=1e-7)
    assert embedded[1].embedding is None
    query = GritTextEmbedder().run("yeast")["embedding"]
    np.testing.assert_allclose(query, grit.encode_queries("yeast"), rtol=1e-5, atol=1e-7)


def test_a_pipeline_answers_after_it_was_saved(tiny_model: Path) -> None:
    store = InMemoryDocumentStore(embedding_similarity_function="cosine")
    store.write_documents(GritDocumentEmbedder().run([Document(content=text) for text in TEXTS])["documents"])
    template = [ChatMessage.from_user("{% for d in documents %}{{ d.content }} {% endfor %}{{ question }}")]
    pipeline = Pipeline()
    pipeline.add_component("embedder", GritTextEmbedder())
    pipeline.add_component("ranker", GritRanker(method="cosine", top_k=1))
    pipeline.add_component("prompt", ChatPromptBuilder(template=template, required_variables="*"))
    pipeline.add_component("writer", GritChatGenerator(str(tiny_model), generation_kwargs={"max_tokens": 4}))
    pipeline.connect("ranker.documents", "prompt.documents")
    pipeline.connect("prompt.prompt", "writer.messages")
    pipeline = Pipeline.loads(pipeline.dumps(), unsafe=True)

    retriever = Pipeline()
    retriever.add_component("embedder", GritTextEmbedder())
    retriever.add_component("retriever", InMemoryEmbeddingRetriever(store, top_k=2))
    retriever.connect("embedder.embedding", "retriever.query_embedding")

    question = "Why does bread rise?"
    found = retriever.run({"embedder": {"text": question}})["retriever"]["documents"]
    assert found[0].content == TEXTS[0]
    result = pipeline.run(
        {
            "ranker": {"query": question, "documents": found},
            "prompt": {"question": question},
            "embedder": {"text": question},
        }
    )
    expected = GritLM(tiny_model).generate(f"{TEXTS[0]} {question}", max_tokens=4)
    reply = result["writer"]["replies"][0]
    assert reply.text == expected
    assert reply.meta["usage"]["completion_tokens"] == 4


def test_pieces_come_as_they_are_written(tiny_model: Path) -> None:
    pieces: list[str] = []
    generator = GritChatGenerator(str(tiny_model), generation_kwargs={"max_tokens": 8})
    reply = generator.run("Hello", streaming_callback=lambda chunk: pieces.append(chunk.content))["replies"][0]
    assert "".join(pieces) == reply.text


def test_a_store_is_a_retriever(notes: str) -> None:
    retriever = GritRetriever(notes, top_k=2)
    found = retriever.run("When is the boiler serviced?")["documents"]
    assert Path(found[0].meta["source"]).name == "boiler.md"
    filters = {"paths": [str(Path(notes).with_name("files") / "ship.md")]}
    only = retriever.run("When is the boiler serviced?", filters=filters)["documents"]
    assert {Path(document.meta["source"]).name for document in only} == {"ship.md"}
