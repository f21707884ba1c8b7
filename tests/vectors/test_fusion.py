"""Fusing rankings."""

from __future__ import annotations

import pytest

from grit_mlx.vectors.fusion import fuse_shares, rank_shares, score_shares


def test_by_ranks() -> None:
    # a: 1/61 + 1/62, b the same, c and d: 1/63; of equals the one that was named first
    fused = fuse_shares([rank_shares(["a", "b", "c"]), rank_shares(["b", "a", "d"])])
    assert list(fused) == ["a", "b", "c", "d"]
    assert fused["a"] == pytest.approx(1 / 61 + 1 / 62) and fused["d"] == 1 / 63
    # in both at rank 2 beats first in one only
    assert list(fuse_shares([rank_shares(["x", "m"]), rank_shares(["y", "m"])])) == ["m", "x", "y"]


def test_by_scores() -> None:
    assert score_shares({"a": 0.9, "b": 0.5, "c": 0.1}, 0.1) == pytest.approx({"a": 1, "b": 0.5, "c": 0})
    assert score_shares({"a": 12.0, "b": 3.0}, 0.0) == {"a": 1, "b": 0.25}
    # One that stands far above the rest on one side stays first, which ranks do not know.
    sides = [{"a": 20.0, "b": 1.0, "c": 0.9}, {"b": 0.52, "c": 0.51, "a": 0.5}]
    shares = [score_shares(sides[0], 0.0), score_shares(sides[1], 0.0)]
    assert next(iter(fuse_shares(shares))) == "a"
    assert next(iter(fuse_shares([rank_shares(list(side)) for side in sides]))) == "b"


def test_edges() -> None:
    assert fuse_shares([]) == {} and score_shares({}, 0.0) == {} and rank_shares([]) == {}
    assert score_shares({"a": 0.3, "b": 0.3}, 0.3) == {"a": 1, "b": 1}, "all alike"
    assert fuse_shares([{}, {"a": 0.5}]) == {"a": 0.5}
    assert fuse_shares([{"a": 1.0, "b": 0.5}, {"b": 1.0}], (0.25, 0.75)) == {"b": 0.875, "a": 0.25}
