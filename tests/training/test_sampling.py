"""Which rows come together: pure functions, tested over several files."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from grit_mlx.errors import ArgumentError
from grit_mlx.training.sampling import Sampler, choose_passages, epoch_batches, rows_of_epoch

SIZES = (100, 150, 50)


def files_of(batch: object) -> set[int]:
    return set(np.searchsorted(np.cumsum(SIZES), np.asarray(batch).reshape(-1), side="right").tolist())


def test_batches_are_of_one_file_as_far_as_possible() -> None:
    # The official sampler's own example: 12 + 18 + 6 full batches of 8, and 4 + 6 + 2 rows left for a mixed one.
    batches = epoch_batches(SIZES, (1, 1, 1), 8, np.random.default_rng(0), same_file=True)
    assert batches.shape == (37, 8)
    assert Counter(len(files_of(batch)) for batch in batches)[1] == 36
    rows = batches.reshape(-1).tolist()
    assert len(set(rows)) == len(rows) == 296  # none twice, 4 dropped with the last partial batch
    order = [files_of(batch).pop() for batch in batches if len(files_of(batch)) == 1]
    assert order != sorted(order), "the batches are shuffled"
    assert epoch_batches(SIZES, (1, 1, 1), 8, np.random.default_rng(0), same_file=True).tolist() == batches.tolist()


def test_files_smaller_than_a_batch_are_pooled() -> None:
    batches = epoch_batches((3, 2, 4), (1, 1, 1), 4, np.random.default_rng(0), same_file=True)
    assert batches.shape == (2, 4) and len(set(batches.reshape(-1).tolist())) == 8


def test_without_same_file_batches_mix() -> None:
    batches = epoch_batches(SIZES, (1, 1, 1), 8, np.random.default_rng(0), same_file=False)
    assert np.mean([len(files_of(batch)) for batch in batches]) > 2


def test_weights_repeat_and_leave_out() -> None:
    rng = np.random.default_rng(0)
    assert len(set(rows_of_epoch(100, 0.25, rng).tolist())) == 25
    counts = Counter(rows_of_epoch(100, 2.5, rng).tolist())
    assert sorted(counts.values()) == [2] * 50 + [3] * 50
    assert len(rows_of_epoch(100, 0, rng)) == 0
    batches = epoch_batches(SIZES, (1, 0, 3), 10, rng, same_file=True)
    assert files_of(batches) == {0, 2}


def test_the_sampler_is_a_function_of_the_number() -> None:
    sampler = Sampler(SIZES, (1, 1, 1), 8, (1, 0))
    assert sampler.batches_per_epoch == 37
    first = [sampler.rows(i).tolist() for i in range(80)]
    again = Sampler(SIZES, (1, 1, 1), 8, (1, 0))
    assert [again.rows(i).tolist() for i in reversed(range(80))] == first[::-1]
    assert first[:37] != first[37:74] and sampler.epoch(74) == 2
    assert Sampler(SIZES, (1, 1, 1), 8, (2, 0)).rows(0).tolist() != first[0]


def test_too_few_rows() -> None:
    with pytest.raises(ArgumentError, match="An epoch has 5 rows, fewer than one batch of 8"):
        Sampler((3, 2), (1, 1), 8, (0,))
    with pytest.raises(ArgumentError, match=r"Lower generative_batch_size, add data, or raise"):
        Sampler((3, 2), (1, 1), 8, (0,), option="generative_batch_size")


def test_passages_of_a_row() -> None:
    rng = np.random.default_rng(0)
    chosen = [choose_passages(3, 4, 3, rng) or [] for _ in range(200)]
    assert {one[0] for one in chosen} == {0, 1, 2}
    assert {i for one in chosen for i in one[1:]} == {3, 4, 5, 6}
    assert all(len(set(one)) == 3 for one in chosen), "no negative twice where there are enough"
    few = choose_passages(1, 2, 6, rng)
    assert few is not None and Counter(few[1:]).most_common(1)[0][1] == 3  # 5 of 2: repeated evenly
    assert choose_passages(2, 0, 1, rng) in ([0], [1])
    assert choose_passages(1, 0, 2, rng) is None, "divides by zero in the official code"
