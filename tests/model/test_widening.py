"""Weights that are widened while layers compute: the same numbers, gradients and errors as with all widened at load."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear
from mlx_lm.utils import quantize_model

from grit_mlx import GritLM
from grit_mlx.model import device, threads, widening
from grit_mlx.model.loading import load_lazily
from grit_mlx.model.options import ModelChoice

Copy = Callable[..., Path]

TEXTS = ["a keel", "wind leans on the sails of a ship", "bread rises", "x"]
AFFINE = [(bits, group) for bits in (2, 3, 4, 5, 6, 8) for group in (32, 64, 128)]


@pytest.fixture(autouse=True)
def _on_a_cpu() -> Any:
    if device.current_device().kind != "cpu":
        pytest.skip("weights are widened on a CPU only")


def widened(layer: nn.Module) -> nn.Module:
    holder = nn.Module()
    holder.layer = layer
    widening.prepare(holder)
    return layer


def dequantized(layer: Any) -> mx.array:
    """The weight in float32, as mlx says."""
    if "scales" not in layer:
        return layer.weight.astype(mx.float32)  # type: ignore[no-any-return]
    scales, biases = layer.scales, layer.get("biases")
    if layer.mode == "affine":
        scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
    kind: Any = {"group_size": layer.group_size, "bits": layer.bits, "mode": layer.mode}
    return mx.dequantize(layer.weight, scales, biases, **kind).astype(mx.float32)


def close(found: mx.array, expected: mx.array) -> None:
    assert found.shape == expected.shape and found.dtype == mx.float32
    scale = np.abs(np.array(expected)).max() or 1.0
    assert np.abs(np.array(found) - np.array(expected)).max() < 1e-5 * scale


@pytest.mark.parametrize(("bits", "group"), AFFINE)
@pytest.mark.parametrize("bias", [False, True])
def test_packed_products(bits: int, group: int, bias: bool) -> None:
    layer = nn.Linear(384, 50, bias=bias)
    layer.set_dtype(mx.bfloat16)
    packed: Any = layer.to_quantized(group, bits)
    weight, own = dequantized(packed), packed.bias.astype(mx.float32) if bias else 0
    for shape in ((384,), (1, 384), (2, 7, 384)):
        x = mx.random.normal(shape)
        close(widened(packed)(x), x @ weight.T + own)


@pytest.mark.parametrize(("mode", "bits", "group"), [("mxfp4", 4, 32), ("nvfp4", 4, 16), ("mxfp8", 8, 32)])
def test_packed_floats(mode: str, bits: int, group: int) -> None:
    packed: Any = nn.Linear(256, 40, bias=False).to_quantized(group, bits, mode)
    weight, x = dequantized(packed), mx.random.normal((5, 256))
    close(widened(packed)(x), x @ weight.T)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_half_precision(dtype: mx.Dtype) -> None:
    layer = nn.Linear(100, 30)
    layer.set_dtype(dtype)
    weight, bias = layer.weight.astype(mx.float32), layer.bias.astype(mx.float32)
    x = mx.random.normal((3, 100))
    close(widened(layer)(x.astype(dtype)), x.astype(dtype).astype(mx.float32) @ weight.T + bias)


def test_several_threads_and_blocks_compute_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    packed: Any = nn.Linear(512, 301, bias=False).to_quantized(64, 4)
    weight, x = dequantized(packed), mx.random.normal((6, 512))
    widened(packed)
    expected = packed(x)
    counts: list[int | None] = []
    monkeypatch.setattr(widening, "_SHARED_WORK", 1)
    monkeypatch.setattr(widening, "_BLOCK", 7 * 512)
    monkeypatch.setattr(widening, "numpy_threads", lambda count: counts.append(count) or 4)  # type: ignore[func-returns-value]
    close(packed(x), x @ weight.T)
    close(packed(x), expected)
    gradient: Any = mx.grad(lambda x: (packed(x) ** 2).sum())(x)
    close(gradient, 2 * (x @ weight.T) @ weight)
    assert counts[:2] == [1, 4]


def test_gradients_of_what_a_layer_is_given_and_of_its_weight() -> None:
    layer = nn.Linear(64, 24)
    layer.set_dtype(mx.bfloat16)
    reference = nn.Linear(64, 24)
    reference.update({name: value.astype(mx.float32) for name, value in layer.items()})
    x = mx.random.normal((2, 5, 64))

    def gradients(layer: nn.Module) -> Any:
        def loss(parameters: Any, x: mx.array) -> mx.array:
            layer.update(parameters)
            return mx.tanh(layer(x)).square().sum()

        return mx.grad(loss, argnums=(0, 1))(layer.trainable_parameters(), x)

    expected = gradients(reference)
    found = gradients(widened(layer))
    close(found[1], expected[1])
    for name in ("weight", "bias"):
        assert found[0][name].dtype == mx.bfloat16
        np.testing.assert_allclose(found[0][name].astype(mx.float32), expected[0][name], rtol=2e-2, atol=2e-2)


def test_gradients_pass_checkpoints_and_adapters() -> None:
    from mlx_lm.tuner.lora import LoRALinear

    packed: Any = nn.Linear(64, 64, bias=False).to_quantized(32, 4)
    weight = dequantized(packed)
    plain = nn.Linear(64, 64, bias=False)
    plain.weight = weight
    x = mx.random.normal((3, 64))
    found = []
    layers: Any = (plain, widened(packed))
    for layer in layers:
        mx.random.seed(3)
        tuned = LoRALinear.from_base(layer, r=4)
        tuned.lora_b = mx.random.normal(tuned.lora_b.shape)
        tuned.linear.freeze()
        inner = mx.checkpoint(lambda parameters, x, tuned=tuned: tuned.update(parameters)(x))
        loss = lambda parameters, x, inner=inner: inner(parameters, inner(parameters, x)).square().sum()  # noqa: E731
        found.append(mx.grad(loss, argnums=(0, 1))(tuned.trainable_parameters(), x))
    for name in ("lora_a", "lora_b"):
        close(found[1][0][name], found[0][0][name])
    close(found[1][1], found[0][1])


@pytest.mark.parametrize("kind", ["half", "packed"])
@pytest.mark.parametrize("count", [1, 3, 40])
def test_experts(kind: str, count: int) -> None:
    from mlx_lm.models.switch_layers import SwitchGLU

    model = SwitchGLU(64, 96, 5, bias=True)
    model.set_dtype(mx.bfloat16)
    if kind == "packed":
        nn.quantize(model, 32, 4, class_predicate=lambda _, module: isinstance(module, SwitchLinear))
    reference = SwitchGLU(64, 96, 5, bias=True)
    for name in ("gate_proj", "up_proj", "down_proj"):
        layer = model[name]
        assert isinstance(layer, QuantizedSwitchLinear) == (kind == "packed")
        reference[name].update({"weight": dequantized(layer), "bias": layer.bias.astype(mx.float32)})
    x = mx.random.normal((2, count, 64))
    indices = mx.random.randint(0, 5, (2, count, 2))
    expected, slope = reference(x, indices), mx.grad(lambda x: reference(x, indices).square().sum())(x)
    widening.prepare(model)
    close(model(x, indices), expected)
    close(mx.grad(lambda x: model(x, indices).square().sum())(x), slope)
    if kind == "half":
        wanted: Any = nn.value_and_grad(reference, lambda x: reference(x, indices).square().sum())(x)[1]
        found: Any = nn.value_and_grad(model, lambda x: model(x, indices).square().sum())(x)[1]
        for name in ("up_proj", "down_proj"):
            got, want = (np.array(one[name]["weight"].astype(mx.float32)) for one in (found, wanted))
            np.testing.assert_allclose(got, want, atol=2e-2 * np.abs(want).max())


def test_other_layers_become_float32_and_unknown_codes_stay() -> None:
    model = nn.Module()
    model.norm, model.table, model.rows = nn.RMSNorm(64), nn.Embedding(10, 64), nn.Embedding(10, 64)
    model.set_dtype(mx.bfloat16)
    model.rows = model.rows.to_quantized(32, 4)
    ids = mx.array([[1, 9], [3, 3]])
    table, rows = (dequantized(one) for one in (model.table, model.rows))
    widening.prepare(model)
    assert model.norm.weight.dtype == mx.float32 and model.table.weight.dtype == mx.bfloat16
    close(model.table(ids), table[ids])
    close(model.rows(ids), rows[ids])
    x = mx.random.normal((4, 64))
    close(model.table.as_linear(x), x @ table.T)
    close(model.rows.as_linear(x), x @ rows.T)


@pytest.fixture
def without_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which no model fits as float32."""
    monkeypatch.setattr("grit_mlx.model.loading._WIDENING_FRACTION", 0.0)


