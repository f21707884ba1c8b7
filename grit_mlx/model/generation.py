"""Generating text with mlx-lm's engine: prompts that are reused, texts that were cached."""

from __future__ import annotations

import itertools
import logging
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.generate import GenerationResponse, batch_generate, generate_step, generation_stream
from mlx_lm.models.cache import KVCache, can_trim_prompt_cache, make_prompt_cache, trim_prompt_cache
from mlx_lm.sample_utils import make_logits_processors, make_sampler

from grit_mlx.errors import ArgumentError, MemoryLimitError, Option
from grit_mlx.model import device, threads
from grit_mlx.model.attention import not_finite
from grit_mlx.model.caches import TextCache, copy_cache
from grit_mlx.model.detokenizing import Detokenizer
from grit_mlx.model.device import is_out_of_memory
from grit_mlx.model.numpy_linear import through_numpy
from grit_mlx.model.options import GenerationOptions
from grit_mlx.model.structured import Constraint, constraint, is_constrained
from grit_mlx.model.team import Team

__all__ = [
    "PromptCache",
    "StopTexts",
    "batch_tokens",
    "generate_batch",
    "sampling",
    "seed_of_step",
    "stream_responses",
]

logger = logging.getLogger("grit_mlx")

# A token and its log-probabilities (V,).
_Step = tuple[int, mx.array]
_Processor = Callable[[mx.array, mx.array], mx.array]


class PromptCache:
    """Keys and values of a chat so far; the next prompt reuses as many as it begins with.

    Pass the same object to every turn: each prompt is compared with the tokens that the cache holds, and only what
    follows the common prefix is computed. An unrelated prompt just starts over.

    Args:
        base: keys and values of documents that every prompt continues; they are not changed, and neither ``tokens``
            nor prompts include them.

    Attributes:
        tokens: the tokens whose keys and values are held.
        reused: how many tokens the last prompt did not have to compute.
    """

    def __init__(self, base: Sequence[KVCache] = ()) -> None:
        self.base = base
        self._lock = threading.Lock()
        self._turns = 0
        self.reset()

    def reset(self) -> None:
        """Forget everything, turns that are still going on included."""
        with self._lock:
            self._turns += 1
            self.tokens: list[int] = []
            self.layers: list[Any] = []
            self.reused = 0
            self._model: weakref.ref[nn.Module] | None = None
            self._kind: Any = None

    def begin(self, model: nn.Module, tokens: Sequence[int], options: GenerationOptions) -> _Turn:
        """Take what is held for a turn: it keeps the common beginning and forgets the rest."""
        # What keys and values depend on beside the tokens.
        kind = options.kv_bits and (options.kv_bits, options.kv_group_size, options.quantized_kv_start)
        with self._lock:
            self._turns += 1
            number, held, layers = self._turns, self.tokens, self.layers
            if self._model is None or self._model() is not model or kind != self._kind:
                held, layers = [], []
            self.tokens, self.layers, self._model, self._kind = [], [], weakref.ref(model), kind
        # The last token is always computed: its logits choose the first new one.
        common = _common(held, tokens[:-1])
        if common < len(held) and not _trimmed(layers, len(held) - common):
            common = 0
        if not common:
            layers = copy_cache(self.base) or make_prompt_cache(model)
        self.reused = common
        return _Turn(self, number, layers, list(tokens), common)

    def end(self, number: int, layers: list[Any], tokens: list[int]) -> None:
        """Take back what a turn holds, unless another began since."""
        with self._lock:
            if number == self._turns:
                self.layers, self.tokens = layers, tokens


@dataclass
class _Turn:
    """One prompt and its answer, as the caches see it.

    Attributes:
        cache: whose turn it is.
        number: of the turn.
        layers: the caches that the engine fills.
        tokens: the prompt, and the answer as it comes.
        reused: tokens of the prompt that the caches held.
    """

    cache: PromptCache
    number: int
    layers: list[Any]
    tokens: list[int]
    reused: int

    def end(self) -> None:
        """Give the caches back, at the tokens that are known: the engine runs ahead, or stopped on the way."""
        base = self.cache.base[0].offset if self.cache.base else 0
        # A recurrent state cannot tell how far it came, and cannot go back.
        ends = {getattr(layer, "offset", None) for layer in self.layers}
        end = ends.pop()
        if ends or end is None or end < base:
            return
        held = end - base
        if held <= len(self.tokens) or _trimmed(self.layers, held - len(self.tokens)):
            self.cache.end(self.number, self.layers, self.tokens[:held])


