"""Which rows form which batch: pure functions of the data's sizes, a seed and a position.

Nothing here has state. The batch of step n follows from the seed and n alone, so a run resumed at step n continues
exactly as if it had not been interrupted, and every process of a distributed run knows the complete batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from grit_mlx.errors import ArgumentError, Option

__all__ = ["Sampler", "choose_passages", "epoch_batches", "rows_of_epoch"]

Indices = NDArray[np.int64]


def rows_of_epoch(rows: int, weight: float, rng: np.random.Generator) -> Indices:
    """The rows of one file that an epoch takes, shuffled.

    Args:
        rows: number of rows of the file.
        weight: how often each is taken on average: 1 takes all once, 0.5 a random half, 2.5 all twice and a
            random half a third time.
        rng: source of the order.
    """
    count = round(rows * weight)
    rounds = [rng.permutation(rows) for _ in range(-(-count // rows) if rows else 0)]
    return np.concatenate([*rounds, np.empty(0, dtype=np.int64)])[:count].astype(np.int64)


def epoch_batches(
    sizes: Sequence[int],
    weights: Sequence[float],
    batch_size: int,
    rng: np.random.Generator,
    *,
    same_file: bool,
) -> Indices:
    """The batches of one epoch: ``(batches, batch_size)`` numbers of rows, counted through all files.

    With ``same_file``, as in the official sampler: each file is shuffled and cut into full batches; the rest of the
    files, in random order, is cut into mixed batches; a last partial batch is dropped; the batches are shuffled.
    In-batch negatives from one file are harder: a model cannot tell them apart by style.

    Args:
        sizes: rows of each file.
        weights: see ``rows_of_epoch``, one for each file.
        batch_size: rows per batch.
        rng: source of the order.
        same_file: False mixes all files in every batch.
    """
    starts = np.concatenate([[0], np.cumsum(sizes)])
    files = [
        start + rows_of_epoch(rows, weight, rng) for start, rows, weight in zip(starts, sizes, weights, strict=False)
    ]
    if not same_file:
        files = [rng.permutation(np.concatenate(files))]
    full = [file[: len(file) // batch_size * batch_size] for file in files]
    left = [file[len(part) :] for file, part in zip(files, full, strict=True)]
    mixed = np.concatenate([left[i] for i in rng.permutation(len(left))])
    mixed = mixed[: len(mixed) // batch_size * batch_size]
    return rng.permutation(np.concatenate([*full, mixed]).reshape(-1, batch_size))


@dataclass(frozen=True)
class Sampler:
    """The batches of a run, by number.

    Attributes:
        sizes: rows of each file.
        weights: how often an epoch takes each row of a file on average.
        batch_size: rows per batch.
        seed: random seed, and a number for the sampler, so that two samplers of a run differ.
        same_file: see ``epoch_batches``.
        option: which one sets the size of these batches.

    Raises:
        ArgumentError: the rows do not fill a batch.
    """

    sizes: tuple[int, ...]
    weights: tuple[float, ...]
    batch_size: int
    seed: tuple[int, ...]
    same_file: bool = True
    option: str = "batch_size"

    def __post_init__(self) -> None:
        if self.batches_per_epoch == 0:
            raise ArgumentError(
                f"An epoch has {self._rows_per_epoch} rows, fewer than one batch of {self.batch_size}. Lower ",
                Option(self.option),
                ", add data, or raise the weights of the files.",
            )

    @property
    def _rows_per_epoch(self) -> int:
        return sum(round(rows * weight) for rows, weight in zip(self.sizes, self.weights, strict=True))

    @property
    def batches_per_epoch(self) -> int:
        """The same in every epoch: what is dropped depends on the sizes only."""
        return self._rows_per_epoch // self.batch_size

    def rows(self, number: int) -> Indices:
        """``(batch_size,)``: the rows of batch ``number``, counted from 0 over all epochs."""
        epoch, position = divmod(number, self.batches_per_epoch)
        found: Indices = _epoch(self, epoch)[position]
        return found

    def epoch(self, number: int) -> float:
        """The number of passes over the data in ``number`` batches."""
        return number / self.batches_per_epoch


@lru_cache(maxsize=4)
def _epoch(sampler: Sampler, epoch: int) -> Indices:
    rng = np.random.default_rng([*sampler.seed, epoch])
    return epoch_batches(sampler.sizes, sampler.weights, sampler.batch_size, rng, same_file=sampler.same_file)


def choose_passages(positives: int, negatives: int, group_size: int, rng: np.random.Generator) -> list[int] | None:
    """One random positive, then ``group_size - 1`` random negatives, as positions among all passages of a row.

    As in the official code negatives repeat if there are too few. If there are none, with which the official code
    divides by zero, the result is None: the caller fills the group from other rows.

    Args:
        positives: number of the row's positives, which come first.
        negatives: number of its negatives, which follow.
        group_size: number of passages to choose.
        rng: source of the choice.
    """
    positive = int(rng.integers(positives))
    wanted = group_size - 1
    if wanted == 0:
        return [positive]
    if negatives == 0:
        return None
    rounds = [rng.permutation(negatives) for _ in range(-(-wanted // negatives))]
    return [positive, *(positives + int(i) for i in np.concatenate(rounds)[:wanted])]
