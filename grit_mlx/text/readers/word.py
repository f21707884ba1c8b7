"""Word documents (.docx, .docm): paragraphs and tables, and what is easily missed.

Read from the XML as a stream: python-docx leaves out tracked insertions, content controls, text boxes, nested tables,
footnotes and comments, and holds the complete document in memory. Text that was deleted under tracking is not read.
The place of a block is the number of its paragraph or table among those of the body. Footnotes and comments stand
after the paragraph that refers to them; headers come before the text, footers after it, each different one once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

from grit_mlx.text.blocks import Block, cleaned, table_blocks
from grit_mlx.text.readers.package import Package, attribute, children, local, opened_package, outermost
from grit_mlx.text.readers.source import Source

__all__ = ["read_word"]

_MAIN: Final = "officeDocument"
# Not text: what was deleted or moved away, codes of fields, phonetic guides, fall-backs of what stands beside them.
_SKIPPED: Final = frozenset(
    {"del", "moveFrom", "delText", "instrText", "rt", "Fallback", "pPr", "rPr", "tblPr", "sectPr"}
)
_TYPED: Final = {"tab": " ", "ptab": " ", "br": "\n", "cr": "\n", "noBreakHyphen": "-"}
_TITLE_LEVEL: Final = 1
_BODY_LEVEL: Final = 9  # outline level of body text, counted from 0


def read_word(source: Source) -> Iterator[Block]:
    """The blocks of a Word document.

    Raises:
        DocumentError: it is damaged, protected by a password, or a lock file.
    """
    with opened_package(source, "Word document") as package:
        main = next(iter(package.related("", _MAIN)), "word/document.xml")
        reader = _Reader(package, main)
        yield from reader.margins("header", place=1)
        yield from reader.body()
        yield from reader.margins("footer", place=max(1, reader.number))


class _Reader:
    def __init__(self, package: Package, main: str) -> None:
        self.number = 0  # of the paragraph or table
        self._package = package
        self._main = main
        self._levels = _style_levels(package, main)
        self._titled = False
        self._notes = {kind: self._notes_of(kind) for kind in ("footnotes", "endnotes", "comments")}

    def body(self) -> Iterator[Block]:
        events = self._package.events(self._main)
        for element in outermost(events, lambda element: local(element) in ("p", "tbl")):
            if _is_alternative(element):
                continue
            self.number += 1
            yield from self._blocks(element)

    def margins(self, kind: str, *, place: int) -> Iterator[Block]:
        """The texts of headers or footers, each once."""
        seen = set()
        for name in self._package.related(self._main, kind):
            for block in self._of_part(name):
                if block.text not in seen and not block.text.isdigit():
                    seen.add(block.text)
                    yield replace(block, first=place, last=place, level=0)

    def _of_part(self, name: str) -> Iterator[Block]:
        for element in self._package.xml(name):
            for part in _outermost_in(element):
                yield from self._blocks(part)

    def _blocks(self, element: Any) -> Iterator[Block]:
        """A paragraph or a table, the text boxes in it, and its notes."""
        if local(element) == "tbl":
            yield from table_blocks(
                ((cells, self.number, self.number) for cells in _rows(element)), header_rows=_header_rows(element)
            )
        else:
            if text := cleaned(_text(element)):
                yield Block(text, self.number, self.number, level=self._level(element))
            for box in _boxes(element):
                for part in _outermost_in(box):
                    yield from self._blocks(part)
        for note in self._referred(element):
            yield Block(note, self.number, self.number)

    def _level(self, paragraph: Any) -> int:
        """The level of a heading: by the paragraph's own outline level, else by its style's."""
        properties = next(children(paragraph, "pPr"), None)
        if properties is None:
            return 0
        own = _value(properties, "outlineLvl")
        style = _value(properties, "pStyle") or ""
        level = _outline_level(own) if own is not None else self._levels.get(style, 0)
        if level == _TITLE_LEVEL and self._levels.get(style) == -1:
            level = -1
        if level == -1:  # the title stands above all headings
            self._titled = True
            return _TITLE_LEVEL
        return level + self._titled if level else 0

    def _referred(self, element: Any) -> Iterator[str]:
        """The footnotes, endnotes and comments that an element refers to."""
        for child in element.iter("{*}footnoteReference", "{*}endnoteReference", "{*}commentReference"):
            kind = local(child).removesuffix("Reference") + "s"
            text = self._notes[kind].pop(attribute(child, "id") or "", "")
            if text:
                yield text

    def _notes_of(self, kind: str) -> dict[str, str]:
        name = next(iter(self._package.related(self._main, kind)), None)
        if name is None:
            return {}
        return {
            attribute(note, "id") or "": cleaned(" ".join(map(_text, note.iter("{*}p"))))
            for note in self._package.xml(name)
            if attribute(note, "type") not in ("separator", "continuationSeparator", "continuationNotice")
        }


def _is_alternative(element: Any) -> bool:
    return any(local(ancestor) in ("Fallback", "del", "moveFrom") for ancestor in element.iterancestors())


def _outermost_in(element: Any) -> Iterator[Any]:
    """The outermost paragraphs and tables in an element, itself included."""
    if local(element) in ("p", "tbl"):
        yield element
    elif local(element) not in _SKIPPED:
        for child in element:
            yield from _outermost_in(child)


def _text(element: Any, *, skipped: frozenset[str] = _SKIPPED | {"txbxContent"}) -> str:
    """The text of a paragraph; text boxes are not part of it."""
    name = local(element)
    if name in skipped:
        return ""
    if name == "t":  # in w: text, in m: a formula's, in a: a drawing's
        return element.text or ""
    if name in _TYPED:
        return _TYPED[name]
    inner = "".join(_text(child, skipped=skipped) for child in element)
    return inner + "\n" if name == "p" else inner


def _boxes(paragraph: Any) -> Iterator[Any]:
    """The text boxes anchored in a paragraph, without those in other boxes and the fall-backs for old programs."""
    for box in paragraph.iter("{*}txbxContent"):
        inside = [local(ancestor) for ancestor in box.iterancestors()]
        own = inside[: inside.index("p") + 1] if "p" in inside else inside
        if "Fallback" not in inside and "txbxContent" not in own and _nearest(box) is paragraph:
            yield box


def _nearest(box: Any) -> Any:
    return next((ancestor for ancestor in box.iterancestors() if local(ancestor) == "p"), None)


def _rows(table: Any) -> Iterator[list[str]]:
    """The cells of each row; a nested table is written into its cell."""
    for row in _own(table, "tr", but="tbl"):
        properties = next(children(row, "trPr"), ())
        if not any(True for _ in children(properties, "del")):
            yield [_cell(cell) for cell in _own(row, "tc", but="tr")]


def _own(element: Any, name: str, *, but: str) -> Iterator[Any]:
    """The rows of a table or the cells of a row, through whatever wraps them."""
    for child in element:
        if local(child) == name:
            yield child
        elif local(child) not in (but, *_SKIPPED):
            yield from _own(child, name, but=but)


def _cell(cell: Any) -> str:
    parts = []
    for element in (part for child in cell for part in _outermost_in(child)):
        if local(element) == "tbl":
            parts += [" | ".join(cells) for cells in _rows(element)]
        else:
            parts.append(_text(element, skipped=_SKIPPED))
    return " ".join(cleaned(" ".join(parts)).split())


def _header_rows(table: Any) -> int | None:
    rows = list(_own(table, "tr", but="tbl"))
    marked = 0
    for row in rows:
        if not any(local(child) == "tblHeader" for part in children(row, "trPr") for child in part):
            break
        marked += 1
    return marked or None


# --- styles -------------------------------------------------------------------------------------------------


def _style_levels(package: Package, main: str) -> dict[str, int]:
    """The heading level of each paragraph style, by its identifier; -1 for the title's.

    A style's level is its own outline level, that of the style it is based on, or what its built-in name says: Word
    keeps that name in English whatever its own language.
    """
    name = next(iter(package.related(main, "styles")), None)
    if name is None:
        return {}
    styles = {attribute(style, "styleId") or "": style for style in children(package.xml(name), "style")}
    return {identifier: level for identifier in styles if (level := _style_level(identifier, styles, depth=0))}


def _style_level(identifier: str, styles: dict[str, Any], *, depth: int) -> int:
    style = styles.get(identifier)
    if style is None or depth > 20:
        return 0
    name = (_value(style, "name") or "").lower()
    if name == "title":
        return -1
    for properties in children(style, "pPr"):
        if (level := _value(properties, "outlineLvl")) is not None:
            return _outline_level(level)
    if name.startswith("heading ") and name[8:].isdigit():
        return int(name[8:])
    return _style_level(_value(style, "basedOn") or "", styles, depth=depth + 1)


def _outline_level(value: str) -> int:
    level = int(value) if value.isdigit() else _BODY_LEVEL
    return level + 1 if level < _BODY_LEVEL else 0


def _value(element: Any, name: str) -> str | None:
    child = next(children(element, name), None)
    return None if child is None else attribute(child, "val")
