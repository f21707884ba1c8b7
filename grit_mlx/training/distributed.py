"""Several processes as one: who computes what, and how the parts come together.

Every process knows the whole batch and computes its share of the rows. Representations are gathered before the
contrastive loss, which each process then computes in full, so the gradient of its own rows is the true one,
negatives of other processes included; parameter gradients are summed. (In the official code each embedding
gradient is 1 / processes of nominal.) Nothing needs a derivative of the communication itself: GradCache cuts the
graph exactly where the gathering happens.
"""

from __future__ import annotations

from typing import Any, TypeVar, cast

import mlx.core as mx
from mlx.nn.utils import average_gradients
from mlx.utils import tree_map

from grit_mlx.errors import ArgumentError

__all__ = ["World"]

Rows = TypeVar("Rows", bound=Any)


class World:
    """The processes of a run; one alone without ``mlx.launch``.

    Args:
        alone: leave the others out of it.
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
        """Refuse batches that cannot be shared out evenly.

        Raises:
            ArgumentError: names the setting.
        """
        if rows % self.size:
            raise ArgumentError(f"{name} = {rows} cannot be shared out evenly among {self.size} processes.")

    def share(self, rows: Rows) -> Rows:
        """This process's part of a batch, which can be sliced."""
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

    def agree(self, value: bool) -> bool:
        """The first process's answer, in all of them."""
        if self.size == 1:
            return value
        own = mx.array(float(value) if self.is_first else 0.0)
        return bool(mx.distributed.all_sum(own, group=self._group).item())
