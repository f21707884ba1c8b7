"""Text to sentences: what ends one, and what only looks as if it did."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grit_mlx.text.sentences import sentences


def split(text: str) -> list[str]:
    return [text[start:stop] for start, stop in sentences(text)]


@pytest.mark.parametrize(
    "expected",
    [
        ["A keel keeps a ship upright.", "It costs 3.14 euros.", "The end."],
        ["See e.g. Dr. Smith, p. 5 ff. of vol. 2.", "Then rest."],
        ["He said that, i.e. the captain of the U.S. Navy.", "We left."],
        ["They came at 5 p.m.", "The rest came later."],
        ["J. R. R. Tolkien wrote it.", "So did I.", "You know."],
        ["Ropes, sails etc. are kept below.", "The mast carries them."],
        ["It sank in 1984.", "Nobody knew."],
        ['"Stop!" he said.', "Yahoo! is a firm.", "Is it?", "Yes."],
        ['He said "No."', "Then he left.", "(He came back.)", "All was well."],
        ["Wait... what is it?", "Nothing."],
        ["the sails are torn.", "and again it rains."],
        ["Use `a. B` or `x?` here.", "See [the page](a.md#x.) for more.", "Done."],
        ["**Bold ends.**", "*So does this.*", "Plain."],
        ["Die Fahrt dauert ca. 5 Stunden, d. h. lange, z. B. nachts.", "Dann ist sie zu Ende."],
        ["Fig. 3 shows it.", "No. 5 is alive.", "He said no.", "Boats sank."],
        ["Version 2.0.1 is out.", "Get it at www.example.com today."],
    ],
)
def test_in_a_paragraph(expected: list[str]) -> None:
    assert split(" ".join(expected)) == expected
    # A line break inside a paragraph ends nothing.
    assert [" ".join(one.split()) for one in split("\n".join(" ".join(expected).split(" ")))] == expected


@pytest.mark.parametrize(
    "expected",
    [
        ["你好。", "他說：「走吧！」", "然後走了。"],  # noqa: RUF001
        ["船は浮く。", "なぜか？", "木だから。"],  # noqa: RUF001
        ["मैं जाता हूँ।", "वह आता है।"],
        ["هل هذا قارب؟", "نعم."],
    ],
)
def test_other_scripts(expected: list[str]) -> None:
    assert split("".join(expected)) == expected
    assert split(" ".join(expected)) == expected


def test_lists_and_paragraphs() -> None:
    text = "Take with you:\n\n1. A rope. Two are better.\n2. Bread\n- salt\n  and water\n\n\nThat is all"
    items = ["1. A rope.", "Two are better.", "2. Bread", "- salt\n  and water"]
    assert split(text) == ["Take with you:", *items, "That is all"]


@given(st.text(alphabet=st.sampled_from(list("aB1.!?。`()[]\"'\n -*<>")), max_size=80))
def test_nothing_is_lost_or_repeated(text: str) -> None:
    spans = list(sentences(text))
    assert all(start < stop for start, stop in spans)
    assert all(one[1] <= other[0] for one, other in pairwise(spans))
    assert "".join("".join(text[start:stop].split()) for start, stop in spans) == "".join(text.split())


def test_a_long_text_takes_time_in_proportion() -> None:
    """With one comparison for each pair of full stop and code, this would take minutes."""
    assert sum(1 for _ in sentences("See `a` and then go on. " * 60_000)) == 60_000
    assert sum(1 for _ in sentences("Q. " * 100_000)) == 1
