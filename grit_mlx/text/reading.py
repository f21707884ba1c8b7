"""Files to texts and rows, as a stream: every kind that ``kinds`` knows, gzipped or not.

Bytes become lines, lines become paragraphs or rows, and these become texts. Nothing is held beyond the text being built
(``by="file"``, ``.json`` and web pages need the complete file), so a file may be larger than memory. Every failure is a
`DocumentError` that names the file and, if there is one, the line.
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
from pathlib import Path
from typing import IO, Final, cast

from grit_mlx.errors import DocumentError, GritError, Option, unreadable
from grit_mlx.text.html import html_paragraphs
from grit_mlx.text.kinds import Kind, kind_of
from grit_mlx.text.office import docx_paragraphs, pdf_paragraphs
from grit_mlx.text.options import ReadingOptions
from grit_mlx.text.rows import Row, failure, named, objects, texts, texts_in, with_text
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
from grit_mlx.text.tables import READERS, table_rows

__all__ = ["read_lines", "read_rows", "read_texts", "texts_of"]

_BYTE_ORDER_MARKS: Final = (
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)

_FOREIGN_FILES: Final = (
    (b"%PDF-", "is a PDF, not text. Give it a name that ends in .pdf."),
    (b"PK\x03\x04", "is a zip archive or an office document, not text. Export it as plain text first."),
    (b"{\\rtf", "is an RTF document, not text. Export it as plain text first."),
    (b"\x1f\x8b", "holds gzipped data. Give it a name that ends in .gz, or unpack it first."),
)

_DEFAULTS: Final = ReadingOptions(by="line")

_BLOCK_BYTES: Final = 1 << 16
_BINARY_PROBE_BYTES: Final = 8192

_NOT_ROWS: Final = "holds text, not rows. Name a .jsonl, .json, .csv or .tsv file"


# Reading


def read_texts(
    path: str | PathLike[str],
    options: ReadingOptions = _DEFAULTS,
    *,
    measure: Measure = count_words,
    on_skip: Callable[[], None] | None = None,
) -> Iterator[Text]:
    """Read the texts of one file, or of standard input.

    What cannot work (a missing file, a folder) is refused at the call, before a caller loads a model; what only the
    content shows is raised while iterating. A file without texts yields none.

    Args:
        path: a file, or "-" for standard input, which is plain text, or JSON lines if a field is given.
        options: what makes one text, which field holds it, how the bytes are encoded.
        measure: the units in a text, such as its number of tokens, for chunks. It must not shrink as a text grows.
        on_skip: called for each row that is dropped because it has no text.

    Raises:
        DocumentError: the file cannot be read, or does not hold the texts asked for.
        DependencyError: the package that reads this kind of file is not installed.
    """
    source = fspath(path)
    kind = kind_of(source, rows=options.field is not None)
    if options.field is not None and not kind.rows:
        raise failure(source, None, f"{_NOT_ROWS}, or omit ", Option("field"), ".")
    if source != STDIN:
        _check_file(source)
    return texts_of(source, kind, options, encoding=options.encoding, measure=measure, on_skip=on_skip)


def read_rows(path: str | PathLike[str]) -> Iterator[Row]:
    """Read the rows of a UTF-8 file as mappings, with their first and last line.

    Args:
        path: a file of JSON lines, JSON, CSV or TSV by its suffix; with an unknown suffix, of JSON lines.

    Raises:
        DocumentError: as ``read_texts``.
    """
    kind = kind_of(path, rows=True)
    if not kind.rows:
        raise failure(path, None, f"{_NOT_ROWS}")
    if kind.reader in READERS:
        _check_file(fspath(path))
        return table_rows(path, kind.reader)
    return objects(read_lines(path), kind.reader, source=fspath(path))


def read_lines(path: str | PathLike[str]) -> Iterator[str]:
    """Read the lines of a UTF-8 file, gzipped or not, without their ends; a file without lines yields none.

    Raises:
        DocumentError: as ``read_texts``.
    """
    source = fspath(path)
    _check_file(source)
    return _lines(_bytes(source), source, None)


def texts_of(
    source: str,
    kind: Kind,
    options: ReadingOptions,
    *,
    encoding: str | None = None,
    measure: Measure = count_words,
    on_skip: Callable[[], None] | None = None,
) -> Iterator[Text]:
    """As ``read_texts``, for a file that exists and is of a known kind.

    ``encoding`` goes before that of the options; None is UTF-8 that cannot be changed, so that no message proposes to.
    """
    by = options.by or kind.by
    lines = _lines(_bytes(source), source, encoding)

    def paragraphs(lines: Iterable[str]) -> Iterator[Text]:
        return split_paragraphs(lines, source=source, markdown=kind.headings)

    def chunks(blocks: Iterable[Text]) -> Iterator[Text]:
        size, overlap = options.chunk_size, options.overlap
        return split_chunks(blocks, size=size, overlap=overlap, measure=measure, markdown=kind.headings)

    if kind.rows:
        if kind.reader in READERS:
            rows = texts_in(table_rows(source, kind.reader), source=source, field=options.field)
        else:
            rows = texts(lines, kind.reader, source=source, field=options.field)
        if by == "line":
            return with_text(rows, skip=options.skip_empty, on_skip=on_skip)
        if by == "file":
            return _joined(rows)
        return _inside(rows, paragraphs if by == "paragraph" else lambda lines: chunks(paragraphs(lines)))
    if kind.reader == "lines" and by in ("line", "file"):
        return split_lines(lines, source=source) if by == "line" else split_file(lines, source=source)
    if kind.reader == "lines":
        blocks = paragraphs(lines)
    else:
        blocks = html_paragraphs(lines, source=source) if kind.reader == "html" else _document(source, kind.reader)
    if by == "chunk":
        return chunks(blocks)
    if by == "file":
        return _joined(blocks)
    return blocks if by == "paragraph" else _inside(blocks, split_lines)


def _inside(texts: Iterable[Text], split: Callable[[Iterable[str]], Iterator[Text]]) -> Iterator[Text]:
    """The parts of each text, which have its place."""
    return (
        replace(part, source=text.source, line=text.line, end_line=text.end_line, fields=text.fields)
        for text in texts
        for part in split(_newlines_only(text.text).split("\n"))
    )


def _joined(texts: Iterable[Text]) -> Iterator[Text]:
    """All texts that are not empty as one; none if there are none."""
    full = [text for text in texts if text.text.strip()]
    if full:
        whole = "\n\n".join(text.text for text in full)
        yield Text(whole, full[0].source, full[0].line, full[-1].end_line)


def _check_file(source: str) -> None:
    try:
        # Only regular files are opened for the test: opening a named pipe would use it up.
        if stat.S_ISREG(Path(source).stat().st_mode):
            Path(source).open("rb").close()
        elif Path(source).is_dir():
            raise IsADirectoryError(errno.EISDIR, "is a directory")
    except (OSError, ValueError) as error:
        raise _unreadable(error, source) from error


# Bytes to paragraphs, or to lines


def _document(source: str, reader: str) -> Iterator[Text]:
    try:
        with _opened(source) as file:
            yield from (pdf_paragraphs if reader == "pdf" else docx_paragraphs)(file, source)
    except GritError:
        raise
    except Exception as error:  # the libraries raise whatever their parsing trips over
        raise _unreadable(error, source) from error


def _bytes(source: str) -> Iterator[bytes]:
    try:
        with _opened(source) as file:
            # read1 hands over what has arrived: texts piped in slowly come out as they arrive.
            while block := file.read1(_BLOCK_BYTES):  # type: ignore[attr-defined] # all that are opened have it
                yield block
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise _unreadable(error, source) from error


def _opened(source: str) -> AbstractContextManager[IO[bytes]]:
    if source == STDIN:
        return nullcontext(sys.stdin.buffer)
    if source.lower().endswith(".gz"):
        return cast("IO[bytes]", gzip.open(source, "rb"))
    return Path(source).open("rb")


def _unreadable(error: Exception, source: str) -> DocumentError:
    message = unreadable(named(source), error)
    if isinstance(error, IsADirectoryError):
        message += f" Name the files in it, for example with a shell pattern: {source}/*.txt."
    return DocumentError(message, path=source)


def _lines(blocks: Iterator[bytes], source: str, encoding: str | None) -> Iterator[str]:
    """Lines without their ends, be they those of Unix, Windows or old Macs."""
    first = next(blocks, b"")
    _check_is_text(first, source, encoding)
    started: list[str] = []  # parts of a line whose end has not come; joined once, however long it gets
    for decoded in _decoded(chain([first], blocks), source, encoding):
        head, *rest = decoded.split("\n")
        started.append(head)
        for line in rest:
            yield "".join(started)
            started = [line]
    if last := "".join(started):
        yield last


def _check_is_text(head: bytes, source: str, encoding: str | None) -> None:
    if codecs.lookup(encoding or "utf-8").name.startswith(("utf-16", "utf-32")):
        return  # both are full of NUL bytes
    for mark, name in _BYTE_ORDER_MARKS:
        if head.startswith(mark):
            raise failure(source, None, f"is encoded in {name.upper()}", *_advice(encoding, "Read it with ", name))
    for magic, problem in _FOREIGN_FILES:
        if head.startswith(magic):
            raise failure(source, None, problem)
    if b"\0" in head[:_BINARY_PROBE_BYTES]:
        raise failure(source, None, "looks like a binary file (it holds NUL bytes). Name a text file")


def _decoded(blocks: Iterable[bytes], source: str, encoding: str | None) -> Iterator[str]:
    name = codecs.lookup(encoding or "utf-8").name
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
        advice = _advice(encoding, "Name the encoding of the file, for example ", "latin-1")
        raise failure(source, line, problem, *advice) from error
    except UnicodeError as error:
        advice = _advice(encoding, "Name another ", None)
        raise failure(source, None, f"is not {name.upper()}: {error}", *advice) from error


def _advice(encoding: str | None, start: str, value: str | None) -> tuple[str | Option, ...]:
    """The end of a message about an encoding: what to choose, or that there is no choice but UTF-8."""
    if encoding is None:
        return (". Convert the file to UTF-8.",)
    return f". {start}", Option("encoding", value), "."


def _newlines_only(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")
