"""Blocks to chunks: sizes, places, headings, overlaps, headers of tables."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grit_mlx.errors import ArgumentError
from grit_mlx.text.blocks import Block, table_blocks
from grit_mlx.text.packing import Chunk, count_words, pack


def characters(text: str) -> int:
    return len(text)


def block(text: str, first: int = 1, last: int | None = None, **fields: object) -> Block:
    return Block(text, first, first if last is None else last, **fields)  # type: ignore[arg-type]


def test_chunks_have_the_places_of_their_blocks() -> None:
    blocks = [block(f"Text of page{number} here.", number) for number in range(1, 9)]
    assert list(pack(blocks, size=8)) == [
        Chunk("\n\n".join(f"Text of page{n} here." for n in (first, first + 1)), first, first + 1)
        for first in range(1, 9, 2)
    ]


def test_parts_of_a_block_have_its_place() -> None:
    text = "One two three.\nFour five six.\nSeven eight nine."
    page = list(pack([block(text, 3)], size=3))
    assert [(chunk.text, chunk.first, chunk.last) for chunk in page] == [
        ("One two three.", 3, 3), ("Four five six.", 3, 3), ("Seven eight nine.", 3, 3),
    ]  # fmt: skip
    lines = list(pack([block(text, 3, 5, by_line=True)], size=3))
    assert [(chunk.first, chunk.last) for chunk in lines] == [(3, 3), (4, 4), (5, 5)]
    wrapped = list(pack([block("A\nb c. D\ne f", 3, 5, by_line=True)], size=3))
    assert [(chunk.text, chunk.first, chunk.last) for chunk in wrapped] == [("A\nb c.", 3, 4), ("D\ne f", 4, 5)]


def test_headings_stand_above() -> None:
    blocks = [
        block("Ships", 1, level=1), block("A keel keeps a ship upright.", 2), block("Rigging", 3, level=2),
        block("The mast carries the sails.", 4), block("Ropes hold the mast in the wind.", 5),
        block("# Bread", 6, level=1, title="Bread"), block("Yeast eats sugar.", 7), block("It breathes out gas.", 8),
    ]  # fmt: skip
    assert list(pack(blocks, size=8)) == [
        Chunk("Ships\n\nA keel keeps a ship upright.", 1, 2),
        Chunk("Rigging\n\nThe mast carries the sails.", 3, 4, ("Ships",)),
        Chunk("Ropes hold the mast in the wind.", 5, 5, ("Ships", "Rigging")),
        Chunk("# Bread\n\nYeast eats sugar.", 6, 7),
        Chunk("It breathes out gas.", 8, 8, ("Bread",)),
    ]


def test_what_looks_like_a_heading_is_none() -> None:
    blocks = [block("# comment", verbatim=True), block("one two three four five six", 2)]
    assert [chunk.headings for chunk in pack(blocks, size=6)] == [(), ()]


def test_headings_do_not_end_a_chunk() -> None:
    blocks = [block("one two three four", 1), block("Title", 2, level=1), block("five six seven", 3)]
    assert [chunk.text for chunk in pack(blocks, size=9)] == ["one two three four\n\nTitle\n\nfive six seven"]
    assert [chunk.text for chunk in pack(blocks, size=6)] == ["one two three four", "Title\n\nfive six seven"]
    only = [block("One", 1, level=1), block("Two", 2, level=2)]
    assert [(chunk.text, chunk.headings) for chunk in pack(only, size=1)] == [("Two", ("One",))]


def test_no_chunk_is_a_heading_alone() -> None:
    above = [block("One", 1, level=1), block("Two", 2, level=2)]
    body = block("three four five six", 3)
    assert [(chunk.text, chunk.headings) for chunk in pack([*above, body], size=4)] == [
        ("three four five six", ("One", "Two"))
    ]
    assert [(chunk.text, chunk.headings) for chunk in pack([*above, body], size=5)] == [
        ("Two\n\nthree four five six", ("One",))
    ]
    end = block("End", 4, level=1)
    assert [(chunk.text, chunk.first, chunk.last) for chunk in pack([body, end], size=5)] == [
        ("three four five six\n\nEnd", 3, 4)
    ]
    assert [chunk.text for chunk in pack([body, end], size=4)] == ["three four five six"]
    titles = [block(f"Title {number}", number, level=1) for number in range(1, 9)]
    assert [chunk.text for chunk in pack(titles, size=8)] == [
        "\n\n".join(f"Title {number}" for number in numbers) for numbers in (range(1, 4), range(4, 7), range(7, 9))
    ]


def test_a_listing_that_is_cut_repeats_its_fence() -> None:
    code = block("```python\na = 1\nb = 2\nc = 3\n```", 4, 8, by_line=True, verbatim=True)
    assert [(chunk.text, chunk.first, chunk.last) for chunk in pack([code], size=7)] == [
        ("```python\na = 1\nb = 2", 4, 6),
        ("```python\nc = 3\n```", 7, 8),
    ]


def test_sentences_go_on_after_abbreviations() -> None:
    text = "See J. Smith, e.g. Dr. Jones vs. all. A new one, etc. and so on. The end."
    assert [chunk.text for chunk in pack([block(text)], size=8)] == [
        "See J. Smith, e.g. Dr. Jones vs. all.",
        "A new one, etc. and so on.",
        "The end.",
    ]
    small = "we write small letters only. it is the way. so it goes on and on."
    assert next(chunk.text for chunk in pack([block(small)], size=11)) == "we write small letters only. it is the way."


def test_overlaps_are_complete_sentences() -> None:
    text = "One two three four. Five six seven eight. Nine ten eleven twelve. Thirteen."
    chunks = [chunk.text for chunk in pack([block(text)], size=8, overlap=4)]
    assert chunks == [
        "One two three four. Five six seven eight.",
        "Five six seven eight. Nine ten eleven twelve.",
        "Nine ten eleven twelve. Thirteen.",
    ]
    assert [chunk.text for chunk in pack([block(text)], size=8, overlap=3)] == [
        "One two three four. Five six seven eight.",
        "Nine ten eleven twelve. Thirteen.",
    ]


def test_overlaps_do_not_begin_in_a_sentence_or_in_code() -> None:
    long = block("a b c d e f g h i j k l m n o p. Then this.", 1)
    assert [chunk.text for chunk in pack([long], size=6, overlap=3)][-1] == "m n o p. Then this."
    code = [block("```\nx = 1.\ny = 2.\n```", 1, 4, verbatim=True, by_line=True), block("Five words are too many.", 5)]
    assert [chunk.text for chunk in pack(code, size=8, overlap=7)] == [
        "```\nx = 1.\ny = 2.\n```",
        "Five words are too many.",
    ]


def test_code_is_cut_between_lines() -> None:
    code = block("a = 1\n\nb = 2\nc = 3", 4, 7, by_line=True, verbatim=True)
    assert [(chunk.text, chunk.first, chunk.last) for chunk in pack([code], size=6)] == [
        ("a = 1\n\nb = 2", 4, 6), ("c = 3", 7, 7),
    ]  # fmt: skip


def test_the_header_of_a_table_is_repeated() -> None:
    rows = table_blocks([(["Name", "Town"], 1, 1), *((["Ada", f"Rome{n}"], n, n) for n in range(2, 8))], header_rows=1)
    chunks = list(pack(rows, size=9))
    assert [(chunk.text, chunk.first, chunk.last) for chunk in chunks] == [
        ("Name | Town\nAda | Rome2\nAda | Rome3", 1, 3),
        ("Name | Town\nAda | Rome4\nAda | Rome5", 4, 5),
        ("Name | Town\nAda | Rome6\nAda | Rome7", 6, 7),
    ]
    assert [chunk.text for chunk in pack(rows, size=4)][1] == "Ada | Rome2"  # no room for it


def test_few_measurements_are_made() -> None:
    measured = 0

    def measure(text: str) -> int:
        nonlocal measured
        measured += len(text)
        return len(text) // 4 + 1

    line = "x" * 200_000
    assert len(list(pack([block(line)], size=100, measure=measure))) > 400
    assert measured < 5 * len(line)
    measured = 0
    paragraphs = [block("word " * 20, number) for number in range(1, 2000)]
    list(pack(paragraphs, size=256, measure=measure))
    assert measured < 4 * 2000 * 100


@pytest.mark.parametrize(("size", "overlap"), [(0, 0), (4, 4), (4, -1)])
def test_sizes_that_cannot_work(size: int, overlap: int) -> None:
    with pytest.raises(ArgumentError):
        list(pack([], size=size, overlap=overlap))


TEXTS = st.text(alphabet="ab. \n!?。語1", min_size=1, max_size=120).filter(lambda text: text.strip() != "")


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(TEXTS, st.integers(0, 3), st.booleans(), st.booleans()), max_size=12),
    st.integers(1, 40),
    st.integers(0, 20),
    st.sampled_from([count_words, characters]),
)
def test_nothing_is_lost_and_all_is_in_place(
    drawn: list[tuple[str, int, bool, bool]], size: int, overlap: int, measure: object
) -> None:
    """Every chunk keeps to its size; without overlap the chunks are the document; lines are where they say."""
    blocks, line = [], 1
    for text, level, verbatim, by_line in drawn:
        text = text.strip()[:1] if level else text.strip()
        last = line + text.count("\n") if by_line else line
        blocks.append(Block(text, line, last, level=level, verbatim=verbatim, by_line=by_line))
        line = last + 1
    document: dict[int, str] = {}
    for one in blocks:
        for number, content in enumerate(one.text.split("\n") if one.by_line else [one.text], start=one.first):
            document[number] = content
    measured = count_words if measure is count_words else characters
    chunks = list(pack(blocks, size=size, overlap=min(overlap, size - 1), measure=measured))
    for chunk in chunks:
        assert measured(chunk.text) <= size or len(chunk.text) == 1
        there = "".join(document[number] for number in range(chunk.first, chunk.last + 1))
        assert re.sub(r"\s", "", chunk.text) in re.sub(r"\s", "", there)
    if overlap == 0:
        kept = re.sub(r"\s", "", "".join(chunk.text for chunk in chunks))
        headings = "".join(f"{re.escape(one.text)}{'?' if one.level else ''}" for one in blocks)
        assert re.fullmatch(re.sub(r"\\?\s", "", headings), kept)
    firsts = [chunk.first for chunk in chunks]
    assert firsts == sorted(firsts)
