"""LoRA adapters in PEFT's layout and in mlx-lm's: the same numbers under other names, transposed (pure functions).

==================  ==========================================  =========================================
                    mlx-lm                                      PEFT
==================  ==========================================  =========================================
low-rank input      ``lora_a`` (in, r)                          ``lora_A.weight`` (r, in)
low-rank output     ``lora_b`` (r, out)                         ``lora_B.weight`` (out, r)
DoRA's magnitude    ``m`` (out,)                                ``lora_magnitude_vector.weight`` (out,)
strength            ``scale``                                   ``lora_alpha`` / ``r``
experts             one tensor for all (X, r, in), (X, out, r)  one for each, by the names of transformers 4
==================  ==========================================  =========================================
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from grit_mlx.errors import AdapterError

__all__ = ["WEIGHTS", "AdapterLayout", "from_peft", "is_sparse", "to_peft"]

WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."

# mlx-lm's leaf, PEFT's, and whether the matrix is transposed.
_LEAVES = {
    "lora_a": ("lora_A.weight", True),
    "lora_b": ("lora_B.weight", True),
    "m": ("lora_magnitude_vector.weight", False),
}
_BACK = {theirs: (ours, transposed) for ours, (theirs, transposed) in _LEAVES.items()}

# Experts: mlx-lm's stacked layer, and each expert's layer in Mixtral's block and in that of all others.
_PARTS = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}
_STACKED = re.compile(r"(.*(?P<block>block_sparse_moe|mlp))\.switch_mlp\.(?P<part>gate_proj|up_proj|down_proj)$")
_EXPERT = re.compile(r"(.*(?:block_sparse_moe|mlp))\.experts\.(\d+)\.(w[123]|gate_proj|up_proj|down_proj)$")
_LAYER = re.compile(r"(?:.*\.)?layers\.(\d+)\.(.+)$")

# Entries of PEFT's config that do not change what an adapter computes.
_HARMLESS = {
    *(
        "alpha_pattern",
        "auto_mapping",
        "base_model_name_or_path",
        "exclude_modules",
        "inference_mode",
        "layers_pattern",
    ),
    *("layers_to_transform", "lora_alpha", "lora_dropout", "peft_version", "r", "rank_pattern", "revision"),
    *("target_modules", "task_type", "use_dora", "use_rslora", "qalora_group_size", "megatron_core", "runtime_config"),
    *("eva_config", "ensure_weight_tying", "loftq_config", "corda_config", "lora_ga_config"),
}
# Those that do, and the values that mlx-lm's layers can do. Anything else must be empty.
_ALLOWED: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    # Where the low-rank matrices start; PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA also change the weights below them.
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),
}


@dataclass(frozen=True)
class AdapterLayout:
    """What mlx-lm's ``adapter_config.json`` says about an adapter.

    Attributes:
        fine_tune_type: ``"lora"`` or ``"dora"``.
        num_layers: number of last blocks that are adapted; -1 for all.
        rank: r.
        scale: factor of the low-rank product: PEFT's alpha / r.
        dropout: of the adapter's input, in training.
        keys: names of the adapted layers below a block, such as ``"self_attn.q_proj"``; empty for mlx-lm's default,
            which is all of them.
    """

    fine_tune_type: str
    num_layers: int
    rank: int
    scale: float
    dropout: float
    keys: tuple[str, ...]

    def parameters(self) -> dict[str, Any]:
        """mlx-lm's ``lora_parameters``."""
        keys = {"keys": list(self.keys)} if self.keys else {}
        return {"rank": self.rank, "scale": self.scale, "dropout": self.dropout, **keys}


