"""Safetensors shards written piece by piece, safely.

The layout of every shard is known before the first byte is written, so tensors go straight to their place and
nothing is held back. A shard is written under another name, flushed to the disk and only then renamed: one that has
its final name is whole. That is all that going on after an interruption needs to know.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import mlx.core as mx

from grit_mlx.convert.plan import NAMES, Plan, Weight
from grit_mlx.errors import OutputError
from grit_mlx.model.checkpoint import INDEX

__all__ = ["Shard", "ShardWriter", "Workspace", "shards_of", "write_index", "write_json"]

_UNFINISHED = ".part"


@dataclass(frozen=True)
class Entry:
    """A tensor's place in a shard: ``offset`` counts from the end of the header, in bytes."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Shard:
    """One file of the output.

    Attributes:
        name: of the file.
        weights: in it, in order.
        entries: its tensors, by name.
    """

    name: str
    weights: tuple[Weight, ...]
    entries: Mapping[str, Entry]

    @property
    def header(self) -> bytes:
        """Length and JSON, padded so that the data begins at a multiple of 8 bytes."""
        tensors = {
            name: {"dtype": e.dtype, "shape": list(e.shape), "data_offsets": [e.offset, e.offset + e.nbytes]}
            for name, e in self.entries.items()
        }
        text = json.dumps({"__metadata__": {"format": "mlx"}, **tensors}, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text

    @property
    def data_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(entry.nbytes for entry in self.entries.values())

    @property
    def nbytes(self) -> int:
        """Bytes of the whole file."""
        return len(self.header) + self.data_bytes


def shards_of(plan: Plan, limit: int) -> list[Shard]:
    """Cut a plan into files of at most ``limit`` bytes of data; a weight is never divided."""
    groups: list[list[tuple[Weight, dict[str, Entry]]]] = []
    filled = 0
    for weight in plan.weights:
        written = weight.written()
        size = sum(_nbytes(shape, dtype) for shape, dtype in written.values())
        if not groups or filled + size > limit:
            groups.append([])
            filled = 0
        entries = {}
        for name, (shape, dtype) in written.items():
            entries[name] = Entry(NAMES[dtype], shape, filled, _nbytes(shape, dtype))
            filled += entries[name].nbytes
        groups[-1].append((weight, entries))
    count = len(groups)
    return [
        Shard(
            name="model.safetensors" if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors",
            weights=tuple(weight for weight, _ in group),
            entries={name: entry for _, entries in group for name, entry in entries.items()},
        )
        for number, group in enumerate(groups, start=1)
    ]


class ShardWriter:
    """Writes one shard; on leaving without an error it is flushed and gets its name.

    The disk works while the next block is computed: one block is on its way at any time.
    """

    def __init__(self, folder: Path, shard: Shard) -> None:
        self._path = folder / shard.name
        self._unfinished = folder / (shard.name + _UNFINISHED)
        self._shard = shard
        self._header = shard.header
        self._pending: Future[None] | None = None

    def __enter__(self) -> ShardWriter:
        self._file = self._unfinished.open("wb", buffering=0)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="write")
        self._put([(memoryview(self._header), 0)])
        return self

    def write(self, weight: Weight, row: int, arrays: Iterable[mx.array]) -> int:
        """Put rows of a weight's tensors, from row number ``row`` on, into their place; returns their bytes."""
        pieces = []
        for name, array in zip(weight.written(), arrays, strict=True):
            entry = self._shard.entries[name]
            octets: Any = mx.contiguous(array).reshape(-1).view(mx.uint8)
            data = memoryview(octets).cast("B")
            row_bytes = entry.nbytes // max(1, weight.rows)
            pieces.append((data, len(self._header) + entry.offset + row * row_bytes))
        self._wait()
        self._pending = self._thread.submit(self._put, pieces)
        return sum(len(data) for data, _ in pieces)

    def _put(self, pieces: Iterable[tuple[memoryview, int]]) -> None:
        for data, offset in pieces:
            while data:
                done = os.pwrite(self._file.fileno(), data, offset)
                data, offset = data[done:], offset + done

    def _wait(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._thread.shutdown(wait=True)
            if kind is None:
                self._wait()
                os.fsync(self._file.fileno())
        finally:
            self._file.close()
        if kind is None:
            self._unfinished.rename(self._path)
            _flush_folder(self._path.parent)


class Workspace:
    """The folder next to the target in which a conversion is made, and what is done in it so far.

    Args:
        target: the folder that is to be.
        identity: everything that the output's bytes depend on; an unfinished conversion of something else is
            thrown away.
    """

    def __init__(self, target: Path, identity: Mapping[str, Any]) -> None:
        self.target = target
        self.folder = target.parent / f".{target.name}.converting"
        # Beside the folder and not in it: what gets its name must be complete and nothing but the model.
        self._manifest = target.parent / f".{target.name}.converting.json"
        self._identity = json.dumps(identity, sort_keys=True, default=str)
        self.resumed = False

    @contextmanager
    def open(self) -> Iterator[Path]:
        """The folder, for this process alone.

        Raises:
            OutputError: it cannot be made, or another conversion is at work in it.
        """
        with explained_output(self.target):
            self.folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise OutputError(f"Another conversion to {self.target} is running. Wait for it.") from None
            with explained_output(self.target):
                self._begin()
                yield self.folder
        finally:
            os.close(descriptor)

    def _begin(self) -> None:
        try:
            same = self._manifest.read_text(encoding="utf-8") == self._identity
        except OSError:
            same = False
        if same:
            self.resumed = True
            for path in self.folder.glob("*" + _UNFINISHED):
                path.unlink()
            return
        for path in self.folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        write_durably(self._manifest, self._identity)

    def is_done(self, shard: Shard) -> bool:
        """Whether a shard is there, whole."""
        path = self.folder / shard.name
        return path.exists() and path.stat().st_size == shard.nbytes

    def finish(self) -> None:
        """Give the folder its name. What had that name before is removed once the new one is in place."""
        _flush_folder(self.folder)
        old = self.target.parent / f".{self.target.name}.replaced"
        if old.exists():
            shutil.rmtree(old)
        if self.target.exists():
            self.target.rename(old)
        self.folder.rename(self.target)
        _flush_folder(self.target.parent)
        self._manifest.unlink()
        if old.exists():
            shutil.rmtree(old)


@contextmanager
def explained_output(target: Path) -> Iterator[None]:
    """Turn the system's complaints about writing into ours.

    Raises:
        OutputError: the disk is full, or the folder cannot be written to.
    """
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"Cannot write {target}: {error.strerror or error}. What is done so far is kept: run the same command "
            "again to go on from there."
        ) from error


def check_space(target: Path, needed: int) -> None:
    """Refuse to begin what the disk cannot hold.

    Raises:
        OutputError: says how much is missing.
    """
    place = target.parent
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if needed > free:
        raise OutputError(
            f"{target} needs {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free on its disk. Make room, choose "
            "another folder with -o, or fewer bits."
        )


def write_index(folder: Path, shards: list[Shard], parameters: int) -> None:
    """The index that Hugging Face's and mlx-lm's loaders read."""
    index = {
        "metadata": {"total_size": sum(shard.data_bytes for shard in shards), "total_parameters": parameters},
        "weight_map": dict(sorted((name, shard.name) for shard in shards for name in shard.entries)),
    }
    write_json(folder / INDEX, index)


def write_json(path: Path, content: Any) -> None:
    """JSON as mlx-lm lays it out."""
    write_durably(path, json.dumps(content, indent=4, ensure_ascii=False))


def write_durably(path: Path, text: str) -> None:
    """Write a small file and flush it to the disk."""
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _nbytes(shape: tuple[int, ...], dtype: mx.Dtype) -> int:
    return math.prod(shape) * dtype.size
