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

from grit_mlx.errors import AdapterError, ArgumentError, Option, first_line, unreadable
from grit_mlx.training.arrays import named_arrays
from grit_mlx.training.router import find_routers

__all__ = [
    "AdapterLayout",
    "attach_adapter",
    "choose_keys",
    "count_trainable",
    "is_quantized",
    "layout_from",
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
        num_layers: number of last blocks that are adapted; -1 for all.
        rank: r.
        scale: factor of the low-rank product: PEFT's alpha / r.
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


def layout_from(fine_tune_type: str, num_layers: int, parameters: Mapping[str, Any]) -> AdapterLayout:
    """A layout from mlx-lm's ``lora_parameters``, of which rank and scale are required."""
    return AdapterLayout(
        fine_tune_type,
        num_layers,
        rank=int(parameters["rank"]),
        scale=float(parameters["scale"]),
        dropout=float(parameters.get("dropout", 0.0)),
        keys=tuple(parameters.get("keys") or ()),
    )


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
            raise ArgumentError(Option(name, True), " is for mixtures of experts, and this model is not one.")
    keys: dict[str, None] = {}  # ordered
    for layer in model.layers:
        for name, module in reversed(layer.named_modules()):
            is_router = id(module) in routers
            wanted = router if is_router else isinstance(module, _LINEAR) or (experts and isinstance(module, _EXPERTS))
            if wanted and isinstance(module, _ADAPTABLE):
                keys[name] = None
    return tuple(keys)


def attach_adapter(model: nn.Module, layout: AdapterLayout) -> None:
    """Add LoRA or DoRA layers to the model; after this only they are trained.

    Raises:
        ArgumentError: the model has no layer of a name in ``keys``, or mlx-lm cannot adapt one.
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
        raise ArgumentError(
            Option("num_layers", layout.num_layers), f" exceeds the model's {len(model.layers)} blocks."
        )
    try:
        linear_to_lora_layers(model, layout.num_layers, layout.parameters(), use_dora=layout.fine_tune_type == "dora")
    except ValueError as error:
        raise ArgumentError(f"This layer cannot be adapted: {first_line(error)}") from error


def unfreeze_for_full(model: nn.Module, num_layers: int, frozen: Sequence[str] = ()) -> None:
    """Train all weights, or those of the last ``num_layers`` blocks.

    Args:
        model: mlx-lm's model.
        num_layers: 0 or less for all.
        frozen: modules that stay frozen, by name or pattern (``model.norm``, ``model.layers.*.mlp``).

    Raises:
        ArgumentError: the weights are quantised and so have no gradient, or a pattern matches no module.
    """
    if is_quantized(model):
        lora = Option("fine_tune_type", "lora")
        raise ArgumentError("Quantised weights cannot be trained in full. Use ", lora, ", or an unquantised model.")
    model.freeze()
    if num_layers <= 0:
        model.unfreeze()
    for layer in model.layers[-num_layers:] if num_layers > 0 else []:
        layer.unfreeze()
    for pattern in frozen:
        fitting = [module for name, module in model.named_modules() if name and fnmatchcase(name, pattern)]
        if not fitting:
            raise ArgumentError(
                Option("frozen"), f" names {pattern!r}, which is not a module of this model, such as model.norm."
            )
        for module in fitting:
            module.freeze()


def is_quantized(model: nn.Module) -> bool:
    """Whether some weights are packed."""
    return any(name.endswith(".scales") for name, _ in named_arrays(model.parameters()))


def count_trainable(model: nn.Module) -> tuple[int, int]:
    """The number of trained parameters, and of all; a quantised model's are counted as before quantising."""
    trained = sum(value.size for _, value in named_arrays(model.trainable_parameters()))
    return trained, int(get_total_parameters(model))


def load_weights(model: nn.Module, weights: Mapping[str, mx.array], source: str) -> None:
    """Load an adapter's weights into a model whose layers are adapted.

    Raises:
        AdapterError: the model has no such tensor.
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


def read_layout(folder: Path) -> AdapterLayout:
    """Read mlx-lm's ``adapter_config.json``.

    Raises:
        AdapterError: it is missing or incomplete.
    """
    path = folder / ADAPTER_CONFIG
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        kind = content.get("fine_tune_type", "lora")
        return layout_from(kind, int(content["num_layers"]), content["lora_parameters"])
    except (OSError, ValueError) as error:
        raise AdapterError(unreadable(path, error)) from error
    except (KeyError, TypeError) as error:
        raise AdapterError(f"{path} does not describe an adapter in mlx-lm's layout: {error!r}.") from error