def to_peft(
    layout: AdapterLayout, weights: Mapping[str, mx.array], *, base: str, layers: int
) -> tuple[dict[str, Any], dict[str, mx.array]]:
    """PEFT's config and tensors of an adapter.

    Args:
        layout: mlx-lm's.
        weights: by mlx-lm's names.
        base: name of the model it belongs to.
        layers: how many blocks that model has.

    Raises:
        AdapterError: it adapts layers that have another form in transformers.
    """
    tensors: dict[str, mx.array] = {}
    modules: dict[str, None] = {}
    for name, value in weights.items():
        module, _, leaf = name.rpartition(".")
        theirs, transposed = _LEAVES[leaf]
        if match := _STACKED.match(module):
            part = _PARTS[match["part"]] if match["block"] == "block_sparse_moe" else match["part"]
            modules[part] = None
            for expert in range(value.shape[0]):  # these are stored as PEFT's, one above the other
                tensors[f"{_PREFIX}{match[1]}.experts.{expert}.{part}.{theirs}"] = value[expert]
        elif value.ndim > 2 or "embed" in module.rpartition(".")[2]:
            raise AdapterError(f"The adapter's layer {module} has no counterpart in PEFT, so it cannot be exported.")
        else:
            modules[found[2] if (found := _LAYER.match(module)) else module] = None
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
        "target_modules": sorted(modules),
        "layers_to_transform": list(range(first, layers)) if first else None,
        "use_dora": layout.fine_tune_type == "dora",
        "use_rslora": False,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "modules_to_save": None,
    }
    return config, {name: mx.contiguous(value) for name, value in tensors.items()}


def is_sparse(config: Mapping[str, Any]) -> bool:
    """Whether a PEFT adapter may leave out layers of a kind that it adapts elsewhere."""
    chosen = ("layers_to_transform", "exclude_modules", "layers_pattern")
    return isinstance(config.get("target_modules"), str) or any(config.get(name) not in (None, []) for name in chosen)


def from_peft(
    config: Mapping[str, Any], tensors: Mapping[str, mx.array], *, layers: int | None = None
) -> tuple[AdapterLayout, dict[str, mx.array]]:
    """mlx-lm's layout and tensors of a PEFT adapter.

    Layers of other ranks and strengths (``rank_pattern``, ``alpha_pattern``) are padded and multiplied to one.

    Args:
        config: PEFT's.
        tensors: by PEFT's names.
        layers: number of the model's blocks, so that ``num_layers`` can say which are adapted; None for all.

    Raises:
        AdapterError: it does what mlx-lm's layers cannot.
    """
    _check(config)
    parts: dict[str, dict[str, mx.array]] = defaultdict(dict)
    for name, value in tensors.items():
        if not mx.issubdtype(value.dtype, mx.floating):
            raise AdapterError(
                f"The PEFT adapter's {name} holds whole numbers ({value.dtype}), not those of an adapter."
            )
        module, leaf = _split(name)
        parts[module][_BACK[leaf][0]] = value  # still as PEFT has it
    kind = "dora" if config.get("use_dora") else "lora"
    rank = max((one["lora_a"].shape[0] for one in parts.values() if "lora_a" in one), default=int(config["r"]))
    scale = _scale_of(config, float(config.get("lora_alpha", rank)), int(config["r"]))
    weights: dict[str, mx.array] = {}
    experts: dict[str, dict[int, mx.array]] = defaultdict(dict)
    for module, leaves in parts.items():
        own = leaves["lora_a"].shape[0] if "lora_a" in leaves else rank
        if "lora_b" in leaves and leaves["lora_b"].shape[-1] != own:
            shapes = " and ".join(str(leaves[name].shape) for name in ("lora_a", "lora_b") if name in leaves)
            raise AdapterError(f"The matrices of {module} in the PEFT adapter do not fit each other: {shapes}.")
        leaves = _uniform(leaves, rank, _pattern_scale(config, module, own, scale) / scale)
        match = _EXPERT.match(module)
        for ours, value in leaves.items():
            if match:
                part = next((key for key, theirs in _PARTS.items() if theirs == match[3]), match[3])
                experts[f"{match[1]}.switch_mlp.{part}.{ours}"][int(match[2])] = value
            else:
                weights[f"{module}.{ours}"] = mx.contiguous(value.T) if value.ndim > 1 else value
    for name, of in experts.items():
        if sorted(of) != list(range(len(of))):
            raise AdapterError(f"The PEFT adapter lacks some of the experts of {name.rpartition('.')[0]}.")
        weights[name] = mx.stack([of[i] for i in sorted(of)])
    found = {name: _LAYER.match(name.rpartition(".")[0]) for name in weights}
    outside = [name for name, match in found.items() if match is None and not name.startswith("lm_head.")]
    if outside or not weights:
        what = outside[0].rpartition(".")[0] if outside else "nothing"
        raise AdapterError(f"The PEFT adapter adapts {what}; only layers of the blocks and lm_head can be.")
    first = min((int(match[1]) for match in found.values() if match), default=0)
    keys = dict.fromkeys(match[2] if match else "lm_head" for match in found.values())
    layout = AdapterLayout(
        fine_tune_type=kind,
        num_layers=layers - first if first and layers else -1,
        rank=rank,
        scale=scale,
        dropout=float(config.get("lora_dropout") or 0.0),
        keys=tuple(keys),
    )
    return layout, weights


