"""What LoRA adapts, PEFT there and back."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.utils import load as mlx_lm_load
from mlx_lm.utils import quantize_model, save_config, save_model

from grit_mlx import GritLM
from grit_mlx.errors import AdapterError, ArgumentError, OutputError
from grit_mlx.model.adapters import attach, read_adapter
from grit_mlx.model.loading import load, load_lazily
from grit_mlx.model.options import ModelChoice
from grit_mlx.model.peft import from_peft, to_peft
from grit_mlx.training import adapters
from grit_mlx.training.adapters import AdapterLayout, attach_adapter, choose_keys, count_trainable
from grit_mlx.training.arrays import named_arrays
from grit_mlx.training.peft import export_peft, import_peft
from grit_mlx.training.scratch import copy_tokenizer

LINEAR = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
MLP = ("mlp.gate_proj", "mlp.down_proj", "mlp.up_proj")


def write_adapter(folder: Path, model: Path, kind: str = "lora", **changes: Any) -> dict[str, mx.array]:
    """An adapter with random weights in all its parts."""
    loaded = load(ModelChoice(model))
    experts = "switch" in str(changes.get("keys", ()))
    layout = AdapterLayout(
        **{
            "fine_tune_type": kind,
            "num_layers": -1,
            "rank": 4,
            "scale": 2.5,
            "dropout": 0.0,
            "keys": choose_keys(loaded.model, experts=experts),
            **changes,
        }
    )
    attach_adapter(loaded.model, layout)
    mx.random.seed(5)
    weights = {
        name: mx.random.normal(value.shape) * 0.1 + (value if name.endswith(".m") else 0)
        for name, value in named_arrays(loaded.model.trainable_parameters())
    }
    folder.mkdir(parents=True, exist_ok=True)
    mx.save_safetensors(str(folder / "adapters.safetensors"), weights)
    adapters.write_layout(folder, layout, about={"model": str(model)})
    return weights


def made_layout(folder: Path) -> AdapterLayout:
    layout = read_adapter(folder).layout
    assert layout is not None
    return layout


def quantized(model: Path, folder: Path, bits: int) -> Path:
    loaded = load(ModelChoice(model, dtype="float32"))
    made, config = quantize_model(loaded.model, dict(loaded.config), group_size=32, bits=bits)
    folder.mkdir()
    save_model(folder, made)
    save_config(config, config_path=folder / "config.json")
    copy_tokenizer(model, folder)
    return folder


def test_routers_and_experts_only_when_asked(tiny_model: Path, tiny_mixtral: Path) -> None:
    assert set(choose_keys(load(ModelChoice(tiny_model)).model)) == {*LINEAR, *MLP}
    mixtral = load(ModelChoice(tiny_mixtral)).model
    assert set(choose_keys(mixtral)) == set(LINEAR)
    experts = {f"block_sparse_moe.switch_mlp.{name}_proj" for name in ("gate", "down", "up")}
    assert set(choose_keys(mixtral, experts=True)) == {*LINEAR, *experts}
    assert set(choose_keys(mixtral, router=True)) == {*LINEAR, "block_sparse_moe.gate"}
    for name, asked in (("adapt_experts", {"experts": True}), ("adapt_router", {"router": True})):
        with pytest.raises(ArgumentError, match=f"{name}=True is for mixtures of experts, and this model is not one"):
            choose_keys(load(ModelChoice(tiny_model)).model, **asked)
    attach_adapter(mixtral, AdapterLayout("lora", -1, 4, 1.0, 0.0, choose_keys(mixtral)))
    assert all("self_attn" in name and "lora_" in name for name, _ in named_arrays(mixtral.trainable_parameters()))
    found = count_trainable(mixtral)
    assert found[0] == 2 * 4 * 2 * (32 + 32 + 32 + 16) and 0 < found[0] < found[1] / 5


def test_layer_selection(tiny_model: Path) -> None:
    model = load(ModelChoice(tiny_model)).model
    attach_adapter(model, AdapterLayout("lora", 1, 4, 1.0, 0.0, ("self_attn.q_proj",)))
    assert {name.split(".")[2] for name, _ in named_arrays(model.trainable_parameters())} == {"1"}
    with pytest.raises(ArgumentError, match=r"no layer 'self_attn.x' to adapt: there are self_attn\."):
        attach_adapter(load(ModelChoice(tiny_model)).model, AdapterLayout("lora", -1, 4, 1.0, 0.0, ("self_attn.x",)))
    with pytest.raises(ArgumentError, match="num_layers=3 exceeds the model's 2 blocks"):
        attach_adapter(load(ModelChoice(tiny_model)).model, AdapterLayout("lora", 3, 4, 1.0, 0.0, LINEAR))
    full = load(ModelChoice(tiny_model)).model
    adapters.unfreeze_for_full(full, 1)
    assert all(name.startswith("model.layers.1.") for name, _ in named_arrays(full.trainable_parameters()))


def test_frozen_modules_stay_as_they_are(tiny_model: Path) -> None:
    model = load(ModelChoice(tiny_model)).model
    adapters.unfreeze_for_full(model, -1, ["model.norm", "model.layers.*.mlp"])
    left = {name for name, _ in named_arrays(model.parameters())}
    left -= {name for name, _ in named_arrays(model.trainable_parameters())}
    assert left == {name for name in left if name.startswith("model.norm.") or ".mlp." in name}
    assert "model.norm.weight" in left and sum(".mlp." in name for name in left) == 2 * 3
    adapters.unfreeze_for_full(model, 1, ["model.layers.1.mlp"])
    assert not any(".mlp." in name for name, _ in named_arrays(model.trainable_parameters()))
    with pytest.raises(ArgumentError, match=r"frozen names 'model\.norms', which is not a module of this model"):
        adapters.unfreeze_for_full(model, -1, ["model.norms"])


EXPERT_KEYS = ("self_attn.q_proj", "block_sparse_moe.switch_mlp.gate_proj", "block_sparse_moe.switch_mlp.down_proj")


@pytest.mark.parametrize("kind", ["lora", "dora", "one layer", "experts"])
def test_peft_there_and_back_is_exact(tiny_model: Path, tiny_mixtral: Path, tmp_path: Path, kind: str) -> None:
    by_kind: dict[str, dict[str, Any]] = {"one layer": {"num_layers": 1}, "experts": {"keys": EXPERT_KEYS}}
    changes = by_kind.get(kind, {})
    model = tiny_mixtral if kind == "experts" else tiny_model
    weights = write_adapter(tmp_path / "a", model, kind if kind == "dora" else "lora", **changes)
    export_peft(tmp_path / "a", tmp_path / "peft", base="base", model=load_lazily(ModelChoice(model)))
    import_peft(tmp_path / "peft", tmp_path / "b", model=load_lazily(ModelChoice(model)))
    layouts: list[Any] = [read_adapter(tmp_path / name).layout for name in "ab"]
    assert set(layouts[0].keys) == set(layouts[1].keys)
    assert [(one.rank, one.scale, one.num_layers, one.fine_tune_type) for one in layouts[:1]] == [
        (one.rank, one.scale, one.num_layers, one.fine_tune_type) for one in layouts[1:]
    ]
    back = read_adapter(tmp_path / "b").weights
    assert back.keys() == weights.keys()
    assert all(mx.array_equal(back[name], value).item() for name, value in weights.items())
    text = ["A keel keeps a ship upright."]
    vectors = [GritLM(model, adapter_path=tmp_path / name).encode(text) for name in "ab"]
    np.testing.assert_array_equal(*vectors)


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_peft_names_and_formula(tiny_model: Path, tmp_path: Path, kind: str) -> None:
    """Not only its own inverse: PEFT's names, shapes and W + alpha / r B A, which DoRA gives rows of length m."""
    weights = write_adapter(tmp_path / "a", tiny_model, kind, keys=("self_attn.q_proj",))
    config, tensors = to_peft(made_layout(tmp_path / "a"), weights, base="base", layers=2)
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (4, 10, ["self_attn.q_proj"])
    name = "base_model.model.model.layers.1.self_attn.q_proj"
    a, b = (np.array(tensors[f"{name}.lora_{letter}.weight"], dtype=np.float64) for letter in "AB")
    assert a.shape == (4, 32) and b.shape == (32, 4)
    loaded = load(ModelChoice(tiny_model, adapter=tmp_path / "a"))
    layer = loaded.model.layers[1].self_attn.q_proj
    x = np.random.default_rng(0).normal(size=(3, 32))
    adapted = np.array(layer.linear.weight, dtype=np.float64) + config["lora_alpha"] / config["r"] * b @ a
    assert config["use_dora"] == (kind == "dora")
    if kind == "dora":
        magnitude = np.array(tensors[f"{name}.lora_magnitude_vector.weight"], dtype=np.float64)
        adapted *= magnitude[:, None] / np.linalg.norm(adapted, axis=1, keepdims=True)
    np.testing.assert_allclose(layer(mx.array(x.astype(np.float32))), x @ adapted.T, atol=1e-4)