def _common(held: Sequence[int], wanted: Sequence[int]) -> int:
    """How many tokens two sequences begin with in common."""
    pairs = enumerate(zip(held, wanted, strict=False))
    return next((i for i, (one, other) in pairs if one != other), min(len(held), len(wanted)))


def _trimmed(layers: list[Any], count: int) -> bool:
    """Whether the caches could forget their last positions."""
    trimmed: Any = trim_prompt_cache(layers, count) if can_trim_prompt_cache(layers) else None
    return bool(trimmed == count)


def stream_responses(
    model: nn.Module,
    tokenizer: Any,  # mlx-lm's TokenizerWrapper
    tokens: Sequence[int],
    options: GenerationOptions,
    *,
    cache: PromptCache | TextCache | None = None,
    team: Team | None = None,
) -> Iterator[GenerationResponse]:
    """Generate from tokens, piece by piece.

    Args:
        model: mlx-lm's model.
        tokenizer: mlx-lm's tokenizer.
        tokens: the whole prompt; with a document's cache, what follows the document.
        options: how to sample.
        cache: a ``PromptCache``, which is brought up to date; or a document's keys and values, which are
            continued and left as they are.
        team: the processes that the model is split among, all of which call this; the first one chooses the tokens.

    Returns:
        mlx-lm's ``GenerationResponse``, one a token: ``text`` is the next piece; the last one has a
        ``finish_reason``.

    Raises:
        ArgumentError: an empty prompt, a quantised cache that does not suit the model, or a form of the answer
            (schema, regex, choice) that cannot be followed.
        TokenizerError: the tokenizer does not allow for a form.
        DependencyError: a form needs llguidance.
    """
    if not tokens:
        raise ArgumentError("The prompt is empty.")
    held = cache if isinstance(cache, PromptCache) else PromptCache(cache or ())
    threads.settle([model.parameters(), [(layer.keys, layer.values) for layer in held.base]])
    form = constraint(options, tokenizer._tokenizer, tokenizer.eos_token_ids)
    cancelled = threading.Event()
    return threads.steps(_answer(model, tokenizer, tokens, options, held, cancelled, form, team), cancelled)


def _answer(
    model: nn.Module,
    tokenizer: Any,
    tokens: Sequence[int],
    options: GenerationOptions,
    cache: PromptCache,
    cancelled: threading.Event,
    form: Constraint | None,
    team: Team | None,
) -> Generator[GenerationResponse, None, None]:
    turn = cache.begin(model, tokens, options)
    try:
        with closing(_responses(model, tokenizer, turn, options, cancelled, form, team)) as responses:
            yield from _stopped(responses, options.stop)
    except GeneratorExit:
        turn.end()
        raise
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryLimitError(
            f"Memory ran out after {len(turn.tokens)} tokens. Use a shorter prompt, ",
            *(Option("kv_bits", 8), ", or a model with fewer bits."),
        ) from error
    else:
        turn.end()  # not after an exception: layers may disagree on how far they came
        if team is not None:
            mx.synchronize(generation_stream)  # the engine runs ahead: other processes wait for what it still sends


def _responses(
    model: nn.Module,
    tokenizer: Any,
    turn: _Turn,
    options: GenerationOptions,
    cancelled: threading.Event,
    form: Constraint | None,
    team: Team | None,
) -> Generator[GenerationResponse, None, None]:
    """What mlx-lm's ``stream_generate`` yields, with text that is right for every tokenizer."""
    computed = turn.tokens[turn.reused :]
    steps: Any = generate_step(  # it says that tokens are arrays
        mx.array(computed),
        model,
        max_tokens=options.max_tokens,
        prompt_cache=turn.layers,
        prefill_step_size=options.prefill_step_size,
        kv_bits=options.kv_bits,
        kv_group_size=options.kv_group_size,
        quantized_kv_start=options.quantized_kv_start,
        prompt_progress_callback=lambda *_: _check(cancelled),
        **sampling(options, len(tokenizer._tokenizer), turn.tokens[: turn.reused], form, team),
    )
    text = form.detokenizer() if form else Detokenizer(tokenizer._tokenizer)
    start = time.perf_counter()
    with device.wired(), closing(steps):
        for count, (token, logprobs) in enumerate(_started(_through_numpy(_seeded(steps, options))), 1):
            if count == 1:
                read = time.perf_counter() - start
                start = time.perf_counter()
            turn.tokens.append(token)
            ended = token in tokenizer.eos_token_ids
            last = ended or count == options.max_tokens
            piece = "" if ended else text.add(token)
            yield GenerationResponse(
                text=piece + text.finish() if last else piece,
                token=token,
                logprobs=logprobs,
                from_draft=False,
                prompt_tokens=len(computed),
                prompt_tps=len(computed) / read,
                generation_tokens=count,
                generation_tps=count / (time.perf_counter() - start),
                peak_memory=mx.get_peak_memory() / 1e9,
                finish_reason="stop" if ended else "length" if last else None,
            )
            if last:
                _check_form(form)
                return


