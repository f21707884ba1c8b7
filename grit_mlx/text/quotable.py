"""What of a document can be quoted as an answer: its sentences, and its listings (pure functions on blocks).

Headings, rows of tables, lists of links, badges and bare markup are left out: they name things and say nothing.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from textwrap import dedent
from typing import Final

from grit_mlx.text.blocks import PARAGRAPH, ROW, Block
from grit_mlx.text.sentences import sentences

__all__ = ["Quotable", "folded", "quotables"]


@dataclass(frozen=True, slots=True)
class Quotable:
    """A sentence or a listing.

    Attributes:
        text: as in the document; of a sentence with single spaces and without the mark of a list, of a listing without
            its fence.
        first: where it begins, in the file's unit, from 1.
        last: where it ends, inclusive.
        heading: the titles above it, from the top, joined by spaces.
        is_code: whether it is a listing.
        is_complete: whether it reads as a sentence; False for lines without an end, which may be anything.
        lead: of a listing the sentence right before it, of a sentence the one before it in its paragraph; else empty.
    """

    text: str
    first: int
    last: int
    heading: str = ""
    is_code: bool = False
    is_complete: bool = True
    lead: str = ""


def quotables(blocks: Iterable[Block], *, code: bool = False, heading: str = "") -> Iterator[Quotable]:
    """The sentences and listings of a document, in order.

    Args:
        blocks: of one document, or of a part of it.
        code: whether the document is a program, whose sentences stand in comments.
        heading: what stands above the first block.
    """
    path: list[tuple[int, str]] = []
    previous, quoted = "", ""
    for block, *rest in _paragraphs(blocks):
        above = " ".join([heading, *(title for _, title in path)]).strip()
        if block.level:
            path = [one for one in path if one[0] < block.level]
            path.append((block.level, folded(block.title or block.text)))
            previous = ""
        elif block.verbatim and not code:
            yield from _listing(block, above, previous)
            previous = ""
        elif not _is_row(block):
            said = block
            if code:
                said, quoted = _comments(block, quoted)
            found = list(_sentences([said, *rest], above))
            yield from found
            previous = found[-1].text if found else ""
            if code and block.verbatim:
                yield Quotable(dedent(block.text), block.first, block.last, above, is_code=True, lead=previous)


_FENCE: Final = re.compile(r"\s*(?:[-*+>]\s+)?(?:`{3,}|~{3,}|-{4,}|\.{4,}|#\+(?:begin|end)_|\\(?:begin|end)\{)", re.I)


# A listing that says of itself that it is nothing to type.
_OUTPUT: Final = re.compile(r"\s*(?:`{3,}|~{3,})\s*(?:text|txt|plain|output|log)\b", re.IGNORECASE)


def _listing(block: Block, heading: str, lead: str) -> Iterator[Quotable]:
    lines = block.text.split("\n")
    first, last = block.first, block.last
    if _OUTPUT.match(lines[0]):
        return
    if _FENCE.match(lines[0]):
        lines, first = lines[1:], first + block.by_line
        if lines and _FENCE.match(lines[-1]):
            lines, last = lines[:-1], last - block.by_line
    text = dedent("\n".join(lines)).strip("\n").rstrip()
    if text.strip():
        yield Quotable(text, min(first, last), last, heading, is_code=True, lead=lead)


# The line of a table of contents or of an index: it ends with pages.
_PAGES: Final = re.compile(r"(?:…|\.{4,}|(?: \.){3,}|,|(?<=\w))(?:,?\s+[\divxlc]+(?:[–-]\d+)?)+$")
_ENTRIES: Final = 3
# Characters of a line's end that are looked at: a line of numbers may be as long as a file.
_END_OF_LINE: Final = 100


def _is_row(block: Block) -> bool:
    """Whether a block is a row of a table or the rule below its header, or entries with their pages."""
    if block.header or block.text.lstrip().startswith("|") or block.text.count(" | ") > 1:
        return True
    lines = block.text.split("\n")
    return len(lines) >= _ENTRIES and 2 * sum(map(_ends_with_pages, lines)) > len(lines)


def _ends_with_pages(line: str) -> bool:
    return _PAGES.search(line.rstrip()[-_END_OF_LINE:]) is not None


_COMMENT: Final = re.compile(r"^\s*(?:#+!?|//+!?|/\*+|\*+/?|--|;+|%+|\"\"\"|''')\s?|(?:\*/|\"\"\"|''')\s*$")


def _comments(block: Block, quoted: str) -> tuple[Block, str]:
    """The comments and docstrings of a part of a program, line for line; other lines are blank.

    Args:
        block: the part.
        quoted: the mark of the docstring that it begins in, if any.

    Returns:
        The block, and the mark of the docstring that it ends in.
    """
    lines = []
    for line in block.text.split("\n"):
        marks = [mark for mark in ('"""', "'''") if line.count(mark) == 1]
        is_comment = bool(quoted or _COMMENT.match(line))
        if marks and (not quoted or quoted in marks):
            quoted = "" if quoted else marks[0]
            is_comment = is_comment or not quoted
        lines.append(_COMMENT.sub("", line) if is_comment else "")
    return replace(block, text="\n".join(lines)), quoted


def _paragraphs(blocks: Iterable[Block]) -> Iterator[list[Block]]:
    """Each block, with those that go on with it on the next pages."""
    parts: list[Block] = []
    for block in blocks:
        if parts and (block.glue in (PARAGRAPH, ROW) or block.level or block.verbatim):
            yield parts
            parts = []
        parts.append(block)
    if parts:
        yield parts


