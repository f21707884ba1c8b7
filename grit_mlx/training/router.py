"""The load-balancing loss of mixtures of experts, without a change to mlx-lm's models.

Mixtral computes its router's logits inside a block that does not return them. So the router's linear layer is
intercepted, and what it computes is noted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.switch_layers import SwitchGLU, SwitchMLP

from grit_mlx.model.intercept import intercept

__all__ = ["Routers", "expert_sums", "find_routers"]


def find_routers(model: nn.Module) -> dict[str, nn.Module]:
    """The routers of a model, by name: the linear ``gate`` beside a block's experts."""
    routers: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        gate = getattr(module, "gate", None)
        is_linear = isinstance(gate, nn.Linear | nn.QuantizedLinear) or hasattr(gate, "lora_a")
        experts = any(isinstance(child, SwitchGLU | SwitchMLP) for child in module.children().values())
        if experts and is_linear and gate is not None:
            routers[f"{name}.gate"] = gate
    return routers


class Routers:
    """Notes the logits of all routers while a model computes.

    Args:
        model: has routers (``find_routers``); they keep their weights, names and types.
        experts_per_token: how many experts each token goes to.
    """

    def __init__(self, model: nn.Module, experts_per_token: int) -> None:
        self.experts_per_token = experts_per_token
        self.noted: list[mx.array] | None = None
        intercept(find_routers(model).values(), self._note)

    def _note(self, gate: nn.Module, forward: Callable[[mx.array], mx.array], x: mx.array) -> mx.array:
        logits = forward(x)
        if self.noted is not None:
            self.noted.append(logits)
        return logits

    @contextmanager
    def noting(self) -> Iterator[list[mx.array]]:
        """A list that fills with logits ``(B, L, X)``, one for each router, while this lasts."""
        outer, self.noted = self.noted, []
        try:
            yield self.noted
        finally:
            self.noted = outer


def expert_sums(logits: list[mx.array], real: mx.array, experts_per_token: int) -> tuple[mx.array, mx.array]:
    """Summed over tokens and layers: the probability of each expert, and how often it was chosen.

    Sums add up over the chunks of a batch, where the loss itself does not.

    Args:
        logits: of each layer, ``(B, L, X)``.
        real: ``(B, L)`` boolean, false on padding.
        experts_per_token: how many are chosen.

    Returns:
        Two arrays ``(X,)``; divided by tokens x layers they are what ``losses.balance_loss`` takes.
    """
    stacked = mx.stack(logits).astype(mx.float32)  # (layers, B, L, X)
    counted = real[None, :, :, None]
    probability = mx.softmax(stacked, axis=-1) * counted
    ranks = mx.argsort(mx.argsort(-stacked, axis=-1), axis=-1)
    chosen = (ranks < experts_per_token) * counted
    return probability.sum(axis=(0, 1, 2)), mx.stop_gradient(chosen.astype(mx.float32)).sum(axis=(0, 1, 2))
