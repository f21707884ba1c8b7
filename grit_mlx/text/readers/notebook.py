"""Jupyter notebooks (.ipynb): Markdown, code and the text of results. The place of a block is its cell."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from grit_mlx.text.blocks import Block, cleaned
from grit_mlx.text.readers.html import html_blocks
from grit_mlx.text.readers.markup import markdown_blocks
from grit_mlx.text.readers.source import Source

__all__ = ["read_notebook"]


def read_notebook(source: Source) -> Iterator[Block]:
    """The blocks of a notebook.

    Raises:
        DocumentError: it is not one.
    """
    try:
        notebook = json.loads("".join(source.text()))
        sheets = notebook.get("worksheets") or [notebook]  # format 3 has cells in sheets
        cells = [cell for sheet in sheets for cell in sheet["cells"] if isinstance(cell, dict)]
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError) as error:
        raise source.failure("cannot be read as a notebook: it is not JSON with cells.") from error
    for number, cell in enumerate(cells, start=1):
        for block in _cell(cell):
            text = block.title or block.text
            yield replace(block, text=text, title="", first=number, last=number, by_line=False)


def _cell(cell: dict[str, Any]) -> Iterator[Block]:
    text = _joined(cell.get("source", cell.get("input", "")))
    kind = cell.get("cell_type")
    if kind in ("markdown", "heading"):
        prefix = "#" * int(cell.get("level", 1)) + " " if kind == "heading" else ""
        yield from markdown_blocks(f"{prefix}{text}".split("\n"))
    elif text.strip():
        yield Block(text.strip("\n"), 1, 1, verbatim=kind == "code")
    for output in cell.get("outputs") or ():
        yield from _output(output)


def _output(output: dict[str, Any]) -> Iterator[Block]:
    data = output.get("data", output)
    text = _joined(output.get("text", "")) or _joined(data.get("text/plain", ""))
    if output.get("output_type") in ("error", "pyerr"):
        text = f"{output.get('ename', '')}: {output.get('evalue', '')}"
    elif html := _joined(data.get("text/html", "")):  # a table; its plain text is cut to the width of a screen
        blocks = list(html_blocks(html, place=1))
        if blocks:
            yield from (replace(block, level=0) for block in blocks)
            return
    elif markdown := _joined(data.get("text/markdown", "")):
        text = markdown
    if text := cleaned(text):
        yield Block(text, 1, 1, verbatim=True)


def _joined(value: Any) -> str:
    """Text that may be split into a list of lines."""
    return "".join(part for part in value if isinstance(part, str)) if isinstance(value, list) else str(value or "")
