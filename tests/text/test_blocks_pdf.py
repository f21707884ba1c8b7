"""PDF files to blocks: pages, words, paragraphs, headings, passwords and scans."""

from __future__ import annotations

import gzip
import io
import sys
from pathlib import Path

import pytest

from grit_mlx.errors import DependencyError, DocumentError
from grit_mlx.text.blocks import Block, Notes
from grit_mlx.text.packing import pack
from grit_mlx.text.quotable import quotables
from grit_mlx.text.readers import read
from grit_mlx.text.readers.pdf import _composed
from tests.text import documents

pytest.importorskip("pypdfium2")
pytest.importorskip("reportlab")


def paragraph(
    *lines: str, top: float = 700, left: float = 72, size: float = 11
) -> list[tuple[str, float, float, float]]:
    return [(line, left, top - 13 * number, size) for number, line in enumerate(lines)]


def texts(path: Path) -> list[str]:
    return [block.text for block in read(path)]


def test_each_block_has_the_page_that_it_stands_on(tmp_path: Path) -> None:
    pages = [[*paragraph(f"The {number}th page tells of topic{number}."), *paragraph(f"Its end{number}.", top=600)]
             for number in range(1, 41)]  # fmt: skip
    blocks = list(read(documents.pdf(tmp_path / "a.pdf", pages)))
    assert [(block.first, block.last) for block in blocks] == [(n, n) for n in range(1, 41) for _ in range(2)]
    assert all(f"topic{block.first}" in block.text or f"end{block.first}" in block.text for block in blocks)
    assert not any(block.by_line for block in blocks)


def test_lines_become_paragraphs(tmp_path: Path) -> None:
    long = "This line is long enough to reach the right border of the text on its page, or nearly"
    lines = [
        *paragraph(long, long, "and here the paragraph ends."),
        *paragraph(long, "which is the second one.", top=640),
        *paragraph("  indented first", top=500),
    ]
    first, second, third = texts(documents.pdf(tmp_path / "a.pdf", [lines]))
    assert first == f"{long} {long} and here the paragraph ends."
    assert second == f"{long} which is the second one."
    assert third == "indented first"


def test_words_that_are_broken_at_the_end_of_a_line_are_joined(tmp_path: Path) -> None:
    lines = paragraph(
        "A very long line that ends with a word that must be broken since it is an indivi-",
        "dual; and another one, which has a hyphen of its own, since it was found by state-of-the-",
        "art methods, as well-known things are; the next is a well-",
        "known thing, and it ends with North-",
        "South.",
    )
    (text,) = texts(documents.pdf(tmp_path / "a.pdf", [lines]))
    joined = " ".join(text.split())
    for words in ("individual;", "state-of-the-art methods", "a well-known thing", "North-South."):
        assert words in joined, joined


def test_the_dots_of_a_table_of_contents_are_one(tmp_path: Path) -> None:
    lines = [*paragraph("1 Ships . . . . . . . . . . . . 3"), *paragraph("2 Bread ................ 7", top=600)]
    assert texts(documents.pdf(tmp_path / "a.pdf", [lines])) == ["1 Ships … 3", "2 Bread … 7"]


def test_ligatures_are_folded(tmp_path: Path) -> None:
    from reportlab.pdfbase import pdfmetrics
    from reportlab.pdfbase.ttfonts import TTFont
    from reportlab.pdfgen import canvas

    font = pytest.importorskip("matplotlib").get_data_path() + "/fonts/ttf/DejaVuSans.ttf"
    pdfmetrics.registerFont(TTFont("DejaVu", font))
    path = tmp_path / "a.pdf"
    drawing = canvas.Canvas(str(path))
    drawing.setFont("DejaVu", 11)
    drawing.drawString(72, 700, "An e\ufb03cient \ufb01sh \ufb02ies o\ufb00.")
    drawing.save()
    assert texts(path) == ["An efficient fish flies off."]


