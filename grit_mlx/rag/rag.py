"""class Rag: questions answered from a store, with one set of weights for searching and for writing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from grit_mlx.errors import ArgumentError, ModeError
from grit_mlx.gritlm import GritLM
from grit_mlx.rag.answering import Answerer, AnswerStream, Turn
from grit_mlx.rag.likelihood import likelihoods
from grit_mlx.rag.limits import check_length
from grit_mlx.rag.modes import CHAT_MODES
from grit_mlx.rag.options import RagOptions, check_question, merged
from grit_mlx.rag.prefix import Document
from grit_mlx.rag.retrieval import SearchResult, SearchResults, reranked
from grit_mlx.rag.store import Store

__all__ = ["Rag", "Response"]

# Passages that are reranked for each one that is kept.
_RERANK_DEPTH: Final = 4


@dataclass
class Response:
    """An answer and where it comes from.

    Attributes:
        results: what it was written from.
        answer: None if nothing relevant was found.
    """

    results: SearchResults
    answer: AnswerStream | None

    @property
    def sources(self) -> list[SearchResult]:
        """The passages that the model was given; empty if it was not asked."""
        return self.results.results if self.answer is not None else []

    @property
    def text(self) -> str | None:
        """The complete answer; None if nothing relevant was found."""
        return None if self.answer is None else self.answer.text


class Rag:
    """Searches a store and answers from it.

    Args:
        model: embeds and generates.
        store: where to search; made with the same model.
        options: how to search and answer.
        answerer: None for one with the store's caches.
        **keywords: fields of ``RagOptions``, in place of ``options``.

    Raises:
        ModeError: the model was loaded for one job only.
        StoreError: the store was made with another model.
        ArgumentError: an option that cannot work.
    """

    def __init__(
        self,
        model: GritLM,
        store: Store,
        options: RagOptions | None = None,
        *,
        answerer: Answerer | None = None,
        **keywords: Any,
    ) -> None:
        if model.mode != "unified":
            raise ModeError(f"Answering from a store needs mode='unified', not {model.mode!r}.")
        self.options = merged(RagOptions, options, keywords)
        if store.model is not model:
            store.use(model)
        self.model = model
        self.store = store
        self.answerer = answerer or Answerer(model, store.caches, model_digest=store.model_digest)
        self.history: list[Turn] = []
        self._last: list[SearchResult] = []

    def find(self, question: str, **filters: Any) -> SearchResults:
        """The passages that match a question best; ``filters`` are ``paths`` and ``metadata`` for this one.

        Raises:
            ArgumentError: the question is longer than the model's context.
        """
        check_question(question)
        check_length(self.answerer.encoder, question, documents=self.store.passage_tokens if self.options.rerank else 0)
        vector, layers = self.answerer.encoder.query(question)
        top = self.options.top
        if self.options.rerank:
            filters["top"] = top * _RERANK_DEPTH
        results = replace(self.store.search(question, self.options, vector=vector, **filters), query_cache=layers)
        if self.options.rerank and results:
            return replace(results, results=reranked(results, self.likelihoods(question, results))[:top])
        return results

    def ask(
        self, question: str, *, paths: Sequence[str] = (), metadata: Sequence[str] = (), **sampling: Any
    ) -> Response:
        """Answer a question on its own.

        Args:
            question: the question.
            paths: see ``SearchOptions``; for this question.
            metadata: likewise.
            **sampling: fields of ``GenerationOptions``.

        Returns:
            The response; its answer is generated as it is iterated over.
        """
        filters = {"paths": paths or self.options.paths, "metadata": metadata or self.options.metadata}
        return self.respond(self.find(question, **filters), **sampling)

    def respond(self, results: SearchResults, **sampling: Any) -> Response:
        """Answer from search results; without an answer if they are not relevant."""
        if not results.relevant:
            return Response(results, None)
        answer = self.answerer.answer(
            results.question,
            _documents(results),
            cache=self.options.cache,
            query_cache=results.query_cache,
            **sampling,
        )
        return Response(replace(results, results=_given(results, answer)), answer)

    def chat(self, question: str, **sampling: Any) -> Response:
        """Answer as the next turn of a conversation; call ``remember`` with the complete answer.

        A turn may be about something that was said before, so passages are searched with the previous question as well.
        As long as they are among those of the last turn, its documents stay in place and only what is new is computed.
        """
        results = self.find(self._with_previous(question))
        if results.relevant:
            if results[0].passage.id not in {result.passage.id for result in self._last}:
                self._last = results.results
        elif not self.history:
            return Response(results, None)
        cache = self.options.cache if self.options.cache in CHAT_MODES else "auto"
        answer = self.answerer.answer(question, _documents(self._last), cache=cache, history=self.history, **sampling)
        given = _given(self._last, answer)
        return Response(replace(results, question=question, results=given, query_cache=None), answer)

    def _with_previous(self, question: str) -> str:
        """A question after the previous one, if the model's context has room for both."""
        if not self.history:
            return question
        both = f"{self.history[-1].question}\n{question}"
        try:
            check_length(self.answerer.encoder, both, documents=self.store.passage_tokens)
        except ArgumentError:
            return question
        return both

    def remember(self, question: str, answer: str) -> None:
        """Add a turn to the conversation."""
        self.history.append(Turn(question, answer))

    def reset(self) -> None:
        """Forget the conversation."""
        self.history, self._last = [], []

    def likelihoods(self, question: str, results: Sequence[SearchResult]) -> list[float]:
        """How likely the model finds the question after each passage: see ``likelihood.likelihoods``."""
        return likelihoods(self.answerer, question, _documents(results))


def _given(results: Sequence[SearchResult], answer: AnswerStream) -> list[SearchResult]:
    """The results that an answer had room for."""
    return list(results[: len(results) - answer.left_out])


def _documents(results: Sequence[SearchResult]) -> list[Document]:
    return [Document(result.passage.content, result.passage.id) for result in results]
