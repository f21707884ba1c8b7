"""Lines to texts: lines, paragraphs, files, and chunks of a bounded size (pure functions on text).

Nothing is held beyond the text being built, except by ``split_file``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

from grit_mlx.errors import ArgumentError, Option

__all__ = [
    "STDIN",
    "Measure",
    "Text",
    "check_chunking",
    "count_words",
    "split_chunks",
    "split_file",
    "split_lines",
    "split_paragraphs",
]

# What standard input is called as a source.
STDIN: Final = "-"

# The units in a text, such as its number of tokens.
Measure = Callable[[str], int]


@dataclass(frozen=True, slots=True)
class Text:
    """A text and its place.

    Attributes:
        text: the text, never empty.
        source: the path as given, or "-" for standard input.
        line: the first line it was taken from, from 1.
        end_line: the last line it was taken from, inclusive.
        fields: of a row of JSON or CSV, all its fields, including the text's own; else None. Not compared.
    """

    text: str
    source: str
    line: int
    end_line: int
    fields: Mapping[str, object] | None = field(default=None, compare=False, repr=False)


def check_chunking(chunk_size: int, overlap: int) -> None:
    """Refuse sizes of chunks that cannot work.

    Raises:
        ArgumentError: names the size and its range.
    """
    if chunk_size < 1:
        raise ArgumentError(Option("chunk_size"), f" must be at least 1, not {chunk_size}.")
    if not 0 <= overlap < chunk_size:
        limits = " must be at least 0 and below ", Option("chunk_size"), f" ({chunk_size}), not {overlap}."
        raise ArgumentError(Option("overlap"), *limits)


def count_words(text: str) -> int:
    """The number of words in a text: runs of anything but white space."""
    return len(text.split())


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


def split_paragraphs(lines: Iterable[str], *, source: str = STDIN, markdown: bool = False) -> Iterator[Text]:
    """One text per block of lines between blank lines.

    In Markdown a fenced code block stays in one piece, blank lines included, and a heading begins a new block.

    Args:
        lines: the lines of one document, without their ends.
        source: what to call that document.
        markdown: whether to look for fences and headings.
    """
    block: list[str] = []
    fence: str | None = None  # the marker that opened the code block we are in
    number = 0
    for number, line in enumerate(lines, start=1):
        if fence is not None:
            block.append(line.rstrip())
            if _closes(line, fence):
                fence = None
            continue
        opened = _FENCE.match(line) if markdown else None
        fence = opened[1] if opened else None
        if block and (not line.strip() or (markdown and _HEADING.match(line))):
            yield Text("\n".join(block), source, number - len(block), number - 1)
            block = []
        if line.strip():
            block.append(line.rstrip())
    if block:
        first = number - len(block) + 1
        while not block[-1]:  # an unclosed fence leaves blank lines at the end
            block.pop()
        yield Text("\n".join(block), source, first, first + len(block) - 1)


_HEADING: Final = re.compile(r" {0,3}#{1,6}(?:[ \t]|$)")
_FENCE: Final = re.compile(r" {0,3}(`{3,}(?=[^`]*$)|~{3,})")  # CommonMark 4.5


def _closes(line: str, fence: str) -> bool:
    """Whether a line is only a marker of the same sign, at least as long (CommonMark 4.5)."""
    marker = line.strip()
    return len(marker) >= len(fence) and set(marker) == {fence[0]} and len(line) - len(line.lstrip(" ")) < 4


# --- paragraphs to chunks -----------------------------------------------------------------------------------


class _Piece(NamedTuple):
    """A paragraph, or a part of one that had to be split."""

    text: str
    line: int
    end_line: int
    glue: str  # what joins it to the piece before
    heading: bool  # whether it begins a section


def split_chunks(
    paragraphs: Iterable[Text],
    *,
    size: int,
    overlap: int = 0,
    measure: Measure = count_words,
    markdown: bool = False,
) -> Iterator[Text]:
    """Pack the paragraphs of one document into chunks, in order and as full as possible.

    A paragraph that fits into a chunk is never split; one that does not is split at the ends of sentences, a
    sentence that does not fit at the ends of lines and words, and a word that does not fit anywhere. In Markdown a
    heading begins a new chunk once the current one is half full, and does not end a chunk if what follows fits
    beside it.

    Args:
        paragraphs: the paragraphs of one document.
        size: maximum number of units of a chunk. (A single character that measures more is a chunk.)
        overlap: maximum number of units that a chunk repeats from the end of the previous one: complete sentences,
            or else words. A chunk that begins with a heading repeats nothing.
        measure: the units in a text. It must not shrink as a text grows.
        markdown: whether to look for headings.

    Raises:
        ArgumentError: `size` or `overlap` cannot work.
    """
    check_chunking(size, overlap)

    def fits(text: str, units: int = size) -> bool:
        # A head that is too long settles it, so that a huge line is not measured again and again.
        head = text[: 64 * size]
        return measure(head) <= units and (len(head) == len(text) or measure(text) <= units)

    return _packed(paragraphs, fits, half=size // 2, overlap=overlap, markdown=markdown)


class _Fits(Protocol):
    def __call__(self, text: str, units: int = ...) -> bool: ...


def _packed(paragraphs: Iterable[Text], fits: _Fits, *, half: int, overlap: int, markdown: bool) -> Iterator[Text]:
    chunk: list[_Piece] = []
    source = STDIN
    for paragraph in paragraphs:
        source = paragraph.source
        for piece in _pieces(paragraph, fits, markdown=markdown):
            if chunk and piece.heading and not fits(_joined(chunk), half):
                yield _text(chunk, source)
                chunk = []
            elif chunk and not fits(_joined([*chunk, piece])):
                done, carried = _closed(chunk, piece, fits, overlap=overlap)
                yield _text(done, source)
                chunk = carried
            chunk.append(piece)
    if chunk:
        yield _text(chunk, source)


def _closed(chunk: list[_Piece], following: _Piece, fits: _Fits, *, overlap: int) -> tuple[list[_Piece], list[_Piece]]:
    """What a full chunk keeps, and what the next one, which holds `following`, begins with."""
    kept = len(chunk)
    while kept > 1 and chunk[kept - 1].heading and "\n" not in chunk[kept - 1].text:
        kept -= 1
    headings = chunk[kept:]
    if headings and fits(_joined([*headings, following])):
        return chunk[:kept], headings
    repeated = _tail(chunk, fits, overlap) if overlap else []
    while repeated and not fits(_joined([*repeated, following])):
        repeated = repeated[1:]
    return chunk, repeated


def _tail(chunk: list[_Piece], fits: _Fits, units: int) -> list[_Piece]:
    """The last sentences of a chunk that fit into a number of units; its last words if no sentence does."""
    for split in (_sentences, _words):
        tail: list[_Piece] = []
        in_pieces = (list(_parts(piece, split(piece.text))) for piece in reversed(chunk))
        for part in (part for parts in in_pieces for part in reversed(parts)):
            if not fits(_joined([part, *tail]), units):
                break
            tail.insert(0, part)
        if tail:
            return tail
    return []


def _joined(pieces: list[_Piece]) -> str:
    first, *rest = pieces
    return "".join([first.text, *(piece.glue + piece.text for piece in rest)])


def _text(pieces: list[_Piece], source: str) -> Text:
    return Text(_joined(pieces), source, pieces[0].line, pieces[-1].end_line)


def _pieces(paragraph: Text, fits: _Fits, *, markdown: bool) -> Iterator[_Piece]:
    """A paragraph in one piece if it fits, else in parts that do."""
    text = paragraph.text
    heading = markdown and _HEADING.match(text) is not None
    whole = _Piece(text, paragraph.line, paragraph.end_line, "\n\n", heading)
    if fits(text):
        yield whole
        return
    spans = (
        span
        for start, stop in _sentences(text)
        for span in ([(start, stop)] if fits(text[start:stop]) else _cut(text, start, stop, fits))
    )
    yield from _parts(whole, spans)


def _parts(piece: _Piece, spans: Iterable[tuple[int, int]]) -> Iterator[_Piece]:
    """The parts of a piece at given spans of characters; they keep the white space between them as glue."""
    line = piece.line
    end: int | None = None
    for start, stop in spans:
        glue = piece.text[end:start]
        line += glue.count("\n")
        text = piece.text[start:stop]
        last = line + text.count("\n")
        first_part = end is None
        yield _Piece(text, line, last, piece.glue if first_part else glue, piece.heading and first_part)
        line, end = last, stop


# The end of a sentence (but not the point of "1." or "12.", which opens a list item), or a line before a list
# item.
_SENTENCE_END: Final = re.compile(
    r"""(?<!\b\d)(?<!\b\d\d)[.!?…]["'”’»)\]]*(?=\s)"""
    r"""|[。！？][」』”’）]*"""  # noqa: RUF001 - Chinese and Japanese, where no space follows
    r"""|\n(?=[ \t]*(?:[-*+•]|\d+[.)])[ \t])"""
)


