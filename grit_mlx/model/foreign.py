"""Checkpoints as other programs save them, in mlx-lm's terms: entries of config.json, names of tensors, heads.

transformers 5 renames entries of configs, nests others and leaves out what has its default; embedders are exported
without the language-model head, and from ``AutoModel`` without the first part of the names. mlx-lm reads what
``AutoModelForCausalLM`` of transformers 4 wrote.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.utils import _get_classes

__all__ = ["HEAD", "config_fixes", "fitting_classes", "has_head", "renames"]

HEAD = "lm_head"

# Entries of transformers 5's rope_parameters that mlx-lm reads beside the others of the config.
_ROPE = ("rope_theta", "partial_rotary_factor")

# The part of a name before a block's number: "model.layers.", "transformer.h.", "layers.".
_BLOCK = re.compile(r"^(?P<before>(?!.*(?:vision|visual|audio|image))(?:.*\.)?)(?P<blocks>layers|h|blocks)\.0\.")
_WRAPPERS = re.compile(r"^(?:module\.|_orig_mod\.|base_model\.model\.)+")


def config_fixes(config: Mapping[str, Any], tensors: Collection[str]) -> dict[str, Any]:
    """The entries of a ``config.json`` that mlx-lm would misread or miss, in the form that it reads.

    Args:
        config: the file's contents.
        tensors: names of the checkpoint's tensors.

    Returns:
        Entries to put over ``config``.
    """
    fixes = _rope_fixes(config)
    # mlx-lm's llama ties the embeddings by default, and then silently drops the head; Hugging Face leaves the key out
    # if it has its default, which differs by architecture. The checkpoint knows whether it has a head; one that has
    # none and should is an embedding-only export.
    if config.get("tie_word_embeddings") is None and "text_config" not in config:
        fixes["tie_word_embeddings"] = not has_head(tensors) and _default(config, "tie_word_embeddings", True)
    # EmbeddingGemma: transformers takes half of the window to either side.
    if config.get("use_bidirectional_attention") and config.get("sliding_window"):
        fixes |= {"sliding_window": config["sliding_window"] // 2 + 1, "use_bidirectional_attention": False}
    if "sliding_window_pattern" not in config and "full_attention" in (config.get("layer_types") or ()):
        fixes["sliding_window_pattern"] = config["layer_types"].index("full_attention") + 1
    fixes |= _renamed_entries({**config, **fixes})
    return fixes | _missing_entries({**config, **fixes})


def has_head(tensors: Collection[str]) -> bool:
    """Whether a checkpoint holds a language-model head."""
    return any(name.rpartition(".")[0].endswith((HEAD, "embed_out", "output_layer")) for name in tensors)


def renames(tensors: Collection[str], expected: Collection[str], *, before: str | None = None) -> dict[str, str]:
    """Names of a checkpoint's tensors, and those of the model, which may have another first part.

    Args:
        tensors: stored names.
        expected: names of mlx-lm's parameters.
        before: the first part to use instead of the model's.

    Returns:
        New names by stored ones; only those that change.
    """
    plain = {name: _WRAPPERS.sub("", name) for name in tensors}
    theirs, ours = _before_blocks(plain.values()), _before_blocks(expected)
    if theirs is None or ours is None:
        return {}
    ours = ours if before is None else before
    renamed = {}
    for name, bare in plain.items():
        head = re.search(rf"(?:^|\.)({HEAD}\..+)$", bare)
        if head is not None:
            renamed[name] = next((one for one in expected if one.endswith(head[1])), head[1])
        else:
            renamed[name] = ours + bare[len(theirs) :] if bare.startswith(theirs) else bare
    if len(set(renamed.values())) < len(renamed):
        return {}
    return {name: new for name, new in renamed.items() if name != new}


def fitting_classes(tensors: Collection[str], *, without_head: bool) -> Callable[[dict[str, Any]], tuple[Any, Any]]:
    """For mlx-lm's ``load_model``: classes of an architecture whose ``sanitize`` first renames the tensors.

    Args:
        tensors: stored names.
        without_head: fill a head that the checkpoint lacks with zeros, which nothing may read.
    """

    def classes(config: dict[str, Any]) -> tuple[Any, Any]:
        kind, arguments = _get_classes(config)

        def sanitize(self: nn.Module, weights: dict[str, mx.array]) -> dict[str, mx.array]:
            expected: dict[str, mx.array] = dict(tree_flatten(self.parameters()))
            # Most architectures expect the names of their parameters, some those of a base model.
            fitted = [
                _sanitized(kind, self, {new.get(name, name): array for name, array in weights.items()})
                for new in (renames(weights, expected), renames(weights, expected, before=""))
            ]
            weights = max(fitted, key=lambda one: _fit(one, expected))
            if without_head:
                lacking = [name for name in expected if name.startswith(f"{HEAD}.") and HEAD in self]
                weights = {name: mx.zeros(expected[name].shape) for name in lacking if name not in weights} | weights
            return weights

        return type(kind.__name__, (kind,), {"sanitize": sanitize, "__module__": kind.__module__}), arguments

    return classes


def _fit(weights: Mapping[str, mx.array], expected: Mapping[str, mx.array]) -> tuple[int, int]:
    """How many parameters there are, and how many of the right shape, which quantised ones never have."""
    present = weights.keys() & expected.keys()
    return len(present), sum(weights[name].shape == expected[name].shape for name in present)


def _sanitized(kind: Any, model: nn.Module, weights: dict[str, mx.array]) -> dict[str, mx.array]:
    try:
        return kind.sanitize(model, weights) if hasattr(kind, "sanitize") else weights
    except (KeyError, ValueError, TypeError, AttributeError):  # names that it does not expect
        return {}


def _rope_fixes(config: Mapping[str, Any]) -> dict[str, Any]:
    rope = config.get("rope_parameters")
    if not isinstance(rope, Mapping):
        return {}
    fixes: dict[str, Any] = {}
    if isinstance(rope.get("full_attention"), Mapping):  # one table for each kind of layer, as in Gemma 3
        local = rope.get("sliding_attention") or {}
        if "rope_theta" in local and "rope_local_base_freq" not in config:
            fixes["rope_local_base_freq"] = local["rope_theta"]
        rope = rope["full_attention"]
    fixes |= {name: rope[name] for name in _ROPE if name in rope and name not in config}
    scaling = {key: value for key, value in rope.items() if key not in _ROPE}
    if scaling.get("rope_type", "default") != "default" and not config.get("rope_scaling"):
        fixes["rope_scaling"] = scaling
    return fixes


def _renamed_entries(config: Mapping[str, Any]) -> dict[str, Any]:
    """Entries under their other names, as transformers maps them (``num_experts``: ``num_local_experts``)."""
    aliases: Mapping[str, str] = getattr(_config_class(config.get("model_type", "")), "attribute_map", {})
    pairs = [*aliases.items(), *((name, alias) for alias, name in aliases.items())]
    read = {one.name for one in _arguments(config)} if aliases else set()
    return {
        wanted: config[there]
        for wanted, there in pairs
        if wanted in read and there in config and there not in read and wanted not in config
    }


def _arguments(config: Mapping[str, Any]) -> Sequence[dataclasses.Field[Any]]:
    """The entries that mlx-lm's architecture reads; none if it has none of the kind."""
    try:
        arguments = _get_classes(dict(config))[1]
    except (KeyError, ValueError, ImportError, SystemExit):  # olmo exits if a package of its own is missing
        return ()
    return dataclasses.fields(arguments) if dataclasses.is_dataclass(arguments) else ()


