"""Files to passages: blocks packed into chunks of tokens, each with its place, its heading and its metadata."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from grit_mlx.text.blocks import Block, Notes
from grit_mlx.text.junk import without_junk
from grit_mlx.text.kinds import kind_of
from grit_mlx.text.options import FileReading
from grit_mlx.text.packing import Measure, pack
from grit_mlx.text.readers import read
from grit_mlx.text.readers.markup import text_blocks
from grit_mlx.text.reading import row_texts, shown

__all__ = ["Passage", "passages_of"]

logger = logging.getLogger("grit_mlx")

# Maximum number of characters that are kept of a heading, and of a "key=value".
_HEADING_CHARACTERS: Final = 160
_VALUE_CHARACTERS: Final = 200


@dataclass(frozen=True)
class Passage:
    """A part of a file, small enough to be found and to be answered from.

    Attributes:
        text: as in the file; if it begins in the middle of a table, below the table's header.
        line: its first line (page of a PDF, slide of a presentation, ...: the unit of its kind), from 1.
        end_line: its last one.
        heading: the headings above it, such as "Install > macOS"; empty if there are none.
        metadata: "key=value" of its row's other fields, or of the file.
    """

    text: str
    line: int
    end_line: int
    heading: str = ""
    metadata: tuple[str, ...] = ()

    @property
    def content(self) -> str:
        """What is embedded, searched and answered from: the heading, a space, the text.

        The official evaluation joins title and text in the same way. A passage that begins with its own heading
        does not repeat it.
        """
        return f"{self.heading} {self.text}" if self.heading else self.text


class _Cutting(NamedTuple):
    """How a file is read and cut; see ``passages_of``."""

    size: int
    overlap: int
    measure: Measure
    file: FileReading


def passages_of(
    path: Path,
    *,
    size: int,
    overlap: int,
    measure: Measure,
    how: FileReading | None = None,
    notes: Notes | None = None,
) -> Iterator[Passage]:
    """The passages of a file, in order. Junk is left out (see ``junk``).

    Args:
        path: a file of any kind that ``kinds`` knows.
        size: maximum number of tokens of a passage.
        overlap: maximum number of tokens that a passage repeats from the previous one, in complete sentences.
        measure: counts tokens.
        how: the field of a table that holds the text, the encoding of a text file, OCR; None for the defaults.
        notes: where to note warnings, and what was left out; None to log the warnings.

    Raises:
        DocumentError: the file cannot be read.
        DependencyError: it needs a package that is not installed.
    """
    notes = shown() if notes is None else notes
    before = sum(notes.left_out.values())
    yield from _passages(path, _Cutting(size, overlap, measure, how or FileReading()), notes)
    if left_out := sum(notes.left_out.values()) - before:
        logger.debug("%s: %s characters left out as junk.", path, f"{left_out:,}")


def _passages(path: Path, how: _Cutting, notes: Notes) -> Iterator[Passage]:
    cut = partial(pack, size=how.size, overlap=how.overlap, measure=how.measure)
    kind = kind_of(path)
    shared = (f"kind={kind.name}",)
    if not kind.has_blocks:
        for row in row_texts(path, field=how.file.field, encoding=how.file.encoding, notes=notes):
            title, metadata = _row_metadata(row.fields or {}, row.text, how.file.field or "text")
            paragraphs = without_junk(text_blocks(_newlines(row.text).split("\n")), notes)
            for chunk in cut(paragraphs):
                yield Passage(chunk.text, row.line, row.end_line, title, (*shared, *metadata))
        return
    blocks = without_junk(read(path, kind=kind, notes=notes, how=how.file), notes)
    if kind.rows:
        for title, block in _sheet_rows(blocks, how.file.field):
            _, metadata = _row_metadata(dict(block.fields), block.text, how.file.field or "")
            for chunk in cut([block]):
                yield Passage(chunk.text, block.first, block.last, title, (*shared, *metadata))
        return
    for chunk in cut(blocks):
        heading = " > ".join(chunk.headings)[:_HEADING_CHARACTERS]
        yield Passage(chunk.text, chunk.first, chunk.last, heading, shared)


def _sheet_rows(blocks: Iterator[Block], field: str | None) -> Iterator[tuple[str, Block]]:
    """The rows of a spreadsheet, each with the name of its sheet; a column that is asked for stands for the row."""
    title = ""
    for block in blocks:
        if block.level:
            title = block.text[:_HEADING_CHARACTERS]
            continue
        columns = dict(block.fields)
        yield title, replace(block, text=columns[field]) if field in columns else block


def _row_metadata(fields: Mapping[str, object], text: str, own: str) -> tuple[str, tuple[str, ...]]:
    """The title of a row, and its other short fields."""
    title = fields.get("title") if own in fields else None  # else it is part of the text
    pairs = tuple(
        f"{key}={str(value).lower() if isinstance(value, bool) else value}"[:_VALUE_CHARACTERS]
        for key, value in fields.items()
        if isinstance(value, str | int | float | bool) and value != text and "\0" not in f"{key}{value}"
    )
    return (title.strip()[:_HEADING_CHARACTERS] if isinstance(title, str) else ""), pairs


def _newlines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")
