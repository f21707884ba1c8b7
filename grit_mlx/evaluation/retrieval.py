"""Scores of a model on given sets: nDCG@10 on retrieval (BEIR's layout), Spearman on sentence pairs (STS)."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from grit_mlx.errors import DocumentError
from grit_mlx.evaluation.metrics import ndcg, spearman
from grit_mlx.formats import embedding_prompt
from grit_mlx.gritlm import GritLM

__all__ = ["PairSet", "RetrievalSet", "evaluate_pairs", "evaluate_retrieval", "evaluate_set", "load_set"]

_DEPTH = 10

# Queries whose scores are held at once.
_WINDOW = 256


@dataclass(frozen=True)
class RetrievalSet:
    """Queries, documents, and which of them belong together.

    Attributes:
        name: the folder's.
        documents: text of each document by id; a title stands before it.
        queries: text of each query by id.
        relevant: for each query the gain of each relevant document.
    """

    name: str
    documents: dict[str, str]
    queries: dict[str, str]
    relevant: dict[str, dict[str, float]]


@dataclass(frozen=True)
class PairSet:
    """Pairs of sentences and how similar people find them.

    Attributes:
        name: the file's or its folder's.
        first: one sentence of each pair.
        second: the other.
        scores: the higher the more similar.
    """

    name: str
    first: list[str]
    second: list[str]
    scores: list[float]


def load_set(path: Path) -> RetrievalSet | PairSet:
    """A set from a folder in BEIR's layout, or from a table of sentence pairs.

    Args:
        path: a folder of ``corpus.jsonl``, ``queries.jsonl`` and ``qrels.tsv``, plain or .gz; or a ``.csv`` of two
            sentences and a score, or a folder that holds just that.

    Raises:
        DocumentError: it is neither, or one of its lines cannot be read.
    """
    tables = sorted(path.glob("*.csv")) if path.is_dir() else [path] if path.suffix == ".csv" else []
    if len(tables) == 1:
        return _load_pairs(tables[0], path.stem if path.is_dir() else tables[0].stem)
    if not path.is_dir():
        raise DocumentError(f"{path} is no set to score: name a folder in BEIR's layout or a .csv of pairs.", path=path)
    documents = {
        str(row["_id"]): f"{row['title']} {row['text']}" if row.get("title") else str(row["text"])
        for row in _json_lines(_find(path, "corpus.jsonl"))
    }
    queries = {str(row["_id"]): str(row["text"]) for row in _json_lines(_find(path, "queries.jsonl"))}
    relevant: dict[str, dict[str, float]] = {}
    qrels = _find(path, "qrels.tsv")
    with _open(qrels) as file:
        for number, line in enumerate(file, start=1):
            parts = line.rstrip("\n").split("\t")
            if number == 1 and parts[-1] == "score":
                continue
            try:
                query, document, gain = parts
                relevant.setdefault(query, {})[document] = float(gain)
            except ValueError as error:
                raise DocumentError(
                    f"{qrels}, line {number}: needs a query, a document and a score.", path=qrels, line=number
                ) from error
    return RetrievalSet(path.name, documents, queries, relevant)


def evaluate_set(model: GritLM, data: RetrievalSet | PairSet) -> float:
    """The set's main score: nDCG@10, or Spearman's correlation."""
    return evaluate_retrieval(model, data) if isinstance(data, RetrievalSet) else evaluate_pairs(model, data)


def evaluate_retrieval(model: GritLM, data: RetrievalSet) -> float:
    """Mean nDCG@10 over the queries that have a relevant document, by cosine over all documents."""
    identifiers = list(data.documents)
    corpus = model.encode_corpus(list(data.documents.values()))
    asked = [query for query in data.queries if data.relevant.get(query)]
    scores = []
    for at in range(0, len(asked), _WINDOW):
        window = asked[at : at + _WINDOW]
        similarity = model.encode_queries([data.queries[query] for query in window]) @ corpus.T  # (window, documents)
        best = np.argsort(-similarity, axis=1, kind="stable")[:, :_DEPTH]
        for query, ranking in zip(window, best, strict=True):
            scores.append(ndcg([identifiers[i] for i in ranking], data.relevant[query], depth=_DEPTH))
    return float(np.mean(scores)) if scores else 0.0


def evaluate_pairs(model: GritLM, data: PairSet) -> float:
    """Spearman's correlation of cosines with the given scores."""
    instruction = embedding_prompt(model.settings.similarity_instruction)
    first, second = (model.encode(side, instruction=instruction) for side in (data.first, data.second))
    return spearman(np.sum(first * second, axis=1), data.scores)


def _load_pairs(path: Path, name: str) -> PairSet:
    first, second, scores = [], [], []
    with _open(path) as file:
        for number, row in enumerate(csv.reader(file), start=1):
            try:
                one, two, score = row
                scores.append(float(score))
            except ValueError as error:
                if number == 1:
                    continue  # a heading
                raise DocumentError(
                    f"{path}, line {number}: needs two sentences and a score.", path=path, line=number
                ) from error
            first.append(one)
            second.append(two)
    return PairSet(name, first, second, scores)


def _json_lines(path: Path) -> Iterator[dict[str, object]]:
    with _open(path) as file:
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line)
                if "_id" not in row or "text" not in row:
                    raise ValueError("it needs _id and text")
            except (ValueError, TypeError) as error:
                raise DocumentError(f"{path}, line {number}: {error}.", path=path, line=number) from error
            yield row


def _find(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz", folder / "qrels" / "test.tsv"):
        if path.exists() and (path.parent == folder or name == "qrels.tsv"):
            return path
    raise DocumentError(
        f"{folder} has no {name}: a set to score needs corpus.jsonl, queries.jsonl and qrels.tsv.", path=folder
    )


def _open(path: Path) -> IO[str]:
    return gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8", newline="")
