"""Faults, kind 2: bookkeeping that trusts its exit path.

Whatever happens to an answer, the next one with its cache equals the one without a cache.
"""

from __future__ import annotations

import gc
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from grit_mlx import GritLM, PromptCache
from grit_mlx.errors import MemoryLimitError
from grit_mlx.model import generation

FIRST = "What keeps a ship upright in the wind? " * 3
NEXT = FIRST + "And why?"


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> GritLM:
    return GritLM(tiny_model)


@pytest.fixture(scope="module")
def answers(model: GritLM) -> dict[str, str]:
    return {prompt: model.generate(prompt, max_tokens=16) for prompt in (FIRST, NEXT, "Bread rises.", FIRST[:40])}


def check(model: GritLM, cache: PromptCache, answers: dict[str, str]) -> None:
    """What was asked before, what follows it, what is unrelated and what is shorter: all as without a cache."""
    for prompt, expected in answers.items():
        assert model.generate(prompt, max_tokens=16, cache=cache) == expected, prompt
        assert len(cache.tokens) == cache.layers[0].offset == cache.layers[1].offset


class StoppedError(Exception):
    """What interrupts an answer."""


@pytest.fixture
def alarm() -> Iterator[Callable[[float, type[BaseException]], None]]:
    """``alarm(seconds, kind)`` raises ``kind`` in the main thread, wherever it is by then."""

    def ring(seconds: float, kind: type[BaseException]) -> None:
        def handler(*_: Any) -> None:
            raise kind

        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, seconds)

    before = signal.getsignal(signal.SIGALRM)
    yield ring
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="there are no timers")
@pytest.mark.parametrize("kind", [KeyboardInterrupt, StoppedError])
@pytest.mark.parametrize("way", ["generate", "stream", "step by step"])
def test_interrupted_anywhere(
    model: GritLM,
    answers: dict[str, str],
    alarm: Callable[[float, type[BaseException]], None],
    kind: type[BaseException],
    way: str,
) -> None:
    started = time.perf_counter()
    model.generate(FIRST, max_tokens=100)
    whole = time.perf_counter() - started
    cache, interrupted = PromptCache(), 0
    for part in range(1, 13):
        try:
            alarm(max(part / 14 * whole, 1e-4), kind)
            if way == "generate":
                model.generate(FIRST, max_tokens=100, cache=cache)
            elif way == "stream":
                for _ in model.stream(FIRST, max_tokens=100, cache=cache):
                    pass
            else:
                stream = model.stream_responses(FIRST, max_tokens=100, cache=cache)
                while next(stream, None) is not None:
                    pass
        except kind:
            interrupted += 1
        signal.setitimer(signal.ITIMER_REAL, 0)
        check(model, cache, answers)
    assert interrupted >= 3  # or this shows nothing


@pytest.mark.parametrize("steps", [0, 1, 2, 5, 15])
def test_closed_after_any_number_of_tokens(model: GritLM, answers: dict[str, str], steps: int) -> None:
    for end in ("close", "drop", "throw", "keep"):
        cache = PromptCache()
        stream: Any = model.stream_responses(FIRST, max_tokens=50, cache=cache)
        for _ in range(steps):
            next(stream)
        if end == "close":
            stream.close()
        elif end == "throw":
            with pytest.raises(StoppedError):
                stream.throw(StoppedError)
        if end != "keep":
            del stream
            gc.collect()
        check(model, cache, answers)


def test_finalised_after_the_next_turn_began(model: GritLM, answers: dict[str, str]) -> None:
    for taken in range(1, 6):
        cache = PromptCache()
        old: Any = model.stream(FIRST, max_tokens=50, cache=cache)
        for _ in range(taken):
            next(old)
        new = model.stream(NEXT, max_tokens=16, cache=cache)
        pieces = [next(new), next(new)]
        old.close()
        assert "".join([*pieces, *new]) == answers[NEXT]
        check(model, cache, answers)


def test_finalised_after_the_next_turn_ended(model: GritLM, answers: dict[str, str]) -> None:
    cache = PromptCache()
    old: Any = model.stream(FIRST, max_tokens=50, cache=cache)
    next(old)
    assert model.generate(NEXT, max_tokens=16, cache=cache) == answers[NEXT]
    held = list(cache.tokens)
    old.close()
    assert cache.tokens == held  # the newer turn's are not overwritten
    check(model, cache, answers)


