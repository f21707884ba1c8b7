"""Against PEFT itself: the same numbers for what is accepted, and a refusal by name for the rest.

Skipped without the extra ``peft``, which brings PyTorch; a failure if GRIT_REQUIRE_PEFT is set, as in CI.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from grit_mlx.errors import AdapterError
from grit_mlx.model.adapters import AdapterLayout
from grit_mlx.model.attention import decoder_of, embedding_caches
from grit_mlx.model.loading import load, load_lazily
from grit_mlx.model.options import ModelChoice
from grit_mlx.training.adapters import attach_adapter, choose_keys, write_layout
from grit_mlx.training.arrays import named_arrays
from grit_mlx.training.peft import export_peft, import_peft

_load = importlib.import_module if os.environ.get("GRIT_REQUIRE_PEFT") else pytest.importorskip
torch: Any = _load("torch")
peft: Any = _load("peft")
transformers: Any = importlib.import_module("transformers")

IDS = [[1, 7, 20, 33, 90, 101, 55]]
TOLERANCE = 2e-5

ACCEPTED: dict[str, dict[str, Any]] = {
    "lora": {},
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True},
    "all linear layers": {"target_modules": "all-linear"},
    "ranks": {"rank_pattern": {"q_proj": 2, "layers.1.mlp.down_proj": 6}, "alpha_pattern": {"v_proj": 3}},
    "ranks and rslora": {"use_rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}},
    "ranks and dora": {"use_dora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}},
    "one module's rank": {"rank_pattern": {r"^model\.layers\.0\.self_attn\.q_proj": 2}},
    "one layer": {"layers_to_transform": [0]},
    "a regular expression": {"target_modules": r".*layers\.1\..*(q_proj|up_proj)"},
    "an exception": {"exclude_modules": ["layers.0.self_attn.q_proj"]},
    "gaussian": {"init_lora_weights": "gaussian"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
}
REFUSED: dict[str, dict[str, Any]] = {
    "init_lora_weights = 'pissa'": {"init_lora_weights": "pissa"},
    "init_lora_weights = 'olora'": {"init_lora_weights": "olora"},
    "modules_to_save": {"modules_to_save": ["lm_head"]},
    "bias = 'lora_only'": {"bias": "lora_only"},
    "lora_bias": {"lora_bias": True},
    "trainable_token_indices": {"trainable_token_indices": [3, 4]},
    "lora_embedding": {"target_modules": ["embed_tokens", "q_proj"]},
}


def made(model: Path, folder: Path, *, base_only: bool = False, **changes: Any) -> Any:
    """A PEFT adapter with random weights, and what it computes: logits, or the states of AutoModel."""
    kind = transformers.AutoModel if base_only else transformers.AutoModelForCausalLM
    config = {"r": 4, "lora_alpha": 10, "target_modules": ["q_proj", "v_proj", "down_proj"], **changes}
    adapted = peft.get_peft_model(kind.from_pretrained(model), peft.LoraConfig(**config)).eval()
    torch.manual_seed(3)
    for name, value in adapted.named_parameters():
        if "magnitude" in name:
            value.data *= 1 + 0.2 * torch.rand_like(value)
        elif "lora_" in name:
            torch.nn.init.normal_(value, std=0.1)
    adapted.save_pretrained(folder)
    with torch.no_grad():
        output = adapted(torch.tensor(IDS))
    return (output.last_hidden_state if base_only else output.logits).numpy()


def computed(model: Path, adapter: Path, *, base_only: bool = False) -> Any:
    loaded = load(ModelChoice(model, adapter=adapter), mode="generative").model
    if base_only:
        return np.array(decoder_of(loaded)(mx.array(IDS), cache=embedding_caches(len(loaded.layers), causal=True)))
    return np.array(loaded(mx.array(IDS)))


def in_peft(model: Path, adapter: Path) -> Any:
    base = transformers.AutoModelForCausalLM.from_pretrained(model)
    with torch.no_grad():
        return peft.PeftModel.from_pretrained(base, adapter).eval()(torch.tensor(IDS)).logits.numpy()


@pytest.mark.parametrize("kind", ACCEPTED)
def test_read_imported_and_exported(tiny_model: Path, tmp_path: Path, kind: str) -> None:
    expected = made(tiny_model, tmp_path / "peft", **ACCEPTED[kind])
    np.testing.assert_allclose(computed(tiny_model, tmp_path / "peft"), expected, atol=TOLERANCE)
    import_peft(tmp_path / "peft", tmp_path / "mlx", model=load_lazily(ModelChoice(tiny_model)))
    np.testing.assert_allclose(computed(tiny_model, tmp_path / "mlx"), expected, atol=TOLERANCE)
    export_peft(tmp_path / "mlx", tmp_path / "back", model=load_lazily(ModelChoice(tiny_model)))
    np.testing.assert_allclose(in_peft(tiny_model, tmp_path / "back"), expected, atol=TOLERANCE)


@pytest.mark.parametrize("changes", [{}, {"use_dora": True}, {"rank_pattern": {"q_proj": 2}}])
def test_adapters_of_auto_model(tiny_model: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    expected = made(tiny_model, tmp_path / "peft", base_only=True, **changes)
    np.testing.assert_allclose(computed(tiny_model, tmp_path / "peft", base_only=True), expected, atol=TOLERANCE)
    import_peft(tmp_path / "peft", tmp_path / "mlx", model=load_lazily(ModelChoice(tiny_model)))
    np.testing.assert_allclose(computed(tiny_model, tmp_path / "mlx", base_only=True), expected, atol=TOLERANCE)


@pytest.mark.parametrize("problem", REFUSED)
def test_what_cannot_be_computed_is_refused_by_name(tiny_model: Path, tmp_path: Path, problem: str) -> None:
    made(tiny_model, tmp_path / "peft", **REFUSED[problem])
    with pytest.raises(AdapterError, match=problem):
        computed(tiny_model, tmp_path / "peft")
    with pytest.raises(AdapterError, match=problem):
        import_peft(tmp_path / "peft", tmp_path / "mlx", model=load_lazily(ModelChoice(tiny_model)))


@pytest.mark.parametrize("router", [False, True])
def test_experts_are_exported(tiny_mixtral: Path, tmp_path: Path, router: bool) -> None:
    loaded = load(ModelChoice(tiny_mixtral)).model
    layout = AdapterLayout("lora", -1, 4, 2.5, 0.0, choose_keys(loaded, experts=True, router=router))
    attach_adapter(loaded, layout)
    mx.random.seed(0)
    weights = {name: mx.random.normal(one.shape) * 0.1 for name, one in named_arrays(loaded.trainable_parameters())}
    (tmp_path / "mlx").mkdir()
    mx.save_safetensors(str(tmp_path / "mlx" / "adapters.safetensors"), weights)
    write_layout(tmp_path / "mlx", layout, about={})
    export_peft(tmp_path / "mlx", tmp_path / "peft", model=load_lazily(ModelChoice(tiny_mixtral)))
    expected = computed(tiny_mixtral, tmp_path / "mlx")
    np.testing.assert_allclose(in_peft(tiny_mixtral, tmp_path / "peft"), expected, atol=TOLERANCE)
