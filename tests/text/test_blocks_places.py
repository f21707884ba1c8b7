"""Every block of generated and of real files has its words at its place, read there by other means."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from grit_mlx.text.blocks import Block, cleaned
from grit_mlx.text.kinds import kind_of
from grit_mlx.text.readers import read
from tests.text import documents
from tests.text.test_blocks_office import message, styled

ROOT = Path(__file__).resolve().parents[2]


def words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text)


def check(path: Path, said: Callable[[int], str]) -> list[Block]:
    """Each word of each block stands in the text that other means find at its places."""
    blocks = list(read(path))
    assert blocks
    for block in blocks:
        assert block.text.strip() and 1 <= block.first <= block.last
        there = " ".join(said(place) for place in range(block.first, block.last + 1))
        missing = set(words(block.text)) - set(words(there))
        assert not missing, (path.name, block, missing)
        if block.by_line:
            assert block.text.count("\n") == block.last - block.first
    return blocks


def lines_of(path: Path) -> Callable[[int], str]:
    lines = path.read_text(encoding="utf-8").split("\n")
    return lambda number: lines[number - 1]


def sentence(number: int) -> str:
    return f"Sentence number{number} of the text speaks of subject{number * 7}."


def real_files() -> list[Path]:
    """Text files of the project, and web pages and PDF files that installed packages bring."""
    here = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("grit_mlx/text/*.py")]
    matplotlib = pytest.importorskip("matplotlib")
    pages = sorted(Path(matplotlib.__file__).parent.rglob("*.html"))[:5]
    documentation = sorted(Path("/usr/share/doc/python3.11/html/library").glob("*.html"))[::20]
    return [*here, *pages, *documentation]


def test_real_text_files() -> None:
    for path in real_files():
        if kind_of(path).typed:
            check(path, lines_of(path))


def test_real_web_pages() -> None:
    from html import unescape

    for path in real_files():
        if path.suffix == ".html":
            lines = path.read_text(encoding="utf-8").split("\n")
            # Tags end on other lines than they begin on; what is compared is letters.
            for block in read(path):
                there = unescape(re.sub(r"<[^>]*>?", "", "\n".join(lines[block.first - 1 : block.last])))
                own = words(block.text)
                assert all(word in there or word in lines[block.first - 1] for word in own[:1] + own[-1:]), (
                    path,
                    block,
                )


def test_generated_pages_of_pdf(tmp_path: Path) -> None:
    pdfium: Any = pytest.importorskip("pypdfium2")
    pytest.importorskip("reportlab")
    pages = [
        [(sentence(40 * page + line), 72.0, 780.0 - 18 * line, 11.0) for line in range(40)] for page in range(1, 30)
    ]
    path = documents.pdf(tmp_path / "a.pdf", pages)
    document = pdfium.PdfDocument(path)
    blocks = check(path, lambda number: str(document[number - 1].get_textpage().get_text_range()))
    found = " ".join(block.text for block in blocks)
    assert all(sentence(40 * page + line) in found for page in range(1, 30) for line in range(40))


def test_generated_documents(tmp_path: Path) -> None:
    numbers = range(1, 120)
    body = "".join(documents.p(sentence(number)) if number % 3 else styled(sentence(number), "H") for number in numbers)
    check(documents.word(tmp_path / "a.docx", body), sentence)

    slides = [documents.shape(sentence(number), "title") + documents.shape(sentence(number)) for number in numbers]
    check(documents.pptx(tmp_path / "a.pptx", slides), sentence)

    text = "".join(f"<text:p>{sentence(number)}</text:p>" for number in numbers)
    check(documents.opendocument(tmp_path / "a.odt", f"<office:text>{text}</office:text>"), sentence)

    drawn = "".join(
        f"<draw:page><draw:frame><draw:text-box><text:p>{sentence(n)}</text:p></draw:text-box></draw:frame></draw:page>"
        for n in numbers
    )
    path = documents.opendocument(tmp_path / "a.odp", f"<office:presentation>{drawn}</office:presentation>")
    check(path, sentence)

    chapters = {f"c{number}": f"<h1>{sentence(number)}</h1><p>{sentence(number)}</p>" for number in numbers}
    check(documents.epub(tmp_path / "a.epub", "", chapters), sentence)


def test_generated_mailboxes(tmp_path: Path) -> None:
    import mailbox

    box = mailbox.mbox(tmp_path / "a.mbox")
    for number in range(1, 30):
        box.add(message(sentence(number), f"{sentence(number)}\n\n{sentence(number)}\n"))
    box.close()
    check(tmp_path / "a.mbox", lambda number: f"From: Ada ada@example.org To: bob@example.org {sentence(number)}")


def test_generated_sheets(tmp_path: Path) -> None:
    pytest.importorskip("python_calamine")
    cells = {"A1": "Number", "B1": "Text"}
    for number in range(2, 300):
        cells |= {f"A{number}": str(number), f"B{number}": sentence(number)}
    blocks = check(
        documents.xlsx(tmp_path / "a.xlsx", {"S": cells}), lambda number: f"Number {number} Text {sentence(number)}"
    )
    assert len(blocks) == 298


def test_private_characters_for_old_figures_and_small_capitals_are_read() -> None:
    assert cleaned("Version \uf731.\uf730\uf739 of \uf761\uf77a") == "Version 1.09 of AZ"
