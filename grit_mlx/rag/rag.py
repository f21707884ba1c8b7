"""class Rag: questions answered from a store, with one set of weights for finding and for writing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import mlx.core as mx
import numpy as np

from grit_mlx.errors import ArgumentError, ModeError
from grit_mlx.gritlm import GritLM
from grit_mlx.model.attention import copy_cache
from grit_mlx.model.prompts import literal_tokens, rag_prompt
from grit_mlx.rag.answering import Answer, Answerer, Document, Layers, Turn
from grit_mlx.rag.modes import check_mode
from grit_mlx.rag.retrieval import Hit, reranked
from grit_mlx.rag.store import Store

__all__ = ["Found", "Rag", "Response"]

# Hits that are reranked, for each that is kept.
_RERANK_DEPTH: Final = 4


@dataclass(frozen=True)
class Found:
    """What a question found.

    Attributes:
        question: the question.
        hits: the best first.
        best: the best cosine of them; None where no vectors were compared.
        needed: the cosine that counts as relevant; None where none was measured.
        best_bm25: the best score of BM25; None where no hit shares a word with the question.
        needed_bm25: BM25's score that counts as relevant whatever the cosine; None where none was measured.
        query_layers: the query's keys and values, from the pass that embedded it.
    """

    question: str
    hits: list[Hit]
    best: float | None
    needed: float | None
    best_bm25: float | None = None
    needed_bm25: float | None = None
    query_layers: Layers | None = None

    @classmethod
    def among(
        cls,
        question: str,
        hits: list[Hit],
        store: Store,
        *,
        min_score: float | None = None,
        query_layers: Layers | None = None,
    ) -> Found:
        """Hits with the store's thresholds, or with the cosine that is asked for and no other."""
        cosines = [hit.cosine for hit in hits if hit.cosine is not None]
        scores = [hit.bm25 for hit in hits if hit.bm25 is not None]
        measured = min_score is None
        return cls(
            question=question,
            hits=hits,
            best=max(cosines, default=None),
            needed=store.relevance if measured else min_score,
            best_bm25=max(scores, default=None),
            needed_bm25=store.relevance_bm25 if measured else None,
            query_layers=query_layers,
        )

    @property
    def relevant(self) -> bool:
        """Whether there is anything to answer from."""
        if not self.hits:
            return False
        if self.best is None or self.needed is None or self.best > self.needed:
            return True
        return self.best_bm25 is not None and self.needed_bm25 is not None and self.best_bm25 > self.needed_bm25


@dataclass
class Response:
    """An answer and where it comes from.

    Attributes:
        found: what it was written from.
        answer: None where nothing relevant was found.
    """

    found: Found
    answer: Answer | None

    @property
    def sources(self) -> list[Hit]:
        """The passages that the model was given; none where it was not asked."""
        return self.found.hits if self.answer is not None else []

    @property
    def text(self) -> str | None:
        """The whole answer; None where nothing relevant was found."""
        return None if self.answer is None else self.answer.text


