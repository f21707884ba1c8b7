"""What every reader of files makes: blocks of text, each with its place in the file.

A page, a paragraph, a row of a table, a heading: whatever the kind of file, it becomes a `Block`. Headings are data
(``level``), never text that looks like one. Readers report what is worth knowing beside the text in `Notes`.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import Final

from grit_mlx.errors import Option, Sentence

__all__ = ["PARAGRAPH", "ROW", "Block", "Notes", "cleaned", "row_text", "table_blocks"]

# What joins a block to the one before it.
PARAGRAPH: Final = "\n\n"
ROW: Final = "\n"


@dataclass(frozen=True, slots=True)
class Block:
    """A part of a file that is read as one: a paragraph, a heading, a row of a table, a code listing.

    Attributes:
        text: never blank.
        first: where it begins, in the file's unit (line, page, paragraph, slide, row, ...), from 1.
        last: where it ends, inclusive.
        level: of a heading its level, from 1; 0 for body text.
        title: of a heading whose text has marks, as in Markdown, the text without them; else empty.
        by_line: whether each newline in the text is a line of the file, so that the place of a part can be counted.
        glue: what joins it to the block before: a blank line, a newline between the rows of one table, or a space, or
            nothing, where it goes on with a paragraph of the page before.
        header: of a row of a table, the text of the header row above it; empty where there is none.
        verbatim: whether it is code or other preformatted text, which is not cut at the ends of sentences.
        fields: of a row that is a document of its own, its columns and values.
    """

    text: str
    first: int
    last: int
    level: int = 0
    title: str = ""
    by_line: bool = False
    glue: str = PARAGRAPH
    header: str = ""
    verbatim: bool = False
    fields: tuple[tuple[str, str], ...] = ()


@dataclass
class Notes:
    """What reading a file noted beside its text.

    Attributes:
        warnings: sentences that begin with the file's name: a guessed encoding, scanned pages, ragged rows.
        left_out: characters of junk that were left out, by its kind (see ``junk``).
        show: called with each warning as it comes.
    """

    warnings: list[str] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    show: Callable[[str], object] | None = None

    def warn(self, *parts: str | Option) -> None:
        """Note a warning, of strings and the options that it mentions."""
        sentence = Sentence(*parts)
        self.warnings.append(sentence)
        if self.show is not None:
            self.show(sentence)


# Typographic ligatures, and characters that are not seen: soft hyphens, zero-width spaces, marks of byte order and
# direction, controls. Zero-width joiners stay: Persian, Hindi and emoji are spelled with them.
_LIGATURES: Final = {0xFB00: "ff", 0xFB01: "fi", 0xFB02: "fl", 0xFB03: "ffi", 0xFB04: "ffl", 0xFB05: "st", 0xFB06: "st"}
_UNSEEN: Final = dict.fromkeys(
    (*range(9), 0x0B, *range(0x0E, 0x20), *range(0x7F, 0xA0), 0xAD, 0x200B, 0x200E, 0x200F, 0x2060, 0xFEFF, 0xFFFE)
)
_SPACES: Final = dict.fromkeys((0x0C, 0x2028, 0x2029), "\n") | dict.fromkeys((0x09, 0xA0, 0x2007, 0x202F, 0x3000), " ")
_AROUND_NEWLINE: Final = re.compile(r"[ \t\r]*\n[ \t\r]*")
_BLANKS: Final = re.compile(r"  +")
# Characters for the radicals of Chinese script, which PDF files show in place of the words that look the same.
_RADICALS: Final = {code: unicodedata.normalize("NFKC", chr(code)) for code in range(0x2F00, 0x2FD6)}
# Adobe's private characters for figures and capitals in the style of old type.
_OLD_STYLE: Final = {
    0xF700 + code: chr(code).upper() for code in (*range(ord("0"), ord("9") + 1), *range(ord("a"), ord("z") + 1))
}
_CLEANED: Final = {**_LIGATURES, **_RADICALS, **_OLD_STYLE, **_UNSEEN, **_SPACES}


def cleaned(text: str) -> str:
    """Text as it is read aloud: ligatures folded, unseen characters and trailing blanks dropped.

    For kinds of files whose text is laid out anew anyway; lines of plain text stay as they are in the file.
    """
    if not (text.isascii() and text.isprintable()):  # newlines are not printable
        text = _AROUND_NEWLINE.sub("\n", text.translate(_CLEANED))
    return _BLANKS.sub(" ", text).strip()


def row_text(columns: Sequence[str], values: Sequence[str]) -> str:
    """A row of a table as a text of its own: "column: value" on a line for each value that is not blank."""
    named = zip([*columns, *repeat("", max(0, len(values) - len(columns)))], values, strict=False)
    return "\n".join(f"{column}: {value}" if column else value for column, value in named if value.strip())


# Longer header rows are not repeated: they would fill the passages.
_HEADER_CHARACTERS: Final = 300


def table_blocks(rows: Iterable[tuple[Sequence[str], int, int]], *, header_rows: int | None = None) -> list[Block]:
    """The rows of a table inside a document, as blocks of "cell | cell".

    Args:
        rows: the cells of each row, and its first and last place.
        header_rows: how many rows at the top are marked as header; None where the file does not say. Then the first
            row is one if it names every column.
    """
    kept = [(cells, first, last) for cells, first, last in rows if any(map(str.strip, cells))]
    if header_rows is None:
        header_rows = int(len(kept) > 2 and _names_columns(kept[0][0]))
    texts = [" | ".join(cells).strip().rstrip(" |") for cells, _, _ in kept]
    header = "\n".join(texts[:header_rows])
    if len(header) > _HEADER_CHARACTERS or header_rows == len(kept):
        header = ""
    return [
        Block(text, first, last, glue=ROW if number else PARAGRAPH, header=header if number >= header_rows else "")
        for number, (text, (_, first, last)) in enumerate(zip(texts, kept, strict=True))
    ]


def _names_columns(cells: Sequence[str]) -> bool:
    return len(cells) > 1 and all(any(map(str.isalpha, cell)) and len(cell) <= 60 for cell in cells)
