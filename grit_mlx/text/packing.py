"""Blocks of a document to chunks of a bounded size (pure functions on blocks).

A chunk is made of complete blocks where they fit; a block that does not is cut at the ends of sentences, lines or
words. A part has the place of its block; only where each newline of the text is a line of the file are lines counted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final

from grit_mlx.errors import ArgumentError, Option
from grit_mlx.text.blocks import PARAGRAPH, Block
from grit_mlx.text.sentences import sentences, trimmed

__all__ = ["Chunk", "Measure", "check_chunking", "count_words", "pack"]

# The units in a text, such as its number of tokens.
Measure = Callable[[str], int]


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of a document.

    Attributes:
        text: its blocks, joined.
        first: the first place of its text, in the file's unit, from 1.
        last: the last one, inclusive.
        headings: the titles above it, from the top, without one that it begins with.
    """

    text: str
    first: int
    last: int
    headings: tuple[str, ...] = ()


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


def pack(blocks: Iterable[Block], *, size: int, overlap: int = 0, measure: Measure = count_words) -> Iterator[Chunk]:
    """Pack the blocks of one document into chunks, in order and as full as possible.

    A heading begins a new chunk once the current one is half full, and does not end a chunk if what follows fits
    beside it. No chunk is made of a heading alone, unless the document has nothing else: where it does not fit beside
    what follows, it only stands above it. A chunk that begins with rows of a table whose header stands in an earlier
    one repeats the header, and one that begins in the middle of a fenced listing repeats the fence.

    Args:
        blocks: of one document.
        size: maximum number of units of a chunk. (A single character that measures more is a chunk.)
        overlap: maximum number of units that a chunk repeats from the end of the previous one, in complete sentences;
            none where the last one is longer. A chunk that begins with a heading repeats nothing, and code and tables
            are not repeated.
        measure: the units in a text. It must not shrink as a text grows.

    Raises:
        ArgumentError: ``size`` or ``overlap`` cannot work.
    """
    check_chunking(size, overlap)
    packer = _Packer(size, overlap, measure)
    parts = (part for block in blocks for part in _parts(block, packer.ruler))
    last: Chunk | None = None
    for chunk in (chunk for part in parts for chunk in packer.add(part)):
        if last is not None:
            yield last
        last = chunk
    yield from packer.rest(last)


@dataclass(frozen=True, slots=True)
class _Part:
    """A block, or what was cut from one, and how many units it measures.

    Attributes:
        block: its text and place.
        units: of the text and of what joins it to the part before.
        is_sentence: whether it begins and ends where sentences do.
        repeated: whether it stands in an earlier chunk too.
    """

    block: Block
    units: int
    is_sentence: bool = True
    repeated: bool = False


class _Ruler:
    """Measures texts, each once where it can be helped."""

    def __init__(self, size: int, measure: Measure) -> None:
        self.size = size
        self.measure = measure
        self._glues: dict[str, int] = {}

    def units(self, text: str) -> int | None:
        """How many units a text has; None where they are more than ``size``."""
        # A head that is too long settles it, so that a huge line is not measured again and again.
        units = self.measure(text[: 64 * self.size])
        if units <= self.size and len(text) > 64 * self.size:
            units = self.measure(text)
        return units if units <= self.size else None

    def part(self, block: Block, units: int | None = None, *, is_sentence: bool = True) -> _Part:
        units = self.measure(block.text) if units is None else units
        glue = self._glues.get(block.glue)
        if glue is None:
            glue = self._glues[block.glue] = self.measure(block.glue)
        return _Part(block, units + glue, is_sentence)


