"""Files of every kind to passages: text, place, heading and metadata."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from grit_mlx.errors import DependencyError, DocumentError
from grit_mlx.rag import Passage, passages_of
from grit_mlx.text.blocks import Notes
from grit_mlx.text.packing import count_words
from tests.text import documents


def split(path: Path, size: int = 12, overlap: int = 0) -> list[Passage]:
    return list(passages_of(path, size=size, overlap=overlap, measure=count_words))


def test_markdown_has_headings_and_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_text(
        "# Ships\n\nA keel keeps a ship upright in the wind.\n\n"
        "## Rigging\n\nThe mast carries sails.\n\nRopes hold the mast against the leaning wind.\n\n"
        "# Bread\n\nYeast eats sugar and breathes out gas.\n"
    )
    passages = split(path)
    assert [(p.line, p.end_line, p.heading) for p in passages] == [
        (1, 3, ""),
        (5, 7, "Ships"),
        (9, 9, "Ships > Rigging"),
        (11, 13, ""),
    ]
    assert passages[2].content == "Ships > Rigging Ropes hold the mast against the leaning wind."
    lines = path.read_text().splitlines()
    for passage in passages:
        assert passage.text == "\n".join(lines[passage.line - 1 : passage.end_line])
        assert "kind=markdown" in passage.metadata


def test_passages_overlap(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("One two three four. Five six seven eight. Nine ten eleven twelve. Thirteen.\n")
    texts = [passage.text for passage in split(path, size=8, overlap=4)]
    assert texts[0].split(". ")[-1].rstrip(".") == texts[1].split(". ")[0]


def test_rows_are_documents_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{"title": "T", "text": "one two three four five six seven eight nine ten", "year": 1999, "ok": true}\n'
        '{"text": "short", "list": [1]}\n'
    )
    passages = split(path, size=6)
    assert [(p.text, p.line, p.heading) for p in passages] == [
        ("one two three four five six", 1, "T"),
        ("seven eight nine ten", 1, "T"),
        ("short", 2, ""),
    ]
    assert set(passages[0].metadata) == {"kind=rows", "title=T", "year=1999", "ok=true"}
    table = tmp_path / "b.csv"
    table.write_text('text,colour\n"two\nlines",red\n')
    (row,) = split(table)
    assert (row.line, row.end_line, row.metadata) == (2, 3, ("kind=rows", "colour=red"))


def test_web_pages_are_prose_only(tmp_path: Path) -> None:
    path = tmp_path / "a.html"
    path.write_text(
        "<!doctype html>\n<html><head><title>no</title><style>p {}</style></head>\n<body>\n"
        "<nav><a>menu</a></nav>\n<h1>Tides &amp; winds</h1>\n<p>The <b>moon</b> pulls\nthe sea.<br>Twice a day.</p>\n"
        "<script>evil()</script>\n<table><tr><td>a</td><td>b</td></tr></table>\n<p>Unclosed"
    )
    passages = split(path, size=40)
    text = "\n".join(passage.text for passage in passages)
    assert text.startswith("Tides & winds\n\n") and "The moon pulls the sea.\nTwice a day." in text and "a | b" in text
    assert "Unclosed" in text
    assert not [word for word in ("menu", "evil", "{}", "no\n") if word in text]
    assert passages[0].line == 5


def test_code_keeps_its_blanks(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text("# not a heading\n\ndef f():\n    return 1\n")
    (passage,) = split(path, size=40)
    assert passage.text == "# not a heading\n\ndef f():\n    return 1" and passage.heading == ""


def test_word_documents(tmp_path: Path) -> None:
    docx = pytest.importorskip("docx", reason="python-docx is not installed")
    document = docx.Document()
    document.add_heading("Ships", 1)
    document.add_paragraph("A keel keeps a ship upright.")
    document.add_heading("Rigging", 2)
    document.add_paragraph("The mast carries the sails of the ship in any wind.")
    table = document.add_table(1, 2)
    table.rows[0].cells[0].text, table.rows[0].cells[1].text = "left", "right"
    document.save(str(tmp_path / "a.docx"))
    passages = split(tmp_path / "a.docx")
    assert passages[0].text == "Ships\n\nA keel keeps a ship upright." and passages[0].line == 1
    assert passages[1].heading == "Ships" and "left | right" in passages[-1].text


def test_pdf_files(tmp_path: Path) -> None:
    pytest.importorskip("pypdfium2", reason="pypdfium2 is not installed")
    (tmp_path / "a.pdf").write_bytes(pdf("A keel keeps a ship upright.", "Bread rises."))
    passages = split(tmp_path / "a.pdf", size=6)
    assert [(p.text, p.line) for p in passages] == [("A keel keeps a ship upright.", 1), ("Bread rises.", 2)]
    (tmp_path / "bad.pdf").write_bytes(b"%PDF-1.4\nnothing")
    with pytest.raises(DocumentError, match=r"bad\.pdf is damaged, or not a PDF file\."):
        split(tmp_path / "bad.pdf")


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pypdfium2", None)
    (tmp_path / "a.pdf").write_bytes(b"%PDF-1.4")
    with pytest.raises(
        DependencyError, match=r"Reading PDF files needs pypdfium2: pip install 'grit-mlx\[documents\]'\."
    ):
        split(tmp_path / "a.pdf")


def test_every_passage_has_its_words_at_its_place(tmp_path: Path) -> None:
    """Passages of generated files of many kinds, in sizes that cut blocks and join them."""
    numbers = range(1, 80)

    def said(number: int) -> str:
        return (
            f"Sentence number{number} of the text speaks of subject{number * 7}. It goes on about thing{number * 11}."
        )

    pages = [[(said(number), 72.0, 700.0, 11.0)] for number in numbers]
    files = [
        documents.word(tmp_path / "a.docx", "".join(documents.p(said(number)) for number in numbers)),
        documents.pptx(tmp_path / "a.pptx", [documents.shape(said(number)) for number in numbers]),
        documents.epub(tmp_path / "a.epub", "", {f"c{number}": f"<p>{said(number)}</p>" for number in numbers}),
        documents.xlsx(tmp_path / "a.xlsx", {"S": {f"A{number}": said(number) for number in numbers}}),
        documents.pdf(tmp_path / "a.pdf", pages),
    ]
    for name, line in (("a.md", "{}\n\n"), ("a.txt", "{}\n"), ("a.html", "<p>{}</p>\n"), ("a.csv", "{}\n")):
        (tmp_path / name).write_text("".join(line.format(said(number)) for number in numbers))
        files.append(tmp_path / name)
    for path in files:
        lines = path.read_text().split("\n") if path.suffix in (".md", ".txt", ".html", ".csv") else None
        for size, overlap in ((5, 0), (12, 6), (40, 12)):
            passages = split(path, size, overlap)
            assert len(passages) >= 20, path
            for passage in passages:
                places = range(passage.line, passage.end_line + 1)
                there = " ".join(lines[place - 1] if lines else said(place) for place in places)
                missing = set(re.findall(r"\w+", passage.text)) - set(re.findall(r"\w+", there))
                assert not missing, (path.name, passage)


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_tables_lose_no_row(tmp_path: Path, suffix: str) -> None:
    glue = {".csv": ",", ".tsv": "\t"}[suffix]
    rows = [
        ["Name", "Town", "Note"],
        ["Ada", "London", "first"],
        ["Bob", "Rome"],
        ["Cy", "Bonn", "x", "y"],
        ["D", "E", "F"],
    ]
    path = tmp_path / f"a{suffix}"
    path.write_text("\n".join(glue.join(row) for row in rows))
    notes = Notes()
    passages = list(passages_of(path, size=50, overlap=0, measure=count_words, notes=notes))
    assert [(p.text, p.line) for p in passages] == [
        ("Name: Ada\nTown: London\nNote: first", 2),
        ("Name: Bob\nTown: Rome", 3),
        ("Name: Cy\nTown: Bonn\nNote: x\ny", 4),
        ("Name: D\nTown: E\nNote: F", 5),
    ]
    assert [warning.removeprefix(str(path)) for warning in notes.warnings] == [
        ", line 3: the row has 2 columns, but the first row has 3.",
        ", line 4: the row has 4 columns, but the first row has 3.",
    ]
    assert "Town=London" in passages[0].metadata


def test_an_open_quote_costs_one_row(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('name,text\na,"two\nlines"\nb,"open\nc,third\n' + "".join(f"n{n},t{n}\n" for n in range(2000)))
    notes = Notes()
    passages = list(passages_of(path, size=50, overlap=0, measure=count_words, notes=notes))
    assert [(p.text, p.line, p.end_line) for p in passages[:3]] == [
        ("two\nlines", 2, 3), ('"open', 4, 4), ("third", 5, 5),
    ]  # fmt: skip
    assert len(passages) == 2003 and len(notes.warnings) == 1


def test_rows_of_json_without_text(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"name": "Ada", "age": 36, "tags": ["x"], "ok": true}\n{"text": "b"}\n{"half": ')
    notes = Notes()
    passages = list(passages_of(path, size=50, overlap=0, measure=count_words, notes=notes))
    assert [p.text for p in passages] == ["name: Ada\nage: 36\nok: true", "b"]
    assert len(notes.warnings) == 1 and ", line 3: " in notes.warnings[0]


def test_junk_is_left_out_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_text("# Ships\n\nA keel.\n\n" + "QUJD" * 500 + "\n\n-----\n\nA mast.\n")
    notes = Notes()
    passages = list(passages_of(path, size=50, overlap=0, measure=count_words, notes=notes))
    assert [(p.text, p.line, p.end_line) for p in passages] == [("# Ships\n\nA keel.\n\nA mast.", 1, 9)]
    assert notes.left_out == {"data": 2000, "letterless": 5}


def test_the_header_of_a_markdown_table_is_repeated(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_text("| Name | Town |\n|---|---|\n" + "".join(f"| Ada | Rome{n} |\n" for n in range(6)))
    passages = split(path, size=20)
    assert len(passages) > 1
    assert all(passage.text.startswith("| Name | Town |\n| Ada |") for passage in passages)
    assert [passage.line for passage in passages][1:] == [6]


def pdf(*pages: str) -> bytes:
    """The smallest PDF with a line of text on each page."""
    count = len(pages)
    kids = " ".join(f"{4 + 2 * i} 0 R" for i in range(count))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {count} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for i, text in enumerate(pages):
        stream = f"BT /F1 12 Tf 50 700 Td ({text}) Tj ET"
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {5 + 2 * i} 0 R "
            "/Resources << /Font << /F1 3 0 R >> >> >>"
        )
        objects.append(f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream")
    body, places = "%PDF-1.4\n", []
    for number, content in enumerate(objects, start=1):
        places.append(len(body))
        body += f"{number} 0 obj\n{content}\nendobj\n"
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    end = f"trailer << /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{len(body)}\n%%EOF\n"
    return (body + f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}" + end).encode()
