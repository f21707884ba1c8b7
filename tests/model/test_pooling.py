from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from grit_mlx.errors import ArgumentError
from grit_mlx.model.pooling import pool

STATES = np.arange(24, dtype=np.float32).reshape(2, 4, 3)
MASK = np.array([[False, True, True, True], [False, True, False, False]])


def pooled(method: str, mask: np.ndarray = MASK) -> np.ndarray:
    return np.array(pool(mx.array(STATES), mx.array(mask), method))


def test_methods() -> None:
    np.testing.assert_allclose(pooled("mean"), [STATES[0, 1:].mean(axis=0), STATES[1, 1]])
    # The weights count the masked positions only, so they start at 1 after the instruction.
    weighted = (STATES[0, 1] + 2 * STATES[0, 2] + 3 * STATES[0, 3]) / 6
    np.testing.assert_allclose(pooled("weightedmean"), [weighted, STATES[1, 1]])
    np.testing.assert_allclose(pooled("lasttoken"), [STATES[0, 3], STATES[1, 1]])
    np.testing.assert_allclose(pooled("cls"), STATES[:, 0])


def test_float32_whatever_the_states_are() -> None:
    # bfloat16 keeps 8 bits: a running sum of 300 ones would stop at 256.
    states = mx.ones((1, 300, 2), dtype=mx.bfloat16)
    vector = pool(states, mx.ones((1, 300), dtype=mx.bool_), "mean")
    assert vector.dtype == mx.float32
    assert np.array(vector).tolist() == [[1.0, 1.0]]


def test_unknown_method() -> None:
    with pytest.raises(ArgumentError, match="Unknown pooling 'max': use one of mean, weightedmean, lasttoken, cls"):
        pooled("max")