class _Packer:
    def __init__(self, size: int, overlap: int, measure: Measure) -> None:
        self.ruler = _Ruler(size, measure)
        self._overlap = overlap
        self._path: list[tuple[int, str]] = []
        self._above: tuple[str, ...] = ()  # the headings above the open chunk
        self._open: list[_Part] = []
        self._units = 0

    def add(self, part: _Part) -> Iterator[Chunk]:
        if part.block.level and self._units > self.ruler.size // 2 and self._has_news() and not self._is_bare():
            yield self._close([])
        if self._open and not self._fits(part):
            if self._has_news() and not self._is_bare():
                yield self._close(self._carried(part))
            if self._open and not self._fits(part):  # not beside what is carried
                self._start(self._lifted(part))
        if not self._open:
            self._start(self._header(part))
        self._append(part)

    def rest(self, last: Chunk | None) -> Iterator[Chunk]:
        """The last chunk before, and what is open; a heading at the very end joins it if it fits."""
        is_bare = self._is_bare()
        end = self._close([]) if self._has_news() else None
        if last is not None and end is not None and is_bare:
            text = last.text + PARAGRAPH + end.text
            fits = self.ruler.measure(text) <= self.ruler.size
            last, end = replace(last, text=text, last=end.last) if fits else last, None
        yield from (chunk for chunk in (last, end) if chunk is not None)

    def _has_news(self) -> bool:
        return any(not part.repeated for part in self._open)

    def _is_bare(self) -> bool:
        """Whether what is new in the open chunk is one heading, or headings each under the one before it."""
        levels = [part.block.level for part in self._open if not part.repeated]
        return bool(levels) and all(levels) and all(above < below for above, below in pairwise(levels))

    def _lifted(self, following: _Part) -> list[_Part]:
        """The last of bare headings that fit beside what follows; the others only stand above it."""
        kept = [part for part in self._open if not part.repeated]
        while kept and not self._together(kept, following):
            kept = kept[1:]
        self._leave(kept)
        return kept

    def _leave(self, headings: list[_Part]) -> None:
        """Headings that open the next chunk, which are not under themselves."""
        if headings:
            lowest = headings[0].block.level
            self._path = [heading for heading in self._path if heading[0] < lowest]

    def _fits(self, part: _Part) -> bool:
        # Together, parts measure what they do alone, give or take a few units at each joint: usually that settles it.
        units, parts = self._units + part.units, len(self._open) + 1
        if units + parts <= self.ruler.size or units - 3 * parts > self.ruler.size:
            return units <= self.ruler.size
        return self.ruler.measure(_joined([*self._open, part])) <= self.ruler.size

    def _start(self, parts: list[_Part]) -> None:
        self._open, self._units = [], 0
        self._above = tuple(title for _, title in self._path if title)
        for part in parts:
            self._append(part)

    def _append(self, part: _Part) -> None:
        block = part.block
        if block.level and not part.repeated:
            self._path = [heading for heading in self._path if heading[0] < block.level]
            if not self._open:
                self._above = tuple(title for _, title in self._path if title)
            self._path.append((block.level, " ".join((block.title or block.text).split())))
        self._open.append(part)
        self._units += part.units

    def _header(self, part: _Part) -> list[_Part]:
        """The header row above a row that begins a chunk."""
        if not part.block.header:
            return []
        block = replace(part.block, text=part.block.header, header="", glue=PARAGRAPH, by_line=False, level=0)
        header = replace(self.ruler.part(block), repeated=True, is_sentence=False)
        return [header] if header.units + part.units <= self.ruler.size else []

    def _close(self, carried: list[_Part]) -> Chunk:
        """The open chunk without headings that are carried; what is carried opens the next."""
        kept = self._open
        moved = [part for part in carried if not part.repeated]
        if moved:
            kept = kept[: -len(moved)]
        places = [part.block for part in kept]
        chunk = Chunk(
            _joined(kept), min(block.first for block in places), max(block.last for block in places), self._above
        )
        self._leave(moved)
        self._start(carried)
        return chunk

    def _carried(self, following: _Part) -> list[_Part]:
        """What the next chunk begins with before ``following``: headings at the end of this one, or an overlap."""
        end = len(self._open)
        lowest = _DEEPEST
        while end > 1 and 0 < self._open[end - 1].block.level < lowest:
            end -= 1
            lowest = self._open[end].block.level
        headings = self._open[end:]
        if headings and any(not part.repeated for part in self._open[:end]):
            return headings if self._together(headings, following) else []
        if header := self._header(following):
            return header
        repeated = self._tail() if self._overlap and not following.block.level else []
        while repeated and not self._together(repeated, following):
            repeated = repeated[1:]
        return repeated

    def _together(self, parts: list[_Part], following: _Part) -> bool:
        return sum(part.units for part in parts) + following.units <= self.ruler.size

    def _tail(self) -> list[_Part]:
        """The last sentences of the open chunk that measure no more than the overlap."""
        tail: list[_Part] = []
        units = 0
        for part in reversed(self._open):
            block = part.block
            if block.verbatim or block.level or block.header or part.repeated:
                break
            if not part.is_sentence:
                break
            whole = list(_cut_at(block, sentences(block.text, small=False)))
            for sentence in reversed(whole):
                units += self.ruler.measure(sentence.text) + self.ruler.measure(sentence.glue)
                if units > self._overlap:
                    return tail
                tail.insert(0, replace(self.ruler.part(sentence), repeated=True))
        return tail


