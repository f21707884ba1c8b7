"""Finding passages: by meaning, by words, or both, with filters; and whether what was found is relevant."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final, overload

import numpy as np
from numpy.typing import NDArray

from grit_mlx.errors import ArgumentError, Option
from grit_mlx.rag.database import sql_text
from grit_mlx.rag.nearest import ExactIndex, fits_in_memory
from grit_mlx.rag.relevance import NEEDED, coverage
from grit_mlx.rag.schema import StoredPassage
from grit_mlx.rag.table import PassageTable
from grit_mlx.rag.words import asked, segments_of
from grit_mlx.text.walking import stored_name
from grit_mlx.vectors.fusion import fuse_shares, rank_shares, score_shares

if TYPE_CHECKING:
    from grit_mlx.model.caches import TextCache

__all__ = ["Retriever", "SearchResult", "SearchResults", "reranked", "where_clause"]

# Passages that each side contributes to what is fused.
_DEPTH: Final = 100

# Passages whose BM25 scores are fetched for it, which takes Lance hardly longer: those that only the vectors found, and
# that share rare words with the question, are among them.
_SCORED: Final = 500

# Of cosines and BM25 in what is fused. Between .4 and .6 the development sets tell little apart.
_WEIGHTS: Final = (0.55, 0.45)


@dataclass(frozen=True)
class SearchResult:
    """A passage that was found.

    Attributes:
        passage: the passage and where it stands.
        score: what it is ranked by: the cosine, the BM25 score, the fused score, or the reranker's.
        cosine: of its vector and the query's; None if vectors were not compared.
        bm25: its BM25 score; None if it is not among the passages that share words with the query.
    """

    passage: StoredPassage
    score: float
    cosine: float | None = None
    bm25: float | None = None


@dataclass(frozen=True)
class SearchResults(Sequence[SearchResult]):
    """What a question found, best first.

    Attributes:
        question: the question.
        results: the passages.
        measure: see ``relevance``; it is called when that is asked for, as it takes about as long as a search.
        needed: what the relevance must exceed.
        query_cache: the question's keys and values, from the pass that embedded it; None if they were not kept.
    """

    question: str
    results: list[SearchResult]
    measure: Callable[[], float | None] = lambda: None
    needed: float = NEEDED
    query_cache: TextCache | None = None

    @overload
    def __getitem__(self, index: int) -> SearchResult: ...
    @overload
    def __getitem__(self, index: slice) -> list[SearchResult]: ...
    def __getitem__(self, index: int | slice) -> SearchResult | list[SearchResult]:
        return self.results[index]

    def __len__(self) -> int:
        return len(self.results)

    @property
    def relevance(self) -> float | None:
        """How relevant the best results are (see ``grit_mlx.rag.relevance``); None if that is not known."""
        return self.measure()

    @property
    def relevant(self) -> bool:
        """Whether there is anything to answer from."""
        relevance = self.relevance if self.results else None
        return bool(self.results) and (relevance is None or relevance > self.needed)


class Retriever:
    """Searches one version of a table.

    Args:
        table: the passages.
        exact_bytes: see ``StoreOptions``.
    """

    def __init__(self, table: PassageTable, *, exact_bytes: int | None = None) -> None:
        self.table = table
        self.approximate = not fits_in_memory(table, exact_bytes) and table.has_vector_index
        self._weights: dict[str, float] = {}  # of the terms that were looked up

    @cached_property
    def exact(self) -> ExactIndex:
        """All vectors, read when they are first needed."""
        return ExactIndex(self.table)

    def search(
        self, question: str, vector: NDArray[np.float32] | None, *, method: str, top: int, where: str | None = None
    ) -> list[SearchResult]:
        """The passages that match a question best, best first.

        Args:
            question: for BM25.
            vector: the question's, ``(E,)``; None only for "bm25".
            method: one of ``METHODS``.
            top: maximum number of passages.
            where: an SQL condition, see ``where_clause``.
        """
        if not len(self.table):
            return []
        fused = method in ("hybrid", "rrf")
        depth = max(_DEPTH, 2 * top) if fused else top
        scored = max(_SCORED, depth) if fused else top
        words = self.table.matching(question, scored, where) if method != "dense" else []
        if method == "bm25":
            return self._results(words, {}, dict(words))
        assert vector is not None
        vectors, cosines_of = self._dense(vector, depth, where)
        if method == "dense":
            return self._results(vectors, dict(vectors), {})
        found, bm25 = words[:depth], dict(words)
        cosines = dict(vectors)
        cosines.update(cosines_of([row for row, _ in found if row not in cosines]))
        if method == "rrf":
            sums = fuse_shares([rank_shares([row for row, _ in ranking]) for ranking in (vectors, found)])
        else:
            # What either side found is scored by both.
            sides = [cosines, {row: bm25.get(row, 0.0) for row in cosines} if words else {}]
            sums = fuse_shares([score_shares(side, min(side.values(), default=0.0)) for side in sides], _WEIGHTS)
        return self._results(list(sums.items())[:top], cosines, bm25)

    def coverage(self, question: str, texts: Sequence[str]) -> float:
        """The best coverage of a question's words by some texts; see ``relevance.coverage``."""
        weights = {term: self._weight(term) for term in segments_of(asked(question))}
        return max((coverage(weights, text) for text in texts), default=0.0)

    def _weight(self, term: str) -> float:
        if term not in self._weights:
            self._weights[term] = self.table.weight(term)
        return self._weights[term]

    def _dense(
        self, vector: NDArray[np.float32], depth: int, where: str | None
    ) -> tuple[list[tuple[int, float]], Callable[[Sequence[int]], Mapping[int, float]]]:
        """The nearest rows, and a function for the cosines of any others."""
        unit = vector / max(float(np.linalg.norm(vector)), 1e-12)
        if self.approximate:
            return self.table.nearest(unit, depth, where), lambda rows: self.table.cosines(rows, unit)
        scores = self.exact.cosines(unit)
        allowed = None if where is None else self.table.row_ids(where)
        return (
            self.exact.nearest(scores, depth, allowed),
            lambda rows: dict(zip(rows, scores[self.exact.positions(rows)].tolist(), strict=True)),
        )

    def _results(
        self, ranked: Sequence[tuple[int, float]], cosines: Mapping[int, float], words: Mapping[int, float]
    ) -> list[SearchResult]:
        passages = self.table.passages([row for row, _ in ranked])
        return [
            SearchResult(passage, score, cosines.get(row), words.get(row))
            for passage, (row, score) in zip(passages, ranked, strict=True)
        ]


