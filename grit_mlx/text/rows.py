"""Rows of JSON lines, JSON, CSV and TSV, each with its place (pure functions on lines without their ends).

All rows are read by these functions, so that a damaged row leads to the same message everywhere. ``reader`` is "jsonl",
"json", "csv" or "tsv", and ``source`` the name of the file.
"""

from __future__ import annotations

import csv
import json
import re
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import chain
from os import PathLike, fspath
from typing import Any, Final, Literal

from grit_mlx.errors import DocumentError, Option, first_line
from grit_mlx.text.blocks import row_text
from grit_mlx.text.splitting import STDIN, Text

__all__ = [
    "FORMATS",
    "Row",
    "Source",
    "failure",
    "missing",
    "named",
    "objects",
    "table",
    "text_of",
    "texts",
    "texts_in",
    "with_text",
]

Source = str | PathLike[str]

# What a row holds, and its first and last line.
Row = tuple[Any, int, int]

# The delimiters to choose from; the most frequent one in the header wins. Half of Europe's spreadsheets write ";".
_DELIMITERS: Final[dict[str, str]] = {"csv": ",;\t|", "tsv": "\t"}
# The first line by which Excel is told the delimiter.
_SEPARATOR_LINE: Final = re.compile(r"\ufeff?sep=(.)\s*$", re.IGNORECASE)

_CSV_FIELD_LIMIT: Final = 2**31 - 1  # characters; the largest C long of every platform

