"""Files of many kinds, written for the tests from nothing but the text that they shall hold."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

W = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
R = 'xmlns:r="http://schemas.openxmlformats.org/officeDocument/2006/relationships"'
RELATIONS = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"


def zipped(path: Path, parts: dict[str, str | bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    return path


def relations(**targets: str) -> str:
    """An OOXML part of relations; names are identifiers, values "type target"."""
    rows = "".join(
        f'<Relationship Id="{identifier}" Type="{RELATIONS}/{value.split()[0]}" Target="{value.split()[1]}"/>'
        for identifier, value in targets.items()
    )
    return f'<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">{rows}</Relationships>'


def word(path: Path, body: str, *, parts: dict[str, str] | None = None, related: dict[str, str] | None = None) -> Path:
    """A Word document with this XML as body."""
    return zipped(
        path,
        {
            "_rels/.rels": relations(r1="officeDocument word/document.xml"),
            "word/document.xml": f"<w:document {W} {R}><w:body>{body}</w:body></w:document>",
            "word/_rels/document.xml.rels": relations(**(related or {})),
            **{f"word/{name}": xml for name, xml in (parts or {}).items()},
        },
    )


def p(text: str, properties: str = "") -> str:
    """A paragraph of Word."""
    return f"<w:p>{f'<w:pPr>{properties}</w:pPr>' if properties else ''}<w:r><w:t>{text}</w:t></w:r></w:p>"


def pdf(path: Path, pages: Sequence[Sequence[tuple[str, float, float, float]]], **settings: Any) -> Path:
    """A PDF file; a page is a list of (text, left, bottom, size)."""
    from reportlab.pdfgen import canvas

    drawing = canvas.Canvas(str(path), **settings)
    for page in pages:
        for text, left, bottom, size in page:
            drawing.setFont("Helvetica", size)
            drawing.drawString(left, bottom, text)
        drawing.showPage()
    drawing.save()
    return path


def png() -> bytes:
    """A grey picture."""
    from PIL import Image

    data = io.BytesIO()
    Image.new("L", (60, 80), 128).save(data, "PNG")
    return data.getvalue()


def pptx(path: Path, slides: Sequence[str], *, parts: dict[str, str] | None = None) -> Path:
    """A presentation; a slide is the XML of its shapes. The files of the slides are numbered backwards."""
    numbers = range(len(slides), 0, -1)
    identifiers = "".join(f'<p:sldId id="{255 + n}" r:id="s{n}"/>' for n in numbers)
    spaces = f'xmlns:p="http://p" xmlns:a="http://a" {R}'
    files = {
        f"ppt/slides/slide{n}.xml": f"<p:sld {spaces}><p:cSld><p:spTree>{xml}</p:spTree></p:cSld></p:sld>"
        for n, xml in zip(numbers, slides, strict=True)
    }
    return zipped(
        path,
        {
            "_rels/.rels": relations(r1="officeDocument ppt/presentation.xml"),
            "ppt/presentation.xml": f"<p:presentation {spaces}><p:sldIdLst>{identifiers}</p:sldIdLst></p:presentation>",
            "ppt/_rels/presentation.xml.rels": relations(**{f"s{n}": f"slide slides/slide{n}.xml" for n in numbers}),
            **files,
            **(parts or {}),
        },
    )


def shape(text: str, kind: str = "") -> str:
    """A shape of PowerPoint; a newline parts paragraphs."""
    placeholder = f'<p:nvPr><p:ph type="{kind}"/></p:nvPr>' if kind else ""
    paragraphs = "".join(f"<a:p><a:r><a:t>{line}</a:t></a:r></a:p>" for line in text.split("\n"))
    return f"<p:sp><p:nvSpPr>{placeholder}</p:nvSpPr><p:txBody>{paragraphs}</p:txBody></p:sp>"


STYLES = (
    '<numFmts><numFmt numFmtId="164" formatCode="0.0%"/><numFmt numFmtId="165" formatCode="0&quot;%&quot;"/></numFmts>'
    '<cellXfs><xf numFmtId="0"/><xf numFmtId="164"/><xf numFmtId="165"/></cellXfs>'
)


def xlsx(
    path: Path,
    sheets: dict[str, dict[str, str]],
    *,
    merged: dict[str, list[str]] | None = None,
    hidden: tuple[str, ...] = (),
) -> Path:
    """A workbook; a sheet is a mapping of cells ("B2") to values.

    Figures are written as numbers, "0.5%1" as 0.5 in the style 1 of ``STYLES``, "=A1" as a formula without a value.
    """
    main = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
    state = {name: ' state="hidden"' if name in hidden else "" for name in sheets}
    listed = "".join(f'<sheet name="{n}" sheetId="{i}"{state[n]} r:id="r{i}"/>' for i, n in enumerate(sheets, 1))
    files = {}
    for index, (name, cells) in enumerate(sheets.items(), 1):
        rows: dict[int, str] = {}
        for cell, written in cells.items():
            value, _, style = written.partition("%")
            is_number = value.replace(".", "", 1).isdigit()
            inner = f"<v>{value}</v>" if is_number else f"<is><t>{value}</t></is>"
            typed = f' s="{style or 0}"' if is_number else ' t="inlineStr"'
            if value.startswith("="):
                inner, typed = f"<f>{value[1:]}</f>", ""
            row = int(cell.lstrip("ABCDEFG"))
            rows[row] = rows.get(row, "") + f'<c r="{cell}"{typed}>{inner}</c>'
        data = "".join(f'<row r="{number}">{xml}</row>' for number, xml in sorted(rows.items()))
        refs = "".join(f'<mergeCell ref="{ref}"/>' for ref in (merged or {}).get(name, ()))
        after = f"<mergeCells>{refs}</mergeCells>" if refs else ""
        files[f"xl/worksheets/sheet{index}.xml"] = f"<worksheet {main}><sheetData>{data}</sheetData>{after}</worksheet>"
    kind = "application/vnd.openxmlformats-officedocument.spreadsheetml"
    overrides = "".join(f'<Override PartName="/{name}" ContentType="{kind}.worksheet+xml"/>' for name in files)
    types = "http://schemas.openxmlformats.org/package/2006/content-types"
    return zipped(
        path,
        {
            "[Content_Types].xml": f'<Types xmlns="{types}">'
            f'<Override PartName="/xl/workbook.xml" ContentType="{kind}.sheet.main+xml"/>'
            f"{overrides}</Types>",
            "_rels/.rels": relations(r1="officeDocument xl/workbook.xml"),
            "xl/workbook.xml": f"<workbook {main} {R}><sheets>{listed}</sheets></workbook>",
            "xl/_rels/workbook.xml.rels": relations(
                **{f"r{i}": f"worksheet worksheets/sheet{i}.xml" for i in range(1, len(sheets) + 1)},
                styles="styles styles.xml",
            ),
            "xl/styles.xml": f"<styleSheet {main}>{STYLES}</styleSheet>",
            **files,
        },
    )


OFFICE = " ".join(
    f'xmlns:{short}="urn:oasis:names:tc:opendocument:xmlns:{name}:1.0"'
    for short, name in (("office", "office"), ("text", "text"), ("table", "table"), ("draw", "drawing"),
                        ("presentation", "presentation"), ("style", "style"))
)  # fmt: skip


def opendocument(path: Path, body: str, *, parts: dict[str, str] | None = None) -> Path:
    """An OpenDocument file with this XML as body."""
    content = f"<office:document-content {OFFICE}><office:body>{body}</office:body></office:document-content>"
    return zipped(
        path, {"mimetype": "application/vnd.oasis.opendocument.text", "content.xml": content, **(parts or {})}
    )


def epub(path: Path, title: str, chapters: dict[str, str]) -> Path:
    """A book; a chapter is the HTML of its body."""
    container = (
        '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
        '<rootfile full-path="OEBPS/book.opf"/></rootfiles></container>'
    )
    items = "".join(f'<item id="{n}" href="{n}.xhtml" media-type="application/xhtml+xml"/>' for n in sorted(chapters))
    spine = "".join(f'<itemref idref="{name}"/>' for name in chapters)
    book = (
        '<package xmlns="http://www.idpf.org/2007/opf" xmlns:dc="http://purl.org/dc/elements/1.1/">'
        f"<metadata><dc:title>{title}</dc:title></metadata><manifest>{items}</manifest><spine>{spine}</spine></package>"
    )
    pages = {
        f"OEBPS/{name}.xhtml": f'<?xml version="1.0"?><html xmlns="http://www.w3.org/1999/xhtml"><body>{html}</body></html>'
        for name, html in chapters.items()
    }
    return zipped(path, {"META-INF/container.xml": container, "OEBPS/book.opf": book, **pages})
