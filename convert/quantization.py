"""Which weights are quantised how: modes, recipes, and mlx-lm's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from grit_mlx.errors import ArgumentError

__all__ = [
    "MODES",
    "RECIPES",
    "Decision",
    "Predicate",
    "Quantization",
    "decide",
    "quantizable",
    "quantization",
    "recipe",
]


@dataclass(frozen=True)
class Quantization:
    """How one weight is stored.

    Attributes:
        bits: of a weight, without its group's scale.
        group_size: weights that share a scale.
        mode: ``"affine"``, ``"mxfp4"``, ``"nvfp4"`` or ``"mxfp8"``; see ``mx.quantize``.
    """

    bits: int
    group_size: int
    mode: str = "affine"

    def bits_per_weight(self, dtype: mx.Dtype) -> float:
        """With the scale (and, for affine, bias) of its group, which affine stores in the weights' own dtype."""
        return self.bits + (16 * dtype.size if self.mode == "affine" else 8) / self.group_size

    def as_config(self) -> dict[str, Any]:
        """As mlx-lm writes it into ``config.json``."""
        return {"group_size": self.group_size, "bits": self.bits, "mode": self.mode}

    def quantize(self, weight: mx.array) -> tuple[mx.array, ...]:
        """Packed weight, scales and, for affine, biases of ``(..., width)``."""
        return tuple(mx.quantize(weight, **asdict(self)))

    def dequantize(self, packed: Sequence[mx.array]) -> mx.array:
        """The weight again, from what ``quantize`` returns."""
        weight, scales, biases = (*packed, None)[:3]
        assert weight is not None and scales is not None
        return mx.dequantize(weight, scales, biases, **asdict(self))


# What mlx's kernels know: bits and group sizes, the first of each being the default.
MODES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "affine": ((4, 2, 3, 5, 6, 8), (64, 32, 128)),
    "mxfp4": ((4,), (32,)),
    "nvfp4": ((4,), (16,)),
    "mxfp8": ((8,), (32,)),
}

# What a recipe says of a module: None leaves it as it is.
Decision = Quantization | None
# Given a module's path and the module.
Predicate = Callable[[str, nn.Module], Decision]


def quantization(bits: int | None = None, group_size: int | None = None, mode: str = "affine") -> Quantization:
    """A quantisation that mlx has, with the mode's defaults where None.

    Raises:
        ArgumentError: an unknown mode, or bits or a group size that the mode does not have.
    """
    if mode not in MODES:
        raise ArgumentError(f"Unknown quantisation mode {mode!r}: use one of {', '.join(MODES)}.")
    chosen = {}
    for name, value, known in zip(("bits", "group_size"), (bits, group_size), MODES[mode], strict=True):
        chosen[name] = known[0] if value is None else value
        if chosen[name] not in known:
            raise ArgumentError(
                f"Mode {mode} has no {name.replace('_', ' ')} {value}: use {', '.join(map(str, sorted(known)))}."
            )
    return Quantization(**chosen, mode=mode)


def quantizable(module: nn.Module, chosen: Quantization) -> bool:
    """Whether mlx can quantise a module so: it knows how, and its rows divide into groups."""
    return hasattr(module, "to_quantized") and module.weight.shape[-1] % chosen.group_size == 0


def decide(model: nn.Module, predicate: Predicate) -> dict[str, Quantization]:
    """What a predicate says of each module of a model, without those that stay as they are."""
    decided = {}
    for path, module in model.named_modules():
        if not hasattr(module, "to_quantized"):
            continue
        chosen = predicate(path, module)
        if chosen is not None and quantizable(module, chosen):
            decided[path] = chosen
    return decided


# Recipes


def _uniform(model: nn.Module, base: Quantization) -> Predicate:
    """As mlx-lm does it: everything the same, but for what the architecture itself asks for."""
    own = getattr(model, "quant_predicate", None)
    return _translated(own, base) if own is not None else lambda path, module: base


def _mixed(name: str) -> Callable[[nn.Module, Quantization], Predicate]:
    def build(model: nn.Module, base: Quantization) -> Predicate:
        from mlx_lm.convert import mixed_quant_predicate_builder

        if base.mode != "affine":
            raise ArgumentError(f"Recipe {name} is for mode affine. Use recipe grit or uniform with {base.mode}.")
        try:
            return _translated(mixed_quant_predicate_builder(name, model, base.group_size), base)
        except ValueError as error:
            raise ArgumentError(f"Recipe {name} does not suit this architecture: {error}") from error

    return build


def _translated(own: Callable[..., Any], base: Quantization) -> Predicate:
    """One of mlx-lm's predicates, which return a bool or parameters, as one of ours."""

    def predicate(path: str, module: nn.Module) -> Decision:
        answer = own(path, module)
        if isinstance(answer, Mapping):
            return Quantization(
                bits=answer.get("bits", base.bits),
                group_size=answer.get("group_size", base.group_size),
                mode=answer.get("mode", "affine"),
            )
        return base if answer else None

    return predicate


# Modules that choose a token's experts, by the last part of their path. One wrong choice is no rounding error.
_ROUTERS = ("gate", "router", "shared_expert_gate")
# Most sensitive for each of their parameters, by an order of magnitude; with grouped queries they are small as well.
_SENSITIVE = ("k_proj", "v_proj")
# Least bits of the tables that tokens are looked up in and predicted with.
_TABLE_BITS = 6


def _grit(model: nn.Module, base: Quantization) -> Predicate:
    """Bits where embeddings feel them; docs/convert.md has the measurements behind it."""
    uniform = _uniform(model, base)
    more = stronger(base)

    def predicate(path: str, module: nn.Module) -> Decision:
        last = path.rpartition(".")[2]
        if last in _ROUTERS:
            return None
        if isinstance(module, nn.Embedding) or last == "lm_head":
            return more if base.bits < _TABLE_BITS else base
        if last in _SENSITIVE:
            return more
        return uniform(path, module)

    return predicate


def stronger(base: Quantization) -> Quantization:
    """The next quantisation that clearly loses less: two bits more, at least six; 8-bit floats for 4-bit ones."""
    if base.mode != "affine":
        return quantization(mode="mxfp8")
    return quantization(8 if base.bits >= 6 else 6, base.group_size)


RECIPES: dict[str, Callable[[nn.Module, Quantization], Predicate]] = {
    "grit": _grit,
    "uniform": _uniform,
    **{name: _mixed(name) for name in ("mixed_2_6", "mixed_3_4", "mixed_3_6", "mixed_4_6")},
}


def recipe(name: str) -> Callable[[nn.Module, Quantization], Predicate]:
    """A recipe by name.

    Raises:
        ArgumentError: there is none of that name.
    """
    if name not in RECIPES:
        raise ArgumentError(f"Unknown recipe {name!r}: use one of {', '.join(RECIPES)}.")
    return RECIPES[name]