def _sentences(parts: Sequence[Block], heading: str) -> Iterator[Quotable]:
    """The sentences of a paragraph, which may stand on several pages."""
    text = ""
    starts: list[int] = []
    for part in parts:
        text += part.glue if starts else ""
        starts.append(len(text))
        text += part.text
    before = ""
    for start, stop in sentences(text):
        sentence = _unmarked(text[start:stop])
        if not _says_something(sentence):
            before = ""
            continue
        begins, ends = (bisect_right(starts, offset) - 1 for offset in (start, stop - 1))
        first, last = parts[begins].first, parts[ends].last
        if parts[begins].by_line:
            first += text.count("\n", starts[begins], start)
            last = first + text.count("\n", start, stop)
        is_item = bool(_ITEM.match(text[start:stop]))
        yield Quotable(sentence, first, last, heading, is_complete=_is_complete(sentence, is_item), lead=before)
        before = sentence


_ITEM: Final = re.compile(r"(?:[-*+•–]|\(?(?:\d{1,3}|[a-z])[.)])\s+(?:\[[ xX]\]\s+)?")
_QUOTE_MARKS: Final = re.compile(r"^[ \t]*(?:>[ \t]?)+", re.MULTILINE)
_EAST_ASIAN: Final = "\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef"
_BROKEN_LINE: Final = re.compile(rf"(?<=[{_EAST_ASIAN}])\s*\n\s*(?=[{_EAST_ASIAN}])")


def folded(text: str) -> str:
    """Text on one line, with single spaces; none where a line of Chinese or Japanese was broken."""
    return " ".join(_BROKEN_LINE.sub("", text).split())


def _unmarked(text: str) -> str:
    """A sentence without the mark of its item and the marks of quoted lines."""
    text = _QUOTE_MARKS.sub("", text).lstrip()
    item = _ITEM.match(text)
    return folded(text[item.end() :] if item else text)


_IMAGE: Final = re.compile(r"\[?!\[[^\]]*\]\([^)]*\)(?:\]\([^)]*\))?")
_LINK: Final = re.compile(r"\[[^\]]*\](?:\([^)]*\)|\[[^\]]*\])|`[^`<]+ <[^>]+>`_+|<?https?://\S+")
_CODE: Final = re.compile(r"``?[^`]+``?")
_TAG: Final = re.compile(r"</?[a-zA-Z][^>]*>|<!--.*?-->|\{\{.*?\}\}|&\w+;")
_WORD: Final = re.compile(rf"[{_EAST_ASIAN}]{{2}}|[^\W\d_{_EAST_ASIAN}]+(?:['’-][^\W\d_]+)*")
# What stands between a title and its page in a table of contents.
_LEADERS: Final = re.compile(r"(?:…|(?<!\.)\.{4,}|(?<! \.)(?: \.){3,})\s*[\divxlc]+(?:\s|$)")
_WORD_OR_NUMBER: Final = re.compile(rf"{_WORD.pattern}|\b\d+(?:[.,:]\d+)*\b")
_DEFINITION: Final = re.compile(r"\[[^\]]+\]:\s|\.\.\s|:[\w -]+:\s*(?:\S+\s*)?$|#\+\w+:|\\\w+\{")

# Of a sentence's characters at least this share are letters: what has more digits and signs is half a table.
_LETTERS: Final = 0.55
_MINIMUM_WORDS: Final = 3


def _says_something(sentence: str) -> bool:
    """Whether there are words beside links, images, code and tags."""
    if _DEFINITION.match(sentence) or _LEADERS.search(sentence):
        return False
    bare = _TAG.sub(" ", _LINK.sub(" ", _IMAGE.sub(" ", sentence)))
    prose = _CODE.sub(" ", bare)
    if not _WORD.search(prose) or len(_WORD.findall(bare)) < _MINIMUM_WORDS:
        return False
    seen = [character for character in prose if not character.isspace()]
    letters = sum(map(str.isalpha, seen))
    return letters >= _LETTERS * len(seen) and not _is_list_of_links(sentence)


def _is_list_of_links(sentence: str) -> bool:
    """Whether links outweigh what is said about them, as in a bar of navigation."""
    links = list(_LINK.finditer(sentence))
    if len(links) < 3:
        return False
    between = [sentence[one.end() : other.start()].strip() for one, other in pairwise(links)]
    words = len(_WORD.findall(_LINK.sub("", sentence)))
    return sum(len(_WORD.findall(text)) < 2 for text in between) >= 2 and words < 2 * len(links)


_TERMINAL: Final = re.compile(r"[.!?…。！？｡।॥؟۔።][\"'”’»)\]*_`」』）]*$")  # noqa: RUF001
_WORDS_OF_AN_ITEM: Final = 4
_WORDS_OF_A_LINE: Final = 12


def _is_complete(sentence: str, is_item: bool) -> bool:
    """Whether it ends as sentences do, or is too long for the title that it else may be; ":" announces something."""
    if _TERMINAL.search(sentence):
        return True
    enough = _WORDS_OF_AN_ITEM if is_item or sentence.endswith(";") else _WORDS_OF_A_LINE
    return not sentence.endswith(":") and len(_WORD_OR_NUMBER.findall(sentence)) >= enough
