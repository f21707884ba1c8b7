"""Weights of a GGUF file as rows of a safetensors checkpoint.

Blocks of 32 whole numbers with a scale, and perhaps a minimum, are what mlx calls affine quantisation in groups of 32.
They are only packed anew: codes and scales stay as they are, and so does every value. In Q4_K and Q5_K scales and
minima are products of two numbers, which are float32 here and rounded to the model's dtype with the other weights. All
other types are unpacked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gguf import quants
from gguf.constants import GGML_QUANT_SIZES
from gguf.constants import GGMLQuantizationType as Kind
from gguf.quants import dequantize
from numpy.typing import NDArray

from grit_mlx.errors import CheckpointError, unreadable
from grit_mlx.model.checkpoint import Tensor
from grit_mlx.model.gguf.header import Entry

__all__ = ["AFFINE", "GROUP_SIZE", "GgufTensor", "readable", "tensors_of"]

GROUP_SIZE = 32

# Blocks (n, bytes) -> codes as whole numbers from 0 on, scales and minima, one of each for 32 codes.
Unpack = Callable[[NDArray[np.uint8]], tuple[NDArray[np.uint8], NDArray[Any], NDArray[Any]]]


def _halves(blocks: NDArray[np.uint8], start: int) -> NDArray[np.float16]:
    return np.ascontiguousarray(blocks[:, start : start + 2]).view(np.float16)[:, 0]


def _nibbles(octets: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The lower halves of all bytes, then the upper ones: ``(n, 16)`` to ``(n, 32)``."""
    return np.concatenate([octets & 15, octets >> 4], axis=1)


