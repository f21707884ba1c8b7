"""How texts, counts and sizes are worded."""

from __future__ import annotations

import typer

from grit_mlx import options
from grit_mlx.cli import console
from grit_mlx.errors import ArgumentError

__all__ = ["bytes_of_size", "number_of", "one_line", "size_of"]


def one_line(text: str) -> str:
    """A text as it fits into a line: white space collapsed, control characters spelled out."""
    return console.visible(" ".join(text.split()))


def number_of(count: int, thing: str) -> str:
    """``1 text``, ``2 texts``, ``12,345 texts``."""
    return f"{count:,} {thing}" if count == 1 else f"{count:,} {thing}s"


def size_of(count: int) -> str:
    """Bytes with a unit of powers of 1000, as disks and the hub count."""
    value = float(count)
    for unit in ("B", "kB", "MB"):
        if value < 999.5:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"


def bytes_of_size(text: str, *, option: str) -> int:
    """See ``grit_mlx.options``.

    Raises:
        BadParameter: it is not a size; names the option.
    """
    try:
        return options.bytes_of_size(text)
    except ArgumentError as error:
        raise typer.BadParameter(str(error), param_hint=option) from error