@pytest.mark.parametrize("strength", [40, 128])
def test_an_empty_user_password_opens(tmp_path: Path, strength: int) -> None:
    from reportlab.lib.pdfencrypt import StandardEncryption

    restricted = StandardEncryption("", ownerPassword="owner", canPrint=0, canCopy=0, strength=strength)
    path = documents.pdf(tmp_path / "a.pdf", [paragraph("Not to be printed.")], encrypt=restricted)
    assert texts(path) == ["Not to be printed."]
    closed = documents.pdf(
        tmp_path / "b.pdf", [paragraph("Secret.")], encrypt=StandardEncryption("user", strength=strength)
    )
    with pytest.raises(DocumentError, match=r"b\.pdf is protected by a password\. Save a copy without one\.$"):
        texts(closed)


def test_scans_are_named_with_what_helps(tmp_path: Path) -> None:
    from reportlab.lib.utils import ImageReader
    from reportlab.pdfgen import canvas

    def scan(path: Path, *, pages: int, text_on: tuple[int, ...] = ()) -> Path:
        drawing = canvas.Canvas(str(path), pagesize=(300, 400))
        for number in range(1, pages + 1):
            if number in text_on:
                drawing.drawString(20, 300, "Typed words.")
            drawing.drawImage(ImageReader(io.BytesIO(documents.png())), 0, 0, 290, 390)
            drawing.showPage()
        drawing.save()
        return path

    with pytest.raises(
        DocumentError, match=r"a\.pdf has no text, only scanned pages\. .*: ocrmypdf --skip-text '.*a\.pdf'"
    ):
        texts(scan(tmp_path / "a.pdf", pages=3))
    notes = Notes()
    (block,) = read(scan(tmp_path / "b.pdf", pages=6, text_on=(3,)), notes=notes)
    assert (block.text, block.first) == ("Typed words.", 3)
    (warning,) = notes.warnings
    assert "b.pdf: 5 of 6 pages are scanned and have no text (1-2, 4-6)." in warning and "ocrmypdf" in warning


def test_headings_come_from_the_outline(tmp_path: Path) -> None:
    from reportlab.pdfgen import canvas

    path = tmp_path / "a.pdf"
    drawing = canvas.Canvas(str(path))
    for title, level in (("1 Ships", 0), ("1.1 Rigging", 1)):
        drawing.bookmarkPage(title)
        drawing.addOutlineEntry(title, title, level)
        drawing.drawString(72, 700, title)
        drawing.drawString(72, 650, f"A text on {title}.")
        drawing.showPage()
    drawing.save()
    assert [(block.text, block.level, block.first) for block in read(path)] == [
        ("1 Ships", 1, 1),
        ("A text on 1 Ships.", 0, 1),
        ("1.1 Rigging", 2, 2),
        ("A text on 1.1 Rigging.", 0, 2),
    ]


def test_without_an_outline_large_letters_are_headings(tmp_path: Path) -> None:
    lines = [("Ships", 72.0, 700.0, 24.0), ("Rigging", 72.0, 660.0, 14.0)]
    lines += paragraph(*["Some text of the body that is longer than the headings."] * 3, top=630)
    blocks = list(read(documents.pdf(tmp_path / "a.pdf", [lines])))
    assert [block.level for block in blocks] == [1, 3, 0]


def test_what_was_typed_into_a_form_is_text(tmp_path: Path) -> None:
    from reportlab.pdfgen import canvas

    path = tmp_path / "a.pdf"
    drawing = canvas.Canvas(str(path))
    drawing.drawString(72, 700, "Name:")
    drawing.acroForm.textfield(name="name", value="Amundsen", x=120, y=690, width=200, height=20)
    drawing.save()
    assert "Amundsen" in " ".join(texts(path))


def test_damaged_files_are_one_sentence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    whole = documents.pdf(tmp_path / "a.pdf", [paragraph("Words.")]).read_bytes()
    for data in (b"", b"%PDF-1.4\n", b"not a PDF at all", whole[:200]):
        (tmp_path / "b.pdf").write_bytes(data)
        with pytest.raises(DocumentError, match=r"b\.pdf is damaged, or not a PDF file\.$"):
            texts(tmp_path / "b.pdf")
    assert capfd.readouterr() == ("", "")


