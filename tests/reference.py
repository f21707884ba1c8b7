"""Mistral and Mixtral in NumPy, float64: an implementation of nothing but the formulas, to test ours against.

It shares no code with mlx or mlx-lm, and is itself tested against outputs of the official GritLM
(test_golden.py). Shapes: L length, H heads, D head size, E hidden size, V vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def load_weights(folder: Path) -> dict[str, Array]:
    """All tensors of a folder's safetensors files (F32 or BF16), as float64."""
    weights: dict[str, Array] = {}
    for path in sorted(folder.glob("model*.safetensors")):
        data = path.read_bytes()
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            start, end = (8 + length + offset for offset in entry["data_offsets"])
            if entry["dtype"] == "BF16":  # the upper half of a float32
                halves = np.frombuffer(data[start:end], dtype=np.uint16).astype(np.uint32)
                values = (halves << 16).view(np.float32)
            else:
                values = np.frombuffer(data[start:end], dtype=np.float32)
            weights[name] = values.reshape(entry["shape"]).astype(np.float64)
    return weights


def states(
    weights: Mapping[str, Array],
    config: Mapping[str, Any],
    ids: list[int],
    *,
    causal: bool,
    seen: NDArray[np.bool_] | None = None,
    positions: NDArray[np.int64] | None = None,
) -> Array:
    """Normed hidden states (L, E) of one sequence; ``seen`` (L, L) says who sees whom in place of ``causal``."""
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    size = config["hidden_size"] // heads
    length = len(ids)
    h = weights["model.embed_tokens.weight"][ids]
    if seen is None:
        seen = np.tril(np.ones((length, length), dtype=bool)) if causal else np.ones((length, length), dtype=bool)
    positions = np.arange(length) if positions is None else positions
    for layer in range(config["num_hidden_layers"]):
        w = _below(weights, f"model.layers.{layer}.")
        x = _norm(h, w["input_layernorm.weight"], config["rms_norm_eps"])
        q, k, v = (
            (x @ w[f"self_attn.{name}_proj.weight"].T).reshape(length, -1, size).transpose(1, 0, 2) for name in "qkv"
        )  # (heads, L, D)
        q, k = (_rotate(part, config["rope_theta"], positions) for part in (q, k))
        k, v = (np.repeat(part, heads // kv_heads, axis=0) for part in (k, v))
        scores = np.where(seen, q @ k.transpose(0, 2, 1) / np.sqrt(size), -np.inf)
        attended = (_softmax(scores) @ v).transpose(1, 0, 2).reshape(length, -1)
        h = h + attended @ w["self_attn.o_proj.weight"].T
        x = _norm(h, w["post_attention_layernorm.weight"], config["rms_norm_eps"])
        h = h + (_experts(x, w, config) if "num_local_experts" in config else _feed_forward(x, w, "mlp.", MISTRAL))
    return _norm(h, weights["model.norm.weight"], config["rms_norm_eps"])


def logits(weights: Mapping[str, Array], config: Mapping[str, Any], ids: list[int]) -> Array:
    """Logits (L, V) of one sequence, causal."""
    return states(weights, config, ids, causal=True) @ weights["lm_head.weight"].T


def cached_logits(
    weights: Mapping[str, Array],
    config: Mapping[str, Any],
    texts: list[list[int]],
    ids: list[int],
    *,
    consecutive: bool,
) -> Array:
    """Logits (L, V) of ``ids`` that continue texts which were cached: each of these sees itself alone, and whole.

    Args:
        texts: the tokens of the cached texts.
        ids: what follows them.
        consecutive: whether each text stands after the one before; else all begin at position 0, as officially.
    """
    lengths = [*map(len, texts), len(ids)]
    held, total = sum(lengths[:-1]), sum(lengths)
    seen = np.zeros((total, total), dtype=bool)
    positions = np.arange(total)
    for i, length in enumerate(lengths[:-1]):
        start = sum(lengths[:i])
        seen[start : start + length, start : start + length] = True
        if not consecutive:
            positions[start : start + length] = np.arange(length)
    seen[held:] = np.tril(np.ones((total, total), dtype=bool))[held:]
    whole = [token for text in texts for token in text] + ids
    h = states(weights, config, whole, causal=True, seen=seen, positions=positions)
    return h[held:] @ weights["lm_head.weight"].T


def greedy(weights: Mapping[str, Array], config: Mapping[str, Any], ids: list[int], count: int) -> list[int]:
    """The likeliest ``count`` tokens after ``ids``, one by one."""
    ids = list(ids)
    for _ in range(count):
        ids.append(int(logits(weights, config, ids)[-1].argmax()))
    return ids[-count:]


def embed(
    weights: Mapping[str, Array],
    config: Mapping[str, Any],
    ids: list[int],
    *,
    skipped: int = 0,
    causal: bool = False,
    pooling: str = "mean",
    normalized: bool = True,
) -> Array:
    """The vector (E,) of one sequence whose first ``skipped`` tokens are the instruction."""
    h = states(weights, config, ids, causal=causal)
    if pooling == "mean":
        vector: Array = h[skipped:].mean(axis=0)
    elif pooling == "weightedmean":
        counts = np.arange(1, len(ids) - skipped + 1)
        vector = counts @ h[skipped:] / counts.sum()
    else:
        vector = h[{"lasttoken": -1, "cls": 0}[pooling]]
    return vector / np.linalg.norm(vector) if normalized else vector


MISTRAL = ("gate_proj", "down_proj", "up_proj")
MIXTRAL = ("w1", "w2", "w3")


def _feed_forward(x: Array, w: Mapping[str, Array], prefix: str, names: tuple[str, str, str]) -> Array:
    gate, down, up = (w[f"{prefix}{name}.weight"].T for name in names)
    gated = x @ gate
    return (gated / (1 + np.exp(-gated)) * (x @ up)) @ down  # type: ignore[no-any-return]


def _experts(x: Array, w: Mapping[str, Array], config: Mapping[str, Any]) -> Array:
    scores = x @ w["block_sparse_moe.gate.weight"].T
    chosen = np.argsort(-scores, axis=-1)[:, : config["num_experts_per_tok"]]
    out = np.zeros_like(x)
    for token, experts in enumerate(chosen):
        shares = _softmax(scores[token, experts])
        for share, expert in zip(shares, experts, strict=True):
            prefix = f"block_sparse_moe.experts.{expert}."
            out[token] += share * _feed_forward(x[token], w, prefix, MIXTRAL)
    return out


def _rotate(x: Array, theta: float, positions: NDArray[np.int64]) -> Array:
    """Rotary positions, the half-split form of Hugging Face's checkpoints; x is (heads, L, D)."""
    half = x.shape[-1] // 2
    angles = positions[:, None] / theta ** (np.arange(half) / half)
    first, second = x[..., :half], x[..., half:]
    return np.concatenate(
        [first * np.cos(angles) - second * np.sin(angles), second * np.cos(angles) + first * np.sin(angles)], axis=-1
    )


def _norm(x: Array, weight: Array, eps: float) -> Array:
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + eps) * weight  # type: ignore[no-any-return]


def _softmax(x: Array) -> Array:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)  # type: ignore[no-any-return]


def _below(weights: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    return {name[len(prefix) :]: value for name, value in weights.items() if name.startswith(prefix)}
