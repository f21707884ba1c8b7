"""The processes of a run that ``mlx.launch`` starts, and what they tell each other.

Every process has to make the same calls in the same order; each of them waits for the others. Nothing here needs a
derivative: training gathers representations exactly where GradCache cuts the graph.
"""

from __future__ import annotations

import json
import signal
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, TypeVar, cast

import mlx.core as mx
import numpy as np
from mlx.nn.utils import average_gradients
from mlx.utils import tree_map
from numpy.typing import NDArray

from grit_mlx.errors import ArgumentError, GritError, Option, ProcessError, first_line, lost_process

__all__ = ["World"]

Rows = TypeVar("Rows", bound=Any)
T = TypeVar("T")

# Bytes that ``from_first`` sends at once: what is longer needs a second message, and each takes as long as the network.
_FIRST_BYTES: Final = 1024
_HEAD: Final = struct.Struct("<I")


class World:
    """The processes of a run; a single one without ``mlx.launch``.

    Args:
        alone: ignore the other processes.

    Raises:
        ProcessError: the others cannot be reached. All methods that wait for others raise it once one of them ended.

    Attributes:
        lost: the error of another process that has ended; None as long as all run. mlx raises an error once, and who
            waits after that waits for ever, so that nothing waits any more.
    """

    def __init__(self, *, alone: bool = False) -> None:
        self.lost: ProcessError | None = None
        self.group = _group()
        self.size = 1 if alone else self.group.size()
        self.rank = 0 if alone else self.group.rank()

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
        return rows if self.size == 1 else mx.distributed.all_gather(rows, group=self.group)

    def sum(self, tree: Any) -> Any:
        """The sum over all processes of each array in a tree."""
        if self.size == 1:
            return tree
        # mlx's average packs many small arrays into few messages.
        return tree_map(lambda mean: mean * self.size, average_gradients(tree, self.group))

    def from_first(self, value: Any) -> Any:
        """The first process's value, which JSON can hold, in all processes."""
        if self.size == 1:
            return value
        with self.waiting():
            text = json.dumps(value).encode() if self.is_first else b""
            head = _HEAD.pack(len(text)) + text if self.is_first else b""
            begun = self._bytes_from_first(head[:_FIRST_BYTES], _FIRST_BYTES)
            [length] = _HEAD.unpack_from(begun)
            room = _FIRST_BYTES - _HEAD.size
            if length > room:
                begun += self._bytes_from_first(text[room:], length - room)
            return json.loads(begun[_HEAD.size : _HEAD.size + length])

    def from_all(self, value: Any) -> list[Any]:
        """Each process's value, which JSON can hold, in all processes."""
        if self.size == 1:
            return [value]
        with self.waiting():
            text = json.dumps(value).encode()
            lengths = _evaluated(mx.distributed.all_gather(mx.array([len(text)]), group=self.group)).tolist()
            padded = mx.array(np.frombuffer(text.ljust(max(lengths)), dtype=np.uint8))
            texts = _evaluated(mx.distributed.all_gather(padded[None], group=self.group))  # (size, bytes)
        return [json.loads(row[:length].tobytes()) for row, length in zip(texts, lengths, strict=True)]

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

    def arrays_from_all(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Each process's array, all of one shape ``(...)``, in all processes: ``(size, ...)``."""
        with self.waiting():
            return _evaluated(mx.distributed.all_gather(mx.array(rows)[None], group=self.group))

    def number_from_first(self, number: mx.array, *, after: mx.array | None = None) -> mx.array:
        """The first process's integers in all processes, not evaluated yet.

        Args:
            number: this process's, computed from what all have computed: they exchange numbers after that.
            after: what must have been exchanged before; two exchanges that do not depend on each other could come in
                another order in each process.
        """
        number = number.astype(mx.uint32)
        own = number if self.is_first else number * 0
        return self._all_sum(own if after is None else mx.depends(own, after))

    def agree(self, value: bool) -> bool:
        """The first process's answer, in all processes."""
        return bool(self.from_first(value))

    def together(self, act: Callable[[], T]) -> T:
        """What ``act`` returns, if it succeeds in all processes; it must not wait for others itself.

        Raises:
            GritError: in the first process its own error, or one that says what another process could not do; in the
                others a ``ProcessError`` that the first one has ``told``.
        """
        failure: GritError | None = None
        try:
            result = act()
        except GritError as error:
            failure = error
        failures = self.from_all(None if failure is None else str(failure))
        if failure is not None and self.is_first:
            raise failure
        for rank, other in enumerate(failures):
            if other is not None:
                refused = ProcessError(f"Process {rank} of {self.size} cannot go on: {other}")
                refused.told = not self.is_first
                raise refused
        return result

    def _bytes_from_first(self, own: bytes, length: int) -> bytes:
        """The first process's bytes, padded to a length that all know, in all processes."""
        padded = np.frombuffer(own.ljust(length, b"\0"), dtype=np.uint8)
        return _evaluated(self._all_sum(mx.array(padded))).tobytes()

    def _all_sum(self, value: mx.array) -> mx.array:
        return mx.distributed.all_sum(value, group=self.group)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Wait for others in this block; says in our words that another process has ended."""
        if self.lost is not None:
            raise self.lost
        try:
            yield
        except RuntimeError as error:
            if (lost := lost_process(error)) is None:
                raise
            self.lost = lost
            raise lost from error


def _evaluated(array: mx.array) -> NDArray[Any]:
    mx.eval(array)  # np.array alone would not notice that another process has ended
    return np.array(array)


def _group() -> mx.distributed.Group:
    """Mlx's group of all processes. While it waits for them this process ends at once when it is asked to."""
    before: Any = None
    if threading.current_thread() is threading.main_thread():
        before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        return mx.distributed.init()
    except RuntimeError as error:
        raise ProcessError(
            f"The processes of this run cannot reach each other: {first_line(error)} Check the addresses that "
            "mlx.launch was given, and that the ports from --starting-port on are free."
        ) from error
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)
