"""A file that is being read: its bytes, its name for messages, and what was noted on the way."""

from __future__ import annotations

import gzip
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from os import PathLike, fspath
from pathlib import Path, PurePath
from typing import IO, Final, cast

from grit_mlx.errors import DocumentError, GritError, Option, first_line, unreadable
from grit_mlx.text.blocks import Notes
from grit_mlx.text.encoding import Declaration, decoded

__all__ = ["Source", "lines_of", "opened", "unreadable_file"]

# An unpacked file beyond this is taken for a trap.
_UNPACKED_BYTES: Final = 1 << 32
_BLOCK_BYTES: Final = 1 << 20


@dataclass(frozen=True)
class Source:
    """An open file.

    Attributes:
        file: its bytes, at the start; can be read again from any place.
        name: as the user knows it.
        notes: what reading it notes.
        encoding: of its text, where the user says so.
        ocr: whether the text of scanned pages is recognised.
    """

    file: IO[bytes]
    name: str
    notes: Notes = field(default_factory=Notes)
    encoding: str | None = None
    ocr: bool = False

    @property
    def suffix(self) -> str:
        """The suffix of the name in lower case, without a ".gz" after it."""
        return PurePath(self.name.lower().removesuffix(".gz")).suffix

    def failure(self, *problem: str | Option, line: int | None = None) -> DocumentError:
        """An error about the file: its name, a blank, the problem."""
        return DocumentError(f"{self.name} ", *problem, path=self.name, line=line)

    def damaged(self, kind: str, error: BaseException) -> DocumentError:
        """An error for a file that its kind's parser refuses."""
        return self.failure(f"cannot be read as {kind}: {first_line(error)}")

    def text(self, declared: Declaration = "none") -> Iterator[str]:
        """The text in blocks, decoded as the file and the user say."""
        return decoded(self.file, name=self.name, declared=declared, encoding=self.encoding, notes=self.notes)

    def lines(self, declared: Declaration = "none") -> Iterator[str]:
        """The lines of the text, without their ends."""
        return lines_of(self.text(declared))


def lines_of(blocks: Iterable[str]) -> Iterator[str]:
    """Blocks of text, cut anywhere, to lines without their ends."""
    started: list[str] = []  # parts of a line whose end has not come; joined once, however long it gets
    for block in blocks:
        head, *rest = block.split("\n")
        started.append(head)
        for line in rest:
            yield "".join(started)
            started = [line]
    if last := "".join(started):
        yield last


@contextmanager
def opened(
    path: str | PathLike[str], *, notes: Notes | None = None, encoding: str | None = None, at_random: bool = False
) -> Iterator[Source]:
    """Open a file, unpacking one that is gzipped.

    Args:
        path: the file; a name that ends in .gz is unpacked on the way.
        notes: where to note things; None for notes of its own.
        encoding: of its text; None to find out.
        at_random: whether the reader jumps to and fro, so that a gzipped file is unpacked to the disk first.

    Raises:
        DocumentError: the file cannot be read, or is not gzip as its name says.
    """
    name = fspath(path)
    notes = Notes() if notes is None else notes
    try:
        is_packed = name.lower().endswith(".gz")
        with _opened(name, is_packed) as file:
            if at_random and (is_packed or not file.seekable()):
                with tempfile.TemporaryFile() as unpacked:
                    _unpack(file, unpacked, name)
                    yield Source(unpacked, name, notes, encoding)
            else:
                yield Source(file, name, notes, encoding)
    except GritError:
        raise
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise unreadable_file(name, error) from error


def _opened(name: str, is_packed: bool) -> IO[bytes]:
    return cast("IO[bytes]", gzip.open(name, "rb")) if is_packed else Path(name).open("rb")


def unreadable_file(name: str, error: Exception) -> DocumentError:
    """What is said of a file that the system, or gzip, does not read."""
    message = unreadable(name, error)
    if isinstance(error, IsADirectoryError):
        message += f" Name the files in it, for example with a shell pattern: {name}/*.txt."
    return DocumentError(message, path=name)


def _unpack(packed: IO[bytes], file: IO[bytes], name: str) -> None:
    while block := packed.read(_BLOCK_BYTES):
        file.write(block)
        if file.tell() > _UNPACKED_BYTES:
            raise DocumentError(f"{name} unpacks to more than {_UNPACKED_BYTES >> 30} GB.", path=name)
    file.seek(0)
