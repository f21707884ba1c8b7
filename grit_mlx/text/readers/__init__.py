"""Readers of files, one module per family: an open file to blocks. ``kinds`` says which reads what."""

from __future__ import annotations

import importlib
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from os import PathLike, fspath

from grit_mlx.errors import DocumentError, GritError
from grit_mlx.text.blocks import Block, Notes
from grit_mlx.text.kinds import Kind, kind_of, why_not
from grit_mlx.text.options import FileReading
from grit_mlx.text.readers.source import Source, opened

__all__ = ["read", "reader_of"]


def read(
    path: str | PathLike[str], *, kind: Kind | None = None, notes: Notes | None = None, how: FileReading | None = None
) -> Iterator[Block]:
    """The blocks of a file, in order, as a stream.

    Args:
        path: a file of a kind that has blocks; JSON, CSV and TSV have rows.
        kind: as which it is read; None to go by its name.
        notes: where to note warnings; None to drop them.
        how: in which encoding, and whether with OCR; None for the defaults.

    Raises:
        DocumentError: the file cannot be read.
        DependencyError: it needs a package that is not installed.
    """
    kind = kind or kind_of(path)
    if problem := why_not(path):
        raise DocumentError(f"{fspath(path)} {problem}", path=fspath(path))
    how = how or FileReading()
    with opened(path, notes=notes, encoding=how.encoding, at_random=kind.at_random) as source:
        source = replace(source, ocr=how.ocr)
        try:
            yield from reader_of(kind)(source)
        except (GritError, OSError, EOFError, zlib.error, MemoryError):  # these are worded where files are opened
            raise
        except Exception as error:  # the libraries raise whatever their parsing trips over
            raise source.damaged(kind.name, error) from error


def reader_of(kind: Kind) -> Callable[[Source], Iterator[Block]]:
    """The function that reads a kind; its module is imported when such a file is met."""
    module, _, name = kind.reader.partition(":")
    function: Callable[[Source], Iterator[Block]] = getattr(importlib.import_module(f"{__name__}.{module}"), name)
    return function
