"""The SDK: encode and generate on the tiny committed checkpoints."""

from __future__ import annotations

import gc
import logging
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from numpy.typing import NDArray

from grit_mlx import GritLM, embedding_prompt
from grit_mlx.errors import (
    ArgumentError,
    GritError,
    MemoryLimitError,
    ModeError,
    NonFiniteError,
    TextError,
)
from grit_mlx.model import device
from grit_mlx.vectors.compression import CompressedVectors

WORDS = ("keel", "ship", "leans", "on", "wind", "and", "bread", "rises", "with", "yeast", "while", "sails", "answer")


def texts(count: int, longest: int = 60, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(1, longest))) for _ in range(count)]


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> GritLM:
    return GritLM(tiny_model)


@pytest.mark.parametrize("name", ["tiny_model", "tiny_mixtral"])
def test_a_vector_does_not_depend_on_its_neighbours(request: pytest.FixtureRequest, name: str) -> None:
    model = GritLM(request.getfixturevalue(name))
    corpus = texts(40)
    alone = np.stack([model.encode(text, instruction=embedding_prompt()) for text in corpus])
    order = np.random.default_rng(1).permutation(len(corpus))
    for batch_size in (None, 1, 7):
        vectors = model.encode([corpus[i] for i in order], batch_size, instruction=embedding_prompt())
        np.testing.assert_allclose(vectors, alone[order], atol=1e-6)


def test_shapes_and_types(model: GritLM) -> None:
    assert model.embedding_size == 32
    single, many = model.encode("a text"), model.encode(["a text", "another"])
    assert single.shape == (32,) and many.shape == (2, 32) and many.dtype == np.float32
    assert model.encode([]).shape == (0, 32)
    array = model.encode(["a text"], convert_to_numpy=False)
    assert isinstance(array, mx.array) and array.shape == (1, 32)
    half = model.encode(["a text"], output_dtype="float16")
    assert half.dtype == np.float16
    packed = model.encode(["a text"], output_dtype="int8")
    assert isinstance(packed, CompressedVectors) and packed.values.dtype == np.int8
    np.testing.assert_allclose(packed.decompress()[0], single, atol=0.01)
    with pytest.raises(ArgumentError, match="NumPy format"):
        model.encode(["a"], output_dtype="binary", convert_to_numpy=False)
    with pytest.raises(ArgumentError, match="Unknown output_dtype 'int4'"):
        model.encode(["a"], output_dtype="int4")


def test_queries_and_documents_are_put_into_grits_format(model: GritLM) -> None:
    settings = model.settings
    expected = model.encode("why?", instruction=embedding_prompt(settings.query_instruction))
    np.testing.assert_array_equal(model.encode_queries("why?"), expected)
    np.testing.assert_array_equal(model.encode_queries("why?", instruction=""), model.encode("why?"))
    np.testing.assert_array_equal(model.encode("why?", role="query"), expected)
    np.testing.assert_array_equal(next(model.encode_iter(["why?"], role="query")), expected)
    other = model.encode("why?", instruction=embedding_prompt("Find it"))
    np.testing.assert_array_equal(model.encode("why?", role="query", instruction="Find it"), other)
    bare = model.encode("why?", instruction="<|embed|>\n")
    np.testing.assert_array_equal(model.encode("why?", role="similarity", instruction=""), bare)
    with pytest.raises(ArgumentError, match="Unknown role 'passage': use one of query, document, similarity"):
        model.encode("why?", role="passage")
    plain = model.encode(["T because", "because"], instruction="<|embed|>\n")
    np.testing.assert_array_equal(model.encode_corpus([{"title": "T", "text": "because"}, "because"]), plain)
    np.testing.assert_allclose(model.encode_corpus({"text": "because"}), plain[1], atol=1e-6)  # a batch of its own
    with pytest.raises(TextError, match="Document 1 has no 'text'"):
        model.encode_corpus([{"text": "a"}, {"title": "b"}])


