"""Office documents, spreadsheets, e-books, mail, notebooks and rich text to blocks."""

from __future__ import annotations

import json
import mailbox
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest

from grit_mlx.errors import DocumentError
from grit_mlx.text.blocks import Block, Notes
from grit_mlx.text.readers import read
from tests.text import documents
from tests.text.documents import W, p


def texts(path: Path) -> list[str]:
    return [block.text for block in read(path)]


def places(path: Path) -> list[tuple[str, int, int]]:
    return [(block.text, block.first, block.level) for block in read(path)]


# --- Word ---------------------------------------------------------------------------------------------------

STYLES = f"""<w:styles {W}>
<w:style w:styleId="Titel"><w:name w:val="Title"/></w:style>
<w:style w:styleId="berschrift1"><w:name w:val="heading 1"/></w:style>
<w:style w:styleId="Kapitel"><w:name w:val="Mein Kapitel"/><w:basedOn w:val="berschrift1"/></w:style>
<w:style w:styleId="Abschnitt"><w:name w:val="Abschnitt"/><w:pPr><w:outlineLvl w:val="1"/></w:pPr></w:style>
<w:style w:styleId="Text"><w:name w:val="Text"/><w:basedOn w:val="berschrift1"/><w:pPr><w:outlineLvl w:val="9"/></w:pPr>
</w:style></w:styles>"""


def styled(text: str, style: str) -> str:
    return p(text, f'<w:pStyle w:val="{style}"/>')


def test_headings_of_word_in_any_language(tmp_path: Path) -> None:
    body = (
        styled("Eins", "berschrift1") + p("Text.") + styled("Zwei", "Kapitel") + styled("Drei", "Abschnitt")
        + p("Vier", '<w:outlineLvl w:val="2"/>') + styled("Keine", "Text") + styled("Unbekannt", "Fehlt")
    )  # fmt: skip
    path = documents.word(tmp_path / "a.docx", body, parts={"styles.xml": STYLES}, related={"s": "styles styles.xml"})
    assert places(path) == [
        ("Eins", 1, 1), ("Text.", 2, 0), ("Zwei", 3, 1), ("Drei", 4, 2), ("Vier", 5, 3), ("Keine", 6, 0),
        ("Unbekannt", 7, 0),
    ]  # fmt: skip
    titled = documents.word(
        tmp_path / "b.docx",
        styled("Das Buch", "Titel") + styled("Eins", "berschrift1"),
        parts={"styles.xml": STYLES},
        related={"s": "styles styles.xml"},
    )
    assert places(titled) == [("Das Buch", 1, 1), ("Eins", 2, 2)]


def test_a_paragraph_that_looks_like_markdown_is_not_a_heading(tmp_path: Path) -> None:
    assert places(documents.word(tmp_path / "a.docx", p("# not a heading"))) == [("# not a heading", 1, 0)]


def test_tracked_changes_controls_boxes_and_fields(tmp_path: Path) -> None:
    run = "<w:r><w:t>{}</w:t></w:r>".format
    box = f"<w:txbxContent>{p('In the box.')}</w:txbxContent>"
    body = (
        f"<w:p>{run('Kept, ')}<w:ins>{run('inserted, ')}</w:ins>"
        "<w:del><w:r><w:delText>deleted, </w:delText></w:r></w:del>"
        f"<w:moveFrom>{run('moved away, ')}</w:moveFrom><w:moveTo>{run('moved here, ')}</w:moveTo>"
        f"<w:sdt><w:sdtContent>{run('controlled, ')}</w:sdtContent></w:sdt><w:hyperlink>{run('linked')}</w:hyperlink>"
        f"<w:r><w:instrText>HYPERLINK secret</w:instrText></w:r><w:fldSimple>{run('.')}</w:fldSimple></w:p>"
        f"<w:sdt><w:sdtContent>{p('A block in a control.')}</w:sdtContent></w:sdt>"
        '<w:p xmlns:mc="http://mc" xmlns:wps="http://wps"><w:r><w:t>Around.</w:t></w:r><w:r><mc:AlternateContent>'
        f"<mc:Choice><w:drawing><wps:txbx>{box}</wps:txbx></w:drawing></mc:Choice>"
        f"<mc:Fallback><w:pict>{box}</w:pict></mc:Fallback></mc:AlternateContent></w:r></w:p>"
        "<w:p><w:r><w:t>one</w:t><w:tab/><w:t>two</w:t><w:br/><w:t>three</w:t><w:noBreakHyphen/><w:t>four</w:t>"
        "</w:r></w:p>"
    )
    assert places(documents.word(tmp_path / "a.docx", body)) == [
        ("Kept, inserted, moved here, controlled, linked.", 1, 0),
        ("A block in a control.", 2, 0),
        ("Around.", 3, 0),
        ("In the box.", 3, 0),
        ("one two\nthree-four", 4, 0),
    ]


