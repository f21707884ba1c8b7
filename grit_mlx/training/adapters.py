"""What is trained: LoRA or DoRA layers, or all weights; and adapters in mlx-lm's layout on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import mlx.nn as nn
from mlx.utils import tree_unflatten
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear
from mlx_lm.utils import get_total_parameters

from grit_mlx.errors import ArgumentError, Option, first_line
from grit_mlx.model.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS, AdapterLayout, adapted, layout_from, targets
from grit_mlx.training.arrays import named_arrays
from grit_mlx.training.router import find_routers

__all__ = [
    "ADAPTER_WEIGHTS",
    "AdapterLayout",
    "attach_adapter",
    "choose_keys",
    "count_trainable",
    "is_quantized",
    "layout_from",
    "unfreeze_for_full",
    "write_layout",
]

_LINEAR = (nn.Linear, nn.QuantizedLinear)
_EXPERTS = (SwitchLinear, QuantizedSwitchLinear)
_ADAPTABLE = (*_LINEAR, *_EXPERTS)


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
        made = [(name, adapted(layer, layout)) for name, layer in targets(model, layout).items()]
        model.update_modules(tree_unflatten(made))
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
