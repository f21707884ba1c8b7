"""How a conversation is sampled where nobody says it: as the model's maker recommends, else as llama.cpp does."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from grit_mlx.errors import ArgumentError
from grit_mlx.model.options import GenerationOptions

__all__ = ["CHAT_SAMPLING", "chat_options", "recommended_sampling"]

logger = logging.getLogger("grit_mlx")

# llama.cpp's defaults. Always taking the likeliest token makes small models repeat themselves.
CHAT_SAMPLING: Final[Mapping[str, Any]] = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05}

_FILE = "generation_config.json"
_FIELDS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


def recommended_sampling(folder: Path) -> dict[str, Any]:
    """What a model's ``generation_config.json`` says of sampling, under the names of ``GenerationOptions``."""
    try:
        config = json.loads((folder / _FILE).read_text(encoding="utf-8"))
        found = {name: config[name] for name in _FIELDS if config.get(name) is not None}
        if config.get("do_sample") is False:
            return {"temperature": 0.0}
        if config.get("do_sample") is None and "temperature" not in found:
            return {}
        GenerationOptions(**found)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError, TypeError, ArgumentError) as error:
        logger.debug("%s is not used: %s", folder / _FILE, error)
        return {}
    return {"temperature": 1.0, **found}  # transformers' temperature where nothing else is said


def chat_options(folder: Path, given: Mapping[str, Any]) -> GenerationOptions:
    """The options of a conversation.

    Args:
        folder: of the model.
        given: what was asked for, which comes first.
    """
    return GenerationOptions(**{**(recommended_sampling(folder) or CHAT_SAMPLING), **given})
