"""Random checkpoints in Hugging Face's layout, of any size: written shard by shard, in little memory."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import grit_mlx  # noqa: F401 - before mlx, to load the fast BLAS

# isort: split
import mlx.core as mx
import numpy as np

TOKENIZER = Path(__file__).parents[1] / "tests" / "golden" / "mistral"
SHARD_BYTES = 400_000_000
VOCABULARY = 32000

# Small shapes, to compare conversions by.
SHAPES: dict[str, dict[str, Any]] = {
    "mistral": {"hidden_size": 2048, "intermediate_size": 5632, "num_attention_heads": 16, "num_key_value_heads": 4},
    "mixtral": {
        "hidden_size": 1024,
        "intermediate_size": 3584,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    },
}


def tensors(kind: str, shape: Mapping[str, Any], layers: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, width = shape["hidden_size"], shape["intermediate_size"]
    kv = hidden // shape["num_attention_heads"] * shape["num_key_value_heads"]
    yield "model.embed_tokens.weight", (VOCABULARY, hidden)
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        for name, rows in (("q", hidden), ("k", kv), ("v", kv), ("o", hidden)):
            yield f"{prefix}self_attn.{name}_proj.weight", (rows, hidden)
        if kind == "mistral":
            for name, size in (("gate", (width, hidden)), ("up", (width, hidden)), ("down", (hidden, width))):
                yield f"{prefix}mlp.{name}_proj.weight", size
        else:
            yield f"{prefix}block_sparse_moe.gate.weight", (shape["num_local_experts"], hidden)
            for expert in range(shape["num_local_experts"]):
                for name, size in (("w1", (width, hidden)), ("w2", (hidden, width)), ("w3", (width, hidden))):
                    yield f"{prefix}block_sparse_moe.experts.{expert}.{name}.weight", size
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"{prefix}{name}.weight", (hidden,)
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (VOCABULARY, hidden)


def count(kind: str, shape: Mapping[str, Any], layers: int) -> int:
    """How many weights a checkpoint has."""
    return sum(int(np.prod(size)) for _, size in tensors(kind, shape, layers))


def make_checkpoint(
    folder: Path, kind: str, shape: Mapping[str, Any], *, layers: int | None = None, size: float = 0
) -> int:
    """Write a checkpoint of so many layers, or of about ``size`` bytes, and return its exact size."""
    folder.mkdir(parents=True)
    for path in TOKENIZER.glob("tokenizer*"):
        shutil.copy(path, folder)
    if layers is None:
        fixed = 2 * count(kind, shape, 0)
        layers = max(1, round((size - fixed) / (2 * count(kind, shape, 1) - fixed)))
    config = {
        "architectures": [f"{kind.capitalize()}ForCausalLM"],
        "model_type": kind,
        **shape,
        "num_hidden_layers": layers,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    (folder / "config.json").write_text(json.dumps(config))
    noise = (np.random.default_rng(0).normal(0, 0.02, 1 << 22).astype(np.float32).view(np.uint32) >> 16).astype(
        np.uint16
    )
    groups: list[dict[str, tuple[int, ...]]] = [{}]
    filled = 0
    for name, rows in tensors(kind, shape, layers):
        nbytes = 2 * int(np.prod(rows))
        if groups[-1] and filled + nbytes > SHARD_BYTES:
            groups.append({})
            filled = 0
        groups[-1][name] = rows
        filled += nbytes
    total = 0
    index = {}
    for number, group in enumerate(groups, start=1):
        name = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        arrays = {key: mx.array(np.resize(noise, rows)).view(mx.bfloat16) for key, rows in group.items()}
        mx.save_safetensors(str(folder / name), arrays, {"format": "pt"})
        total += sum(array.nbytes for array in arrays.values())
        index.update(dict.fromkeys(group, name))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return total
