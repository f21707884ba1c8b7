"""Stored weights as float32, by NumPy.

On a CPU mlx unpacks quantised weights at some 25 million numbers a second and cannot share an array between threads.
Here tables of all the codes that fit into 8 to 12 bits do it fifty times as fast, in any thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from grit_mlx.convert.quantization import Quantization

__all__ = ["unpacked", "widened"]

# Bits of the words that a row of codes is cut into; each holds 1, 2 or 4 codes.
_WORD_BITS = {2: 8, 4: 8, 8: 8, 3: 12, 6: 12, 5: 10}
# A word's codes are looked up as one number of this many times 4 bytes.
_LOOKED_UP = {1: np.float32, 2: np.float64, 4: np.complex128}

# OCP Microscaling Formats, version 1.0: scales that are a power of two, and 4-bit floats without their sign.
_E8M0 = np.ldexp(np.float32(1), np.minimum(np.arange(256), 254) - 127)
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def widened(values: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    """Numbers as ``read_stored`` returns them, as float32.

    Args:
        values: of any shape.
        dtype: safetensors' name.
    """
    if dtype == "BF16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32, copy=False)


def unpacked(quantization: Quantization, stored: Sequence[tuple[NDArray[Any], str]]) -> NDArray[np.float32]:
    """The rows of a quantised weight, ``(n, width)``.

    Args:
        quantization: how they are packed.
        stored: rows of the packed weight, the scales and, for affine, the biases, each with safetensors' dtype.
    """
    packed, scales = stored[0][0], stored[1]
    values = _looked_up(packed.view(np.uint8), quantization)
    groups = values.reshape(len(values), -1, quantization.group_size)
    if quantization.mode == "affine":
        # Not rounded to the dtype of the scales: neither are weights that are widened when a model is loaded.
        groups *= widened(*scales)[..., None]
        groups += widened(*stored[2])[..., None]
    else:
        table = _e4m3() if quantization.mode == "nvfp4" else _E8M0
        groups *= table[scales[0]][..., None]
    return values


def _looked_up(octets: NDArray[np.uint8], quantization: Quantization) -> NDArray[np.float32]:
    """The values of codes that follow one another bit by bit, lowest first: ``(n, bytes)`` to ``(n, width)``."""
    bits = _WORD_BITS[quantization.bits]
    words: NDArray[Any] = octets
    if bits != 8:
        period = 3 if bits == 12 else 5  # bytes after which words begin at a byte again
        parts = octets.reshape(len(octets), -1, period).astype(np.uint16)
        cut = []
        for start in range(0, 8 * period, bits):
            byte, shift = divmod(start, 8)
            cut.append((parts[..., byte] >> shift | parts[..., byte + 1] << (8 - shift)) & (2**bits - 1))
        words = np.stack(cut, axis=-1).reshape(len(octets), -1)
    # "clip" checks nothing, which is ten times as fast; every word is in the table.
    return np.take(_table(quantization.bits, quantization.mode), words, mode="clip").view(np.float32)


@cache
def _table(bits: int, mode: str) -> NDArray[Any]:
    """For each word the values of its codes, as one number."""
    if mode == "affine":
        values = np.arange(2**bits, dtype=np.float32)
    else:
        values = np.array([*_E2M1, *(-value for value in _E2M1)], np.float32) if bits == 4 else _e4m3()
    words, count = np.arange(2 ** _WORD_BITS[bits]), _WORD_BITS[bits] // bits
    codes = [(words >> (bits * place)) & (2**bits - 1) for place in range(count)]
    table: NDArray[Any] = np.ascontiguousarray(np.stack([values[code] for code in codes], axis=-1))
    return table.view(_LOOKED_UP[count]).ravel()


@cache
def _e4m3() -> NDArray[np.float32]:
    """8-bit floats: a sign, 4 bits of exponent and 3 of mantissa."""
    codes = np.arange(256)
    exponent, mantissa = (codes >> 3) & 15, codes & 7
    size = np.where(exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0))
    return np.where(codes & 128, -size, size).astype(np.float32)
