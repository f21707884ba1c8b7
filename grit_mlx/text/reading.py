"""Files to texts and rows, as a stream: every kind that ``kinds`` knows, gzipped or not.

Bytes become lines or blocks, and these become texts. Nothing is held beyond the text being built (``by="file"``,
``.json`` and web pages need the complete file), so a file may be larger than memory. Every failure is a `DocumentError`
that names the file and, if there is one, the line.
"""

from __future__ import annotations

import errno
import logging
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import chain, islice
from os import PathLike, fspath
from pathlib import Path
from typing import Final

from grit_mlx.errors import DependencyError, DocumentError, Option
from grit_mlx.text.blocks import PARAGRAPH, Block, Notes
from grit_mlx.text.encoding import check_is_text, decoded_blocks
from grit_mlx.text.kinds import Kind, kind_of, why_not
from grit_mlx.text.options import FileReading, ReadingOptions
from grit_mlx.text.packing import Measure, count_words, pack
from grit_mlx.text.readers import read
from grit_mlx.text.readers.markup import text_blocks
from grit_mlx.text.readers.source import lines_of, opened, unreadable_file
from grit_mlx.text.rows import Row, failure, named, objects, texts, texts_in, with_text
from grit_mlx.text.splitting import STDIN, Text, split_file, split_lines
from grit_mlx.text.tables import READERS, table_rows

__all__ = ["has_field", "read_lines", "read_rows", "read_texts", "row_texts", "shown"]

logger = logging.getLogger("grit_mlx")

_DEFAULTS: Final = ReadingOptions(by="line")

_BLOCK_BYTES: Final = 1 << 16

# Damaged rows of a file that are warned of one by one.
_DAMAGED_SHOWN: Final = 5

# Rows of JSON need not have the same fields: how many are looked at for one.
_ROWS_LOOKED_AT: Final = 100

_NOT_ROWS: Final = "holds text, not rows. Name a .jsonl, .json, .csv or .tsv file"


# Reading


def shown() -> Notes:
    """Notes whose warnings are logged."""
    return Notes(show=lambda sentence: logger.warning("%s", sentence))


def read_texts(
    path: str | PathLike[str],
    options: ReadingOptions = _DEFAULTS,
    *,
    measure: Measure = count_words,
    on_skip: Callable[[], None] | None = None,
    notes: Notes | None = None,
) -> Iterator[Text]:
    """Read the texts of one file, or of standard input.

    What cannot work (a missing file, a folder) is refused at the call, before a caller loads a model; what only the
    content shows is raised while iterating. A file without texts yields none.

    Args:
        path: a file, or "-" for standard input, which is plain text, or JSON lines if a field is given.
        options: what makes one text, which field holds it, how the bytes are encoded.
        measure: the units in a text, such as its number of tokens, for chunks. It must not shrink as a text grows.
        on_skip: called for each row that is dropped because it has no text.
        notes: where to note warnings; None to log them.

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
    notes = shown() if notes is None else notes
    by = options.by or kind.by
    if not kind.has_blocks:
        rows = _row_texts(source, kind, options.field, options.encoding, notes)
        return _of_rows(rows, by, options, measure, on_skip)
    if kind.typed and by in ("line", "file"):
        lines = _lines(source, options.encoding, notes)
        return split_lines(lines, source=source) if by == "line" else split_file(lines, source=source)
    if source == STDIN:
        blocks = text_blocks(_lines(source, options.encoding, notes))
    else:
        blocks = read(source, kind=kind, notes=notes, how=options.of_files)
    return _of_blocks(blocks, by, source, options, measure)


def row_texts(
    path: str | PathLike[str], *, field: str | None = None, encoding: str | None = None, notes: Notes
) -> Iterator[Text]:
    """The rows of a table that can be read (JSON lines, JSON, CSV, TSV, Parquet, Arrow), each a text of its own.

    Without a field or column "text" that is "column: value" of all columns. Damaged rows are left out, ragged ones
    kept; both are warned of with their line.

    Args:
        path: the file.
        field: the field or column that holds the text; a file that has none of that name is read with all columns.
        encoding: of the file; None to find out.
        notes: where to note warnings.

    Raises:
        DocumentError: the file cannot be read.
    """
    source = fspath(path)
    damaged = 0

    def warn(sentence: str) -> None:
        nonlocal damaged
        damaged += 1
        if damaged <= _DAMAGED_SHOWN:
            notes.warn(sentence)

    for row in _row_texts(source, kind_of(source, rows=True), field, encoding, notes, on_damage=warn):
        if row.text.strip():
            yield row
    if damaged > _DAMAGED_SHOWN:
        notes.warn(f"{source}: {damaged - _DAMAGED_SHOWN:,} more rows are ragged or damaged.")


def has_field(path: str | PathLike[str], how: FileReading) -> bool:
    """Whether a table has the field or column of ``how``, by its first rows; False if it cannot be read."""
    source, kind, notes = fspath(path), kind_of(path, rows=True), Notes()
    try:
        if kind.has_blocks:
            return any(how.field in dict(block.fields) for block in read(path, kind=kind, notes=notes, how=how))
        rows = _row_texts(source, kind, None, how.encoding, notes, on_damage=lambda _: None)
        return any(how.field in (row.fields or {}) for row in islice(rows, _ROWS_LOOKED_AT))
    except (DocumentError, DependencyError):
        return False


def read_rows(path: str | PathLike[str]) -> Iterator[Row]:
    """Read the rows of a UTF-8 file as mappings, with their first and last line.

    Args:
        path: a file of JSON lines, JSON, CSV or TSV by its suffix; with an unknown suffix, of JSON lines.

    Raises:
        DocumentError: as ``read_texts``.
    """
    kind = kind_of(path, rows=True)
    if kind.has_blocks:
        raise failure(path, None, f"{_NOT_ROWS}")
    if kind.reader in READERS:
        _check_file(fspath(path))
        return table_rows(path, kind.reader)
    return objects(read_lines(path), kind.reader, source=fspath(path))


def read_lines(path: str | PathLike[str]) -> Iterator[str]:
    """Read the lines of a UTF-8 file, gzipped or not, or of standard input, without their ends.

    A file without lines yields none.

    Raises:
        DocumentError: as ``read_texts``.
    """
    source = fspath(path)
    if source != STDIN:
        _check_file(source)
    return _strict_lines(source, None)


def _row_texts(
    source: str,
    kind: Kind,
    field: str | None,
    encoding: str | None,
    notes: Notes,
    on_damage: Callable[[str], object] | None = None,
) -> Iterator[Text]:
    if kind.reader in READERS:
        rows = table_rows(source, kind.reader)
        return texts_in(rows, source=source, field=field, on_damage=on_damage)
    lines = _lines(source, encoding, notes)
    return texts(lines, kind.reader, source=source, field=field, on_damage=on_damage)


# Rows and blocks to texts


def _of_rows(
    rows: Iterator[Text], by: str, options: ReadingOptions, measure: Measure, on_skip: Callable[[], None] | None
) -> Iterator[Text]:
    if by == "line":
        return with_text(rows, skip=options.skip_empty, on_skip=on_skip)
    if by == "file":
        return _joined(rows)
    return (
        replace(part, line=row.line, end_line=row.end_line, fields=row.fields)
        for row in rows
        for part in _of_blocks(_row_blocks(row), by, row.source, options, measure)
    )


def _row_blocks(row: Text) -> Iterator[Block]:
    return text_blocks(row.text.replace("\r\n", "\n").replace("\r", "\n").split("\n"))


def _of_blocks(
    blocks: Iterable[Block], by: str, source: str, options: ReadingOptions, measure: Measure
) -> Iterator[Text]:
    if by == "chunk":
        chunks = pack(blocks, size=options.chunk_size, overlap=options.overlap, measure=measure)
        return (Text(chunk.text, source, chunk.first, chunk.last) for chunk in chunks)
    if by == "line":
        return (part for block in blocks for part in _lines_in(block, source))
    paragraphs = _paragraphs(blocks, source)
    return _joined(paragraphs) if by == "file" else paragraphs


def _paragraphs(blocks: Iterable[Block], source: str) -> Iterator[Text]:
    """Blocks that stand together: a heading with the lines right under it, a table's rows, a paragraph on two pages."""
    text, first, last = "", 0, 0
    for block in blocks:
        if first and (block.glue == PARAGRAPH or block.level):
            yield Text(text, source, first, last)
            text, first = "", 0
        text += (block.glue if first else "") + block.text
        first, last = first or block.first, block.last
    if first:
        yield Text(text, source, first, last)


