"""The size of batches that was measured to be the fastest on this device (``grit bench --tune``).

It is kept in the folder of the user's choices, by device and by the shape of the model's layers: another machine that
has the same folder, or another model, uses the size that suits most.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grit_mlx.errors import unreadable
from grit_mlx.model import device, hub
from grit_mlx.model.checkpoint import decoder_config

__all__ = ["forget", "keep", "kept", "shape_of", "tuning_file"]

logger = logging.getLogger("grit_mlx")


def tuning_file() -> Path:
    """Where it is kept."""
    return hub.home() / "batches.json"


def shape_of(config: Mapping[str, Any]) -> str:
    """What of a model the size of batches depends on: how wide its layers are."""
    decoder = decoder_config(config)
    return "x".join(str(decoder.get(name) or 0) for name in ("hidden_size", "intermediate_size"))


def kept(config: Mapping[str, Any]) -> int | None:
    """The tokens of a batch, padding included, for a model with this ``config.json``; None if none were measured."""
    try:
        tokens = _read().get(_device(), {}).get(shape_of(config))
    except (OSError, ValueError, AttributeError) as error:
        logger.warning("%s It is not used; remove it, or measure again: grit bench --tune", _damage(error))
        return None
    return tokens if isinstance(tokens, int) and tokens > 0 else None


def keep(config: Mapping[str, Any], tokens: int) -> Path:
    """Remember a size for this device, and return the file that holds it.

    Raises:
        OutputError: the file cannot be written.
    """
    return _write({shape_of(config): tokens})


def forget() -> Path:
    """Forget all sizes for this device, and return the file that held them.

    Raises:
        OutputError: the file cannot be written.
    """
    return _write(None)


def _write(sizes: dict[str, int] | None) -> Path:
    try:
        devices = _read()
        own = devices.get(_device(), {})
        known = {name: {**one} for name, one in devices.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        known, own = {}, {}  # it is damaged, and there is nothing in it that cannot be measured again
    known[_device()] = {**own, **sizes} if sizes is not None else {}
    return hub.write_home(tuning_file(), {name: one for name, one in known.items() if one})


def _read() -> dict[str, Any]:
    path = tuning_file()
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if not isinstance(found, dict):
        raise ValueError("not a table")
    return found


def _damage(error: Exception) -> str:
    if isinstance(error, OSError):
        return unreadable(tuning_file(), error)
    return f"{tuning_file()} is damaged."


def _device() -> str:
    """What this device is called: its chip, and on a CPU how much of it there is and what multiplies."""
    here = device.current_device()
    cores = f", {os.cpu_count()} cores, {here.blas}" if here.kind == "cpu" else ""
    return f"{here.kind}: {here.name}{cores}"
