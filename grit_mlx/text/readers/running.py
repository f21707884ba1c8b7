"""Lines of pages without what is repeated around them: running heads and feet, page numbers (pure functions).

A line is running if the page before, or the one before that (left and right pages differ), has it at the same height,
but for a page number that counts on; below the first row it takes both. Only the outermost rows of a page are looked
at, from outside as far as they are running, and never those of a page with few lines. The first of equal lines stays,
so no words are lost.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Final, NamedTuple

__all__ = ["Line", "RunningLines"]


class Line(NamedTuple):
    """A line of a page; its box in points, from the lower left corner of the page."""

    text: str
    left: float
    right: float
    bottom: float
    height: float


# Rows at the top and at the bottom that may be running, and lines that a page has where any is.
_ROWS: Final = 3
_FEWEST_LINES: Final = 8
# Pages back that are compared.
_PAGES: Final = 2

_ROMAN: Final = {"i": 1, "v": 5, "x": 10, "l": 50, "c": 100}
_NUMBER: Final = re.compile(r"\d+|(?<!\S)[ivxlc]+(?!\S)")
_SENTENCE_END: Final = (".", "!", "?", "。")


class RunningLines:
    """Takes the running lines out of pages that come one after the other."""

    def __init__(self) -> None:
        self._pages: list[tuple[int, list[Line]]] = []

    def without(self, lines: Sequence[Line], page: int, *, keep: Callable[[Line], bool]) -> list[Line]:
        """The lines of a page without running ones, in their order.

        Args:
            lines: the page's.
            page: its number.
            keep: whether a line stays unless it is word for word, number for number, the one before.
        """
        rows = _rows(lines)
        edges = [rows[:_ROWS], rows[: -_ROWS - 1 : -1]]
        before = self._pages
        self._pages = [*before[1 - _PAGES :], (page, list(chain.from_iterable(chain.from_iterable(edges))))]
        if len(lines) < _FEWEST_LINES:
            return list(lines)
        running: set[Line] = set()
        for edge in edges:
            for depth, row in enumerate(edge):
                # Further inside it takes more to tell it from text that two pages happen to have there.
                enough = _PAGES if depth else 1
                found = [line for line in row if _times(line, page, before, keep) >= enough]
                running.update(found)
                if len(found) < len(row):
                    break
        return [line for line in lines if line not in running]


def _rows(lines: Iterable[Line]) -> list[list[Line]]:
    """Lines by their height on the page, from the top."""
    rows: list[list[Line]] = []
    for line in sorted(lines, key=lambda line: -line.bottom):
        if rows and rows[-1][0].bottom - line.bottom < 0.5 * line.height:
            rows[-1].append(line)
        else:
            rows.append([line])
    return rows


def _times(line: Line, page: int, before: Iterable[tuple[int, Sequence[Line]]], keep: Callable[[Line], bool]) -> int:
    """How many of the pages before have a line, or one that only counts less."""
    return sum(
        any(
            abs(other.bottom - line.bottom) < 0.5 * line.height
            and (other.text == line.text or (not keep(line) and _counts_on(other.text, line.text, page - number)))
            for other in lines
        )
        for number, lines in before
    )


def _counts_on(before: str, text: str, pages: int) -> bool:
    """Whether two lines differ by one number alone, which counts as many pages on."""
    if text.endswith(_SENTENCE_END) or _NUMBER.sub("#", before) != _NUMBER.sub("#", text):
        return False
    steps = [_value(new) - _value(old) for old, new in zip(_NUMBER.findall(before), _NUMBER.findall(text), strict=True)]
    return sorted(steps, key=bool) == [*[0] * (len(steps) - 1), pages]


def _value(number: str) -> int:
    if number.isdigit():
        return int(number)
    values = [_ROMAN[letter] for letter in number]
    return sum(-one if one < following else one for one, following in zip(values, [*values[1:], 0], strict=True))
