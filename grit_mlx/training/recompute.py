"""Gradient checkpointing: layers forget what they computed and compute it again for the gradient.

mlx-lm's ``grad_checkpoint`` patches the class, for every model of the process and once more with each call. Here
the layers of one model are intercepted.

Layers that widen their weights (``model/widening.py``) compute at once, and mlx keeps all that is computed at once
while a gradient is traced, of both passes and until its end. They are cut off from the trace, layer by layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_map

from grit_mlx.model import widening
from grit_mlx.model.intercept import intercept
from grit_mlx.training.arrays import named_arrays
from grit_mlx.training.router import Routers
from grit_mlx.training.settings import TrainingSettings

__all__ = ["checkpoint_layers", "should_recompute"]


def should_recompute(model: nn.Module, settings: TrainingSettings) -> bool:
    """Whether a run's layers are computed again: if its settings say so, and always where weights are widened."""
    return settings.grad_checkpoint or widening.is_widened(model)


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
        checkpoint = _cut_off if widening.is_widened(layer) else mx.checkpoint
        result, noted = checkpoint(inner)(parameters, x)
        layer.update(parameters)  # not the inner graph's
        if noted and routers is not None and routers.noted is not None:
            routers.noted.extend(noted)
        return result

    return around


def _cut_off(fn: Callable[..., Any]) -> Callable[..., Any]:
    """``mx.checkpoint`` for what is computed at once: nothing of either pass is kept but what goes in and comes out."""

    @mx.custom_function
    def forward(*args: Any) -> Any:
        return _evaluated(fn(*_evaluated(args)))

    @forward.vjp
    def gradient(args: Any, cotangents: Any, _results: Any) -> Any:
        def flat(*arrays: mx.array) -> list[mx.array]:
            return _leaves(fn(*_filled(args, arrays)))

        primals, weights = (_leaves(_evaluated(tree)) for tree in (args, cotangents))
        return _filled(args, _evaluated(mx.vjp(flat, primals, weights)[1]))

    return forward


def _leaves(tree: Any) -> list[mx.array]:
    return [value for _, value in named_arrays(tree)]


def _filled(tree: Any, leaves: Iterable[mx.array]) -> Any:
    """A tree of this shape with other leaves."""
    rest = iter(leaves)
    return tree_map(lambda _: next(rest), tree)


def _evaluated(tree: Any) -> Any:
    """Copies of a tree's arrays that know nothing of how they came about."""

    def copied(value: mx.array) -> mx.array:
        if value.dtype == mx.bfloat16:  # unknown to NumPy
            return mx.array(np.array(value.view(mx.uint16))).view(mx.bfloat16)
        return mx.array(np.array(value))

    return tree_map(copied, tree)
