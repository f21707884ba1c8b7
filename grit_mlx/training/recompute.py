"""Gradient checkpointing: layers forget what they computed and compute it again for the gradient.

mlx-lm's ``grad_checkpoint`` patches the class, for every model of the process and once more with each call. Here
the layers of one model get a subclass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
    masks = _Masks()
    for layer in layers:
        kind = type(layer)
        if not hasattr(kind, _MARK):
            if kind not in kinds:
                kinds[kind] = _recomputed(kind, routers, masks)
            layer.__class__ = kinds[kind]
            masks.take_over(layer)


class _Masks:
    """Dropout that draws the same masks when a layer is computed again, which mlx's own does not.

    A layer's pass begins with a key from mlx's random state; its dropouts draw from that key instead of the state.
    """

    def __init__(self) -> None:
        self._key: mx.array | None = None

    def take_over(self, layer: nn.Module) -> None:
        """Let all dropout of a layer draw here."""
        for _, module in layer.named_modules():
            if isinstance(module, nn.Dropout):
                module.__class__ = self._keyed(type(module))

    @contextmanager
    def drawn_from(self, key: mx.array) -> Iterator[None]:
        """Draw from a key ``(2,)`` for as long as this lasts."""
        outer, self._key = self._key, key
        try:
            yield
        finally:
            self._key = outer

    def _keyed(self, kind: type) -> type:
        masks = self

        def call(self: Any, x: mx.array) -> mx.array:
            if masks._key is None or not self.training or self._p_1 == 1:
                return kind.__call__(self, x)  # type: ignore[no-any-return]
            masks._key, key = mx.random.split(masks._key)
            mask: mx.array = mx.random.bernoulli(self._p_1, x.shape, key=key)
            return mask * x / self._p_1  # type: ignore[no-any-return]

        return type(kind.__name__, (kind,), {"__call__": call})


def _recomputed(kind: type, routers: Routers | None, masks: _Masks) -> type:
    def call(self: nn.Module, x: mx.array, *args: Any, **kwargs: Any) -> Any:
        # Decided now: the second time, in the backward pass, nobody is noting any more.
        noting = routers is not None and routers.noted is not None
        key = mx.random.randint(0, 1 << 31, (2,)).astype(mx.uint32)

        # Only states and parameters go through mx.checkpoint: it cannot take integers, and a mask has no gradient.
        def inner(parameters: dict[str, Any], x: mx.array) -> Any:
            self.update(parameters)
            with masks.drawn_from(key):
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
