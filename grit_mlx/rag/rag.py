"""class Rag: questions answered from a store, with one set of weights for searching and for writing, or by quotes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from grit_mlx.errors import ArgumentError, ModeError
from grit_mlx.gritlm import GritLM
from grit_mlx.rag.answering import Answerer, AnswerStream, Turn
from grit_mlx.rag.likelihood import likelihood
from grit_mlx.rag.limits import check_length
from grit_mlx.rag.modes import CHAT_MODES
from grit_mlx.rag.options import RagOptions, check_question, merged
from grit_mlx.rag.prefix import Document
from grit_mlx.rag.quotes import Quote, quotes_of
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
        answer: None if nothing relevant was found, or nothing of it can be quoted.
    """

    results: SearchResults
    answer: AnswerStream | None

    @property
    def sources(self) -> list[SearchResult]:
        """The passages that the answer is from; empty without one."""
        return self.results.results if self.answer is not None else []

    @property
    def quotes(self) -> Sequence[Quote]:
        """The quotes that the answer is made of; empty if it was written."""
        return () if self.answer is None else self.answer.quotes

    @property
    def text(self) -> str | None:
        """The complete answer; None if nothing relevant was found."""
        return None if self.answer is None else self.answer.text


class Rag:
    """Searches a store and answers from it.

    Args:
        model: embeds; and generates, unless answers are quotes.
        store: where to search; made with the same model.
        options: how to search and answer.
        answerer: None for one with the store's caches.
        **keywords: fields of ``RagOptions``, in place of ``options``.

    Raises:
        ModeError: the model cannot embed, or answers are to be written and it cannot write.
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
        self.options = merged(RagOptions, options, keywords)
        quotes = not model.settings.generates if self.options.answer is None else self.options.answer == "quote"
        if model.mode == "generative" or (model.mode != "unified" and not quotes):
            raise ModeError(f"Answering from a store needs mode='unified', not {model.mode!r}.")
        if self.options.rerank or not quotes:
            model.check_generates()
        self.quotes = quotes
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
        if self.quotes:
            return self._quoted(results.question, results)
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
        if self.quotes:
            return self._quoted(question, results) if results.relevant else Response(results, None)
        if results.relevant:
            if results[0].passage.id not in {result.passage.id for result in self._last}:
                self._last = results.results
        elif not self.history:
            return Response(results, None)
        cache = self.options.cache if self.options.cache in CHAT_MODES else "auto"
        answer = self.answerer.answer(question, _documents(self._last), cache=cache, history=self.history, **sampling)
        given = _given(self._last, answer)
        return Response(replace(results, question=question, results=given, query_cache=None), answer)

    def _quoted(self, question: str, results: SearchResults) -> Response:
        """Answer with sentences of the passages; sources are those that were quoted."""
        started = time.perf_counter()
        found = quotes_of(question, results, self.answerer.encoder)
        used = {quote.passage.id for quote in found}
        given = [result for result in results if result.passage.id in used]
        answer = AnswerStream.of_quotes(found, time.perf_counter() - started) if found else None
        return Response(replace(results, question=question, results=given or results.results, query_cache=None), answer)

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
        """How likely the model finds the question after each passage: mean log-probability of its tokens.

        The same weights rerank (query likelihood: Sachan et al. 2022, UPR), and what they compute of the passages is
        kept for the answer.
        """
        encoder = self.answerer.encoder
        layers = self.answerer.prefixes.documents(_documents(results))
        return [likelihood(encoder, question, document) for document in layers]


def _given(results: Sequence[SearchResult], answer: AnswerStream) -> list[SearchResult]:
    """The results that an answer had room for."""
    return list(results[: len(results) - answer.left_out])


def _documents(results: Sequence[SearchResult]) -> list[Document]:
    return [Document(result.passage.content, result.passage.id) for result in results]
