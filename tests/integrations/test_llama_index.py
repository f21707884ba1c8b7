"""LlamaIndex end to end: index, retrieve, rerank, answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.integrations.tools import tool

tool("llama_index.core")

from llama_index.core import Document, VectorStoreIndex
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

from grit_mlx import GritLM
from grit_mlx.errors import ArgumentError
from grit_mlx.integrations.llama_index import GritEmbedding, GritLLM, GritReranker, GritRetriever

TEXTS = ["Yeast makes bread rise.", "The keel keeps a ship upright.", "Rain falls in spring."]


def test_queries_are_embedded_as_queries(grit: GritLM) -> None:
    embedding = GritEmbedding(grit)
    np.testing.assert_allclose(embedding.get_query_embedding("yeast"), grit.encode_queries("yeast"), rtol=1e-6)
    batch = embedding.get_text_embedding_batch(TEXTS)
    np.testing.assert_allclose(batch, grit.encode_corpus(TEXTS), rtol=1e-5, atol=1e-7)


def test_a_pipeline_answers(grit: GritLM, tiny_model: Path) -> None:
    index = VectorStoreIndex.from_documents([Document(text=text) for text in TEXTS], embed_model=GritEmbedding(grit))
    engine = index.as_query_engine(
        llm=GritLLM(tiny_model, max_tokens=4),
        similarity_top_k=2,
        node_postprocessors=[GritReranker(grit, method="cosine", top_n=1)],
    )
    response = engine.query("Why does bread rise?")
    assert [node.node.get_content() for node in response.source_nodes] == [TEXTS[0]]
    assert str(response)


def test_a_chat_is_what_generate_says(tiny_model: Path) -> None:
    model = GritLLM(tiny_model, max_tokens=8)
    expected = GritLM(tiny_model).generate("Hello", max_tokens=8)
    assert model.complete("Hello").text == expected
    chat = [ChatMessage(role="user", content="Hello")]
    assert model.chat(chat).message.content == expected
    assert "".join(chunk.delta or "" for chunk in model.stream_chat(chat)) == expected
    assert list(model.stream_complete("Hello"))[-1].text == expected


def test_reranking_by_likelihood_needs_a_query(tiny_model: Path) -> None:
    reranker = GritReranker(tiny_model)
    nodes = [NodeWithScore(node=TextNode(text=text)) for text in TEXTS]
    ranked = reranker.postprocess_nodes(nodes, QueryBundle("Why?"))
    scores = [float(node.score or 0) for node in ranked]
    assert scores == sorted(scores, reverse=True)
    with pytest.raises(ArgumentError, match="query"):
        reranker.postprocess_nodes(nodes)


def test_a_store_is_a_retriever(notes: str, grit: GritLM) -> None:
    found = GritRetriever(notes, grit, similarity_top_k=2).retrieve("When is the boiler serviced?")
    assert Path(found[0].node.metadata["source"]).name == "boiler.md"
    assert (found[0].score or 0) >= (found[-1].score or 0)
