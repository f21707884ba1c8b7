"""Answers from documents, with keys and values of documents and question taken from caches.

``Answerer`` knows models and documents, not where documents come from: ``Rag`` combines it with a store.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mlx_lm.generate import GenerationResponse

from grit_mlx.errors import ArgumentError, Option
from grit_mlx.gritlm import GritLM
from grit_mlx.model.caches import TextCache
from grit_mlx.model.generation import PromptCache
from grit_mlx.model.options import GenerationOptions
from grit_mlx.model.prompts import rag_tokens
from grit_mlx.rag.caches.documents import DocumentCaches
from grit_mlx.rag.encoding import Encoder
from grit_mlx.rag.limits import check_length, fitted
from grit_mlx.rag.modes import AUTO_MODES, CHAT_MODES, DocumentCost, about_tokens, choose_mode
from grit_mlx.rag.options import RagOptions, check_question
from grit_mlx.rag.prefix import Document, Prefix, PrefixBuilder
from grit_mlx.rag.quotes import Quote

__all__ = ["AnswerStream", "Answerer", "Document", "PreparedAnswer", "Turn"]


@dataclass(frozen=True)
class Turn:
    """A question and its answer, earlier in a conversation."""

    question: str
    answer: str


@dataclass
class AnswerStream:
    """An answer that is being generated: iterate over it for the pieces, or ask for ``text``.

    Attributes:
        mode: the cache mode that was used; "quote" if nothing was generated.
        cached_tokens: tokens that came from caches.
        computed_tokens: tokens that were computed before the first new one, documents for the cache included.
        seconds_to_first_token: from the call to the first token; None until then.
        seconds: from the call to the last token so far.
        generated_tokens: tokens that were generated so far.
        finish_reason: "stop" or "length" once it is complete.
        left_out: documents, the last ones, for which the model's context has no room.
        forgotten: turns of the conversation, the first ones, for which it has none.
        quotes: what it is made of, if it is made of quotes.
    """

    mode: str
    cached_tokens: int
    computed_tokens: int
    _pieces: Iterator[str]
    seconds_to_first_token: float | None = None
    seconds: float = 0.0
    generated_tokens: int = 0
    finish_reason: str | None = None
    left_out: int = 0
    forgotten: int = 0
    quotes: Sequence[Quote] = ()
    _written: str = ""

    @classmethod
    def of_quotes(cls, quotes: Sequence[Quote], seconds: float) -> AnswerStream:
        """An answer of quotes, a piece for each, with its place."""
        pieces = ("\n\n" * bool(number) + str(quote) for number, quote in enumerate(quotes))
        return cls("quote", 0, 0, pieces, seconds, seconds, finish_reason="stop", quotes=quotes)

    def __iter__(self) -> Iterator[str]:
        for piece in self._pieces:
            self._written += piece
            yield piece

    @property
    def text(self) -> str:
        """The complete answer; generates what is missing."""
        for _ in self:
            pass
        return self._written


@dataclass
class PreparedAnswer:
    """What an answer is generated from.

    Attributes:
        mode: the cache mode.
        prefix: keys and values that the prompt continues.
        tokens: the prompt after them.
        options: how to sample, within the model's context.
        left_out: see ``AnswerStream``.
        forgotten: likewise.
    """

    mode: str
    prefix: Prefix
    tokens: list[int]
    options: GenerationOptions
    left_out: int
    forgotten: int


class Answerer:
    """Answers questions from documents.

    Args:
        model: a model that embeds and generates.
        caches: where the keys and values of documents are kept; None to compute them each time.
        positions: one of ``prefix.POSITIONS``.
        query_instruction: what a question is embedded with; None for the model's own.
        model_digest: the name of the model among caches; None to compute it from the model's files.

    Raises:
        ArgumentError: unknown positions.
    """

    def __init__(
        self,
        model: GritLM,
        caches: DocumentCaches | None = None,
        *,
        positions: str = "consecutive",
        query_instruction: str | None = None,
        model_digest: str | None = None,
    ) -> None:
        self.model = model
        self.caches = caches
        self.encoder = Encoder(model, query_instruction=query_instruction)
        self.prefixes = PrefixBuilder(self.encoder, caches, positions=positions, model_digest=model_digest)
        self.reset()

    def reset(self) -> None:
        """Forget the last prompt: the next one is computed from its start."""
        # The names of the cached texts that the last prompt continues, and its keys and values: one value, since
        # questions may come from several threads.
        self._last: tuple[tuple[str, ...], PromptCache] = (), PromptCache()

    def prompt(
        self, question: str, documents: Sequence[Document], *, cache: str, query_cache: TextCache | None = None
    ) -> tuple[TextCache, list[int]]:
        """What ``answer`` gives to the model, for programs that generate on their own.

        Args:
            question: the question.
            documents: in the order of the prompt.
            cache: one of ``modes.MODES``.
            query_cache: see ``answer``.

        Returns:
            Keys and values that the prompt continues, empty for "none"; and its tokens.
        """
        prefix = self.prefixes.build(cache, question, documents, query_cache)
        self.prefixes.save(prefix)
        return prefix.layers, self._prompt(cache, question, documents, ())

    def answer(
        self,
        question: str,
        documents: Sequence[Document],
        *,
        cache: str = "auto",
        query_cache: TextCache | None = None,
        history: Sequence[Turn] = (),
        **sampling: Any,
    ) -> AnswerStream:
        """Answer a question from documents.

        Question, documents and answer fit into the model's context: the last documents and the first turns are left
        out if they do not, and the answer ends where the context does.

        Args:
            question: the question.
            documents: the best first, in the order of the prompt.
            cache: one of ``modes.CACHE_MODES``.
            query_cache: the question's keys and values, from ``Encoder.query``; None to compute them if needed.
            history: earlier turns; only the modes of ``modes.CHAT_MODES`` continue them.
            **sampling: the fields of ``GenerationOptions``.

        Raises:
            ArgumentError: an empty question or one longer than the context, no documents, an unknown mode, or one
                that has no history.
            ModeError: the model only embeds.
            ArchitectureError: a cached text has to be moved and this model's keys cannot be.
        """
        start = time.perf_counter()
        prepared = self.prepare(
            question,
            documents,
            cache=cache,
            query_cache=query_cache,
            history=history,
            options=GenerationOptions(**sampling),
        )
        prefix, tokens = prepared.prefix, prepared.tokens
        base = (prepared.mode, *prefix.names)
        last = self._last
        if base != last[0]:
            last = self._last = base, PromptCache(prefix.layers)
        responses = self.model.stream_responses(tokens, cache=last[1], **vars(prepared.options))
        answer = AnswerStream(prepared.mode, prefix.cached_tokens, prefix.computed_tokens + len(tokens), iter(()))
        answer.left_out, answer.forgotten = prepared.left_out, prepared.forgotten
        answer._pieces = self._written(answer, responses, prefix, last[1], start)
        return answer

    def prepare(
        self,
        question: str,
        documents: Sequence[Document],
        *,
        cache: str = "auto",
        query_cache: TextCache | None = None,
        history: Sequence[Turn] = (),
        options: GenerationOptions | None = None,
    ) -> PreparedAnswer:
        """What ``answer`` generates from; the arguments are the same.

        Once the answer is written, ``prefixes.save`` keeps what was computed of the documents.
        """
        self.model.check_generates()
        RagOptions(cache=cache)
        options = options or GenerationOptions()
        check_question(question)
        check_length(self.encoder, question)
        if not documents:
            raise ArgumentError("There are no documents to answer from.")
        if history and cache not in CHAT_MODES:
            raise ArgumentError("A conversation needs ", Option("cache", "none"), f", 'doc' or 'auto', not {cache!r}.")
        fastest = cache == "auto"
        if fastest:
            modes = [mode for mode in AUTO_MODES if not history or mode in CHAT_MODES]
            cache = self._chosen_mode(question, documents, query_cache is not None, modes)
        fit = fitted(
            self.encoder,
            question,
            [document.content for document in documents],
            mode=cache,
            history=[(turn.question, turn.answer) for turn in history],
            max_tokens=options.max_tokens,
        )
        documents, left_out = documents[: fit.documents], len(documents) - fit.documents
        prefix = self.prefixes.build(cache, question, documents, query_cache, fastest=fastest)
        tokens = self._prompt(cache, question, documents, history[fit.forgotten :])
        within = replace(options, max_tokens=fit.max_tokens)
        return PreparedAnswer(cache, prefix, tokens, within, left_out, fit.forgotten)

    def _written(
        self,
        answer: AnswerStream,
        responses: Iterator[GenerationResponse],
        prefix: Prefix,
        cache: PromptCache,
        start: float,
    ) -> Iterator[str]:
        try:
            for response in responses:
                answer.seconds = time.perf_counter() - start
                if answer.seconds_to_first_token is None:
                    answer.seconds_to_first_token = answer.seconds
                    answer.cached_tokens += cache.reused
                    answer.computed_tokens -= cache.reused
                answer.generated_tokens = response.generation_tokens
                answer.finish_reason = response.finish_reason
                if response.text:
                    yield response.text
        finally:
            self.prefixes.save(prefix)  # after the answer: nobody waits for the disk

    def _prompt(self, mode: str, question: str, documents: Sequence[Document], history: Sequence[Turn]) -> list[int]:
        """The tokens after what is cached."""
        harmless = self.encoder.neutralised
        return rag_tokens(
            self.model.tokenizer,
            mode,
            [harmless(asked) for asked in (*(turn.question for turn in history), question)],
            document="\n\n".join(harmless(document.content) for document in documents),
            answers=[harmless(turn.answer) for turn in history],
        )

    def _chosen_mode(
        self, question: str, documents: Sequence[Document], query_cached: bool, modes: Sequence[str]
    ) -> str:
        costs = []
        for document in documents:
            key = self.prefixes.key(document) if self.caches is not None else ""
            cached = self.caches is not None and key in self.caches
            sizes = self.caches.sizes(key) if cached and self.caches is not None else (0, 0)
            costs.append(DocumentCost(about_tokens(document.content), cached, *sizes))
        if len(documents) > 1 and not self.prefixes.can_move:
            modes = [mode for mode in modes if mode != "doc"]
        query = DocumentCost(about_tokens(question), query_cached)
        return choose_mode(costs, query, self.prefixes.rates, modes=modes)
