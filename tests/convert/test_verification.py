"""The proof, block by block: the figures of whole models, in no more memory than the conversion."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from grit_mlx import GritLM
from grit_mlx.convert import convert, verification, verify, walking
from grit_mlx.convert.plan import make_plan
from grit_mlx.convert.reading import Folder
from grit_mlx.convert.streaming import Stream
from grit_mlx.evaluation.drift import TEXTS, outputs_of
from grit_mlx.model import device
from grit_mlx.model.attention import decoder_of, embedding_caches
from tests.conftest import GOLDEN
from tests.convert.conftest import checkpoint_of, sharded
from tests.convert.test_conversion import ARCHITECTURE_CONFIGS, BASE, make_adapter

QUANTIZED: list[dict[str, Any]] = [
    *({"bits": bits, "group_size": 32} for bits in (2, 3, 4, 5, 6, 8)),
    *({"mode": mode} for mode in ("mxfp4", "nvfp4", "mxfp8")),
]


@pytest.mark.parametrize("architecture", ["mistral", "mixtral"])
@pytest.mark.parametrize("options", [{"bits": 4}, {"mode": "mxfp4"}], ids=str)
def test_figures_are_those_of_whole_models(
    architecture: str, options: dict[str, Any], shared: Path, tmp_path: Path
) -> None:
    source = shared / "golden" / architecture / "checkpoint"
    streamed = convert(source, tmp_path / "out", quantize=True, **options).drift
    whole = verify(source, tmp_path / "out")
    assert streamed is not None and streamed.texts == whole.texts == len(TEXTS)
    assert streamed.cosine_mean == pytest.approx(whole.cosine_mean, abs=1e-3) and whole.cosine_mean < 0.99
    assert streamed.cosine_worst == pytest.approx(whole.cosine_worst, abs=1e-2)
    assert streamed.neighbour_overlap == pytest.approx(whole.neighbour_overlap, abs=0.02)
    assert streamed.kl == pytest.approx(whole.kl, rel=0.02)
    assert streamed.top_token == pytest.approx(whole.top_token, abs=0.02)


@pytest.mark.parametrize("options", QUANTIZED, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_weights_are_unpacked_as_mlx_does_it(
    options: dict[str, Any], dtype: str, tiny_mixtral: Path, tmp_path: Path
) -> None:
    convert(tiny_mixtral, tmp_path / "out", verify=False, recipe="uniform", dtype=dtype, **options)
    folder = Folder(tmp_path / "out")
    plan, model = make_plan(folder, dequantize=True)
    stream = Stream(plan, folder, model)
    assert any(weight.packed is not None for weight in plan.weights)
    for weight in plan.weights:
        wide = stream.wide(weight, 0, min(8, weight.rows))
        assert wide is not None
        stored = [stream._rows(name, 0, min(8, weight.rows)) for name in stream._stored_names(weight)]
        stored = [one.astype(mx.float32) if mx.issubdtype(one.dtype, mx.floating) else one for one in stored]
        expected = stored[0] if weight.packed is None else weight.packed.dequantize(stored).astype(mx.float32)
        np.testing.assert_allclose(wide, np.array(expected), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", ["mistral", *(kind for kind in ARCHITECTURE_CONFIGS if kind != "gpt2")])
def test_walked_models_compute_what_models_in_memory_do(kind: str, tiny_model: Path, tmp_path: Path) -> None:
    untied = {"tie_word_embeddings": False} if kind in ("mistral", "olmoe") else {}
    config = {**BASE, **ARCHITECTURE_CONFIGS.get(kind, {}), **untied}
    source = checkpoint_of(kind, config, tmp_path / "source", tiny_model)
    report = convert(source, tmp_path / "out", verify=True, texts=TEXTS[:6], dtype="float32")
    assert report.drift is not None and report.drift.cosine_worst > 0.9999
    folder = Folder(tmp_path / "out")
    plan, model = make_plan(folder)
    rows = [[5, 9, 2, 7], [11, 3], [8, 1, 4, 6]]
    with walking.Walk(Stream(plan, folder, model), model) as walk:
        states = walk.states(rows, [False, False, True])
        logits = walk.logits(states[2])
    whole = GritLM(tmp_path / "out").model
    for row, ids in enumerate(rows):
        caches: Any = embedding_caches(len(whole.layers), causal=row == 2)
        expected = np.array(decoder_of(whole)(mx.array([ids]), cache=caches)[0])
        np.testing.assert_allclose(states[row, : len(ids)], expected, atol=2e-5)
    np.testing.assert_allclose(logits, np.array(whole(mx.array([rows[2]]))[0]), atol=2e-5)


def test_a_large_model_is_compared_on_fewer_texts_unless_asked(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verification, "_CPU_WORK", 0)
    monkeypatch.setattr(device, "compute_dtype", lambda dtype: mx.float32)
    some = convert(tiny_model, tmp_path / "some", bits=4, group_size=32).drift
    every = convert(tiny_model, tmp_path / "every", bits=4, group_size=32, verify=True).drift
    own = convert(tiny_model, tmp_path / "own", bits=4, group_size=32, texts=TEXTS[:20]).drift
    assert some is not None and every is not None and own is not None
    assert 2 <= some.texts < 10 and every.texts == len(TEXTS) and own.texts == 20
    assert some.cosine_mean == pytest.approx(every.cosine_mean, abs=0.05)


def test_small_batches_and_blocks_change_nothing(
    tiny_mixtral: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[tuple[int, int]] = []
    options: dict[str, Any] = {"bits": 8, "group_size": 32}
    expected = convert(tiny_mixtral, tmp_path / "a", **options).drift
    monkeypatch.setattr(verification, "_BATCH_TOKENS", 300)
    monkeypatch.setattr(walking, "_BLOCK", 5 * 32)

    def progress(step: Any) -> None:
        if step.phase == "verify":
            steps.append((step.done, step.total))

    drift = convert(tiny_mixtral, tmp_path / "b", progress=progress, **options).drift
    assert drift is not None and expected is not None
    assert drift.cosine_mean == pytest.approx(expected.cosine_mean, abs=1e-5)
    assert len(steps) > 20 and steps == sorted(steps) and all(done <= total for done, total in steps)


def test_adapters_pass_by_too(tiny_mixtral: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tiny_mixtral, tmp_path / "adapter")
    report = convert(tiny_mixtral, tmp_path / "out", adapter=adapter, texts=TEXTS[:6])
    assert report.drift is not None and report.drift.cosine_worst > 0.99999


def test_what_cannot_be_walked_is_verified_in_memory(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: Any) -> Any:
        raise TypeError("no such argument")

    monkeypatch.setattr(walking.Walk, "states", fails)
    with caplog.at_level(logging.WARNING):
        drift = convert(tiny_model, tmp_path / "out", bits=8, group_size=32).drift
    assert "verified in memory" in caplog.text and drift is not None and drift.cosine_mean > 0.99


def test_an_interrupted_proof_leaves_nothing_that_looks_finished(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def progress(step: Any) -> None:
        if step.phase == "verify":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(tiny_model, tmp_path / "out", bits=4, group_size=32, progress=progress)
    assert not (tmp_path / "out").exists()
    report = convert(tiny_model, tmp_path / "out", bits=4, group_size=32)
    assert report.resumed and report.drift is not None


def test_the_plain_texts_are_embedded_as_documents(tmp_path: Path) -> None:
    source = sharded(GOLDEN / "mistral", tmp_path / "source")
    folder = Folder(source)
    plan, model = make_plan(folder)
    loaded = GritLM(source)
    rows = verification._rows(loaded.tokenizer, loaded.settings, TEXTS[:5], None)
    stream = Stream(plan, folder, model)
    outputs = next(verification._walked([(stream, model)], rows, loaded.settings, None, None, False))
    expected = outputs_of(loaded, TEXTS[:5])
    unit = outputs.vectors / np.linalg.norm(outputs.vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(unit, expected.vectors, atol=1e-5)
    assert outputs.log_probabilities is not None and expected.log_probabilities is not None
