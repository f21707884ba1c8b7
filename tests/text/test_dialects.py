"""Odd dialects of tables, encodings and markup that people's programs write."""

from __future__ import annotations

from pathlib import Path

import pytest

from grit_mlx.text.blocks import Notes
from grit_mlx.text.packing import count_words
from grit_mlx.text.passages import passages_of
from grit_mlx.text.reading import read_rows


def texts(path: Path, content: bytes | str) -> list[str]:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return [one.text for one in passages_of(path, size=64, overlap=0, measure=count_words, notes=Notes())]


@pytest.mark.parametrize(
    "content",
    [
        "name|town\nAda|London\n",
        "sep=;\nname;town\nAda;London\n",
        "\ufeffsep=^\r\nname^town\r\nAda^London\r\n",
        "name;town\nAda;London\n".encode("utf-16-be"),
        "name\ttown\nAda\tLondon\n",
    ],
)
def test_delimiters_of_tables(tmp_path: Path, content: bytes | str) -> None:
    path = tmp_path / "a.csv"
    assert texts(path, content) == ["name: Ada\ntown: London"]
    if isinstance(content, str):
        assert [row for row, *_ in read_rows(path)] == [{"name": "Ada", "town": "London"}]


def test_an_array_that_is_named_json_lines(tmp_path: Path) -> None:
    assert texts(tmp_path / "a.jsonl", '[{"text": "A keel."}, {"text": "A mast."}]\n') == ["A keel.", "A mast."]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("name,n\nMüller,3\n".encode("cp850"), "name: Müller\nn: 3"),
        ("name,n\nMüller,3\n".encode("cp1252"), "name: Müller\nn: 3"),
        ("name,n\nMüller".encode() + b" caf\xe9,3\n", "name: Müller caf\ufffd\nn: 3"),  # one byte of another program
    ],
)
def test_few_letters_that_are_not_ascii(tmp_path: Path, content: bytes, expected: str) -> None:
    assert texts(tmp_path / "a.csv", content) == [expected]


def test_character_data_of_xhtml_is_text(tmp_path: Path) -> None:
    page = "<html><body><h1>Keels</h1><p><![CDATA[a < b\n& c]]></p><script>//<![CDATA[\nx\n//]]></script></body></html>"
    assert texts(tmp_path / "a.xhtml", page) == ["Keels\n\na < b & c"]


def test_front_matter_is_there_once(tmp_path: Path) -> None:
    assert texts(tmp_path / "a.md", "---\ndate: 1\ntitle: Keels\ntags: x\n---\n\nBody.\n") == [
        "title: Keels\n\ndate: 1\n\ntags: x\n\nBody."
    ]
