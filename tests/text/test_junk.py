"""What is left out as junk, and what is not."""

from __future__ import annotations

import base64
import random

import pytest

from grit_mlx.text.blocks import Block, Notes
from grit_mlx.text.junk import is_junk_file, without_junk

BYTES = random.Random(1).randbytes(60_000)
PROSE = "A keel keeps a ship upright in the wind, and ropes hold the mast. "


def kept(text: str, *, by_line: bool = True) -> tuple[list[Block], dict[str, int]]:
    notes = Notes()
    block = Block(text, 10, 10 + text.count("\n"), by_line=by_line)
    return list(without_junk([block], notes)), {kind: count for kind, count in notes.left_out.items() if count}


def test_base64_is_left_out_and_lines_stay_right() -> None:
    wrapped = base64.encodebytes(BYTES).decode().rstrip("\n")
    found, left_out = kept(f"Before.\n{wrapped}\nAfter it\nand on.")
    last = 10 + wrapped.count("\n") + 1
    assert found == [
        Block("Before.", 10, 10, by_line=True),
        Block("After it\nand on.", last + 1, last + 2, by_line=True),
    ]
    assert left_out == {"data": len(wrapped) - wrapped.count("\n")}
    single = base64.b64encode(BYTES).decode()
    assert kept(f"See\n{PROSE}{single};\nmore")[0][0].text == f"See\n{PROSE}\nmore"
    assert kept(single) == ([], {"data": len(single)})


def test_data_uris_are_left_out() -> None:
    image = "data:image/png;base64," + base64.b64encode(BYTES[:90]).decode()
    found, left_out = kept(f"See ![the ship]({image}) here.", by_line=False)
    assert [block.text for block in found] == ["See ![the ship]() here."]
    assert left_out == {"data": len(image)}


def test_minified_code_is_left_out() -> None:
    code = "!function(e,t){var n=e.document;return t?n.createElement(t):null}(window,document);" * 20
    assert kept(f"/*! License: MIT */\n{code}") == (
        [Block("/*! License: MIT */", 10, 10, by_line=True)],
        {"minified": len(code)},
    )


@pytest.mark.parametrize("text", ["-" * 80, "* * *", "1 2 3 4 5 " * 30, "— · —"])
def test_letterless_runs_are_left_out(text: str) -> None:
    assert kept(text) == ([], {"letterless": len(text)})


@pytest.mark.parametrize(
    "text",
    [
        PROSE * 300, "東京は日本の首都です。" * 200, "กรุงเทพเป็นเมืองหลวงของประเทศไทย" * 40, "1999", "Chapter 3", "x = 1",
        "Donaudampfschifffahrtsgesellschaft " * 10,
        "https://example.org/a/long/path?with=many&parameters=" + "x" * 60, "서울은한국의수도입니다" * 40,
        '{"title": "Ships", "text": "A keel keeps a ship upright", "tags": ["a", "b"]} ' * 40,
    ],
)  # fmt: skip
def test_text_stays(text: str) -> None:
    assert kept(text) == ([Block(text, 10, 10, by_line=True)], {})


def test_three_long_lines_are_not_yet_data() -> None:
    hashes = "\n".join("0123456789abcdef" * 4 for _ in range(3))
    assert kept(hashes)[1] == {}


def test_headings_stay() -> None:
    notes = Notes()
    assert list(without_junk([Block("…", 1, 1, level=1)], notes)) == [Block("…", 1, 1, level=1)]


@pytest.mark.parametrize(
    ("name", "junk"),
    [("package-lock.json", True), ("a/Cargo.lock", True), ("jquery.min.js", True), ("x.css.map", True),
     ("go.sum", True), ("package.json", False), ("locks.md", False), ("admin.js", False), ("min.js", False)],
)  # fmt: skip
def test_files_that_are_junk_by_name(name: str, junk: bool) -> None:
    assert is_junk_file(name) is junk
