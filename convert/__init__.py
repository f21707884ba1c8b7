"""Turns Hugging Face checkpoints into quantised MLX folders; installed and imported as ``grit_mlx.convert``.

``convert`` does it all; ``verify`` compares two models.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from grit_mlx.convert.conversion import convert
    from grit_mlx.convert.options import ConversionOptions
    from grit_mlx.convert.report import ConversionReport, ConversionStep
    from grit_mlx.convert.verification import verify

__all__ = ["ConversionOptions", "ConversionReport", "ConversionStep", "convert", "verify"]

_HOME = {
    "ConversionOptions": "grit_mlx.convert.options",
    "ConversionReport": "grit_mlx.convert.report",
    "ConversionStep": "grit_mlx.convert.report",
    "convert": "grit_mlx.convert.conversion",
    "verify": "grit_mlx.convert.verification",
}


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'grit_mlx.convert' has no attribute {name!r}")
