"""mlx's trees, files and scalars with the types they have here."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import mlx.core as mx
from mlx.utils import tree_flatten

__all__ = ["named_arrays", "number", "read_arrays"]


def named_arrays(tree: Any) -> list[tuple[str, mx.array]]:
    """All arrays of a tree, by their path in it."""
    return cast("list[tuple[str, mx.array]]", tree_flatten(tree))


def number(scalar: mx.array) -> float:
    """A real scalar."""
    return cast("float", scalar.item())


def read_arrays(path: Path) -> dict[str, mx.array]:
    """The tensors of a safetensors file."""
    return cast("dict[str, mx.array]", mx.load(str(path)))
