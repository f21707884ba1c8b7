"""LoRA adapters in PEFT's layout and in mlx-lm's: the same numbers under other names, transposed.

==================  ==========================================  =========================================
                    mlx-lm                                      PEFT
==================  ==========================================  =========================================
low-rank input      ``lora_a`` (in, r)                          ``lora_A.weight`` (r, in)
low-rank output     ``lora_b`` (r, out)                         ``lora_B.weight`` (out, r)
DoRA's magnitude    ``m`` (out,)                                ``lora_magnitude_vector.weight`` (out,)
strength            ``scale``                                   ``lora_alpha`` / ``r``
experts             one tensor for all (X, r, in), (X, out, r)  one for each, by Mixtral's names
==================  ==========================================  =========================================
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

from grit_mlx.errors import AdapterError, CheckpointError, unreadable
from grit_mlx.files.atomic import output_errors
from grit_mlx.model.checkpoint import read_header
from grit_mlx.training.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS, AdapterLayout, read_layout, write_layout
from grit_mlx.training.arrays import read_arrays, save_arrays

__all__ = ["export_peft", "from_peft", "import_peft", "load_any_adapter", "to_peft"]

PEFT_WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."

# mlx-lm's leaf, PEFT's, and whether the matrix is transposed.
_LEAVES = {
    "lora_a": ("lora_A.weight", True),
    "lora_b": ("lora_B.weight", True),
    "m": ("lora_magnitude_vector.weight", False),
}
_BACK = {theirs: (ours, transposed) for ours, (theirs, transposed) in _LEAVES.items()}

# Mixtral's experts: mlx-lm's stacked layer and the name of each expert's.
_EXPERTS = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}
_STACKED = re.compile(r"(.*block_sparse_moe)\.switch_mlp\.(\w+)$")
_EXPERT = re.compile(r"(.*block_sparse_moe)\.experts\.(\d+)\.(w\d)$")
_LAYER = re.compile(r"(?:model\.|language_model\.)*layers\.(\d+)\.(.+)$")

# Entries of PEFT's config that change what an adapter computes, and the value that mlx-lm's layers can do.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "modules_to_save": (None, []),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "fan_in_fan_out": (False, None),
    "lora_bias": (False, None),
}


def to_peft(
    layout: AdapterLayout, weights: Mapping[str, mx.array], *, base: str, layers: int
) -> tuple[dict[str, Any], dict[str, mx.array]]:
    """PEFT's config and tensors of an adapter.

    Args:
        layout: mlx-lm's.
        weights: by mlx-lm's names.
        base: name of the adapter's model.
        layers: number of that model's blocks.
    """
    tensors: dict[str, mx.array] = {}
    for name, value in weights.items():
        module, _, leaf = name.rpartition(".")
        theirs, transposed = _LEAVES[leaf]
        if match := _STACKED.match(module):
            for expert in range(value.shape[0]):  # stored as PEFT does, stacked
                inner = f"{match[1]}.experts.{expert}.{_EXPERTS[match[2]]}"
                tensors[f"{_PREFIX}{inner}.{theirs}"] = value[expert]
        else:
            tensors[f"{_PREFIX}{module}.{theirs}"] = value.T if transposed else value
    first = layers - layout.num_layers if 0 < layout.num_layers <= layers else 0
    alpha = layout.scale * layout.rank
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": layout.rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": layout.dropout,
        "target_modules": sorted({_target(key) for key in layout.keys}),
        "layers_to_transform": list(range(first, layers)) if first else None,
        "use_dora": layout.fine_tune_type == "dora",
        "use_rslora": False,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "modules_to_save": None,
    }
    return config, {name: mx.contiguous(value) for name, value in tensors.items()}


def from_peft(
    config: Mapping[str, Any], tensors: Mapping[str, mx.array], *, layers: int
) -> tuple[AdapterLayout, dict[str, mx.array]]:
    """mlx-lm's layout and tensors of a PEFT adapter.

    Raises:
        AdapterError: it does what mlx-lm's layers cannot.
    """
    for name, allowed in _UNSUPPORTED.items():
        if name in config and config[name] not in allowed:
            raise AdapterError(
                f"A PEFT adapter with {name} = {config[name]!r} cannot be used: mlx-lm has no such layer."
            )
    weights: dict[str, mx.array] = {}
    experts: dict[str, dict[int, mx.array]] = defaultdict(dict)
    for name, value in tensors.items():
        module, leaf = _split(name)
        ours, transposed = _BACK[leaf]
        if match := _EXPERT.match(module):
            stacked = next(key for key, theirs in _EXPERTS.items() if theirs == match[3])
            experts[f"{match[1]}.switch_mlp.{stacked}.{ours}"][int(match[2])] = value
        else:
            weights[f"{module}.{ours}"] = mx.contiguous(value.T) if transposed else value
    for name, parts in experts.items():
        weights[name] = mx.stack([parts[i] for i in sorted(parts)])

    found = [_LAYER.match(name.rpartition(".")[0]) for name in weights]
    if not weights or not all(found):
        raise AdapterError("A PEFT adapter of layers outside the model's blocks cannot be used.")
    first = min(int(match[1]) for match in found if match)
    rank = int(config["r"])
    alpha = float(config.get("lora_alpha", rank))
    layout = AdapterLayout(
        fine_tune_type="dora" if config.get("use_dora") else "lora",
        num_layers=layers - first if first else -1,
        rank=rank,
        scale=_scale(alpha, math.sqrt(rank) if config.get("use_rslora") else rank),
        dropout=float(config.get("lora_dropout") or 0.0),
        keys=tuple(dict.fromkeys(match[2] for match in found if match)),
    )
    return layout, weights


def export_peft(adapter: Path, folder: Path, *, base: str, layers: int) -> None:
    """Write an adapter folder in PEFT's layout.

    Raises:
        AdapterError: ``adapter`` is not an adapter.
        OutputError: the folder cannot be written.
    """
    layout = read_layout(adapter)
    weights = _read_tensors(adapter / ADAPTER_WEIGHTS)
    config, tensors = to_peft(layout, weights, base=base, layers=layers)
    with output_errors(str(folder)):
        folder.mkdir(parents=True, exist_ok=True)
        save_arrays(folder / PEFT_WEIGHTS, tensors, written_by="pt")
        (folder / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def import_peft(adapter: Path, folder: Path, *, layers: int) -> None:
    """Write a PEFT adapter folder in mlx-lm's layout.

    Raises:
        AdapterError: ``adapter`` is not an adapter, or does what mlx-lm's layers cannot.
        OutputError: the folder cannot be written.
    """
    layout, weights = load_any_adapter(adapter, layers)
    with output_errors(str(folder)):
        folder.mkdir(parents=True, exist_ok=True)
        save_arrays(folder / ADAPTER_WEIGHTS, weights)
        write_layout(folder, layout, about={})


def load_any_adapter(folder: Path, layers: int) -> tuple[AdapterLayout, dict[str, mx.array]]:
    """An adapter folder in either layout.

    Args:
        folder: holds ``adapters.safetensors`` or PEFT's ``adapter_model.safetensors``.
        layers: number of the model's blocks.

    Raises:
        AdapterError: it is neither, or damaged.
    """
    if (folder / ADAPTER_WEIGHTS).exists():
        return read_layout(folder), _read_tensors(folder / ADAPTER_WEIGHTS)
    if not (folder / PEFT_WEIGHTS).exists():
        raise AdapterError(f"{folder} is not an adapter folder: it has neither {ADAPTER_WEIGHTS} nor {PEFT_WEIGHTS}.")
    try:
        config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        return from_peft(config, _read_tensors(folder / PEFT_WEIGHTS), layers=layers)
    except (OSError, ValueError) as error:
        raise AdapterError(unreadable(folder / ADAPTER_CONFIG, error)) from error
    except KeyError as error:
        raise AdapterError(f"{folder / ADAPTER_CONFIG} has no {error}.") from error


def _read_tensors(path: Path) -> dict[str, mx.array]:
    try:
        read_header(path)
    except CheckpointError as error:
        raise AdapterError(str(error)) from error
    return read_arrays(path)


def _split(name: str) -> tuple[str, str]:
    """A PEFT tensor's module and leaf; newer versions of PEFT leave out some ``.default`` and ``.weight``."""
    plain = name.removeprefix(_PREFIX).replace(".default", "")
    for leaf in _BACK:
        if plain.endswith("." + leaf):
            return plain.removesuffix("." + leaf), leaf
    if plain.endswith(".lora_magnitude_vector"):
        return plain.removesuffix(".lora_magnitude_vector"), "lora_magnitude_vector.weight"
    raise AdapterError(f"The PEFT adapter's tensor {name} is not one of a LoRA or DoRA layer.")


def _scale(alpha: float, over: float) -> float:
    """``alpha / over``, rounded if that is what was multiplied: 0.1 x 3 / 3 is not 0.1."""
    scale = alpha / over
    short = float(f"{scale:.15g}")
    return short if short * over == alpha else scale


def _target(key: str) -> str:
    match = _STACKED.match(key)
    return _EXPERTS[match[2]] if match else key
