"""GradCache: the gradient of a loss over a whole batch, in the memory of one chunk of it.

A contrastive loss compares every row with every other, so it cannot be accumulated over parts of a batch. But its
gradient can: the loss depends on the parameters only through the representations R, so

    dLoss/dParameters = sum over chunks of (dLoss/dR_chunk) . (dR_chunk/dParameters)

First all representations are computed without a gradient, then the loss and dLoss/dR, then each chunk once more,
with the gradient of its dot product with dLoss/dR. That is one forward pass more than the whole batch at once.

Source: Gao et al. 2021, Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

__all__ = ["Gradients", "add_gradients", "cached_gradients", "vector_jacobian"]

# A tree of arrays with the shape of the trainable parameters.
Gradients = dict[str, Any]

C = TypeVar("C")
V = TypeVar("V")


def cached_gradients(
    chunks: Sequence[C],
    forward: Callable[[C], mx.array],
    backward: Callable[[C, mx.array], Gradients],
    loss: Callable[[list[mx.array]], tuple[V, Sequence[mx.array]]],
) -> tuple[V, Gradients]:
    """A loss over the rows of all chunks, and its gradient.

    Args:
        chunks: parts of the batch, of any type; at least one.
        forward: from a chunk to its representations ``(rows, E)``. With dropout it must draw the same numbers each
            time it sees a chunk.
        backward: from a chunk and dLoss/dR ``(rows, E)`` to the gradient; see ``vector_jacobian``.
        loss: from the representations of all chunks to the loss (any value) and dLoss/dR for each chunk.

    Returns:
        What ``loss`` returned, and the sum of the gradients over all chunks.
    """
    representations = []
    for chunk in chunks:
        rows = mx.stop_gradient(forward(chunk))
        mx.eval(rows)  # without this every chunk's graph would be held at once
        representations.append(rows)
    value, cotangents = loss(representations)
    mx.eval(cotangents)
    gradients: Gradients | None = None
    for chunk, cotangent in zip(chunks, cotangents, strict=True):
        gradients = add_gradients(gradients, backward(chunk, cotangent))
    assert gradients is not None
    return value, gradients


def vector_jacobian(model: nn.Module, forward: Callable[[C], mx.array]) -> Callable[[C, mx.array], Gradients]:
    """``backward`` for ``cached_gradients``: the gradient of a chunk's dot product with a constant."""

    def dot_product(chunk: C, cotangent: mx.array) -> mx.array:
        return mx.sum(forward(chunk) * cotangent)

    differentiated = nn.value_and_grad(model, dot_product)

    def backward(chunk: C, cotangent: mx.array) -> Gradients:
        return differentiated(chunk, cotangent)[1]  # type: ignore[no-any-return]

    return backward


def add_gradients(total: Gradients | None, part: Gradients) -> Gradients:
    """The sum of two trees, evaluated, so that no graph outlives its chunk; ``total`` may be None for zero."""
    result = part if total is None else tree_map(mx.add, total, part)
    mx.eval(result)
    return result
