"""A model with random weights, as a folder that loads like any other."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten
from mlx_lm.utils import _get_classes

from grit_mlx.errors import ArchitectureError, ConfigError, first_line, unreadable
from grit_mlx.files.atomic import output_errors
from grit_mlx.model.hub import tokenizer_files
from grit_mlx.training.arrays import named_arrays, save_arrays

__all__ = ["QUANTIZATION_KEYS", "copy_tokenizer", "random_model", "write_random_model"]

# Entries of a config.json that say how the weights are packed.
QUANTIZATION_KEYS = ("quantization", "quantization_config")


def random_model(config: Mapping[str, Any], *, seed: int) -> nn.Module:
    """A model of a ``config.json`` with normally distributed matrices and norms of 1, as GPT-2 was initialised.

    Raises:
        ArchitectureError: mlx-lm does not know the architecture, or the config lacks what it needs.
    """
    try:
        model_class, arguments = _get_classes(config=dict(config))
        model: nn.Module = model_class(arguments.from_dict(dict(config)))
    except (ValueError, TypeError, KeyError) as error:
        raise ArchitectureError(f"No model can be made from this config.json: {first_line(error)}") from error
    mx.random.seed(seed)
    scale = float(config.get("initializer_range") or 0.02)
    weights = [
        (name, mx.random.normal(value.shape, scale=scale) if value.ndim > 1 else value)
        for name, value in named_arrays(model.parameters())
    ]
    model.update(tree_unflatten(weights))
    mx.eval(model.parameters())
    return model


def write_random_model(folder: Path, *, config_path: Path, tokenizer: Path, seed: int) -> None:
    """Write a folder with random weights, the config and the tokenizer.

    Args:
        folder: made, with its parents.
        config_path: a ``config.json``.
        tokenizer: a folder with a tokenizer.
        seed: of the weights.

    Raises:
        ConfigError: the config cannot be read.
        ArchitectureError: no model can be made from it.
        TokenizerError: there is no tokenizer.
        OutputError: the folder cannot be written.
    """
    try:
        config = json.loads(config_path.read_text(encoding="utf-8"))
        if not isinstance(config.get("model_type"), str):
            raise ConfigError(f"{config_path} does not say which architecture it is: it needs a 'model_type'.")
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(unreadable(config_path, error)) from error
    # If it is left out, mlx-lm and loading, which looks for a head in the file, take it for different things.
    config.setdefault("tie_word_embeddings", False)
    model = random_model(config, seed=seed)
    with output_errors(str(folder)):
        folder.mkdir(parents=True, exist_ok=True)
        copy_tokenizer(tokenizer, folder)
        save_arrays(folder / "model.safetensors", dict(named_arrays(model.parameters())))
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy a tokenizer's files.

    Raises:
        TokenizerError: there are none.
    """
    for path in tokenizer_files(source):
        shutil.copyfile(path, folder / path.name)