def _sentences(text: str) -> Iterator[tuple[int, int]]:
    start = 0
    for match in _SENTENCE_END.finditer(text):
        yield from _trimmed(text, start, match.end())
        start = match.end()
    yield from _trimmed(text, start, len(text))


def _words(text: str) -> Iterator[tuple[int, int]]:
    return (match.span() for match in re.finditer(r"\S+", text))


def _cut(text: str, start: int, stop: int, fits: _Fits) -> Iterator[tuple[int, int]]:
    """Cut a span without ends of sentences: as far as fits, back to the end of a line or word, and again."""
    while start < stop:
        end = _reach(text, start, stop, fits)
        if end < stop and not text[end].isspace():
            end = _border(text, start, end)
        yield from _trimmed(text, start, end)
        start = end
        while start < stop and text[start].isspace():
            start += 1


def _reach(text: str, start: int, stop: int, fits: _Fits) -> int:
    """The farthest end that fits, by doubling and then halving: what is measured stays short."""
    reached, step = start + 1, 64  # one character is always taken, so that cutting comes to an end
    while fits(text[start : min(start + step, stop)]):
        reached = min(start + step, stop)
        if reached == stop:
            return stop
        step *= 2
    beyond = min(start + step, stop)
    while beyond - reached > 1:
        middle = (reached + beyond) // 2
        if fits(text[start:middle]):
            reached = middle
        else:
            beyond = middle
    return reached


def _border(text: str, start: int, end: int) -> int:
    """The end of a line in the farther half of a span, else the last end of a word, else the end itself."""
    newline = text.rfind("\n", (start + end) // 2, end)
    if newline > start:
        return newline
    return next((position for position in range(end - 1, start, -1) if text[position].isspace()), end)


def _trimmed(text: str, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """The span without the white space around it, or nothing if there is nothing else."""
    span = text[start:stop].rstrip()
    if words := span.lstrip():
        yield start + len(span) - len(words), start + len(span)
