"""Adapters: what they adapt, the model that they belong to, and how they are put on one.

The one reader of adapter folders, in mlx-lm's layout and in PEFT's (see ``peft``). What an adapter is made of is read
off its tensors; its config says how much there should be of it.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear
from mlx_lm.tuner.dora import DoRAEmbedding, DoRALinear
from mlx_lm.tuner.lora import LoRAEmbedding, LoRALinear, LoRASwitchLinear

from grit_mlx.errors import AdapterError, CheckpointError, Option, unreadable
from grit_mlx.model import peft
from grit_mlx.model.checkpoint import read_header
from grit_mlx.model.hub import ADAPTER_CONFIG
from grit_mlx.model.peft import AdapterLayout

__all__ = [
    "ADAPTER_CONFIG",
    "ADAPTER_WEIGHTS",
    "Adapter",
    "AdapterLayout",
    "adapted",
    "attach",
    "check_base",
    "complete",
    "fingerprint",
    "keys_of",
    "layout_from",
    "read_adapter",
    "targets",
]

ADAPTER_WEIGHTS = "adapters.safetensors"

_LINEAR = (nn.Linear, nn.QuantizedLinear)
_EXPERTS = (SwitchLinear, QuantizedSwitchLinear)
_EMBEDDINGS = (nn.Embedding, nn.QuantizedEmbedding)
_ADAPTABLE = (*_LINEAR, *_EXPERTS, *_EMBEDDINGS)
_LEAVES = {"lora": {"lora_a", "lora_b"}, "dora": {"lora_a", "lora_b", "m"}}

_ADVICE = "Use it with the model it was trained on."


@dataclass(frozen=True)
class Adapter:
    """The contents of an adapter folder.

    Attributes:
        folder: where it is.
        layout: of its layers; None if it is fully tuned weights.
        weights: by mlx-lm's names.
        base: the name of the model that it was trained on; None if it does not say.
        fingerprint: of that model; see ``fingerprint``; empty if it does not say.
        sparse: whether layers that the layout implies may be left out.
    """

    folder: Path
    layout: AdapterLayout | None
    weights: Mapping[str, mx.array]
    base: str | None = None
    fingerprint: Mapping[str, Any] = field(default_factory=dict)
    sparse: bool = False


# Reading


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


def read_adapter(folder: Path) -> Adapter:
    """Read an adapter folder, in mlx-lm's layout or PEFT's. The tensors are lazy.

    Raises:
        AdapterError: a file is missing or damaged, or it is an adapter of a kind that mlx-lm's layers cannot be.
    """
    if not folder.is_dir():
        raise AdapterError(f"There is no adapter folder {folder}.")
    foreign = not (folder / ADAPTER_WEIGHTS).exists() and (folder / peft.WEIGHTS).exists()
    if not foreign and (folder / "adapter_model.bin").exists() and not (folder / ADAPTER_WEIGHTS).exists():
        raise AdapterError(f"{folder} holds its weights as a pickle file, which can run code. Save it as safetensors.")
    weights_file = peft.WEIGHTS if foreign else ADAPTER_WEIGHTS
    for name in (ADAPTER_CONFIG, weights_file):
        if not (folder / name).exists():
            raise AdapterError(f"{folder} is not an adapter folder: it has no {name}.")
    path = folder / ADAPTER_CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        read_header(folder / weights_file)
    except (OSError, ValueError) as error:
        raise AdapterError(unreadable(path, error)) from error
    except CheckpointError as error:
        raise AdapterError(str(error)) from error
    weights: Any = mx.load(str(folder / weights_file))
    try:
        if foreign:
            base = config.get("base_model_name_or_path")
            return Adapter(folder, *peft.from_peft(config, weights), base, sparse=peft.is_sparse(config))
        kind = config.get("fine_tune_type", "lora")
        layout = None if kind == "full" else layout_from(kind, int(config["num_layers"]), config["lora_parameters"])
        return Adapter(folder, layout, weights, config.get("model"), config.get("base_model") or {})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise AdapterError(f"{path} does not describe an adapter of mlx-lm or PEFT: {error!r}.") from error


# Putting on a model


def targets(model: nn.Module, layout: AdapterLayout) -> dict[str, nn.Module]:
    """The layers of a model that an adapter adapts, by their full names, as mlx-lm chooses them."""
    modules = dict(model.named_modules())
    blocks = model.layers[-layout.num_layers :] if layout.num_layers > 0 else model.layers
    places = {id(block): name for name, block in modules.items()}
    found = {}
    for block in blocks:
        for name, module in block.named_modules():
            default = not layout.keys and (isinstance(module, _ADAPTABLE) or hasattr(module, "to_lora"))
            if name in layout.keys or (name and default):
                found[f"{places[id(block)]}.{name}"] = module
    return found | {key: modules[key] for key in layout.keys if key in modules}


def adapted(layer: nn.Module, layout: AdapterLayout) -> nn.Module:
    """A layer with LoRA or DoRA around it, as mlx-lm makes it.

    Raises:
        ValueError: mlx-lm cannot adapt it.
    """
    options: dict[str, Any] = {"r": layout.rank, "scale": layout.scale, "dropout": layout.dropout}
    dora = layout.fine_tune_type == "dora"
    if not dora and hasattr(layer, "to_lora"):
        return layer.to_lora(**options)  # type: ignore[no-any-return]
    if isinstance(layer, nn.QuantizedLinear) and dora:
        # Works around mlx-lm, whose DoRALinear.from_base takes 32 // bits numbers for each stored one, which fails for
        # 3, 5 and 6 bits; https://github.com/ml-explore/mlx-lm/pull/165 corrected LoRA alone.
        outputs, packed = layer.weight.shape
        made = DoRALinear(packed * 32 // layer.bits, outputs, **options)
        made.set_linear(layer)
        return made
    for kinds, wrappers in _WRAPPERS.items():
        if isinstance(layer, kinds) and wrappers[dora] is not None:
            return wrappers[dora].from_base(layer, **options)  # type: ignore[no-any-return]
    raise ValueError(f"{type(layer).__name__} cannot have {layout.fine_tune_type}")


_WRAPPERS: Mapping[Any, tuple[Any, Any]] = {
    _LINEAR: (LoRALinear, DoRALinear),
    _EXPERTS: (LoRASwitchLinear, None),
    _EMBEDDINGS: (LoRAEmbedding, DoRAEmbedding),
}


def attach(model: nn.Module, adapter: Adapter) -> None:
    """Put an adapter's layers around the model's, with their weights, once it is known to fit and to be complete.

    Raises:
        AdapterError: it belongs to another model, or tensors are missing.
    """
    if adapter.layout is None:
        _attach_full(model, adapter)
        return
    layout = adapter.layout
    wanted = targets(model, layout)
    parts = _parts(model, adapter)
    leaves = _LEAVES[layout.fine_tune_type]
    for module, tensors in parts.items():
        if module not in wanted:
            there = ", ".join(sorted({name.rpartition(".")[2] for name in wanted})) or "none"
            raise _misfit(adapter, f"the model has no layer {module} (it has {there})")
        if strange := tensors.keys() - leaves:
            raise _misfit(adapter, f"{module}.{min(strange)} is not part of a {layout.fine_tune_type} layer")
    lacking = [f"{name}.{leaf}" for name, tensors in parts.items() for leaf in sorted(leaves - tensors.keys())]
    if not adapter.sparse:
        lacking += [f"{name}.{leaf}" for name in wanted if name not in parts for leaf in sorted(leaves)]
    if lacking or not parts:
        some = lacking[0] if lacking else "all of them"
        raise AdapterError(
            f"The adapter {adapter.folder} is incomplete: it lacks {len(lacking) or 'its'} tensors, such as {some}. "
            "Copy or train it again."
        )
    made = {}
    for name, tensors in parts.items():
        try:
            made[name] = adapted(wanted[name], layout)
        except ValueError as error:
            raise _misfit(adapter, str(error)) from error
        for leaf, value in tensors.items():
            expected = made[name][leaf].shape
            if value.shape != expected:
                raise _misfit(adapter, f"{name}.{leaf} is {value.shape} where the model takes {expected}")
        made[name].update(tensors)
    model.update_modules(tree_unflatten(list(made.items())))


def complete(adapter: Adapter, model: nn.Module) -> Adapter:
    """The adapter by the model's names, and with zeros for the layers that its layout implies and that it leaves out.

    That is what mlx-lm's layout can say; computing, such layers are as they were.

    Raises:
        AdapterError: it leaves out layers of DoRA, which need the lengths of the model's weights.
    """
    assert adapter.layout is not None
    parts = _parts(model, adapter)
    if adapter.sparse:
        adapter = replace(adapter, layout=replace(adapter.layout, num_layers=_blocks_of(model, parts)))
    assert adapter.layout is not None
    missing = {name: layer for name, layer in targets(model, adapter.layout).items() if name not in parts}
    if missing and not adapter.sparse:
        return adapter  # attaching says what is missing
    if missing and adapter.layout.fine_tune_type == "dora":
        raise AdapterError(f"{adapter.folder} has DoRA in some blocks only, which mlx-lm's layout cannot say.")
    for name, layer in missing.items():
        fresh = adapted(layer, adapter.layout)
        parts[name] = {leaf: mx.zeros(fresh[leaf].shape) for leaf in _LEAVES["lora"]}
    weights = {f"{name}.{leaf}": value for name, tensors in parts.items() for leaf, value in tensors.items()}
    return replace(adapter, weights=weights, sparse=False)


def keys_of(model: nn.Module, adapter: Adapter) -> tuple[str, ...]:
    """The names below a block, or else of the model, of the layers that an adapter adapts."""
    places = {id(block): name for name, block in model.named_modules() if any(block is one for one in model.layers)}
    blocks = tuple(f"{name}." for name in places.values())
    names = _parts(model, adapter)
    return tuple(
        dict.fromkeys(
            next((name.removeprefix(block) for block in blocks if name.startswith(block)), name) for name in names
        )
    )


def _blocks_of(model: nn.Module, names: Collection[str]) -> int:
    """mlx-lm's ``num_layers``: how many blocks, from the last, hold layers of these names; -1 for all."""
    places = [f"{name}." for block in model.layers for name, module in model.named_modules() if module is block]
    first = next((i for i, place in enumerate(places) if any(name.startswith(place) for name in names)), 0)
    return len(places) - first if first else -1