@pytest.mark.parametrize(
    ("config", "name", "message"),
    [
        ({"peft_type": "IA3"}, None, "peft_type = 'IA3'"),
        ({"bias": "all"}, None, "bias = 'all'"),
        ({"modules_to_save": ["embed_tokens"]}, None, r"modules_to_save = \['embed_tokens'\]"),
        ({"init_lora_weights": "pissa"}, None, "'pissa' cannot be used: it also changes the weights"),
        ({"init_lora_weights": "pissa_niter_16"}, None, "pissa_niter_16"),
        ({"init_lora_weights": "olora"}, None, "olora"),
        ({"target_parameters": ["mlp.experts.down_proj"]}, None, "target_parameters"),
        ({"trainable_token_indices": [1]}, None, "trainable_token_indices"),
        ({"use_qalora": True}, None, "use_qalora"),
        ({"lora_bias": True}, None, "lora_bias"),
        ({"something_new": {"a": 1}}, None, "something_new"),
        ({}, "base_model.model.model.embed_tokens.lora_embedding_A", "is not one of a LoRA or DoRA layer"),
        ({}, "base_model.model.model.norm.lora_A.weight", "adapts model.norm; only layers of the blocks"),
    ],
)
def test_peft_adapters_that_cannot_be_used(config: dict[str, Any], name: str | None, message: str) -> None:
    name = name or "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    with pytest.raises(AdapterError, match=message):
        from_peft({"peft_type": "LORA", "r": 4, **config}, {name: mx.zeros((4, 32))}, layers=2)