def quantized(source: Path, folder: Path, bits: int) -> Path:
    from mlx_lm.utils import load_model, save_model

    model, config = load_model(source)
    model.set_dtype(mx.bfloat16)
    model, config = quantize_model(model, config, 32, bits)
    folder.mkdir()
    save_model(folder, model, donate_model=True)
    for path in source.glob("*token*"):
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("blas", ["openblas", "bundled"])
@pytest.mark.parametrize("name", ["tiny_model", "tiny_mixtral"])
@pytest.mark.parametrize("bits", [4, 6, 16])
def test_a_model_computes_the_same(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, bits: int, blas: str
) -> None:
    source = request.getfixturevalue(name)
    folder = quantized(source, tmp_path / "model", bits) if bits < 16 else tmp_path / "half"
    if bits == 16:
        import shutil

        shutil.copytree(source, folder)
        tensors: Any = mx.load(str(source / "model.safetensors"))
        half = {key: value.astype(mx.bfloat16) for key, value in tensors.items()}
        (folder / "model.safetensors").unlink()
        mx.save_safetensors(str(folder / "model.safetensors"), half)
    wide = GritLM(folder)
    assert not widening.is_widened(wide.model)
    monkeypatch.setattr("grit_mlx.model.loading._WIDENING_FRACTION", 0.0)
    from dataclasses import replace

    here = replace(device.current_device(), blas=blas)
    monkeypatch.setattr(device, "current_device", lambda: here)
    narrow = GritLM(folder)
    assert widening.is_widened(narrow.model)
    np.testing.assert_allclose(narrow.encode(TEXTS), wide.encode(TEXTS), atol=1e-5)
    vectors, caches = narrow.encode(TEXTS, get_cache=True)
    assert vectors.dtype == np.float32 and caches[0][0].keys.dtype == mx.float32
    assert narrow.generate("Why?", max_tokens=8) == wide.generate("Why?", max_tokens=8)
    embeds = GritLM(folder, mode="embedding")
    np.testing.assert_allclose(embeds.encode(TEXTS), wide.encode(TEXTS), atol=1e-5)


