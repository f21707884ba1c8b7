"""Generating: what reaches mlx-lm's engine, and what is added to it."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm import load as mlx_load
from mlx_lm import stream_generate

from grit_mlx import GritLM, PromptCache, embedding_prompt
from grit_mlx.errors import ArgumentError, MemoryLimitError, NonFiniteError
from grit_mlx.model.generation import _stopped, sampling, stream_responses
from grit_mlx.model.loading import _materialize
from grit_mlx.model.options import GenerationOptions

PROMPT = "What keeps a ship upright?"


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> GritLM:
    return GritLM(tiny_model)


def tokens(model: GritLM, prompt: Any = PROMPT, **options: Any) -> list[int]:
    return [response.token for response in model.stream_responses(prompt, **options)]


def test_equals_mlx_lms_own_generation(model: GritLM, tiny_model: Path) -> None:
    theirs, tokenizer = mlx_load(str(tiny_model))[:2]
    ids = model.tokenizer("<|user|>\n" + PROMPT + "\n<|assistant|>\n")["input_ids"]
    expected = [r.token for r in stream_generate(theirs, tokenizer, ids, max_tokens=20)]
    assert tokens(model, max_tokens=20) == expected
    assert model.generate(PROMPT, max_tokens=20) == "".join(model.stream(PROMPT, max_tokens=20))


def test_sampling_is_repeatable_with_a_seed(model: GritLM) -> None:
    options = {"max_tokens": 16, "temperature": 1.5, "top_p": 0.9, "top_k": 50, "min_p": 0.001}
    first = tokens(model, seed=1, **options)
    assert first == tokens(model, seed=1, **options)
    assert first != tokens(model, seed=2, **options)
    assert first != tokens(model, max_tokens=16)
    # A top_k of the whole vocabulary means all of it.
    assert len(tokens(model, seed=1, max_tokens=3, temperature=1, top_k=10**6)) == 3


@pytest.mark.parametrize("temperature", [5e-324, 1e-40, 1e-10, 1e-6])
def test_nearly_no_temperature_takes_the_likeliest(model: GritLM, temperature: float) -> None:
    expected = model.generate("Once", max_tokens=12)
    assert model.generate("Once", max_tokens=12, temperature=temperature) == expected
    assert model.generate_batch(["Once"], max_tokens=12, temperature=temperature) == [expected]


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16, mx.float32])
@pytest.mark.parametrize("temperature", [2e-5, 1e-4, 1e-3])
def test_low_temperatures_do_not_overflow_half_precision(dtype: mx.Dtype, temperature: float) -> None:
    logits = mx.zeros((1, 3000)).at[0, 7].add(0.5)  # nearly even, so that all log-probabilities are far below 0
    logprobs = (logits - mx.logsumexp(logits)).astype(dtype)
    sampler = sampling(GenerationOptions(temperature=temperature, top_p=0.9), 3000)["sampler"]
    assert [int(sampler(logprobs).item()) for _ in range(5)] == [7] * 5


def test_a_repetition_penalty_changes_what_repeats(model: GritLM) -> None:
    plain = tokens(model, max_tokens=60)
    assert len(set(plain)) < len(plain)  # or this shows nothing
    penalised = tokens(model, max_tokens=60, repetition_penalty=5.0, repetition_context_size=100)
    assert len(set(penalised)) > len(set(plain))


@pytest.mark.parametrize("name", ["presence_penalty", "frequency_penalty"])
def test_penalties_that_are_subtracted(model: GritLM, name: str) -> None:
    """From the logits of what was written before, as OpenAI defines them."""
    options: dict[str, Any] = {name: 2.0, "repetition_context_size": 100}
    plain = list(model.stream_responses(PROMPT, max_tokens=40))
    penalised = list(model.stream_responses(PROMPT, max_tokens=40, **options))
    assert len({one.token for one in penalised}) > len({one.token for one in plain})
    # What is written first was not written before, so nothing but the prompt's tokens can differ.
    first = {place: penalised[0].logprobs[place] - plain[0].logprobs[place] for place in range(model.rows)}
    prompt = model.prompt_tokens(PROMPT, raw=False, continues=False)
    counts = {token: prompt.count(token) if name == "frequency_penalty" else 1 for token in set(prompt)}
    base = max(float(value) for value in first.values())
    for place, value in first.items():
        assert float(value) == pytest.approx(base - 2.0 * counts.get(place, 0), abs=1e-4)


def test_biases_of_tokens(model: GritLM) -> None:
    plain = tokens(model, max_tokens=8)
    assert plain[0] not in tokens(model, max_tokens=8, logit_bias={plain[0]: -100})
    assert tokens(model, max_tokens=5, logit_bias={str(plain[3]): 100}) == [plain[3]] * 5
    assert (
        model.generate_batch([PROMPT] * 2, max_tokens=5, logit_bias={plain[3]: 100})
        == [model.tokenizer.decode([plain[3]] * 5)] * 2
    )
    with pytest.raises(ArgumentError, match="logit_bias has the id 100000"):
        tokens(model, max_tokens=1, logit_bias={100_000: 1})


def test_stops_at_the_end_token(model: GritLM, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = tokens(model, max_tokens=10)
    monkeypatch.setattr(model._engine_tokenizer, "_eos_token_ids", {plain[4]})
    responses = list(model.stream_responses(PROMPT, max_tokens=10))
    assert responses[-1].finish_reason == "stop" and len(responses) == plain.index(plain[4]) + 1
    assert list(model.stream_responses(PROMPT, max_tokens=2))[-1].finish_reason == "length"


@pytest.mark.parametrize(
    ("pieces", "stop", "expected", "reason"),
    [
        (["Hel", "lo wor", "ld"], ["lo w"], "Hel", "stop"),
        (["ab", "ab", "abc!"], ["abc"], "abab", "stop"),
        (["a", "b", "a"], ["abc"], "aba", "length"),
        (["xSTO", "Py", "STOP"], ["STOP", "y"], "x", "stop"),
        (["one", " two"], [" two", "e t"], "on", "stop"),
        (["one", " two"], ["three"], "one two", "length"),
        (["STOP"], ["STOP"], "", "stop"),
    ],
)
def test_stop_texts(pieces: list[str], stop: list[str], expected: str, reason: str) -> None:
    from mlx_lm.generate import GenerationResponse

    def responses() -> Any:
        for i, piece in enumerate(pieces):
            last = i == len(pieces) - 1
            yield GenerationResponse(piece, i, mx.zeros(1), False, 1, 1.0, i, 1.0, 0.0, "length" if last else None)

    got = list(_stopped(responses(), stop))
    assert "".join(r.text for r in got) == expected
    assert got[-1].finish_reason == reason
    # Nothing that turned out to be a stop text was ever handed out.
    assert all(s not in "".join(r.text for r in got) for s in stop)


def test_stop_text_in_a_real_stream(model: GritLM) -> None:
    whole = model.generate(PROMPT, max_tokens=30)
    middle = whole[len(whole) // 2 : len(whole) // 2 + 3]
    assert model.generate(PROMPT, max_tokens=30, stop=[middle]) == whole[: whole.index(middle)]
    (batched,) = model.generate_batch([PROMPT], max_tokens=30)
    assert model.generate_batch([PROMPT], max_tokens=30, stop=[batched[5:8]]) == [
        batched[: batched.index(batched[5:8])]
    ]


def test_prompt_cache_reuses_and_changes_nothing(model: GritLM) -> None:
    cache = PromptCache()
    messages: list[dict[str, str]] = []
    reused = []
    for question in ("What keeps a ship upright?", "Why?", "And bread?"):
        messages.append({"role": "user", "content": question})
        answer = model.generate(messages, max_tokens=12, cache=cache)
        assert answer == model.generate(messages, max_tokens=12), question
        messages.append({"role": "assistant", "content": answer})
        reused.append(cache.reused)
    assert reused[0] == 0 and 0 < reused[1] < reused[2]
    # An unrelated prompt, a shorter one and the same one again are all right too.
    for prompt in ("Bread rises because", messages[:1], messages[:1]):
        assert model.generate(prompt, max_tokens=8, cache=cache) == model.generate(prompt, max_tokens=8)
    assert cache.reused == len(cache.tokens) - 8 or cache.reused > 0
    cache.reset()
    assert cache.tokens == [] and model.generate("Hi", max_tokens=3, cache=cache) == model.generate("Hi", max_tokens=3)


def test_prompt_cache_survives_an_abandoned_answer(model: GritLM) -> None:
    cache = PromptCache()
    stream = model.stream(PROMPT, max_tokens=50, cache=cache)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert cache.tokens
    assert model.generate(PROMPT + " Why?", max_tokens=9, cache=cache) == model.generate(PROMPT + " Why?", max_tokens=9)


def test_a_documents_cache_can_be_used_again(model: GritLM) -> None:
    _, cache = model.encode("The keel keeps it upright.", instruction=embedding_prompt(), get_cache=True)
    before = np.array(cache[0].keys)
    prompt = "\n<|user|>\nWhy?\n<|assistant|>\n"
    first = model.generate(prompt, max_tokens=300, cache=cache)
    assert first == model.generate(prompt, max_tokens=300, cache=cache)
    assert cache[0].offset == before.shape[2]
    np.testing.assert_array_equal(np.array(cache[0].keys), before)


def test_quantized_keys_and_values(tiny_model: Path, model: GritLM) -> None:
    with pytest.raises(ArgumentError, match="keys and values of this model cannot be quantised this way"):
        model.generate(PROMPT, kv_bits=8)  # its heads have 8 numbers, and a group at least 32


def test_batch_of_prompts(model: GritLM) -> None:
    prompts: list[Any] = ["Why?", "What keeps a ship upright in the wind?", [{"role": "user", "content": "Bread"}]]
    answers = model.generate_batch(prompts, max_tokens=10)
    # Token by token; a random model writes broken UTF-8, which streaming shows in other replacement characters.
    assert answers == [model.tokenizer.decode(tokens(model, prompt, max_tokens=10)) for prompt in prompts]
    assert model.generate_batch([]) == []
    for wrong, message in (("one", "takes a list"), (["a", ""], "prompt is empty"), ([[]], "list of token ids|empty")):
        with pytest.raises(ArgumentError, match=message):
            model.generate_batch(wrong)
    with pytest.raises(ArgumentError, match="kv_bits does not work for a batch"):
        model.generate_batch(["a"], kv_bits=8)


def test_raw_prompts_obey_special_tokens(model: GritLM) -> None:
    def length(prompt: Any, **options: Any) -> int:
        return next(iter(model.stream_responses(prompt, max_tokens=1, **options))).prompt_tokens

    assert length("<s>Hi", raw=True) == length("Hi", raw=True) == len(model.tokenizer("Hi")["input_ids"])
    assert length([1, 5, 6]) == 3
    assert length("a </s> b") > length("a  b") + 1  # spelled out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 0}, "max_tokens must be at least 1, or -1 for no limit, not 0"),
        ({"temperature": -0.1}, "temperature must be at least 0, not -0.1"),
        ({"top_p": 0}, "top_p must be above 0 and at most 1, not 0"),
        ({"top_p": 1.2}, "top_p must be"),
        ({"top_k": -1}, "top_k must be at least 0"),
        ({"min_p": 2}, "min_p must be from 0 to 1"),
        ({"repetition_penalty": 0}, "repetition_penalty must be above 0"),
        ({"stop": [""]}, "stop must be texts"),
        ({"kv_bits": 5}, "Unknown kv_bits 5: use one of 2, 3, 4, 6, 8"),
        ({"kv_group_size": 10}, "Unknown kv_group_size"),
        ({"prefill_step_size": 0}, "prefill_step_size must be"),
    ],
)
def test_options_out_of_range(model: GritLM, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        model.generate(PROMPT, **options)


@pytest.mark.parametrize("prompt", ["", "  \n", [], [{"role": "user"}], ["a"], 7, None])
def test_wrong_prompts(model: GritLM, prompt: Any) -> None:
    with pytest.raises(ArgumentError):
        model.generate(prompt)


def test_damaged_head_is_named(tiny_model: Path) -> None:
    model = GritLM(tiny_model)
    model.model.lm_head.weight = mx.full((384, 32), float("nan"))
    with pytest.raises(NonFiniteError, match="probabilities are NaN or infinity"):
        model.generate(PROMPT)


def test_out_of_memory_is_a_sentence(model: GritLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def engine(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("[metal::malloc] Unable to allocate 1 bytes")
        yield SimpleNamespace()

    monkeypatch.setattr("grit_mlx.model.generation.generate_step", engine)
    with pytest.raises(MemoryLimitError, match=r"Memory ran out after \d+ tokens. Use a shorter prompt, kv_bits=8"):
        model.generate(PROMPT)


def test_options_are_checked_before_anything_is_computed() -> None:
    with pytest.raises(ArgumentError):
        GenerationOptions(top_k=-5)


def random_engine(kind: str, tiny: GritLM, **config: Any) -> Any:
    """A random model of another shape with the tiny tokenizer: ``run(prompt, cache=, **options) -> tokens``."""
    module = importlib.import_module(f"mlx_lm.models.{kind}")
    base = {
        "model_type": kind,
        "hidden_size": 64,
        "num_hidden_layers": 4,
        "intermediate_size": 96,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 64,
        "rms_norm_eps": 1e-5,
        "vocab_size": 384,
        "tie_word_embeddings": False,
    }
    mx.random.seed(3)
    engine = module.Model(module.ModelArgs.from_dict({**base, **config}))
    engine.eval()
    _materialize(engine)  # its layers compute as a loaded model's do

    def run(prompt: str, cache: Any = None, **options: Any) -> list[int]:
        ids = tiny.tokenizer(prompt)["input_ids"]
        chosen = GenerationOptions(**{"max_tokens": 12, **options})
        return [r.token for r in stream_responses(engine, tiny._engine_tokenizer, ids, chosen, cache=cache)]

    return run


LONG = "A keel keeps a ship upright when the wind leans on its sails. " * 4


def test_quantized_keys_and_values_generate_nearly_the_same(model: GritLM) -> None:
    run = random_engine("llama", model)
    plain = run(LONG)
    assert run(LONG, kv_bits=8) == plain  # also where a CPU's attention goes through NumPy
    coarse = run(LONG, kv_bits=2, kv_group_size=32)
    assert coarse != plain and len(coarse) == len(plain)  # so the option does something
    # A chat goes on from quantised keys and values too.
    cache = PromptCache()
    run(LONG, cache, kv_bits=8)
    assert type(cache.layers[0]).__name__ == "QuantizedKVCache"
    assert run(LONG + "Why?", cache, kv_bits=8) == run(LONG + "Why?", kv_bits=8)
    assert cache.reused > 60


@pytest.mark.parametrize("window", [8, 512])
def test_prompt_cache_with_a_sliding_window(model: GritLM, window: int) -> None:
    """Gemma 3's rotating caches cannot go back once they are full; answers are right all the same."""
    run = random_engine("gemma3_text", model, sliding_window=window, sliding_window_pattern=2)
    cache = PromptCache()
    for prompt in (LONG, LONG + "Why?", LONG[:80], LONG[:80] + "And bread?", "Bread rises."):
        assert run(prompt, cache) == run(prompt), prompt
