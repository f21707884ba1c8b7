"""Keys and values of one text as a safetensors file: as they are, or in 8 or 4 bits.

Shapes: H heads, L length, D head size.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import mlx.core as mx
from mlx_lm.models.cache import KVCache

from grit_mlx.atomic import atomic_path
from grit_mlx.errors import ArgumentError, OutputError

__all__ = ["PRECISIONS", "bytes_of", "checksum", "load_layers", "save_layers", "rounded"]

# Bits of a number at rest; None keeps what the model computed.
PRECISIONS: Final[dict[str, int | None]] = {"full": None, "8": 8, "4": 4}

_DTYPES: Final = {str(dtype).removeprefix("mlx.core."): dtype for dtype in (mx.float32, mx.float16, mx.bfloat16)}
_GROUPS: Final = (64, 32)  # numbers that share a scale, the larger first: fewer bytes
_BLOCK_BYTES: Final = 1 << 20


def save_layers(path: Path, layers: Sequence[KVCache], *, precision: str) -> None:
    """Write the caches of a text, a layer each; the file is whole or not there.

    Raises:
        OutputError: it cannot be written, as on a full disk.
        ArgumentError: the model's keys have no groups of 32 numbers to quantise by.
    """
    arrays: dict[str, mx.array] = {}
    for number, layer in enumerate(layers):
        for name, whole in (("keys", layer.keys), ("values", layer.values)):
            kept = whole[..., : layer.offset, :]
            for part, array in _packed(kept, PRECISIONS[precision]).items():
                arrays[f"{name}.{number}{part}"] = array
    first = layers[0].keys
    metadata = {
        "format": "1",
        "precision": precision,
        "dtype": str(first.dtype).removeprefix("mlx.core."),
        "heads": ",".join(str(layer.keys.shape[1]) for layer in layers),
        "length": str(layers[0].offset),
    }
    with atomic_path(path) as temporary:
        try:
            mx.save_safetensors(str(temporary), arrays, metadata)
        except RuntimeError as error:  # mlx's word for every failure to write
            raise OutputError(f"Cannot write {path}: the disk is full or fails ({error}).") from error


def load_layers(path: Path) -> list[KVCache]:
    """The caches in a file; its bytes are read when they are first computed with.

    Raises:
        ValueError: it is no such file. Damage within the numbers is what ``checksum`` is for.
    """
    try:
        loaded: Any = mx.load(str(path), return_metadata=True)
        arrays, about = loaded
        dtype = _DTYPES[about["dtype"]]
        heads = [int(count) for count in about["heads"].split(",")]
        bits = PRECISIONS[about["precision"]]
        layers = []
        for number, count in enumerate(heads):
            layer = KVCache()
            layer.keys = _unpacked(arrays, f"keys.{number}", count, bits, dtype)
            layer.values = _unpacked(arrays, f"values.{number}", count, bits, dtype)
            layer.offset = int(about["length"])
            layers.append(layer)
    except (RuntimeError, KeyError, TypeError, OSError) as error:
        raise ValueError(f"{path} holds no cached document: {error}") from error
    return layers


def rounded(layers: Sequence[KVCache], *, precision: str) -> list[KVCache]:
    """The caches as they come back from a file of some precision."""
    bits = PRECISIONS[precision]
    result = []
    for layer in layers:
        kept = KVCache()
        for name in ("keys", "values"):
            whole = getattr(layer, name)[..., : layer.offset, :]
            packed = {f"x{part}": array for part, array in _packed(whole, bits).items()}
            setattr(kept, name, _unpacked(packed, "x", whole.shape[1], bits, whole.dtype))
        kept.offset = layer.offset
        result.append(kept)
    return result


def checksum(path: Path) -> int:
    """CRC-32 of a file: 3 GB a second, and no accident gets past it."""
    value = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            value = zlib.crc32(block, value)
    return value


def bytes_of(layers: Sequence[KVCache], *, precision: str = "full") -> int:
    """Bytes that the numbers of some caches take, in memory or in a file of some precision."""
    bits = PRECISIONS[precision]
    return sum(
        array.nbytes
        for layer in layers
        for whole in (layer.keys, layer.values)
        for array in _packed(whole[..., : layer.offset, :], bits).values()
    )


def _packed(array: mx.array, bits: int | None) -> dict[str, mx.array]:
    """``(1, H, L, D)`` as the arrays that are stored, by the ends of their names."""
    if bits is None:
        return {"": mx.contiguous(array)}
    # Groups run over the heads of a token, side by side: heads may be smaller than a group.
    rows = array.transpose(0, 2, 1, 3).reshape(array.shape[2], -1)  # (L, H * D)
    group = next((size for size in _GROUPS if rows.shape[1] % size == 0), None)
    if group is None:
        raise ArgumentError(
            f"Cached documents of this model cannot be quantised: {rows.shape[1]} numbers a token and layer are no "
            f"multiple of {_GROUPS[-1]}. Keep them as they are."
        )
    weights, scales, *biases = mx.quantize(rows, group_size=group, bits=bits)
    return {"": weights, ".scales": scales, ".biases": biases[0]}


def _unpacked(arrays: Mapping[str, mx.array], name: str, heads: int, bits: int | None, dtype: mx.Dtype) -> mx.array:
    if bits is None:
        return arrays[name]
    weights, scales = arrays[name], arrays[f"{name}.scales"]
    numbers = weights.shape[1] * 32 // bits
    rows = mx.dequantize(
        weights, scales, arrays[f"{name}.biases"], group_size=numbers // scales.shape[1], bits=bits
    ).astype(dtype)
    return rows.reshape(1, rows.shape[0], heads, -1).transpose(0, 2, 1, 3)
