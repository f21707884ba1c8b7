"""Web pages by lxml: the main content as paragraphs, headings, listings and rows of tables, each with its lines.

The main content is the page's ``<main>``, ``role="main"`` or only ``<article>``; else all of it. Left out are scripts,
styles, forms' controls, what is hidden, marks that link to a heading, and around the main content navigation, side
bars, banners and footers by their element, role or name. A part that holds most of the page's text or its first
heading is never taken for navigation, whatever it is called: an unclosed ``<nav>`` costs no text.

lxml reads half as fast as selectolax (30 and 70 MB a second of Python's documentation, beside a walk in Python that
takes longer than either), but knows the line of each element, and office documents need it anyway.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from html import escape
from typing import Any, Final

from lxml import etree

from grit_mlx.text.blocks import Block, cleaned, table_blocks
from grit_mlx.text.readers.source import Source

__all__ = ["html_blocks", "read_html"]

_HEADINGS: Final = {f"h{level}": level for level in range(1, 7)}
_BLOCK_NAMES: Final = (
    "address article aside blockquote body caption center dd details dialog dir div dl dt fieldset figcaption figure "
    "footer form header hgroup hr html legend li main menu nav ol optgroup option p pre search section summary table "
    "tbody td tfoot th thead title tr ul"
)
_BLOCKS: Final = frozenset([*_BLOCK_NAMES.split(), *_HEADINGS])
# Never text that a reader sees.
_SILENT_NAMES: Final = (
    "script style template noscript svg head iframe object embed canvas audio video map button select input textarea "
    "datalist annotation annotation-xml rp rt"
)
_SILENT: Final = frozenset(_SILENT_NAMES.split())
# In the middle of a line; most of a page's elements, so they are told first.
_INLINE_NAMES: Final = (
    "a abbr acronym b bdi bdo big cite code data del dfn em font i ins kbd label mark q ruby s samp small span strike "
    "strong sub sup time tt u var wbr"
)
_INLINE: Final = frozenset(_INLINE_NAMES.split())
_SPACE: Final = re.compile(r"\s+")
# Around the content, not of it.
_AROUND: Final = frozenset({"nav", "aside", "footer", "menu", "dialog", "search"})
_AROUND_ROLES: Final = frozenset({"navigation", "banner", "contentinfo", "complementary", "search", "menu", "menubar",
                                  "toolbar", "dialog", "alertdialog"})  # fmt: skip
_NAVIGATION: Final = (
    r"[a-z]*nav|banner|navbar|navigation|navheader|navfooter|menu|sidebar|sphinxsidebar|breadcrumbs?|toc(?:tree)?|"
    r"share|social|pagination|related"
)
_AROUND_NAMES: Final = re.compile(
    rf"(?:^|[\s_-])(?:(?P<links>{_NAVIGATION})|cookies?|consent|masthead|skip-?link|skip-?to-?content|"
    r"advert(?:isement)?|ads?|newsletter|site-?(?:header|footer)|page-?footer|footer)(?:$|[\s_-]|bar|wrapper)",
    re.IGNORECASE,
)
# Words that are no link, with an end: somebody wrote them to be read.
_SENTENCE_END: Final = re.compile(r"[.!?…](?=\s|$)|[。！？؟।]")  # noqa: RUF001
_SHORTEST_SENTENCE: Final = 42
# Numbers beside listings, and links that edit a section.
_FURNITURE: Final = re.compile(r"linenos|lineno|mw-editsection|mw-jump-link")
_NAMED: Final = frozenset({"div", "ul", "ol", "section", "table", "p", "header", "form", "center", "td"})
_PERMALINK: Final = re.compile(r"headerlink|anchor-?link|permalink|heading-?link|(?:^|\s)anchor(?:\s|$)", re.IGNORECASE)
_PERMALINK_TEXTS: Final = frozenset({"¶", "#", "§", "🔗", "link"})
_HIDDEN_STYLE: Final = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.IGNORECASE)
# Beyond this share of the page's text a part is content.
_MOST: Final = 0.5
# What is named like navigation inside of the content has to look like it as well.
_MOSTLY_LINKS: Final = 0.6
# A main part with fewer is a shell that a script fills.
_FEW_LETTERS: Final = 10


def read_html(source: Source) -> Iterator[Block]:
    """The blocks of a web page; their places are its lines.

    Raises:
        DocumentError: the file is not text.
    """
    return html_blocks("".join(source.text("markup")))


# Text of XHTML as it stands; parsers of HTML take it for a comment.
_CDATA: Final = re.compile(r"<!\[CDATA\[(.*?)\]\]>", re.DOTALL)


def html_blocks(html: str, *, place: int | None = None) -> Iterator[Block]:
    """The blocks of a page.

    Args:
        html: the page; whatever is broken in it is read as well as it goes.
        place: the place of all of them; None for their lines.
    """
    root = _parsed(_CDATA.sub(lambda match: escape(match[1]), html))
    if root is None:
        return
    blocks = _Walk(root).blocks()
    title = _title(root)
    if title is not None and not any(
        block.level == 1 or (block.level and block.text == title.text) for block in blocks
    ):
        top = min((block.first for block in blocks), default=title.first)
        blocks.insert(0, replace(title, first=min(title.first, top)))
    for block in blocks:
        yield block if place is None else replace(block, first=place, last=place, by_line=False)


def _parsed(html: str) -> Any:
    # A parser fed with text ignores what the page says of its encoding. NUL would end the text.
    parser = etree.HTMLParser(encoding="utf-8", huge_tree=True, remove_comments=False, no_network=True)
    # libxml2 stops at the first end of a page, and joined files have several.
    html = re.sub(r"</(?:body|html)\s*>", "", html, flags=re.IGNORECASE)
    html = re.sub(r"^\s*<\?xml[^>]*\?>", lambda match: "\n" * match[0].count("\n"), html.replace("\0", ""))
    try:
        return etree.fromstring(html.encode("utf-8", "replace"), parser) if html.strip() else None
    except etree.XMLSyntaxError:  # nothing but white space or comments
        return None


def _title(root: Any) -> Block | None:
    for element in root.iter("title"):
        if any(ancestor.tag == "svg" for ancestor in element.iterancestors()):
            continue
        if text := " ".join(cleaned(_all_text(element)).split()):
            line = element.sourceline or 1
            return Block(text, line, line + _all_text(element).rstrip().count("\n"), level=1)
    return None


def _all_text(element: Any) -> str:
    return "".join(element.itertext(with_tail=False))


def _letters(element: Any) -> int:
    return sum(len(text.strip()) for text in element.itertext(with_tail=False))


def _is_mostly_links(element: Any) -> bool:
    return sum(map(_letters, element.iter("a"))) >= _MOSTLY_LINKS * _letters(element)


def _reads(element: Any) -> bool:
    """Whether there is a sentence beside the links."""
    text = "".join(element.xpath("descendant-or-self::text()[not(ancestor::a)]")).strip()
    begin = re.search(r"\w{2}", text)
    return begin is not None and _SENTENCE_END.search(text, begin.start() + _SHORTEST_SENTENCE) is not None


# --- which parts are content --------------------------------------------------------------------------------


def _main_content(root: Any) -> Any:
    found = [element for element in root.iter("main", "article", "div", "section") if _is_main(element)]
    outermost = [one for one in found if not any(ancestor in found for ancestor in one.iterancestors())]
    if len(outermost) == 1 and _letters(outermost[0]) >= _FEW_LETTERS:
        return outermost[0]
    articles = list(root.iter("article"))
    if len(articles) == 1 and _letters(articles[0]) >= _MOST * _text_letters(root):
        return articles[0]
    return root  # text after </body> is text too


def _is_main(element: Any) -> bool:
    return element.tag == "main" or (element.get("role") or "").lower() == "main"


def _text_letters(element: Any) -> int:
    """Letters outside of scripts and styles."""
    return _letters(element) - sum(_letters(silent) for silent in element.iter("script", "style", "noscript", "head"))


def _names(element: Any) -> str:
    return f"{element.get('class') or ''} {element.get('id') or ''}"


def _is_hidden(attributes: Any) -> bool:
    return (
        "hidden" in attributes
        or attributes.get("aria-hidden", "").lower() == "true"
        or ("style" in attributes and _HIDDEN_STYLE.search(attributes["style"]) is not None)
    )


def _is_permalink(element: Any) -> bool:
    if element.tag != "a" or len(element):
        return False
    text = (element.text or "").strip().lower()
    if text.isdigit() and element.get("href", "").startswith("#"):  # a number beside each paragraph
        return _all_text(element.getparent()).strip() == text
    return text in _PERMALINK_TEXTS or (len(text) <= 1 and _PERMALINK.search(_names(element)) is not None)


# --- content to blocks --------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Open:
    """A run of text that is being gathered."""

    parts: list[str] = field(default_factory=list)
    first: int = 0
    last: int = 0


class _Walk:
    """One pass over the tree; lxml knows the line of each start tag, newlines in the text count on from there."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._main = _main_content(root)
        self._all = max(1, _text_letters(self._main))
        self._has_heading = self._main.find(".//h1") is not None
        self._found: list[Block] = []
        self._open = _Open()
        self._level = 0
        self._verbatim = 0
        self._tables: list[_Table] = []
        self._line = self._main.sourceline or 1

    def blocks(self) -> list[Block]:
        main, skipped = self._main, None
        walker = etree.iterwalk(main, events=("start", "end", "comment", "pi"))
        for event, element in walker:
            if event == "start":
                line = element.sourceline or 0
                if line > self._line:
                    self._line = line
                if element is not main and self._is_left_out(element):
                    walker.skip_subtree()
                    self._line += _all_text(element).count("\n")
                    skipped = element  # its end is the next event
                    continue
                if element.tag not in _INLINE:
                    self._start(element)
                if element.text:
                    self._add(element.text)
                continue
            if event == "end":
                if element is not skipped and element.tag not in _INLINE:
                    self._end(element)
            else:
                self._line = max(self._line, element.sourceline or 0) + (element.text or "").count("\n")
            if element is not main and element.tail:
                self._add(element.tail)
        self._close()
        return self._found

    def _is_left_out(self, element: Any) -> bool:
        name = element.tag
        if name in _SILENT:
            return True
        attributes = element.attrib
        if not attributes and name not in _AROUND and name != "header":
            return False
        if _is_hidden(attributes) or _FURNITURE.search(attributes.get("class", "")) is not None:
            return True
        if name in _INLINE:
            return name == "a" and _is_permalink(element)
        role = attributes.get("role", "").lower()
        if self._main is self._root:
            around = (
                name in _AROUND
                or role in _AROUND_ROLES
                or (name == "header" and element.getparent().tag == "body")
                or (name in _NAMED and self._is_named_around(element))
            )
        else:  # asides and footers in the content are notes and margins of it
            around = name in ("nav", "menu") or role in _AROUND_ROLES - {"complementary"}
            around = around or (
                name in _NAMED
                and _AROUND_NAMES.search(attributes.get("class", "")) is not None
                and _is_mostly_links(element)
            )
        return around and self._is_around(element)

    def _is_named_around(self, element: Any) -> bool:
        """By its class or identifier.

        Books have side bars of text between their paragraphs; and a section has its identifier from its heading. So
        navigation has to look like it, too.
        """
        if name := _AROUND_NAMES.search(element.get("class", "")):
            return not name["links"] or not _reads(element) or _is_mostly_links(element)
        if not _AROUND_NAMES.search(element.get("id", "")):
            return False
        has_heading = any(element.find(f".//{heading}") is not None for heading in _HEADINGS)
        return not has_heading or _is_mostly_links(element)

    def _is_around(self, element: Any) -> bool:
        if element.find(".//h1") is not None or element.find(".//main") is not None:
            return False
        return _letters(element) < _MOST * self._all

    def _start(self, element: Any) -> None:
        name = element.tag
        if name == "br":
            self._open.parts.append("\n")
        elif name == "table":
            self._close()
            self._tables.append(_Table(is_layout=_is_layout(element)))
        elif self._in_table(name):
            self._tables[-1].start(element, self._open, self._line)
        elif name in _BLOCKS:
            self._close()
            self._level = _HEADINGS.get(name, 0)
        if name == "pre":
            self._verbatim += 1

    def _end(self, element: Any) -> None:
        name = element.tag
        if name == "table" and self._tables:
            self._close()
            self._found += self._tables.pop().blocks()
        elif self._in_table(name):
            if name in ("td", "th"):
                self._tables[-1].cell(self._taken())
        elif name in _BLOCKS:
            self._close()
        if name == "pre":
            self._verbatim -= 1

    def _in_table(self, name: str) -> bool:
        return bool(self._tables) and not self._tables[-1].is_layout and name in ("tr", "td", "th", "thead")

    def _add(self, text: str) -> None:
        gathered, newlines = self._open, text.count("\n")
        if not text.isspace():
            if not gathered.first:
                gathered.first = self._line + (text[: len(text) - len(text.lstrip())].count("\n") if newlines else 0)
            gathered.last = self._line + (text.rstrip().count("\n") if newlines else 0)
        if gathered.first or self._verbatim:
            gathered.parts.append(text if self._verbatim else _SPACE.sub(" ", text))
        self._line += newlines

    def _taken(self) -> Block | None:
        """What was gathered since the last border."""
        gathered, self._open = self._open, _Open()
        level, self._level = self._level, 0
        if not gathered.first:
            return None
        first, last = gathered.first, max(gathered.first, gathered.last)
        if self._verbatim:
            text = "".join(gathered.parts).strip("\n").rstrip()
            by_line = text.count("\n") == last - first
            return Block(text, first, last, by_line=by_line, verbatim=True) if text.strip() else None
        text = cleaned("".join(gathered.parts))
        return Block(text, first, last, level=level) if text else None

    def _close(self) -> None:
        """End the block; inside a cell it is a part of the cell."""
        block = self._taken()
        if block is not None:
            if self._tables and self._tables[-1].row is not None:
                self._tables[-1].cell(block, whole=False)
            else:
                self._found.append(block)