def _parts(model: nn.Module, adapter: Adapter) -> dict[str, dict[str, mx.array]]:
    parts: dict[str, dict[str, mx.array]] = defaultdict(dict)
    for name, value in _named_as_in(dict(model.named_modules()), adapter.weights).items():
        module, _, leaf = name.rpartition(".")
        parts[module][leaf] = value
    return parts


def _attach_full(model: nn.Module, adapter: Adapter) -> None:
    known: dict[str, mx.array] = dict(tree_flatten(model.parameters()))
    for name, value in adapter.weights.items():
        if name not in known or known[name].shape != value.shape:
            there = f"takes {known[name].shape}" if name in known else "has no such tensor"
            raise _misfit(adapter, f"{name} is {value.shape} and the model {there}")
    model.load_weights(list(adapter.weights.items()), strict=False)


def _named_as_in(modules: Collection[str], weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """The tensors with the model's own first part of the names, which differs for models of text and images."""
    theirs = {name.partition("layers.")[0] for name in weights if "layers." in name}
    ours = {name.partition("layers.")[0] for name in modules if ".layers.0" in f".{name}"}
    if len(theirs) != 1 or len(ours) != 1 or theirs == ours:
        return dict(weights)
    [old], [new] = theirs, ours
    return {new + name.removeprefix(old) if name.startswith(old) else name: value for name, value in weights.items()}


def _misfit(adapter: Adapter, problem: str) -> AdapterError:
    of = f" It was trained on {adapter.base}." if adapter.base else ""
    return AdapterError(f"The adapter {adapter.folder} does not fit the model: {problem}. {_ADVICE}{of}")


# Its base

# Numbers of a fingerprint: a corner of the first linear layer of three blocks.
_CORNER = 8
# How far the numbers of one model differ from each other: rounded to half precision, or quantised to 2 bits.
_ROUNDED, _QUANTIZED = 0.02, 0.7


def fingerprint(model: nn.Module, config: Mapping[str, Any]) -> dict[str, Any]:
    """What tells a model from others of its shape: some of its numbers, and whether they are rounded.

    Quantising, casting and an adapter around the layers leave it recognisable.

    Args:
        model: mlx-lm's model, perhaps with LoRA or DoRA layers.
        config: its ``config.json``.
    """
    blocks = model.layers
    numbers = []
    for block in {id(blocks[i]): blocks[i] for i in (0, len(blocks) // 2, -1)}.values():
        layers = {
            name.removesuffix(".linear"): module
            for name, module in block.named_modules()
            if isinstance(module, _LINEAR)
        }
        if layers:
            numbers.append(_corner(layers[min(layers)]))
    sketch = np.concatenate(numbers) if numbers else np.zeros(0, np.float16)
    packed = any(config.get(name) for name in ("quantization", "quantization_config"))
    return {"weights": base64.b64encode(sketch.astype("<f2").tobytes()).decode(), "quantized": packed}


def check_base(adapter: Adapter, model: nn.Module, config: Mapping[str, Any]) -> None:
    """Refuse a model that the adapter was not trained on.

    Raises:
        AdapterError: its numbers are not those of the adapter's model.
    """
    stored, own = adapter.fingerprint, fingerprint(model, config)
    theirs, ours = _numbers(stored), _numbers(own)
    if not len(theirs) or not len(ours):
        return
    differs = len(theirs) != len(ours)
    if not differs:
        distance = float(np.linalg.norm(theirs - ours)) / max(float(np.linalg.norm(theirs)), 1e-12)
        differs = distance > (_QUANTIZED if stored.get("quantized") or own["quantized"] else _ROUNDED)
    if differs:
        name = adapter.base or "another model"
        raise AdapterError(
            f"The adapter {adapter.folder} was trained on {name}, whose weights are not this model's. Name that model "
            "with ",
            *(Option("model"), "."),
        )


def _corner(layer: Any) -> np.ndarray[Any, Any]:
    rows = layer.weight[:_CORNER]
    if isinstance(layer, nn.QuantizedLinear):
        biases = None if layer.biases is None else layer.biases[:_CORNER]
        rows = mx.dequantize(
            rows, layer.scales[:_CORNER], biases, group_size=layer.group_size, bits=layer.bits, mode=layer.mode
        )
    return np.array(rows[:, :_CORNER].astype(mx.float32)).reshape(-1)


def _numbers(stored: Mapping[str, Any]) -> np.ndarray[Any, Any]:
    try:
        return np.frombuffer(base64.b64decode(str(stored.get("weights", ""))), dtype="<f2").astype(np.float32)
    except (binascii.Error, ValueError):
        return np.zeros(0, np.float32)
