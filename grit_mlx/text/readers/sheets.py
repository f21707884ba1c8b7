"""Spreadsheets (.xlsx, .xlsm, .xlsb, .xls, .ods) by calamine: each row a document of "column: value".

The place of a block is its row, as the spreadsheet numbers it. The header is the first row that names as many columns
as the rows below it have; what stands above it is text. Of several sheets each begins with its name as a heading.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import date, datetime, time, timedelta
from itertools import islice
from typing import Any, Final

from grit_mlx.optional import optional
from grit_mlx.text.blocks import Block, cleaned, row_text
from grit_mlx.text.readers.package import opened_package
from grit_mlx.text.readers.source import Source

__all__ = ["read_sheets"]

# The header is sought among the first rows.
_OPENING_ROWS: Final = 20
_NAME_CHARACTERS: Final = 60


def read_sheets(source: Source) -> Iterator[Block]:
    """The rows of a spreadsheet.

    Raises:
        DocumentError: it is damaged, protected by a password, or a lock file.
        DependencyError: python-calamine is not installed.
    """
    calamine = optional("python_calamine", extra="documents", purpose="Reading spreadsheets")
    if source.suffix != ".xls":
        with opened_package(source, "spreadsheet"):  # names lock files and passwords
            pass
        source.file.seek(0)
    try:
        workbook = calamine.CalamineWorkbook.from_filelike(source.file)
        names = list(workbook.sheet_names)
    except (calamine.CalamineError, OSError, ValueError) as error:
        if "password" in str(error).lower():
            raise source.failure("is protected by a password. Save a copy without one.") from error
        raise source.damaged("spreadsheet", error) from error
    for name in names:
        try:
            sheet = workbook.get_sheet_by_name(name)
        except (calamine.CalamineError, ValueError):  # a chart or a macro instead of cells
            continue
        if sheet.end is None:  # empty
            continue
        if len(names) > 1:
            first = (sheet.start or (0, 0))[0] + 1
            yield Block(name, first, first, level=1)
        yield from _sheet(sheet)


def _sheet(sheet: Any) -> Iterator[Block]:
    numbered = ((number, list(map(_shown, row))) for number, row in enumerate(sheet.iter_rows(), start=1))
    full = ((number, values) for number, values in numbered if any(values))
    opening = list(islice(full, _OPENING_ROWS))
    header = _header([values for _, values in opening])
    for index, (number, values) in enumerate(opening):
        if header is None or index < header:
            yield Block(" | ".join(filter(None, values)), number, number)
        elif index > header:
            yield _row(opening[header][1], number, values)
    columns = opening[header][1] if header is not None else None
    for number, values in full:
        if columns is None:
            yield Block(" | ".join(filter(None, values)), number, number)
        else:
            yield _row(columns, number, values)


def _row(columns: Sequence[str], number: int, values: Sequence[str]) -> Block:
    pairs = tuple((column, value) for column, value in zip(columns, values, strict=False) if column and value)
    return Block(row_text(columns, values), number, number, fields=pairs)


def _header(rows: Sequence[Sequence[str]]) -> int | None:
    """Which row names the columns: the first that fills as many as the fullest row, all of them with words."""
    width = max((_filled(row) for row in rows[1:]), default=0)
    for index, row in enumerate(rows[:-1]):
        if _filled(row) >= max(1, width - 1) and all(not value or _is_name(value) for value in row):
            return index if _filled(row) > 1 or width == 1 else None
    return None


def _is_name(value: str) -> bool:
    return len(value) <= _NAME_CHARACTERS and any(map(str.isalpha, value))


def _filled(row: Sequence[str]) -> int:
    return sum(map(bool, row))


def _shown(value: Any) -> str:
    """A cell as a person would write it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else f"{value:.15g}"
    if isinstance(value, datetime):
        return value.isoformat(" ") if value.time() != time() else value.date().isoformat()
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return str(value)
    return cleaned(str(value))