def test_windows_change_nothing(model: GritLM, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = texts(30)
    whole = model.encode(corpus)
    monkeypatch.setattr("grit_mlx.model.batching.WINDOW_TEXTS", 7)
    np.testing.assert_allclose(model.encode(corpus), whole, atol=1e-6)
    np.testing.assert_allclose(np.stack(list(model.encode_iter(iter(corpus)))), whole, atol=1e-6)


def test_encode_iter_is_lazy_and_counts_from_the_first(model: GritLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grit_mlx.model.batching.WINDOW_TEXTS", 4)
    taken: list[int] = []

    def source() -> Iterator[str]:
        for i in range(12):
            taken.append(i)
            yield "" if i == 9 else f"text {i}"

    vectors = model.encode_iter(source())
    assert taken == []
    next(vectors)
    assert taken == [0, 1, 2, 3]
    with pytest.raises(TextError, match="Text 9 is empty") as caught:
        list(vectors)
    assert caught.value.index == 9
    with pytest.raises(ArgumentError, match="batch_size must be at least 1"):
        model.encode_iter(["a"], batch_size=0)  # refused at once, before a vector is asked for


def test_encode_iter_memory_is_constant(model: GritLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grit_mlx.model.batching.WINDOW_TEXTS", 256)

    def peak(count: int) -> int:
        # In a process that holds much from other tests, cyclic garbage waits long for its collector.
        gc.collect()
        gc.freeze()
        tracemalloc.start()
        for _ in model.encode_iter("a short text" for _ in range(count)):
            pass
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        gc.unfreeze()
        return size

    peak(256)
    assert peak(4096) < 1.3 * peak(512)


def test_long_texts(model: GritLM, caplog: pytest.LogCaptureFixture) -> None:
    long = " ".join(texts(1, 400, seed=5) * 2)
    short = "a short one"
    with caplog.at_level(logging.WARNING, logger="grit_mlx"):
        cut = model.encode([long, short], max_length=32, instruction="<|embed|>\n")
    assert "1 of 2 texts were truncated at 32 tokens" in caplog.text
    averaged = model.encode([long, short], max_length=32, instruction="<|embed|>\n", long_texts="average")
    np.testing.assert_allclose(averaged[1], cut[1], atol=1e-6)
    assert np.abs(averaged[0] - cut[0]).max() > 1e-3
    np.testing.assert_allclose(np.linalg.norm(averaged, axis=1), 1, atol=1e-6)

    with pytest.raises(TextError, match="Text 1 is longer than the 32 tokens"):
        model.encode([short, long], max_length=32, long_texts="refuse")
    np.testing.assert_array_equal(model.encode([short], long_texts="refuse"), model.encode([short]))

    # By hand: every chunk behind the instruction, weighted by its tokens.
    ids = model.tokenizer("<|embed|>\n" + long)["input_ids"]
    begin = len(model.tokenizer("<|embed|>\n")["input_ids"])
    raw = GritLM(model.folder, normalized=False)
    room = 32 - begin
    total = np.zeros(32)
    for at in range(begin, len(ids), room):
        chunk = ids[at : at + room]
        states = mean_of(raw, ids[:begin] + chunk, begin)
        total += len(chunk) * states
    np.testing.assert_allclose(averaged[0], total / np.linalg.norm(total), atol=1e-5)


def mean_of(model: GritLM, ids: list[int], skipped: int) -> NDArray[Any]:
    from grit_mlx.model.attention import decoder_of, embedding_caches

    states = decoder_of(model.model)(mx.array([ids]), cache=embedding_caches(2))
    return np.array(states[0, skipped:].mean(axis=0))


@pytest.mark.parametrize(
    ("sentences", "options", "message"),
    [
        (["a", ""], {}, "Text 1 is empty"),
        (["a", None], {}, "Text 1 is a NoneType, not a str"),
        ([1], {}, "Text 0 is a int, not a str"),
        (b"bytes", {}, "must be a str or a list of str, not bytes"),
        ({"text": "a"}, {}, "must be a str or a list of str, not dict"),
        (None, {}, "must be a str or a list of str, not NoneType"),
        (["ok", "bad \ud800 half"], {}, "Text 1 holds half a surrogate pair at character 4"),
        (["a"], {"max_length": 4, "instruction": "<|embed|>\n"}, "Text 0 has no room: the instruction takes all 4"),
        (["a"], {"max_length": 0}, "max_length must be at least 1"),
        (["a"], {"max_length": "8"}, "max_length must be a whole number, not '8'"),
        (["a"], {"batch_size": -1}, "batch_size must be at least 1"),
        (["a"], {"instruction": 3}, "instruction must be text, not 3"),
        (["a"], {"long_texts": "drop"}, "Unknown long_texts 'drop': use one of truncate, average, refuse"),
        (["a"], {"long_texts": "average", "get_cache": True}, "get_cache keeps one pass"),
    ],
)
def test_wrong_texts_and_options(model: GritLM, sentences: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        model.encode(sentences, **options)


def test_never_a_nan_vector(tiny_model: Path) -> None:
    model = GritLM(tiny_model)
    # Damage that the probe at loading cannot see: the embedding of one token.
    token = model.tokenizer.encode("ü", add_special_tokens=False)[-1]
    weight = model.model.model.embed_tokens.weight
    model.model.model.embed_tokens.weight = mx.where(mx.arange(384)[:, None] == token, float("nan"), weight)
    with pytest.raises(NonFiniteError, match="The vector of text 2 holds NaN"):
        model.encode(["fine", "fine too", "not ü", "fine"])


def test_out_of_memory_halves_the_batch_and_goes_on(
    model: GritLM, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    corpus = texts(50)
    expected = model.encode(corpus)
    embedder = model.embedder
    real, sizes = embedder._compute, []

    def limited(batch: Any, *, keep: bool) -> Any:
        sizes.append(len(batch))
        if len(batch) > 6:
            raise RuntimeError("[malloc_or_wait] Unable to allocate 123 bytes.")
        return real(batch, keep=keep)

    monkeypatch.setattr(embedder, "_compute", limited)
    with caplog.at_level(logging.WARNING, logger="grit_mlx"):
        np.testing.assert_allclose(model.encode(corpus), expected, atol=1e-6)
    assert "continuing with half as many" in caplog.text
    assert sum(size > 6 for size in sizes) <= 4  # the smaller size is kept, not found anew each time

    def nothing_fits(batch: Any, *, keep: bool) -> Any:
        raise RuntimeError("Insufficient Memory")

    monkeypatch.setattr(embedder, "_compute", nothing_fits)
    with pytest.raises(MemoryLimitError, match=r"A text of \d+ tokens does not fit into memory"):
        model.encode(corpus)

    def broken(batch: Any, *, keep: bool) -> Any:
        raise RuntimeError("something else")

    monkeypatch.setattr(embedder, "_compute", broken)
    with pytest.raises(RuntimeError, match="something else"):
        model.encode(corpus)


def test_progress_reaches_the_end(model: GritLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grit_mlx.model.batching.WINDOW_TEXTS", 16)
    seen: list[tuple[float, int | None]] = []
    model.encode(texts(40), 8, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (40, 40) and [done for done, _ in seen] == sorted(done for done, _ in seen)
    seen = []
    list(model.encode_iter(texts(20), progress=lambda done, total: seen.append((done, total))))
    assert seen[-1][0] == 20 and seen[-1][1] is None


def test_settings_come_from_the_folder_and_arguments_override_them(model_copy: Callable[..., Path]) -> None:
    folder = model_copy()
    (folder / "grit.json").write_text('{"format": 1, "pooling": "cls", "attn": "cccc", "max_length": 8}')
    model = GritLM(folder)
    assert (model.settings.pooling, model.settings.attn, model.settings.max_length) == ("cls", "cccc", 8)
    model = GritLM(folder, pooling_method="mean", normalized=False)
    assert (model.settings.pooling, model.settings.attn, model.settings.normalized) == ("mean", "cccc", False)


def test_projection(model_copy: Callable[..., Path], model: GritLM) -> None:
    folder = model_copy()
    weight = np.random.default_rng(0).normal(size=(5, 32)).astype(np.float32)
    bias = np.arange(5, dtype=np.float32)
    mx.save_safetensors(str(folder / "projection.safetensors"), {"weight": mx.array(weight), "bias": mx.array(bias)})
    projected = GritLM(folder, normalized=False)
    assert projected.embedding_size == 5
    # The map is linear, so for mean pooling it may as well come after the mean.
    plain = GritLM(model.folder, normalized=False).encode("a text")
    np.testing.assert_allclose(projected.encode("a text"), weight @ plain + bias, atol=1e-4)


def test_modes(tiny_model: Path, model: GritLM) -> None:
    embedder = GritLM(tiny_model, mode="embedding")
    assert "lm_head" not in embedder.model
    np.testing.assert_array_equal(embedder.encode("a"), model.encode("a"))
    with pytest.raises(ModeError, match="mode='embedding' and cannot generate"):
        embedder.generate("a")
    writer = GritLM(tiny_model, mode="generative")
    assert writer.generate("a", max_tokens=4) == model.generate("a", max_tokens=4)
    with pytest.raises(ModeError, match="mode='generative' and cannot embed"):
        writer.encode("a")
    wrongs: list[dict[str, Any]] = [{"mode": "both"}, {"dtype": "int8"}, {"attn": "bc"}, {"pooling_method": "max"}]
    for wrong in wrongs:
        with pytest.raises(ArgumentError, match="Unknown"):
            GritLM(tiny_model, **wrong)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "stored"])
def test_other_dtypes_embed_nearly_the_same(tiny_model: Path, model: GritLM, dtype: str) -> None:
    corpus = texts(6)
    vectors = GritLM(tiny_model, dtype=dtype).encode(corpus)
    assert vectors.dtype == np.float32
    assert (np.sum(vectors * model.encode(corpus), axis=1) > 0.999).all()


def test_token_budget_grows_with_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def budget(free: int, length: int = 512) -> int:
        monkeypatch.setattr(device, "available_memory", lambda: free)
        return device.token_budget(hidden=4096, intermediate=14336, heads=32, length=length)

    assert budget(1 << 28) == 512  # a single text is always tried
    assert budget(1 << 30) < budget(1 << 32) <= budget(1 << 40)
    assert budget(1 << 60) == device._LARGEST_BATCH["cpu"]
    assert budget(1 << 20, length=9000) == 9000


def test_every_error_is_one_of_ours(model: GritLM) -> None:
    with pytest.raises(GritError):
        model.encode("")
