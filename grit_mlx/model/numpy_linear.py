"""Matrix products through NumPy, whose wheels carry OpenBLAS, on Linux CPUs where it is faster than what mlx calls.

mlx's Linux wheel carries the reference BLAS. If no OpenBLAS of the system could be loaded in front of it (``blas.py``),
every product goes through NumPy, which is many times as fast. Otherwise only those of a single row do, as when an
answer is written: for them mlx calls BLAS's product of two matrices, which first copies the weights into its own layout
and so moves them through memory twice; NumPy calls the product of a matrix and a vector.

All this only while texts are embedded, prompts read and answers written: a gradient cannot follow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from grit_mlx.model.intercept import intercept

__all__ = ["computes_through_numpy", "prepare", "prepare_rows", "through_numpy"]

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
    """Make a module's linear layers, and tables of tokens that are heads as well, ready for the reference BLAS.

    It multiplies by a matrix two to three times as fast as by a transposed one, and ``x @ weight.T`` is the latter as
    weights are stored. So those of linear layers are stored by columns.
    """
    for layer in _of_type(module, nn.Linear):
        layer.weight = mx.contiguous(layer.weight.T).T
    _intercept(module, _product)
    mx.eval(module.parameters())


def prepare_rows(module: nn.Module) -> None:
    """Let the same layers multiply single rows through NumPy."""
    _intercept(module, _row)


def _intercept(module: nn.Module, around: Callable[..., mx.array]) -> None:
    intercept(_of_type(module, nn.Linear), around)
    intercept(_of_type(module, nn.Embedding), around, method="as_linear")


def _of_type(module: nn.Module, kind: type[nn.Module]) -> list[Any]:
    """Layers of exactly this type: not those that are intercepted already."""
    return [layer for _, layer in module.named_modules() if type(layer) is kind]


def _product(layer: nn.Module, forward: Callable[[mx.array], mx.array], x: mx.array) -> mx.array:
    if not _is_possible(layer, x):
        return forward(x)
    return _with_bias(layer, mx.array(np.asarray(x) @ np.asarray(layer.weight).T))


def _row(layer: nn.Module, forward: Callable[[mx.array], mx.array], x: mx.array) -> mx.array:
    if x.size != x.shape[-1] or not _is_possible(layer, x):
        return forward(x)
    row, weight = np.asarray(x).reshape(-1), np.asarray(layer.weight)
    return _with_bias(layer, mx.array(weight @ row).reshape(*x.shape[:-1], -1))


def _is_possible(layer: nn.Module, x: mx.array) -> bool:
    return computes_through_numpy() and x.dtype == layer.weight.dtype == mx.float32


def _with_bias(layer: nn.Module, product: mx.array) -> mx.array:
    return product + layer.bias if "bias" in layer else product
