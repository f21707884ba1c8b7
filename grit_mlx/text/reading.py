"""Files to texts, as a stream: plain text, Markdown, JSON lines, JSON, CSV and TSV, each also gzipped.

Bytes become lines, lines become paragraphs or rows, and these become texts::

    read_texts(path)  =  texts_from_lines(decoded lines of the file, kind by its suffix)

Nothing is held beyond the text being built (``by="file"`` and ``.json`` need the whole file), so a file may
be larger than memory. Every failure is a `DocumentError` that names the file and, where there is one, the
line.
"""

from __future__ import annotations

import codecs
import errno
import gzip
import io
import stat
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import chain
from os import PathLike, fspath
from pathlib import Path, PurePath
from typing import Final, Literal, Protocol, cast

from grit_mlx.errors import DocumentError, unreadable
from grit_mlx.text.options import ReadingOptions
from grit_mlx.text.rows import READERS, failure, joined_rows, named, without_empty
from grit_mlx.text.splitting import (
    STDIN,
    Measure,
    Text,
    count_words,
    split_chunks,
    split_file,
    split_lines,
    split_paragraphs,
)

__all__ = [
    "Kind",
    "kind_of",
    "read_lines",
    "read_texts",
    "texts_from_lines",
]

Kind = Literal["text", "markdown", "jsonl", "json", "csv", "tsv"]

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

_DEFAULTS: Final = ReadingOptions(by="line")

_BLOCK_BYTES: Final = 1 << 16
_BINARY_PROBE_BYTES: Final = 8192


# --- reading ------------------------------------------------------------------------------------------------


def read_texts(
    path: str | PathLike[str],
    options: ReadingOptions = _DEFAULTS,
    *,
    measure: Measure = count_words,
    on_skip: Callable[[], None] | None = None,
) -> Iterator[Text]:
    """Reads the texts of one file, or of standard input.

    What cannot work (a missing file, a folder) is refused at the call, so that it costs a caller no model load; what
    only the content shows is raised while iterating. A file without texts yields none.

    Args:
        path: a file, or "-" for standard input, which is plain text, or JSON lines if a field is given.
        options: what makes one text, which field holds it, how the bytes are to be read.
        measure: the units in a text, such as its number of tokens, for chunks. It must not shrink as a text grows.
        on_skip: called for each row that is dropped because it has no text.

    Raises:
        DocumentError: the file cannot be read, or holds something else than the texts asked for.
    """
    source = fspath(path)
    kind = kind_of(source, field=options.field)
    if source != STDIN:
        _check_file(source)
    lines = _decoded_lines(_read_blocks(source), source=source, encoding=options.encoding)
    return texts_from_lines(lines, options, source=source, kind=kind, measure=measure, on_skip=on_skip)


def read_lines(path: str | PathLike[str]) -> Iterator[str]:
    """Reads the lines of a UTF-8 file, perhaps gzipped, without their ends; a file without lines yields none.

    Args:
        path: a file.

    Raises:
        DocumentError: the file cannot be read, at the call where that is seen there; or is no UTF-8 text.
    """
    source = fspath(path)
    _check_file(source)
    return _decoded_lines(_read_blocks(source), source=source, encoding="utf-8")


def texts_from_lines(
    lines: Iterable[str],
    options: ReadingOptions = _DEFAULTS,
    *,
    source: str = STDIN,
    kind: Kind = "text",
    measure: Measure = count_words,
    on_skip: Callable[[], None] | None = None,
) -> Iterator[Text]:
    """Makes texts of lines: the half of `read_texts` that touches no file.

    Args:
        lines: the lines of one file, without their ends.
        options: see `read_texts`.
        source: what to call that file.
        kind: how the file is written.
        measure: see `read_texts`.
        on_skip: see there.

    Raises:
        DocumentError: the lines hold something else than the texts asked for.
    """
    by = options.by or ("paragraph" if kind == "markdown" else "line")

    def split(lines: Iterable[str], *, markdown: bool = False) -> Iterator[Text]:
        if by == "line":
            return split_lines(lines, source=source)
        if by == "file":
            return split_file(lines, source=source)
        blocks = split_paragraphs(lines, source=source, markdown=markdown)
        if by == "paragraph":
            return blocks
        return split_chunks(
            blocks, size=options.chunk_size, overlap=options.overlap, measure=measure, markdown=markdown
        )

    if kind in ("text", "markdown"):
        return split(lines, markdown=kind == "markdown")
    rows = READERS[kind](lines, source=source, field=options.field, kind=kind)
    if by == "line":
        return without_empty(rows, skip=options.skip_empty, on_skip=on_skip)
    if by == "file":
        return joined_rows(rows)
    return (
        replace(part, line=row.line, end_line=row.end_line, fields=row.fields)
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
        raise failure(f"{problem}. Leave the field out, or name a .jsonl or .csv file.", source)
    return kind


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
    name = named(source)
    if isinstance(error, (gzip.BadGzipFile, EOFError, zlib.error)):
        message = f"{name} is not a whole gzip file ({error}). Make or download it again."
    elif isinstance(error, IsADirectoryError):
        message = f"{unreadable(name, error)} Name the files in it, for example with a shell pattern: {source}/*.txt."
    elif isinstance(error, OSError):
        message = unreadable(name, error)
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
            raise failure(f"is encoded in {name.upper()}. Read it with --encoding {name}.", source)
    for magic, problem in _FOREIGN_FILES:
        if head.startswith(magic):
            raise failure(problem, source)
    if b"\0" in head[:_BINARY_PROBE_BYTES]:
        raise failure("looks like a binary file (it holds NUL bytes). Name a text file.", source)


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
        raise failure(f"{problem}. {advice}", source, line) from error
    except UnicodeError as error:
        raise failure(f"is not {name.upper()}: {error}. Name another --encoding.", source) from error


def _newlines_only(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")