@pytest.mark.usefixtures("without_room")
def test_it_is_told_and_shown_how_far_a_batch_is(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="grit_mlx"):
        model = GritLM(quantized(tiny_model, tmp_path / "model", 4))
    assert "each layer widens its own while it computes" in caplog.text
    seen: list[float] = []
    model.encode(TEXTS, progress=lambda done, _total: seen.append(done))
    assert seen == sorted(seen) and seen[-1] == len(TEXTS)
    assert len(seen) > 8 and 0 < seen[0] < 1


@pytest.mark.usefixtures("without_room")
def test_work_in_another_thread_stops_within_a_batch(tiny_model: Path, tmp_path: Path) -> None:
    model = GritLM(quantized(tiny_model, tmp_path / "model", 4))
    calls = []

    def check() -> None:
        calls.append(threading.current_thread().name)
        if len(calls) == 5:
            raise KeyboardInterrupt

    def work() -> None:
        with threads.stopped_by(check), pytest.raises(KeyboardInterrupt):
            model.encode(TEXTS)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert calls == ["grit-mlx"] * 5
    answer: Any = model.stream("Why?", max_tokens=50)
    next(answer)
    answer.close()
    assert model.generate("Why?", max_tokens=2)


@pytest.mark.usefixtures("without_room")
def test_only_as_many_layers_as_show_each_kind_are_checked(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from grit_mlx.model.attention import check_both_modes

    model = load_lazily(ModelChoice(tiny_model))
    count = len(model.layers)
    seen: set[int] = set()
    kind = type(model.layers[0])
    real = kind.__call__
    monkeypatch.setattr(kind, "__call__", lambda self, *a, **k: seen.add(id(self)) or real(self, *a, **k))  # type: ignore[func-returns-value]
    assert check_both_modes(model, vocabulary_size=300, briefly=True) == 32
    assert len(seen) == 1 and len(model.layers) == count
    seen.clear()
    model.layers[1].self_attn.is_sliding = True  # another kind
    check_both_modes(model, vocabulary_size=300, briefly=True)
    assert len(seen) == 2 and len(model.layers) == count