def test_tables_of_word(tmp_path: Path) -> None:
    def row(*cells: str, header: bool = False) -> str:
        mark = "<w:trPr><w:tblHeader/></w:trPr>" if header else ""
        return f"<w:tr>{mark}{''.join(f'<w:tc>{cell}</w:tc>' for cell in cells)}</w:tr>"

    inner = f"<w:tbl>{row(p('deep'), p('deeper'))}</w:tbl>"
    table = (
        f"<w:tbl>{row(p('Name'), p('Town'), header=True)}{row(p('Ada'), p('London') + p('Paris'))}"
        f"<w:sdt><w:sdtContent>{row(p('Bob') + inner, p(''))}</w:sdtContent></w:sdt></w:tbl>"
    )
    path = documents.word(tmp_path / "a.docx", p("Before.") + p("") + table + p("After."))
    assert list(read(path)) == [
        Block("Before.", 1, 1),
        Block("Name | Town", 3, 3),
        Block("Ada | London Paris", 3, 3, glue="\n", header="Name | Town"),
        Block("Bob deep | deeper", 3, 3, glue="\n", header="Name | Town"),
        Block("After.", 4, 4),
    ]


def test_margins_and_notes_of_word(tmp_path: Path) -> None:
    referring = (
        '<w:p><w:r><w:t>Told.</w:t></w:r><w:r><w:footnoteReference w:id="2"/><w:commentReference w:id="0"/></w:r></w:p>'
    )
    path = documents.word(
        tmp_path / "a.docx",
        p("First.") + referring + p("Last."),
        parts={
            "header1.xml": f"<w:hdr {W}>{p('Secret report')}</w:hdr>",
            "header2.xml": f"<w:hdr {W}>{p('Secret report')}</w:hdr>",
            "footer1.xml": f"<w:ftr {W}>{p('Vienna 1899')}{p('7')}</w:ftr>",
            "footnotes.xml": f'<w:footnotes {W}><w:footnote w:type="separator" w:id="0">{p("no")}</w:footnote>'
            f'<w:footnote w:id="2">{p("By a witness.")}</w:footnote></w:footnotes>',
            "comments.xml": f'<w:comments {W}><w:comment w:id="0">{p("Really?")}</w:comment></w:comments>',
        },
        related={"a": "header header1.xml", "b": "header header2.xml", "c": "footer footer1.xml",
                 "d": "footnotes footnotes.xml", "e": "comments comments.xml"},
    )  # fmt: skip
    assert places(path) == [
        ("Secret report", 1, 0), ("First.", 1, 0), ("Told.", 2, 0), ("By a witness.", 2, 0), ("Really?", 2, 0),
        ("Last.", 3, 0), ("Vienna 1899", 3, 0),
    ]  # fmt: skip


def test_python_docx_writes_what_we_read(tmp_path: Path) -> None:
    docx: Any = pytest.importorskip("docx")
    document = docx.Document()
    document.add_heading("Ships", 0)
    document.add_heading("Rigging", 2)
    for number in range(30):
        document.add_paragraph(f"Paragraph number{number}.")
    document.save(str(tmp_path / "a.docx"))
    blocks = list(read(tmp_path / "a.docx"))
    assert [block.level for block in blocks[:3]] == [1, 3, 0]
    everything = [paragraph.text for paragraph in docx.Document(str(tmp_path / "a.docx")).paragraphs]
    assert all(everything[block.first - 1] == block.text for block in blocks) and len(blocks) == 32


