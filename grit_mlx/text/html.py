"""Web pages to paragraphs, with Python's own parser: headings as Markdown's, no scripts, styles or navigation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from html.parser import HTMLParser
from typing import Final

from grit_mlx.text.splitting import Text

__all__ = ["html_paragraphs"]

_HEADINGS: Final = {f"h{level}": "#" * level for level in range(1, 7)}
_BLOCK_NAMES: Final = (
    "address article aside blockquote body br caption dd details div dl dt fieldset figcaption figure footer form "
    "header hr html li main nav ol p pre section summary table tbody td th thead title tr ul"
)
_BLOCKS: Final = frozenset([*_BLOCK_NAMES.split(), *_HEADINGS])
# Nothing in these is prose. A page's <title> repeats its first heading.
_HIDDEN: Final = frozenset({"script", "style", "template", "noscript", "svg", "head", "nav", "iframe", "object"})
# These stay on one line, side by side.
_CELLS: Final = frozenset({"td", "th"})


def html_paragraphs(lines: Iterable[str], *, source: str) -> Iterator[Text]:
    """The paragraphs of a page; broken markup is read as well as possible."""
    parser = _Paragraphs(source)
    parser.feed("\n".join(lines))
    parser.close()
    parser.end_block()
    yield from parser.found


class _Paragraphs(HTMLParser):
    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[Text] = []
        self._source = source
        self._hidden: list[str] = []
        self._prefix = ""
        self._parts: list[str] = []
        self._first = self._last = 0
        self._preformatted = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "body":  # ends the hidden ones before it, closed or not, as in browsers
            self._hidden.clear()
        if tag in _HIDDEN:
            self.end_block()
            self._hidden.append(tag)
        elif tag in _CELLS:
            self._parts.append(" | " if self._parts else "")
        elif tag == "br":
            self._parts.append("\n")
        elif tag in _BLOCKS:
            self.end_block()
            self._prefix = _HEADINGS.get(tag, "")
            self._preformatted += tag == "pre"

    def handle_endtag(self, tag: str) -> None:
        if tag in self._hidden:
            del self._hidden[self._hidden.index(tag) :]
        elif tag in _BLOCKS - _CELLS - {"br"}:
            self.end_block()
            self._preformatted = max(0, self._preformatted - (tag == "pre"))

    def handle_data(self, data: str) -> None:
        if self._hidden or (not data.strip() and not self._parts):
            return
        line = self.getpos()[0]
        leading = data[: len(data) - len(data.lstrip())].count("\n")
        if not "".join(self._parts).strip():
            self._first = line + leading
        if data.strip():
            self._last = line + data.rstrip().count("\n")
        self._parts.append(data if self._preformatted else " ".join(_words(data)))

    def end_block(self) -> None:
        """Make a paragraph of what was read since the last one."""
        text = "".join(self._parts).strip()
        if text:
            whole = f"{self._prefix} {text}" if self._prefix else text
            self.found.append(Text(whole, self._source, self._first, max(self._first, self._last)))
        self._parts, self._prefix = [], ""


def _words(data: str) -> list[str]:
    """The words of a run of text, with an empty one at an end that has white space."""
    words = data.split()
    return [*([""] if data[:1].isspace() else []), *words, *([""] if data[-1:].isspace() else [])]