def _fifths(octets: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The fifth bit of each of 32 codes, in its place: ``(n, 4)`` to ``(n, 32)``."""
    return np.left_shift(np.unpackbits(octets, axis=1, bitorder="little"), 4, dtype=np.uint8)


def _centred(scales: NDArray[np.float16], middle: int) -> NDArray[np.float16]:
    """The minimum where codes are counted from their middle; a power of two, so nothing is rounded."""
    return scales * np.float16(-middle)


def _q4_0(blocks: NDArray[np.uint8]) -> Any:
    scales = _halves(blocks, 0)
    return _nibbles(blocks[:, 2:]), scales, _centred(scales, 8)


def _q4_1(blocks: NDArray[np.uint8]) -> Any:
    return _nibbles(blocks[:, 4:]), _halves(blocks, 0), _halves(blocks, 2)


def _q5_0(blocks: NDArray[np.uint8]) -> Any:
    scales = _halves(blocks, 0)
    return _nibbles(blocks[:, 6:]) | _fifths(blocks[:, 2:6]), scales, _centred(scales, 16)


def _q5_1(blocks: NDArray[np.uint8]) -> Any:
    return _nibbles(blocks[:, 8:]) | _fifths(blocks[:, 4:8]), _halves(blocks, 0), _halves(blocks, 2)


def _q8_0(blocks: NDArray[np.uint8]) -> Any:
    scales = _halves(blocks, 0)
    return blocks[:, 2:] ^ 128, scales, _centred(scales, 128)


def _q4_k(blocks: NDArray[np.uint8]) -> Any:
    return _pairs(blocks[:, 16:]), *_products(blocks)


def _q5_k(blocks: NDArray[np.uint8]) -> Any:
    fifths = blocks[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & 1
    return _pairs(blocks[:, 48:]) | np.left_shift(fifths, 4, dtype=np.uint8), *_products(blocks)


def _pairs(octets: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """As ``_nibbles``, of every 32 bytes: ``(n, 128)`` to ``(n, 8, 32)``."""
    parts = octets.reshape(-1, 4, 1, 32)
    return np.concatenate([parts & 15, parts >> 4], axis=2).reshape(-1, 8, 32)


def _products(blocks: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Scales and minima of blocks of 256, ``(n, 8)``: 6 bits each, times a scale of their own."""
    scales, minima = quants.Q4_K.get_scale_min(np.ascontiguousarray(blocks[:, 4:16]))
    outer, lowest = (_halves(blocks, start).astype(np.float32)[:, None] for start in (0, 2))
    return outer * scales, -lowest * minima


@dataclass(frozen=True)
class Affine:
    """A type that mlx's affine quantisation holds.

    Attributes:
        bits: of a code.
        unpack: how blocks are read.
        scales: safetensors' name of the type of scales and minima.
    """

    bits: int
    unpack: Unpack
    scales: str = "F16"


AFFINE = {
    Kind.Q4_0: Affine(4, _q4_0),
    Kind.Q4_1: Affine(4, _q4_1),
    Kind.Q5_0: Affine(5, _q5_0),
    Kind.Q5_1: Affine(5, _q5_1),
    Kind.Q8_0: Affine(8, _q8_0),
    Kind.Q4_K: Affine(4, _q4_k, "F32"),
    Kind.Q5_K: Affine(5, _q5_k, "F32"),
}

# Types that safetensors has as well, under its name.
_STORED = {Kind.F32: "F32", Kind.F16: "F16", Kind.BF16: "BF16"}
_NUMPY: dict[str, type[np.generic]] = {
    "F32": np.float32,
    "F16": np.float16,
    "BF16": np.uint16,
    "U32": np.uint32,
}


@dataclass(frozen=True)
class GgufTensor(Tensor):
    """A tensor of a safetensors checkpoint that a GGUF file holds in another form.

    ``file`` and ``offset`` are those of its first blocks.

    Attributes:
        entries: what it is made of; experts that are stored one by one are a stack.
        leaf: which part of a packed weight it is: ``"weight"``, ``"scales"`` or ``"biases"``; empty for its values.
        heads: number of heads whose rows llama.cpp has put in another order; 0 for none.
        added: what llama.cpp has added to each value.
    """

    entries: tuple[Entry, ...]
    leaf: str = ""
    heads: int = 0
    added: float = 0.0

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Rows ``start`` to ``stop``, ``(stop - start, width)``; bfloat16 as ``uint16``.

        Raises:
            CheckpointError: the file cannot be read, or has become shorter than its header says.
        """
        entry = self.entries[0]
        if self.heads and len(self.shape) == 1:
            return self._decoded(entry, _octets(entry, 0, 1))[:, self._places(0, self.shape[0])]
        if self.heads:
            size = self.shape[0] // self.heads
            first, last = start // size * size, -(-stop // size) * size
            return self._decoded(entry, _octets(entry, first, last)[self._places(start, stop) - first])
        each = math.prod(entry.shape[:-1])
        pieces = []
        for number in range(start // each, -(-stop // each)):
            first, last = max(start - number * each, 0), min(stop - number * each, each)
            pieces.append(self._decoded(self.entries[number], _octets(self.entries[number], first, last)))
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def _places(self, start: int, stop: int) -> NDArray[np.int64]:
        """Where rows are in the file: two that are rotated together are neighbours there, half a head apart here."""
        size = self.shape[0] // self.heads
        head, row = np.divmod(np.arange(start, stop), size)
        half, pair = np.divmod(row, size // 2)
        return np.asarray(head * size + 2 * pair + half)

    def _decoded(self, entry: Entry, rows: NDArray[np.uint8]) -> NDArray[Any]:
        if self.leaf:
            return self._packed(entry, rows)
        if self.dtype != "F32" or entry.kind == Kind.F32:
            values: NDArray[Any] = np.ascontiguousarray(rows).view(_NUMPY[self.dtype])
        else:
            with np.errstate(all="ignore"):  # what is not finite is refused where weights are checked
                values = dequantize(np.ascontiguousarray(rows), entry.kind)
        return values - np.float32(self.added) if self.added else values

    def _packed(self, entry: Entry, rows: NDArray[np.uint8]) -> NDArray[Any]:
        affine = AFFINE[entry.kind]
        blocks = rows.reshape(-1, GGML_QUANT_SIZES[entry.kind][1])
        with np.errstate(all="ignore"):  # what is not finite is refused where weights are checked
            codes, scales, biases = affine.unpack(blocks)
        if self.leaf == "weight":
            return _words(codes.reshape(len(rows), -1), affine.bits)
        return (scales if self.leaf == "scales" else biases).reshape(len(rows), -1)


def _octets(entry: Entry, start: int, stop: int) -> NDArray[np.uint8]:
    """Rows as they are stored, ``(stop - start, bytes)``."""
    width = entry.row_bytes
    try:
        with entry.file.open("rb") as file:
            octets = np.fromfile(file, np.uint8, (stop - start) * width, offset=entry.offset + start * width)
    except OSError as error:
        raise CheckpointError(unreadable(entry.file, error)) from error
    if octets.size != (stop - start) * width:
        raise CheckpointError(f"{entry.file} has become shorter while it was read. Download the model again.")
    return octets.reshape(stop - start, width)


def _words(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint32]:
    """Codes that follow one another bit by bit, lowest first, as mlx packs them: ``(n, width)`` to ``(n, words)``."""
    if bits == 8:
        octets = codes
    elif bits == 4:
        octets = codes[:, ::2] | np.left_shift(codes[:, 1::2], 4, dtype=np.uint8)
    else:
        single = np.unpackbits(codes[..., None], axis=2, bitorder="little", count=bits)
        octets = np.packbits(single.reshape(len(codes), -1), axis=1, bitorder="little")
    return np.ascontiguousarray(octets).view(np.uint32)


def readable(entry: Entry) -> bool:
    """Whether its type can be unpacked."""
    try:
        dequantize(np.zeros((1, entry.row_bytes), np.uint8), entry.kind)
    except NotImplementedError:
        return False
    return True


def tensors_of(
    name: str, entries: Sequence[Entry], *, stacked: bool = False, heads: int = 0, added: float = 0.0
) -> dict[str, GgufTensor]:
    """A parameter as safetensors hold it: packed as mlx does it where that rounds nothing, else its values.

    Args:
        name: such as ``"model.norm.weight"``.
        entries: what it is made of: one, or all experts of a stack.
        stacked: whether they are experts.
        heads: see ``GgufTensor``.
        added: see ``GgufTensor``.
    """
    first, kinds = entries[0], {entry.kind for entry in entries}
    shape = (len(entries), *first.shape) if stacked else first.shape

    def tensor(leaf: str, dtype: str, width: int) -> GgufTensor:
        own = (*shape[:-1], width)
        nbytes = math.prod(own) * np.dtype(_NUMPY[dtype]).itemsize
        return GgufTensor(first.file, dtype, own, nbytes, first.offset, tuple(entries), leaf, heads, added)

    if len(kinds) == 1 and first.kind in AFFINE and len(shape) > 1:
        module, groups = name.rpartition(".")[0], shape[-1] // GROUP_SIZE
        return {
            f"{module}.weight": tensor("weight", "U32", shape[-1] * AFFINE[first.kind].bits // 32),
            f"{module}.scales": tensor("scales", AFFINE[first.kind].scales, groups),
            f"{module}.biases": tensor("biases", AFFINE[first.kind].scales, groups),
        }
    dtype = _STORED.get(first.kind, "F32") if len(kinds) == 1 and not added else "F32"
    return {name: tensor("", dtype, shape[-1])}
