"""From a request for text to its tokens: what is generated from, and what is said of it besides."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from grit_mlx.errors import ArgumentError, GritError, TokenizerError
from grit_mlx.model.options import GenerationOptions
from grit_mlx.model.structured import TokenBytes, is_constrained
from grit_mlx.server.decoding import Prompt, Token, form_of
from grit_mlx.server.openai import Usage
from grit_mlx.server.replies import Refusal, RefusedError
from grit_mlx.server.stores import ServedStore, StoreAnswer

if TYPE_CHECKING:
    from grit_mlx.gritlm import GritLM
    from grit_mlx.server.decoding import Answer
    from grit_mlx.server.engine import Lane
    from grit_mlx.server.hosting import Target

__all__ = ["Work", "chat_work", "chosen_logprobs", "echoed", "prompt_work", "token_bytes", "token_text"]


@dataclass
class Work:
    """One answer to be generated.

    Attributes:
        lane: where.
        prompt: what from; None if ``tail`` is all there is.
        held: tokens of the prompt before ``prompt.tokens``.
        cached: tokens of the prompt that are not read again.
        text: of the prompt, where it was given as one.
        tail: follows the answer.
        citations: what the answer is from; None if it is not from a store.
        written: tokens so far.
        reason: why the answer ended.
    """

    lane: Lane
    prompt: Prompt | None
    held: int = 0
    cached: int = 0
    text: str | None = None
    tail: str = ""
    citations: list[dict[str, Any]] | None = None
    written: int = 0
    reason: str = "stop"
    stopped_by: str | None = None
    _from: tuple[ServedStore, StoreAnswer] | None = None
    _answer: Answer | None = field(default=None, repr=False)

    @property
    def usage(self) -> Usage:
        """Tokens so far."""
        read = self.held + (0 if self.prompt is None else len(self.prompt.tokens))
        reused = 0 if self._answer is None else self._answer.reused or 0
        return Usage(read, self.written, self.cached + reused)

    async def tokens(self) -> AsyncGenerator[Token, None]:
        """The answer as it comes; ends it where nobody takes the next token.

        Raises:
            GritError: it cannot be generated.
        """
        if self.prompt is None:
            return
        arrived: asyncio.Queue[Token | Exception] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def deliver(item: Token | Exception) -> None:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(arrived.put_nowait, item)

        self._answer = self.lane.generate(self.prompt, deliver)
        ended = False
        try:
            while not ended:
                item = await arrived.get()
                if isinstance(item, Exception):
                    ended = True
                    raise item
                self.written += 1
                ended = item.finish_reason is not None
                self.reason, self.stopped_by = item.finish_reason or self.reason, item.stopped_by
                yield item
        finally:
            if not ended:
                with suppress(GritError):
                    self.lane.cancel(self._answer)
            if self._from is not None:
                store, answer = self._from
                with suppress(RuntimeError):  # the store is closed
                    store.run(answer.save)


def prompt_work(lane: Lane, prompt: Any, options: GenerationOptions, **extra: Any) -> Work:
    """An answer to a prompt: a chat, a complete prompt as text, or token ids.

    Raises:
        ArgumentError: the prompt cannot work.
        RefusedError: it is longer than the model's context.
    """
    model = lane.model
    model.check_generates()
    tokens = model.prompt_tokens(prompt, raw=isinstance(prompt, str), continues=False)
    if not tokens:
        raise ArgumentError("The prompt is empty.")
    form_of(model, options)  # or the reason why an answer of this form cannot be written
    context = model.config.get("max_position_embeddings")
    if isinstance(context, int) and len(tokens) >= context:
        message = f"The prompt has {len(tokens):,} tokens, and the model's context is {context:,}. Shorten it."
        raise RefusedError(Refusal(400, message, param="messages", code="context_length_exceeded"))
    return Work(lane, Prompt(tokens, options, **extra), text=prompt if isinstance(prompt, str) else None)


def echoed(work: Work) -> str:
    """The prompt as text."""
    if work.text is not None or work.prompt is None:
        return work.text or ""
    return str(work.lane.model.tokenizer.decode(list(work.prompt.tokens), skip_special_tokens=True))


async def chat_work(
    lane: Lane, target: Target, messages: Sequence[Mapping[str, str]], options: GenerationOptions, **extra: Any
) -> Work:
    """An answer to a chat, from a store if its model is one.

    Raises:
        As ``prompt_work``, and as ``ServedStore.prepare``.
    """
    store = target.store
    if store is None:
        return await asyncio.to_thread(partial(prompt_work, lane, messages, options, **extra))
    if is_constrained(options):
        lane.model.check_generates()  # quotes have no form
        await asyncio.to_thread(form_of, lane.model, options)
    answer = await asyncio.wrap_future(store.run(store.prepare, lane, messages, options))
    citations = [store.citation(i, one) for i, one in enumerate(answer.sources, start=1)]
    prompt = answer.prompt and Prompt(**{**vars(answer.prompt), **extra})
    return Work(
        lane,
        prompt,
        held=answer.held,
        cached=answer.cached,
        tail=answer.text,
        citations=citations,
        _from=(store, answer),
    )


def chosen_logprobs(model: GritLM, token: Token) -> dict[str, Any]:
    """A token's log-probabilities in the shape of OpenAI's chats."""

    def told(number: int, logprob: float) -> dict[str, Any]:
        spelled = token_bytes(model, number)
        return {
            "token": token_text(model, number),
            "logprob": logprob,
            "bytes": None if spelled is None else list(spelled),
        }

    top = [told(number, logprob) for number, logprob in token.top]
    return {**told(token.id, token.logprob or 0.0), "top_logprobs": top}


def token_text(model: GritLM, number: int) -> str:
    """A token as it stands within a text: tokenizers drop the blank that a text begins with."""
    tokenizer = model.tokenizer
    before: list[int] = tokenizer.encode("a", add_special_tokens=False)
    lead: str = tokenizer.decode(before)
    text: str = tokenizer.decode([*before, number])
    return text.removeprefix(lead) if text.startswith(lead) else str(tokenizer.decode([number]))


def token_bytes(model: GritLM, number: int) -> bytes | None:
    """The bytes of ``token_text``, also where they are a part of a character; None where they cannot be told."""
    text = token_text(model, number)
    if "\ufffd" not in text:
        return text.encode()
    try:
        table = TokenBytes.of(model.tokenizer, model.engine_tokenizer.eos_token_ids)
    except TokenizerError:
        return None
    return table.pieces[number] if number < len(table.pieces) else None
