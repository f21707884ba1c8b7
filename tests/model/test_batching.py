from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from grit_mlx.model.batching import halve, plan_batches, windows


@given(st.lists(st.integers(1, 600), max_size=200), st.integers(1, 4000), st.one_of(st.none(), st.integers(1, 20)))
def test_every_text_once_within_the_budget(lengths: list[int], budget: int, max_rows: int | None) -> None:
    batches = plan_batches(lengths, token_budget=budget, max_rows=max_rows)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[i] for i in batch)
        assert len(batch) == 1 or len(batch) * longest <= budget
        assert max_rows is None or len(batch) <= max_rows
    # Longest first, over the whole plan.
    order = [lengths[i] for batch in batches for i in batch]
    assert order == sorted(lengths, reverse=True)


def test_batches_are_full() -> None:
    assert plan_batches([4] * 10, token_budget=16) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert plan_batches([100, 1, 1], token_budget=8) == [[0], [1, 2]]
    assert plan_batches([], token_budget=8) == []


def test_halve() -> None:
    assert halve([1, 2, 3]) == [[1, 2], [3]]
    assert halve([1]) == [[1]]


@given(st.lists(st.text(max_size=20)), st.integers(1, 7), st.integers(1, 40))
def test_windows_keep_order_and_are_lazy(texts: list[str], most: int, characters: int) -> None:
    taken = 0

    def count() -> object:
        nonlocal taken
        for text in texts:
            taken += 1
            yield text

    seen: list[str] = []
    for window in windows(count(), max_texts=most, max_characters=characters):  # type: ignore[arg-type]
        seen += window
        assert 1 <= len(window) <= most
        assert sum(map(len, window[:-1])) < characters
        assert taken == len(seen)
    assert seen == texts
