"""Files to passages: paragraphs packed into chunks of tokens, each with its place, its heading and its metadata."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from grit_mlx.text.kinds import kind_of
from grit_mlx.text.options import ReadingOptions
from grit_mlx.text.reading import texts_of
from grit_mlx.text.splitting import Measure, Text, split_chunks

__all__ = ["Passage", "passages_of"]

# Maximum number of characters that are kept of a heading, and of a "key=value".
_HEADING_CHARACTERS: Final = 160
_VALUE_CHARACTERS: Final = 200

_HEADING: Final = re.compile(r" {0,3}(#{1,6})[ \t]+(.*?)[ \t]*#*$")


@dataclass(frozen=True)
class Passage:
    """A part of a file, small enough to be found and to be answered from.

    Attributes:
        text: as in the file.
        line: its first line (page of a PDF, paragraph of a DOCX), from 1.
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


def passages_of(
    path: Path, *, size: int, overlap: int, measure: Measure, field: str | None = None
) -> Iterator[Passage]:
    """The passages of a file, in order.

    Args:
        path: a file of any kind that ``kinds`` knows.
        size: maximum number of tokens of a passage.
        overlap: maximum number of tokens that a passage repeats from the previous one.
        measure: counts tokens.
        field: the field of a table that holds the text; None for "text" or the only column.

    Raises:
        DocumentError: the file cannot be read.
        DependencyError: it needs a package that is not installed.
    """
    kind = kind_of(path)
    shared = (f"kind={kind.name}",)
    if kind.rows:  # each is a document: it is split on its own, and every part has its place
        reading = ReadingOptions(by="chunk", chunk_size=size, overlap=overlap, field=field)
        for chunk in texts_of(str(path), kind, reading, measure=measure):
            title, metadata = _row_metadata(chunk.fields or {}, field or "text")
            yield Passage(chunk.text, chunk.line, chunk.end_line, title, (*shared, *metadata))
        return
    blocks = texts_of(str(path), kind, ReadingOptions(by="paragraph"))
    headings = _Headings()
    watched = headings.watching(blocks) if kind.headings else blocks
    for chunk in split_chunks(watched, size=size, overlap=overlap, measure=measure, markdown=kind.headings):
        yield Passage(chunk.text, chunk.line, chunk.end_line, headings.above(chunk), shared)


class _Headings:
    """The headings of a document read as a stream, in which a chunk comes after the paragraphs it is made of."""

    def __init__(self) -> None:
        self._coming: deque[tuple[int, int, str]] = deque()  # line, level, title
        self._path: list[tuple[int, str]] = []

    def watching(self, blocks: Iterable[Text]) -> Iterator[Text]:
        for block in blocks:
            match = _HEADING.match(block.text.split("\n", 1)[0])
            if match:
                self._coming.append((block.line, len(match[1]), match[2].strip()))
            yield block

    def above(self, chunk: Text) -> str:
        """The headings above a chunk, without the one that it begins with."""
        while self._coming and self._coming[0][0] < chunk.line:
            _, level, title = self._coming.popleft()
            self._path = [*self._parents(level), (level, title)]
        begins = self._coming and self._coming[0][0] == chunk.line
        path = self._parents(self._coming[0][1]) if begins else self._path
        return " > ".join(title for _, title in path if title)[:_HEADING_CHARACTERS]

    def _parents(self, level: int) -> list[tuple[int, str]]:
        return [heading for heading in self._path if heading[0] < level]


def _row_metadata(fields: Mapping[str, object], own: str) -> tuple[str, tuple[str, ...]]:
    """The title of a row, and its other short fields."""
    title = fields.get("title")
    text = fields[own] if own in fields else next(iter(fields.values()), None)  # the only column
    pairs = tuple(
        f"{key}={str(value).lower() if isinstance(value, bool) else value}"[:_VALUE_CHARACTERS]
        for key, value in fields.items()
        if isinstance(value, str | int | float | bool) and value != text and "\0" not in f"{key}{value}"
    )
    return (title.strip()[:_HEADING_CHARACTERS] if isinstance(title, str) else ""), pairs
