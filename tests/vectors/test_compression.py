"""Storage precisions, cosine similarity and exact search."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from grit_mlx.errors import ArgumentError
from grit_mlx.vectors.compression import DTYPES, CompressedVectors, compress, cosine, top_k

Array = npt.NDArray[np.float32]

VECTORS = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=20),
    elements=st.floats(-1e4, 1e4, width=32, allow_subnormal=False),
)


def unit(rows: int, dimensions: int, seed: int = 0) -> Array:
    vectors = np.random.default_rng(seed).standard_normal((rows, dimensions)).astype(np.float32)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def compressed(vectors: npt.ArrayLike, dtype: str) -> CompressedVectors:
    stored = compress(vectors, dtype)
    assert isinstance(stored, CompressedVectors)
    return stored


# --- precisions ---------------------------------------------------------------------------------------------


@given(VECTORS)
def test_floats_keep_their_numbers(vectors: Array) -> None:
    np.testing.assert_array_equal(compress(vectors, "float32"), vectors)
    half = compress(vectors, "float16")
    assert isinstance(half, np.ndarray)
    assert half.dtype == np.float16
    error = np.abs(half.astype(np.float32) - vectors)
    assert (error <= np.maximum(np.abs(vectors) * 2.0**-11, 2.0**-25)).all()


@given(VECTORS)
def test_int8_error_is_bounded(vectors: Array) -> None:
    stored = compressed(vectors, "int8")
    back = stored.decompress()
    assert back.dtype == np.float32
    assert back.shape == vectors.shape
    bound = np.abs(vectors).max(axis=1, initial=0, keepdims=True) / 254
    assert (np.abs(back - vectors) <= bound * (1 + 1e-5)).all()
    np.testing.assert_array_equal(compressed(-vectors, "int8").values, -stored.values)


@given(VECTORS)
def test_binary_keeps_signs_and_error_is_bounded(vectors: Array) -> None:
    stored = compressed(vectors, "binary")
    back = stored.decompress()
    assert back.dtype == np.float32
    assert back.shape == vectors.shape
    assert ((back >= 0) == (vectors >= 0))[stored.scales > 0].all()
    magnitudes = np.abs(vectors).astype(np.float64)
    means = magnitudes.mean(axis=1, keepdims=True) if vectors.size else np.zeros((len(vectors), 1))
    bound = np.maximum(means, magnitudes.max(axis=1, initial=0, keepdims=True) - means)
    assert (np.abs(back - vectors) <= bound * (1 + 1e-5)).all()


def test_binary_scale_is_the_best_one() -> None:
    vector = unit(1, 99)
    stored = compressed(vector, "binary")
    signs = np.sign(vector)
    error = {scale: float(((vector - scale * signs) ** 2).sum()) for scale in np.linspace(0.01, 0.3, 1000)}
    assert min(error, key=lambda scale: error[scale]) == pytest.approx(float(stored.scales[0]), abs=1e-3)


def test_int8_and_binary_stay_close_to_unit_vectors() -> None:
    vectors = unit(50, 768)
    same = {dtype: np.diag(cosine(vectors, compressed(vectors, dtype).decompress())) for dtype in ("int8", "binary")}
    assert same["int8"].min() > 0.9999
    assert same["binary"].min() > 0.75  # sqrt(2 / pi) = 0.80 for normally distributed numbers


def test_sizes() -> None:
    vectors = unit(3, 4096)
    assert compressed(vectors, "int8").nbytes == 3 * 4100
    assert compressed(vectors, "binary").nbytes == 3 * 516


def test_zero_vectors_stay_zero() -> None:
    for dtype in ("int8", "binary"):
        stored = compressed(np.zeros((2, 9)), dtype)
        assert not stored.decompress().any()
        assert not stored.scales.any()


def test_subnormal_numbers_do_not_overflow() -> None:
    tiny = np.full((1, 4), 1e-44, np.float32)
    assert np.abs(compressed(tiny, "int8").decompress() - tiny).max() < 1e-43


def test_rows_and_length() -> None:
    vectors = unit(7, 9)
    for dtype in ("int8", "binary"):
        stored = compressed(vectors, dtype)
        assert len(stored) == 7
        np.testing.assert_array_equal(stored[2:5].decompress(), stored.decompress()[2:5])
        single = CompressedVectors(stored.values[0], stored.scales[0], dtype, 9)
        np.testing.assert_array_equal(single.decompress(), stored.decompress()[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_what_is_not_finite_is_refused(dtype: str, bad: float) -> None:
    with pytest.raises(ArgumentError, match=r"NaN or infinity at the index \(1, 2\)"):
        compress([[0.0, 0.0, 0.0], [0.0, 0.0, bad]], dtype)


def test_bad_arguments() -> None:
    with pytest.raises(ArgumentError, match="use one of float32, float16, int8, binary"):
        compress(unit(1, 2), "int4")
    with pytest.raises(ArgumentError, match=r"shape \(N, E\), but theirs is \(2,\)"):
        compress([1.0, 2.0], "int8")
    with pytest.raises(ArgumentError, match="too large for float16"):
        compress([[70000.0]], "float16")
    with pytest.raises(ArgumentError, match="must be an array of numbers"):
        compress([["a"]], "float32")
    with pytest.raises(ArgumentError, match="but not as 'float16'"):
        CompressedVectors(np.zeros((1, 2), np.int8), np.zeros(1, np.float32), "float16", 2)
    with pytest.raises(ArgumentError, match="No int8 vectors of 3 dimensions"):
        CompressedVectors(np.zeros((1, 2), np.int8), np.zeros(1, np.float32), "int8", 3)
    with pytest.raises(ArgumentError, match="No binary vectors of 9 dimensions"):
        CompressedVectors(np.zeros((1, 1), np.uint8), np.zeros(1, np.float32), "binary", 9)


# --- similarity ---------------------------------------------------------------------------------------------


def test_cosine_shapes_and_values() -> None:
    a, b = unit(3, 5), 2 * unit(4, 5, seed=1)
    expected = (a @ b.T) / 2
    np.testing.assert_allclose(cosine(a, b), expected, atol=1e-6)
    np.testing.assert_allclose(cosine(a[0], b), expected[0], atol=1e-6)
    np.testing.assert_allclose(cosine(a[0], b[1]), expected[0, 1], atol=1e-6)
    assert cosine(a[0], b[1]).shape == ()
    assert cosine(a, b).dtype == np.float32


@given(VECTORS)
def test_cosine_is_bounded_and_one_with_itself(vectors: Array) -> None:
    scores = cosine(vectors, vectors)
    assert (np.abs(scores) <= 1).all()
    np.testing.assert_allclose(np.diag(scores), np.any(vectors, axis=1), atol=1e-5)


def test_cosine_of_extreme_lengths() -> None:
    assert cosine([3e38, 0], [1e-40, 0]) == 1
    assert cosine([0.0, 0.0], [1.0, 0.0]) == 0


def test_cosine_refuses_other_shapes() -> None:
    with pytest.raises(ArgumentError, match=r"\(2,\) and \(3,\) cannot be compared"):
        cosine([1, 2], [1, 2, 3])


@given(st.integers(1, 30), st.integers(1, 40), st.integers(0, 5))
def test_top_k_agrees_with_a_full_sort(rows: int, k: int, seed: int) -> None:
    vectors = np.random.default_rng(seed).integers(-2, 3, (rows, 3)).astype(np.float32)  # many ties
    query = np.array([1, 2, -1], np.float32)
    indices, scores = top_k(query, vectors, k)
    exact = vectors @ query
    expected = sorted(range(rows), key=lambda index: (-exact[index], index))[:k]
    assert indices.tolist() == expected
    np.testing.assert_array_equal(scores, exact[indices])


@pytest.mark.parametrize("dtype", ["int8", "binary"])
def test_top_k_of_compressed_vectors_in_blocks(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grit_mlx.vectors.compression._SEARCH_ROWS", 7)
    vectors = unit(50, 64)
    indices, scores = top_k(vectors[33], compressed(vectors, dtype), 5)
    assert indices[0] == 33
    expected = compressed(vectors, dtype).decompress() @ vectors[33]
    np.testing.assert_allclose(scores, np.sort(expected)[::-1][:5], atol=1e-6)


def test_top_k_of_nothing() -> None:
    for nothing in (np.empty((0, 3), np.float32), compressed(np.empty((0, 3)), "int8")):
        indices, scores = top_k([1, 2, 3], nothing, 4)
        assert indices.shape == scores.shape == (0,)
        assert scores.dtype == np.float32


def test_top_k_refuses() -> None:
    with pytest.raises(ArgumentError, match="k must be at least 1"):
        top_k([1], [[1]], 0)
    with pytest.raises(ArgumentError, match=r"\(2,\) does not fit vectors of the shape \(1, 3\)"):
        top_k([1, 2], [[1, 2, 3]], 1)
    with pytest.raises(ArgumentError, match="query must be finite"):
        top_k([np.nan], [[1]], 1)
