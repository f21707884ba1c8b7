"""Retrieval through each tool is as good as ``grit eval`` says: queries are embedded as queries, documents as such."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grit_mlx import GritLM
from grit_mlx.evaluation.metrics import ndcg
from grit_mlx.evaluation.scoring import evaluate_set
from grit_mlx.evaluation.sets import RetrievalSet, limited, load_set
from tests.integrations.tools import tool

Vectors = tuple[Any, Any]


def langchain(model: GritLM, documents: list[str], queries: list[str]) -> Vectors:
    tool("langchain_core")
    from grit_mlx.integrations.langchain import GritEmbeddings

    embeddings = GritEmbeddings(model)
    return embeddings.embed_documents(documents), [embeddings.embed_query(query) for query in queries]


def llama_index(model: GritLM, documents: list[str], queries: list[str]) -> Vectors:
    tool("llama_index.core")
    from grit_mlx.integrations.llama_index import GritEmbedding

    embedding = GritEmbedding(model)
    vectors = embedding.get_text_embedding_batch(documents)
    return vectors, [embedding.get_query_embedding(query) for query in queries]


def haystack(model: GritLM, documents: list[str], queries: list[str]) -> Vectors:
    haystack = tool("haystack")
    from grit_mlx.integrations.haystack import GritDocumentEmbedder, GritTextEmbedder

    texts = [haystack.Document(content=text) for text in documents]
    embedded = GritDocumentEmbedder(str(model.folder)).run(texts)["documents"]
    embedder = GritTextEmbedder(str(model.folder))
    return [text.embedding for text in embedded], [embedder.run(query)["embedding"] for query in queries]


def chroma(model: GritLM, documents: list[str], queries: list[str]) -> Vectors:
    tool("chromadb")
    from grit_mlx.integrations.chroma import GritEmbeddingFunction

    function = GritEmbeddingFunction(str(model.folder))
    return function(documents), function.embed_query(queries)


def lancedb(model: GritLM, documents: list[str], queries: list[str]) -> Vectors:
    from grit_mlx.integrations.lancedb import GritEmbeddings

    function: Any = GritEmbeddings.create(  # type: ignore[no-untyped-call]
        name=str(model.folder)
    )
    vectors = function.compute_source_embeddings(documents)
    return vectors, [function.compute_query_embeddings(query)[0] for query in queries]


def sentence_transformers(model: GritLM, documents: list[str], queries: list[str]) -> Vectors:
    from grit_mlx.integrations.sentence_transformers import GritEncoder

    encoder = GritEncoder(model)
    return encoder.encode_document(documents), encoder.encode_query(queries)


def llm(model: GritLM, documents: list[str], queries: list[str]) -> Vectors:
    tool("llm")
    from llm import Collection
    from sqlite_utils import Database

    from grit_mlx.integrations.llm import GritEmbedding

    collection = Collection("set", Database(memory=True), model=GritEmbedding("grit", str(model.folder)))
    collection.embed_multi((str(number), text) for number, text in enumerate(documents))
    scores = np.zeros((len(queries), len(documents)))
    for number, query in enumerate(queries):
        for entry in collection.similar(query, number=len(documents)):
            scores[number, int(entry.id)] = entry.score
    return np.eye(len(documents)), scores  # their product is the scores


@pytest.mark.parametrize(
    "vectors_of",
    [langchain, llama_index, haystack, chroma, lancedb, sentence_transformers, llm],
    ids=lambda function: function.__name__,
)
def test_ndcg_is_that_of_grit_eval(
    vectors_of: Callable[[GritLM, list[str], list[str]], Vectors], grit: GritLM, shared: Path
) -> None:
    data = limited(load_set(shared / "data" / "dev" / "clapnq_dev"), 40)
    assert isinstance(data, RetrievalSet)
    names = list(data.documents)
    # Equal texts are told apart by their position in some tools: one of each.
    names = list({data.documents[name]: name for name in names}.values())
    data = replace(data, documents={name: data.documents[name] for name in names})
    documents, queries = vectors_of(grit, [data.documents[n] for n in names], [data.queries[q] for q in data.asked])
    scores = np.asarray(queries, dtype=float) @ np.asarray(documents, dtype=float).T
    found = [
        ndcg([names[i] for i in np.argsort(-row, kind="stable")], data.relevant[query])
        for query, row in zip(data.asked, scores, strict=True)
    ]
    assert np.mean(found) == pytest.approx(evaluate_set(grit, data), abs=1e-6)