def _lines_in(block: Block, source: str) -> Iterator[Text]:
    for offset, line in enumerate(block.text.split("\n")):
        if line.strip():
            first = block.first + offset if block.by_line else block.first
            yield Text(line.strip(), source, first, first if block.by_line else block.last)


def _joined(found: Iterable[Text]) -> Iterator[Text]:
    """All texts that are not empty as one; none if there are none."""
    full = [text for text in found if text.text.strip()]
    if full:
        whole = "\n\n".join(text.text for text in full)
        yield Text(whole, full[0].source, full[0].line, full[-1].end_line)


# Files to lines


def _check_file(source: str) -> None:
    try:
        # Only regular files are opened for the test: opening a named pipe would use it up.
        if stat.S_ISREG(Path(source).stat().st_mode):
            Path(source).open("rb").close()
        elif Path(source).is_dir():
            raise IsADirectoryError(errno.EISDIR, "is a directory")
    except (OSError, ValueError) as error:
        raise unreadable_file(source, error) from error
    if problem := why_not(source):
        raise failure(source, None, problem)


def _lines(source: str, encoding: str | None, notes: Notes) -> Iterator[str]:
    """The lines of a file, whose encoding is found out; of a stream as they arrive."""
    if source == STDIN or not Path(source).is_file():
        yield from _strict_lines(source, encoding or "utf-8")
        return
    with opened(source, notes=notes, encoding=encoding) as file:
        yield from file.lines("cookie" if kind_of(source).typed else "none")


def _strict_lines(source: str, encoding: str | None) -> Iterator[str]:
    blocks = _bytes(source)
    first = next(blocks, b"")
    check_is_text(first[:8192], name=named(source), encoding=encoding)
    return lines_of(decoded_blocks(chain([first], blocks), name=named(source), encoding=encoding))


def _bytes(source: str) -> Iterator[bytes]:
    # read1 hands over what has arrived: texts piped in slowly come out as they arrive.
    if source != STDIN:
        with opened(source) as file:
            while block := file.file.read1(_BLOCK_BYTES):  # type: ignore[attr-defined] # all that are opened have it
                yield block
        return
    try:
        while block := sys.stdin.buffer.read1(_BLOCK_BYTES):  # type: ignore[union-attr] # as all that stand for it
            yield block
    except (OSError, ValueError) as error:
        raise unreadable_file(named(source), error) from error
