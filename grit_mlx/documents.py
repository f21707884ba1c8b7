"""Files to texts, as a stream: plain text, Markdown, JSON lines, JSON, CSV and TSV, each also gzipped.

Bytes become lines, lines become paragraphs or rows, and these become texts::

    read_texts(path)  =  texts_from_lines(decoded lines of the file, kind by its suffix)

Nothing is held beyond the text being built (``by="file"`` and ``.json`` need the whole file), so a file may
be larger than memory. Every failure is a `DocumentError` that names the file and, where there is one, the
line.
"""

from __future__ import annotations

import codecs
import csv
import errno
import gzip
import io
import json
import re
import stat
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import chain
from os import PathLike, fspath
from pathlib import Path, PurePath
from typing import Final, Literal, NamedTuple, Protocol, cast, get_args

from grit_mlx.errors import ArgumentError, DocumentError

__all__ = [
    "STDIN",
    "By",
    "Kind",
    "Text",
    "count_words",
    "kind_of",
    "read_texts",
    "split_chunks",
    "split_file",
    "split_lines",
    "split_paragraphs",
    "texts_from_lines",
]

By = Literal["line", "paragraph", "file", "chunk"]
Kind = Literal["text", "markdown", "jsonl", "json", "csv", "tsv"]
Measure = Callable[[str], int]

STDIN: Final = "-"

_KINDS: Final[dict[str, Kind]] = {
    ".txt": "text",
    ".text": "text",
    ".md": "markdown",
    ".markdown": "markdown",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
}

# The delimiters to choose from; the one commonest in the header wins. Spreadsheets of half of Europe write
# ";".
_DELIMITERS: Final[dict[Kind, str]] = {"csv": ",;\t", "tsv": "\t"}

_BYTE_ORDER_MARKS: Final = (
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)

_FOREIGN_FILES: Final = (
    (b"%PDF-", "is a PDF, not text. Convert it first, for example with pdftotext."),
    (b"PK\x03\x04", "is a zip archive or an office document, not text. Export it as plain text first."),
    (b"{\\rtf", "is an RTF document, not text. Export it as plain text first."),
    (b"\x1f\x8b", "holds gzipped data. Give it a name that ends in .gz, or unpack it first."),
)

_OS_FAILURES: Final[dict[int, str]] = {
    errno.ENOENT: "does not exist. Check the name.",
    errno.ENOTDIR: "does not exist: a part of its path is a file, not a folder.",
    errno.EISDIR: "is a folder. Name the files in it, for example with a shell pattern such as {path}/*.txt.",
    errno.EACCES: "may not be read by you. Check its permissions.",
    errno.EPERM: "may not be read by you. Check its permissions.",
    errno.ENAMETOOLONG: "is too long for a file name.",
    errno.ELOOP: "is a symbolic link that leads back to itself.",
}

_JSON_NAMES: Final[dict[type, str]] = {
    dict: "an object",
    list: "an array",
    str: "a string",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    type(None): "null",
}

_BLOCK_BYTES: Final = 1 << 16
_BINARY_PROBE_BYTES: Final = 8192
_CSV_FIELD_LIMIT: Final = 2**31 - 1  # characters; the most that a C long holds on every platform


@dataclass(frozen=True, slots=True)
class Text:
    """One text and where it stands.

    Attributes:
        text: the text, never empty.
        source: the path as given, or "-" for standard input.
        line: the first line it was taken from, from 1.
        end_line: the last line it was taken from, inclusive.
    """

    text: str
    source: str
    line: int
    end_line: int


def count_words(text: str) -> int:
    """The number of words in a text: runs of anything but white space."""
    return len(text.split())


# --- reading ------------------------------------------------------------------------------------------------


