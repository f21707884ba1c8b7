"""What calamine does not tell of the cells of an .xlsx file: which show percentages, which formulas have no value."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from grit_mlx.errors import DocumentError
from grit_mlx.text.readers.package import Package, attribute, children

__all__ = ["Cells", "cells_of"]

_WORKBOOK: Final = "xl/workbook.xml"
_BLOCK_BYTES: Final = 1 << 20
_TAIL_BYTES: Final = 1 << 12  # what a cell's tags take, at most, where a block of bytes ends in the middle

_PERCENT_FORMATS: Final = frozenset({"9", "10"})  # those that need not be defined
_CELL: Final = re.compile(rb"<(?:\w+:)?c\s([^<>]*)>")
_PLACE: Final = re.compile(rb'\br="([A-Z]+)([0-9]+)"')
_STYLE: Final = re.compile(rb'\bs="([0-9]+)"')
_WITHOUT_VALUE: Final = re.compile(
    rb"(?:</(?:\w+:)?f>|<(?:\w+:)?f\s[^<>]*/>)\s*(?:<v\s*/>|<v>\s*</v>)?\s*</(?:\w+:)?c>"
)


@dataclass(frozen=True)
class Cells:
    """The cells of a file.

    Attributes:
        percentages: by the sheet's name, the row (from 1) and column (from 0) of cells that are shown as percentages.
        without_values: whether there are formulas whose values the file does not hold.
    """

    percentages: Mapping[str, Collection[tuple[int, int]]] = field(default_factory=dict)
    without_values: bool = False


def cells_of(package: Package) -> Cells:
    """The cells of a file; of one that is not .xlsx, or damaged, nothing is known."""
    percentages: dict[str, set[tuple[int, int]]] = {}
    without_values = False
    with suppress(DocumentError):
        if _WORKBOOK not in package:
            return Cells()
        styles = _percent_styles(package)
        for name, part in _sheets(package):
            found = percentages.setdefault(name, set())
            for block in _blocks(package, part):
                without_values = without_values or _WITHOUT_VALUE.search(block) is not None
                found |= set(_styled(block, styles)) if styles else set()
    return Cells(percentages, without_values)


def _sheets(package: Package) -> Iterator[tuple[str, str]]:
    """The names of the sheets, and their parts."""
    related = package.relations(_WORKBOOK)
    for sheets in children(package.xml(_WORKBOOK), "sheets"):
        for sheet in children(sheets, "sheet"):
            kind, part = related.get(attribute(sheet, "id") or "", ("", ""))
            if kind == "worksheet" and part in package:
                yield sheet.get("name", ""), part


def _percent_styles(package: Package) -> frozenset[bytes]:
    """The numbers of the styles that show percentages."""
    formats, styles = set(_PERCENT_FORMATS), []
    for part in package.related(_WORKBOOK, "styles"):
        for group in children(package.xml(part), "numFmts", "cellXfs"):
            for one in children(group, "numFmt"):
                if "%" in re.sub(r'"[^"]*"|\\.', "", one.get("formatCode", "")):
                    formats.add(one.get("numFmtId", ""))
            styles += [one.get("numFmtId", "") for one in children(group, "xf")]
    return frozenset(str(number).encode() for number, shown in enumerate(styles) if shown in formats)


def _blocks(package: Package, part: str) -> Iterator[bytes]:
    """A part in blocks that overlap, so that each cell is whole in one of them."""
    with package.part(part) as file:
        tail = b""
        while block := file.read(_BLOCK_BYTES):
            yield tail + block
            tail = block[-_TAIL_BYTES:]


def _styled(block: bytes, styles: Collection[bytes]) -> Iterator[tuple[int, int]]:
    for cell in _CELL.finditer(block):
        style = _STYLE.search(cell[1])
        if style is not None and style[1] in styles and (place := _PLACE.search(cell[1])):
            yield int(place[2]), _column(place[1])


def _column(letters: bytes) -> int:
    """The number of a column from 0, of its letters."""
    number = 0
    for letter in letters:
        number = number * 26 + letter - ord("A") + 1
    return number - 1
