"""A text with its place, and lines to such texts (pure functions on text)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

__all__ = ["STDIN", "Text", "split_file", "split_lines"]

# What standard input is called as a source.
STDIN: Final = "-"


@dataclass(frozen=True, slots=True)
class Text:
    """A text and its place.

    Attributes:
        text: the text, never empty.
        source: the path as given, or "-" for standard input.
        line: the first line it was taken from, from 1; of kinds with another unit (see ``kinds``) the page, slide, ...
        end_line: the last one, inclusive.
        fields: of a row of JSON or CSV, all its fields, including the text's own; else None. Not compared.
    """

    text: str
    source: str
    line: int
    end_line: int
    fields: Mapping[str, object] | None = field(default=None, compare=False, repr=False)


def split_lines(lines: Iterable[str], *, source: str = STDIN) -> Iterator[Text]:
    """One text per line that is not blank, stripped."""
    for number, line in enumerate(lines, start=1):
        if text := line.strip():
            yield Text(text, source, number, number)


def split_file(lines: Iterable[str], *, source: str = STDIN) -> Iterator[Text]:
    """All lines as one text, from the first that is not blank to the last; none if all are blank."""
    kept = list(lines)
    full = [index for index, line in enumerate(kept) if line.strip()]
    if full:
        first, last = full[0], full[-1]
        yield Text("\n".join(kept[first : last + 1]).strip(), source, first + 1, last + 1)
