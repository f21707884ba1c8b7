"""OpenDocument texts and presentations (.odt, .odp, and their templates): paragraphs, lists, tables, notes, frames.

The place of a block is the number of its paragraph or table among those of the text, or its slide. Text that was
deleted under tracking is not read. Spreadsheets (.ods) are read by ``sheets``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from grit_mlx.text.blocks import Block, cleaned, table_blocks
from grit_mlx.text.readers.package import Package, attribute, children, local, opened_package, outermost
from grit_mlx.text.readers.source import Source

__all__ = ["read_opendocument"]

_PARAGRAPHS: Final = ("p", "h")
_SKIPPED: Final = frozenset(
    {"tracked-changes", "ruby-text", "note-citation", "bookmark-ref", "annotation-end", "creator", "date", "desc",
     "variable-decls", "sequence-decls", "user-field-decls", "object", "object-ole", "settings", "forms"}
)  # fmt: skip
# What stands in a paragraph but is a text of its own.
_ASIDE: Final = frozenset({"note", "annotation", "text-box"})
_TYPED: Final = {"tab": " ", "line-break": "\n"}
_TITLES: Final = ("title", "subtitle")


def read_opendocument(source: Source) -> Iterator[Block]:
    """The blocks of an OpenDocument text or presentation.

    Raises:
        DocumentError: it is damaged, protected by a password, or a lock file.
    """
    with opened_package(source, "OpenDocument file") as package:
        manifest = "META-INF/manifest.xml"
        if manifest in package and b"encryption-data" in package.read(manifest):
            raise package.protected()
        if source.suffix in (".odp", ".otp"):
            yield from _slides(package)
        else:
            yield from _text_document(package)


def _text_document(package: Package) -> Iterator[Block]:
    margins = [text for part in ("styles.xml",) if part in package for text in _margins(package.xml(part))]
    yield from (Block(text, 1, 1) for text in margins)
    number = 0
    events = package.events("content.xml")
    for element in outermost(events, lambda one: local(one) in (*_PARAGRAPHS, "table", "tracked-changes")):
        if local(element) == "tracked-changes":
            continue
        if not any(local(ancestor) == "body" for ancestor in element.iterancestors()):
            continue
        number += 1
        yield from _blocks(element, number)


def _margins(styles: Any) -> list[str]:
    """The texts of headers and footers, each once."""
    texts = (
        cleaned("\n".join(map(_text, margin.iter(*(f"{{*}}{name}" for name in _PARAGRAPHS)))))
        for margin in styles.iter("{*}header", "{*}footer", "{*}header-left", "{*}footer-left")
    )
    return list(dict.fromkeys(text for text in texts if text and not text.isdigit()))


def _slides(package: Package) -> Iterator[Block]:
    for number, page in enumerate(package.xml("content.xml").iter("{*}page"), start=1):
        for frame in page.iter("{*}frame", "{*}custom-shape", "{*}rect", "{*}ellipse", "{*}line", "{*}connector"):
            is_title = attribute(frame, "class") in _TITLES[:1]
            for element in _outermost_in(frame):
                for block in _blocks(element, number):
                    yield Block(block.text, number, number, 1, glue=block.glue) if is_title else block


def _outermost_in(element: Any) -> Iterator[Any]:
    for child in element:
        name = local(child)
        if name in (*_PARAGRAPHS, "table"):
            yield child
        elif name not in _SKIPPED and name != "frame":
            yield from _outermost_in(child)


def _blocks(element: Any, number: int) -> Iterator[Block]:
    if local(element) == "table":
        head = sum(1 for rows in children(element, "table-header-rows") for _ in children(rows, "table-row"))
        yield from table_blocks(((cells, number, number) for cells in _rows(element)), header_rows=head or None)
        return
    if text := cleaned(_text(element)):
        level = attribute(element, "outline-level") if local(element) == "h" else None
        style = attribute(element, "style-name") or ""
        title = style == "Title" and level is None
        yield Block(text, number, number, level=1 if title else int(level) if level and level.isdigit() else 0)
    for aside in element.iter(*(f"{{*}}{name}" for name in _ASIDE)):
        if _is_own(aside, element):
            for part in _outermost_in(aside):
                yield from _blocks(part, number)


def _is_own(aside: Any, element: Any) -> bool:
    """Whether nothing between two elements is a text of its own."""
    for ancestor in aside.iterancestors():
        if ancestor is element:
            return True
        if local(ancestor) in _ASIDE:
            return False
    return False


def _text(element: Any) -> str:
    """The text of a paragraph, without what stands aside."""
    name = local(element)
    if name in _SKIPPED or name in _ASIDE:
        return ""
    if name in _TYPED:
        return _TYPED[name]
    if name == "s":  # blanks
        count = attribute(element, "c") or "1"
        return " " * min(int(count) if count.isdigit() else 1, 100)
    parts = [element.text or ""]
    for child in element:
        parts += (_text(child), child.tail or "")
    return "".join(parts)


def _rows(table: Any) -> Iterator[list[str]]:
    for child in table:
        name = local(child)
        if name == "table-row":
            yield [_cell(cell) for cell in children(child, "table-cell", "covered-table-cell")]
        elif name in ("table-header-rows", "table-rows", "table-row-group"):
            yield from _rows(child)


def _cell(cell: Any) -> str:
    parts = []
    for element in _outermost_in(cell):
        if local(element) == "table":
            parts += [" | ".join(cells) for cells in _rows(element)]
        else:
            parts.append(_text(element))
    return " ".join(cleaned(" ".join(parts)).split())
