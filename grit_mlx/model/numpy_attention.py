"""Softmax through NumPy, for machines without a GPU.

On a CPU mlx computes exponentials one by one, which takes about half of the time that a small model needs for a text;
NumPy's are vectorised, five to ten times as fast. So attention's scores go through NumPy while texts are embedded. Only
then: a gradient cannot follow.

Shapes: B batch, H heads, K heads of keys and values, L length, D size of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from numpy.typing import NDArray

from grit_mlx.model.intercept import rebind
from grit_mlx.model.numpy_linear import embeds_through_numpy

__all__ = ["prepare"]


def prepare(module: nn.Module) -> None:
    """Let the attention of a module's layers compute its softmax through NumPy while texts are embedded."""
    rebind((layer for _, layer in module.named_modules()), "scaled_dot_product_attention", _attention)


def _attention(
    forward: Callable[..., mx.array],
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    cache: Any,
    scale: float,
    mask: Any,
    **others: Any,
) -> mx.array:
    """As mlx-lm's function: queries ``(B, H, L, D)``, keys and values ``(B, K, L, D)`` to ``(B, H, L, D)``."""
    masked = isinstance(mask, mx.array)
    usual = (mask is None or (masked and mask.dtype == mx.bool_)) and not others and not hasattr(cache, "bits")
    if not (usual and embeds_through_numpy() and queries.dtype == keys.dtype == mx.float32):
        return forward(queries, keys, values, cache, scale=scale, mask=mask, **others)
    batch, heads, length = queries.shape[:3]
    groups, keyed = keys.shape[1:3]
    # Heads with the same keys stand one below the other: one product instead of one for each.
    below = (batch, groups, heads // groups * length, -1)
    scores = (queries * scale).reshape(below) @ keys.swapaxes(-1, -2)
    if masked:
        scores = mx.where(mask, scores.reshape(batch, heads, length, keyed), mx.finfo(mx.float32).min).reshape(below)
    weights, sums = _exponentials(np.asarray(scores))
    return (mx.array(weights) @ values / mx.array(sums)).reshape(batch, heads, length, values.shape[-1])


def _exponentials(scores: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Of each row the exponentials of the distances to its largest score, and their sum ``(..., 1)``."""
    weights = np.empty_like(scores)
    for scores_of_one, weights_of_one in zip(scores, weights, strict=True):  # a text at a time stays in the caches
        np.subtract(scores_of_one, scores_of_one.max(axis=-1, keepdims=True), out=weights_of_one)
        np.exp(weights_of_one, out=weights_of_one)
    return weights, weights.sum(axis=-1, keepdims=True)