def _through_numpy(steps: Iterator[_Step]) -> Iterator[_Step]:
    """The same steps, whose layers may compute through NumPy on a CPU: no gradient follows."""
    while True:
        with through_numpy():
            step = next(steps, None)
        if step is None:
            return
        yield step


class _CancelledError(Exception):
    """Nobody wants the answer any more."""


def _check_form(form: Constraint | None) -> None:
    """Tell of an answer that is not in the form that was asked for."""
    if form is not None and form.failure:
        raise ArgumentError(form.failure)
    if form is not None and not form.complete:
        logger.warning("The answer was cut at %s before it was complete.", Option("max_tokens"))


def _check(cancelled: threading.Event) -> None:
    if cancelled.is_set():
        raise _CancelledError


def _seeded(steps: Iterator[_Step], options: GenerationOptions) -> Iterator[_Step]:
    """The same steps; with a seed they do not depend on what else draws random numbers between two of them."""
    if options.seed is None or options.seed < 0:
        yield from steps
        return
    for count in itertools.count():
        mx.random.seed(seed_of_step(options.seed, count))
        step = next(steps, None)
        if step is None:
            return
        yield step


def seed_of_step(seed: int, count: int) -> int:
    """The seed of a token of an answer, from 0."""
    return (seed + count * 0x9E3779B97F4A7C15) % 2**64


def generate_batch(
    model: nn.Module, tokenizer: Any, prompts: Sequence[Sequence[int]], options: GenerationOptions
) -> list[str]:
    """Answers to many prompts at once, with mlx-lm's continuous batching.

    Raises:
        ArgumentError: an empty prompt, or an option that mlx-lm's batches do not have.
    """
    answers = batch_tokens(model, tokenizer, prompts, options)
    ended = [answer[:-1] if answer[-1:] and answer[-1] in tokenizer.eos_token_ids else answer for answer in answers]
    return [_cut(tokenizer.decode(answer), options.stop) for answer in ended]


def batch_tokens(
    model: nn.Module, tokenizer: Any, prompts: Sequence[Sequence[int]], options: GenerationOptions
) -> list[list[int]]:
    """As ``generate_batch``, but tokens, with the one that ended each answer."""
    for i, prompt in enumerate(prompts):
        if not prompt:
            raise ArgumentError(f"Prompt {i} is empty.")
    if options.kv_bits is not None:
        raise ArgumentError(Option("kv_bits"), " does not work for a batch of prompts: generate them one by one.")
    if is_constrained(options):
        raise ArgumentError("Structured output does not work for a batch of prompts: generate them one by one.")
    if options.max_tokens < 0:
        raise ArgumentError(Option("max_tokens"), " must be given for a batch of prompts.")
    if not prompts:
        return []

    def generated() -> list[list[int]]:
        if options.seed is not None and options.seed >= 0:
            mx.random.seed(options.seed)
        answers: Any = batch_generate(
            model,
            tokenizer,
            [list(prompt) for prompt in prompts],
            max_tokens=options.max_tokens,
            prefill_step_size=options.prefill_step_size,
            return_token_ids=True,
            **sampling(options, len(tokenizer._tokenizer)),
        ).token_ids
        # mlx-lm leaves out the token that an answer ends with.
        end = tokenizer.eos_token_id
        return [answer if len(answer) == options.max_tokens else [*answer, end] for answer in answers]

    with through_numpy():
        return threads.run(generated)


