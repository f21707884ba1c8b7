"""What a GGUF file says of itself: metadata, and the name, shape, type and place of each tensor.

Source of the layout: llama.cpp's docs/gguf.md. Read here and not by the ``gguf`` package's reader, which makes two
arrays of each string: 4.2 s and 150 MB for a vocabulary of 49,000 tokens, against 0.1 s and 15 MB.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from grit_mlx.errors import CheckpointError, unreadable

__all__ = ["Entry", "Header", "is_gguf", "parts_of", "read_header"]

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MAX_AXES = 4

_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)

# Types of values: their number in the file, and how one is packed. Strings and arrays have 8 and 9.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class Entry:
    """One tensor as it is stored.

    Attributes:
        name: llama.cpp's.
        file: that holds it.
        kind: the type of its blocks.
        shape: rows first, as NumPy has it; the file has the row's width first.
        offset: where it begins, counted from the file's first byte.
    """

    name: str
    file: Path
    kind: GGMLQuantizationType
    shape: tuple[int, ...]
    offset: int

    @property
    def row_bytes(self) -> int:
        """Of one row."""
        size, nbytes = GGML_QUANT_SIZES[self.kind]
        return self.shape[-1] // size * nbytes

    @property
    def nbytes(self) -> int:
        """Of all rows."""
        return math.prod(self.shape[:-1]) * self.row_bytes


@dataclass(frozen=True)
class Header:
    """A GGUF file, or all parts of a split one.

    Attributes:
        files: in their order.
        metadata: values by key; arrays are lists.
        entries: tensors by name.
        identity: changes when the files do.
    """

    files: tuple[Path, ...]
    metadata: dict[str, Any]
    entries: dict[str, Entry]
    identity: tuple[Any, ...]

    def get(self, key: str, default: Any = None) -> Any:
        """A value of the metadata."""
        return self.metadata.get(key, default)


def is_gguf(path: Path) -> bool:
    """Whether a file's first bytes say so."""
    try:
        with path.open("rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False


def parts_of(path: Path) -> tuple[Path, ...]:
    """All parts of a file, in their order, whichever was named; itself if it is not split.

    Raises:
        CheckpointError: a part is missing.
    """
    match = _PART.fullmatch(path.name)
    if match is None:
        return (path,)
    count = int(match["count"])
    names = [f"{match['stem']}-{number:05d}-of-{match['count']}.gguf" for number in range(1, count + 1)]
    parts = [path if name == path.name else path.with_name(name) for name in names]
    if missing := [part.name for part in parts if not part.exists()]:
        raise CheckpointError(f"{path} is one of {count} parts, and {missing[0]} is not beside it. Download it too.")
    return tuple(parts)


def read_header(path: Path) -> Header:
    """Read a file, or all parts of a split one.

    Raises:
        CheckpointError: it is not a GGUF file, damaged, cut off, or holds a type that is not known.
    """
    files = parts_of(path)
    headers = [_read(file) for file in files]
    entries: dict[str, Entry] = {}
    for header in headers:
        if twice := entries.keys() & header.entries.keys():
            raise CheckpointError(f"{header.files[0]} holds {min(twice)} a second time. Download the model again.")
        entries |= header.entries
    metadata = headers[0].metadata
    promised = metadata.get("split.tensors.count")
    if metadata.get("split.count", 1) != len(files) or (promised is not None and promised != len(entries)):
        raise CheckpointError(
            f"{path} belongs to {metadata.get('split.count', 1)} files with {promised} tensors, and {len(files)} with "
            f"{len(entries)} are there, under llama.cpp's names (-00001-of-00002.gguf). Download the model again."
        )
    return Header(files, metadata, entries, tuple(header.identity for header in headers))


def _read(path: Path) -> Header:
    try:
        stat = path.stat()
        with path.open("rb") as file:
            if stat.st_size < 24 or file.read(4) != _MAGIC:
                raise CheckpointError(f"{path} is not a GGUF file. Download the model again.")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                metadata, entries, end = _Reader(data, path).header()
                digest = hashlib.sha256(data[:end]).hexdigest()
    except OSError as error:
        raise CheckpointError(unreadable(path, error)) from error
    return Header((path,), metadata, entries, (path.name, stat.st_size, stat.st_mtime_ns, digest))


class _Reader:
    """Goes through the bytes of a header, in the order in which they are stored."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self._data = data
        self._path = path
        self._place = 4
        self._size = len(data)

    def header(self) -> tuple[dict[str, Any], dict[str, Entry], int]:
        """The metadata, the tensors, and where the header ends."""
        version = self._one("I")
        if version not in _VERSIONS:
            if version and version & 0xFFFF == 0:
                raise CheckpointError(f"{self._path} is a big-endian GGUF file, for other processors than this one's.")
            raise CheckpointError(
                f"{self._path} is a GGUF file of version {version}, and {_VERSIONS[0]} and {_VERSIONS[1]} can be read. "
                "Download a newer file of the model."
            )
        tensors, keys = self._count(), self._count()
        metadata: dict[str, Any] = {}
        for _ in range(keys):
            key = self._string()
            metadata[key] = self._value(self._one("I"))
        listed = [self._tensor() for _ in range(tensors)]
        end = self._place
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise self._damaged(f"its alignment is {alignment}")
        start = -(-end // alignment) * alignment
        entries = {}
        for name, kind, shape, offset in listed:
            entry = Entry(name, self._path, kind, shape, start + offset)
            if entry.offset + entry.nbytes > self._size:
                raise self._damaged(
                    f"it has {self._size:,} bytes and {name} needs {entry.offset + entry.nbytes:,}, so it was cut off"
                )
            entries[name] = entry
        if len(entries) < len(listed):
            raise self._damaged("it holds a tensor twice")
        return metadata, entries, end

    def _tensor(self) -> tuple[str, GGMLQuantizationType, tuple[int, ...], int]:
        name, axes = self._string(), self._one("I")
        if not 0 < axes <= _MAX_AXES:
            raise self._damaged(f"{name} has {axes} axes")
        shape = tuple(reversed([self._one("Q") for _ in range(axes)]))
        number, offset = self._one("I"), self._one("Q")
        try:
            kind = GGMLQuantizationType(number)
            size = GGML_QUANT_SIZES[kind][0]
        except (ValueError, KeyError):
            raise CheckpointError(
                f"{self._path} holds {name} in a type of weights ({number}) that is not known here. Update the package "
                "gguf, or use a file of another quantisation."
            ) from None
        if shape[-1] % size:
            raise self._damaged(f"{name} has rows of {shape[-1]}, which {kind.name} cannot hold")
        return name, kind, shape, offset

    def _value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self._one(_SCALARS[kind])
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            raise self._damaged(f"it has a value of the unknown type {kind}")
        inner, count = self._one("I"), self._count()
        if inner in _SCALARS:
            return list(self._many(f"{count}{_SCALARS[inner]}"))
        read: Callable[[], Any] = self._string if inner == _STRING else lambda: self._value(inner)
        return [read() for _ in range(count)]

    def _string(self) -> str:
        length = self._count()
        start, self._place = self._place, self._place + length
        return self._data[start : self._place].decode("utf-8", errors="replace")

    def _count(self) -> int:
        """A number of things that follow; none takes less than a byte."""
        count = int(self._one("Q"))
        if count > self._size - self._place:
            raise self._damaged("its header is cut off or not valid")
        return count

    def _one(self, form: str) -> Any:
        return self._many(form)[0]

    def _many(self, form: str) -> tuple[Any, ...]:
        form = f"<{form}"
        try:
            values = struct.unpack_from(form, self._data, self._place)
        except struct.error:
            raise self._damaged("its header is cut off or not valid") from None
        self._place += struct.calcsize(form)
        return values

    def _damaged(self, problem: str) -> CheckpointError:
        return CheckpointError(f"{self._path} is damaged: {problem}. Download the model again.")
