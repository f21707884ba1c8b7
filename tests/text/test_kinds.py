"""What a name says about a file."""

from __future__ import annotations

import pytest

from grit_mlx.text.kinds import is_listed, kind_of, stem


@pytest.mark.parametrize(
    ("name", "rows", "kind", "reader"),
    [
        ("-", False, "text", "markup:read_text"),
        ("-", True, "rows", "jsonl"),
        ("a", False, "text", "markup:read_text"),
        ("a", True, "rows", "jsonl"),
        ("a.log", False, "text", "markup:read_text"),
        ("a.log", True, "rows", "jsonl"),
        ("a.txt", True, "text", "markup:read_text"),
        ("a.md", False, "markdown", "markup:read_markdown"),
        ("a.MD.gz", False, "markdown", "markup:read_markdown"),
        ("a.mdx", True, "markdown", "markup:read_markdown"),
        ("dir.csv/a", False, "text", "markup:read_text"),
        ("a.csv", True, "rows", "csv"),
        ("a.json", False, "rows", "json"),
        (".gz", False, "text", "markup:read_text"),
        ("README.gz", False, "text", "markup:read_text"),
        ("src/Makefile", False, "code", "markup:read_code"),
        ("a.xlsx", True, "rows", "sheets:read_sheets"),
        ("a.EPUB", False, "epub", "epub:read_epub"),
        ("a.PDF", False, "pdf", "pdf:read_pdf"),
    ],
)
def test_kinds(name: str, rows: bool, kind: str, reader: str) -> None:
    found = kind_of(name, rows=rows)
    assert (found.name, found.reader) == (kind, reader)


def test_what_is_read_of_a_folder() -> None:
    assert all(
        is_listed(name) for name in ("a.md", "README", "a.csv", "a.py", "a.docx", "a.tsv.gz", "a.epub", "a.pdf.gz")
    )
    assert not any(is_listed(name) for name in ("a.json", "a.bin", "a"))


def test_stems() -> None:
    assert [stem(name) for name in ("d/a.jsonl", "a.jsonl.gz", "a.b.csv", "a")] == ["a", "a", "a.b", "a"]
