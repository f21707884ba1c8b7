"""Weights that AutoAWQ has quantised are read, as mlx-lm does it; GPTQ's, which only look like them, are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from numpy.typing import NDArray

from grit_mlx import GritLM
from grit_mlx.errors import CheckpointError
from tests.convert.conftest import checkpoint_of
from tests.gguf_files import load

CONFIG: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "vocab_size": 384,
    "tie_word_embeddings": False,
}
GROUP = 32
# AutoAWQ's order of eight codes in a word, lowest bits first.
ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


def packed(codes: NDArray[np.uint8], order: list[int], axis: int) -> NDArray[np.int32]:
    moved = np.moveaxis(codes, axis, -1)
    words = moved.reshape(*moved.shape[:-1], -1, 8)[..., order].astype(np.uint32)
    return np.moveaxis(
        (words << np.arange(0, 32, 4, dtype=np.uint32)).sum(-1).astype(np.uint32).view(np.int32), -1, axis
    )


def quantised(source: Path, folder: Path, method: str, *, order_of_groups: bool = False) -> dict[str, NDArray[Any]]:
    """A checkpoint as AutoAWQ or AutoGPTQ writes it; returns what it stands for."""
    stored: dict[str, NDArray[Any]] = {}
    dense: dict[str, NDArray[Any]] = {}
    for name, array in load(source).items():
        if not name.endswith("proj.weight"):
            stored[name] = array.astype(np.float16)
            dense[name] = stored[name].astype(np.float32)
            continue
        groups = array.T.reshape(-1, GROUP, array.shape[0])  # (groups, GROUP, outputs)
        low, high = groups.min(1), groups.max(1)
        scales = ((high - low) / 15).astype(np.float16)
        wide = scales.astype(np.float32)
        zeros = np.clip(np.round(-low / wide), 0, 15).astype(np.uint8)
        codes = np.clip(np.round(groups / wide[:, None]) + zeros[:, None], 0, 15).astype(np.uint8)
        dense[name] = ((codes.astype(np.float32) - zeros[:, None]) * wide[:, None]).reshape(array.T.shape).T.copy()
        module, flat = name.removesuffix(".weight"), codes.reshape(array.T.shape)
        awq = method == "awq"
        stored[f"{module}.qweight"] = packed(flat, ORDER if awq else list(range(8)), 1 if awq else 0)
        stored[f"{module}.qzeros"] = packed(zeros, ORDER if awq else list(range(8)), 1)
        stored[f"{module}.scales"] = scales
        if order_of_groups:
            stored[f"{module}.g_idx"] = np.arange(array.shape[1], dtype=np.int32) // GROUP
    shutil.copytree(source, folder)
    for path in folder.glob("model*"):
        path.unlink()
    mx.save_safetensors(str(folder / "model.safetensors"), {name: mx.array(array) for name, array in stored.items()})
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "quantization_config": {"quant_method": method, "bits": 4, "group_size": GROUP},
        "torch_dtype": "float16",
    }
    (folder / "config.json").write_text(json.dumps(config))
    return dense


def test_awq(tiny_model: Path, tmp_path: Path) -> None:
    source = checkpoint_of("llama", CONFIG, tmp_path / "source", tiny_model)
    dense = quantised(source, tmp_path / "awq", "awq")
    reference = GritLM(source, dtype="float32").model
    reference.load_weights([(name, mx.array(array)) for name, array in dense.items()])
    ids = mx.array([[1, 5, 9, 44, 300]])
    found = GritLM(tmp_path / "awq", dtype="float32").model(ids)
    # Minima are rounded to half precision.
    np.testing.assert_allclose(np.array(found), np.array(reference(ids)), atol=3e-3)
    assert GritLM(tmp_path / "awq").encode("x").shape == (64,)


@pytest.mark.parametrize("order_of_groups", [False, True])
def test_gptq(tiny_model: Path, tmp_path: Path, order_of_groups: bool) -> None:
    source = checkpoint_of("llama", CONFIG, tmp_path / "source", tiny_model)
    quantised(source, tmp_path / "gptq", "gptq", order_of_groups=order_of_groups)
    with pytest.raises(CheckpointError, match=r"quantised with gptq, which mlx-lm cannot read.*original checkpoint"):
        GritLM(tmp_path / "gptq")