def test_gzipped_files_are_read(tmp_path: Path) -> None:
    whole = documents.pdf(tmp_path / "a.pdf", [paragraph("One."), paragraph("Two.")]).read_bytes()
    (tmp_path / "a.pdf.gz").write_bytes(gzip.compress(whole))
    assert list(read(tmp_path / "a.pdf.gz")) == [Block("One.", 1, 1), Block("Two.", 2, 2)]
    (tmp_path / "b.pdf.gz").write_bytes(gzip.compress(whole)[:-40])
    with pytest.raises(DocumentError, match="cannot be read: Compressed file ended"):
        texts(tmp_path / "b.pdf.gz")


def test_the_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = documents.pdf(tmp_path / "a.pdf", [paragraph("Words.")])
    monkeypatch.setitem(sys.modules, "pypdfium2", None)
    with pytest.raises(DependencyError, match=r"pypdfium2: pip install 'grit-mlx\[documents\]'"):
        texts(path)


def _pages(count: int, *, head: str = "", foot: str = "") -> list[list[tuple[str, float, float, float]]]:
    """Pages of nine lines of their own between a head and a foot, in which {} is the page's number."""
    pages = []
    for number in range(1, count + 1):
        own = [
            f"On the {number * number}th day the {word} of ship {number}" for word in ("mast", "sail", "deck", "hull")
        ]
        lines = paragraph(*own, top=690) + paragraph(*(f"{line} was mended." for line in reversed(own)), top=500)
        pages.append([(head.format(number), 72.0, 760.0, 9.0), *lines, (foot.format(number), 72.0, 30.0, 9.0)])
    return pages


def test_running_heads_and_page_numbers_are_read_once(tmp_path: Path) -> None:
    found = texts(documents.pdf(tmp_path / "a.pdf", _pages(7, head="The log of the Fram", foot="page {} of 7")))
    words = "\n".join(found)
    assert (words.count("The log"), words.count("of 7"), words.count("was mended")) == (1, 1, 28)
    pages = _pages(6)
    for number, page in enumerate(pages):  # left and right pages differ
        page.append((("Ships", "Chapter two")[number % 2], 72.0, 780.0, 9.0))
    words = "\n".join(texts(documents.pdf(tmp_path / "b.pdf", pages)))
    assert (words.count("Ships"), words.count("Chapter two")) == (1, 1)


def test_what_only_looks_like_a_running_head_stays(tmp_path: Path) -> None:
    # A number that does not count the pages, a sentence, large letters, a short page.
    for head, foot in (("Invoice 1{}7", "Total {0}0"), ("This is the text of page {}.", "")):
        words = "\n".join(texts(documents.pdf(tmp_path / "a.pdf", _pages(4, head=head, foot=foot))))
        assert all(head.format(number) in words and foot.format(number) in words for number in range(1, 5))
    pages = _pages(4)
    for number, page in enumerate(pages, 1):
        page.append((f"Exercise {number}", 72.0, 780.0, 16.0))
    assert "\n".join(texts(documents.pdf(tmp_path / "b.pdf", pages))).count("Exercise") == 4
    short = [paragraph("Certificate", f"for sailor {number}") for number in range(1, 5)]
    assert "\n".join(texts(documents.pdf(tmp_path / "c.pdf", short))).count("Certificate") == 4


def test_a_sentence_on_two_pages_is_quoted_as_one(tmp_path: Path) -> None:
    line = "The captain of the ship wrote in her log for every single day of that long dark winter, and"
    first = [*paragraph(line, line, top=100)]
    second = [*paragraph("then the ice broke. A second sentence stands here.", top=700)]
    blocks = list(read(documents.pdf(tmp_path / "a.pdf", [first, second])))
    assert [(block.first, block.last, block.glue) for block in blocks] == [(1, 1, "\n\n"), (2, 2, " ")]
    found = [(one.text, one.first, one.last) for one in quotables(blocks)]
    assert found == [(f"{line} {line} then the ice broke.", 1, 2), ("A second sentence stands here.", 2, 2)]
    (chunk,) = pack(blocks, size=99)
    assert "winter, and then the ice" in chunk.text


def test_the_entries_of_contents_are_lines_and_no_answers(tmp_path: Path) -> None:
    entries = [
        f"{number} How the ships of the north were built and mended in winter ........ {number}7" for number in range(5)
    ]
    blocks = list(read(documents.pdf(tmp_path / "a.pdf", [paragraph(*entries)])))
    assert [block.text.count("\n") for block in blocks] == [4]
    assert not list(quotables(blocks))