def _check(config: Mapping[str, Any]) -> None:
    for name, value in config.items():
        allowed = _ALLOWED.get(name)
        wrong = value not in allowed if allowed else name not in _HARMLESS and value not in (None, False, [], {}, "")
        if wrong and not (name == "bias" and value is None):
            why = (
                "it also changes the weights of the model"
                if name == "init_lora_weights"
                else "mlx-lm has no such layer"
            )
            raise AdapterError(
                f"A PEFT adapter with {name} = {value!r} cannot be used: {why}. Merge it into its model with PEFT "
                "(merge_and_unload), and convert that."
            )


def _uniform(leaves: Mapping[str, mx.array], rank: int, factor: float) -> dict[str, mx.array]:
    """PEFT's matrices ``(r, in)`` and ``(out, r)`` with a rank that all layers share; the product times ``factor``."""
    result = dict(leaves)
    for name, axis in (("lora_a", 0), ("lora_b", 1)):
        if name in result and (missing := rank - result[name].shape[axis]):
            result[name] = mx.pad(result[name], [(0, missing), (0, 0)] if axis == 0 else [(0, 0), (0, missing)])
    if factor != 1 and "lora_b" in result:
        result["lora_b"] = (result["lora_b"].astype(mx.float32) * factor).astype(result["lora_b"].dtype)
    return result


def _pattern_scale(config: Mapping[str, Any], module: str, rank: int, scale: float) -> float:
    """The factor of a module's low-rank product."""
    alpha = _matching(config.get("alpha_pattern"), module, config.get("lora_alpha", rank))
    changed = alpha != config.get("lora_alpha", rank) or rank != int(config["r"])
    return _scale_of(config, float(alpha), rank) if changed else scale


def _matching(pattern: Any, module: str, default: Any) -> Any:
    """PEFT's rule: a key is the end of a module's name, or a regular expression that ends it."""
    for key, value in (pattern or {}).items():
        expression = key[1:] if key.startswith("^") else rf"(?:.*\.)?(?:{key})"
        if re.match(rf"{expression}$", module):
            return value
    return default


def _scale_of(config: Mapping[str, Any], alpha: float, rank: int) -> float:
    """``alpha / r``, rounded if that is what was multiplied: 0.1 x 3 / 3 is not 0.1."""
    over = math.sqrt(rank) if config.get("use_rslora") else rank
    scale = alpha / over
    short = float(f"{scale:.15g}")
    return short if short * over == alpha else scale


def _split(name: str) -> tuple[str, str]:
    """A PEFT tensor's module and leaf; newer versions of PEFT leave out some ``.default`` and ``.weight``.

    Adapters of ``AutoModel``, as embedders have them, lack the first part of the names.
    """
    plain = name.removeprefix(_PREFIX).replace(".default", "")
    plain = f"model.{plain}" if plain.startswith("layers.") else plain
    for leaf in _BACK:
        if plain.endswith("." + leaf):
            return plain.removesuffix("." + leaf), leaf
    if plain.endswith(".lora_magnitude_vector"):
        return plain.removesuffix(".lora_magnitude_vector"), "lora_magnitude_vector.weight"
    raise AdapterError(f"The PEFT adapter's tensor {name} is not one of a LoRA or DoRA layer of a linear layer.")
