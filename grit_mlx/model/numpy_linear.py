"""Matrix products through NumPy where mlx has only the reference BLAS.

mlx's Linux wheel carries the reference BLAS, and NumPy's wheels OpenBLAS, which is many times as fast. Where no
OpenBLAS of the system could be put in front of mlx's own (``blas.py``), linear layers hand their products to NumPy
while texts are embedded. Only then: a gradient cannot follow.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import mlx.core as mx
import mlx.nn as nn
import numpy as np

__all__ = ["prepare", "through_numpy"]

_through_numpy: ContextVar[bool] = ContextVar("through_numpy", default=False)


@contextmanager
def through_numpy() -> Iterator[None]:
    """Let the linear layers of prepared models multiply through NumPy for as long as this lasts, in this thread."""
    token = _through_numpy.set(True)
    try:
        yield
    finally:
        _through_numpy.reset(token)


def prepare(module: nn.Module) -> None:
    """Make the linear layers of a module ready for the reference BLAS; seen from outside they stay what they are.

    It multiplies by a matrix two to three times as fast as by a transposed one, and ``x @ weight.T`` is the latter as
    weights are stored. So they are stored by columns.
    """
    for _, one in module.named_modules():
        if type(one) is nn.Linear:
            one.weight = mx.contiguous(one.weight.T).T
            one.__class__ = _Linear
    mx.eval(module.parameters())


class _Linear(nn.Linear):
    def __call__(self, x: mx.array) -> mx.array:
        if not _through_numpy.get() or x.dtype != mx.float32 or self.weight.dtype != mx.float32:
            return super().__call__(x)
        found = mx.array(np.asarray(x) @ np.asarray(self.weight).T)
        return found + self.bias if "bias" in self else found
