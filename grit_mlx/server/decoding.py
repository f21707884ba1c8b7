"""Answers of one model, many at once: from tokens to what is delivered of them. ``batch`` has mlx-lm compute them.

Everything here is called by the engine's thread; mlx computes in the library's (``model/threads.py``).
"""

from __future__ import annotations

import itertools
import logging
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import LRUPromptCache

from grit_mlx.errors import ArgumentError, GritError, MemoryLimitError, ModelError, ProcessError, first_line
from grit_mlx.model import device, threads
from grit_mlx.model.attention import not_finite
from grit_mlx.model.caches import TextCache
from grit_mlx.model.detokenizing import Detokenizer
from grit_mlx.model.generation import StopTexts, sampling, seed_of_step
from grit_mlx.model.options import GenerationOptions
from grit_mlx.model.structured import Constraint, constraint
from grit_mlx.server.batch import batch_of

if TYPE_CHECKING:
    from grit_mlx.gritlm import GritLM

__all__ = ["Answer", "Decoder", "Prompt", "Token", "form_of", "likeliest", "within_context", "worded"]

logger = logging.getLogger("grit_mlx")

# What OpenAI reports for a token that is very unlikely.
_LEAST: Final = -9999.0

# What "no limit" is to mlx-lm.
_ENDLESS: Final = 2**30


@dataclass(frozen=True)
class Token:
    """A token of an answer.

    Attributes:
        text: what may be shown now; several tokens may share it.
        id: the token.
        finish_reason: "stop" or "length" with the last one.
        stopped_by: the stop text that ended the answer.
        logprob: its log-probability, where these were asked for.
        top: the likeliest tokens at its place, each with its log-probability.
    """

    text: str
    id: int
    finish_reason: str | None = None
    stopped_by: str | None = None
    logprob: float | None = None
    top: Sequence[tuple[int, float]] = ()


@dataclass(frozen=True)
class Prompt:
    """What an answer is generated from.

    Attributes:
        tokens: the prompt; behind ``layers`` where it has some. At least one.
        options: how to sample.
        layers: keys and values that the prompt continues; they are not changed.
        names: of what ``layers`` hold; prompts with the same names share what they have in common.
        logprobs: how many of the likeliest tokens to report; None for no log-probabilities.
    """

    tokens: Sequence[int]
    options: GenerationOptions
    layers: TextCache = field(default_factory=list)
    names: tuple[str, ...] = ()
    logprobs: int | None = None


class Answer:
    """One answer, as the engine sees it.

    Args:
        prompt: what from.
        deliver: called by a thread of the engine's with each ``Token``, or with the error that ends the answer.

    Attributes:
        reused: tokens of the prompt that were not read again; None until it is read.
    """

    def __init__(self, prompt: Prompt, deliver: Callable[[Token | Exception], None]) -> None:
        self.prompt = prompt
        self.deliver = deliver
        self.written: list[int] = []
        self.reused: int | None = None
        self.form: Constraint | None = None
        self._text: Any = None
        self._stop = StopTexts(prompt.options.stop)

    def add(self, response: Any, tokenizer: Any, ends: Any) -> Token:
        """What to deliver of mlx-lm's response."""
        self.written.append(response.token)
        self._text = self._text or (self.form.detokenizer() if self.form else Detokenizer(tokenizer))
        last = response.finish_reason is not None
        piece = "" if response.token in ends else self._text.add(response.token)
        shown, ended = self._stop.add(piece + self._text.finish() if last else piece, last=last)
        reason = "stop" if ended or response.token in ends else response.finish_reason
        if self.prompt.logprobs is None:
            return Token(shown, response.token, reason, self._stop.matched)
        top, logprob = likeliest(response.logprobs, self.prompt.logprobs, response.token)
        return Token(shown, response.token, reason, self._stop.matched, logprob, top)


