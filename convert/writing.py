"""Safetensors shards written piece by piece.

The layout of every shard is known before the first byte is written, so tensors go straight to their place and
nothing is held back. A shard is written under another name, flushed to the disk and only then renamed: one that has
its final name is complete. That is all that resuming after an interruption needs to know.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import mlx.core as mx

from grit_mlx.convert.plan import ConversionPlan, Weight
from grit_mlx.convert.reading import DTYPES
from grit_mlx.convert.report import ConversionStep, Progress
from grit_mlx.convert.streaming import Stream
from grit_mlx.model.checkpoint import INDEX

__all__ = ["Shard", "ShardWriter", "is_written", "shards_of", "write_index", "write_json", "write_shards"]

# safetensors' name of each dtype.
_NAMES = {dtype: name for name, (_, dtype) in DTYPES.items()}


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
        """Size of the file."""
        return len(self.header) + self.data_bytes


def shards_of(plan: ConversionPlan, limit: int) -> list[Shard]:
    """Cut a plan into files of at most ``limit`` bytes of data; a weight is never divided."""
    groups: list[list[tuple[Weight, dict[str, Entry]]]] = []
    filled = 0
    for weight in plan.weights:
        written = weight.written()
        sizes = {name: math.prod(shape) * dtype.size for name, (shape, dtype) in written.items()}
        if not groups or filled + sum(sizes.values()) > limit:
            groups.append([])
            filled = 0
        entries = {}
        for name, (shape, dtype) in written.items():
            entries[name] = Entry(_NAMES[dtype], shape, filled, sizes[name])
            filled += sizes[name]
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


def is_written(folder: Path, shard: Shard) -> bool:
    """Whether a folder holds a shard, complete."""
    path = folder / shard.name
    return path.exists() and path.stat().st_size == shard.nbytes


def write_shards(folder: Path, shards: Sequence[Shard], stream: Stream, progress: Progress) -> None:
    """Write those shards that are not there yet."""
    total = sum(shard.data_bytes for shard in shards)
    all_tensors = sum(len(shard.entries) for shard in shards)
    done = tensors = 0
    for shard in shards:
        if is_written(folder, shard):
            done += shard.data_bytes
            tensors += len(shard.entries)
        else:
            with ShardWriter(folder, shard) as writer:
                for weight in shard.weights:
                    for row, arrays in stream.blocks(weight):
                        done += writer.write(weight, row, arrays)
                        progress(ConversionStep("write", done, total, tensors, all_tensors))
                    tensors += len(weight.written())
            mx.clear_cache()
        progress(ConversionStep("write", done, total, tensors, all_tensors))


class ShardWriter:
    """Writes one shard, which is flushed and gets its name if the block ends without an error.

    One block is written while the next is computed.
    """

    def __init__(self, folder: Path, shard: Shard) -> None:
        self._path = folder / shard.name
        self._unfinished = folder / f"{shard.name}.part"
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


def write_index(folder: Path, shards: Sequence[Shard], parameters: int) -> None:
    """The index that Hugging Face's and mlx-lm's loaders read."""
    index = {
        "metadata": {"total_size": sum(shard.data_bytes for shard in shards), "total_parameters": parameters},
        "weight_map": dict(sorted((name, shard.name) for shard in shards for name in shard.entries)),
    }
    write_json(folder / INDEX, index)


def write_json(path: Path, content: Any) -> None:
    """JSON as mlx-lm lays it out."""
    path.write_text(json.dumps(content, indent=4, ensure_ascii=False), encoding="utf-8")