def read_texts(
    path: str | PathLike[str],
    *,
    by: By = "line",
    field: str | None = None,
    encoding: str = "utf-8",
    chunk_size: int = 200,
    overlap: int = 0,
    measure: Measure = count_words,
    skip_empty: bool = False,
    on_skip: Callable[[], None] | None = None,
) -> Iterator[Text]:
    """Reads the texts of one file, or of standard input.

    What cannot work (an unknown option, a missing file, a folder) is refused at the call, so that it costs a
    caller no model load; what only the content shows is raised while iterating. A file without texts yields
    none.

    Args:
        path: a file, or "-" for standard input, which is plain text, or JSON lines if `field` is given.
        by: what makes one text. "line": a line that is not blank, without the white space around it; in JSON,
            CSV and TSV a row as it stands. "paragraph": a block between blank lines. "file": everything.
            "chunk": see `split_chunks`. Paragraphs and chunks never span two rows.
        field: the field or column that holds the text. None means "text", or the only column.
        encoding: how the bytes are to be read. A UTF-8 byte order mark is dropped.
        chunk_size: the most units that a chunk measures; only for by="chunk".
        overlap: the most units that a chunk repeats of the one before; only for by="chunk".
        measure: the units in a text, such as its number of tokens. It must not shrink as a text grows.
        skip_empty: drop rows whose text is empty or null, instead of refusing them. With by="line" such a row
            is an error otherwise: dropping it unasked would shift every later vector against its row.
        on_skip: called for each row that is dropped so.

    Raises:
        ArgumentError: an option is unknown or cannot work.
        DocumentError: the file cannot be read, or holds something else than the texts asked for.
    """
    source = fspath(path)
    kind = kind_of(source, field=field)
    _check_encoding(encoding)
    _check_options(by, chunk_size, overlap)
    if source != STDIN:
        _check_file(source)
    return texts_from_lines(
        _decoded_lines(_read_blocks(source), source=source, encoding=encoding),
        source=source,
        kind=kind,
        by=by,
        field=field,
        chunk_size=chunk_size,
        overlap=overlap,
        measure=measure,
        skip_empty=skip_empty,
        on_skip=on_skip,
    )


def texts_from_lines(
    lines: Iterable[str],
    *,
    source: str = STDIN,
    kind: Kind = "text",
    by: By = "line",
    field: str | None = None,
    chunk_size: int = 200,
    overlap: int = 0,
    measure: Measure = count_words,
    skip_empty: bool = False,
    on_skip: Callable[[], None] | None = None,
) -> Iterator[Text]:
    """Makes texts of lines: the half of `read_texts` that touches no file.

    Args:
        lines: the lines of one file, without their ends.
        source: what to call that file.
        kind: how the file is written.
        by: see `read_texts`, as for all other options.
        field: see there.
        chunk_size: see there.
        overlap: see there.
        measure: see there.
        skip_empty: see there.
        on_skip: see there.

    Raises:
        ArgumentError: an option is unknown or cannot work.
        DocumentError: the lines hold something else than the texts asked for.
    """
    _check_options(by, chunk_size, overlap)

    def split(lines: Iterable[str], *, markdown: bool = False) -> Iterator[Text]:
        if by == "line":
            return split_lines(lines, source=source)
        if by == "file":
            return split_file(lines, source=source)
        blocks = split_paragraphs(lines, source=source, markdown=markdown)
        if by == "paragraph":
            return blocks
        return split_chunks(blocks, size=chunk_size, overlap=overlap, measure=measure, markdown=markdown)

    if kind in ("text", "markdown"):
        return split(lines, markdown=kind == "markdown")
    rows = _READERS[kind](lines, source=source, field=field, kind=kind)
    if by == "line":
        return _without_empty(rows, skip=skip_empty, on_skip=on_skip)
    if by == "file":
        return _joined_rows(rows)
    return (
        replace(part, line=row.line, end_line=row.end_line)
        for row in rows
        for part in split(_newlines_only(row.text).split("\n"))
    )


def kind_of(path: str | PathLike[str], *, field: str | None = None) -> Kind:
    """How a file is written, judged by its suffix; an unknown one is plain text, or JSON lines with a field.

    Raises:
        DocumentError: a field was named, but the file is plain text and has none.
    """
    source = fspath(path)
    pure = PurePath(source.lower())
    suffix = PurePath(pure.stem).suffix if pure.suffix == ".gz" else pure.suffix
    kind = _KINDS.get(suffix) or ("text" if field is None else "jsonl")
    if field is not None and kind in ("text", "markdown"):
        problem = f"is plain text and has no field {field!r}"
        raise _failure(f"{problem}. Leave the field out, or name a .jsonl or .csv file.", source)
    return kind


def _check_options(by: str, chunk_size: int, overlap: int) -> None:
    if by not in get_args(By):
        raise ArgumentError(f"by={by!r} is unknown. Choose one of: {', '.join(get_args(By))}.")
    if chunk_size < 1:
        raise ArgumentError(f"chunk_size must be at least 1, but it is {chunk_size}.")
    if not 0 <= overlap < chunk_size:
        raise ArgumentError(f"overlap must be from 0 to below chunk_size={chunk_size}, but it is {overlap}.")


