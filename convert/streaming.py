"""The values of a plan's weights, block of rows by block of rows: read, unpacked, fused, cast, quantised."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from numpy.typing import NDArray

from grit_mlx.convert.layout import Origin, sanitized
from grit_mlx.convert.plan import ConversionPlan, Weight
from grit_mlx.convert.reading import Source, read_rows, read_stored
from grit_mlx.convert.unpacking import unpacked, widened
from grit_mlx.errors import NonFiniteError, Option
from grit_mlx.model.checkpoint import Tensor

__all__ = ["Block", "Delta", "Stream"]

# Numbers of a block: 4 MB in half precision. Smaller than most weights, so that several are under way at once.
BLOCK = 2 * 2**20

# Rows (n, width) of a weight, and their first row's number -> the rows with an adapter's part added.
Delta = Callable[[mx.array, int], mx.array]

# The number of the first row, and the rows of each tensor that the weight becomes.
Block = tuple[int, tuple[mx.array, ...]]


class Stream:
    """Computes the tensors of a plan in blocks.

    Args:
        plan: what to make.
        source: where to read it.
        model: mlx-lm's model, unquantised; only its ``sanitize`` is used here, if it computes weights.
        deltas: an adapter's part of weights, by name.
    """

    def __init__(
        self, plan: ConversionPlan, source: Source, model: nn.Module, deltas: Mapping[str, Delta] | None = None
    ) -> None:
        self.plan = plan
        self.model = model
        self._source = source
        self._deltas = deltas or {}
        self._computed: dict[str, mx.array] | None = None
        device = mx.default_device()
        self._streams = [mx.default_stream(device)]
        if device.type == mx.cpu:
            self._streams.append(mx.new_stream(device))  # a CPU gives each stream one core to quantise on

    def blocks(self, weight: Weight) -> Iterator[Block]:
        """A weight's tensors from the first row to the last, as evaluated arrays ``(rows, ...)``.

        Raises:
            NonFiniteError: it holds NaN or infinity, or its values are too large for the dtype of the output.
        """
        # While mlx computes a block, the next one is read and computed beside it, and the one before is written.
        waiting: tuple[Block, mx.array] | None = None
        for number, (start, stop) in enumerate(self._ranges(weight)):
            with mx.stream(self._streams[number % len(self._streams)]):
                arrays, finite = self._block_of(weight, start, stop)
            mx.async_eval(arrays, finite)
            if waiting is not None:
                yield self._checked(weight, *waiting)
            waiting = (start, arrays), finite
        if waiting is not None:
            yield self._checked(weight, *waiting)
        if self._computed is not None:
            for name in self._stored_names(weight):
                self._computed.pop(name, None)

    def values(self, weight: Weight) -> mx.array:
        """A weight's values before quantising, in its shape; for measuring."""
        parts = [self._values(weight, start, stop) for start, stop in self._ranges(weight)]
        return mx.concatenate(parts).reshape(weight.shape)

    def rows(self, weight: Weight, start: int, stop: int) -> mx.array:
        """Rows of a weight before quantising, ``(stop - start, width)``, from one stored tensor."""
        return self._values(weight, start, stop)

    def wide(self, weight: Weight, start: int, stop: int) -> NDArray[np.float32] | None:
        """Rows before casting and quantising, unpacked by NumPy, so that any thread can do it.

        Returns:
            ``(stop - start, width)``; None if only mlx can compute them: with an adapter, or by ``sanitize``.
        """
        origins = [self.plan.layout.origins[name] for name in self._stored_names(weight)]
        if weight.name in self._deltas or not all(origin.tensors for origin in origins):
            return None
        pieces = [self._located(origin, start, stop) for origin in origins]
        stored = [(read_stored(*piece), piece[0].dtype) for piece in pieces]
        return widened(*stored[0]) if weight.packed is None else unpacked(weight.packed, stored)

    def _ranges(self, weight: Weight) -> Iterator[tuple[int, int]]:
        """Blocks of rows that do not cross from one stored tensor into the next."""
        pieces = max(1, len(self.plan.layout.origins[weight.name].tensors))
        rows = weight.rows // pieces
        step = max(1, BLOCK // max(1, weight.width))
        for piece in range(pieces):
            for start in range(piece * rows, (piece + 1) * rows, step):
                yield start, min(start + step, (piece + 1) * rows)

    def _checked(self, weight: Weight, block: Block, finite: mx.array) -> Block:
        """A block, evaluated, once it is known to be sound."""
        mx.eval(block[1])
        start, stop = block[0], block[0] + int(block[1][0].shape[0])
        if finite.item() or mx.all(mx.isfinite(self._values(weight, start, stop))).item():
            return block
        origin = self.plan.layout.origins[weight.name]
        of = f"{origin.tensors[0] if len(origin.tensors) == 1 else weight.name} of {self._source.name}"
        plain = weight.packed is None and weight.name not in self._deltas and origin.tensors
        if plain and mx.all(mx.isfinite(self._rows(weight.name, start, stop))).item():
            raise NonFiniteError(
                f"{of} has numbers too large for {str(weight.dtype).removeprefix('mlx.core.')}. Choose another ",
                *(Option("dtype"), ", such as bfloat16."),
            )
        whose = "or the adapter's " if weight.name in self._deltas else ""
        raise NonFiniteError(
            f"{of} holds NaN or infinity: the checkpoint's {whose}weights are damaged. Download the model again."
        )

    def _block_of(self, weight: Weight, start: int, stop: int) -> tuple[tuple[mx.array, ...], mx.array]:
        """The tensors' rows, and whether the sum of what they are made of is finite: the cheapest sign of NaN."""
        if weight.packed is not None and weight.packed == weight.quantization and weight.name not in self._deltas:
            packed, *scales = (self._rows(name, start, stop) for name in self._stored_names(weight))
            floats = (mx.issubdtype(array.dtype, mx.floating) for array in scales)
            scales = [a.astype(weight.dtype) if f else a for a, f in zip(scales, floats, strict=True)]
            return (packed, *scales), mx.isfinite(mx.stack([array.astype(mx.float32).sum() for array in scales]).sum())
        values = self._values(weight, start, stop)
        finite = mx.isfinite(values.sum())
        return (values,) if weight.quantization is None else weight.quantization.quantize(values), finite

    def _values(self, weight: Weight, start: int, stop: int) -> mx.array:
        rows = [self._rows(name, start, stop) for name in self._stored_names(weight)]
        values = rows[0]
        if weight.packed is not None:
            if weight.dtype == mx.float32 and weight.packed.mode == "affine":
                rows[1:] = [row.astype(mx.float32) for row in rows[1:]]  # else values are rounded to the scales' dtype
            values = weight.packed.dequantize(rows)
        delta = self._deltas.get(weight.name)
        if delta is not None:
            values = delta(values, start)
        return values.astype(weight.dtype)

    def _stored_names(self, weight: Weight) -> list[str]:
        if weight.packed is None:
            return [weight.name]
        names = [f"{weight.module}.{leaf}" for leaf in ("weight", "scales", "biases")]
        return [name for name in names if name in self.plan.layout.origins]

    def _rows(self, name: str, start: int, stop: int) -> mx.array:
        """Rows of one stored parameter, ``(stop - start, its own width)``."""
        origin = self.plan.layout.origins[name]
        if not origin.tensors:
            return self._computed_rows(name, origin, start, stop)
        return read_rows(*self._located(origin, start, stop))

    def _located(self, origin: Origin, start: int, stop: int) -> tuple[Tensor, int, int]:
        """The stored tensor that holds these rows of a parameter, and their numbers in it."""
        rows = _rows(origin) // len(origin.tensors)
        first = start // rows * rows
        return self._source.locate(origin.tensors[start // rows]), start - first, stop - first

    def _computed_rows(self, name: str, origin: Origin, start: int, stop: int) -> mx.array:
        if self._computed is None:
            self._computed = sanitized(self.model, self.plan.layout, self._source.files())
        array = self._computed[name]
        return array.reshape(_rows(origin), -1)[start:stop]


def _rows(origin: Origin) -> int:
    rows = 1
    for size in origin.shape[:-1]:
        rows *= size
    return rows
