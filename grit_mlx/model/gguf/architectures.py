"""llama.cpp's architectures in Hugging Face's terms: names of tensors, entries of ``config.json``. Tables, no reading.

Sources: llama.cpp's conversion/*.py (convert_hf_to_gguf.py), which writes such files, and its src/models, for what is
built into the program and not into the file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from grit_mlx.errors import ArchitectureError, ConfigError

__all__ = ["ARCHITECTURES", "Architecture", "Facts", "architecture_of", "config_of"]


@dataclass(frozen=True)
class Facts:
    """What a config is made of.

    Attributes:
        name: of the architecture.
        metadata: values by key.
        shapes: of the tensors, by name.
        vectors: the small tensors that belong to the config: factors of the rotation.
        place: what messages call the file.
    """

    name: str
    metadata: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    vectors: Mapping[str, NDArray[np.float32]]
    place: str

    def get(self, key: str, default: Any = None) -> Any:
        """A value of the architecture. One for each layer is taken where all are the same.

        Raises:
            ArchitectureError: the layers differ.
        """
        value = self.metadata.get(f"{self.name}.{key}", default)
        if isinstance(value, list) and not key.endswith("sliding_window_pattern"):
            if len(set(value)) != 1:
                raise ArchitectureError(f"{self.place} has layers that differ in {key}, which mlx-lm's model cannot.")
            return value[0]
        return value

    def need(self, key: str) -> Any:
        """As ``get``.

        Raises:
            ConfigError: the file does not say it.
        """
        if (value := self.get(key)) is None:
            raise ConfigError(f"{self.place} is damaged: it lacks {self.name}.{key}. Download the model again.")
        return value

    @property
    def head_size(self) -> int:
        """D."""
        return int(
            self.get("attention.key_length") or self.need("embedding_length") // self.need("attention.head_count")
        )


@dataclass(frozen=True)
class Architecture:
    """How the weights of an architecture are stored, and what its config says beyond what all do.

    Attributes:
        model_type: Hugging Face's name of it.
        blocks: parts of a layer's names: llama.cpp's and Hugging Face's.
        permuted: whether rows of queries and keys are in another order.
        norms_added: what is added to the weights of norms.
        entries: further entries of the config.
        scalings: kinds of rotation that mlx-lm's model knows.
    """

    model_type: str
    blocks: Mapping[str, str]
    permuted: bool = False
    norms_added: float = 0.0
    entries: Callable[[Facts], dict[str, Any]] = field(default=lambda facts: {})
    scalings: tuple[str, ...] = ()

    def name_of(self, stored: str) -> tuple[str, int] | None:
        """The name of a tensor and its place in a stack of experts; None if the architecture has none of that name."""
        if stored in _OUTER:
            return _OUTER[stored], 0
        match = _BLOCK.fullmatch(stored)
        if match is None:
            return None
        part = match["part"] if match["expert"] is None else f"{match['part']}_exps"
        if part not in self.blocks:
            return None
        return f"model.layers.{match['layer']}.{self.blocks[part]}.{match['leaf']}", int(match["expert"] or 0)


_OUTER = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
# The first files had experts one by one, with their number after the part: "blk.0.ffn_gate.3.weight".
_BLOCK = re.compile(r"blk\.(?P<layer>\d+)\.(?P<part>\w+)(?:\.(?P<expert>\d+))?\.(?P<leaf>weight|bias)")

_ATTENTION = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
}
_DENSE = {
    **_ATTENTION,
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_NORMED = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_GEMMA = {
    **_DENSE,
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_MIXTRAL = {
    **_ATTENTION,
    "ffn_gate_inp": "block_sparse_moe.gate",
    **{f"ffn_{part}_exps": f"block_sparse_moe.switch_mlp.{part}_proj" for part in ("gate", "up", "down")},
}


def _llama(facts: Facts) -> dict[str, Any]:
    _whole_rotation(facts)
    biased = "blk.0.attn_q.bias" in facts.shapes
    return {"head_dim": facts.head_size, "attention_bias": biased, "mlp_bias": "blk.0.ffn_up.bias" in facts.shapes}


def _mixtral(facts: Facts) -> dict[str, Any]:
    _whole_rotation(facts)
    return {"num_local_experts": facts.need("expert_count"), "num_experts_per_tok": facts.need("expert_used_count")}


def _whole_rotation(facts: Facts) -> None:
    rotated = facts.get("rope.dimension_count", facts.head_size)
    if rotated != facts.head_size:
        raise ArchitectureError(
            f"{facts.place} rotates {rotated} of the {facts.head_size} numbers of a head, which mlx-lm's model cannot."
        )


# Models that scale queries by the width of a head as if heads shared the whole hidden size, by their layers.
_SCALED_BY_HIDDEN_SIZE = {("gemma2", 46), ("gemma3", 62)}


def _gemma(facts: Facts) -> dict[str, Any]:
    size = facts.head_size
    if (facts.name, facts.need("block_count")) in _SCALED_BY_HIDDEN_SIZE:
        scalar = facts.need("embedding_length") // facts.need("attention.head_count")
    else:
        scalar = size
    return {"head_dim": size, "query_pre_attn_scalar": scalar, "hidden_activation": "gelu_pytorch_tanh"}


def _gemma2(facts: Facts) -> dict[str, Any]:
    return {
        **_gemma(facts),
        "attn_logit_softcapping": facts.get("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": facts.get("final_logit_softcapping", 30.0),
        "sliding_window": facts.get("attention.sliding_window", 4096),
    }


def _gemma3(facts: Facts) -> dict[str, Any]:
    if facts.get("final_logit_softcapping") or facts.get("attn_logit_softcapping"):
        raise ArchitectureError(f"{facts.place} caps its logits, which mlx-lm's gemma3 does not.")
    pattern = facts.get("attention.sliding_window_pattern", 6)
    if isinstance(pattern, list):  # whether each layer slides its window
        pattern = pattern.index(False) + 1 if False in pattern else len(pattern) + 1
    return {
        **_gemma(facts),
        "rope_theta": facts.get("rope.freq_base", 1e6),
        "rope_local_base_freq": facts.get("rope.freq_base_swa", 1e4),
        "sliding_window": facts.need("attention.sliding_window"),
        "sliding_window_pattern": pattern,
    }


def _phi3(facts: Facts) -> dict[str, Any]:
    return {
        "partial_rotary_factor": facts.get("rope.dimension_count", facts.head_size) / facts.head_size,
        "original_max_position_embeddings": facts.get(
            "rope.scaling.original_context_length", facts.get("context_length", 4096)
        ),
    }


def _qwen3_moe(facts: Facts) -> dict[str, Any]:
    return {
        "head_dim": facts.head_size,
        "num_experts": facts.need("expert_count"),
        "num_experts_per_tok": facts.need("expert_used_count"),
        "moe_intermediate_size": facts.need("expert_feed_forward_length"),
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


_ANY_SCALING = ("linear", "yarn", "llama3")

# By llama.cpp's name; a llama with experts is Mixtral.
ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture("llama", _DENSE, True, 0.0, _llama, _ANY_SCALING),
    "mixtral": Architecture("mixtral", _MIXTRAL, True, 0.0, _mixtral),
    "qwen2": Architecture("qwen2", _DENSE, scalings=("linear", "yarn")),
    "qwen3": Architecture(
        "qwen3", {**_DENSE, **_NORMED}, False, 0.0, lambda facts: {"head_dim": facts.head_size}, ("linear", "yarn")
    ),
    "qwen3moe": Architecture(
        "qwen3_moe",
        {
            **_ATTENTION,
            **_NORMED,
            "ffn_gate_inp": "mlp.gate",
            **{f"ffn_{part}_exps": f"mlp.switch_mlp.{part}_proj" for part in ("gate", "up", "down")},
        },
        entries=_qwen3_moe,
        scalings=("linear", "yarn"),
    ),
    "gemma": Architecture("gemma", _DENSE, False, 1.0, _gemma),
    "gemma2": Architecture("gemma2", _GEMMA, False, 1.0, _gemma2),
    "gemma3": Architecture("gemma3_text", {**_GEMMA, **_NORMED}, False, 1.0, _gemma3, ("linear",)),
    "phi3": Architecture(
        "phi3",
        {
            "attn_norm": "input_layernorm",
            "attn_qkv": "self_attn.qkv_proj",
            "attn_output": "self_attn.o_proj",
            "ffn_norm": "post_attention_layernorm",
            "ffn_up": "mlp.gate_up_proj",
            "ffn_down": "mlp.down_proj",
        },
        entries=_phi3,
        scalings=("linear", "longrope"),
    ),
}

# What names a model of Mistral's, which llama.cpp stores as a llama.
_MISTRAL = re.compile("mistral|gritlm", re.IGNORECASE)


def architecture_of(facts: Facts) -> Architecture:
    """The architecture that a file names.

    Raises:
        ArchitectureError: it is not known, or the file does not hold a complete model.
    """
    kind = facts.metadata.get("general.type", "model")
    if kind != "model":
        raise ArchitectureError(f"{facts.place} holds no model: its type is {kind!r}. Name the file of the model.")
    name = facts.name
    if name == "llama" and facts.get("expert_count"):
        name = "mixtral"
    if name not in ARCHITECTURES:
        raise ArchitectureError(
            f"{facts.place} has the architecture {name!r}, which cannot be read from GGUF here; "
            f"{', '.join(ARCHITECTURES)} can. Use the model's Hugging Face checkpoint, or an MLX one."
        )
    return ARCHITECTURES[name]


def config_of(architecture: Architecture, facts: Facts) -> dict[str, Any]:
    """The contents of ``config.json``.

    Raises:
        ArchitectureError: something that mlx-lm's model cannot compute.
        ConfigError: the file lacks something.
    """
    heads = facts.need("attention.head_count")
    named = " ".join(str(facts.metadata.get(f"general.{key}", "")) for key in ("name", "basename", "finetune"))
    mistral = architecture.model_type == "llama" and _MISTRAL.search(f"{named} {facts.place.rpartition('/')[2]}")
    config = {
        "model_type": "mistral" if mistral else architecture.model_type,
        "hidden_size": facts.need("embedding_length"),
        "num_hidden_layers": facts.need("block_count"),
        "intermediate_size": facts.get("feed_forward_length") or facts.get("expert_feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": facts.get("attention.head_count_kv", heads),
        "rms_norm_eps": _short(facts.need("attention.layer_norm_rms_epsilon")),
        "max_position_embeddings": facts.get("context_length", 2048),
        "rope_theta": _short(facts.get("rope.freq_base", 10000.0)),
        "vocab_size": facts.shapes["token_embd.weight"][0],
        "tie_word_embeddings": "output.weight" not in facts.shapes,
        "hidden_act": "silu",
        **architecture.entries(facts),
    }
    for name in _SIZES:
        if not isinstance(config[name], int) or config[name] < 1:
            raise ConfigError(f"{facts.place} is damaged: its {name} is {config[name]}. Download the model again.")
    layers = {name.split(".")[1] for name in facts.shapes if name.startswith("blk.")}
    if len(layers) != config["num_hidden_layers"]:
        raise ConfigError(
            f"{facts.place} says that it has {config['num_hidden_layers']} layers and holds {len(layers)}. Download "
            "the model again."
        )
    scaling = _scaling(facts, config)
    if scaling is not None:
        if scaling["type"] not in architecture.scalings:
            raise ArchitectureError(
                f"{facts.place} scales its rotation by {scaling['type']}, which mlx-lm's {config['model_type']} does "
                "not. Use another model."
            )
        config["rope_scaling"] = {**scaling, "rope_type": scaling["type"]}
    return config


_SIZES = (
    *("hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads", "num_key_value_heads"),
    *("max_position_embeddings", "vocab_size"),
)


def _short(value: float) -> float:
    """A number that was rounded to float32, as it was written before: 9.999999747e-06 was 1e-05."""
    return float(np.format_float_positional(np.float32(value), unique=True))


def _scaling(facts: Facts, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """How positions beyond the trained ones are rotated, under mlx-lm's names; None if as all."""
    short, long = (facts.vectors.get(f"rope_factors_{name}.weight") for name in ("short", "long"))
    if short is not None and long is not None:
        return _longrope(facts, config, short, long)
    if (factors := facts.vectors.get("rope_freqs.weight")) is not None and not np.all(factors == 1):
        return _llama3(facts, config, factors)
    kind, factor = facts.get("rope.scaling.type"), facts.get("rope.scaling.factor", facts.get("rope.scale_linear"))
    if kind in (None, "linear"):
        return None if factor in (None, 0, 1) else {"type": "linear", "factor": _short(factor)}
    if kind == "none":
        return None
    if kind != "yarn" or factor is None:
        raise ArchitectureError(f"{facts.place} scales its rotation by {kind}, which cannot be read from GGUF here.")
    if abs(facts.get("rope.scaling.attn_factor", 1.0) - 1) > 1e-6:
        raise ArchitectureError(
            f"{facts.place} scales attention by {facts.get('rope.scaling.attn_factor'):g} beside YaRN, which mlx-lm "
            "does not."
        )
    yarn = {"type": "yarn", "factor": _short(factor)}
    yarn["original_max_position_embeddings"] = facts.get(
        "rope.scaling.original_context_length", config["max_position_embeddings"]
    )
    named = {"beta_fast": "rope.scaling.yarn_beta_fast", "beta_slow": "rope.scaling.yarn_beta_slow"}
    return yarn | {name: _short(facts.get(key)) for name, key in named.items() if facts.get(key) is not None}


