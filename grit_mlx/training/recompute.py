"""Gradient checkpointing: layers forget what they computed and compute it again for the gradient.

mlx-lm's ``grad_checkpoint`` patches the class, for every model of the process and once more with each call. Here
the layers of one model are intercepted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from grit_mlx.model.intercept import intercept
from grit_mlx.training.router import Routers

__all__ = ["checkpoint_layers"]


def checkpoint_layers(layers: Sequence[nn.Module], routers: Routers | None = None) -> None:
    """Recompute each layer's inner states in the backward pass; a second call changes nothing.

    Args:
        layers: of one model.
        routers: what notes their logits, if the model has routers; the notes then take part in gradients too.
    """
    new = [layer for layer in layers if not hasattr(layer, "_recomputed")]
    masks = _Masks()
    for layer in new:
        layer._recomputed = True
        intercept((module for _, module in layer.named_modules() if isinstance(module, nn.Dropout)), masks.drop)
    intercept(new, _recompute(routers, masks))


class _Masks:
    """Dropout that draws the same masks when a layer is computed again, which mlx's own does not.

    A layer's pass begins with a key from mlx's random state; its dropouts draw from that key instead of the state.
    """

    def __init__(self) -> None:
        self._key: mx.array | None = None

    @contextmanager
    def drawn_from(self, key: mx.array) -> Iterator[None]:
        """Draw from a key ``(2,)`` for as long as this lasts."""
        outer, self._key = self._key, key
        try:
            yield
        finally:
            self._key = outer

    def drop(self, layer: nn.Dropout, forward: Callable[[mx.array], mx.array], x: mx.array) -> mx.array:
        """What a dropout layer computes."""
        if self._key is None or not layer.training or layer._p_1 == 1:
            return forward(x)
        self._key, key = mx.random.split(self._key)
        mask: mx.array = mx.random.bernoulli(layer._p_1, x.shape, key=key)
        return mask * x / layer._p_1


def _recompute(routers: Routers | None, masks: _Masks) -> Callable[..., Any]:
    def around(layer: nn.Module, forward: Callable[..., Any], x: mx.array, *args: Any, **kwargs: Any) -> Any:
        # Decided now: the second time, in the backward pass, nobody is noting any more.
        noting = routers is not None and routers.noted is not None
        key = mx.random.randint(0, 1 << 31, (2,)).astype(mx.uint32)

        # Only states and parameters go through mx.checkpoint: it cannot take integers, and a mask has no gradient.
        def inner(parameters: dict[str, Any], x: mx.array) -> Any:
            layer.update(parameters)
            with masks.drawn_from(key):
                if routers is None or not noting:
                    return forward(x, *args, **kwargs), []
                # What is noted in here belongs to the inner graph: it has to leave as an output.
                with routers.noting() as noted:
                    return forward(x, *args, **kwargs), noted

        parameters = layer.trainable_parameters()
        result, noted = mx.checkpoint(inner)(parameters, x)
        layer.update(parameters)  # not the inner graph's
        if noted and routers is not None and routers.noted is not None:
            routers.noted.extend(noted)
        return result

    return around