def test_two_turns_side_by_side(model: GritLM, answers: dict[str, str]) -> None:
    cache = PromptCache()
    model.generate(FIRST, max_tokens=4, cache=cache)
    streams = [model.stream(prompt, max_tokens=16, cache=cache) for prompt in (FIRST, NEXT, "Bread rises.")]
    pieces = ["", "", ""]
    for _ in range(20):
        for i, stream in enumerate(streams):
            pieces[i] += next(stream, "")
    assert pieces == [answers[FIRST], answers[NEXT], answers["Bread rises."]]
    check(model, cache, answers)


def test_one_cache_in_many_threads(model: GritLM, answers: dict[str, str]) -> None:
    cache, wrong = PromptCache(), []

    def use(prompt: str) -> None:
        for _ in range(4):
            if model.generate(prompt, max_tokens=16, cache=cache) != answers[prompt]:
                wrong.append(prompt)

    threads = [threading.Thread(target=use, args=(prompt,)) for prompt in answers]
    for thread in threads:
        thread.start()
    use(FIRST)
    for thread in threads:
        thread.join()
    assert not wrong
    check(model, cache, answers)


def test_what_is_kept_after_an_interruption_is_used(model: GritLM, answers: dict[str, str]) -> None:
    """Right would be easy with nothing kept."""
    cache = PromptCache()
    stream: Any = model.stream(FIRST, max_tokens=50, cache=cache)
    next(stream)
    next(stream)
    stream.close()
    assert model.generate(NEXT, max_tokens=16, cache=cache) == answers[NEXT]
    assert cache.reused > 50


def test_reset_while_an_answer_is_written(model: GritLM, answers: dict[str, str]) -> None:
    cache = PromptCache()
    stream: Any = model.stream(FIRST, max_tokens=50, cache=cache)
    next(stream)
    cache.reset()
    list(stream)
    assert cache.tokens == [] and cache.reused == 0
    check(model, cache, answers)


@pytest.mark.parametrize("call", [1, 2, 3, 7])
@pytest.mark.parametrize(
    "error", [RuntimeError("[metal::malloc] Unable to allocate"), RuntimeError("odd"), ValueError("x")]
)
def test_the_engine_fails(
    model: GritLM, answers: dict[str, str], monkeypatch: pytest.MonkeyPatch, call: int, error: Exception
) -> None:  # fmt: skip
    layer = model.model.layers[1]
    kind, calls = type(layer), [0]
    real = kind.__call__

    def failing(self: Any, *arguments: Any, **options: Any) -> Any:
        calls[0] += self is layer
        if self is layer and calls[0] == call:
            raise error
        return real(self, *arguments, **options)

    cache = PromptCache()
    with monkeypatch.context() as patch:
        patch.setattr(kind, "__call__", failing)
        with pytest.raises((type(error), MemoryLimitError)):
            model.generate(FIRST, max_tokens=20, cache=cache)
    check(model, cache, answers)


@pytest.mark.parametrize("tokens", [1, 2, 7])
def test_stopped_by_length_by_a_text_and_by_the_end_token(
    model: GritLM, answers: dict[str, str], monkeypatch: pytest.MonkeyPatch, tokens: int
) -> None:
    cache = PromptCache()
    model.generate(FIRST, max_tokens=tokens, cache=cache)
    check(model, cache, answers)
    model.generate(FIRST, max_tokens=16, cache=cache, stop=[answers[FIRST][tokens : tokens + 2]])
    check(model, cache, answers)
    ids = [response.token for response in model.stream_responses(FIRST, max_tokens=16)]
    with monkeypatch.context() as patch:
        patch.setattr(model._engine_tokenizer, "_eos_token_ids", {ids[tokens]})
        model.generate(FIRST, max_tokens=16, cache=cache)
    check(model, cache, answers)


