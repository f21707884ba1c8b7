"""What a long run of embedding has done so far, beside its output: an interrupted run is continued by the next.

::

    .NAME.part/
      about.json      what the vectors depend on
      vectors.f32     float32, one after the other, in the order of the texts
      parts.u32       the checksum of each part of the vectors
      lock            held by the run that writes

A part counts once its checksum is there and fits, so a process that is killed, or a machine that loses its power, loses
the part that it was at. The output itself is written anew from the parts, whatever its format. Parts begin at the same
texts in every run: what is computed together is the same, to the last bit, whether a run was interrupted or not.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from grit_mlx.errors import OutputError
from grit_mlx.files.atomic import output_errors
from grit_mlx.files.lock import writing

__all__ = ["PART_TEXTS", "Journal"]

# Texts of a part.
PART_TEXTS: Final = 1024

_CHECKSUM_BYTES: Final = 4


class Journal:
    """The vectors that are computed already, and a place for more.

    Args:
        output: the file that they are for.
        identity: what they depend on, by what it is called in a message, as JSON. Another one starts from nothing.
        size: E.
        part: texts of a part.

    Attributes:
        done: how many vectors there are.
        changed: what is different now, if the vectors of an interrupted run are of no use; else empty.

    Raises:
        OutputError: the folder cannot be written, or another process is writing it.
    """

    def __init__(self, output: Path, identity: Mapping[str, Any], size: int, *, part: int = PART_TEXTS) -> None:
        self._name = str(output)
        self._folder = output.parent / f".{output.name}.part"
        self._size, self._part = size, part
        self._stack = ExitStack()
        about = self._folder / "about.json"
        self._stack.enter_context(writing(output, lock=self._folder / "lock", busy=OutputError))
        with self._stack.pop_all() as stack, output_errors(self._name):
            self.changed = _changed(about, {**identity, "size of vectors": size})
            if self.changed or not about.exists():
                for path in self._folder.glob("*.*"):
                    path.unlink()
                about.write_text(json.dumps({**identity, "size of vectors": size}), encoding="utf-8")
            self._vectors = stack.enter_context(_opened(self._folder / "vectors.f32"))
            self._checksums = stack.enter_context(_opened(self._folder / "parts.u32"))
            parts = self._whole_parts()
            self.done = parts * part
            _cut(self._vectors, self.done * 4 * size)
            _cut(self._checksums, parts * _CHECKSUM_BYTES)
            self._stack = stack.pop_all()

    def vectors(self) -> Iterator[NDArray[np.float32]]:
        """Those that were there at the beginning, each ``(E,)``."""
        with (self._folder / "vectors.f32").open("rb") as file:
            for _ in range(self.done // self._part):
                yield from self._read(file)

    def append(self, vectors: NDArray[np.float32]) -> None:
        """Keep the vectors ``(N, E)`` of the next part, so that they outlive this process.

        Raises:
            OutputError: the disk is full, or the like.
        """
        assert len(vectors) == self._part
        data = vectors.astype("<f4").tobytes()
        with output_errors(self._name):
            for file, content in ((self._vectors, data), (self._checksums, _checksum(data))):
                file.write(content)
                file.flush()
                os.fsync(file.fileno())

    def close(self) -> None:
        """Keep what there is for the next run; nothing if there is nothing."""
        empty = self._checksums.tell() == 0
        self._stack.close()
        if empty:
            self.remove()

    def remove(self) -> None:
        """Remove it all."""
        self._stack.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _whole_parts(self) -> int:
        """How many parts have the checksum that they were written with."""
        for number in range(os.fstat(self._checksums.fileno()).st_size // _CHECKSUM_BYTES):
            vectors = self._vectors.read(4 * self._size * self._part)
            if _checksum(vectors) != self._checksums.read(_CHECKSUM_BYTES):
                return number
        return os.fstat(self._checksums.fileno()).st_size // _CHECKSUM_BYTES

    def _read(self, file: BinaryIO) -> NDArray[np.float32]:
        data = file.read(4 * self._size * self._part)
        return np.frombuffer(data, dtype="<f4").astype(np.float32).reshape(self._part, self._size)


def _changed(about: Path, identity: Mapping[str, Any]) -> list[str]:
    """What an interrupted run depended on and this one does not; empty if there was none."""
    try:
        before = json.loads(about.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except ValueError:
        return ["record"]
    now = json.loads(json.dumps(identity))
    return [name for name in identity if before.get(name) != now[name]]


def _opened(path: Path) -> BinaryIO:
    path.touch()
    return path.open("r+b")


def _cut(file: BinaryIO, size: int) -> None:
    file.truncate(size)
    file.seek(size)


def _checksum(data: bytes) -> bytes:
    return zlib.crc32(data).to_bytes(_CHECKSUM_BYTES, "little")
