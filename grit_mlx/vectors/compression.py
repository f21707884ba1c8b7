"""Vectors at rest: storage precisions, cosine similarity and exact search. Pure functions on numpy arrays.

Bytes per vector of E = 4096 numbers, and the most by which a number of a vector v can change:

========= ====== ================================================================================
float32   16384  0
float16    8192  2**-11 of the number, or 2**-25 where it is below 2**-14
int8       4100  max|v| / 254
binary      516  max(mean|v|, max|v| - mean|v|)
========= ====== ================================================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from grit_mlx.errors import ArgumentError, Option

__all__ = [
    "DTYPES",
    "CompressedVectors",
    "FloatVectors",
    "check_dtype",
    "compress",
    "cosine",
    "largest",
    "top_k",
    "unit",
]

DTYPES: Final = ("float32", "float16", "int8", "binary")

FloatVectors = npt.NDArray[np.float32]

_INT8_LEVELS: Final = 127  # on either side of 0; -128 stays unused, so that v and -v are stored alike
_SEARCH_ROWS: Final = 1 << 14  # decompressed at once in a search


@dataclass(frozen=True, eq=False)
class CompressedVectors:
    """N vectors (or a single one, without the axis N) as small integers with one scale each.

    Attributes:
        values: for "int8" shape (N, E), int8; for "binary" shape (N, ceil(E / 8)), uint8, eight signs to a
            byte, the first in the highest bit (`np.packbits`), 1 where the number is not negative.
        scales: shape (N,), float32: what an integer or sign is multiplied by. 0 for a vector of zeros.
        dtype: "int8" or "binary".
        dimensions: E, which the packed bits alone do not tell.

    Raises:
        ArgumentError: the parts do not fit together.
    """

    values: npt.NDArray[np.int8] | npt.NDArray[np.uint8]
    scales: FloatVectors
    dtype: str
    dimensions: int

    def __post_init__(self) -> None:
        columns = {"int8": self.dimensions, "binary": -(-self.dimensions // 8)}.get(self.dtype)
        kind = {"int8": np.int8, "binary": np.uint8}.get(self.dtype)
        if columns is None:
            raise ArgumentError(f"Vectors can be compressed as int8 or binary, but not as {self.dtype!r}.")
        if self.values.dtype != kind or self.values.shape != (*self.scales.shape, columns):
            parts = f"values {self.values.dtype} {self.values.shape}, scales {self.scales.shape}"
            raise ArgumentError(f"No {self.dtype} vectors of {self.dimensions} dimensions: {parts}.")

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, rows: slice) -> CompressedVectors:
        return CompressedVectors(self.values[rows], self.scales[rows], self.dtype, self.dimensions)

    @property
    def nbytes(self) -> int:
        """Bytes of the values and scales."""
        return self.values.nbytes + self.scales.nbytes

    def decompress(self) -> FloatVectors:
        """The vectors, shape (N, E), float32, up to the error in the table above."""
        if self.dtype == "int8":
            return self.values.astype(np.float32) * self.scales[..., None]
        bits = np.unpackbits(self.values.view(np.uint8), axis=-1, count=self.dimensions)
        return np.where(bits, self.scales[..., None], -self.scales[..., None])


def compress(vectors: npt.ArrayLike, dtype: str) -> npt.NDArray[Any] | CompressedVectors:
    """Brings vectors to a storage precision.

    int8 maps each vector's largest magnitude to 127 and rounds. binary keeps the signs and scales them by the
    mean magnitude, the scale that brings them closest to the vector (Rastegari et al. 2016, XNOR-Net,
    equation 6).

    Args:
        vectors: shape (N, E), finite numbers. Meant for unit vectors; any length works.
        dtype: one of `DTYPES`.

    Returns:
        An array (N, E) for "float32" and "float16", else `CompressedVectors`.

    Raises:
        ArgumentError: wrong shape or dtype, NaN or infinity, or a number too large for float16.
    """
    check_dtype(dtype)
    array = _checked(vectors, "vectors")
    if array.ndim != 2:
        raise ArgumentError(f"Vectors must have the shape (N, E), but theirs is {array.shape}.")
    if dtype == "float32":
        return array
    if dtype == "float16":
        if np.abs(array).max(initial=0) > np.finfo(np.float16).max:
            raise ArgumentError("There are numbers too large for float16. Normalise them, or use float32.")
        return array.astype(np.float16)
    magnitudes = np.abs(array)
    if dtype == "int8":
        scales = magnitudes.max(axis=1, initial=0) / np.float32(_INT8_LEVELS)
        levels = np.rint(array / np.where(scales > 0, scales, 1)[:, None])
        # A subnormal scale is so coarse that the quotient may pass 127.
        values = levels.clip(-_INT8_LEVELS, _INT8_LEVELS).astype(np.int8)
        return CompressedVectors(values, scales, dtype, array.shape[1])
    means = magnitudes.sum(axis=1, dtype=np.float64) / max(array.shape[1], 1)
    return CompressedVectors(np.packbits(array >= 0, axis=1), means.astype(np.float32), dtype, array.shape[1])


def check_dtype(dtype: str) -> None:
    """Raises ArgumentError unless a dtype is one of `DTYPES`."""
    if dtype not in DTYPES:
        raise ArgumentError("Unknown ", Option("dtype"), f" {dtype!r}: use one of {', '.join(DTYPES)}.")


def cosine(a: npt.ArrayLike, b: npt.ArrayLike) -> FloatVectors:
    """Cosine similarity of every vector in `a` with every one in `b`; 0 where either is zero.

    Args:
        a: shape (E,) or (N, E).
        b: shape (E,) or (M, E).

    Returns:
        float32 within [-1, 1], of shape (N, M); the axis of a single vector is missing.

    Raises:
        ArgumentError: the vectors have different lengths, or NaN or infinity in them.
    """
    left, right = _checked(a, "a"), _checked(b, "b")
    if not (left.ndim in (1, 2) and right.ndim in (1, 2) and left.shape[-1] == right.shape[-1]):
        raise ArgumentError(f"Vectors of the shapes {left.shape} and {right.shape} cannot be compared.")
    return np.asarray(np.clip(unit(left) @ unit(right).T, -1, 1), dtype=np.float32)


def top_k(
    query: npt.ArrayLike, vectors: npt.ArrayLike | CompressedVectors, k: int
) -> tuple[npt.NDArray[np.intp], FloatVectors]:
    """The k vectors with the largest dot product with a query: for unit vectors the nearest ones by cosine.

    Every vector is looked at, so the result is exact. Equal scores are ordered by index.

    Args:
        query: shape (E,).
        vectors: shape (N, E), or compressed ones, which are decompressed a block at a time.
        k: how many; all of them if there are fewer.

    Returns:
        Indices and scores (float32), both of shape (min(k, N),), best first.

    Raises:
        ArgumentError: k is below 1, the shapes do not match, or there is NaN or infinity.
    """
    if k < 1:
        raise ArgumentError(f"k must be at least 1, but it is {k}.")
    wanted = _checked(query, "query")
    stored = vectors if isinstance(vectors, CompressedVectors) else _checked(vectors, "vectors")
    shape = (len(stored), stored.dimensions) if isinstance(stored, CompressedVectors) else stored.shape
    if wanted.ndim != 1 or shape[1:] != wanted.shape:
        raise ArgumentError(f"A query of the shape {wanted.shape} does not fit vectors of the shape {shape}.")
    scores = _scores(wanted, stored)
    best = largest(scores, k)
    return best, scores[best]


def largest(scores: FloatVectors, k: int) -> npt.NDArray[np.intp]:
    """Indices of the k largest of scores (N,), largest first; equal ones are ordered by index."""
    if k < len(scores):
        # Everything that ties with the k-th best is kept here: argpartition alone would choose among them at
        # random.
        threshold = np.partition(scores, len(scores) - k)[len(scores) - k]
        candidates = np.flatnonzero(scores >= threshold)
    else:
        candidates = np.arange(len(scores))
    return candidates[np.argsort(-scores[candidates], kind="stable")][:k]


def _scores(query: FloatVectors, vectors: FloatVectors | CompressedVectors) -> FloatVectors:
    if not isinstance(vectors, CompressedVectors):
        return vectors @ query
    starts = range(0, len(vectors), _SEARCH_ROWS)
    blocks = [vectors[start : start + _SEARCH_ROWS].decompress() @ query for start in starts]
    return np.concatenate([np.empty(0, np.float32), *blocks])


def unit(vectors: FloatVectors) -> FloatVectors:
    """Vectors (..., E) scaled to length 1; zeros stay zeros."""
    # Divided by the largest magnitude first: squares of very large or small numbers leave the range of
    # float32.
    peaks = np.abs(vectors).max(axis=-1, keepdims=True, initial=0)
    level = vectors / np.where(peaks > 0, peaks, 1)
    lengths = np.linalg.norm(level, axis=-1, keepdims=True)
    return np.asarray(level / np.where(lengths > 0, lengths, 1), dtype=np.float32)


def _checked(values: npt.ArrayLike, name: str) -> FloatVectors:
    try:
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinity, which is refused below
            array = np.asarray(values, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"{name} must be an array of numbers ({error}).") from error
    if not np.isfinite(array).all():
        where = tuple(np.argwhere(~np.isfinite(array))[0].tolist())
        raise ArgumentError(f"{name} must be finite, but there is NaN or infinity at the index {where}.")
    return array
