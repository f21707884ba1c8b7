"""Keys and values of one text as a safetensors file: as they are, or in 8 or 4 bits.

Shapes: H heads, L length, D head size.
"""

from __future__ import annotations

import json
import mmap
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import mlx.core as mx
import numpy as np

from grit_mlx.errors import OutputError, unwritable
from grit_mlx.files.atomic import atomic_path
from grit_mlx.model import threads
from grit_mlx.model.caches import held, layer_cache
from grit_mlx.rag.options import PRECISIONS

if TYPE_CHECKING:
    from mlx_lm.models.cache import KVCache

__all__ = ["bytes_of", "checksum", "layers_from", "load_layers", "rounded", "save_layers"]

_GROUP: Final = 64  # numbers that share a scale

# The dtypes of a file by their names in safetensors: as NumPy reads them (it has no bfloat16), and as mlx computes.
_DTYPES: Final[dict[str, tuple[type[np.generic], mx.Dtype]]] = {
    "F32": (np.float32, mx.float32),
    "F16": (np.float16, mx.float16),
    "BF16": (np.uint16, mx.bfloat16),
    "U32": (np.uint32, mx.uint32),
}


@threads.computes
def save_layers(path: Path, layers: Sequence[KVCache], *, precision: str) -> None:
    """Write the caches of a text, one for each layer; the file is complete or absent.

    Raises:
        OutputError: it cannot be written, as on a full disk.
    """
    arrays: dict[str, mx.array] = {}
    for number, layer in enumerate(layers):
        for name, kept in zip(("keys", "values"), held(layer), strict=True):
            for part, array in _packed(kept, PRECISIONS[precision]).items():
                arrays[f"{name}.{number}{part}"] = array
    first, _ = held(layers[0])
    metadata = {
        "precision": precision,
        "dtype": next(name for name, (_, dtype) in _DTYPES.items() if dtype == first.dtype),
        "shapes": json.dumps([[array.shape for array in held(layer)] for layer in layers]),
    }
    with atomic_path(path) as temporary:
        try:
            mx.save_safetensors(str(temporary), arrays, metadata)
        except RuntimeError as error:  # what mlx raises for every failure to write
            raise OutputError(unwritable(path, error)) from error


@threads.computes
def load_layers(path: Path, *, crc: int) -> list[KVCache]:
    """Read the caches of a text. The file is mapped into memory: what is checked is what is used.

    Args:
        path: a file of ``save_layers``.
        crc: its ``checksum``.

    Raises:
        ValueError: it was changed.
        OSError: it cannot be read.
    """
    content = _mapped(path)
    if zlib.crc32(content) != crc:
        raise ValueError(f"{path} has changed since it was written")
    return layers_from(content)


@threads.computes
def layers_from(content: mmap.mmap | bytes) -> list[KVCache]:
    """The caches of a text, from the content of a file of ``save_layers``."""
    start = 8 + int.from_bytes(content[:8], "little")
    header: dict[str, Any] = json.loads(content[8:start])
    about = header.pop("__metadata__")
    arrays = {name: _array(content, start, entry) for name, entry in header.items()}
    bits, (_, dtype) = PRECISIONS[about["precision"]], _DTYPES[about["dtype"]]
    layers = []
    for number, shapes in enumerate(json.loads(about["shapes"])):
        named = zip((f"keys.{number}", f"values.{number}"), shapes, strict=True)
        layers.append(layer_cache(*(_unpacked(arrays, name, shape, bits, dtype) for name, shape in named)))
    mx.eval([(layer.keys, layer.values) for layer in layers])
    return layers


@threads.computes
def rounded(layers: Sequence[KVCache], *, precision: str) -> list[KVCache]:
    """The caches as they come back from a file of some precision."""
    bits = PRECISIONS[precision]

    def once(array: mx.array) -> mx.array:
        packed = {f"x{part}": value for part, value in _packed(array, bits).items()}
        return _unpacked(packed, "x", array.shape, bits, array.dtype)

    made = [layer_cache(*map(once, held(layer))) for layer in layers]
    mx.eval([held(layer) for layer in made])
    return made


def checksum(path: Path) -> int:
    """CRC-32 of a file: gigabytes per second, and it detects any accidental change."""
    return zlib.crc32(_mapped(path))


def bytes_of(layers: Sequence[KVCache], *, precision: str = "full") -> int:
    """Bytes that the numbers of some caches take, in memory or in a file of some precision."""
    bits = PRECISIONS[precision]
    # Nothing is computed: mlx knows the size of an array before its numbers.
    return sum(part.nbytes for layer in layers for array in held(layer) for part in _packed(array, bits).values())


def _mapped(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _array(content: mmap.mmap | bytes, start: int, entry: Mapping[str, Any]) -> mx.array:
    stored, computed = _DTYPES[entry["dtype"]]
    begin, end = entry["data_offsets"]
    numbers = np.frombuffer(content, stored, count=(end - begin) // np.dtype(stored).itemsize, offset=start + begin)
    array = mx.array(numbers.reshape(entry["shape"]))  # a copy
    return array.view(computed) if computed == mx.bfloat16 else array


def _packed(array: mx.array, bits: int | None) -> dict[str, mx.array]:
    """``(1, H, L, D)`` as the arrays that are stored, by the suffixes of their names."""
    if bits is None:
        return {"": mx.contiguous(array)}
    # Token by token, the heads of a token side by side: heads may be smaller than a group.
    flat = array.transpose(0, 2, 1, 3).reshape(-1)
    rows = mx.pad(flat, (0, -flat.size % _GROUP)).reshape(-1, _GROUP)
    weights, scales, *biases = mx.quantize(rows, group_size=_GROUP, bits=bits)
    return {"": weights, ".scales": scales, ".biases": biases[0]}


def _unpacked(
    arrays: Mapping[str, mx.array], name: str, shape: Sequence[int], bits: int | None, dtype: mx.Dtype
) -> mx.array:
    if bits is None:
        return arrays[name]
    _, H, L, D = shape
    rows = mx.dequantize(
        arrays[name], arrays[f"{name}.scales"], arrays[f"{name}.biases"], group_size=_GROUP, bits=bits
    ).astype(dtype)
    return rows.reshape(-1)[: H * L * D].reshape(1, L, H, D).transpose(0, 2, 1, 3)
