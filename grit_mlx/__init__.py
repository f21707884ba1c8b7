"""GritLM on Apple silicon: one set of weights that embeds and generates.

::

    from grit_mlx import GritLM

    model = GritLM("GritLM/GritLM-7B")
    vectors = model.encode_corpus(["The keel keeps a ship upright."])
    answer = model.generate("What keeps a ship upright?", max_tokens=64)

The public names are imported on first use, so that ``import grit_mlx`` stays fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from grit_mlx.model.blas import prefer_fast_blas
from grit_mlx.model.importing import prepare_import

if TYPE_CHECKING:
    from grit_mlx.errors import GritError
    from grit_mlx.gritlm import GritLM
    from grit_mlx.model.generation import PromptCache
    from grit_mlx.model.prompts import embedding_prompt
    from grit_mlx.model.settings import Settings

    __version__: str

__all__ = ["GritError", "GritLM", "PromptCache", "Settings", "__version__", "embedding_prompt"]

# All that is done at import time: it has to come before the first import of mlx and mlx-lm, wherever that happens.
prefer_fast_blas()
prepare_import()

_HOME = {
    "GritError": "grit_mlx.errors",
    "GritLM": "grit_mlx.gritlm",
    "PromptCache": "grit_mlx.model.generation",
    "Settings": "grit_mlx.model.settings",
    "embedding_prompt": "grit_mlx.model.prompts",
}


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    if name == "__version__":
        return _version()
    raise AttributeError(f"module 'grit_mlx' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version  # 20 ms, a sixth of `grit --help`

    try:
        return version("grit-mlx")
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "0+unknown"
