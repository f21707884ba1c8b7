"""Plain text and the markups that people type: paragraphs of lines, with the headings of each language as data.

The text of a block is that of the file, line for line, so that the place of a part can be counted; a heading's title
has no marks. Fenced and indented code stays in one block, blank lines included.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Final

from grit_mlx.text.blocks import ROW, Block
from grit_mlx.text.readers.source import Source

__all__ = [
    "markdown_blocks",
    "read_asciidoc",
    "read_code",
    "read_markdown",
    "read_org",
    "read_rst",
    "read_tex",
    "read_text",
    "text_blocks",
]

# A listing that is not closed would take the rest of the file into one block, in memory.
_MOST_LINES: Final = 20_000
_MOST_MATTER: Final = 200


@dataclass(frozen=True)
class _Heading:
    level: int
    title: str
    lines: int = 1  # that it takes


@dataclass(frozen=True)
class _Language:
    """How a markup tells headings, listings and what is not text.

    Attributes:
        heading: the heading that begins at the first of up to three lines, or None.
        opens: whether a line opens a listing: the test of the line that closes it, or None.
        is_silent: whether a line is not text: a directive, a comment, a property.
        tables: whether lines that begin with "|" are the rows of a table.
    """

    heading: Callable[[list[str]], _Heading | None] = lambda lines: None
    opens: Callable[[str], Callable[[str], bool] | None] = lambda line: None
    is_silent: Callable[[str], bool] = lambda line: False
    tables: bool = False


def _blocks(lines: Iterable[str], language: _Language, *, start: int = 1) -> Iterator[Block]:
    """The blocks of a document whose first line has a given number: what stands between blank lines, and the rest.

    A block that follows another without a blank line is joined to it by a newline.
    """
    last = 0
    for block in _parted(lines, language, start=start):
        yield replace(block, glue=ROW) if last and block.first == last + 1 else block
        last = block.last


def _parted(lines: Iterable[str], language: _Language, *, start: int) -> Iterator[Block]:
    gathered: list[str] = []
    closes: Callable[[str], bool] | None = None
    begun = 0
    window = _Window(lines, start - 1)

    def block(end: int, *, verbatim: bool = False) -> Iterator[Block]:
        if any(map(str.strip, gathered)):
            if language.tables and not verbatim:
                yield from _rows(gathered, begun)
            else:
                text = "\n".join(gathered).rstrip()
                yield Block(text, begun, begun + text.count("\n"), by_line=True, verbatim=verbatim)
        gathered.clear()

    for number, line in window:
        if closes is not None:
            gathered.append(line.rstrip())
            if closes(line) or len(gathered) >= _MOST_LINES:
                yield from block(number, verbatim=True)
                closes = None
            continue
        heading = language.heading(window.ahead(line)) if line.strip() else None
        if heading is not None:
            yield from block(number)
            below = window.taken(heading.lines - 1)
            if title := heading.title.strip():
                text, last = "\n".join(map(str.rstrip, (line, *below))), number + heading.lines - 1
                yield Block(text, number, last, level=heading.level, title=title, by_line=True)
        elif (opened := language.opens(line)) is not None:
            # A listing goes with the paragraph above it where nothing parts them.
            yield from block(number)
            closes, begun = opened, number
            gathered.append(line.rstrip())
        elif not line.strip() or language.is_silent(line) or len(gathered) >= _MOST_LINES:
            yield from block(number)
            if line.strip() and not language.is_silent(line):
                begun = number
                gathered.append(line.rstrip())
        else:
            if not gathered:
                begun = number
            gathered.append(line.rstrip())
    yield from block(0, verbatim=closes is not None)


class _Window:
    """Numbered lines, with a look at the next two."""

    def __init__(self, lines: Iterable[str], number: int) -> None:
        self._lines = iter(lines)
        self._coming: list[str] = []
        self._number = number

    def __iter__(self) -> Iterator[tuple[int, str]]:
        while True:
            if self._coming:
                line = self._coming.pop(0)
            else:
                try:
                    line = next(self._lines)
                except StopIteration:
                    return
            self._number += 1
            yield self._number, line

    def ahead(self, line: str) -> list[str]:
        while len(self._coming) < 2:
            try:
                self._coming.append(next(self._lines))
            except StopIteration:
                break
        return [line, *self._coming[:2]]

    def taken(self, count: int) -> list[str]:
        """The next lines, which are not iterated over any more."""
        lines, self._coming = self._coming[:count], self._coming[count:]
        self._number += count
        return lines


def _rows(lines: list[str], first: int) -> Iterator[Block]:
    """A paragraph; where it is a table of "|" its rows, each with the header above it."""
    is_row = [line.lstrip().startswith("|") for line in lines]
    if sum(is_row) < 3:
        text = "\n".join(lines).rstrip()
        yield Block(text, first, first + len(lines) - 1, by_line=True)
        return
    start = is_row.index(True)
    if start:
        yield Block("\n".join(lines[:start]), first, first + start - 1, by_line=True)
    header = lines[start] if re.fullmatch(r"[\s|:+=-]+", lines[start + 1]) else ""
    for offset, line in enumerate(lines[start:], start=start):
        if offset == start + 1 and header:
            continue
        number = first + offset
        is_first = offset == start and not start
        above = header if offset > start + 1 and is_row[offset] and len(header) <= 300 else ""
        yield Block(line, number, number, by_line=True, glue="\n\n" if is_first else ROW, header=above)


# --- plain text and code ------------------------------------------------------------------------------------


def text_blocks(lines: Iterable[str]) -> Iterator[Block]:
    """The paragraphs of lines of plain text."""
    return _blocks(lines, _Language())


def read_text(source: Source) -> Iterator[Block]:
    """The paragraphs of a plain text."""
    return text_blocks(source.lines("cookie"))


def read_code(source: Source) -> Iterator[Block]:
    """The parts of a program between blank lines."""
    return (replace(block, verbatim=True) for block in _blocks(source.lines("cookie"), _Language()))


# --- Markdown -----------------------------------------------------------------------------------------------

_ATX: Final = re.compile(r" {0,3}(#{1,6})(?:[ \t]+(.*?))?(?:[ \t]+#+)?[ \t]*$")
_SETEXT: Final = re.compile(r" {0,3}(=+|-{2,})[ \t]*$")
_FENCE: Final = re.compile(r"\s*(?:[-*+>]\s+)?(`{3,}|~{3,})(?P<info>.*)$")
_NO_SETEXT: Final = re.compile(r"\s*(?:[-*+>|#]|\d+[.)])\s|\s*\||\s*$|    ")


def _markdown_heading(lines: list[str]) -> _Heading | None:
    if match := _ATX.match(lines[0]):
        return _Heading(len(match[1]), re.sub(r"\s*\{#[\w-]+\}$", "", match[2] or ""))
    if len(lines) > 1 and not _NO_SETEXT.match(lines[0]) and (match := _SETEXT.match(lines[1])):
        return _Heading(1 if match[1][0] == "=" else 2, lines[0], 2)
    return None


def _markdown_fence(line: str) -> Callable[[str], bool] | None:
    match = _FENCE.match(line)
    if match is None or (match[1][0] == "`" and "`" in match["info"]):
        return None
    closing = re.compile(rf"\s*{re.escape(match[1][0])}{{{len(match[1])},}}\s*$")
    return lambda line: closing.match(line) is not None


_MARKDOWN: Final = _Language(heading=_markdown_heading, opens=_markdown_fence, tables=True)


def markdown_blocks(lines: Iterable[str]) -> Iterator[Block]:
    """The blocks of Markdown. Of front matter in YAML the title is a heading, the rest is text."""
    lines = iter(lines)
    opening = list(islice(lines, 1))
    if opening == ["---"]:
        for line in islice(lines, _MOST_MATTER):
            opening.append(line.rstrip())
            if opening[-1] in ("---", "..."):
                yield from _matter(opening)
                yield from _blocks(lines, _MARKDOWN, start=len(opening) + 1)
                return
    yield from _blocks(chain(opening, lines), _MARKDOWN)


def read_markdown(source: Source) -> Iterator[Block]:
    """The blocks of a Markdown file."""
    return markdown_blocks(source.lines())


_MATTER_TITLE: Final = re.compile(r"title:\s*[\"']?(.+?)[\"']?\s*$")


def _matter(lines: list[str]) -> Iterator[Block]:
    title = next(
        ((number, match[1]) for number, line in enumerate(lines, 1) if (match := _MATTER_TITLE.match(line))), None
    )
    if title:
        line = lines[title[0] - 1]
        yield Block(line, title[0], title[0], level=1, title=title[1], by_line=True)
    ends = [title[0], title[0] + 1] if title else [2, 2]
    for first, last in ((2, ends[0] - 1), (ends[1], len(lines) - 1)):
        text = "\n".join(lines[first - 1 : last])
        if text.strip():
            yield Block(text, first, last, by_line=True)


# --- reStructuredText ---------------------------------------------------------------------------------------

_ADORNMENT: Final = re.compile(r"([!-/:-@\[-`{-~])\1*\s*$")
_RST_SILENT: Final = re.compile(
    r"\.\. (?:_[^:]+:|\|[^|]+\||(?:index|highlight|module|currentmodule)::)|\s+:\w[\w-]*:\s*$|\.\.$"
)


def read_rst(source: Source) -> Iterator[Block]:
    """The blocks of a reStructuredText file; the order of adornments tells the levels."""
    styles: list[str] = []

    def level(style: str) -> int:
        if style not in styles:
            styles.append(style)
        return styles.index(style) + 1

    def heading(lines: list[str]) -> _Heading | None:
        if len(lines) > 2 and _is_adornment(lines[0]) and lines[2].rstrip() == lines[0].rstrip() and lines[1].strip():
            return (
                _Heading(level(lines[0][0] * 2), lines[1], 3)
                if len(lines[0].rstrip()) >= len(lines[1].strip())
                else None
            )
        if len(lines) > 1 and _is_adornment(lines[1]) and not lines[0][0].isspace() and not _is_adornment(lines[0]):
            title = lines[0].rstrip()
            if len(lines[1].rstrip()) >= min(len(title), 4):
                return _Heading(level(lines[1][0]), title, 2)
        return None

    return _blocks(
        source.lines("cookie"), _Language(heading=heading, is_silent=lambda line: bool(_RST_SILENT.match(line)))
    )


def _is_adornment(line: str) -> bool:
    return len(line.rstrip()) >= 3 and _ADORNMENT.match(line) is not None


# --- Org, AsciiDoc, LaTeX -----------------------------------------------------------------------------------

_ORG_HEADING: Final = re.compile(
    r"(\*+)\s+(?:(?:TODO|DONE|NEXT|WAITING|HOLD|CANCELLED|CANCELED)\s+)?(?:\[#\w\]\s+)?(.*?)(?:\s+:[\w@#%:]+:)?\s*$"
)
_ORG_TITLE: Final = re.compile(r"#\+title:\s*(.*)", re.IGNORECASE)
_ORG_SILENT: Final = re.compile(
    r"\s*(?:#\+(?!title|caption)\w+:|# |:(?:PROPERTIES|END|LOGBOOK|[\w-]+):(?:\s.*)?$)", re.IGNORECASE
)


def _org_heading(lines: list[str]) -> _Heading | None:
    if match := _ORG_TITLE.match(lines[0]):
        return _Heading(1, match[1])
    if match := _ORG_HEADING.match(lines[0]):
        return _Heading(len(match[1]) + 1, match[2])  # below the file's title
    return None


def _org_opens(line: str) -> Callable[[str], bool] | None:
    match = re.match(r"\s*#\+begin_(\w+)", line, re.IGNORECASE)
    if match is None:
        return None
    end = f"#+end_{match[1].lower()}"
    return lambda line: line.strip().lower().startswith(end)


def read_org(source: Source) -> Iterator[Block]:
    """The blocks of an Org file, without drawers, keywords and comments."""
    language = _Language(
        heading=_org_heading, opens=_org_opens, is_silent=lambda line: bool(_ORG_SILENT.match(line)), tables=True
    )
    return _blocks(source.lines("cookie"), language)


_ADOC_HEADING: Final = re.compile(r"(={1,6}|#{1,6})\s+(\S.*?)(?:\s+\1)?\s*$")
_ADOC_LISTING: Final = re.compile(r"(-{4,}|\.{4,}|`{3,}|\+{4,}|/{4,})\s*(?:\w*)$")


def _adoc_heading(lines: list[str]) -> _Heading | None:
    match = _ADOC_HEADING.match(lines[0])
    return _Heading(len(match[1]), match[2]) if match else None


def _adoc_opens(line: str) -> Callable[[str], bool] | None:
    match = _ADOC_LISTING.match(line)
    if match is None:
        return None
    return lambda line: line.rstrip() == match[1]


def read_asciidoc(source: Source) -> Iterator[Block]:
    """The blocks of an AsciiDoc file."""
    silent = re.compile(r"//(?!/)|:[\w!-]+:|\[[^\]]*\]\s*$|ifdef::|ifndef::|endif::|include::")
    return _blocks(source.lines(), _Language(_adoc_heading, _adoc_opens, lambda line: bool(silent.match(line))))


_TEX_LEVELS: Final = {
    "title": 1,
    "part": 1,
    "chapter": 1,
    "section": 2,
    "subsection": 3,
    "subsubsection": 4,
    "paragraph": 5,
}
_TEX_HEADING: Final = re.compile(
    rf"\s*\\({'|'.join(_TEX_LEVELS)})\*?(?:\[[^\]]*\])?\{{(.*?)\}}\s*(?:\\label\{{[^}}]*\}})?\s*$"
)
_TEX_SILENT: Final = re.compile(
    r"\s*(?:%|\\(?:usepackage|documentclass|begin\{document\}|end\{document\}|label|maketitle|tableofcontents|newpage|"
    r"clearpage|bibliography(?:style)?|setlength|pagestyle|newcommand|renewcommand)\b)"
)


def _tex_heading(lines: list[str]) -> _Heading | None:
    match = _TEX_HEADING.match(lines[0])
    return _Heading(_TEX_LEVELS[match[1]], match[2]) if match else None


def _tex_opens(line: str) -> Callable[[str], bool] | None:
    match = re.match(r"\s*\\begin\{(verbatim|lstlisting|minted|Verbatim)\}", line)
    if match is None:
        return None
    end = f"\\end{{{match[1]}}}"
    return lambda line: end in line


def read_tex(source: Source) -> Iterator[Block]:
    """The blocks of a LaTeX file; commands inside of paragraphs stay."""
    return _blocks(
        source.lines("cookie"), _Language(_tex_heading, _tex_opens, lambda line: bool(_TEX_SILENT.match(line)))
    )
