"""mlx's trees, files and scalars with the types they have here."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
from mlx.utils import tree_flatten

from grit_mlx.errors import CheckpointError
from grit_mlx.model.checkpoint import read_header

__all__ = ["named_arrays", "number", "read_arrays", "save_arrays"]


def named_arrays(tree: Any) -> list[tuple[str, mx.array]]:
    """All arrays of a tree, by their path in it."""
    return cast("list[tuple[str, mx.array]]", tree_flatten(tree))


def number(scalar: mx.array) -> float:
    """A real scalar."""
    return cast("float", scalar.item())


def read_arrays(path: Path) -> dict[str, mx.array]:
    """The tensors of a safetensors file."""
    return cast("dict[str, mx.array]", mx.load(str(path)))


def save_arrays(path: Path, arrays: Mapping[str, mx.array], *, written_by: str = "mlx") -> None:
    """Write a safetensors file and check that it is complete: mlx does not always notice a full disk.

    Raises:
        OSError: it is not.
    """
    try:
        mx.save_safetensors(str(path), dict(arrays), metadata={"format": written_by})
        read_header(path)
    except (RuntimeError, CheckpointError) as error:
        raise OSError(errno.ENOSPC, f"{path.name} came out incomplete, so the disk is full") from error
