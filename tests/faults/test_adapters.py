"""Adapters and their bases: what is attached, imported or exported fits, is complete, and belongs to the model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.tuner.utils import linear_to_lora_layers
from mlx_lm.utils import quantize_model, save_config, save_model

from grit_mlx import GritLM
from grit_mlx.convert import convert
from grit_mlx.errors import AdapterError, GritError
from grit_mlx.model.adapters import AdapterLayout, attach, check_base, fingerprint, read_adapter
from grit_mlx.model.loading import load, load_lazily
from grit_mlx.model.options import ModelChoice
from grit_mlx.training.adapters import attach_adapter, choose_keys, write_layout
from grit_mlx.training.arrays import named_arrays
from grit_mlx.training.peft import export_peft, import_peft
from grit_mlx.training.scratch import copy_tokenizer, write_random_model

Copy = Callable[..., Path]
IDS = mx.array([[1, 20, 30, 40]])
TEXT = "A keel keeps a ship upright."


def adapter(folder: Path, model: Path, kind: str = "lora", *, base: bool = True, **changes: Any) -> dict[str, mx.array]:
    """An adapter folder as training writes it, with random weights."""
    loaded = load(ModelChoice(model))
    keys = choose_keys(loaded.model)
    values = {"num_layers": -1, "rank": 4, "scale": 2.5, "dropout": 0.0, "keys": keys, **changes}
    layout = AdapterLayout(fine_tune_type=kind, **values)
    about = {"model": str(model), "base_model": fingerprint(loaded.model, loaded.config)} if base else {}
    attach_adapter(loaded.model, layout)
    mx.random.seed(5)
    weights = {
        name: mx.random.normal(value.shape) * 0.1 + (value if name.endswith(".m") else 0)
        for name, value in named_arrays(loaded.model.trainable_parameters())
    }
    folder.mkdir(parents=True)
    mx.save_safetensors(str(folder / "adapters.safetensors"), weights)
    write_layout(folder, layout, about=about)
    return weights


def other(model: Path, folder: Path) -> Path:
    """A model of the same shape with other weights."""
    write_random_model(folder, config_path=model / "config.json", tokenizer=model, seed=9)
    return folder


def quantized(model: Path, folder: Path, bits: int) -> Path:
    loaded = load(ModelChoice(model, dtype="float32"))
    made, config = quantize_model(loaded.model, dict(loaded.config), group_size=32, bits=bits)
    folder.mkdir()
    save_model(folder, made)
    save_config(config, config_path=folder / "config.json")
    copy_tokenizer(model, folder)
    return folder


# The base


def test_an_adapter_knows_its_base(tiny_model: Path, tmp_path: Path) -> None:
    adapter(tmp_path / "a", tiny_model)
    stranger = other(tiny_model, tmp_path / "other")
    GritLM(tiny_model, adapter_path=tmp_path / "a")
    for use in (
        lambda: GritLM(stranger, adapter_path=tmp_path / "a"),
        lambda: convert(stranger, tmp_path / "fused", adapter=tmp_path / "a", verify=False),
        lambda: load_lazily(ModelChoice(stranger, adapter=tmp_path / "a")),
    ):
        with pytest.raises(AdapterError, match=rf"was trained on {tiny_model}, whose weights are not this model's"):
            use()


@pytest.mark.parametrize("bits", [3, 4, 6, 8])
def test_the_base_quantised_is_the_base(tiny_model: Path, tmp_path: Path, bits: int) -> None:
    packed = quantized(tiny_model, tmp_path / "q", bits)
    adapter(tmp_path / "a", tiny_model)
    adapter(tmp_path / "b", packed)
    for dtype in ("float32", "stored"):
        load(ModelChoice(packed, adapter=tmp_path / "a", dtype=dtype))
        load(ModelChoice(tiny_model, adapter=tmp_path / "b", dtype=dtype))
    stranger = quantized(other(tiny_model, tmp_path / "other"), tmp_path / "other-q", bits)
    with pytest.raises(AdapterError, match="whose weights are not this model's"):
        load(ModelChoice(stranger, adapter=tmp_path / "a"))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_base_in_another_dtype_is_the_base(tiny_model: Path, tmp_path: Path, dtype: str) -> None:
    adapter(tmp_path / "a", tiny_model)
    loaded = load(ModelChoice(tiny_model, dtype=dtype))
    check_base(read_adapter(tmp_path / "a"), loaded.model, loaded.config)


def test_the_base_that_the_adapter_names_is_used(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter(tmp_path / "a", tiny_model)
    assert GritLM(adapter_path=tmp_path / "a").folder == tiny_model
    config = tmp_path / "a" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "model": "nobody/nothing", "base_model": {}}))
    with pytest.raises(AdapterError, match="trained on nobody/nothing, which is not on this machine"):
        GritLM(adapter_path=tmp_path / "a")


# Complete, and of the right shape


@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize("lost", ["lora_b", "q_proj", "layers.1.", "every third"])
def test_incomplete_adapters_are_refused(tiny_model: Path, tmp_path: Path, kind: str, lost: str) -> None:
    weights = adapter(tmp_path / "a", tiny_model, kind)
    names = list(weights)[::3] if lost == "every third" else [name for name in weights if lost in name]
    kept = {name: value for name, value in weights.items() if name not in names}
    mx.save_safetensors(str(tmp_path / "a" / "adapters.safetensors"), kept)
    with pytest.raises(AdapterError, match=r"is incomplete: it lacks \d+ tensors, such as model\.layers"):
        GritLM(tiny_model, adapter_path=tmp_path / "a")
    with pytest.raises(AdapterError, match="is incomplete"):
        convert(tiny_model, tmp_path / "fused", adapter=tmp_path / "a", verify=False)


def test_another_shape_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    weights = adapter(tmp_path / "a", tiny_model, base=False)
    name = "model.layers.0.self_attn.q_proj.lora_b"
    mx.save_safetensors(str(tmp_path / "a" / "adapters.safetensors"), {**weights, name: mx.zeros((4, 16))})
    with pytest.raises(AdapterError, match=r"q_proj\.lora_b is \(4, 16\) where the model takes \(4, 32\)"):
        GritLM(tiny_model, adapter_path=tmp_path / "a")


# DoRA on bits that do not divide 32


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_dora_on_any_number_of_bits(tiny_model: Path, tmp_path: Path, bits: int) -> None:
    packed = quantized(tiny_model, tmp_path / "q", bits)
    adapter(tmp_path / "a", packed, "dora")
    wide, stored = (load(ModelChoice(packed, adapter=tmp_path / "a", dtype=kind)) for kind in ("float32", "stored"))
    np.testing.assert_allclose(stored.model(IDS), wide.model(IDS), atol=2e-3)
    report = convert(packed, tmp_path / "fused", adapter=tmp_path / "a", dequantize=True, verify=False)
    np.testing.assert_allclose(load(ModelChoice(report.folder)).model(IDS), wide.model(IDS), atol=1e-3)


# mlx_lm.lora's default adapter


def default_adapter(model: Path, folder: Path) -> dict[str, mx.array]:
    loaded = load(ModelChoice(model))
    parameters = {"rank": 8, "dropout": 0.0, "scale": 20.0}
    loaded.model.freeze()
    linear_to_lora_layers(loaded.model, 16, parameters)
    mx.random.seed(1)
    weights = {
        name: mx.random.normal(value.shape) * 0.05 for name, value in named_arrays(loaded.model.trainable_parameters())
    }
    folder.mkdir()
    mx.save_safetensors(str(folder / "adapters.safetensors"), weights)
    config = {"fine_tune_type": "lora", "num_layers": 16, "lora_parameters": parameters, "model": str(model)}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    loaded.model.load_weights(list(weights.items()), strict=False)
    return {"logits": loaded.model(IDS), **weights}


def test_mlx_lms_default_adapter(tiny_model: Path, tmp_path: Path) -> None:
    expected = default_adapter(tiny_model, tmp_path / "a")["logits"]
    loaded = load(ModelChoice(tiny_model, adapter=tmp_path / "a"))
    np.testing.assert_allclose(loaded.model(IDS), expected, atol=1e-5)
    export_peft(tmp_path / "a", tmp_path / "peft", model=load_lazily(ModelChoice(tiny_model)))
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert len(config["target_modules"]) == 7 and "self_attn.q_proj" in config["target_modules"]
    assert config["base_model_name_or_path"] == str(tiny_model)
    again = load(ModelChoice(tiny_model, adapter=tmp_path / "peft"))
    np.testing.assert_allclose(again.model(IDS), expected, atol=1e-5)


# PEFT's layout, wherever an adapter is named


def test_peft_folders_are_read_directly(tiny_model: Path, tmp_path: Path) -> None:
    adapter(tmp_path / "a", tiny_model)
    export_peft(tmp_path / "a", tmp_path / "peft", model=load_lazily(ModelChoice(tiny_model)))
    expected = GritLM(tiny_model, adapter_path=tmp_path / "a").encode(TEXT)
    np.testing.assert_array_equal(GritLM(tiny_model, adapter_path=tmp_path / "peft").encode(TEXT), expected)
    assert GritLM(adapter_path=tmp_path / "peft").folder == tiny_model
    fused = convert(tiny_model, tmp_path / "fused", adapter=tmp_path / "peft", verify=False).folder
    np.testing.assert_allclose(GritLM(fused).encode(TEXT), expected, atol=1e-5)


def test_peft_adapters_of_auto_model(tiny_model: Path, tmp_path: Path) -> None:
    """Embedders are trained on AutoModel, whose names lack their first part."""
    adapter(tmp_path / "a", tiny_model)
    export_peft(tmp_path / "a", tmp_path / "peft", model=load_lazily(ModelChoice(tiny_model)))
    path = tmp_path / "peft" / "adapter_model.safetensors"
    tensors: Any = mx.load(str(path))
    short = {name.replace("base_model.model.model.", "base_model.model."): value for name, value in tensors.items()}
    mx.eval(short)
    mx.save_safetensors(str(path), short)
    expected = GritLM(tiny_model, adapter_path=tmp_path / "a").encode(TEXT)
    np.testing.assert_array_equal(GritLM(tiny_model, adapter_path=tmp_path / "peft").encode(TEXT), expected)
    import_peft(tmp_path / "peft", tmp_path / "b", model=load_lazily(ModelChoice(tiny_model)))
    np.testing.assert_array_equal(GritLM(tiny_model, adapter_path=tmp_path / "b").encode(TEXT), expected)


def test_incomplete_peft_adapters_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    adapter(tmp_path / "a", tiny_model)
    export_peft(tmp_path / "a", tmp_path / "peft", model=load_lazily(ModelChoice(tiny_model)))
    path = tmp_path / "peft" / "adapter_model.safetensors"
    tensors: Any = mx.load(str(path))
    kept = {name: value for i, (name, value) in enumerate(sorted(tensors.items())) if i % 3}
    mx.eval(kept)
    mx.save_safetensors(str(path), kept)
    with pytest.raises(AdapterError, match="is incomplete"):
        GritLM(tiny_model, adapter_path=tmp_path / "peft")
    with pytest.raises(AdapterError, match="is incomplete"):
        import_peft(tmp_path / "peft", tmp_path / "b", model=load_lazily(ModelChoice(tiny_model)))
    assert not (tmp_path / "b").exists()


DAMAGE: dict[str, tuple[Callable[[mx.array], mx.array], str]] = {
    "NaN": (
        lambda value: value * float("nan"),
        r"damaged: .*lora_[ab] holds NaN or infinity. Copy or train the adapter",
    ),
    "whole numbers": (lambda value: value.astype(mx.int8), "PEFT adapter's .* holds whole numbers"),
    "turned": (lambda value: mx.contiguous(value.T), "do not fit each other"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_peft_adapters_are_named(name: str, tiny_model: Path, tmp_path: Path) -> None:
    change, message = DAMAGE[name]
    adapter(tmp_path / "a", tiny_model)
    export_peft(tmp_path / "a", tmp_path / "peft", model=load_lazily(ModelChoice(tiny_model)))
    path = tmp_path / "peft" / "adapter_model.safetensors"
    tensors: Any = mx.load(str(path))
    first = min(tensors)
    tensors[first] = change(tensors[first])
    mx.eval(tensors)
    mx.save_safetensors(str(path), tensors)
    with pytest.raises(GritError, match=message) as caught:
        GritLM(tiny_model, adapter_path=tmp_path / "peft")
    assert name != "NaN" or str(tmp_path / "peft") in str(caught.value)


# Fusing


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_fusing_a_mixture_in_half_precision(tiny_mixtral: Path, tmp_path: Path, dtype: str) -> None:
    half = convert(tiny_mixtral, tmp_path / "half", dtype=dtype, verify=False).folder
    (half / "generation_config.json").write_text('{"eos_token_id": 2, "temperature": 0.5}')
    keys = choose_keys(load(ModelChoice(half)).model, experts=True)
    adapter(tmp_path / "a", half, keys=keys)
    fused = convert(half, tmp_path / "fused", adapter=tmp_path / "a", dtype="stored", verify=False).folder
    tensors: Any = mx.load(str(fused / "model.safetensors"))
    assert {str(value.dtype) for value in tensors.values()} == {f"mlx.core.{dtype}"}
    assert json.loads((fused / "config.json").read_text())["torch_dtype"] == dtype
    assert json.loads((fused / "generation_config.json").read_text())["temperature"] == 0.5
    shutil.rmtree(half)
    assert GritLM(fused).encode(TEXT).shape == (32,)


def test_the_tensors_of_a_full_adapter_fit(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    mx.save_safetensors(str(folder / "adapters.safetensors"), {"model.norm.weight": mx.ones((7,))})
    (folder / "adapter_config.json").write_text('{"fine_tune_type": "full", "num_layers": 1, "lora_parameters": {}}')
    with pytest.raises(AdapterError, match=r"model\.norm\.weight is \(7,\) and the model takes \(32,\)"):
        attach(load(ModelChoice(tiny_model)).model, read_adapter(folder))