def test_the_numbers_of_lines_in_the_margin_are_left_out(tmp_path: Path) -> None:
    own = "In the long winter the crew of the ship mended sails and told tales of the sea to each other"
    lines = [(f"{own}{'.' * (number == 14)}", 72.0, 700.0 - 13 * number, 11.0) for number in range(15)]
    numbers = [(str(number + 20), 40.0, 702.0 - 13 * number, 6.0) for number in range(15)]
    page = [piece for pair in zip(numbers, lines, strict=True) for piece in pair]
    (text,) = texts(documents.pdf(tmp_path / "a.pdf", [page]))
    assert text == f"{' '.join([own] * 15)}."
    # In a ranking they are as large as the names.
    table = [(f"{number} Ship of the line", 72.0, 700.0 - 13 * number, 11.0) for number in range(1, 16)]
    words = "\n".join(texts(documents.pdf(tmp_path / "b.pdf", [table])))
    assert all(f"{number} Ship" in words for number in range(1, 16))


def test_a_large_bullet_makes_no_heading(tmp_path: Path) -> None:
    body = paragraph(*["Some text of the body that is longer than the list below it."] * 5, top=600)
    item = [("\u2022", 72.0, 500.0, 18.0), ("Sails and masts", 90.0, 500.0, 11.0)]
    assert [block.level for block in read(documents.pdf(tmp_path / "a.pdf", [[*body, *item]]))] == [0, 0]


def test_the_items_of_a_list_with_full_lines_are_lines(tmp_path: Path) -> None:
    long = "this line is long enough to reach the right border of the text on its page, or nearly so"
    items = [f"{mark} {long}" for mark in ("1.", "2.", "\u2022", "(a)")]
    (text,) = texts(documents.pdf(tmp_path / "a.pdf", [paragraph(*items, "and so on")]))
    assert text.split("\n") == [*items[:-1], f"{items[-1]} and so on"]


def test_accents_before_their_letters_are_one_with_them(tmp_path: Path) -> None:
    typed = "P\u00b4eter Br\u00a8oker, Mikul\u00b4\u0131k and the mar\u00b8k \u00b4 of 5\u00b4"
    assert _composed(typed) == "P\u00e9ter Br\u00f6ker, Mikul\u00edk and the mar\u0137 \u00b4 of 5\u00b4"
    path = documents.pdf(tmp_path / "a.pdf", [paragraph("The M\u00b4etro of Br\u00a8oker.")])
    assert texts(path) == ["The M\u00e9tro of Br\u00f6ker."]


def test_headings_that_the_outline_words_otherwise_are_found_by_their_place(tmp_path: Path) -> None:
    from reportlab.pdfgen import canvas

    path = tmp_path / "a.pdf"
    drawing = canvas.Canvas(str(path))
    for number, (title, shown) in enumerate((("Tides", "Tides"), ("search/2", "search(Sea, Ship) -> Found"),
                                             ("sink/1", "sink(Ship) -> ok"))):  # fmt: skip
        top = 700 - 100 * number
        drawing.bookmarkHorizontal(title, 0, top + 15)
        drawing.addOutlineEntry(title, title, min(number, 1))
        drawing.drawString(72, top, shown)
        drawing.drawString(72, top - 13, f"The text below it: search/2 or sink/1, number {number}.")
    # A paragraph that only begins with its title is whole.
    running = ["Sails", "Sails are set by the crew of the ship, which has many hands and little time,", "and sing."]
    drawing.bookmarkHorizontal(running[0], 0, 410)
    drawing.addOutlineEntry(running[0], running[0], 1)
    drawing.drawString(72, 400, " ".join(running[:2]))
    drawing.drawString(72, 387, running[2])
    drawing.drawString(72, 300, "search/2")  # far from where the outline points to
    drawing.save()
    blocks = list(read(path))
    assert " ".join(running) in [block.text for block in blocks]
    assert [(block.text, block.level, block.title) for block in blocks if block.level] == [
        ("Tides", 1, ""),
        ("search(Sea, Ship) -> Found", 2, "search/2"),
        ("sink(Ship) -> ok", 2, "sink/1"),
    ]