@pytest.mark.parametrize("suffix", [".docx", ".pptx", ".odt", ".xlsx", ".ods", ".epub"])
def test_files_that_are_not_what_they_seem(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(500) + "EncryptedPackage".encode("utf-16-le") + bytes(99)
    )
    with pytest.raises(DocumentError, match=r" is protected by a password\. Save a copy without one\.$"):
        texts(path)
    path.write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(500))
    with pytest.raises(DocumentError, match=r"in Office's format of before 2007\."):
        texts(path)
    for data in (b"", b"PK\3\4 and no more", b"just text"):
        path.write_bytes(data)
        with pytest.raises(DocumentError, match=rf"a{suffix} cannot be read as "):
            texts(path)
    lock = tmp_path / f"~$a{suffix}"
    lock.write_bytes(b"\x06writer" + bytes(100))
    with pytest.raises(DocumentError, match="is a lock file of an open document"):
        texts(lock)


def test_entities_are_not_expanded(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("top secret")
    evil = f'<!DOCTYPE d [<!ENTITY x SYSTEM "{tmp_path / "secret.txt"}"><!ENTITY y "lol">]>'
    path = documents.zipped(
        tmp_path / "a.docx",
        {"word/document.xml": f"{evil}<w:document {W}><w:body>{p('a &x; &y; b')}</w:body></w:document>"},
    )
    assert "secret" not in " ".join(texts(path))


# --- presentations and OpenDocument -------------------------------------------------------------------------


def test_slides_have_their_numbers(tmp_path: Path) -> None:
    rows = "".join(
        f"<a:tr>{''.join(f'<a:tc><a:p><a:r><a:t>{cell}</a:t></a:r></a:p></a:tc>' for cell in row)}</a:tr>"
        for row in (("Year", "Sum"), ("1999", "7"))
    )
    table = (
        '<p:graphicFrame><a:graphic><a:graphicData><a:tbl><a:tblPr firstRow="1"/>'
        f"{rows}</a:tbl></a:graphicData></a:graphic></p:graphicFrame>"
    )
    slides = [
        documents.shape("Ships", "ctrTitle") + documents.shape("3", "sldNum"),
        "<p:grpSp>" + documents.shape("Grouped\nlines") + "</p:grpSp>" + table,
    ]
    notes = f'<p:notes xmlns:p="http://p" xmlns:a="http://a">{documents.shape("Say this aloud.", "body")}</p:notes>'
    path = documents.pptx(
        tmp_path / "a.pptx",
        slides,
        parts={
            "ppt/slides/_rels/slide1.xml.rels": documents.relations(n="notesSlide ../notesSlides/n.xml"),
            "ppt/notesSlides/n.xml": notes,
        },
    )
    assert list(read(path)) == [
        Block("Ships", 1, 1, level=1),
        Block("Grouped\nlines", 2, 2),
        Block("Year | Sum", 2, 2),
        Block("1999 | 7", 2, 2, glue="\n", header="Year | Sum"),
        Block("Say this aloud.", 2, 2),
    ]


def test_opendocument_texts(tmp_path: Path) -> None:
    body = (
        "<office:text><text:tracked-changes><text:p>deleted</text:p></text:tracked-changes>"
        '<text:h text:outline-level="2">Ships</text:h><text:p>A <text:span>keel</text:span><text:s text:c="2"/>is'
        "<text:tab/>deep.<text:note><text:note-citation>1</text:note-citation><text:note-body><text:p>A note.</text:p>"
        "</text:note-body></text:note></text:p><text:list><text:list-item><text:p>Item</text:p></text:list-item></text:list>"
        "<table:table><table:table-header-rows><table:table-row><table:table-cell><text:p>Name</text:p></table:table-cell>"
        "<table:table-cell><text:p>Town</text:p></table:table-cell></table:table-row></table:table-header-rows>"
        "<table:table-row><table:table-cell><text:p>Ada</text:p></table:table-cell><table:table-cell><text:p>London</text:p>"
        "</table:table-cell></table:table-row></table:table><text:p><draw:frame><draw:text-box><text:p>Boxed.</text:p>"
        "</draw:text-box></draw:frame></text:p></office:text>"
    )
    styles = (
        f"<office:document-styles {documents.OFFICE}><style:header><text:p>On top</text:p></style:header>"
        "</office:document-styles>"
    )
    path = documents.opendocument(tmp_path / "a.odt", body, parts={"styles.xml": styles})
    assert places(path) == [
        ("On top", 1, 0), ("Ships", 1, 2), ("A keel is deep.", 2, 0), ("A note.", 2, 0), ("Item", 3, 0),
        ("Name | Town", 4, 0), ("Ada | London", 4, 0), ("Boxed.", 5, 0),
    ]  # fmt: skip
    locked = documents.opendocument(
        tmp_path / "b.odt", body, parts={"META-INF/manifest.xml": "<manifest><encryption-data/></manifest>"}
    )
    with pytest.raises(DocumentError, match="is protected by a password"):
        texts(locked)


def test_opendocument_slides(tmp_path: Path) -> None:
    page = (
        '<draw:page><draw:frame presentation:class="title"><draw:text-box><text:p>{0}</text:p></draw:text-box>'
        "</draw:frame><draw:custom-shape><text:p>Shape {0}</text:p></draw:custom-shape>"
        "<presentation:notes><draw:frame><draw:text-box>"
        "<text:p>Note {0}</text:p></draw:text-box></draw:frame></presentation:notes></draw:page>"
    )
    body = f"<office:presentation>{page.format('A')}{page.format('B')}</office:presentation>"
    assert places(documents.opendocument(tmp_path / "a.odp", body)) == [
        ("A", 1, 1), ("Shape A", 1, 0), ("Note A", 1, 0), ("B", 2, 1), ("Shape B", 2, 0), ("Note B", 2, 0),
    ]  # fmt: skip


# --- spreadsheets -------------------------------------------------------------------------------------------


def test_rows_of_sheets_are_documents_with_their_columns(tmp_path: Path) -> None:
    pytest.importorskip("python_calamine")
    path = documents.xlsx(
        tmp_path / "a.xlsx",
        {
            "Costs": {"A1": "Travel of 1999", "A3": "Date", "B3": "What", "C3": "Sum", "A4": "May", "B4": "Train",
                      "C4": "12.5", "A6": "June", "C6": "7"},
            "People": {"B2": "Name", "C2": "Town", "B3": "Ada", "C3": "London"},
            "Nothing": {},
        },
    )  # fmt: skip
    assert list(read(path)) == [
        Block("Costs", 1, 1, level=1),
        Block("Travel of 1999", 1, 1),
        Block("Date: May\nWhat: Train\nSum: 12.5", 4, 4, fields=(("Date", "May"), ("What", "Train"), ("Sum", "12.5"))),
        Block("Date: June\nSum: 7", 6, 6, fields=(("Date", "June"), ("Sum", "7"))),
        Block("People", 2, 2, level=1),
        Block("Name: Ada\nTown: London", 3, 3, fields=(("Name", "Ada"), ("Town", "London"))),
    ]


def test_sheets_of_figures_have_no_header(tmp_path: Path) -> None:
    pytest.importorskip("python_calamine")
    path = documents.xlsx(tmp_path / "a.xlsx", {"S": {"A1": "1", "B1": "2", "A2": "3", "B2": "4"}})
    assert list(read(path)) == [Block("1 | 2", 1, 1), Block("3 | 4", 2, 2)]


def texts_of(path: Path, notes: Notes | None = None) -> list[str]:
    pytest.importorskip("python_calamine")
    return [block.text.replace("\n", "; ") for block in read(path, notes=notes or Notes())]


def test_merged_cells_hold_for_all_their_rows_and_columns(tmp_path: Path) -> None:
    cells = {
        "A1": "Sales", "A2": "Place", "C2": "Spring", "E2": "Autumn",
        "A3": "Region", "B3": "City", "C3": "Plan", "D3": "Done", "E3": "Plan", "F3": "Done",
        "A4": "North", "B4": "Oslo", "C4": "1", "D4": "2", "E4": "3", "F4": "4", "B5": "Bergen", "D5": "5",
        "B6": "Bodo", "C6": "6", "B7": "Nowhere", "D7": "7",
    }  # fmt: skip
    path = documents.xlsx(
        tmp_path / "a.xlsx", {"S": cells}, merged={"S": ["A1:F1", "A2:B2", "C2:D2", "E2:F2", "A4:A6"]}
    )
    assert texts_of(path) == [
        "Sales",
        "Place | Spring | Autumn",
        "Place Region: North; Place City: Oslo; Spring Plan: 1; Spring Done: 2; Autumn Plan: 3; Autumn Done: 4",
        "Place Region: North; Place City: Bergen; Spring Done: 5",
        "Place Region: North; Place City: Bodo; Spring Plan: 6",
        "Place City: Nowhere; Spring Done: 7",
    ]


@pytest.mark.parametrize(
    ("first", "second", "header"),
    [
        ({"A1": "Land", "B1": "2021", "C1": "2022"}, {"A2": "Oslo", "B2": "1", "C2": "2"}, True),
        ({"A1": "Land", "B1": "2022", "C1": "2021"}, {"A2": "Oslo", "B2": "1", "C2": "2"}, True),
        ({"A1": "Oslo", "B1": "2021", "C1": "7"}, {"A2": "Rome", "B2": "2021", "C2": "8"}, False),
        ({"A1": "Orwell", "B1": "1984"}, {"A2": "Huxley", "B2": "1932"}, False),
        ({"A1": "A question that fills a line, as in a list of questions without a header?", "B1": "yes"},
         {"A2": "Another", "B2": "no"}, False),
    ],
)  # fmt: skip
def test_rows_that_name_columns(tmp_path: Path, first: dict[str, str], second: dict[str, str], header: bool) -> None:
    third = {cell.replace("2", "3"): value for cell, value in second.items()}
    texts = texts_of(documents.xlsx(tmp_path / "a.xlsx", {"S": {**first, **second, **third}}))
    assert len(texts) == (2 if header else 3)
    assert all((": " in text) == header for text in texts)


def test_cells_read_as_they_are_shown(tmp_path: Path) -> None:
    cells = {
        "A1": "What",
        "B1": "Share",
        "A2": "Tea",
        "B2": "0.256%1",
        "A3": "Milk",
        "B3": "7%2",
        "A4": "All",
        "B4": "=B2",
    }
    padding = {f"A{number}": "x" * 50 for number in range(5, 30_000)}  # of several blocks
    padding |= {"A30001": "Last", "B30001": "1.5%1"}
    notes = Notes()
    path = documents.xlsx(tmp_path / "a.xlsx", {"S": {**cells, **padding}, "T": {"A1": "Pin"}}, hidden=("T",))
    texts = texts_of(path, notes)
    assert texts[:4] == ["S", "What: Tea; Share: 25.6%", "What: Milk; Share: 7", "What: All"]
    assert texts[-3:] == ["What: Last; Share: 150%", "T (hidden sheet)", "Pin"]
    assert "formulas without stored values" in " ".join(map(str, notes.warnings))


# --- books, mail, notebooks, rich text ----------------------------------------------------------------------


def test_books_are_read_in_their_order(tmp_path: Path) -> None:
    path = documents.epub(
        tmp_path / "a.epub",
        "The Sea",
        {"z": "<h1>Calm</h1><p>No wind.</p>", "a": "<h1>Storm</h1><p>It bl&#228;st.</p>"},
    )
    assert places(path) == [("The Sea", 1, 1), ("Calm", 1, 2), ("No wind.", 1, 0), ("Storm", 2, 2), ("It bläst.", 2, 0)]


def message(subject: str, text: str) -> EmailMessage:
    mail = EmailMessage()
    mail["From"], mail["To"], mail["Subject"] = "Ada <ada@example.org>", "bob@example.org", subject
    mail.set_content(text, cte="base64")
    return mail


def test_mail(tmp_path: Path) -> None:
    mail = message("Grüße", "Hello Bob,\n\nthe ship sails.\n")
    mail.add_alternative("<p>Hello <b>Bob</b></p>", subtype="html")
    mail.add_attachment(b"\0\1", maintype="image", subtype="png", filename="ship.png")
    mail.add_attachment(message("Inner", "Deep words."))
    (tmp_path / "a.eml").write_bytes(bytes(mail))
    assert places(tmp_path / "a.eml") == [
        ("Grüße", 1, 1), ("From: Ada <ada@example.org>\nTo: bob@example.org", 2, 0), ("Hello Bob,", 3, 0),
        ("the ship sails.", 4, 0), ("Attachment: ship.png", 5, 0), ("Inner", 6, 2),
        ("From: Ada <ada@example.org>\nTo: bob@example.org", 7, 0), ("Deep words.", 8, 0),
    ]  # fmt: skip
    page = EmailMessage()
    page["Subject"] = "Page"
    page.set_content("<html><h1>Top</h1><p>Only HTML.</p></html>", subtype="html")
    (tmp_path / "b.eml").write_bytes(bytes(page))
    assert places(tmp_path / "b.eml") == [("Page", 1, 1), ("Top", 2, 2), ("Only HTML.", 3, 0)]
    (tmp_path / "c.eml").write_text("no mail at all")
    with pytest.raises(DocumentError, match=r"c\.eml is not an e-mail"):
        texts(tmp_path / "c.eml")


def test_mailboxes(tmp_path: Path) -> None:
    box = mailbox.mbox(tmp_path / "a.mbox")
    for number in range(1, 4):
        box.add(message(f"Number {number}", f"Text {number}.\n\nFrom here on.\n"))
    box.close()
    blocks = list(read(tmp_path / "a.mbox"))
    assert [(block.text, block.first) for block in blocks if block.level] == [(f"Number {n}", n) for n in (1, 2, 3)]
    assert ("From here on.", 2) in [(block.text, block.first) for block in blocks]


def test_notebooks(tmp_path: Path) -> None:
    cells = [
        {"cell_type": "markdown", "source": ["# Ships\n", "\n", "A keel."]},
        {"cell_type": "code", "source": "import x\n\nprint(1)", "outputs": [
            {"output_type": "stream", "text": ["printed\n"]},
            {"output_type": "display_data", "data": {"image/png": "iVBORw0KGgo=", "text/plain": "<Figure>"}},
            {"output_type": "execute_result", "data": {"text/html": "<table><tr><th>a</th><th>b</th></tr><tr><td>1</td>"
             "<td>2</td></tr></table>", "text/plain": "cut"}},
        ]},
    ]  # fmt: skip
    (tmp_path / "a.ipynb").write_text(json.dumps({"cells": cells, "nbformat": 4}))
    assert places(tmp_path / "a.ipynb") == [
        ("Ships", 1, 1), ("A keel.", 1, 0), ("import x\n\nprint(1)", 2, 0), ("printed", 2, 0), ("<Figure>", 2, 0),
        ("a | b", 2, 0), ("1 | 2", 2, 0),
    ]  # fmt: skip
    for text in ("{", "[]", "{}", '{"cells": 3}'):
        (tmp_path / "b.ipynb").write_text(text)
        with pytest.raises(DocumentError, match=r"b\.ipynb cannot be read as a notebook"):
            texts(tmp_path / "b.ipynb")


def test_rich_text(tmp_path: Path) -> None:
    pytest.importorskip("striprtf")
    (tmp_path / "a.rtf").write_text(
        r"{\rtf1\ansi\ansicpg1252{\fonttbl\f0 Arial;}\f0 Caf\'e9 \b bold\b0 .\par Second.\par}"
    )
    assert places(tmp_path / "a.rtf") == [("Café bold.", 1, 0), ("Second.", 2, 0)]
    (tmp_path / "b.rtf").write_text("no rtf")
    with pytest.raises(DocumentError, match=r"b\.rtf is not an RTF file"):
        texts(tmp_path / "b.rtf")


@pytest.mark.parametrize(("name", "word"), [("a.doc", "docx"), ("a.pages", "Export it"), ("a.msg", r"as \.eml")])
def test_kinds_that_are_not_read_are_named(tmp_path: Path, name: str, word: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(DocumentError, match=rf"{name} is .*{word}"):
        texts(tmp_path / name)
