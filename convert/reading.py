"""Checkpoints as they are stored: which tensors there are, and any rows of one of them.

Tensors are read with plain reads of a few megabytes. A memory map would count every page that was touched as memory
of this process, and mlx's own lazy loading reads a whole tensor at a time.

Every tensor is seen as rows: all axes but the last are one. Quantising, casting and adding a low-rank delta work row
by row, so nothing larger than a block of rows has to be in memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from grit_mlx.errors import CheckpointError, unreadable
from grit_mlx.model import sentence_transformers
from grit_mlx.model.checkpoint import INDEX, Tensor, read_headers
from grit_mlx.model.gguf.folder import NOTE, read_model, write_small_files
from grit_mlx.model.gguf.tensors import GgufTensor
from grit_mlx.model.hub import model_files

__all__ = [
    "DTYPES",
    "Folder",
    "GgufFile",
    "Source",
    "check_tensors",
    "read_index",
    "read_rows",
    "read_stored",
    "side_files",
]

# safetensors' names: what NumPy reads, and the dtype in mlx. NumPy has no bfloat16, so its bits are read.
DTYPES: dict[str, tuple[type[np.generic], mx.Dtype]] = {
    "F32": (np.float32, mx.float32),
    "F16": (np.float16, mx.float16),
    "BF16": (np.uint16, mx.bfloat16),
    "BOOL": (np.bool_, mx.bool_),
    "U8": (np.uint8, mx.uint8),
    "U16": (np.uint16, mx.uint16),
    "U32": (np.uint32, mx.uint32),
    "U64": (np.uint64, mx.uint64),
    "I8": (np.int8, mx.int8),
    "I16": (np.int16, mx.int16),
    "I32": (np.int32, mx.int32),
    "I64": (np.int64, mx.int64),
}

# Files of a checkpoint that the converter writes itself, or that hold weights.
_NOT_COPIED = {
    *("config.json", "grit.json", NOTE, "README.md", "hf_quant_config.json", "projection.safetensors", INDEX),
    *sentence_transformers.FILES,
}


class Source:
    """A checkpoint that is on this machine, or on its way to it. Fetching begins when it is entered as a context.

    Attributes:
        folder: holds ``config.json``, the tokenizer and the other small files.
        name: what a model card calls it: a hub id, or the folder's name.
        tensors: what the headers promise, by name.
        identity: changes when the checkpoint does; what was written before that cannot be used to resume.
        pending_bytes: how much is still to be downloaded.
    """

    folder: Path
    name: str
    tensors: dict[str, Tensor]
    identity: list[Any]
    pending_bytes: int = 0

    @property
    def place(self) -> Path:
        """What messages call it."""
        return self.folder

    def expect(self, names: Iterable[str]) -> None:
        """Announce the order in which tensors will be asked for."""

    def locate(self, name: str) -> Tensor:
        """The tensor, once its file is there."""
        return self.tensors[name]

    def files(self) -> list[Path]:
        """All weight files, once they are all there."""
        return sorted({tensor.file for tensor in self.tensors.values()})

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class Folder(Source):
    """A checkpoint in a local folder.

    Args:
        folder: where it is.
        name: None for the folder's.

    Raises:
        CheckpointError: see ``read_headers`` and ``check_tensors``.
    """

    def __init__(self, folder: Path, *, name: str | None = None) -> None:
        self.folder = folder
        self.name = name or folder.resolve().name
        self.tensors = read_headers(folder)
        check_tensors(self.tensors, read_index(folder, folder), folder)
        stats = [(path.name, path.stat()) for path in self.files()]
        self.identity = [str(folder), [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]]


class GgufFile(Source):
    """A GGUF file, or the parts of a split one. The small files are written to a folder that lasts as long as this.

    Raises:
        ModelError: see ``read_model``.
    """

    def __init__(self, path: Path) -> None:
        model = read_model(path)
        self._temporary = TemporaryDirectory(prefix="grit-gguf-")
        self.folder = Path(self._temporary.name)
        write_small_files(model, self.folder)
        self._place = model.place
        self.name = model.place.name
        self.tensors = dict(model.tensors)
        self.identity = [str(model.place), *model.header.identity]

    @property
    def place(self) -> Path:
        """The file, the first one of several."""
        return self._place


def check_tensors(tensors: dict[str, Tensor], index: dict[str, str], place: Path | str) -> None:
    """Refuse tensors of an impossible type or size, and files that do not match their index.

    Raises:
        CheckpointError: names the first tensor at fault.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            raise CheckpointError(
                f"{name} in {tensor.file} is stored as {tensor.dtype}, which cannot be converted. "
                "Use a checkpoint in bfloat16, float16 or float32."
            )
        expected = int(np.prod(tensor.shape, dtype=np.int64)) * np.dtype(DTYPES[tensor.dtype][0]).itemsize
        if tensor.nbytes != expected:
            raise CheckpointError(
                f"{tensor.file} is damaged: {name} has {tensor.nbytes:,} bytes and its shape {tensor.shape} takes "
                f"{expected:,}. Download the model again."
            )
    for name, file in index.items():
        if name not in tensors:
            raise CheckpointError(
                f"{INDEX} of {place} promises {name} in {file}, which does not hold it. Download the model again."
            )
        if tensors[name].file.name != file:
            raise CheckpointError(
                f"{INDEX} of {place} says that {name} is in {file}, but {tensors[name].file.name} holds it. "
                "Download the model again."
            )
    if index:
        for name, tensor in tensors.items():
            if name not in index:
                raise CheckpointError(
                    f"{tensor.file} holds {name}, which {INDEX} does not mention. Remove files of another download, "
                    "or download the model again."
                )


def read_stored(tensor: Tensor, start: int, stop: int) -> NDArray[Any]:
    """Rows ``start`` to ``stop`` of a tensor as they are stored, ``(stop - start, width)``; bfloat16 as ``uint16``.

    Raises:
        CheckpointError: the file cannot be read, or has become shorter than its header says.
    """
    if isinstance(tensor, GgufTensor):
        return tensor.read(start, stop)
    stored = DTYPES[tensor.dtype][0]
    width = tensor.shape[-1] if tensor.shape else 1
    count = (stop - start) * width
    offset = tensor.offset + start * width * np.dtype(stored).itemsize
    try:
        with tensor.file.open("rb") as file:
            values = np.fromfile(file, stored, count, offset=offset)
    except OSError as error:
        raise CheckpointError(unreadable(tensor.file, error)) from error
    if values.size != count:
        raise CheckpointError(f"{tensor.file} has become shorter while it was read. Download the model again.")
    return values.reshape(stop - start, width)


def read_rows(tensor: Tensor, start: int, stop: int) -> mx.array:
    """As ``read_stored``, in the tensor's own dtype."""
    return mx.array(read_stored(tensor, start, stop)).view(DTYPES[tensor.dtype][1])


def side_files(folder: Path, *, code: bool) -> Iterator[Path]:
    """The small files that are copied to a converted model: tokenizer, generation settings, templates."""
    for pattern in model_files(code=code):
        for path in sorted(folder.glob(pattern)):
            if path.name not in _NOT_COPIED and path.suffix != ".safetensors" and ".bin.index" not in path.name:
                yield path


def read_index(folder: Path, place: Path | str) -> dict[str, str]:
    """The file of each tensor, as the index says; empty if there is none.

    Args:
        folder: that holds the index.
        place: what messages call the checkpoint.

    Raises:
        CheckpointError: it cannot be read.
    """
    path = folder / INDEX
    try:
        index: Any = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        return dict(index)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(unreadable(f"{INDEX} of {place}", error)) from error
