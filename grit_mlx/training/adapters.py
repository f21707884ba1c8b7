"""What is trained: LoRA or DoRA layers, or all weights; and adapters in mlx-lm's layout on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear
from mlx_lm.tuner.utils import linear_to_lora_layers
from mlx_lm.utils import get_total_parameters

from grit_mlx.errors import AdapterError, ArgumentError
from grit_mlx.training.arrays import named_arrays
from grit_mlx.training.router import find_routers

__all__ = [
    "AdapterLayout",
    "Trainable",
    "adapter_weights",
    "attach_adapter",
    "choose_keys",
    "count_trainable",
    "load_weights",
    "read_layout",
    "unfreeze_for_full",
    "write_layout",
]

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapters.safetensors"

_LINEAR = (nn.Linear, nn.QuantizedLinear)
_EXPERTS = (SwitchLinear, QuantizedSwitchLinear)
_ADAPTABLE = (*_LINEAR, *_EXPERTS)


@dataclass(frozen=True)
class AdapterLayout:
    """What mlx-lm's ``adapter_config.json`` says about an adapter.

    Attributes:
        fine_tune_type: ``"lora"`` or ``"dora"``.
        num_layers: the last so many layers are adapted; -1 for all.
        rank: r.
        scale: what the low-rank product is multiplied by: PEFT's alpha / r.
        dropout: of the adapter's input, in training.
        keys: names of the adapted layers below a block, such as ``"self_attn.q_proj"``.
    """

    fine_tune_type: str
    num_layers: int
    rank: int
    scale: float
    dropout: float
    keys: tuple[str, ...]

    def parameters(self) -> dict[str, Any]:
        """mlx-lm's ``lora_parameters``."""
        return {"rank": self.rank, "scale": self.scale, "dropout": self.dropout, "keys": list(self.keys)}


@dataclass(frozen=True)
class Trainable:
    """How much of a model is trained.

    Attributes:
        parameters: numbers that are trained.
        total: numbers of the model, a quantised one's counted as they were before.
    """

    parameters: int
    total: int

    @property
    def percent(self) -> float:
        """Of all."""
        return 100 * self.parameters / self.total


def choose_keys(model: nn.Module, *, experts: bool = False, router: bool = False) -> tuple[str, ...]:
    """The layers below a block that LoRA adapts: all linear ones, routers and experts only when asked.

    Args:
        model: mlx-lm's model.
        experts: also adapt the experts of a mixture.
        router: also adapt its routers.

    Raises:
        ArgumentError: experts or routers are asked for, and the model has none.
    """
    routers = {id(gate) for gate in find_routers(model).values()}
    has_experts = any(isinstance(module, _EXPERTS) for _, module in model.named_modules())
    for name, wanted, there in (("adapt_experts", experts, has_experts), ("adapt_router", router, bool(routers))):
        if wanted and not there:
            raise ArgumentError(f"{name} is for mixtures of experts, and this model is none: leave it out.")
    keys: dict[str, None] = {}  # ordered
    for layer in model.layers:
        for name, module in reversed(layer.named_modules()):
            is_router = id(module) in routers
            wanted = router if is_router else isinstance(module, _LINEAR) or (experts and isinstance(module, _EXPERTS))
            if wanted and isinstance(module, _ADAPTABLE):
                keys[name] = None
    return tuple(keys)


def attach_adapter(model: nn.Module, layout: AdapterLayout) -> None:
    """Put LoRA or DoRA layers into the model; after this only they are trained.

    Raises:
        ArgumentError: there is no layer of a name in ``keys``, or mlx-lm cannot adapt one.
    """
    present = {name for layer in model.layers for name, _ in layer.named_modules()}
    present |= {name for name, _ in model.named_modules()}
    for key in layout.keys:
        if key not in present:
            linear = [name for name, module in model.layers[-1].named_modules() if isinstance(module, _ADAPTABLE)]
            raise ArgumentError(f"The model has no layer {key!r} to adapt: there are {', '.join(reversed(linear))}.")
    model.freeze()
    # num_layers counts from the last block; mlx-lm takes 0 or less for all.
    if layout.num_layers > len(model.layers):
        raise ArgumentError(f"num_layers = {layout.num_layers}, and the model has {len(model.layers)}.")
    try:
        linear_to_lora_layers(model, layout.num_layers, layout.parameters(), use_dora=layout.fine_tune_type == "dora")
    except ValueError as error:
        raise ArgumentError(f"This layer cannot be adapted: {error}") from error


