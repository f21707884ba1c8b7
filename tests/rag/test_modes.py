"""What each mode is predicted to cost, and which one ``auto`` takes."""

from __future__ import annotations

import pytest

from grit_mlx.errors import ArgumentError
from grit_mlx.rag import RagOptions
from grit_mlx.rag.modes import AUTO_MODES, MODES, DocumentCost, Rates, choose_mode, predicted_seconds

RATES = Rates(token=1e-3, pair=1e-8, byte=1e-10)


def seconds(mode: str, document: DocumentCost, query: DocumentCost) -> float:
    return predicted_seconds(mode, [document], query, RATES, frame=0)


def test_what_is_cached_costs_only_its_bytes() -> None:
    document, query = DocumentCost(1000, True, 10_000_000), DocumentCost(10, True)
    assert seconds("doc-query", document, query) == pytest.approx(1e-3)
    assert seconds("doc", document, query) == pytest.approx(1e-3 + RATES.run(10, 1000))
    assert seconds("query", document, query) == pytest.approx(RATES.run(1000, 10))
    assert seconds("none", document, query) == pytest.approx(RATES.run(1010))


@pytest.mark.parametrize(
    ("document", "query", "mode"),
    [
        (DocumentCost(4000, True), DocumentCost(20, True), "doc"),
        (DocumentCost(20, True), DocumentCost(4000, True), "query"),
        (DocumentCost(4000, False), DocumentCost(20, True), "doc"),  # no dearer than without, and kept for the next
        (DocumentCost(4000, True, 100_000_000_000), DocumentCost(4000, False), "none"),  # a disk slower than computing
    ],
)
def test_auto_takes_the_cheapest(document: DocumentCost, query: DocumentCost, mode: str) -> None:
    assert choose_mode([document], query, RATES) == mode


def test_auto_is_never_dearer_than_the_best_by_more_than_its_tie() -> None:
    for length in (1, 256, 4000):
        for asked in (1, 256, 4000):
            for cached in (True, False):
                document, query = DocumentCost(length, cached, 1000 * length), DocumentCost(asked, True)
                predicted = {mode: predicted_seconds(mode, [document], query, RATES) for mode in AUTO_MODES}
                assert predicted[choose_mode([document], query, RATES)] <= 1.05 * min(predicted.values())


def test_modes_with_both_sides_cached_are_for_those_who_ask() -> None:
    assert set(AUTO_MODES) < set(MODES)
    with pytest.raises(ArgumentError, match="Unknown cache 'document'"):
        RagOptions(cache="document")
