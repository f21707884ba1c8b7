"""What ``grit bench`` measures of a model, each within a share of the time: embedding, writing, cached documents.

The work fits itself to the machine: what was measured first says how many texts, how long a prompt and how many tokens
the next measurement has time for. Comparisons alternate between their two sides. Everything is done once before it is
timed, since a device may have to compile kernels for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

from mlx_lm import stream_generate

from grit_mlx.benchmarking.texts import mixed_lengths, texts_of
from grit_mlx.gritlm import GritLM
from grit_mlx.model.checkpoint import decoder_config
from grit_mlx.model.prompts import rag_tokens

__all__ = [
    "Advance",
    "DocumentRow",
    "EmbeddingRow",
    "GenerationRow",
    "Trial",
    "document_row",
    "embedded_lengths",
    "embedding_rows",
    "fastest",
    "generation_rows",
    "trials",
]

# Called with the seconds that were spent so far on a measurement.
Advance = Callable[[float], None]

FEWEST_TEXTS = 4
# Tokens of the texts that are embedded; the last row mixes lengths up to the longest.
LENGTHS = (32, 128, 512)
# Tokens of prompts and documents, the longest first that there is time for.
PROMPTS = (2048, 1024, 512, 256, 128, 64)
SHORT_PROMPT = 32
NEW_TOKENS = 128
QUESTION = "What stops a dinghy from drifting sideways?"
# The smallest batch that tuning tries, in tokens; each next one is twice as large.
SMALLEST_BATCH = 256
LARGEST_BATCH = 1 << 18
MOST_ROUNDS = 9
# A larger batch has to be faster by this to be preferred.
WORTHWHILE = 1.02


@dataclass(frozen=True)
class EmbeddingRow:
    """How fast texts of a length are embedded.

    Attributes:
        length: in tokens; None for mixed lengths up to the longest.
        texts: how many.
        tokens: how many, without padding.
        seconds: that they took.
        padding: share of the computed tokens that were padding.
    """

    length: int | None
    texts: int
    tokens: int
    seconds: float
    padding: float

    @property
    def tokens_per_second(self) -> float:
        """Tokens of texts, padding not counted."""
        return self.tokens / self.seconds


@dataclass(frozen=True)
class GenerationRow:
    """How fast a prompt is read and an answer written, beside ``mlx_lm.stream_generate`` with the same weights.

    Attributes:
        prompt_tokens: of the prompt.
        new_tokens: that were written.
        rounds: how often each side did so, in turns; the other fields are medians.
        prompt_seconds: to the first token.
        new_seconds: from the first token to the last.
        mlx_lm_prompt_seconds: of mlx-lm.
        mlx_lm_new_seconds: of mlx-lm.
        same_tokens: whether both sides wrote the same.
    """

    prompt_tokens: int
    new_tokens: int
    rounds: int
    prompt_seconds: float
    new_seconds: float
    mlx_lm_prompt_seconds: float
    mlx_lm_new_seconds: float
    same_tokens: bool


@dataclass(frozen=True)
class DocumentRow:
    """Seconds to the first token of an answer from a document, with its keys and values kept and without.

    Attributes:
        tokens: of the document.
        question_tokens: of what follows it.
        rounds: how often, in turns.
        read_seconds: with nothing cached.
        cached_seconds: with the document cached.
    """

    tokens: int
    question_tokens: int
    rounds: int
    read_seconds: float
    cached_seconds: float


@dataclass(frozen=True)
class Trial:
    """How fast batches of a size are.

    Attributes:
        batch_tokens: the most tokens of a batch, padding included.
        tokens_per_second: the best of the runs.
    """

    batch_tokens: int
    tokens_per_second: float


# Embedding


def embedding_rows(model: GritLM, *, seconds: float, advance: Advance) -> Iterator[EmbeddingRow]:
    """Rows by length, shortest first, then mixed lengths; a length that there is no time for is left out."""
    lengths = embedded_lengths(model)
    share = seconds / len(lengths)
    rate = 0.0
    for number, length in enumerate(lengths):
        if rate and (length or LENGTHS[-1]) / rate > 2 * share:
            continue
        row = _most_texts(model, length, share, partial(_from, number * share, advance))
        rate = row.tokens_per_second
        yield row


def _from(start: float, advance: Advance, done: float) -> None:
    advance(start + done)


def _most_texts(model: GritLM, length: int | None, seconds: float, advance: Advance) -> EmbeddingRow:
    """As many texts of a length as there is time for.

    Everything is done twice. A device may compile kernels for shapes that it has not seen, for which it takes longer
    than for the work: that time neither counts nor decides how many texts there are.
    """
    longest = model.settings.max_length or LENGTHS[-1]
    count, spent = FEWEST_TEXTS, 0.0
    while True:
        _embedding(model, length, count, longest)
        row = _embedding(model, length, count, longest)
        spent += 2 * row.seconds
        advance(min(spent, seconds))
        more = int(0.8 * count * (seconds - spent) / (2 * row.seconds))
        if more < 2 * count:
            return row
        count = more


def embedded_lengths(model: GritLM) -> list[int | None]:
    """What there is a row for, if there is time: lengths that the model embeds, and None for mixed lengths."""
    longest = model.settings.max_length or LENGTHS[-1]
    return [*(length for length in LENGTHS if length <= longest), None]


def _embedding(model: GritLM, length: int | None, count: int, longest: int) -> EmbeddingRow:
    wanted = mixed_lengths(count, min(longest, LENGTHS[-1])) if length is None else [length] * count
    texts = texts_of(wanted, _counter(model))
    # Real texts are longer than wanted, and are not to be cut.
    options = model.embedding_options(role="document", max_length=2 * max(wanted) + 64)
    began = time.perf_counter()
    pieces = model.embedder.pieces(texts, options)
    computed = sum(step.tokens for step in model.embedder.steps(pieces, len(texts), options))
    taken = time.perf_counter() - began
    tokens = sum(len(piece.ids) for piece in pieces)
    return EmbeddingRow(length, count, tokens, taken, 1 - tokens / computed)


def trials(model: GritLM, *, rate: float, seconds: float, advance: Advance) -> list[Trial]:
    """The same texts of mixed lengths in batches of several sizes, there and back.

    Args:
        model: what embeds.
        rate: tokens a second, about.
        seconds: that there are for all of it.
        advance: called as time goes on.
    """
    longest = min(model.settings.max_length or LENGTHS[-1], LENGTHS[-1])
    sizes = [SMALLEST_BATCH]
    while sizes[-1] < LARGEST_BATCH and 2 * sizes[-1] <= rate * seconds / (2 * len(sizes) + 2):
        sizes.append(2 * sizes[-1])
    average = sum(mixed_lengths(256, longest)) / 256
    count = max(2, int(rate * seconds / (2 * len(sizes)) / average))
    texts = texts_of(mixed_lengths(count, longest), _counter(model))
    options = {"role": "document", "max_length": 2 * longest + 64}
    pieces = model.embedder.pieces(texts, model.embedding_options(**options))
    tokens = sum(len(piece.ids) for piece in pieces)
    best = dict.fromkeys(sizes, 0.0)
    start = time.perf_counter()
    for size in [*sizes, *reversed(sizes)]:
        chosen = model.embedding_options(**options, batch_tokens=size)
        began = time.perf_counter()
        for _ in model.embedder.steps(pieces, len(texts), chosen):
            advance(min(seconds, time.perf_counter() - start))
        best[size] = max(best[size], tokens / (time.perf_counter() - began))
    return [Trial(size, found) for size, found in best.items()]


def fastest(found: Sequence[Trial]) -> Trial:
    """The smallest batch than which none is faster by much."""
    chosen = found[0]
    for trial in found[1:]:
        if trial.tokens_per_second > WORTHWHILE * chosen.tokens_per_second:
            chosen = trial
    return chosen


# Writing


def generation_rows(model: GritLM, *, rate: float, seconds: float, advance: Advance) -> Iterator[GenerationRow]:
    """A short prompt with a long answer, and the longest prompt that there is time for with a short one."""
    share = seconds / 2
    tokens = _prompt(model, SHORT_PROMPT)
    with _endless(model):
        _answers(model, tokens, 2)
        probe = _answers(model, tokens, 2)
        each = max(probe.new_seconds, probe.mlx_lm_new_seconds)
        prompt = max(probe.prompt_seconds, probe.mlx_lm_prompt_seconds)
        left = share - 4 * (prompt + each)
        # One round of both sides that does not count and two at least that do, where there is time for that.
        count = max(2, min(NEW_TOKENS, int((left / 6 - prompt) / max(each, 1e-6))))
        row = _rounds(model, tokens, count, share, advance)
        yield row
        rate = max(row.prompt_tokens / row.prompt_seconds, rate)
        length = next((one for one in _lengths(model) if 4 * one / rate < share), None)
        if length is not None:
            each = row.new_seconds / max(1, row.new_tokens - 1)
            count = max(2, min(16, int(share / 8 / each)))
            yield _rounds(model, _prompt(model, length), count, share, lambda done: advance(share + done))


def _rounds(model: GritLM, tokens: list[int], count: int, seconds: float, advance: Advance) -> GenerationRow:
    """Rounds until the time is over, but one at least, after one that does not count; then their medians."""
    _answers(model, tokens, count)
    rounds: list[GenerationRow] = []
    began = time.perf_counter()
    while not rounds or (time.perf_counter() - began) * (len(rounds) + 2) / len(rounds) < seconds:
        rounds.append(_answers(model, tokens, count, ours_first=len(rounds) % 2 == 0))
        advance(min(seconds, time.perf_counter() - began))
        if len(rounds) == MOST_ROUNDS:
            break
    times = ("prompt_seconds", "new_seconds", "mlx_lm_prompt_seconds", "mlx_lm_new_seconds")
    return GenerationRow(
        prompt_tokens=len(tokens),
        new_tokens=rounds[0].new_tokens,
        rounds=len(rounds),
        same_tokens=all(row.same_tokens for row in rounds),
        **{name: median(getattr(row, name) for row in rounds) for name in times},
    )


def _answers(model: GritLM, tokens: list[int], count: int, *, ours_first: bool = True) -> GenerationRow:
    """The same answer from both sides, once."""
    sides = {
        "ours": lambda: model.stream_responses(tokens, max_tokens=count),
        "mlx_lm": lambda: stream_generate(model.model, model.engine_tokenizer, tokens, max_tokens=count),
    }
    found = {name: _timed(sides[name]) for name in (sides if ours_first else reversed(sides))}
    return GenerationRow(
        prompt_tokens=len(tokens),
        new_tokens=len(found["ours"][2]),
        rounds=1,
        prompt_seconds=found["ours"][0],
        new_seconds=found["ours"][1],
        mlx_lm_prompt_seconds=found["mlx_lm"][0],
        mlx_lm_new_seconds=found["mlx_lm"][1],
        same_tokens=found["ours"][2] == found["mlx_lm"][2],
    )


def _timed(answer: Callable[[], Any]) -> tuple[float, float, list[int]]:
    """Seconds to the first token, seconds from there to the last, and the tokens."""
    began = time.perf_counter()
    first, tokens = 0.0, []
    for response in answer():
        first = first or time.perf_counter() - began
        tokens.append(response.token)
    return first, time.perf_counter() - began - first, tokens


@contextmanager
def _endless(model: GritLM) -> Iterator[None]:
    """No token ends an answer, so that both sides write as many."""
    engine = model.engine_tokenizer
    ends, engine._eos_token_ids = engine._eos_token_ids, set()
    try:
        yield
    finally:
        engine._eos_token_ids = ends


# Documents


def document_row(model: GritLM, *, rate: float, seconds: float, advance: Advance) -> DocumentRow | None:
    """The longest document that there is time for; None if there is none.

    Args:
        model: what answers.
        rate: tokens of a prompt a second, about.
        seconds: that there are for all of it.
        advance: called as time goes on.
    """
    # Reading it for the cache, for an answer that does not count, and for one that does.
    length = next((one for one in _lengths(model) if 4 * one / rate < seconds), None)
    if length is None:
        return None
    document = texts_of([length], _counter(model))[0]
    _, cache = model.encode(document, max_length=2 * length + 64, get_cache=True, role="document")
    whole = rag_tokens(model.tokenizer, "none", [QUESTION], document=document)
    rest = rag_tokens(model.tokenizer, "doc", [QUESTION], document=document)

    def answered() -> tuple[float, float]:
        read = _timed(lambda: model.stream_responses(whole, max_tokens=1))[0]
        return read, _timed(lambda: model.stream_responses(rest, max_tokens=1, cache=cache))[0]

    answered()
    rounds: list[tuple[float, float]] = []
    began = time.perf_counter()
    while not rounds or (time.perf_counter() - began) * (len(rounds) + 3) / len(rounds) < seconds:
        rounds.append(answered())
        advance(min(seconds, time.perf_counter() - began))
        if len(rounds) == MOST_ROUNDS:
            break
    return DocumentRow(
        tokens=cache[0].offset,
        question_tokens=len(rest),
        rounds=len(rounds),
        read_seconds=median(read for read, _ in rounds),
        cached_seconds=median(cached for _, cached in rounds),
    )


def _lengths(model: GritLM) -> Iterator[int]:
    """Of prompts, those for which the model's context has room, the longest first."""
    context = int(decoder_config(model.config).get("max_position_embeddings") or PROMPTS[0] * 4)
    return (length for length in PROMPTS if 1.25 * length + NEW_TOKENS < context)


def _prompt(model: GritLM, length: int) -> list[int]:
    """A prompt of exactly so many tokens."""
    text = texts_of([4 * length + 16], _counter(model))[0]
    tokens: list[int] = model.tokenizer.encode(text, verbose=False)
    return tokens[:length]


def _counter(model: GritLM) -> Callable[[str], int]:
    return lambda text: len(model.tokenizer.encode(text, add_special_tokens=False, verbose=False))
