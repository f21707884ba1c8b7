"""How texts, counts and sizes are worded."""

from __future__ import annotations

import re

import typer

from grit_mlx.cli import console

__all__ = ["bytes_of_size", "number_of", "one_line", "size_of"]

_UNITS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


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
    """``"16GB"``, ``"1.5 gb"``, ``"0"`` in bytes, by powers of 1000; ``"16GiB"`` by powers of 1024.

    Raises:
        BadParameter: it is no size; names the option.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", text.strip().lower())
    if match is None or (match[3] and not match[2]):
        raise typer.BadParameter(f"{text!r} is no size. Write it like 16GB or 500MB.", param_hint=option)
    return int(float(match[1]) * (1024 if match[3] else 1000) ** _UNITS[match[2]])