class Decoder:
    """Writes the answers of one model.

    Args:
        model: generates.
        prefixes: keys and values of earlier prompts and answers.
    """

    def __init__(self, model: GritLM, prefixes: LRUPromptCache) -> None:
        self.model = model
        self._ends = frozenset(model.engine_tokenizer.eos_token_ids)
        self._answers: dict[int, Answer] = {}  # in the order of their arrival
        self._batch = batch_of(model, prefixes)

    def __len__(self) -> int:
        return len(self._answers)

    def add(self, answer: Answer) -> None:
        """Take an answer; what goes wrong is delivered."""
        try:
            threads.run(self._insert, answer)
        except Exception as error:
            answer.deliver(worded(error))

    def remove(self, answer: Answer) -> None:
        """Free an answer's place; what was computed of it is kept for the next prompt."""
        number = next((number for number, one in self._answers.items() if one is answer), None)
        if number is not None:
            del self._answers[number]
            threads.run(partial(self._batch.remove, number, keep=True))

    def step(self, seconds: float, wanted: Callable[[], bool]) -> int:
        """Write for a while: at least the next token of every answer, or the next part of the prompts.

        Args:
            seconds: after which another token is not begun. Handing each token over to another thread would take as
                long as a small model needs for one.
            wanted: whether the engine has something else to do.

        Returns:
            How many tokens were written.
        """
        try:
            return threads.run(self._write, seconds, wanted)
        except Exception as error:
            self._recover(error)
            return 0

    def close(self) -> None:
        """End what is left."""
        for answer in self._answers.values():
            answer.deliver(ModelError("The server is stopping."))
        self._answers.clear()
        self._reset()

    def _reset(self) -> None:
        with suppress(ProcessError):  # then there is nothing left to begin anew with
            threads.run(self._batch.reset)

    def _insert(self, answer: Answer) -> None:
        """In the library's thread: hand an answer over to mlx-lm, behind what is known of its prompt."""
        prompt, written = answer.prompt, answer.written
        limit = prompt.options.max_tokens
        # An answer that begins again after another one failed needs a new one.
        answer.form = form_of(self.model, prompt.options)
        if answer.form is not None:
            answer.form.follow(written)
        chosen = sampling(prompt.options, len(self.model.tokenizer), (), answer.form)
        number, known = self._batch.insert(
            [*prompt.tokens, *written],
            _ENDLESS if limit < 0 else limit - len(written),
            names=prompt.names,
            layers=prompt.layers,
            sampler=_sampler(prompt.options, chosen["sampler"], len(written)),
            processors=chosen["logits_processors"],
        )
        self._answers[number] = answer
        if answer.reused is None:
            answer.reused = known

    def _write(self, seconds: float, wanted: Callable[[], bool]) -> int:
        """In the library's thread: steps of mlx-lm's, for ``step``."""
        deadline, written = time.perf_counter() + seconds, 0
        while True:
            tokens = self._next()
            for answer, token in tokens:
                answer.deliver(token)
            written += len(tokens)
            if not self._answers or wanted() or time.perf_counter() > deadline:
                return written

    def _next(self) -> list[tuple[Answer, Token | Exception]]:
        """In the library's thread: one step of mlx-lm's."""
        delivered: list[tuple[Answer, Token | Exception]] = []
        for response in self._batch.next():
            answer = self._answers.get(response.uid)
            if answer is None:
                continue
            if not answer.written and not np.isfinite(np.max(np.array(response.logprobs.astype(mx.float32)))):
                del self._answers[response.uid]
                self._end(response, keep=False)
                delivered.append((answer, not_finite("The next token's probabilities are NaN or infinity")))
                continue
            token = answer.add(response, self.model.tokenizer, self._ends)
            failed = token.finish_reason is not None and answer.form is not None and answer.form.failure
            delivered.append((answer, ArgumentError(answer.form.failure) if failed and answer.form else token))
            if token.finish_reason is not None:
                del self._answers[response.uid]
                self._end(response, keep=True)
        return delivered

    def _end(self, response: Any, *, keep: bool) -> None:
        """Take an answer out of the batch, where mlx-lm has not: at a stop text, which it does not know."""
        if response.finish_reason is None:
            self._batch.remove(response.uid, keep=keep)

    def _recover(self, error: Exception) -> None:
        """Go on without the newest answer, which was one too many or cannot be computed."""
        answers = list(self._answers.values())
        self._answers.clear()
        if isinstance(error, ProcessError):  # none of them can be computed any more
            for answer in answers:
                answer.deliver(error)
            return
        logger.warning("An answer failed: %s", first_line(error))
        self._reset()
        if answers:
            answers[-1].deliver(worded(error))
        for answer in answers[:-1]:
            self.add(answer)


def likeliest(logprobs: Any, count: int, token: int) -> tuple[list[tuple[int, float]], float]:
    """The likeliest tokens with their log-probabilities, the best first, and a token's own.

    Args:
        logprobs: ``(V,)``, mlx's or NumPy's.
        count: how many.
        token: one of them.
    """
    values = np.array(logprobs.astype(mx.float32)) if isinstance(logprobs, mx.array) else logprobs
    best = np.argpartition(-values, min(count, len(values) - 1))[:count]
    order = best[np.argsort(-values[best], kind="stable")]
    # Of a token that the form of an answer rules out it is minus infinity, which JSON cannot hold.
    return [(int(one), max(float(values[one]), _LEAST)) for one in order], max(float(values[token]), _LEAST)


def worded(error: Exception) -> GritError:
    """An error as one that a client may read."""
    if isinstance(error, GritError):
        return error
    if device.is_out_of_memory(error) or isinstance(error, MemoryError):
        return MemoryLimitError("Memory ran out. Use a shorter prompt, or try again when less is going on.")
    logger.error("Unexpected error", exc_info=error)
    return ModelError(f"The model failed: {first_line(error)}")


def _sampler(options: GenerationOptions, sampler: Any, start: int) -> Any:
    """An answer's own sampler; None for the likeliest token, which mlx-lm then takes for all answers at once."""
    if options.temperature == 0:
        return None
    if options.seed is None or options.seed < 0:
        return sampler
    seed, counts = options.seed, itertools.count(start)

    def seeded(logprobs: mx.array) -> Any:
        count = next(counts)
        # As ``generate`` draws: mlx-lm's loop is a token ahead, so the first two come from one seed.
        mx.random.seed(seed_of_step(seed, max(count - 1, 0)))
        if count == 1:
            sampler(logprobs)
        token = sampler(logprobs)
        mx.random.seed(secrets.randbits(63))  # or what others draw would depend on this seed
        return token

    return seeded


def form_of(model: GritLM, options: GenerationOptions) -> Constraint | None:
    """What an answer may be; None where it may be anything. Errors are ``structured.constraint``'s."""
    return constraint(options, model.tokenizer, model.engine_tokenizer.eos_token_ids)


def within_context(model: GritLM, prompt: Prompt) -> Prompt:
    """The prompt with an answer that ends where the model's context does."""
    held = prompt.layers[0].offset if prompt.layers else 0
    return replace(prompt, options=model.within_context(prompt.options, held + len(prompt.tokens)))
