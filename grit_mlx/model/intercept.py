"""Putting a function around the calls of single layers of a loaded model.

mlx-lm's classes stay as they are, and so do other models of the process: only the given layers become instances of a
subclass, with their names, weights and types (``isinstance``) unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from types import FunctionType
from typing import Any

import mlx.nn as nn

__all__ = ["intercept", "rebind"]


def intercept(layers: Iterable[nn.Module], around: Callable[..., Any], *, method: str = "__call__") -> None:
    """Let layers compute by a function.

    Args:
        layers: which.
        around: called with the layer, its own method and the arguments of a call; returns the result.
        method: which of their methods.
    """
    layers = list(layers)
    subclasses = {kind: _subclass(kind, around, method) for kind in set(map(type, layers))}
    for layer in layers:
        layer.__class__ = subclasses[type(layer)]


def rebind(layers: Iterable[nn.Module], name: str, around: Callable[..., Any]) -> None:
    """Let layers compute by a function where their code calls a function of their module; other layers stay.

    Args:
        layers: which.
        name: of the function, as their module knows it.
        around: called with that function and the arguments of a call; returns the result.
    """
    layers = list(layers)
    subclasses = {kind: _rebound(kind, name, around) for kind in set(map(type, layers)) if _calls(kind, name)}
    for layer in layers:
        layer.__class__ = subclasses.get(type(layer), type(layer))


def _calls(kind: type, name: str) -> bool:
    """Whether a class's own code, and not something around it, names a function of its module."""
    code = getattr(kind.__call__, "__code__", None)
    return code is not None and name in code.co_names and callable(kind.__call__.__globals__.get(name))


def _rebound(kind: type, name: str, around: Callable[..., Any]) -> type:
    """A subclass whose call is the same code, to which one name of the module means something else."""
    old: Any = kind.__call__
    known = {**old.__globals__, name: partial(around, old.__globals__[name])}
    call = FunctionType(old.__code__, known, "__call__", old.__defaults__, old.__closure__)
    call.__kwdefaults__ = old.__kwdefaults__
    return type(kind.__name__, (kind,), {"__call__": call})


def _subclass(kind: type, around: Callable[..., Any], method: str) -> type:
    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return around(self, partial(getattr(kind, method), self), *args, **kwargs)

    return type(kind.__name__, (kind,), {method: call})
