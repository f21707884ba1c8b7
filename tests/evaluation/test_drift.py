"""Drift between two models' outputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from grit_mlx import GritLM
from grit_mlx.errors import ArgumentError
from grit_mlx.evaluation import drift
from grit_mlx.evaluation.drift import Outputs, drift_between, kl_divergence, neighbour_overlap, outputs_of


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    shifted = logits - logits.max(axis=1, keepdims=True)
    result: NDArray[np.float32] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def random_outputs(seed: int, texts: int = 20, size: int = 8) -> Outputs:
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(texts, size)).astype(np.float32)
    return Outputs(vectors, log_softmax(rng.normal(size=(30, 16)).astype(np.float32)))


def test_a_model_has_not_drifted_from_itself(tiny_model: Path) -> None:
    model = GritLM(tiny_model)
    found = drift_between(outputs_of(model), outputs_of(model))
    assert found.texts == len(drift.TEXTS) == len(set(drift.TEXTS)) == 64
    assert found.cosine_worst == pytest.approx(1, abs=1e-6)
    assert (found.neighbour_overlap, found.kl, found.top_token) == (1, 0, 1)


def test_values_of_random_outputs() -> None:
    a, b = random_outputs(0), random_outputs(1)
    found = drift_between(a, b)
    norms = np.linalg.norm(a.vectors, axis=1) * np.linalg.norm(b.vectors, axis=1)
    cosines = (a.vectors * b.vectors).sum(axis=1) / norms
    assert found.cosine_mean == pytest.approx(cosines.mean(), abs=1e-6)
    assert found.cosine_worst == pytest.approx(cosines.min(), abs=1e-6)
    assert found.cosine_worst <= found.cosine_p1 <= found.cosine_mean
    assert a.log_probabilities is not None and b.log_probabilities is not None
    p, q = np.exp(a.log_probabilities), np.exp(b.log_probabilities)
    assert found.kl == pytest.approx(float(np.mean(np.sum(p * np.log(p / q), axis=1))), rel=1e-4)
    # Chance: 10 of the 19 others are neighbours, so about 10/19 of them are shared.
    assert found.neighbour_overlap == pytest.approx(10 / 19, abs=0.1)


def test_the_length_of_vectors_does_not_matter() -> None:
    a = random_outputs(0)
    assert drift_between(a, Outputs(3 * a.vectors, a.log_probabilities)).cosine_worst == pytest.approx(1, abs=1e-6)


def test_neighbour_overlap_by_hand() -> None:
    angles = np.radians([0, 10, 20, 90, 100, 110])
    a = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    assert neighbour_overlap(a, a, 2) == 1
    swapped = a[[0, 1, 3, 2, 4, 5]]  # the third and the fourth change clusters
    assert neighbour_overlap(a, swapped, 2) == pytest.approx((0.5 + 0.5 + 0 + 0 + 0.5 + 0.5) / 6, abs=0.35)
    assert neighbour_overlap(a, swapped, 2) < 1


def test_kl_is_never_negative() -> None:
    p = log_softmax(np.random.default_rng(0).normal(size=(50, 9)).astype(np.float32))
    assert (kl_divergence(p, p) == 0).all()
    assert (kl_divergence(p, p[::-1]) >= 0).all()


def test_what_cannot_be_compared() -> None:
    a = random_outputs(0)
    with pytest.raises(ArgumentError, match=r"cannot be compared: \(20, 8\) and \(20, 9\)"):
        drift_between(a, random_outputs(1, size=9))
    other = Outputs(a.vectors, np.zeros((30, 17), np.float32))
    with pytest.raises(ArgumentError, match="different vocabularies"):
        drift_between(a, other)
    few = random_outputs(0, texts=5)
    assert drift_between(few, few).neighbour_overlap is None
    assert drift_between(a, Outputs(a.vectors, None)).kl is None


def test_memory_of_log_probabilities_is_bounded(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = GritLM(tiny_model)
    monkeypatch.setattr(drift, "_KEPT_BYTES", 4 * 384 * 64 * 2)
    found = outputs_of(model).log_probabilities
    assert found is not None and found.shape == (2 * 64, 384)