def test_another_model_with_the_same_cache(
    model: GritLM, tiny_model: Path, tiny_mixtral: Path, answers: dict[str, str]
) -> None:
    cache = PromptCache()
    mixture, twin = GritLM(tiny_mixtral), GritLM(tiny_model)
    twin.model.update({"lm_head": {"weight": -twin.model.lm_head.weight}})
    expected = [other.generate(FIRST, max_tokens=8) for other in (mixture, twin)]
    for other, answer in zip((mixture, twin), expected, strict=True):
        model.generate(FIRST, max_tokens=8, cache=cache)
        assert other.generate(FIRST, max_tokens=8, cache=cache) == answer
    check(model, cache, answers)


def test_options_that_look_at_the_prompt_see_all_of_it(model: GritLM) -> None:
    options: dict[str, Any] = {"max_tokens": 20, "repetition_penalty": 3.0, "repetition_context_size": 40}
    cache = PromptCache()
    for prompt in (FIRST, NEXT, NEXT + " Tell me."):
        assert model.generate(prompt, cache=cache, **options) == model.generate(prompt, **options), prompt
    assert cache.reused > 50


def test_a_seed_gives_the_same_answer_with_a_cache(model: GritLM) -> None:
    options: dict[str, Any] = {"max_tokens": 12, "temperature": 1.0, "seed": 5}
    cache = PromptCache()
    for prompt in (FIRST, NEXT, NEXT):
        assert model.generate(prompt, cache=cache, **options) == model.generate(prompt, **options)


def test_behind_documents(model: GritLM) -> None:
    _, document = model.encode("The keel keeps it upright. " * 5, instruction="<|embed|>\n", get_cache=True)
    keys = [np.array(layer.keys) for layer in document]
    prompts = ["\n<|user|>\nWhy?\n<|assistant|>\n", "\n<|user|>\nWhy? And how?\n<|assistant|>\n"]
    ids = [model.tokenizer.encode(prompt, add_special_tokens=False) for prompt in prompts]
    expected = [model.generate(one, max_tokens=12, cache=document) for one in ids]
    cache = PromptCache(document)
    for taken in (1, 3, 7):
        stream: Any = model.stream(ids[0], max_tokens=50, cache=cache)
        for _ in range(taken):
            next(stream)
        stream.close()
        for one, answer in zip([*ids, ids[0]], [*expected, expected[0]], strict=True):
            assert model.generate(one, max_tokens=12, cache=cache) == answer
    for layer, before in zip(document, keys, strict=True):
        np.testing.assert_array_equal(np.array(layer.keys), before)


@pytest.mark.parametrize("taken", [1, 4, 9])
def test_quantised_and_rotating_caches(model: GritLM, taken: int) -> None:
    from tests.model.test_generation import LONG, random_engine

    for kind, config, option_sets in (
        ("llama", {}, [{"kv_bits": 8}, {}, {"kv_bits": 4, "kv_group_size": 32}, {"kv_bits": 8}]),
        ("gemma3_text", {"sliding_window": 8, "sliding_window_pattern": 2}, [{}]),
        ("gemma3_text", {"sliding_window": 512, "sliding_window_pattern": 2}, [{}]),
    ):
        run = random_engine(kind, model, **config)
        cache = PromptCache()
        for options in option_sets:
            for prompt in (LONG, LONG + "Why?", LONG[:80]):
                plain = run(prompt, **options)
                assert run(prompt, cache, **options) == plain
                run(prompt, cache, max_tokens=taken, **options)
                assert run(prompt, cache, **options) == plain


def test_a_huge_prompt_is_given_up_between_its_parts(model: GritLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for the rest of a prompt that is no longer wanted."""
    computed: list[int] = []
    real = type(model.model).__call__

    def counting(self: Any, ids: mx.array, *arguments: Any, **options: Any) -> Any:
        computed.append(ids.shape[1])
        if len(computed) == 3:
            cancelled.set()
        return real(self, ids, *arguments, **options)

    cancelled = threading.Event()
    monkeypatch.setattr(type(model.model), "__call__", counting)
    monkeypatch.setattr("grit_mlx.model.generation.threading.Event", lambda: cancelled)
    cache = PromptCache()
    stream: Any = model.stream([5] * 900, cache=cache, prefill_step_size=16)
    with pytest.raises(generation._CancelledError):
        next(stream)
    assert len(computed) <= 4