_JSON_NAMES: Final[dict[type, str]] = {
    **{dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"},
    **{int: "a number", float: "a number"},
}
_JSON_SPACE: Final = re.compile(r"[ \t\r\n]*")
_ESCAPED_SURROGATE: Final = re.compile(r"\\u[dD][89a-fA-F]")

_CHOOSE: Final = ". Choose one with ", Option("field"), "."


# Messages


def named(source: str) -> str:
    """What to call a source in a message."""
    return "Standard input" if source == STDIN else source


def failure(source: Source, line: int | None, *parts: str | Option) -> DocumentError:
    """An error about content: "NAME PROBLEM", or "NAME, line N: PROBLEM"; adds the full stop if there is none."""
    name = fspath(source)
    where = f"{named(name)} " if line is None else f"{named(name)}, line {line}: "
    stop = () if str(parts[-1]).endswith(".") else (".",)
    return DocumentError(where, *parts, *stop, path=name, line=line)


def missing(wanted: Collection[str], there: Iterable[object], *, what: str = "field", most: int = 12) -> str:
    """The problem of a row that has none of the fields wanted."""
    shown = [repr(name) for name in there]
    more = f" and {len(shown) - most} more" if len(shown) > most else ""
    *others, last = map(repr, wanted)
    names = f"{', '.join(others)} or {last}" if others else last
    return f"there is no {what} {names}; the {what}s are {', '.join(shown[:most]) + more or 'none'}"


# Rows


def objects(lines: Iterable[str], reader: str, *, source: Source) -> Iterator[Row]:
    """The rows of a file as mappings: JSON objects, or cells by column.

    Raises:
        DocumentError: a row is damaged or not an object.
    """
    if reader in _DELIMITERS:
        rows = table(lines, reader, source=source)
        columns = _columns(next(rows, None))
        for cells, line, end_line in rows:
            yield dict(zip(columns, cells, strict=True)), line, end_line
        return
    for value, line, end_line in _VALUES[reader](lines, source, None):
        if not isinstance(value, dict):
            raise _wrong_type(source, line, "the row", value, "an object")
        yield value, line, end_line


def texts(
    lines: Iterable[str],
    reader: str,
    *,
    source: str,
    field: str | None = None,
    on_damage: Callable[[str], object] | None = None,
) -> Iterator[Text]:
    """The texts of rows; some may be empty.

    They are in ``field``; if it is None, in "text", in the only column, or in rows that are JSON strings. The rows of
    CSV and TSV without such a column are "column: value" of all columns.

    Args:
        lines: of the file.
        reader: how it is written.
        source: the name of the file.
        field: the field or column that holds the text.
        on_damage: called with a sentence about each row that is damaged, instead of raising an error: ragged rows are
            kept, others left out. Then a file that has no ``field`` is read with all columns, JSON as well.

    Raises:
        DocumentError: a row is damaged or has no such field.
    """
    if reader in _DELIMITERS:
        yield from _table_texts(lines, reader, source, field, on_damage)
        return
    yield from texts_in(_VALUES[reader](lines, source, on_damage), source=source, field=field, on_damage=on_damage)


def texts_in(
    rows: Iterable[Row], *, source: str, field: str | None = None, on_damage: Callable[[str], object] | None = None
) -> Iterator[Text]:
    """As ``texts``, of rows that are objects or strings."""
    for value, line, end_line in rows:
        try:
            yield _json_text(value, field, source, line, end_line, all_columns=on_damage is not None)
        except DocumentError as error:
            if on_damage is None:
                raise
            on_damage(f"{error} The row is left out.")


def _table_texts(
    lines: Iterable[str], reader: str, source: str, field: str | None, on_damage: Callable[[str], object] | None
) -> Iterator[Text]:
    wanted = "text" if field is None else field
    rows = table(lines, reader, source=source) if on_damage is None else loose_table(lines, reader, source, on_damage)
    header = next(rows, None)
    columns = _columns(header)
    if header is not None and wanted not in columns and field is not None:
        problem = missing([wanted], columns, what="column")
        if on_damage is None:
            raise failure(source, header[1], problem, *_CHOOSE)
        on_damage(f"{named(source)}: {problem}; all are read.")
    index = columns.index(wanted) if wanted in columns else 0 if len(columns) == 1 else None
    for cells, line, end_line in rows:
        # Cells beyond an only column, which is then a title above the table, count as well.
        text = row_text(columns, cells) if index is None or len(cells) > len(columns) == 1 else cells[index]
        yield Text(text, source, line, end_line, dict(zip(columns, cells, strict=False)))


def _json_text(value: Any, field: str | None, source: str, line: int, end_line: int, *, all_columns: bool) -> Text:
    wanted = "text" if field is None else field
    if isinstance(value, dict):
        if all_columns and wanted not in value:
            scalars = {key: part for key, part in value.items() if isinstance(part, str | int | float | bool)}
            return Text(
                row_text(list(scalars), [_shown(part) for part in scalars.values()]), source, line, end_line, value
            )
        return Text(text_of(value, wanted, source, line, _CHOOSE), source, line, end_line, value)
    if field is None and isinstance(value, str):
        return Text(value, source, line, end_line)
    raise _wrong_type(source, line, "the row", value, "an object")


def _shown(value: str | int | float | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def text_of(row: dict[str, Any], field: str, source: Source, line: int, advice: tuple[str | Option, ...] = ()) -> str:
    """The text in a field of a JSON object; "" for null.

    Raises:
        DocumentError: there is no such field, for which the message gives ``advice``, or it is not a string.
    """
    if field not in row:
        raise failure(source, line, missing([field], row), *(advice if row else ()))
    value = row[field]
    if value is not None and not isinstance(value, str):
        raise _wrong_type(source, line, f"the field {field!r}", value, "a string")
    return value or ""


def with_text(rows: Iterable[Text], *, skip: bool, on_skip: Callable[[], None] | None = None) -> Iterator[Text]:
    """The rows that have text; ``on_skip`` is called for each of the others.

    Raises:
        DocumentError: a row has no text, and such rows are not to be skipped.
    """
    for row in rows:
        if row.text.strip():
            yield row
        elif not skip:
            advice = "Remove the row, or skip such rows with ", Option("skip_empty", True), "."
            raise failure(row.source, row.line, "the text of this row is empty. ", *advice)
        elif on_skip is not None:
            on_skip()


def _columns(header: Row | None) -> list[str]:
    return [] if header is None else [name.strip() for name in header[0]]


def _wrong_type(source: Source, line: int, label: str, value: object, wanted: str) -> DocumentError:
    return failure(source, line, f"{label} is {_JSON_NAMES[type(value)]}, not {wanted}")


# JSON


def _json_lines(
    lines: Iterable[str], source: Source, on_damage: Callable[[str], object] | None = None
) -> Iterator[Row]:
    decoder = json.JSONDecoder()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = _json_line(decoder, line, source, number)
            # Some name an array of rows so.
            rows = value if on_damage is not None and isinstance(value, list) else [value]
            yield from ((row, number, number) for row in rows)
        except DocumentError as error:
            if on_damage is None:
                raise
            on_damage(f"{error} The row is left out.")


def _json_line(decoder: json.JSONDecoder, line: str, source: Source, number: int) -> Any:
    value, end = _json_value(decoder, line, len(line) - len(line.lstrip()), source, number)
    if line[end:].strip():
        raise failure(source, number, f"the JSON value ends before column {end + 1}. Put one value on each line.")
    return value


def _json_array(
    lines: Iterable[str], source: Source, on_damage: Callable[[str], object] | None = None
) -> Iterator[Row]:
    """The elements of one array, or a single value. Damage ends the file whatever is asked for."""
    text = "\n".join(lines)
    decoder = json.JSONDecoder()
    line, counted = 1, 0  # the line at the offset `counted`

    def line_at(position: int) -> int:
        nonlocal line, counted
        line += text.count("\n", counted, position)
        counted = position
        return line

    def skip_space(position: int) -> int:
        match = _JSON_SPACE.match(text, position)
        return match.end() if match else position

    position = skip_space(0)
    if position == len(text):
        return
    in_array = text[position] == "["
    if in_array:
        position = skip_space(position + 1)
    more = not (in_array and text[position : position + 1] == "]")
    while more:
        first = line_at(position)
        value, position = _json_value(decoder, text, position, source, first)
        yield value, first, line_at(position)
        position = skip_space(position)
        more = in_array and text[position : position + 1] == ","
        if more:
            position = skip_space(position + 1)
    if in_array and text[position : position + 1] != "]":
        raise failure(source, line_at(position), 'expected "," or "]" in the JSON array')
    position = skip_space(position + in_array)
    if position != len(text):
        problem = "there is more after the JSON value. If the file holds one value per line, name it .jsonl."
        raise failure(source, line_at(position), problem)


_VALUES: Final = {"jsonl": _json_lines, "json": _json_array}

# How files of rows are written.
FORMATS: Final = frozenset({*_VALUES, *_DELIMITERS})


def _json_value(decoder: json.JSONDecoder, text: str, start: int, source: Source, line: int) -> tuple[Any, int]:
    """One JSON value, which begins at an offset on a given line, and the offset after it."""
    try:
        value, end = decoder.raw_decode(text, start)
        if _ESCAPED_SURROGATE.search(text, start, end):
            _check_characters(value, source, line)
    except json.JSONDecodeError as error:
        # The error may be on a later line than the value begins on.
        column = error.pos - text.rfind("\n", 0, error.pos)
        at = line + text.count("\n", start, error.pos)
        raise failure(source, at, f"column {column} is not JSON ({error.msg}). Fix the line.") from error
    except RecursionError as error:
        raise failure(source, line, "the JSON value is nested too deeply") from error
    except ValueError as error:  # such as an integer of more digits than Python converts
        raise failure(source, line, f"the JSON value cannot be read: {first_line(error)}") from error
    return value, end


def _check_characters(value: Any, source: Source, line: int) -> None:
    """Refuse half of a UTF-16 pair, which JSON can spell and no tokenizer can encode."""
    for name, part in value.items() if isinstance(value, dict) else [(None, value)]:
        try:
            json.dumps([name, part], ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            where = "the text" if name is None else f"the field {name!r}"
            problem = f"{where} holds half of a character (a lone surrogate such as \\ud800). Fix the line."
            raise failure(source, line, problem) from error


# CSV and TSV


def table(lines: Iterable[str], reader: str, *, source: Source, header: bool = True) -> Iterator[Row]:
    """The cells of each row of CSV or TSV that is not blank, in lists of one length.

    If the first row need not be a header, as in common STS files, the delimiter is not guessed from it, and quotation
    marks in a TSV are text.

    Raises:
        DocumentError: quotes that do not match, rows of different lengths, or a NUL byte.
    """
    csv.field_size_limit(max(csv.field_size_limit(), _CSV_FIELD_LIMIT))  # process-wide; the default is 128 Ki
    stream = _without_nul(lines, source)
    opening, delimiter = [], ""  # up to the first row
    for line in stream:
        told = _SEPARATOR_LINE.match(line) if not delimiter else None
        opening.append("\n" if told else line)
        delimiter = told[1] if told else delimiter
        if opening[-1].strip():
            break
    else:
        return
    if not delimiter:
        delimiter = max(_DELIMITERS[reader], key=opening[-1].count) if header else _DELIMITERS[reader][0]
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if header or reader == "csv" else csv.QUOTE_NONE
    # strict: an unclosed quote would otherwise silently swallow the rest of the file.
    cells = csv.reader(chain(opening, stream), delimiter=delimiter, quoting=quoting, strict=True)
    width = 0
    while True:
        first = cells.line_num + 1
        try:
            row = next(cells, None)
        except csv.Error as error:
            problem = f"cannot be read as {reader.upper()} ({error}). Check the quotes of the row."
            raise failure(source, first, problem) from error
        if row is None:
            return
        if len(row) < 2 and not "".join(row).strip():
            continue  # a blank line
        width = width or len(row)
        if len(row) != width:
            advice = (
                f'. Put texts that contain {delimiter!r} into "quotes"' if len(row) > width and quoting == 0 else ""
            )
            raise failure(source, first, f"the row has {len(row)} columns, but the first row has {width}{advice}")
        yield row, first, cells.line_num


def _without_nul(lines: Iterable[str], source: Source) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        if "\0" in line:  # which csv refuses or takes, depending on the Python version
            raise failure(source, number, "there is a NUL byte. Remove it, or name another file.")
        yield line + "\n"


def loose_table(lines: Iterable[str], reader: str, source: Source, on_damage: Callable[[str], object]) -> Iterator[Row]:
    """As ``table``, but no row is lost: a sentence tells of each that is ragged or whose quotes do not match.

    Short rows are filled up, long ones keep their further cells.
    """
    csv.field_size_limit(max(csv.field_size_limit(), _CSV_FIELD_LIMIT))
    delimiter, width = "", 0
    for record, first, last, is_whole in _records(lines):
        if not delimiter and (told := _SEPARATOR_LINE.match(record)):
            delimiter = told[1]
            continue
        if not delimiter:
            delimiter = max(_DELIMITERS[reader], key=record.count)
        quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if is_whole else csv.QUOTE_NONE
        cells = next(csv.reader([record.replace("\0", "")], delimiter=delimiter, quoting=quoting), [])
        width = width or len(cells)
        where = f"{named(fspath(source))}, line {first}: "
        if "\0" in record:
            on_damage(f"{where}there is a NUL byte, which is left out.")
        if not is_whole:
            on_damage(f"{where}a quotation mark is not closed; the line is read without it.")
        if len(cells) != width:
            on_damage(f"{where}the row has {len(cells)} columns, but the first row has {width}.")
        yield [*cells, *[""] * (width - len(cells))], first, last


# A quoted cell that goes on for more lines is taken for an unclosed quotation mark.
_RECORD_LINES: Final = 1000


def _records(lines: Iterable[str]) -> Iterator[tuple[str, int, int, bool]]:
    """Lines with the further ones that their quotes open, their places, and whether the quotes match."""
    waiting: deque[tuple[int, str]] = deque()
    stream = enumerate(lines, start=1)
    while True:
        following = waiting.popleft() if waiting else next(stream, None)
        if following is None:
            return
        taken = [following]
        while sum(line.count('"') for _, line in taken) % 2:
            more = None
            if len(taken) < _RECORD_LINES:
                more = waiting.popleft() if waiting else next(stream, None)
            if more is None:
                waiting.extendleft(reversed(taken[1:]))
                yield taken[0][1], taken[0][0], taken[0][0], False
                break
            taken.append(more)
        else:
            record = "\n".join(line for _, line in taken)
            if record.strip():
                yield record, taken[0][0], taken[-1][0], True
