"""Spreadsheets (.xlsx, .xlsm, .xlsb, .xls, .ods) by calamine: each row a document of "column: value".

The place of a block is its row, as the spreadsheet numbers it. The header is the first row that names as many columns
as the rows below it have; what stands above it is text. Of several sheets each begins with its name as a heading.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Sequence
from datetime import date, datetime, time, timedelta
from itertools import islice
from typing import Any, Final

from grit_mlx.optional import optional
from grit_mlx.text.blocks import Block, cleaned, row_text
from grit_mlx.text.readers.cells import Cells, cells_of
from grit_mlx.text.readers.package import opened_package
from grit_mlx.text.readers.source import Source

__all__ = ["read_sheets"]

# The header is sought among the first rows.
_OPENING_ROWS: Final = 20
_NAME_CHARACTERS: Final = 60
_TIME: Final = re.compile(r"(?:19|20)\d\d(?:-\d\d(?:-\d\d)?)?")


def read_sheets(source: Source) -> Iterator[Block]:
    """The rows of a spreadsheet.

    Raises:
        DocumentError: it is damaged, protected by a password, or a lock file.
        DependencyError: python-calamine is not installed.
    """
    calamine = optional("python_calamine", extra="documents", purpose="Reading spreadsheets")
    cells = Cells()
    if source.suffix != ".xls":
        with opened_package(source, "spreadsheet") as package:  # names lock files and passwords
            cells = cells_of(package)
        source.file.seek(0)
    try:
        workbook = calamine.CalamineWorkbook.from_filelike(source.file)
        names = list(workbook.sheet_names)
    except (calamine.CalamineError, OSError, ValueError) as error:
        if "password" in str(error).lower():
            raise source.failure("is protected by a password. Save a copy without one.") from error
        raise source.damaged("spreadsheet", error) from error
    hidden = {about.name for about in workbook.sheets_metadata if "Hidden" in str(about.visible)}
    for name in names:
        try:
            sheet = workbook.get_sheet_by_name(name)
        except (calamine.CalamineError, ValueError):  # a chart or a macro instead of cells
            continue
        if sheet.end is None:  # empty
            continue
        if len(names) > 1:
            first = (sheet.start or (0, 0))[0] + 1
            # Who looks for it in the program that wrote the file does not see it at first.
            yield Block(f"{name} (hidden sheet)" if name in hidden else name, first, first, level=1)
        yield from _sheet(sheet, percentages=cells.percentages.get(name, ()))
    if cells.without_values:
        source.notes.warn(
            f"{source.name} has formulas without stored values, which are left out. Open it in a program for "
            "spreadsheets and save it."
        )


def _sheet(sheet: Any, *, percentages: Container[tuple[int, int]]) -> Iterator[Block]:
    merged = _Merged(sheet.merged_cell_ranges or ())
    numbered = (
        (number, merged.filled(number, [_shown(value, (number, at) in percentages) for at, value in enumerate(row)]))
        for number, row in enumerate(sheet.iter_rows(), start=1)
    )
    full = ((number, values) for number, values in numbered if any(values))
    opening = list(islice(full, _OPENING_ROWS))
    header = _header([values for _, values in opening])
    columns = None if header is None else _columns(opening, header, merged)
    for index, (number, values) in enumerate(opening):
        if columns is None or header is None or index < header:
            yield Block(" | ".join(filter(None, values)), number, number)
        elif index > header:
            yield _row(columns, number, values)
    for number, values in full:
        if columns is None:
            yield Block(" | ".join(filter(None, values)), number, number)
        else:
            yield _row(columns, number, values)


class _Merged:
    """Cells that are merged: the first one has the value of all.

    Args:
        ranges: their first and last rows and columns, from 0.
    """

    def __init__(self, ranges: Sequence[tuple[tuple[int, int], tuple[int, int]]]) -> None:
        self._ending: dict[int, list[tuple[int, int]]] = {}  # by the first row: the column, and the last row
        self.beside: dict[int, list[range]] = {}  # by the row: the columns of one value
        for (top, left), (bottom, right) in ranges:
            if bottom > top:
                self._ending.setdefault(top + 1, []).append((left, bottom + 1))
            if right > left:
                self.beside.setdefault(top + 1, []).append(range(left, right + 1))
        self._open: dict[int, tuple[int, str]] = {}  # by the column: the last row, and the value

    def filled(self, number: int, values: list[str]) -> list[str]:
        """The values of a row, with those that merged cells have from a row above it; rows are asked for in order."""
        for column, (last, value) in list(self._open.items()):
            if number > last:
                del self._open[column]
            elif column < len(values) and not values[column]:
                values[column] = value
        for column, last in self._ending.get(number, ()):
            if column < len(values):
                self._open[column] = last, values[column]
        return values


def _columns(opening: Sequence[tuple[int, Sequence[str]]], header: int, merged: _Merged) -> list[str]:
    """The names of the columns, each after the name of the group that stands right above it in merged cells."""
    number, values = opening[header]
    columns = list(values)
    above_number, above = opening[header - 1] if header else (0, [])
    if above_number != number - 1 or _filled(above) < 2:  # none, or a title
        return columns
    for group in merged.beside.get(above_number, ()):
        for at in group:
            if at < len(columns) and columns[at] and above[group[0]]:
                columns[at] = f"{above[group[0]]} {columns[at]}"
    return columns


def _row(columns: Sequence[str], number: int, values: Sequence[str]) -> Block:
    pairs = tuple((column, value) for column, value in zip(columns, values, strict=False) if column and value)
    return Block(row_text(columns, values), number, number, fields=pairs)


def _header(rows: Sequence[Sequence[str]]) -> int | None:
    """Which row names the columns: the first that fills as many as the fullest row, all of them with names."""
    width = max((_filled(row) for row in rows[1:]), default=0)
    for index, row in enumerate(rows[:-1]):
        if _filled(row) < max(1, width - 1):
            continue
        if _names_columns(row):
            return index if _filled(row) > 1 or width == 1 else None
        if _filled(row) == width:  # the first row of figures, or of long texts
            return None
    return None


def _names_columns(row: Sequence[str]) -> bool:
    """Whether all values are names, or all but years or days that follow one another."""
    others = [value for value in row if value and not _is_name(value)]
    if not others:
        return True
    in_time = all(map(_TIME.fullmatch, others)) and len(set(map(len, others))) == 1
    return in_time and len(others) > 1 and others in (sorted(set(others)), sorted(set(others), reverse=True))


def _is_name(value: str) -> bool:
    return len(value) <= _NAME_CHARACTERS and any(map(str.isalpha, value))


def _filled(row: Sequence[str]) -> int:
    return sum(map(bool, row))


def _shown(value: Any, is_percentage: bool = False) -> str:
    """A cell as a person would write it."""
    if is_percentage and isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value * 100:.10g}%"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else f"{value:.15g}"
    if isinstance(value, datetime):
        return value.isoformat(" ") if value.time() != time() else value.date().isoformat()
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        minutes, seconds = divmod(round(value.total_seconds()), 60)
        return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
    return cleaned(str(value))
