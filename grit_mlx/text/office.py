"""PDF and Word documents to paragraphs (extra ``documents``).

Both readers take an open file, yield paragraphs as they read, and raise whatever the library behind them raises.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import IO

from grit_mlx.optional import optional
from grit_mlx.text.splitting import Text

__all__ = ["docx_paragraphs", "pdf_paragraphs"]


def pdf_paragraphs(file: IO[bytes], source: str) -> Iterator[Text]:
    """The blocks of a PDF, with their page."""
    pypdf = optional("pypdf", extra="documents", purpose="Reading PDF files")
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # what it cannot read it raises
    for number, page in enumerate(pypdf.PdfReader(file).pages, start=1):
        for block in (page.extract_text() or "").split("\n\n"):
            if block.strip():
                yield Text(block.strip(), source, number, number)


def docx_paragraphs(file: IO[bytes], source: str) -> Iterator[Text]:
    """The paragraphs and tables of a Word document, with their number; headings are marked as in Markdown."""
    docx = optional("docx", extra="documents", purpose="Reading Word documents")
    for number, block in enumerate(docx.Document(file).iter_inner_content(), start=1):
        if hasattr(block, "rows"):  # a table
            text = "\n".join(" | ".join(cell.text.strip() for cell in row.cells) for row in block.rows)
        else:
            style = block.style.name if block.style is not None else ""
            level = style.removeprefix("Heading ") if style.startswith("Heading ") else "1" if style == "Title" else ""
            text = ("#" * min(int(level), 6) + " " if level.isdigit() else "") + block.text.strip()
        if text.strip("# |\n"):
            yield Text(text, source, number, number)
