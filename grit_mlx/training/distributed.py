"""Distributed training: which process computes what, and how the parts are combined.

Every process knows the whole batch and computes its share of the rows. Representations are gathered before the
contrastive loss, which each process then computes in full, so the gradient of its own rows is the true one,
negatives of other processes included; parameter gradients are summed. (In the official code each embedding
gradient is 1 / processes of nominal.) Nothing needs a derivative of the communication itself: GradCache cuts the
graph exactly where the gathering happens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeVar, cast

import mlx.core as mx
import numpy as np
from mlx.nn.utils import average_gradients
from mlx.utils import tree_map

from grit_mlx.errors import ArgumentError, Option
from grit_mlx.training.arrays import number

__all__ = ["World"]

Rows = TypeVar("Rows", bound=Any)


class World:
    """The processes of a run; a single one without ``mlx.launch``.

    Args:
        alone: ignore the other processes.
    """

    def __init__(self, *, alone: bool = False) -> None:
        self._group = mx.distributed.init()
        self.size = 1 if alone else self._group.size()
        self.rank = 0 if alone else self._group.rank()

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and reports."""
        return self.rank == 0

    def check_divides(self, rows: int, name: str) -> None:
        """Refuse batches that cannot be divided evenly.

        Raises:
            ArgumentError: names the setting.
        """
        if rows % self.size:
            raise ArgumentError(Option(name, rows), f" cannot be divided evenly among {self.size} processes.")

    def share(self, rows: Rows) -> Rows:
        """This process's part of a batch, of any type that can be sliced."""
        count = len(rows) // self.size
        return cast("Rows", rows[self.rank * count : (self.rank + 1) * count])

    def gather(self, rows: mx.array) -> mx.array:
        """The parts of all processes, ``(N / size, E)`` each, in the batch's order: ``(N, E)``."""
        return rows if self.size == 1 else mx.distributed.all_gather(rows, group=self._group)

    def sum(self, tree: Any) -> Any:
        """The sum over all processes of each array in a tree."""
        if self.size == 1:
            return tree
        # mlx's average packs many small arrays into few messages.
        return tree_map(lambda mean: mean * self.size, average_gradients(tree, self._group))

    def from_first(self, value: Any) -> Any:
        """The first process's value, which JSON can hold, in all processes."""
        if self.size == 1:
            return value
        text = json.dumps(value).encode() if self.is_first else b""
        length = int(number(self._all_sum(mx.array(len(text)))))
        buffer = mx.array(np.frombuffer(text, dtype=np.uint8)) if self.is_first else mx.zeros(length, dtype=mx.uint8)
        return json.loads(np.array(self._all_sum(buffer.astype(mx.int32))).astype(np.uint8).tobytes())

    def arrays_from_first(self, arrays: Mapping[str, mx.array]) -> dict[str, mx.array]:
        """The first process's arrays, in all processes; the others pass arrays of the same names and shapes."""
        if self.size == 1:
            return dict(arrays)
        result = {}
        for name in sorted(arrays):  # messages must come in one order
            own = arrays[name] if self.is_first else mx.zeros_like(arrays[name])
            result[name] = self._all_sum(own)
            mx.eval(result[name])
        return result

    def _all_sum(self, value: mx.array) -> mx.array:
        return mx.distributed.all_sum(value, group=self._group)

    def agree(self, value: bool) -> bool:
        """The first process's answer, in all processes."""
        if self.size == 1:
            return value
        return bool(number(self._all_sum(mx.array(float(value) if self.is_first else 0.0))))