@pytest.mark.parametrize(("scale", "rank"), [(0.1, 3), (2.7, 7), (16 / 3, 3), (2.0, 64), (0.3, 10)])
def test_the_strength_comes_back_exactly(scale: float, rank: int) -> None:
    weights = {"model.layers.0.self_attn.q_proj.lora_a": mx.zeros((32, rank))}
    layout = AdapterLayout("lora", -1, rank, scale, 0.0, ("self_attn.q_proj",))
    config, tensors = to_peft(layout, weights, base="base", layers=2)
    assert from_peft(config, tensors, layers=2)[0].scale == scale


def test_peft_config_variants() -> None:
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight"
    config = {"r": 4, "lora_alpha": 8, "use_rslora": True}
    layout, weights = from_peft(config, {name: mx.zeros((4, 32))}, layers=2)
    assert layout.scale == 4.0 and weights["model.layers.0.self_attn.q_proj.lora_a"].shape == (32, 4)


def test_a_full_disk(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing incomplete is left where a model or an adapter is looked for."""
    write_adapter(tmp_path / "a", tiny_model)
    export_peft(tmp_path / "a", tmp_path / "peft", base="base", model=load_lazily(ModelChoice(tiny_model)))

    def full(path: str, *_arguments: Any, **_options: Any) -> None:
        Path(path).write_bytes(b"x" * 100)

    monkeypatch.setattr(mx, "save_safetensors", full)
    writers: tuple[Callable[[Path], None], ...] = (
        lambda folder: export_peft(tmp_path / "a", folder, model=load_lazily(ModelChoice(tiny_model))),
        lambda folder: import_peft(tmp_path / "peft", folder, model=load_lazily(ModelChoice(tiny_model))),
    )
    for write in writers:
        with pytest.raises(OutputError, match=r"Cannot write .*full: the disk is full\. Make room"):
            write(tmp_path / "full")
        assert not list(tmp_path.glob("full/*config.json")) and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("kind", ["lora", "dora", "one layer", "experts"])
def test_mlx_lm_loads_our_adapters(tiny_model: Path, tiny_mixtral: Path, tmp_path: Path, kind: str) -> None:
    by_kind: dict[str, dict[str, Any]] = {"one layer": {"num_layers": 1}, "experts": {"keys": EXPERT_KEYS}}
    model = tiny_mixtral if kind == "experts" else tiny_model
    write_adapter(tmp_path / "a", model, kind if kind == "dora" else "lora", **by_kind.get(kind, {}))
    theirs = mlx_lm_load(str(model), adapter_path=str(tmp_path / "a"))[0]
    ours = load(ModelChoice(model, adapter=tmp_path / "a")).model
    ids = mx.array([[1, 20, 30, 40]])
    np.testing.assert_allclose(theirs(ids), ours(ids), atol=1e-5)


def test_mlx_lms_command_takes_our_adapters(tiny_model: Path, tmp_path: Path) -> None:
    write_adapter(tmp_path / "a", tiny_model)
    command = [sys.executable, "-m", "mlx_lm", "generate", "--model", str(tiny_model)]
    command += [
        "--adapter-path",
        str(tmp_path / "a"),
        "--prompt",
        "Hello",
        "--max-tokens",
        "3",
        "--ignore-chat-template",
    ]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert found.returncode == 0, found.stderr


def test_wrong_adapters(tiny_model: Path, tiny_mixtral: Path, tmp_path: Path) -> None:
    write_adapter(tmp_path / "a", tiny_model)
    with pytest.raises(
        AdapterError, match=r"the model has no layer model\.layers\.\d\.mlp\.\w+ .*Use it with the model"
    ):
        attach(load(ModelChoice(tiny_mixtral)).model, read_adapter(tmp_path / "a"))
    with pytest.raises(AdapterError, match="is not an adapter folder"):
        read_adapter(tmp_path)
    (tmp_path / "a" / "adapter_config.json").write_text("{}")
    with pytest.raises(AdapterError, match="does not describe an adapter of mlx-lm or PEFT: KeyError"):
        read_adapter(tmp_path / "a")


def test_quantised_weights_cannot_be_trained_in_full(tiny_model: Path, tmp_path: Path) -> None:
    model = load(ModelChoice(quantized(tiny_model, tmp_path / "q", bits=8), dtype="stored")).model
    assert any(isinstance(module, nn.QuantizedLinear) for _, module in model.named_modules())
    with pytest.raises(ArgumentError, match="Quantised weights cannot be trained in full"):
        adapters.unfreeze_for_full(model, -1)
