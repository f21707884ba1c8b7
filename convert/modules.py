"""The files by which sentence-transformers opens a converted model: the other side of ``model/sentence_transformers``.

::

    MODEL/
      modules.json                       transformer, pooling, (linear layer), (length 1)
      sentence_bert_config.json          how transformers loads it: both sides of a text seen, padding, length
      config_sentence_transformers.json  prompts, and the versions that are needed
      1_Pooling/config.json
      2_Dense/config.json, model.safetensors
      3_Normalize/                       has no file

transformers' decoders are causal, and a folder that opened with causal attention would give wrong vectors without a
word. So: ``config.json`` says ``is_causal: true``, which is what answers are written with, and sentence-transformers is
told to load the config with ``is_causal: false``. (transformers drops an argument that the config does not have, hence
the first.) transformers heeds it since 5.2; a version before that is refused by sentence-transformers 6, and older ones
of that know no ``query_length``. Only architectures whose vectors were compared are described
(tests/integrations/test_sentence_transformers.py): some heed ``is_causal`` only where a batch is padded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import mlx.core as mx

from grit_mlx.model.checkpoint import read_header
from grit_mlx.model.pooling import AVERAGING
from grit_mlx.model.settings import ROLES, Settings

__all__ = ["ARCHITECTURES", "NEEDED", "modules_of", "why_not", "write_modules"]

# What both sides compute alike, and name alike.
ARCHITECTURES: Final = ("granite", "llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3", "smollm3")
_ROPE: Final = ("default", "linear", "llama3")

NEEDED: Final = {"sentence_transformers": "6.0.0", "transformers": "5.2.0"}
_REASON: Final = "Older versions would embed with causal attention."

_TRANSFORMER: Final = "sentence_transformers.base.modules.transformer.Transformer"
_POOLING: Final = "sentence_transformers.sentence_transformer.modules.pooling.Pooling"
_DENSE: Final = "sentence_transformers.base.modules.dense.Dense"
_NORMALIZE: Final = "sentence_transformers.base.modules.normalize.Normalize"

_DENSE_FOLDER: Final = "2_Dense"
_PROJECTION: Final = "projection.safetensors"


def why_not(settings: Settings, config: Mapping[str, Any], tokenizer: Mapping[str, Any]) -> str:
    """Why sentence-transformers cannot open a model; "" if it can.

    Args:
        settings: the model's.
        config: its ``config.json``.
        tokenizer: its ``tokenizer_config.json``.
    """
    kind = config.get("model_type")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    rope_kind = rope.get("rope_type") or rope.get("type") or "default"
    pools_text = not settings.pool_prompt and settings.pooling in AVERAGING
    reasons = {
        "PyTorch cannot read MLX's quantised weights": "quantization" in config,
        f"its architecture, {kind}, was not compared": kind not in ARCHITECTURES,
        f"its positions, {rope_kind}, were not compared": rope_kind not in _ROPE,
        "its sliding window reaches elsewhere there": bool(config.get("use_sliding_window")),
        "it weights positions that follow an instruction from 1 on": pools_text and settings.pooling == "weightedmean",
        "its tokenizer appends a token to each text": bool(tokenizer.get("add_eos_token")),
        "its tokenizer has no token to pad with": _padding(tokenizer) is None,
    }
    return next((reason for reason, applies in reasons.items() if applies), "")


def modules_of(
    settings: Settings, config: Mapping[str, Any], tokenizer: Mapping[str, Any], dense: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The content of each file, by its name.

    Args:
        settings: the model's; ``why_not`` knows of no reason.
        config: its ``config.json``.
        tokenizer: its ``tokenizer_config.json``.
        dense: the shapes of the linear layer's ``weight``, ``(P, E)``, and ``bias``; None if there is none.
    """
    modules = [("", _TRANSFORMER), ("1_Pooling", _POOLING)]
    modules += [(_DENSE_FOLDER, _DENSE)] if dense else []
    modules += [(f"{len(modules)}_Normalize", _NORMALIZE)] if settings.normalized else []
    loading = {"pad_token": _padding(tokenizer), "padding_side": "right", "truncation_side": "right"}
    transformer: dict[str, Any] = {"max_seq_length": settings.max_length, "processor_kwargs": loading}
    # No sliding window: mlx-lm and the official package have none, and texts are shorter.
    transformer["config_kwargs"] = {"is_causal": settings.causal, "sliding_window": None}
    if "sliding_window" not in config:
        del transformer["config_kwargs"]["sliding_window"]
    files: dict[str, Any] = {
        "modules.json": [
            {"idx": i, "name": str(i), "path": path, "type": kind} for i, (path, kind) in enumerate(modules)
        ],
        "sentence_bert_config.json": {**transformer, "query_length": None},
        "config_sentence_transformers.json": {
            "model_type": "SentenceTransformer",
            "__version__": NEEDED,
            "requirements": {"transformers": {"specifier": f">={NEEDED['transformers']}", "reason": _REASON}},
            "prompts": {role: settings.prompt(settings.instruction(role)) for role in ROLES},
            "default_prompt_name": "document",
            "similarity_fn_name": "cosine",
        },
        "1_Pooling/config.json": {
            "embedding_dimension": config["hidden_size"],
            "pooling_mode": settings.pooling,
            "include_prompt": settings.pool_prompt or settings.pooling not in AVERAGING,
        },
    }
    if dense:
        size, inner = dense["weight"]
        files[f"{_DENSE_FOLDER}/config.json"] = {
            "in_features": inner,
            "out_features": size,
            "bias": "bias" in dense,
            "activation_function": "torch.nn.modules.linear.Identity",
        }
    return files


def write_modules(folder: Path, settings: Settings, config: Mapping[str, Any]) -> str:
    """Write them for the model in a folder, whose tokenizer and projection are there.

    Returns:
        Why nothing was written; "" if it was. Then ``config.json`` needs an entry ``is_causal``.
    """
    path = folder / "tokenizer_config.json"
    tokenizer: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if reason := why_not(settings, config, tokenizer):
        return reason
    projection = folder / _PROJECTION
    dense = {name: tensor.shape for name, tensor in read_header(projection).items()} if projection.exists() else None
    for name, content in modules_of(settings, config, tokenizer, dense).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if dense:
        arrays: Any = mx.load(str(projection))
        layer = {f"linear.{name}": array.astype(mx.float32) for name, array in arrays.items()}
        mx.save_safetensors(str(folder / _DENSE_FOLDER / "model.safetensors"), layer, {"format": "pt"})
    return ""


def _padding(tokenizer: Mapping[str, Any]) -> str | None:
    """The token that texts are padded with, whichever it is: no text attends to it."""
    for name in ("pad_token", "eos_token", "bos_token", "unk_token"):
        token = tokenizer.get(name)
        if content := token.get("content") if isinstance(token, Mapping) else token:
            return str(content)
    return None
