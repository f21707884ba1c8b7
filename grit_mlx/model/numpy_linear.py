"""Matrix products through NumPy, for machines on which mlx has only the reference BLAS.

mlx's Linux wheel carries the reference BLAS, and NumPy's wheels OpenBLAS, which is many times as fast. If no OpenBLAS
of the system could be loaded in front of mlx's own (``blas.py``), linear layers hand their products to NumPy while
texts are embedded and answers are generated. Only then: a gradient cannot follow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from grit_mlx.model.intercept import intercept

__all__ = ["computes_through_numpy", "prepare", "through_numpy"]

_through_numpy: ContextVar[bool] = ContextVar("through_numpy", default=False)


@contextmanager
def through_numpy() -> Iterator[None]:
    """Let prepared layers compute through NumPy for as long as this lasts, in this thread."""
    token = _through_numpy.set(True)
    try:
        yield
    finally:
        _through_numpy.reset(token)


def computes_through_numpy() -> bool:
    """Whether no gradient follows what is computed, in this thread."""
    return _through_numpy.get()


def prepare(module: nn.Module) -> None:
    """Make the linear layers of a module ready for the reference BLAS.

    It multiplies by a matrix two to three times as fast as by a transposed one, and ``x @ weight.T`` is the latter as
    weights are stored. So they are stored by columns.
    """
    layers = [layer for _, layer in module.named_modules() if type(layer) is nn.Linear]
    for layer in layers:
        layer.weight = mx.contiguous(layer.weight.T).T
    intercept(layers, _product)
    mx.eval(module.parameters())


def _product(layer: nn.Linear, forward: Callable[[mx.array], mx.array], x: mx.array) -> mx.array:
    if not computes_through_numpy() or x.dtype != mx.float32 or layer.weight.dtype != mx.float32:
        return forward(x)
    product = mx.array(np.asarray(x) @ np.asarray(layer.weight).T)
    return product + layer.bias if "bias" in layer else product
