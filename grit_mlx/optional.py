"""Packages that only some evaluations need, imported when they do."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from grit_mlx.errors import DependencyError

__all__ = ["importing", "optional"]


def optional(module: str, *, extra: str, purpose: str) -> Any:
    """A module of a package that an extra brings.

    Args:
        module: its dotted name.
        extra: of this project.
        purpose: what needs it, as the subject of a sentence.

    Raises:
        DependencyError: it is not installed.
    """
    with importing(extra=extra, purpose=purpose):
        return importlib.import_module(module)


@contextmanager
def importing(*, extra: str, purpose: str) -> Iterator[None]:
    """As ``optional``, around import statements.

    Raises:
        DependencyError: what they import is not installed.
    """
    try:
        yield
    except ImportError as error:
        package = (error.name or extra).partition(".")[0]
        raise DependencyError(f"{purpose} needs {package}: pip install 'grit-mlx[{extra}]'.") from error