def _check_encoding(encoding: str) -> None:
    try:
        # Unlike codecs.lookup this also refuses codecs that are not of text, such as base64.
        "".encode(encoding)
    except (LookupError, ValueError) as error:
        raise ArgumentError(f"The encoding {encoding!r} is unknown. Try utf-8, latin-1 or utf-16.") from error


def _check_file(source: str) -> None:
    try:
        # Only regular files are opened for the test: opening a named pipe would use it up.
        if stat.S_ISREG(Path(source).stat().st_mode):
            Path(source).open("rb").close()
        elif Path(source).is_dir():
            raise IsADirectoryError(errno.EISDIR, "is a directory")
    except (OSError, ValueError) as error:
        raise _unreadable(error, source) from error


# --- bytes to lines -----------------------------------------------------------------------------------------


class _Readable(Protocol):
    def read1(self, size: int, /) -> bytes: ...


def _read_blocks(source: str) -> Iterator[bytes]:
    try:
        with _opened(source) as file:
            # read1 hands over what has arrived: texts piped in slowly come out as they arrive.
            while block := file.read1(_BLOCK_BYTES):
                yield block
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise _unreadable(error, source) from error


def _opened(source: str) -> AbstractContextManager[_Readable]:
    if source == STDIN:
        return nullcontext(cast("_Readable", sys.stdin.buffer))
    if source.lower().endswith(".gz"):
        return gzip.open(source, "rb")
    return Path(source).open("rb")


def _unreadable(error: Exception, source: str) -> DocumentError:
    name = _name(source)
    if isinstance(error, (gzip.BadGzipFile, EOFError, zlib.error)):
        message = f"{name} is not a whole gzip file ({error}). Make or download it again."
    elif isinstance(error, OSError):
        problem = _OS_FAILURES.get(error.errno or 0) or f"cannot be read: {error.strerror or error}."
        message = f"{name} {problem.replace('{path}', source)}"
    else:  # a NUL in the name
        message = f"{source!r} is not a file name: {error}."
    return DocumentError(message, path=source)


def _decoded_lines(blocks: Iterator[bytes], *, source: str, encoding: str) -> Iterator[str]:
    """Lines without their ends, be they those of Unix, Windows or old Macs."""
    first = next(blocks, b"")
    _check_is_text(first, source=source, encoding=encoding)
    started: list[str] = []  # parts of a line whose end has not come; joined once, however long it gets
    for decoded in _decoded(chain([first], blocks), source=source, encoding=encoding):
        head, *rest = decoded.split("\n")
        started.append(head)
        for line in rest:
            yield "".join(started)
            started = [line]
    if last := "".join(started):
        yield last


def _check_is_text(head: bytes, *, source: str, encoding: str) -> None:
    if codecs.lookup(encoding).name.startswith(("utf-16", "utf-32")):
        return  # both are full of NUL bytes
    for mark, name in _BYTE_ORDER_MARKS:
        if head.startswith(mark):
            raise _failure(f"is encoded in {name.upper()}. Read it with --encoding {name}.", source)
    for magic, problem in _FOREIGN_FILES:
        if head.startswith(magic):
            raise _failure(problem, source)
    if b"\0" in head[:_BINARY_PROBE_BYTES]:
        raise _failure("looks like a binary file (it holds NUL bytes). Name a text file.", source)


def _decoded(blocks: Iterable[bytes], *, source: str, encoding: str) -> Iterator[str]:
    name = codecs.lookup(encoding).name
    bytes_decoder = codecs.getincrementaldecoder("utf-8-sig" if name == "utf-8" else name)()
    decoder = io.IncrementalNewlineDecoder(bytes_decoder, translate=True)
    fed = 0  # bytes
    line = 1
    try:
        for block in blocks:
            fed += len(block)
            decoded = decoder.decode(block)
            line += decoded.count("\n")
            yield decoded
        yield decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        # error.object is the end of what was fed so far, whatever the decoder had kept back.
        offset = fed - len(error.object) + error.start
        line += _newlines_only(error.object[: error.start].decode("latin-1")).count("\n")
        problem = f"byte 0x{error.object[error.start]:02x} at offset {offset} is not {name.upper()}"
        advice = "Name the encoding of the file, for example --encoding latin-1."
        raise _failure(f"{problem}. {advice}", source, line) from error
    except UnicodeError as error:
        raise _failure(f"is not {name.upper()}: {error}. Name another --encoding.", source) from error


