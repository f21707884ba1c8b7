"""mlx's optimizers and learning-rate schedules, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
from mlx_lm.tuner.utils import build_schedule

from grit_mlx.errors import ArgumentError, Option, first_line

__all__ = ["make_optimizer", "make_schedule", "trained_by_muon"]

Schedule = Callable[[mx.array], mx.array]

# Class and the arguments that differ from mlx's defaults. PyTorch's Adam corrects its bias, and the published
# recipes count on it; Adafactor would otherwise ignore the learning rate.
_CLASSES: dict[str, tuple[type[optim.Optimizer], dict[str, Any]]] = {
    "adamw": (optim.AdamW, {"bias_correction": True}),
    "adam": (optim.Adam, {"bias_correction": True}),
    "adafactor": (optim.Adafactor, {"relative_step": False, "scale_parameter": False}),
    "lion": (optim.Lion, {}),
    "muon": (optim.Muon, {}),
    "sgd": (optim.SGD, {}),
}
_DECAYING = {"adamw", "adafactor", "lion", "muon", "sgd"}

# mlx's schedule and its arguments, from the peak rate and the number of steps after the warm-up.
_SHAPES: dict[str, tuple[str, Callable[[float, int], list[float]]]] = {
    "linear": ("linear_schedule", lambda rate, steps: [rate, 0.0, steps]),
    "cosine": ("cosine_decay", lambda rate, steps: [rate, steps, 0.0]),
    "constant": ("linear_schedule", lambda rate, steps: [rate, rate, steps]),
}


def make_schedule(name: str, *, learning_rate: float, steps: int, warmup_steps: int) -> Schedule:
    """The learning rate of each step: a warm-up to ``learning_rate``, then the decay of ``settings.SCHEDULES``."""
    kind, arguments = _SHAPES[name]
    config: dict[str, Any] = {"name": kind, "arguments": arguments(learning_rate, max(1, steps - warmup_steps))}
    if warmup_steps:
        # Not from 0, with which the first step would do nothing.
        config |= {"warmup": warmup_steps, "warmup_init": learning_rate / (warmup_steps + 1)}
    return build_schedule(config)  # type: ignore[no-any-return]


def make_optimizer(
    name: str,
    schedule: Schedule,
    *,
    weight_decay: float = 0.0,
    options: Mapping[str, Any] | None = None,
) -> optim.Optimizer:
    """An optimizer by name.

    Args:
        name: one of ``settings.OPTIMIZERS``.
        schedule: the learning rate of each step.
        weight_decay: if the optimizer has one.
        options: further arguments of mlx's class, such as betas.

    Raises:
        ArgumentError: the optimizer does not have such an option.
    """
    kind, defaults = _CLASSES[name]
    decay = {"weight_decay": weight_decay} if name in _DECAYING else {}
    try:
        made = kind(learning_rate=schedule, **{**defaults, **decay, **(options or {})})  # type: ignore[call-arg]
    except (TypeError, ValueError) as error:
        raise ArgumentError(Option("optimizer_config"), f" does not suit {name}: {first_line(error)}") from error
    if name == "muon":
        # Muon is for matrices inside the network; its authors use AdamW for the rest.
        rest = make_optimizer("adamw", schedule, weight_decay=weight_decay)
        return optim.MultiOptimizer([made, rest], [trained_by_muon])
    return made


def trained_by_muon(path: str, gradient: mx.array) -> bool:
    """Whether a parameter is a matrix inside the network."""
    return gradient.ndim >= 2 and not any(part in path for part in ("embed_tokens", "lm_head", "wte"))