def _missing_entries(config: Mapping[str, Any]) -> dict[str, Any]:
    """What mlx-lm's architecture requires and the file leaves out, as transformers' config class has it.

    Only switches and what is derived from other entries: sizes are always written, so without one a file is damaged.
    """
    required = [
        one.name
        for one in _arguments(config)
        if one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING
    ]
    missing = [name for name in required if name not in config]
    found = {name: _DERIVED[name](config) if name in _DERIVED else _NONE for name in missing}
    found |= {
        name: value
        for name in missing
        if found[name] is _NONE and ((value := _default(config, name)) is None or isinstance(value, bool))
    }
    return {name: value for name, value in found.items() if value is not _NONE}


_NONE: Any = object()

# What transformers computes where it is used, or calls otherwise.
_DERIVED: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "head_dim": lambda config: (
        config["hidden_size"] // config["num_attention_heads"]
        if {"hidden_size", "num_attention_heads"} <= config.keys()
        else _NONE
    ),
    "rope_scaling": lambda config: None,
    "rotary_emb_base": lambda config: config.get("rope_theta", _NONE),
    "rotary_pct": lambda config: config.get("partial_rotary_factor", _NONE),
    "n_ctx": lambda config: config.get("n_positions", _NONE),
    "block_dim": lambda config: config.get("hidden_size", _NONE),
}


def _default(config: Mapping[str, Any], name: str, otherwise: Any = _NONE) -> Any:
    """What transformers takes for an entry that a config lacks; ``otherwise`` if it has none."""
    kind = _config_class(config.get("model_type", ""))
    if kind is None:
        return otherwise
    known = {key: value for key, value in config.items() if key not in (name, "quantization", "quantization_config")}
    try:
        return getattr(kind(**known), name, otherwise)
    except Exception:  # its checks raise anything; then the error of mlx-lm's arguments is the one to see
        return otherwise


@lru_cache
def _config_class(model_type: str) -> Any:
    from transformers import CONFIG_MAPPING

    try:
        return CONFIG_MAPPING[model_type]
    except (KeyError, ImportError):
        return None


def _before_blocks(names: Collection[str]) -> str | None:
    found = Counter(match["before"] for name in names if (match := _BLOCK.match(name)))
    return found.most_common(1)[0][0] if found else None