def _newlines_only(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _name(source: str) -> str:
    return "Standard input" if source == STDIN else source


def _failure(problem: str, source: str, line: int | None = None) -> DocumentError:
    """A failure of the content: "NAME PROBLEM" for a whole file, "NAME, line N: PROBLEM" for a line of it."""
    where = f"{_name(source)} " if line is None else f"{_name(source)}, line {line}: "
    return DocumentError(where + problem, path=source, line=line)


# --- rows: JSON and CSV -------------------------------------------------------------------------------------


class _Reader(Protocol):
    def __call__(self, lines: Iterable[str], *, source: str, field: str | None, kind: Kind) -> Iterator[Text]: ...


def _jsonl_rows(lines: Iterable[str], *, source: str, field: str | None, kind: Kind) -> Iterator[Text]:
    decoder = json.JSONDecoder()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        start = len(line) - len(line.lstrip())
        value, end = _json_value(decoder, line, start, source=source, line=number)
        if line[end:].strip():
            problem = f"the JSON value ends before column {end + 1}. Put one value on each line."
            raise _failure(problem, source, number)
        yield Text(_row_text(value, field=field, source=source, line=number), source, number, number)


def _json_rows(lines: Iterable[str], *, source: str, field: str | None, kind: Kind) -> Iterator[Text]:
    for value, first, last in _json_values("\n".join(lines), source=source):
        yield Text(_row_text(value, field=field, source=source, line=first), source, first, last)


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
        raise _failure('expected "," or "]" in the JSON array.', source, line_at(position))
    position = skip_space(position + in_array)
    if position != len(text):
        problem = "there is more after the JSON value. If the file holds one value per line, name it .jsonl."
        raise _failure(problem, source, line_at(position))


_JSON_SPACE: Final = re.compile(r"[ \t\r\n]*")


def _json_value(decoder: json.JSONDecoder, text: str, start: int, *, source: str, line: int) -> tuple[object, int]:
    """One JSON value, which begins at an offset on a given line, and the offset after it."""
    try:
        value, end = decoder.raw_decode(text, start)
    except json.JSONDecodeError as error:
        # The error may stand on a later line than the value begins on.
        column = error.pos - text.rfind("\n", 0, error.pos)
        at = line + text.count("\n", start, error.pos)
        raise _failure(f"column {column} is not JSON ({error.msg}). Mend the line.", source, at) from error
    except RecursionError as error:
        raise _failure("the JSON value is nested too deeply.", source, line) from error
    except ValueError as error:  # such as an integer of more digits than Python converts
        raise _failure(f"the JSON value cannot be read ({error}).", source, line) from error
    return value, end


def _row_text(value: object, *, field: str | None, source: str, line: int) -> str:
    """The text of a JSON row; null is "", which is refused or skipped later as other empty texts are."""
    label = "the text"
    if isinstance(value, dict):
        key = "text" if field is None else field
        if key not in value:
            problem = f"there is no field {key!r}; the fields are {_listed(value)}. Choose one with --field."
            raise _failure(problem, source, line)
        value, label = value[key], f"the field {key!r}"
        if value is None:
            return ""
    elif field is not None or not isinstance(value, str):
        expected = "an object" if field is not None else "an object or a string"
        raise _failure(f"expected {expected}, but found {_JSON_NAMES[type(value)]}.", source, line)
    if not isinstance(value, str):
        raise _failure(f"{label} is {_JSON_NAMES[type(value)]}, not a string.", source, line)
    if not value.isascii() and _SURROGATE.search(value):
        # JSON can write half of a UTF-16 pair, which no tokenizer can encode.
        problem = f"{label} holds half of a character (a lone surrogate such as \\ud800). Mend the line."
        raise _failure(problem, source, line)
    return value


_SURROGATE: Final = re.compile("[\ud800-\udfff]")


def _csv_rows(lines: Iterable[str], *, source: str, field: str | None, kind: Kind) -> Iterator[Text]:
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
            raise _failure(f"{problem}. Check the quotes of the row.", source, first) from error
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
            raise _failure(f"{counts}. {advice}", source, first)
        yield Text(row[column], source, first, reader.line_num)


def _csv_lines(lines: Iterable[str], *, source: str) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        if "\0" in line:  # which csv refuses or takes, depending on the Python version
            raise _failure("there is a NUL byte. Remove it, or name another file.", source, number)
        yield line + "\n"


def _column(header: list[str], *, field: str | None, source: str, line: int) -> int:
    name = "text" if field is None else field
    if name in header:
        return header.index(name)
    if field is None and len(header) == 1:
        return 0
    problem = f"there is no column {name!r}; the columns are {_listed(header)}. Choose one with --field."
    raise _failure(problem, source, line)


_READERS: Final[dict[Kind, _Reader]] = {
    "jsonl": _jsonl_rows,
    "json": _json_rows,
    "csv": _csv_rows,
    "tsv": _csv_rows,
}


def _listed(names: Iterable[object], *, most: int = 12) -> str:
    shown = [repr(name) for name in names]
    return ", ".join(shown[:most]) + (f" and {len(shown) - most} more" if len(shown) > most else "") or "none"


def _without_empty(rows: Iterable[Text], *, skip: bool, on_skip: Callable[[], None] | None) -> Iterator[Text]:
    for row in rows:
        if row.text.strip():
            yield row
        elif not skip:
            problem = "the text of this row is empty. Remove the row, or skip such rows with --skip-empty."
            raise _failure(problem, row.source, row.line)
        elif on_skip is not None:
            on_skip()


def _joined_rows(rows: Iterable[Text]) -> Iterator[Text]:
    full = [row for row in rows if row.text.strip()]
    if full:
        text = "\n\n".join(row.text for row in full)
        yield Text(text, full[0].source, full[0].line, full[-1].end_line)


# --- lines to texts -----------------------------------------------------------------------------------------


def split_lines(lines: Iterable[str], *, source: str = STDIN) -> Iterator[Text]:
    """One text per line that is not blank, without the white space around it."""
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

    In Markdown a fenced code block is kept whole, whatever blank lines it holds, and a heading begins a new
    block.

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
        fence = _opened_fence(line) if markdown else None
        if block and (not line.strip() or (markdown and _HEADING.match(line))):
            yield Text("\n".join(block), source, number - len(block), number - 1)
            block = []
        if line.strip():
            block.append(line.rstrip())
    if block:
        yield _last_block(block, source, number)


def _last_block(block: list[str], source: str, number: int) -> Text:
    """The block that the file ends in; an unclosed fence may have left blank lines at its end."""
    first = number - len(block) + 1
    while not block[-1]:
        block.pop()
    return Text("\n".join(block), source, first, first + len(block) - 1)


_HEADING: Final = re.compile(r" {0,3}#{1,6}(?:[ \t]|$)")
_FENCE: Final = re.compile(r" {0,3}(`{3,}(?=[^`]*$)|~{3,})")  # CommonMark 4.5


def _opened_fence(line: str) -> str | None:
    match = _FENCE.match(line)
    return match[1] if match else None


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
    """Packs the paragraphs of one document into chunks, in order and as full as they get.

    A paragraph that fits into a chunk is never split; one that does not is split at the ends of sentences, a
    sentence that does not fit at the ends of lines and words, and a word that does not fit anywhere. In
    Markdown a heading begins a new chunk once the current one is half full, and does not end a chunk if what
    follows fits beside it.

    Args:
        paragraphs: the paragraphs of one document.
        size: the most units that a chunk measures. (A single character that measures more stands alone.)
        overlap: the most units that a chunk repeats from the end of the one before: whole sentences, or else
            words. A chunk that begins with a heading repeats nothing.
        measure: the units in a text. It must not shrink as a text grows.
        markdown: whether to look for headings.

    Raises:
        ArgumentError: `size` or `overlap` cannot work.
    """
    _check_options("chunk", size, overlap)

    def fits(text: str, units: int = size) -> bool:
        # A head that is too long settles it, so that a huge line is not measured whole again and again.
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
    """The last sentences of a chunk that fit into some units; its last words if no sentence does."""
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
    """A paragraph whole if it fits, else in parts that do."""
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
    """Cuts a span without ends of sentences: as far as fits, back to the end of a line or word, and again."""
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
    while start < stop and text[start].isspace():
        start += 1
    while stop > start and text[stop - 1].isspace():
        stop -= 1
    if start < stop:
        yield start, stop