def sampling(
    options: GenerationOptions,
    vocabulary_size: int,
    reused: Sequence[int] = (),
    form: Constraint | None = None,
    team: Team | None = None,
) -> dict[str, Any]:
    """The sampler and the processors of logits, as mlx-lm's functions take them.

    Args:
        options: how to sample.
        vocabulary_size: V.
        reused: tokens before those that mlx-lm is given, which are penalised like these.
        form: what the answer may be.
        team: processes that all sample.
    """
    processors = make_logits_processors(
        repetition_penalty=None if options.repetition_penalty == 1 else options.repetition_penalty,
        presence_penalty=options.presence_penalty,
        frequency_penalty=options.frequency_penalty,
        logit_bias=options.logit_bias,
        **{f"{kind}_context_size": options.repetition_context_size for kind in ("repetition", "presence", "frequency")},
    )
    head = mx.array(list(reused[-options.repetition_context_size :]), dtype=mx.int32)

    def after_head(processor: _Processor) -> _Processor:
        return lambda tokens, logits: processor(mx.concatenate([head, tokens]), logits)

    if reused:
        processors = [after_head(processor) for processor in processors]
    sampler = make_sampler(
        temp=options.temperature,
        top_p=options.top_p,
        # mlx-lm refuses a top_k of the whole vocabulary, which only means "all".
        top_k=options.top_k if options.top_k < vocabulary_size else 0,
        min_p=options.min_p,
    )
    if options.temperature:
        sampler = _in_float32(sampler)
    return {
        "sampler": sampler if team is None else _of_first(team, sampler),
        "logits_processors": [*processors, form] if form else processors,
    }


def _in_float32(sampler: Callable[[mx.array], mx.array]) -> Callable[[mx.array], mx.array]:
    """A sampler in float32: in half precision a low temperature overflows, and sums of probabilities are rounded."""
    return lambda logprobs: sampler(logprobs.astype(mx.float32))


def _of_first(team: Team, sampler: Callable[[mx.array], mx.array]) -> Callable[[mx.array], mx.array]:
    """A sampler that takes what the first process's takes: others may round otherwise, and draw other numbers."""
    return lambda logprobs: team.world.number_from_first(sampler(logprobs))


def _started(steps: Iterator[_Step]) -> Iterator[_Step]:
    """The same steps; what goes wrong at the first is said in our words."""
    try:
        first = next(steps)
    except ValueError as error:
        if "quantiz" in str(error) or "group size" in str(error):
            raise ArgumentError(f"The keys and values of this model cannot be quantised this way: {error}") from error
        raise
    # Not by an operation of mlx's: it would stand in line behind the next token, and hold this one back until then.
    if not np.isfinite(np.max(np.array(first[1].tolist()))):
        raise not_finite("The next token's probabilities are NaN or infinity")
    yield first
    yield from steps


class StopTexts:
    """Ends a text that comes in pieces at the first of the ``stop`` texts; holds back what may begin one.

    Attributes:
        matched: the one that ended it; None until then.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = stop
        self.matched: str | None = None
        self._held = ""

    def add(self, piece: str, *, last: bool) -> tuple[str, bool]:
        """What may be shown after the next piece, and whether the text ends there; ``last``: no piece follows."""
        if not self._stop:
            return piece, False
        held = self._held + piece
        cut = _cut(held, self._stop)
        if len(cut) < len(held):
            self.matched = next(stop for stop in self._stop if held.startswith(stop, len(cut)))
            return cut, True
        safe = len(held) if last else len(held) - _begun(held, self._stop)
        self._held = held[safe:]
        return held[:safe], False


def _stopped(responses: Iterator[GenerationResponse], stop: Sequence[str]) -> Iterator[GenerationResponse]:
    """End at the first of the ``stop`` texts."""
    texts = StopTexts(stop)
    for response in responses:
        piece, ended = texts.add(response.text, last=response.finish_reason is not None)
        yield replace(response, text=piece, finish_reason="stop" if ended else response.finish_reason)
        if ended:
            return


def _begun(text: str, stop: Sequence[str]) -> int:
    """Length of the longest end of ``text`` with which one of the ``stop`` texts begins."""
    longest = min(len(text), max(map(len, stop)) - 1)
    return next((n for n in range(longest, 0, -1) if any(s.startswith(text[-n:]) for s in stop)), 0)


def _cut(text: str, stop: Sequence[str]) -> str:
    return text[: min((at for at in map(text.find, stop) if at >= 0), default=len(text))]
