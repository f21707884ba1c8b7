"""Rich text (.rtf) by striprtf. The place of a block is its paragraph."""

from __future__ import annotations

from collections.abc import Iterator

from grit_mlx.optional import optional
from grit_mlx.text.blocks import Block, cleaned, table_blocks
from grit_mlx.text.readers.source import Source

__all__ = ["read_rtf"]


def read_rtf(source: Source) -> Iterator[Block]:
    """The paragraphs of a rich text file, and the rows of its tables.

    Raises:
        DocumentError: it is not one.
        DependencyError: striprtf is not installed.
    """
    striprtf = optional("striprtf.striprtf", extra="documents", purpose="Reading RTF files")
    data = source.file.read()
    if not data.lstrip().startswith(b"{\\rtf"):
        raise source.failure("is not an RTF file.")
    try:
        text = striprtf.rtf_to_text(data.decode("latin-1"), encoding="cp1252", errors="replace")
    except Exception as error:  # whatever its parsing trips over
        raise source.damaged("RTF", error) from error
    table: list[tuple[list[str], int, int]] = []
    for number, paragraph in enumerate(text.split("\n"), start=1):
        cells = [cleaned(cell) for cell in paragraph.split("|")]
        if paragraph.endswith("|") and len(cells) > 1:  # striprtf's way to write a row
            table.append((cells[:-1], number, number))
            continue
        yield from table_blocks(table)
        table = []
        if paragraph := cleaned(paragraph):
            yield Block(paragraph, number, number)
    yield from table_blocks(table)
