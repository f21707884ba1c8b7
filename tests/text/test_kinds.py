"""What a name says about a file."""

from __future__ import annotations

import pytest

from grit_mlx.text.kinds import is_listed, kind_of, stem


@pytest.mark.parametrize(
    ("name", "rows", "kind", "reader"),
    [
        ("-", False, "text", "lines"),
        ("-", True, "rows", "jsonl"),
        ("a", False, "text", "lines"),
        ("a", True, "rows", "jsonl"),
        ("a.log", False, "text", "lines"),
        ("a.log", True, "rows", "jsonl"),
        ("a.txt", True, "text", "lines"),
        ("a.md", False, "markdown", "lines"),
        ("a.MD.gz", False, "markdown", "lines"),
        ("a.mdx", True, "markdown", "lines"),
        ("dir.csv/a", False, "text", "lines"),
        ("a.csv", True, "rows", "csv"),
        ("a.json", False, "rows", "json"),
        (".gz", False, "text", "lines"),
        ("README.gz", False, "text", "lines"),
        ("src/Makefile", False, "code", "lines"),
        ("a.PDF", False, "pdf", "pdf"),
    ],
)
def test_kinds(name: str, rows: bool, kind: str, reader: str) -> None:
    found = kind_of(name, rows=rows)
    assert (found.name, found.reader) == (kind, reader)


def test_what_is_read_of_a_folder() -> None:
    assert all(is_listed(name) for name in ("a.md", "README", "a.csv", "a.py", "a.docx", "a.tsv.gz"))
    assert not any(is_listed(name) for name in ("a.json", "a.bin", "a"))


def test_stems() -> None:
    assert [stem(name) for name in ("d/a.jsonl", "a.jsonl.gz", "a.b.csv", "a")] == ["a", "a", "a.b", "a"]
