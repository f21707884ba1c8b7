"""Lines of JSON, JSON lines, CSV and TSV to rows, with the place of each (pure functions on text)."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Final, Protocol

from grit_mlx.errors import DocumentError
from grit_mlx.text.splitting import STDIN, Text

__all__ = ["READERS", "failure", "joined_rows", "named", "without_empty"]


# The delimiters to choose from; the one commonest in the header wins. Spreadsheets of half of Europe write
# ";".
_DELIMITERS: Final[dict[str, str]] = {"csv": ",;\t", "tsv": "\t"}

_JSON_NAMES: Final[dict[type, str]] = {
    dict: "an object",
    list: "an array",
    str: "a string",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    type(None): "null",
}

_CSV_FIELD_LIMIT: Final = 2**31 - 1  # characters; the most that a C long holds on every platform


def named(source: str) -> str:
    """What to call a source in a message."""
    return "Standard input" if source == STDIN else source


def failure(problem: str, source: str, line: int | None = None) -> DocumentError:
    """A failure of the content: "NAME PROBLEM" for a whole file, "NAME, line N: PROBLEM" for a line of it."""
    where = f"{named(source)} " if line is None else f"{named(source)}, line {line}: "
    return DocumentError(where + problem, path=source, line=line)


class _Reader(Protocol):
    def __call__(self, lines: Iterable[str], *, source: str, field: str | None, kind: str) -> Iterator[Text]: ...


def _jsonl_rows(lines: Iterable[str], *, source: str, field: str | None, kind: str) -> Iterator[Text]:
    decoder = json.JSONDecoder()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        start = len(line) - len(line.lstrip())
        value, end = _json_value(decoder, line, start, source=source, line=number)
        if line[end:].strip():
            problem = f"the JSON value ends before column {end + 1}. Put one value on each line."
            raise failure(problem, source, number)
        yield Text(_row_text(value, field=field, source=source, line=number), source, number, number, _fields(value))


def _json_rows(lines: Iterable[str], *, source: str, field: str | None, kind: str) -> Iterator[Text]:
    for value, first, last in _json_values("\n".join(lines), source=source):
        yield Text(_row_text(value, field=field, source=source, line=first), source, first, last, _fields(value))


def _json_values(text: str, *, source: str) -> Iterator[tuple[object, int, int]]:
    """The elements of one array, or a single value, each with the first and last line it stands on."""
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
        value, position = _json_value(decoder, text, position, source=source, line=first)
        yield value, first, line_at(position)
        position = skip_space(position)
        more = in_array and text[position : position + 1] == ","
        if more:
            position = skip_space(position + 1)
    if in_array and text[position : position + 1] != "]":
        raise failure('expected "," or "]" in the JSON array.', source, line_at(position))
    position = skip_space(position + in_array)
    if position != len(text):
        problem = "there is more after the JSON value. If the file holds one value per line, name it .jsonl."
        raise failure(problem, source, line_at(position))


_JSON_SPACE: Final = re.compile(r"[ \t\r\n]*")


def _json_value(decoder: json.JSONDecoder, text: str, start: int, *, source: str, line: int) -> tuple[object, int]:
    """One JSON value, which begins at an offset on a given line, and the offset after it."""
    try:
        value, end = decoder.raw_decode(text, start)
    except json.JSONDecodeError as error:
        # The error may stand on a later line than the value begins on.
        column = error.pos - text.rfind("\n", 0, error.pos)
        at = line + text.count("\n", start, error.pos)
        raise failure(f"column {column} is not JSON ({error.msg}). Mend the line.", source, at) from error
    except RecursionError as error:
        raise failure("the JSON value is nested too deeply.", source, line) from error
    except ValueError as error:  # such as an integer of more digits than Python converts
        raise failure(f"the JSON value cannot be read ({error}).", source, line) from error
    return value, end


def _fields(value: object) -> dict[str, object] | None:
    return value if isinstance(value, dict) else None


def _row_text(value: object, *, field: str | None, source: str, line: int) -> str:
    """The text of a JSON row; null is "", which is refused or skipped later as other empty texts are."""
    label = "the text"
    if isinstance(value, dict):
        key = "text" if field is None else field
        if key not in value:
            problem = f"there is no field {key!r}; the fields are {_listed(value)}. Choose one with --field."
            raise failure(problem, source, line)
        value, label = value[key], f"the field {key!r}"
        if value is None:
            return ""
    elif field is not None or not isinstance(value, str):
        expected = "an object" if field is not None else "an object or a string"
        raise failure(f"expected {expected}, but found {_JSON_NAMES[type(value)]}.", source, line)
    if not isinstance(value, str):
        raise failure(f"{label} is {_JSON_NAMES[type(value)]}, not a string.", source, line)
    if not value.isascii() and _SURROGATE.search(value):
        # JSON can write half of a UTF-16 pair, which no tokenizer can encode.
        problem = f"{label} holds half of a character (a lone surrogate such as \\ud800). Mend the line."
        raise failure(problem, source, line)
    return value


_SURROGATE: Final = re.compile("[\ud800-\udfff]")


def _csv_rows(lines: Iterable[str], *, source: str, field: str | None, kind: str) -> Iterator[Text]:
    csv.field_size_limit(max(csv.field_size_limit(), _CSV_FIELD_LIMIT))  # process-wide; the default is 128 Ki
    stream = _csv_lines(lines, source=source)
    opening = []  # up to the header
    for line in stream:
        opening.append(line)
        if line.strip():
            break
    else:
        return
    delimiter = max(_DELIMITERS[kind], key=opening[-1].count)
    # strict: an unclosed quote would otherwise swallow the rest of the file in silence.
    reader = csv.reader(chain(opening, stream), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    column = 0
    while True:
        first = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            problem = f"cannot be read as {kind.upper()} ({error})"
            raise failure(f"{problem}. Check the quotes of the row.", source, first) from error
        if row is None:
            return
        if len(row) < 2 and not "".join(row).strip():
            continue  # a blank line
        if header is None:
            header = [name.strip() for name in row]
            column = _column(header, field=field, source=source, line=first)
            continue
        if len(row) != len(header):
            counts = f"the row has {len(row)} columns, but the header has {len(header)}"
            advice = f'Put texts that contain {delimiter!r} into "quotes".'
            raise failure(f"{counts}. {advice}", source, first)
        yield Text(row[column], source, first, reader.line_num, dict(zip(header, row, strict=True)))


def _csv_lines(lines: Iterable[str], *, source: str) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        if "\0" in line:  # which csv refuses or takes, depending on the Python version
            raise failure("there is a NUL byte. Remove it, or name another file.", source, number)
        yield line + "\n"


def _column(header: list[str], *, field: str | None, source: str, line: int) -> int:
    name = "text" if field is None else field
    if name in header:
        return header.index(name)
    if field is None and len(header) == 1:
        return 0
    problem = f"there is no column {name!r}; the columns are {_listed(header)}. Choose one with --field."
    raise failure(problem, source, line)


READERS: Final[dict[str, _Reader]] = {
    "jsonl": _jsonl_rows,
    "json": _json_rows,
    "csv": _csv_rows,
    "tsv": _csv_rows,
}


def _listed(names: Iterable[object], *, most: int = 12) -> str:
    shown = [repr(name) for name in names]
    return ", ".join(shown[:most]) + (f" and {len(shown) - most} more" if len(shown) > most else "") or "none"


def without_empty(rows: Iterable[Text], *, skip: bool, on_skip: Callable[[], None] | None) -> Iterator[Text]:
    """The rows that have text.

    Args:
        rows: any rows.
        skip: drop a row without text instead of refusing it.
        on_skip: called for each row that is dropped.

    Raises:
        DocumentError: a row has no text.
    """
    for row in rows:
        if row.text.strip():
            yield row
        elif not skip:
            problem = "the text of this row is empty. Remove the row, or skip such rows with --skip-empty."
            raise failure(problem, row.source, row.line)
        elif on_skip is not None:
            on_skip()


def joined_rows(rows: Iterable[Text]) -> Iterator[Text]:
    """All rows that have text as one text; none where there is none."""
    full = [row for row in rows if row.text.strip()]
    if full:
        text = "\n\n".join(row.text for row in full)
        yield Text(text, full[0].source, full[0].line, full[-1].end_line)
