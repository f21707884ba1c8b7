"""From a sequence of states to one vector: mean, weightedmean, lasttoken, cls (pure functions on arrays).

Shapes: B batch, L length, E hidden size.
Source: the official package's ``GritLM.pooling``; weightedmean is SGPT's position-weighted mean.
"""

from __future__ import annotations

import mlx.core as mx

from grit_mlx.errors import ArgumentError

__all__ = ["AVERAGING", "pool"]

# Methods that average: for these the instruction's tokens are left out of the mask.
AVERAGING = ("mean", "weightedmean")


def pool(states: mx.array, mask: mx.array, method: str) -> mx.array:
    """One vector for each sequence.

    Args:
        states: ``(B, L, E)`` hidden states.
        mask: ``(B, L)`` boolean, true on tokens that count. Padding never does; for the averaging methods
            neither do the instruction's tokens. Every row needs at least one.
        method: ``mean``, ``weightedmean``, ``lasttoken`` or ``cls``.

    Returns:
        ``(B, E)`` float32.

    Raises:
        ArgumentError: an unknown method.
    """
    try:
        function = _METHODS[method]
    except KeyError:
        raise ArgumentError(f"Unknown pooling {method!r}: use one of {', '.join(_METHODS)}.") from None
    return function(states.astype(mx.float32), mask)


def _weighted(states: mx.array, weights: mx.array) -> mx.array:
    # As a product of matrices, (B, 1, L) @ (B, L, E): no (B, L, E) intermediate.
    weights = weights.astype(mx.float32)
    return (weights[:, None, :] @ states).squeeze(1) / weights.sum(axis=1, keepdims=True)


def _weightedmean(states: mx.array, mask: mx.array) -> mx.array:
    # The count runs over the masked positions only, so weights start at 1 after the instruction.
    counts = mask.astype(mx.float32)
    return _weighted(states, counts * mx.cumsum(counts, axis=1))


def _lasttoken(states: mx.array, mask: mx.array) -> mx.array:
    positions = mx.arange(mask.shape[1])
    last = mx.max(mx.where(mask, positions, 0), axis=1)
    return mx.take_along_axis(states, last[:, None, None], axis=1).squeeze(1)


def _cls(states: mx.array, mask: mx.array) -> mx.array:
    return states[:, 0]


_METHODS = {"mean": _weighted, "weightedmean": _weightedmean, "lasttoken": _lasttoken, "cls": _cls}