class _Table:
    """A table that is being read; of one that only lays out the page, cells are blocks like any other."""

    def __init__(self, *, is_layout: bool) -> None:
        self.is_layout = is_layout
        self.row: list[str] | None = None
        self._rows: list[tuple[list[str], int, int]] = []
        self._heads: list[bool] = []
        self._parts: list[str] = []
        self._places: list[int] = []

    def start(self, element: Any, gathered: _Open, line: int) -> None:
        if element.tag == "tr":
            self._finish()
            self.row = []
            cells = [child.tag for child in element if child.tag in ("td", "th")]
            self._heads.append(bool(cells) and all(tag == "th" for tag in cells))
        elif element.tag in ("td", "th") and self.row is None:  # a cell without a row
            self.row = []
            self._heads.append(False)

    def cell(self, block: Block | None, *, whole: bool = True) -> None:
        """Add to the open cell; where it is ``whole``, end it."""
        if block is not None:
            self._parts.append(" ".join(block.text.split()))
            self._places += (block.first, block.last)
        if whole and self.row is not None:
            self.row.append(" ".join(self._parts))
            self._parts = []

    def _finish(self) -> None:
        if self.row is not None:
            if self._parts:
                self.cell(None)
            first, last = (min(self._places), max(self._places)) if self._places else (1, 1)
            self._rows.append((self.row, first, last))
        self.row, self._places = None, []

    def blocks(self) -> list[Block]:
        self._finish()
        kept = [(row, head) for row, head in zip(self._rows, self._heads, strict=True) if any(row[0])]
        heads = next((number for number, (_, head) in enumerate(kept) if not head), len(kept))
        return table_blocks([row for row, _ in kept], header_rows=heads or None)


def _is_layout(table: Any) -> bool:
    """Whether a table only lays out a page or a listing: it holds headings, tables, listings or many paragraphs."""
    if (table.get("role") or "").lower() in ("presentation", "none") or "highlighttable" in _names(table):
        return True
    if table.find(".//table") is not None or any(table.find(f".//{name}") is not None for name in (*_HEADINGS, "pre")):
        return True
    cells = [len(row) for row in table.iter("tr")]
    return not cells or max(cells) <= 1
