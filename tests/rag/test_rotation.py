"""Keys that were moved equal keys that were computed at their new place."""

from __future__ import annotations

import importlib
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.models.cache import KVCache

from grit_mlx.errors import ArchitectureError
from grit_mlx.model.attention import document_caches
from grit_mlx.model.caches import split_rows
from grit_mlx.rag import Rotation

VOCABULARY = 96
BASE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rms_norm_eps": 1e-5,
    "vocab_size": VOCABULARY,
    "rope_theta": 10000.0,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "mixtral": {"num_local_experts": 4},
    "qwen2": {},
    "qwen3": {},
    "gemma": {},
    "gemma3_text": {"sliding_window": 4, "sliding_window_pattern": 2},
    "llama3-scaled": {
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    },
    "yarn-scaled": {
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    },
}


def make(kind: str) -> nn.Module:
    name = "llama" if kind.endswith("scaled") else kind
    module = importlib.import_module(f"mlx_lm.models.{name}")
    mx.random.seed(0)
    return module.Model(module.ModelArgs.from_dict({"model_type": name, **BASE, **KINDS[kind]}))  # type: ignore[no-any-return]


def computed(model: nn.Module, ids: mx.array, start: int) -> list[Any]:
    """Keys of each layer as its attention computes them at a place, all of the same states."""
    rotated = []
    for layer in model.layers:
        attention = layer.self_attn
        states = layer.input_layernorm(model.model.embed_tokens(ids))
        keys = attention.k_proj(states).reshape(1, ids.shape[1], 2, 8)
        if hasattr(attention, "k_norm"):
            keys = attention.k_norm(keys)
        kept = KVCache()
        kept.keys = attention.rope(keys.transpose(0, 2, 1, 3), offset=start)
        kept.values = kept.keys
        kept.offset = ids.shape[1]
        rotated.append(kept)
    return rotated


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("start", [1, 37, 4000])
def test_moved_keys_equal_computed_ones(kind: str, start: int) -> None:
    model = make(kind)
    ids = mx.array(np.random.default_rng(0).integers(0, VOCABULARY, (1, 24)))
    first, there = computed(model, ids, 0), computed(model, ids, start)
    moved: list[Any] = Rotation(model).moved(first, start)
    for layer, (was, made, expected) in enumerate(zip(first, moved, there, strict=True)):
        scale = float(mx.max(mx.abs(expected.keys)).item())  # type: ignore[arg-type]
        np.testing.assert_allclose(
            np.array(made.keys), np.array(expected.keys), atol=1e-5 * max(1.0, scale), err_msg=f"layer {layer}"
        )
        assert np.abs(np.array(was.keys) - np.array(expected.keys)).max() > 1e-3  # so that moving matters
        assert mx.array_equal(made.values, was.values)


def test_the_first_place_is_left_as_it_is() -> None:
    model = make("llama")
    caches = document_caches(2)
    model.model(mx.array([[1, 2, 3]]), cache=caches)
    (layers,) = split_rows(caches, [3])
    assert all(a is b for a, b in zip(Rotation(model).moved(layers, 0), layers, strict=True))


def test_a_rotation_that_depends_on_more_is_refused() -> None:
    model = make("llama")

    class Dynamic(nn.Module):
        """Scales with the length of the text."""

        def __call__(self, x: mx.array, offset: int = 0) -> mx.array:
            return mx.fast.rope(x, 8, traditional=False, base=1e4, scale=1 / (offset + x.shape[2]), offset=offset)

    model.layers[1].self_attn.rope = Dynamic()  # type: ignore[no-untyped-call]
    with pytest.raises(ArchitectureError, match="cannot be moved"):
        Rotation(model)
    del model.layers[1].self_attn.rope
    with pytest.raises(ArchitectureError, match="does not find the rotation"):
        Rotation(model)
