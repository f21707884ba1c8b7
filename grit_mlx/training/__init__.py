"""GRIT fine-tuning: embedding and generation trained together, on one Mac or several.

::

    from grit_mlx.training import TrainingSettings, train

    result = train(TrainingSettings(model="GritLM/GritLM-7B", data="data", iters=500))

The pieces (``losses``, ``gradcache``, ``sampling``) are modules of their own and usable alone.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from grit_mlx.training.settings import TrainingSettings
    from grit_mlx.training.trainer import TrainingResult, train

__all__ = ["TrainingResult", "TrainingSettings", "train"]

_HOME = {
    "TrainingResult": "grit_mlx.training.trainer",
    "TrainingSettings": "grit_mlx.training.settings",
    "train": "grit_mlx.training.trainer",
}


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'grit_mlx.training' has no attribute {name!r}")
