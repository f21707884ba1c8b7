"""The one pass: padding changes nothing, and a projection may come before or after the pool."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from grit_mlx.model.attention import decoder_of, embedding_caches
from grit_mlx.model.loading import load
from grit_mlx.model.options import ModelChoice
from grit_mlx.model.passes import pad, pooled_tokens, represent
from grit_mlx.model.pooling import pool
from grit_mlx.model.settings import POOLING, Settings


def test_pad() -> None:
    ids, real = pad([[5, 6], np.array([7, 8, 9], dtype=np.int32)])
    assert ids.dtype == np.int32 and ids.tolist() == [[5, 6, 0], [7, 8, 9]]
    assert real.tolist() == [[True, True, False], [True] * 3]
    assert pooled_tokens(real, [1, 0]).tolist() == [[False, True, False], [True] * 3]
    wide, real = pad([np.array([True, False])], multiple=4)
    assert wide.tolist() == [[1, 0, 0, 0]] and real.tolist() == [[True, True, False, False]]


@pytest.mark.parametrize("method", POOLING)
def test_a_projection_after_the_pool_is_one_before_it(tiny_model: Path, method: str) -> None:
    model = load(ModelChoice(tiny_model, dtype="float32")).model
    settings = Settings(pooling=method)
    projection = nn.Linear(32, 5)
    ids, real = pad([[3, 4, 5, 6], [7, 8]])
    arrays = mx.array(ids), mx.array(real), mx.array(pooled_tokens(real, [1, 0]))
    vectors, _ = represent(model, *arrays, settings=settings, projection=projection)
    states = decoder_of(model)(arrays[0], cache=embedding_caches(2, arrays[1]))
    np.testing.assert_allclose(vectors, pool(projection(states), arrays[2], method), atol=1e-5)
    # Without its neighbour, and keeping keys and values.
    alone = mx.array(ids[1:, :2]), None, mx.array(real[1:, :2])
    single, caches = represent(model, *alone, settings=settings, projection=projection, keep=True)
    np.testing.assert_allclose(vectors[1], single[0], atol=1e-5)
    assert [cache.offset for cache in caches] == [2, 2]