class Rag:
    """Finds and answers.

    Args:
        model: embeds and generates.
        store: where to look; made with the same model.
        top: passages that an answer is written from.
        method: see ``Store.search``.
        cache: one of ``modes.CACHE_MODES``.
        rerank: put the best hits into the order of how likely the model finds the question after each.
        min_score: the cosine that counts as relevant; None for the store's own threshold, -1 for any.
        answerer: None for one with the store's caches.

    Raises:
        ModeError: the model was loaded for one job only.
        ArgumentError: an unknown cache mode or a ``top`` below 1.
    """

    def __init__(
        self,
        model: GritLM,
        store: Store,
        *,
        top: int = 4,
        method: str = "hybrid",
        cache: str = "auto",
        rerank: bool = False,
        min_score: float | None = None,
        answerer: Answerer | None = None,
    ) -> None:
        if model.mode != "unified":
            raise ModeError(f"Answering from a store needs mode='unified', not {model.mode!r}.")
        check_mode(cache)
        if top < 1:
            raise ArgumentError(f"top must be at least 1, not {top}.")
        self.model = model
        self.store = store
        self.answerer = answerer or Answerer(model, store.caches)
        self.top = top
        self.method = method
        self.cache = cache
        self.rerank = rerank
        self.min_score = min_score
        self.history: list[Turn] = []
        self._last: list[Hit] = []

    def find(self, question: str, *, paths: Sequence[str] = (), metadata: Sequence[str] = ()) -> Found:
        """The passages that suit a question; see ``Store.search`` for the filters."""
        if not question.strip():
            raise ArgumentError("The question is empty.")
        vector, layers = self.answerer.embed_query(question)
        depth = self.top * _RERANK_DEPTH if self.rerank else self.top
        hits = self.store.search(
            question, top=depth, method=self.method, paths=paths, metadata=metadata, vector=np.asarray(vector)
        )
        found = Found.among(question, hits, self.store, min_score=self.min_score, query_layers=layers)
        if self.rerank and hits:
            hits = reranked(hits, self.likelihoods(question, hits))[: self.top]
        return replace(found, hits=hits)

    def ask(
        self,
        question: str,
        *,
        paths: Sequence[str] = (),
        metadata: Sequence[str] = (),
        max_tokens: int = 256,
        temperature: float = 0.0,
        **options: Any,
    ) -> Response:
        """Answer a question on its own.

        Args:
            question: the question.
            paths: see ``Store.search``.
            metadata: see there.
            max_tokens: most tokens of the answer.
            temperature: 0 for the likeliest answer.
            **options: the other fields of ``generation.GenerationOptions``.

        Returns:
            The response; its answer is written as it is iterated over.
        """
        found = self.find(question, paths=paths, metadata=metadata)
        return self.respond(found, max_tokens=max_tokens, temperature=temperature, **options)

    def respond(self, found: Found, **options: Any) -> Response:
        """Answer from what was found; without an answer where that is not relevant."""
        if not found.relevant:
            return Response(found, None)
        answer = self.answerer.answer(
            found.question, _documents(found.hits), cache=self.cache, query_layers=found.query_layers, **options
        )
        return Response(found, answer)

    def chat(self, question: str, **options: Any) -> Response:
        """Answer as the next turn of a conversation; ``remember`` the answer once it is whole.

        What the turn is about may have been said before, so passages are looked for with the question before as
        well. As long as they are among those of the last turn, its documents stay in place and only what is new is
        computed.
        """
        before = f"{self.history[-1].question}\n" if self.history else ""
        found = self.find(before + question)
        if found.relevant:
            last = {hit.row.id for hit in self._last}
            if not self._last or not {hit.row.id for hit in found.hits[:1]} <= last:
                self._last = found.hits
        elif not self.history:
            return Response(found, None)
        found = replace(found, question=question, hits=self._last, query_layers=None)
        cache = self.cache if self.cache in ("none", "doc", "auto") else "auto"
        answer = self.answerer.answer(question, _documents(self._last), cache=cache, history=self.history, **options)
        return Response(found, answer)

    def remember(self, question: str, answer: str) -> None:
        """Add a turn to the conversation."""
        self.history.append(Turn(question, answer))

    def reset(self) -> None:
        """Forget the conversation."""
        self.history, self._last = [], []

    def likelihoods(self, question: str, hits: Sequence[Hit]) -> list[float]:
        """How likely the model finds the question after each passage: mean log-probability of its tokens.

        The same weights rerank (query likelihood: Sachan et al. 2022, UPR), and what they compute of the passages is
        kept for the answer.
        """
        asked = self.answerer.neutralised(question)
        frame = literal_tokens(self.model.tokenizer, rag_prompt("doc", query="\0").split("\0")[0])
        tokens = literal_tokens(self.model.tokenizer, rag_prompt("doc", query=asked).split(asked)[0] + asked)
        start = min(len(frame), len(tokens) - 1)
        scores = []
        for layers in self.answerer.layers_of(_documents(hits)):
            logits = self.model.model(mx.array([tokens[:-1]]), cache=copy_cache(layers))[0].astype(mx.float32)
            chosen = mx.take_along_axis(logits, mx.array(tokens[1:])[:, None], axis=-1)[:, 0]
            score: Any = mx.mean((chosen - mx.logsumexp(logits, axis=-1))[start - 1 :]).item()
            scores.append(float(score))
        return scores


def _documents(hits: Sequence[Hit]) -> list[Document]:
    return [Document(hit.row.passage.content, hit.row.id) for hit in hits]
