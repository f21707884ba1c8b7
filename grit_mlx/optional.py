"""Packages that only some evaluations need, imported when they do."""

from __future__ import annotations

import importlib
from typing import Any

from grit_mlx.errors import DependencyError

__all__ = ["optional"]


def optional(module: str, *, extra: str, purpose: str) -> Any:
    """A module of a package that an extra brings.

    Args:
        module: its dotted name.
        extra: of this project.
        purpose: what needs it, as the subject of a sentence.

    Raises:
        DependencyError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise DependencyError(f"{purpose} needs {package}: pip install 'grit-mlx[{extra}]'.") from error
