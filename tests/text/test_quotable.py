"""What of a document can be quoted, and with which place."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from grit_mlx.text.blocks import Block
from grit_mlx.text.quotable import Quotable, quotables
from grit_mlx.text.readers import read

PAGE = """\
# The harbour

[![build](https://x.io/b.svg)](https://x.io) ![logo](logo.png)

[Home](index.md) | [Guide](guide.md) | [News](news.md) · [Contact](contact.md)

The harbour opens at six. It closes
at ten in the evening.

## Mooring

| place | cost |
|---|---|
| quay | 5 euros |

- Tie the bow first, then the stern
- See [the rules](rules.md)
- [ ] Pay the harbour master.

> Ships over 20 metres
> need a pilot.

Moor with:

```sh
moor --bow --stern
```

<p align="center">

[link]: https://example.com "A title of three words."

---
"""


def of(tmp_path: Path, text: str, name: str = "page.md") -> list[Quotable]:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return list(quotables(read(path), code=path.suffix == ".py"))


def test_sentences_and_listings_with_their_lines(tmp_path: Path) -> None:
    found = of(tmp_path, PAGE)
    assert [(one.text, one.first, one.last) for one in found if one.is_complete] == [
        ("The harbour opens at six.", 7, 7),
        ("It closes at ten in the evening.", 7, 8),
        ("Tie the bow first, then the stern", 16, 16),
        ("Pay the harbour master.", 18, 18),
        ("Ships over 20 metres need a pilot.", 20, 21),
        ("moor --bow --stern", 26, 26),
    ]
    assert [one.is_code for one in found if one.is_complete] == [False] * 5 + [True]
    assert found[0].heading == "The harbour" and found[-1].heading == "The harbour Mooring"


@pytest.mark.parametrize(
    "markup",
    [
        "# A heading of five words.",
        "A heading of five words\n=======================",
        "| a | b | c |\n|---|---|---|\n| one row | of a | table. |",
        "[A](a.md), [B](b.md), [C](c.md), [D](d.md).",
        "- [A first page](a.md)\n- [A second page](b.md)\n- [A third page](c.md)",
        "<img src='x.png' alt='a picture of three words'>",
        "[^1]: ",
        "---",
        "* * *",
        "`a` `b` `c`.",
        "https://example.com/a/page/of/words",
    ],
)
def test_markup_is_not_quoted(tmp_path: Path, markup: str) -> None:
    assert not of(tmp_path, f"{markup}\n")


@pytest.mark.parametrize("line", ["1 " * 100_000 + "x y z", "." * 100_000 + "z", " ." * 100_000 + "z"])
def test_long_lines_are_read_in_time(line: str) -> None:
    begun = time.perf_counter()
    long = Block("\n".join([line] * 3), 1, 3, by_line=True)
    found = list(quotables([long, Block("A keel keeps a ship upright.", 4, 4)]))
    assert found[-1].text == "A keel keeps a ship upright."
    assert time.perf_counter() - begun < 20


def test_lines_without_an_end_are_marked(tmp_path: Path) -> None:
    found = of(tmp_path, "How to moor a ship\n\nboiler serviced in May\n\nIt is closed.\n", "notes.txt")
    assert [(one.text, one.is_complete) for one in found] == [
        ("How to moor a ship", False),
        ("boiler serviced in May", False),
        ("It is closed.", True),
    ]


def test_programs_are_quoted_by_their_comments(tmp_path: Path) -> None:
    program = (
        '"""Tides of the harbour.\n\nThey are computed by the hour.\n"""\n\n'
        "# The factor was measured in May.\nFACTOR = 2.0\n"
        'def tide(hour):\n    """The height of the tide in metres."""\n    return FACTOR * hour\n'
    )
    found = [one for one in of(tmp_path, program, "tide.py") if not one.is_code]
    assert [(one.text, one.first) for one in found] == [
        ("Tides of the harbour.", 1),
        ("They are computed by the hour.", 3),
        ("The factor was measured in May.", 6),
        ("The height of the tide in metres.", 9),
    ]


def test_chinese_lines_are_joined_without_a_space() -> None:
    [one] = quotables([Block("船在风\n中航行得很快。", 1, 2, by_line=True)])
    assert one.text == "船在风中航行得很快。" and one.last == 2
