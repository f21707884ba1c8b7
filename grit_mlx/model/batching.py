"""Which texts go through the model together: sorted by length, cut by a budget of tokens (pure functions).

A batch costs rows x its longest row. Sorting puts rows of nearly equal length together, so that almost nothing
is spent on padding; the budget bounds memory, whatever the lengths are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

__all__ = ["halve", "plan_batches", "windows"]


# Texts that are tokenised and sorted together. Large, so that little is lost at the borders; bounded, so that
# the memory of a stream of any length stays the same.
WINDOW_TEXTS = 8192
WINDOW_CHARACTERS = 32_000_000

# A batch may be closed before its budget is full once it holds this part of it, which keeps a device busy ...
_ENOUGH = 1 / 8
# ... if the next text would make padding a larger part of the batch than this.
_PADDING = 0.05


def plan_batches(lengths: Sequence[int], *, token_budget: int, max_rows: int | None = None) -> list[list[int]]:
    """Positions of the texts, batch by batch, longest first.

    Longest first: if memory runs out it does so at once, and estimates of the remaining time are never too short.

    Args:
        lengths: tokens of each text.
        token_budget: maximum number of tokens of a batch, padding included. A longer text is a batch of its own.
        max_rows: maximum number of texts of a batch; None for no limit.

    Returns:
        Every position from 0 to ``len(lengths) - 1`` once.
    """
    batches: list[list[int]] = []
    batch: list[int] = []
    longest = useful = 0
    for position in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        computed = (len(batch) + 1) * longest
        padded = computed > _ENOUGH * token_budget and useful + lengths[position] < (1 - _PADDING) * computed
        if not batch or computed > token_budget or len(batch) == max_rows or padded:
            batch, longest, useful = [], lengths[position], 0
            batches.append(batch)
        batch.append(position)
        useful += lengths[position]
    return batches


def halve(batch: Sequence[int]) -> list[list[int]]:
    """A batch that did not fit into memory, as two; one text alone stays as it is."""
    middle = (len(batch) + 1) // 2
    return [part for part in (list(batch[:middle]), list(batch[middle:])) if part]


def windows(
    texts: Iterable[str], *, max_texts: int | None = None, max_characters: int | None = None
) -> Iterator[list[str]]:
    """Consecutive groups of texts that fit into memory together, for corpora that do not.

    Args:
        texts: any iterable; it is read once, as the windows are taken.
        max_texts: maximum number of texts of a window; None for ``WINDOW_TEXTS``.
        max_characters: a window ends once it holds this many characters; None for ``WINDOW_CHARACTERS``.
    """
    max_texts = WINDOW_TEXTS if max_texts is None else max_texts
    max_characters = WINDOW_CHARACTERS if max_characters is None else max_characters
    window: list[str] = []
    characters = 0
    for text in texts:
        window.append(text)
        characters += len(text)
        if len(window) == max_texts or characters >= max_characters:
            yield window
            window, characters = [], 0
    if window:
        yield window
