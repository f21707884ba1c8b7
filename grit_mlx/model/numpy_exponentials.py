"""Softmax and SwiGLU through NumPy, for machines without a GPU.

On a CPU mlx computes exponentials one by one, which takes about half of the time that a small model needs for a text;
NumPy's are vectorised, five to ten times as fast. So attention's scores and the gates of feed-forward layers go through
NumPy while texts are embedded and answers are generated. Only then: a gradient cannot follow.

Shapes: B batch, H heads, K heads of keys and values, L length, D size of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from numpy.typing import NDArray

from grit_mlx.model import threads
from grit_mlx.model.intercept import rebind
from grit_mlx.model.numpy_linear import computes_through_numpy

__all__ = ["prepare"]

# Exponentials below which a call is not worth interrupting mlx's own work for, as for a single token.
_WORTHWHILE = 8192
# Rows of causal attention that are computed together: what they may not see is left out from there on.
_CAUSAL_ROWS = 256
# Scores that are held at once.
_SCORES = 1 << 24
# Gates that are computed together, which stays in the processor's cache.
_GATES = 1 << 17


def prepare(module: nn.Module) -> None:
    """Let a module's layers compute their exponentials through NumPy where no gradient follows."""
    rebind((layer for _, layer in module.named_modules()), "scaled_dot_product_attention", _attention)
    rebind((layer for _, layer in module.named_modules()), "swiglu", _swiglu)


def _swiglu(forward: Callable[..., mx.array], gate: mx.array, x: mx.array) -> mx.array:
    """As mlx-lm's function: two arrays of one shape."""
    if not computes_through_numpy() or gate.size < _WORTHWHILE or not gate.dtype == x.dtype == mx.float32:
        return forward(gate, x)
    gates, values = np.asarray(gate).reshape(-1), np.asarray(x).reshape(-1)
    result = np.empty_like(gates)
    with np.errstate(over="ignore"):  # of the exponential, whose inverse is then 0, as it should be
        for start in range(0, len(result), _GATES):
            part = slice(start, start + _GATES)
            out = np.negative(gates[part], out=result[part])
            np.exp(out, out=out)
            out += 1
            np.divide(gates[part], out, out=out)
            out *= values[part]
    return mx.array(result).reshape(gate.shape)


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
    """As mlx-lm's function: queries ``(B, H, L, D)``, keys and values ``(B, K, M, D)`` to ``(B, H, L, D)``."""
    if hasattr(cache, "bits"):  # packed keys are no array
        return forward(queries, keys, values, cache, scale=scale, mask=mask, **others)
    batch, heads, length = queries.shape[:3]
    groups, keyed = keys.shape[1:3]
    causal = isinstance(mask, str) and mask == "causal"
    usual = mask is None or causal or (isinstance(mask, mx.array) and mask.dtype == mx.bool_)
    plain = usual and not others and queries.dtype == keys.dtype == mx.float32
    if not (plain and computes_through_numpy() and batch * heads * length * keyed >= _WORTHWHILE):
        return forward(queries, keys, values, cache, scale=scale, mask=mask, **others)
    rows = min(_CAUSAL_ROWS if causal else length, max(1, _SCORES // (batch * heads * keyed)))
    parts, pulse = [], threads.pulse()
    for start, stop, seen in _parts(length, keyed, rows, causal):
        pulse()
        # Heads with the same keys stand one below the other: one product instead of one for each.
        below = (batch, groups, heads // groups * (stop - start), -1)
        scores = (queries[:, :, start:stop] * scale).reshape(below) @ keys[:, :, :seen].swapaxes(-1, -2)
        if (shown := _shown(mask, start, stop, length, seen)) is not None:
            spread = scores.reshape(batch, heads, stop - start, seen)
            scores = mx.where(shown, spread, mx.finfo(mx.float32).min).reshape(below)
        weights, sums = _exponentials(np.asarray(scores))
        part = mx.array(weights) @ values[:, :, :seen] / mx.array(sums)
        parts.append(part.reshape(batch, heads, stop - start, values.shape[-1]))
    return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=2)


def _parts(length: int, keyed: int, rows: int, causal: bool) -> Iterator[tuple[int, int, int]]:
    """Rows of queries, from and to, and how many keys the last of them sees."""
    for start in range(0, length, rows):
        stop = min(start + rows, length)
        yield start, stop, keyed - length + stop if causal else keyed


def _shown(mask: Any, start: int, stop: int, length: int, seen: int) -> mx.array | None:
    """Which keys each row sees, for some of the rows; None if each sees all."""
    if mask is None:
        return None
    if isinstance(mask, str):
        last = mx.arange(seen - (stop - start), seen)  # of the keys, the one at each row's own place
        return mx.arange(seen) <= last[:, None]
    return mask[..., start:stop, :] if mask.shape[-2] == length else mask  # type: ignore[no-any-return]


def _exponentials(scores: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Of each row the exponentials of the distances to its largest score, and their sum ``(..., 1)``."""
    weights = np.empty_like(scores)
    for scores_of_one, weights_of_one in zip(scores, weights, strict=True):  # a text at a time stays in the caches
        np.subtract(scores_of_one, scores_of_one.max(axis=-1, keepdims=True), out=weights_of_one)
        np.exp(weights_of_one, out=weights_of_one)
    return weights, weights.sum(axis=-1, keepdims=True)