def reranked(results: Sequence[SearchResult], scores: Sequence[float]) -> list[SearchResult]:
    """Results in the order of new scores."""
    pairs = sorted(zip(results, scores, strict=True), key=lambda pair: -pair[1])
    return [replace(result, score=float(score)) for result, score in pairs]


def where_clause(paths: Sequence[str] = (), metadata: Sequence[str] = ()) -> str | None:
    """An SQL condition: any of some paths, and all of some metadata; None without either.

    Args:
        paths: files, folders, or patterns with ``*``, ``?`` and ``[...]``, relative to the current folder.
        metadata: "key=value", each of which must hold.

    Raises:
        ArgumentError: metadata without "=".
    """
    parts = []
    if paths:
        parts.append("(" + " OR ".join(map(_path_condition, paths)) + ")")
    for pair in metadata:
        if "=" not in pair:
            raise ArgumentError(Option("metadata"), f" filters by KEY=VALUE, not by {pair!r}.")
        parts.append(f"array_has(metadata, {sql_text(pair)})")
    return " AND ".join(parts) or None


def _path_condition(path: str) -> str:
    absolute = stored_name(Path.cwd() / Path(path).expanduser())
    if re.search(r"[*?\[]", path):
        # The regular expression of a shell's pattern; Rust's dialect has no \Z.
        pattern = fnmatch.translate(absolute).replace(r"\Z", "$").replace(r"\z", "$").replace("(?s:", "^(?s:")
        return f"regexp_like(name, {sql_text(pattern)})"
    resolved = stored_name(Path(absolute).resolve())
    return f"(name = {sql_text(resolved)} OR starts_with(name, {sql_text(resolved.rstrip('/') + '/')}))"
