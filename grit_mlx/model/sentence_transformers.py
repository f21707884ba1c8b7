"""The files that sentence-transformers writes beside a model: pooling, prompts, projection, lengths.

::

    MODEL/
      modules.json                       the modules that a text goes through, in order
      sentence_bert_config.json          max_seq_length
      config_sentence_transformers.json  prompts
      1_Pooling/config.json
      2_Dense/config.json, model.safetensors
      3_Normalize/

This is the one reader of them. ``grit.json`` goes before them, and whatever this project writes has one. The converter
writes them (``convert/modules.py``).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grit_mlx.errors import CheckpointError, ConfigError, unreadable
from grit_mlx.model.checkpoint import decoder_config, read_header

if TYPE_CHECKING:
    import mlx.core as mx

__all__ = ["FILES", "Modules", "dense_layers", "read_modules", "settings_of"]

logger = logging.getLogger("grit_mlx")

FILES = _MODULES, _PROMPTS, _LENGTH = "modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"

# Their poolings, and ours.
_POOLING = {
    "cls": "cls",
    "mean": "mean",
    "mean_sqrt_len_tokens": "mean",  # before a division by the length of the vector there is no difference
    "weightedmean": "weightedmean",
    "lasttoken": "lasttoken",
}
# Up to version 5 a flag for each.
_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}

# Names under which prompts are saved; the first that is there is used, as their ``encode_query`` and
# ``encode_document`` do.
_ROLES = {
    "query": ("query",),
    "document": ("document", "passage", "corpus"),
    "similarity": ("STS", "sts", "similarity"),
}

_IDENTITY = "torch.nn.modules.linear.Identity"


@dataclass(frozen=True)
class Modules:
    """What a text goes through after the transformer.

    Attributes:
        folder: the model's.
        pooling: one of ours.
        pools_prompt: whether a prompt's tokens take part in the pooling.
        dense: folders of linear layers, in order.
        normalized: whether vectors are divided by their length.
        prompts: by their names.
        default_prompt: the name of the one that texts of no role have.
        max_length: number of tokens; None if it is the model's own.
    """

    folder: Path
    pooling: str = "mean"
    pools_prompt: bool = True
    dense: tuple[Path, ...] = ()
    normalized: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    max_length: int | None = None

    def prompt(self, role: str) -> str:
        """The literal text that precedes texts of a role; "" for none."""
        names = (*_ROLES[role], self.default_prompt)
        return next((self.prompts[name] for name in names if name is not None and name in self.prompts), "")


def read_modules(folder: Path) -> Modules | None:
    """Read the files of a model folder; None if it has none.

    Raises:
        ConfigError: a file is damaged, or a module computes what this project cannot.
    """
    if not (folder / _MODULES).exists():
        return None
    listed = _read(folder / _MODULES, list)
    entries = sorted((one for one in listed if isinstance(one, Mapping)), key=lambda one: int(one.get("idx", 0)))
    pooling: dict[str, Any] = {}
    dense: list[Path] = []
    normalized = False
    for entry in entries:
        kind, place = str(entry.get("type", "")).rpartition(".")[2], folder / str(entry.get("path", ""))
        if kind in ("Transformer", "Dropout"):  # dropout is for training
            continue
        if kind == "Normalize":
            normalized = True
        elif kind == "Pooling":
            pooling = _pooling(place / "config.json")
        elif kind == "Dense" and not normalized:
            dense.append(_checked_dense(place))
        else:
            raise ConfigError(
                f"{folder / _MODULES} sends texts through {kind or 'an unnamed module'}, which grit-mlx does not have. "
                "Embed with sentence-transformers, or write a grit.json beside it that says how to pool."
            )
    if pooling.pop("needs_normalizing", False) and (dense or not normalized):
        raise ConfigError(f"{folder / _MODULES} pools by mean_sqrt_len_tokens without normalising, which is not known.")
    prompts = _read(folder / _PROMPTS, dict) if (folder / _PROMPTS).exists() else {}
    length = _read(folder / _LENGTH, dict) if (folder / _LENGTH).exists() else {}
    if length.get("do_lower_case"):
        raise ConfigError(f"{folder / _LENGTH} asks for texts in lower case, which grit-mlx does not make of them.")
    longest = length.get("max_seq_length")
    return Modules(
        folder,
        dense=tuple(dense),
        normalized=normalized,
        prompts={str(name): str(text or "") for name, text in (prompts.get("prompts") or {}).items()},
        default_prompt=prompts.get("default_prompt_name"),
        max_length=longest if isinstance(longest, int) and longest > 0 else None,
        **pooling,
    )


def settings_of(modules: Modules) -> dict[str, Any]:
    """The settings that a model was saved with, by their names in ``Settings``.

    Attention is not among the files: it is the architecture's own, which is causal in transformers unless its config
    says otherwise. A model that brings code of its own (as the official GritLM does) keeps GRIT's attention and,
    without prompts of its own, GRIT's format.
    """
    config = decoder_config(_read(modules.folder / "config.json", dict))
    custom = bool(config.get("auto_map"))
    bidirectional = config.get("use_bidirectional_attention") or config.get("is_causal") is False or custom
    values: dict[str, Any] = {
        "pooling": modules.pooling,
        "attn": "bbcc" if bidirectional else "cccc",
        "normalized": modules.normalized,
        "max_length": modules.max_length or _own_length(modules.folder, config),
    }
    prompts = sorted(name for name, text in modules.prompts.items() if text)
    if not custom or prompts:
        values |= {f"{role}_instruction": modules.prompt(role) for role in _ROLES}
        values |= {"prompt_format": "plain", "pool_prompt": modules.pools_prompt}
    logger.info(
        "Embedding as sentence-transformers does with this model: %s pooling, %s attention, %s, at most %d tokens%s.",
        *(values["pooling"], "bidirectional" if bidirectional else "causal"),
        *("normalised" if modules.normalized else "not normalised", values["max_length"]),
        f", prompts {', '.join(prompts)}" if prompts else "",
    )
    return values


def dense_layers(modules: Modules) -> tuple[mx.array, mx.array | None] | None:
    """The linear layers after pooling as a single one: weight ``(P, E)`` and bias ``(P,)``; None if there are none.

    Raises:
        CheckpointError: their weights are missing or do not fit each other.
    """
    import mlx.core as mx  # here: settings are read before mlx is needed

    weight: mx.array | None = None
    bias: mx.array | None = None
    for place in modules.dense:
        path = place / "model.safetensors"
        if "linear.weight" not in read_header(path):
            raise CheckpointError(f"{path} has no tensor 'linear.weight'. Download the model again.")
        arrays: Any = mx.load(str(path))
        own = arrays["linear.weight"].astype(mx.float32)
        if weight is not None and own.shape[1] != weight.shape[0]:
            raise CheckpointError(f"{path} takes {own.shape[1]} numbers and gets {weight.shape[0]}.")
        weight = own if weight is None else own @ weight
        bias = None if bias is None else own @ bias
        if "linear.bias" in arrays:
            shift = arrays["linear.bias"].astype(mx.float32)
            bias = shift if bias is None else bias + shift
    return None if weight is None else (weight, bias)


def _pooling(path: Path) -> dict[str, Any]:
    config = _read(path, dict)
    modes = config.get("pooling_mode") or [mode for flag, mode in _FLAGS.items() if config.get(flag)] or ["mean"]
    modes = [modes] if isinstance(modes, str) else list(modes)
    if len(modes) != 1 or modes[0] not in _POOLING:
        raise ConfigError(
            f"{path} pools by {' and '.join(map(str, modes))}; grit-mlx pools by one of {', '.join(_POOLING)}. "
            "Embed with sentence-transformers, or write a grit.json beside the model that says how to pool."
        )
    return {
        "pooling": _POOLING[modes[0]],
        "pools_prompt": bool(config.get("include_prompt", True)),
        "needs_normalizing": modes[0] == "mean_sqrt_len_tokens",
    }


def _checked_dense(place: Path) -> Path:
    config = _read(place / "config.json", dict)
    activation = config.get("activation_function", "torch.nn.modules.activation.Tanh")
    if activation != _IDENTITY or config.get("use_residual"):
        what = "a residual connection" if activation == _IDENTITY else str(activation).rpartition(".")[2]
        raise ConfigError(
            f"{place / 'config.json'} asks for a layer with {what}; grit-mlx has linear ones (Identity) after pooling. "
            "Embed with sentence-transformers."
        )
    return place


def _own_length(folder: Path, config: Mapping[str, Any]) -> int:
    """What the tokenizer and the model allow, as sentence-transformers takes it if no length is saved."""
    path = folder / "tokenizer_config.json"
    tokenizer = _read(path, dict) if path.exists() else {}
    lengths = [tokenizer.get("model_max_length"), config.get("max_position_embeddings")]
    # Tokenizers without a limit say 1e30.
    known = [int(length) for length in lengths if isinstance(length, int | float) and 0 < length < 1 << 40]
    return min(known, default=512)


def _read(path: Path, kind: type) -> Any:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{unreadable(path, error)} Download the model again.") from error
    if not isinstance(content, kind):
        raise ConfigError(f"{path} must hold a JSON {'object' if kind is dict else 'array'}. Download the model again.")
    return content
