"""Generating text with mlx-lm's engine: prompts that are reused, texts that were cached."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.generate import GenerationResponse, batch_generate, stream_generate
from mlx_lm.models.cache import KVCache, can_trim_prompt_cache, make_prompt_cache, trim_prompt_cache
from mlx_lm.sample_utils import make_logits_processors, make_sampler

from grit_mlx.errors import ArgumentError, MemoryLimitError, Option
from grit_mlx.model.attention import not_finite
from grit_mlx.model.caches import TextCache, copy_cache
from grit_mlx.model.device import is_out_of_memory
from grit_mlx.model.options import GenerationOptions

__all__ = ["PromptCache", "generate_batch", "stream_responses"]


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
        self.tokens: list[int] = []
        self.reused = 0
        self.layers: list[Any] = []

    def reset(self) -> None:
        """Forget everything."""
        self.tokens, self.layers, self.reused = [], [], 0

    def prepare(self, model: nn.Module, tokens: Sequence[int]) -> list[int]:
        """Keep the common prefix, forget the rest, and return the tokens that are still to be computed."""
        # The last token is always computed: its logits choose the first new one.
        pairs = zip(self.tokens, tokens[:-1], strict=False)
        common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        surplus = len(self.tokens) - common
        if surplus and common and can_trim_prompt_cache(self.layers):
            trim_prompt_cache(self.layers, surplus)
        elif surplus:
            common = 0
        if not common:
            self.layers = copy_cache(self.base) or make_prompt_cache(model)
        self.tokens = list(tokens[:common])
        self.reused = common
        return list(tokens[common:])

    def record(self, tokens: Sequence[int]) -> None:
        """Note which of ``tokens`` (prompt and answer) the caches have taken in; the engine runs a token ahead."""
        offset = getattr(self.layers[0], "offset", None)
        if offset is None:  # a recurrent state cannot tell, and cannot go back
            self.reset()
        else:
            self.tokens = list(tokens[: offset - (self.base[0].offset if self.base else 0)])


def stream_responses(
    model: nn.Module,
    tokenizer: Any,  # mlx-lm's TokenizerWrapper
    tokens: Sequence[int],
    options: GenerationOptions,
    *,
    cache: PromptCache | TextCache | None = None,
) -> Generator[GenerationResponse, None, None]:
    """Generate from tokens, piece by piece.

    Args:
        model: mlx-lm's model.
        tokenizer: mlx-lm's tokenizer.
        tokens: the complete prompt; with a text's cache, what follows the text.
        options: how to sample.
        cache: a ``PromptCache``, which is updated; or a text's keys and values, which are continued but not changed.

    Yields:
        mlx-lm's ``GenerationResponse``: ``text`` is the next piece; the last one has a ``finish_reason``.

    Raises:
        ArgumentError: an empty prompt, or a quantised cache that does not suit the model.
    """
    if not tokens:
        raise ArgumentError("The prompt is empty.")
    if options.seed is not None:
        mx.random.seed(options.seed)
    held = cache if isinstance(cache, PromptCache) else PromptCache(cache or ())
    computed = held.prepare(model, tokens)
    responses = stream_generate(
        model,
        tokenizer,
        computed,
        max_tokens=options.max_tokens,
        prompt_cache=held.layers,
        prefill_step_size=options.prefill_step_size,
        kv_bits=options.kv_bits,
        kv_group_size=options.kv_group_size,
        quantized_kv_start=options.quantized_kv_start,
        **_sampling(options, len(tokenizer._tokenizer)),
    )
    answer: list[int] = []
    try:
        for response in _stopped(_started(responses), options.stop):
            answer.append(response.token)
            yield response
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryLimitError(
            f"Memory ran out after {len(tokens) + len(answer)} tokens. Use a shorter prompt, ",
            *(Option("kv_bits", 8), ", or a model with fewer bits."),
        ) from error
    finally:
        responses.close()
        held.record([*tokens, *answer])


def generate_batch(
    model: nn.Module, tokenizer: Any, prompts: Sequence[Sequence[int]], options: GenerationOptions
) -> list[str]:
    """Generate for many prompts at once, with mlx-lm's continuous batching.

    Raises:
        ArgumentError: an empty prompt, or an option that mlx-lm's batches do not have.
    """
    for i, prompt in enumerate(prompts):
        if not prompt:
            raise ArgumentError(f"Prompt {i} is empty.")
    if options.kv_bits is not None:
        raise ArgumentError(Option("kv_bits"), " does not work for a batch of prompts: generate them one by one.")
    if options.max_tokens < 0:
        raise ArgumentError(Option("max_tokens"), " must be given for a batch of prompts.")
    if not prompts:
        return []
    if options.seed is not None:
        mx.random.seed(options.seed)
    result = batch_generate(
        model,
        tokenizer,
        [list(prompt) for prompt in prompts],
        max_tokens=options.max_tokens,
        prefill_step_size=options.prefill_step_size,
        **_sampling(options, len(tokenizer._tokenizer)),
    )
    return [_cut(text, options.stop) for text in result.texts]


def _sampling(options: GenerationOptions, vocabulary_size: int) -> dict[str, Any]:
    """The sampler and the processors of logits, as mlx-lm's functions take them."""
    return {
        "sampler": make_sampler(
            temp=options.temperature,
            top_p=options.top_p,
            # mlx-lm refuses a top_k of the whole vocabulary, which only means "all".
            top_k=options.top_k if options.top_k < vocabulary_size else 0,
            min_p=options.min_p,
        ),
        "logits_processors": make_logits_processors(
            repetition_penalty=None if options.repetition_penalty == 1 else options.repetition_penalty,
            repetition_context_size=options.repetition_context_size,
        ),
    }


def _started(responses: Iterator[GenerationResponse]) -> Iterator[GenerationResponse]:
    """The same responses; what goes wrong with the first becomes one of our errors, and nothing reaches stdout."""
    try:
        # mlx-lm prints a warning about large models to stdout, which may be a pipe that wants text alone.
        with contextlib.redirect_stdout(sys.stderr):
            first = next(responses)
    except ValueError as error:
        if "quantiz" in str(error) or "group size" in str(error):
            raise ArgumentError(f"The keys and values of this model cannot be quantised this way: {error}") from error
        raise
    # Not an operation of mlx: it would queue behind the next token and delay this one.
    if not np.isfinite(np.max(np.array(first.logprobs.tolist()))):
        raise not_finite("The next token's probabilities are NaN or infinity")
    yield first
    yield from responses


def _stopped(responses: Iterator[GenerationResponse], stop: Sequence[str]) -> Iterator[GenerationResponse]:
    """End at the first of the ``stop`` texts; what may be the beginning of one is held back."""
    if not stop:
        yield from responses
        return
    held = ""
    for response in responses:
        held += response.text
        cut = _cut(held, stop)
        if len(cut) < len(held):
            yield replace(response, text=cut, finish_reason="stop")
            return
        safe = len(held) if response.finish_reason else len(held) - _begun(held, stop)
        yield replace(response, text=held[:safe])
        held = held[safe:]


def _begun(text: str, stop: Sequence[str]) -> int:
    """Length of the longest end of ``text`` with which one of the ``stop`` texts begins."""
    longest = min(len(text), max(map(len, stop)) - 1)
    return next((n for n in range(longest, 0, -1) if any(s.startswith(text[-n:]) for s in stop)), 0)


def _cut(text: str, stop: Sequence[str]) -> str:
    return text[: min((at for at in map(text.find, stop) if at >= 0), default=len(text))]
