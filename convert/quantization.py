"""Which weights are quantised how: recipes, ours and mlx-lm's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from grit_mlx.convert.options import MODES, RECIPES, ConversionOptions
from grit_mlx.errors import ArgumentError

__all__ = ["ROUTERS", "Decision", "Predicate", "Quantization", "Recipe", "base_of", "chosen_by", "quantizable"]


@dataclass(frozen=True)
class Quantization:
    """How one weight is stored.

    Attributes:
        bits: of a weight, without its group's scale.
        group_size: weights that share a scale.
        mode: a key of ``MODES``; see ``mx.quantize``.
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


# What a recipe says of a module: None leaves it as it is.
Decision = Quantization | None
# Given a module's path and the module.
Predicate = Callable[[str, nn.Module], Decision]
# Given mlx-lm's model, unquantised, and what most weights are to be quantised with.
Recipe = Callable[[nn.Module, Quantization], Predicate]


def base_of(options: ConversionOptions) -> Quantization:
    """What most weights are quantised with."""
    mode = options.mode or "affine"
    bits, group_sizes = MODES[mode]
    return Quantization(options.bits or bits[0], options.group_size or group_sizes[0], mode)


def quantizable(module: nn.Module, chosen: Quantization) -> bool:
    """Whether mlx can quantise a module so: it knows how, and its rows divide into groups."""
    return hasattr(module, "to_quantized") and module.weight.shape[-1] % chosen.group_size == 0


# Recipes


def _uniform(model: nn.Module, base: Quantization) -> Predicate:
    """As mlx-lm does it: everything the same, except what the architecture itself asks for."""
    own = getattr(model, "quant_predicate", None)
    return _translated(own, base) if own is not None else lambda path, module: base


def _mixed(name: str) -> Recipe:
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


# Modules that choose a token's experts, by the last part of their path. One wrong choice is more than a rounding error.
ROUTERS = ("gate", "router", "shared_expert_gate")
# The most sensitive per parameter, by an order of magnitude; with grouped queries they are small as well.
_SENSITIVE = ("k_proj", "v_proj")
# Minimum bits of the tables that tokens are looked up in and predicted with.
_TABLE_BITS = 6


def _grit(model: nn.Module, base: Quantization) -> Predicate:
    """More bits where embeddings need them; docs/convert.md has the measurements."""
    uniform = _uniform(model, base)
    more = stronger(base)

    def predicate(path: str, module: nn.Module) -> Decision:
        last = path.rpartition(".")[2]
        if last in ROUTERS:
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
        return Quantization(8, 32, "mxfp8")
    return Quantization(8 if base.bits >= 6 else 6, base.group_size)


_RECIPES: dict[str, Recipe] = {
    "grit": _grit,
    "uniform": _uniform,
    **{name: _mixed(name) for name in RECIPES if name.startswith("mixed_")},
}


def chosen_by(recipe: str | Recipe | None, model: nn.Module, base: Quantization) -> dict[str, Quantization]:
    """What a recipe says of each module of a model, without those that stay as they are.

    Args:
        recipe: one of ``RECIPES`` or a function; None for the first.
        model: mlx-lm's model, unquantised.
        base: what was asked for.

    Raises:
        ArgumentError: the recipe does not suit the model or the mode.
    """
    predicate = (recipe if callable(recipe) else _RECIPES[recipe or RECIPES[0]])(model, base)
    chosen = {}
    for path, module in model.named_modules():
        decision = predicate(path, module) if hasattr(module, "to_quantized") else None
        if decision is not None and quantizable(module, decision):
            chosen[path] = decision
    return chosen
