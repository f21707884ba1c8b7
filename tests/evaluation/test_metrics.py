"""Scores of rankings against trec_eval and correlations against SciPy, where they are installed; and by hand."""

from __future__ import annotations

import numpy as np
import pytest

from grit_mlx.evaluation.metrics import ndcg, pearson, ranked, ranks, recall, reciprocal_rank, spearman


def test_ndcg() -> None:
    assert ndcg(["a", "b"], {"a": 1}) == 1
    assert ndcg(["b", "a"], {"a": 1}) == pytest.approx(1 / np.log2(3))
    assert ndcg(["b"], {"a": 1}) == 0 and ndcg(["a"], {}) == 0 and ndcg(["a"], {"a": 0, "b": -1}) == 0
    graded = (1 / np.log2(2) + 2 / np.log2(3)) / (2 / np.log2(2) + 1 / np.log2(3))
    assert ndcg(["a", "b"], {"a": 1, "b": 2}) == pytest.approx(graded)
    assert ndcg([*"cdefghijkl", "a"], {"a": 1}) == 0, "beyond the tenth"


def test_first_hit_and_recall() -> None:
    relevant = {"a": 1, "b": 2, "c": 0, "x": -1}
    assert reciprocal_rank(["c", "x", "b", "a"], relevant) == pytest.approx(1 / 3)
    assert reciprocal_rank(["c", "x", "b", "a"], relevant, depth=2) == 0
    assert recall(["c", "b"], relevant) == 0.5 and recall(["a", "b"], relevant, depth=1) == 0.5
    assert recall(["a"], {}) == 0


def test_equal_scores_are_ordered_as_trec_eval_does() -> None:
    assert ranked({"a": 1, "c": 1, "b": 2, "B": 1}) == ["b", "c", "a", "B"]


@pytest.mark.parametrize("seed", range(3))
def test_trec_eval_finds_the_same(seed: int) -> None:
    trec_eval = pytest.importorskip("pytrec_eval", reason="needs pytrec-eval-terrier, of the extra dev")
    rng = np.random.default_rng(seed)
    documents = [f"d{i}" for i in range(40)]
    judged, run = {}, {}
    for number in range(30):
        some = rng.choice(documents, size=rng.integers(1, 20), replace=False)
        judged[f"q{number}"] = {str(one): int(rng.integers(-1, 4)) for one in some} | {"d0": 1}
        some = rng.choice(documents, size=rng.integers(1, 40), replace=False)
        # Few different scores, so that many are equal.
        run[f"q{number}"] = {str(one): float(rng.integers(0, 6)) for one in some}
    measures = {"ndcg_cut.1,5,10", "recall.1,5,10", "recip_rank"}
    expected = trec_eval.RelevanceEvaluator(judged, measures).evaluate(run)
    for query, scores in run.items():
        ranking = ranked(scores)
        for depth in (1, 5, 10):
            assert ndcg(ranking, judged[query], depth=depth) == pytest.approx(expected[query][f"ndcg_cut_{depth}"])
            assert recall(ranking, judged[query], depth=depth) == pytest.approx(expected[query][f"recall_{depth}"])
        assert reciprocal_rank(ranking, judged[query], depth=99) == pytest.approx(expected[query]["recip_rank"])


def test_spearman() -> None:
    assert ranks([3, 1, 2, 2]).tolist() == [4, 1, 2.5, 2.5]
    assert spearman([1, 2, 3], [10, 20, 25]) == pytest.approx(1)
    assert spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert spearman([1, 1], [1, 2]) == 0 and pearson([1, 1], [1, 2]) == 0
    # scipy.stats.spearmanr([1, 2, 2, 4, 5], [2, 1, 3, 5, 4])
    assert spearman([1, 2, 2, 4, 5], [2, 1, 3, 5, 4]) == pytest.approx(0.7181848464596079)


def test_scipy_finds_the_same() -> None:
    stats = pytest.importorskip("scipy.stats", reason="needs SciPy, of the extra dev")
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 9, 200) / 8, rng.normal(size=200)
    second += first
    assert spearman(first, second) == pytest.approx(stats.spearmanr(first, second).statistic)
    assert pearson(first, second) == pytest.approx(stats.pearsonr(first, second).statistic)
