"""Whether a question found anything: unrelated ones are refused and related ones answered, with the built-in model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from grit_mlx import GritLM
from grit_mlx.rag import Store
from grit_mlx.rag.relevance import NEEDED, Unrelated, coverage, relevance

ROOT = Path(__file__).parents[2]


def test_a_cosine_is_measured_by_those_of_unrelated_questions() -> None:
    unrelated = Unrelated.of([0.8, 0.7, 0.9, 0.95])
    assert unrelated.median == pytest.approx(0.85)
    assert unrelated.spread == pytest.approx(((0.05**2 + 0.15**2) / 2) ** 0.5)
    one = Unrelated(0.8, 0.01)
    assert relevance(0.8, 0.5, one) == pytest.approx(0.5)
    assert relevance(0.88, 0.0, one) == pytest.approx(1.0)
    assert relevance(0.8, 1.0, one) > NEEDED > relevance(0.8, 0.5, one)
    assert abs(relevance(0.81, 0.5, Unrelated(0.8, 0.0))) < 1  # a model whose vectors are all alike


def test_coverage_is_by_weight() -> None:
    weights = {"boiler": 6.0, "serviced": 3.0, "year": 1.0}
    assert coverage(weights, "The boiler is serviced once a year.") == 1
    assert coverage(weights, "A good year for wine.") == pytest.approx(0.1)
    assert coverage(weights, "It was serviced.") == pytest.approx(0.3)
    # Of "serviced" three parts of five are in "servicing".
    assert coverage(weights, "Servicing boilers, year by year") == pytest.approx(0.1 + 0.6 + 0.3 * (3 / 5) ** 2)
    assert coverage({}, "text") == 0 == coverage(weights, "")


@pytest.fixture(scope="module")
def documentation(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("documentation") / "store", GritLM(mode="embedding"))
    store.index([ROOT / "docs", ROOT / "README.md"])
    return store


@pytest.mark.parametrize("method", ["hybrid", "rrf"])
def test_unrelated_questions_are_refused_and_related_ones_answered(documentation: Store, method: str) -> None:
    questions = json.loads((ROOT / "benchmarks" / "ranking.json").read_text(encoding="utf-8"))["grit-mlx"]
    related = [question for question, _ in questions["related"]]
    refused = [one for one in related if not documentation.search(one, top=4, method=method).relevant]
    answered = [one for one in questions["unrelated"] if documentation.search(one, top=4, method=method).relevant]
    assert len(refused) <= 1 and len(answered) <= 1, (refused, answered)


def test_what_relevance_is_stays_with_the_results(documentation: Store) -> None:
    results = documentation.search("How do I merge a LoRA adapter into the weights?", top=4)
    value = results.relevance
    assert value is not None and value > NEEDED
    fewer = replace(results, results=results.results[-1:])
    assert fewer.relevance == value and not replace(results, results=[]).relevant
    assert documentation.search("adapter", method="bm25").relevance is None
    assert not documentation.search("adapter", min_score=1.0).relevant
    assert documentation.search("xyzzy", min_score=-1).relevant
