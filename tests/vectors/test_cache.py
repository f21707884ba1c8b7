"""Vectors that are kept: found again, bounded, and never in the way."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from grit_mlx.vectors.cache import VectorCache


def vectors(start: int, count: int) -> dict[bytes, np.ndarray]:
    return {bytes([i]): np.full(64, i, np.float32) for i in range(start, start + count)}


def test_what_is_kept_is_found(tmp_path: Path) -> None:
    cache = VectorCache(tmp_path / "new" / "v.sqlite", budget=1 << 20)
    assert cache.get([b"x"]) == {} and not cache.path.exists()
    kept = vectors(0, 9)
    cache.keep(kept)
    found = VectorCache(cache.path, budget=1 << 20).get([*kept, b"other"])
    assert found.keys() == kept.keys()
    assert all(np.array_equal(found[key], kept[key]) for key in kept)


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    cache = VectorCache(tmp_path / "v.sqlite", budget=10 * (64 * 4 + 64))
    cache.keep(vectors(0, 10))
    cache.get([bytes([i]) for i in (0, 1)])
    cache.keep(vectors(10, 4))
    left = {key[0] for key in cache.get([bytes([i]) for i in range(14)])}
    assert {0, 1, 10, 11, 12, 13} <= left and len(left) <= 9 and 2 not in left
    VectorCache(cache.path, budget=0).keep(vectors(20, 1))
    assert not cache.get([bytes([20])])


def test_damage_and_a_folder_in_the_way_cost_only_time(tmp_path: Path) -> None:
    cache = VectorCache(tmp_path / "v.sqlite", budget=1 << 20)
    cache.keep(vectors(0, 3))
    cache.path.write_bytes(b"garbage" * 1000)
    assert cache.get([bytes([0])]) == {}
    cache.keep(vectors(0, 3))
    assert len(cache.get([bytes([0])])) == 1
    (tmp_path / "file").write_text("")
    VectorCache(tmp_path / "file" / "v.sqlite", budget=1 << 20).keep(vectors(0, 1))
