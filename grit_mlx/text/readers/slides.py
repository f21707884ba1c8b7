"""PowerPoint presentations (.pptx, .pptm): the shapes, tables, diagrams, charts and notes of each slide.

Read from the XML: python-pptx has no diagrams and brings an image library along. The place of a block is its slide.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from grit_mlx.text.blocks import Block, cleaned, table_blocks
from grit_mlx.text.readers.package import Package, children, local, opened_package
from grit_mlx.text.readers.source import Source

__all__ = ["read_slides"]

_TITLES: Final = frozenset({"title", "ctrTitle"})
_FURNITURE: Final = frozenset({"sldNum", "dt", "ftr", "hdr", "sldImg"})


def read_slides(source: Source) -> Iterator[Block]:
    """The blocks of a presentation.

    Raises:
        DocumentError: it is damaged, protected by a password, or a lock file.
    """
    with opened_package(source, "PowerPoint presentation") as package:
        main = next(iter(package.related("", "officeDocument")), "ppt/presentation.xml")
        relations = package.relations(main)
        for number, identifier in enumerate(_slide_ids(package.xml(main)), start=1):
            _, part = relations.get(identifier, ("", ""))
            if part in package:
                yield from _slide(package, part, number)


def _slide_ids(presentation: Any) -> Iterator[str]:
    """The relations of the slides, in order. A slide has two attributes called id; the relation's has a namespace."""
    for identifiers in children(presentation, "sldIdLst"):
        for slide in children(identifiers, "sldId"):
            yield next((value for key, value in slide.attrib.items() if key.startswith("{")), "")


def _slide(package: Package, part: str, number: int) -> Iterator[Block]:
    for shape in _shapes(package.xml(part)):
        yield from _shape(shape, number)
    for kind in ("diagramData", "chart"):
        for name in package.related(part, kind):
            texts = _paragraphs(package.xml(name)) or _cached(package.xml(name))
            if texts:
                yield Block("\n".join(texts), number, number)
    for name in package.related(part, "notesSlide"):
        for shape in _shapes(package.xml(name)):
            yield from _shape(shape, number, title_level=0)


def _shapes(slide: Any) -> Iterator[Any]:
    """Shapes, connectors' labels and tables, through groups; of alternatives the first."""
    for child in slide:
        name = local(child)
        if name in ("sp", "cxnSp", "graphicFrame"):
            yield child
        elif name != "Fallback":
            yield from _shapes(child)


def _shape(shape: Any, number: int, *, title_level: int = 1) -> Iterator[Block]:
    table = next(shape.iter("{*}tbl"), None)
    if table is not None:
        rows = list(children(table, "tr"))
        properties = next(children(table, "tblPr"), None)
        marked = properties is not None and properties.get("firstRow") == "1"
        cells = ([" ".join(" ".join(_paragraphs(cell)).split()) for cell in children(row, "tc")] for row in rows)
        yield from table_blocks(((row, number, number) for row in cells), header_rows=1 if marked else None)
        return
    placeholder = next(shape.iter("{*}ph"), None)
    kind = "" if placeholder is None else placeholder.get("type", "")
    text = "" if kind in _FURNITURE else cleaned("\n".join(_paragraphs(shape)))
    if text:
        yield Block(text, number, number, level=title_level if kind in _TITLES else 0)


def _paragraphs(element: Any) -> list[str]:
    """The texts of the paragraphs in an element that are not blank."""
    texts = (cleaned("".join(map(_run, paragraph.iter()))) for paragraph in element.iter("{*}p"))
    return [text for text in texts if text]


def _run(element: Any) -> str:
    name = local(element)
    return (element.text or "") if name == "t" else "\n" if name == "br" else ""


def _cached(chart: Any) -> list[str]:
    """The names of a chart's categories and series."""
    texts = [value.text or "" for cache in chart.iter("{*}strCache") for value in cache.iter("{*}v")]
    return list(dict.fromkeys(filter(str.strip, texts)))