def _longrope(
    facts: Facts, config: Mapping[str, Any], short: NDArray[np.float32], long: NDArray[np.float32]
) -> dict[str, Any]:
    original = facts.get("rope.scaling.original_context_length", config["max_position_embeddings"])
    factor = config["max_position_embeddings"] / original
    computed = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    if abs(facts.get("rope.scaling.attn_factor", computed) - computed) > 1e-3:
        raise ArchitectureError(
            f"{facts.place} scales attention by {facts.get('rope.scaling.attn_factor'):g}, and mlx-lm by {computed:g}."
        )
    return {
        "type": "longrope",
        "short_factor": [_short(value) for value in short],
        "long_factor": [_short(value) for value in long],
        "original_max_position_embeddings": original,
    }


# Llama 3's: low and high frequency factor, and the length of the training. Only their ratios matter.
_LLAMA3 = (1.0, 4.0, 8192)


def _llama3(facts: Facts, config: Mapping[str, Any], factors: NDArray[np.float32]) -> dict[str, Any]:
    """Llama 3's three numbers, found from what they make of each frequency."""
    size = 2 * len(factors)
    wavelengths = 2 * np.pi * config["rope_theta"] ** (np.arange(0, size, 2) / size)
    factor = float(factors.max())
    for low, high, original in (_LLAMA3, _fitted(wavelengths, factors, factor)):
        if original <= 0 or not np.allclose(_smoothed(wavelengths, factor, low, high, original), factors, rtol=2e-3):
            continue
        return {
            "type": "llama3",
            "factor": _short(factor),
            "low_freq_factor": low,
            "high_freq_factor": high,
            "original_max_position_embeddings": original,
        }
    raise ArchitectureError(f"{facts.place} scales its rotation (rope_freqs.weight) in a way that mlx-lm does not.")


def _smoothed(
    wavelengths: NDArray[np.float64], factor: float, low: float, high: float, original: float
) -> NDArray[np.float64]:
    """What wavelengths are multiplied by; see mlx-lm's ``Llama3RoPE``."""
    smooth = np.clip((original / wavelengths - low) / (high - low), 0, 1)
    return np.asarray(1 / ((1 - smooth) / factor + smooth))


def _fitted(
    wavelengths: NDArray[np.float64], factors: NDArray[np.float32], factor: float
) -> tuple[float, float, float]:
    """The numbers whose factors these are, with a low frequency factor of 1; a length of 0 if there are none."""
    between = (factors > 1 + 1e-4) & (factors < factor * (1 - 1e-4))
    if between.sum() < 2:
        return 1.0, 4.0, 0
    smooth = (1 / factors[between].astype(np.float64) - 1 / factor) / (1 - 1 / factor)
    slope, start = np.polyfit(1 / wavelengths[between], smooth, 1)
    high = 1 - 1 / start
    return 1.0, float(round(high, 3)), float(round(slope * (high - 1)))