def _joined(parts: list[_Part]) -> str:
    first, *rest = (part.block for part in parts)
    return "".join([first.text, *(block.glue + block.text for block in rest)])


# --- blocks to parts ----------------------------------------------------------------------------------------


def _parts(block: Block, ruler: _Ruler) -> Iterator[_Part]:
    """A block as one part if it fits, else in parts that do."""
    units = ruler.units(block.text)
    if units is not None:
        yield ruler.part(block, units)
        return
    text = block.text
    if block.verbatim and (fence := _FENCE.match(text)):
        # What is cut off it still is code.
        block = replace(block, header=fence[0])
    spans: list[tuple[int, int]] = []
    measured: list[int | None] = []
    for start, stop in _lines(text) if block.verbatim else sentences(text, small=False):
        units = ruler.units(text[start:stop])
        cut = [(start, stop)] if units is not None else list(_cut(text, start, stop, ruler))
        spans += cut
        measured += [units] * len(cut)
    for piece, units in zip(_cut_at(block, spans), measured, strict=True):
        yield ruler.part(piece, units, is_sentence=units is not None and not block.verbatim)


def _cut_at(block: Block, spans: Iterable[tuple[int, int]]) -> Iterator[Block]:
    """The parts of a block at given spans of characters; they keep the white space between them as glue."""
    line = block.first
    end: int | None = None
    for start, stop in spans:
        between = block.text[end:start] if end is not None else block.text[:start]
        text = block.text[start:stop]
        part = replace(block, text=text, glue=block.glue if end is None else between)
        if end is not None:
            part = replace(part, level=0, title="")
        elif block.verbatim:
            part = replace(part, header="")  # it begins with its fence
        if block.by_line:
            line += between.count("\n")
            part = replace(part, first=line, last=line + text.count("\n"))
            line = part.last
        yield part
        end = stop


_STOP: Final = re.compile(r"[.!?…](?=\s)")

# The line that opens a listing in Markdown, Org, AsciiDoc or LaTeX.
_FENCE: Final = re.compile(r"[ \t]*(?:`{3,}|~{3,}|#\+begin|-{4,}$|\.{4,}$|\\begin\{).*", re.IGNORECASE | re.MULTILINE)

_DEEPEST: Final = 1 << 30  # below any heading


def _lines(text: str) -> Iterator[tuple[int, int]]:
    start = 0
    for line in text.split("\n"):
        if line.strip():
            yield start, start + len(line.rstrip())
        start += len(line) + 1


def _cut(text: str, start: int, stop: int, ruler: _Ruler) -> Iterator[tuple[int, int]]:
    """Cut a span without ends of sentences: as far as fits, back to the end of a line or word, and again."""
    step = 4 * ruler.size  # characters that about fit; adjusted by what is measured
    while start < stop:
        end, step = _reach(text, start, stop, ruler, step)
        if end < stop:
            end = _border(text, start, end)
        yield from trimmed(text, start, end)
        start = end
        while start < stop and text[start].isspace():
            start += 1


def _reach(text: str, start: int, stop: int, ruler: _Ruler, step: int) -> tuple[int, int]:
    """An end that fits and is nearly the farthest, and how far it is: a guess, bettered by what it measures."""
    reached, beyond = start + 1, stop + 1  # one character is always taken, so that cutting comes to an end
    guess = start + max(2, step)
    while True:
        guess = max(reached + 1, min(guess, beyond - 1, stop))
        if guess >= beyond or guess <= reached:
            return reached, reached - start
        units = max(1, ruler.measure(text[start:guess]))
        if units <= ruler.size:
            reached = guess
            if reached == stop or units >= 0.9 * ruler.size:
                return reached, reached - start
        else:
            beyond = guess
        if beyond - reached <= 1:
            return reached, reached - start
        aimed = start + int((guess - start) * 0.97 * ruler.size / units)
        # A guess that does not move is halved.
        guess = aimed if reached < aimed < beyond else (reached + min(beyond, stop + 1)) // 2


def _border(text: str, start: int, end: int) -> int:
    """The end of a line in the farther half of a span, or of what may be a sentence, else of a word, else the end."""
    middle = (start + end) // 2
    newline = text.rfind("\n", middle, end + 1)
    if newline > start:
        return newline
    if stops := list(_STOP.finditer(text, middle, end + 1)):  # many people write without capital letters
        return stops[-1].end()
    if text[end].isspace():
        return end
    return next((position for position in range(end - 1, start, -1) if text[position].isspace()), end)
