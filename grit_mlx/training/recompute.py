"""Gradient checkpointing: layers forget what they computed and compute it again for the gradient.

mlx-lm's ``grad_checkpoint`` patches the class, for every model of the process and once more with each call. Here
the layers of one model get a subclass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from grit_mlx.training.router import Routers

__all__ = ["checkpoint_layers"]

_MARK = "_recomputed"


def checkpoint_layers(layers: Sequence[nn.Module], routers: Routers | None = None) -> None:
    """Recompute each layer's inner states in the backward pass; a second call changes nothing.

    Args:
        layers: of one model.
        routers: what notes their logits, where the model has routers; the notes then take part in gradients too.
    """
    kinds: dict[type, type] = {}
    for layer in layers:
        kind = type(layer)
        if not hasattr(kind, _MARK):
            if kind not in kinds:
                kinds[kind] = _recomputed(kind, routers)
            layer.__class__ = kinds[kind]


def _recomputed(kind: type, routers: Routers | None) -> type:
    def call(self: nn.Module, x: mx.array, *args: Any, **kwargs: Any) -> Any:
        # Decided now: the second time, in the backward pass, nobody is noting any more.
        noting = routers is not None and routers.noted is not None

        # Only states and parameters go through mx.checkpoint: it cannot take integers, and a mask has no gradient.
        def inner(parameters: dict[str, Any], x: mx.array) -> Any:
            self.update(parameters)
            if routers is None or not noting:
                return kind.__call__(self, x, *args, **kwargs), []
            # What is noted in here belongs to the inner graph: it has to leave as an output.
            with routers.noting() as noted:
                return kind.__call__(self, x, *args, **kwargs), noted

        parameters = self.trainable_parameters()
        result, noted = mx.checkpoint(inner)(parameters, x)
        self.update(parameters)  # not the inner graph's
        if noted and routers is not None and routers.noted is not None:
            routers.noted.extend(noted)
        return result

    return type(kind.__name__, (kind,), {"__call__": call, _MARK: True})