def unfreeze_for_full(model: nn.Module, num_layers: int, frozen: Sequence[str] = ()) -> None:
    """Train all weights, or those of the last ``num_layers`` blocks.

    Args:
        model: mlx-lm's model.
        num_layers: 0 or less for all.
        frozen: modules that stay as they are, by name or pattern (``model.norm``, ``model.layers.*.mlp``).

    Raises:
        ArgumentError: the weights are quantised and so have no gradient, or a pattern fits no module.
    """
    if any(name.endswith(".scales") for name, _ in named_arrays(model.parameters())):
        raise ArgumentError(
            "Quantised weights cannot be trained in full. Use fine_tune_type lora or dora, "
            "or dtype float32 or bfloat16 with an unquantised model."
        )
    model.freeze()
    if num_layers <= 0:
        model.unfreeze()
    for layer in model.layers[-num_layers:] if num_layers > 0 else []:
        layer.unfreeze()
    for pattern in frozen:
        fitting = [module for name, module in model.named_modules() if name and fnmatchcase(name, pattern)]
        if not fitting:
            raise ArgumentError(f"frozen names {pattern!r}, which is no module of this model, such as model.norm.")
        for module in fitting:
            module.freeze()


def count_trainable(model: nn.Module) -> Trainable:
    """How many parameters are trained."""
    trained = sum(value.size for _, value in named_arrays(model.trainable_parameters()))
    return Trainable(trained, int(get_total_parameters(model)))


def load_weights(model: nn.Module, weights: Mapping[str, mx.array], source: str) -> None:
    """Put an adapter's weights into a model whose layers are adapted.

    Raises:
        AdapterError: a tensor is not the model's.
    """
    present = dict(named_arrays(model.trainable_parameters()))
    for name, value in weights.items():
        if name not in present or present[name].shape != value.shape:
            there = f"has {present[name].shape}" if name in present else "has no such tensor"
            raise AdapterError(
                f"The adapter {source} does not fit the model: {name} is {value.shape} and the model {there}. "
                "Use it with the model it was trained on."
            )
    model.load_weights(list(weights.items()), strict=False)


def adapter_weights(model: nn.Module) -> dict[str, mx.array]:
    """The trained parameters by mlx-lm's names."""
    return dict(named_arrays(model.trainable_parameters()))


def write_layout(folder: Path, layout: AdapterLayout, *, about: Mapping[str, Any]) -> None:
    """Write mlx-lm's ``adapter_config.json``.

    Args:
        folder: exists.
        layout: what to write.
        about: further entries (base model, data), which mlx-lm ignores.
    """
    content = {
        **about,
        "fine_tune_type": layout.fine_tune_type,
        "num_layers": layout.num_layers,
        "lora_parameters": layout.parameters(),
    }
    (folder / ADAPTER_CONFIG).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_layout(folder: Path, default_keys: Sequence[str] = ()) -> AdapterLayout:
    """Read mlx-lm's ``adapter_config.json``.

    Raises:
        AdapterError: it is missing or incomplete.
    """
    path = folder / ADAPTER_CONFIG
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        parameters = content["lora_parameters"]
        return AdapterLayout(
            fine_tune_type=content.get("fine_tune_type", "lora"),
            num_layers=int(content["num_layers"]),
            rank=int(parameters["rank"]),
            scale=float(parameters["scale"]),
            dropout=float(parameters.get("dropout", 0.0)),
            keys=tuple(parameters.get("keys") or default_keys),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AdapterError(f"Cannot read {path}: {error!r}. It must be an adapter in mlx-lm's layout.") from error
