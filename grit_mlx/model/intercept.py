"""Putting a function around the calls of single layers of a loaded model.

mlx-lm's classes stay as they are, and so do other models of the process: only the given layers become instances of a
subclass, with their names, weights and types (``isinstance``) unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import mlx.nn as nn

__all__ = ["intercept"]


def intercept(layers: Iterable[nn.Module], around: Callable[..., Any]) -> None:
    """Let layers compute by a function.

    Args:
        layers: which.
        around: called with the layer, its own ``__call__`` and the arguments of a call; returns the result.
    """
    layers = list(layers)
    subclasses = {kind: _subclass(kind, around) for kind in set(map(type, layers))}
    for layer in layers:
        layer.__class__ = subclasses[type(layer)]


def _subclass(kind: type, around: Callable[..., Any]) -> type:
    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return around(self, partial(kind.__call__, self), *args, **kwargs)

    return type(kind.__name__, (kind,), {"__call__": call})
