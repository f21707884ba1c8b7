"""Typed markup to blocks: paragraphs line for line, headings as data, listings in one block."""

from __future__ import annotations

from pathlib import Path

import pytest

from grit_mlx.text.blocks import Block
from grit_mlx.text.readers import read


def blocks(tmp_path: Path, name: str, text: str) -> list[Block]:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    found = list(read(path))
    lines = text.split("\n")
    for block in found:
        if block.by_line:  # each newline is one of the file
            assert [line.rstrip() for line in lines[block.first - 1 : block.last]] == block.text.split("\n")
    return found


def seen(found: list[Block]) -> list[tuple[str, int, int, int]]:
    return [(block.title or block.text, block.first, block.last, block.level) for block in found]


def test_plain_text(tmp_path: Path) -> None:
    text = "\n\nOne\ntwo  \n# three\n\n   \n    four\n\nfive"
    assert seen(blocks(tmp_path, "a.txt", text)) == [
        ("One\ntwo\n# three", 3, 5, 0), ("    four", 8, 8, 0), ("five", 10, 10, 0),
    ]  # fmt: skip


def test_markdown(tmp_path: Path) -> None:
    text = """---
title: "The Sea"
tags: [a, b]
---
# Ships #
Text
over lines.
Setext
======
Minor
---

```python
# no heading

x = 1
```
~~~
open
```
~~~
- item
---
#hashtag
| Name | Town |
|------|------|
| Ada  | Rome |
| Bob  | Bonn |

##
"""
    found = blocks(tmp_path, "a.md", text)
    assert seen(found) == [
        ("The Sea", 2, 2, 1), ('tags: [a, b]', 3, 3, 0), ("Ships", 5, 5, 1),
        ("Text\nover lines.", 6, 7, 0), ("Setext", 8, 9, 1), ("Minor", 10, 11, 2),
        ("```python\n# no heading\n\nx = 1\n```", 13, 17, 0), ("~~~\nopen\n```\n~~~", 18, 21, 0),
        ("- item\n---\n#hashtag", 22, 24, 0), ("| Name | Town |", 25, 25, 0), ("| Ada  | Rome |", 27, 27, 0),
        ("| Bob  | Bonn |", 28, 28, 0),
    ]  # fmt: skip
    assert [block.verbatim for block in found].count(True) == 2
    assert [block.header for block in found][-2:] == ["| Name | Town |"] * 2


def test_an_unclosed_fence_is_the_rest_of_the_file(tmp_path: Path) -> None:
    assert seen(blocks(tmp_path, "a.md", "a\n```\n# b\n\nc")) == [("a", 1, 1, 0), ("```\n# b\n\nc", 2, 5, 0)]


def test_restructured_text(tmp_path: Path) -> None:
    text = """=====
Title
=====

.. _label:

Part
====

Text, and::

    code
    ----

Sub
---
:Field: value

.. note:: A note.

Other
=====
x
"""
    assert [(text, level) for text, _, _, level in seen(blocks(tmp_path, "a.rst", text)) if level] == [
        ("Title", 1), ("Part", 2), ("Sub", 3), ("Other", 2),
    ]  # fmt: skip
    assert ".. note:: A note." in [block.text for block in blocks(tmp_path, "a.rst", text)]


def test_org(tmp_path: Path) -> None:
    text = """#+TITLE: The Sea
#+OPTIONS: toc:nil
* TODO [#A] Ships :work:
:PROPERTIES:
:ID: 1
:END:
Text.
** Keels
#+begin_src python
* no heading

x
#+end_src
*bold* text
"""
    assert seen(blocks(tmp_path, "a.org", text)) == [
        ("The Sea", 1, 1, 1), ("Ships", 3, 3, 2), ("Text.", 7, 7, 0), ("Keels", 8, 8, 3),
        ("#+begin_src python\n* no heading\n\nx\n#+end_src", 9, 13, 0), ("*bold* text", 14, 14, 0),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text", "headings"),
    [
        ("a.adoc", "= Sea\n\n== Ships\ntext\n\n----\n== no\n----\n", [("Sea", 1), ("Ships", 2)]),
        ("a.tex", "\\title{Sea}\n\\section*{Ships}\n% no\ntext\n\\subsection{Keels}\\label{k}\n",
         [("Sea", 1), ("Ships", 2), ("Keels", 3)]),
    ],
)  # fmt: skip
def test_asciidoc_and_latex(tmp_path: Path, name: str, text: str, headings: list[tuple[str, int]]) -> None:
    found = blocks(tmp_path, name, text)
    assert [(block.title, block.level) for block in found if block.level] == headings
    assert "text" in [block.text for block in found]


def test_memory_stays_flat(tmp_path: Path) -> None:
    import tracemalloc

    path = tmp_path / "a.txt"
    with path.open("w") as file:
        for number in range(200_000):
            file.write(f"Line {number} of a long file, as logs are.\n" + "\n" * (number % 5 == 0))
    tracemalloc.start()
    assert sum(1 for _ in read(path)) == 40_001
    assert tracemalloc.get_traced_memory()[1] < 12e6
    tracemalloc.stop()
