"""PDF files by pypdfium2: paragraphs with their pages, headings from the file's outline or the size of their letters.

PDFium gives the lines of a page in reading order with words apart and hyphens at the ends of lines marked; the boxes of
lines say where a paragraph ends. Text in form fields counts. Pages that are only an image are named.
"""

from __future__ import annotations

import logging
import re
import statistics
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Container, Iterator, Sequence, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import accumulate, pairwise
from typing import Any, Final, NamedTuple

from grit_mlx.errors import Option
from grit_mlx.optional import optional
from grit_mlx.text.blocks import PARAGRAPH, Block, cleaned
from grit_mlx.text.ocr import ocr
from grit_mlx.text.readers.running import Line, RunningLines
from grit_mlx.text.readers.source import Source

__all__ = ["read_pdf"]

# How PDFium marks a hyphen at the end of a line; it has joined the lines already.
_HYPHEN: Final = "\ufffe"
_SENTENCE_END: Final = (".", "!", "?", ":", "”", '"', "。", "！", "？")  # noqa: RUF001 - Chinese and Japanese
# A line is full when it reaches this far between the left and the right border of its page's text.
_FULL: Final = 0.8
_IMAGE_SHARE: Final = 0.25
_HEADING_CHARACTERS: Final = 160
# Points that a heading is at most below the place that the outline points to.
_BELOW_TARGET: Final = 40
# Points around that place where the title itself is looked for, and letters that its first line has at least.
_NEAR_TARGET: Final = 100
_BEGINNING: Final = 8
_WORD: Final = re.compile(r"[^\W\d_]+")
# How alike letters are where the page's own words do for a title of the outline.
_ALIKE: Final = 0.7
_HEADING_RATIO: Final = 1.2
# A paragraph that goes on in the next column or page has at least as many.
_SHORTEST_BROKEN: Final = 40
_LONG_LINE: Final = 60
# The dots between a title and its page in a table of contents.
_LEADERS: Final = re.compile(r"(?:[.·] ?){5,}")
# An entry of such a table, as it is after that.
_ENTRY: Final = re.compile(r"… [\divxlc]+$")
_ITEM: Final = re.compile(r"(?:[•‣▪–*-]|\(?(?:\d{1,2}|[a-z])[.)])\s")
_CJK: Final = re.compile("[\u2e80-\u9fff\uac00-\ud7a3\uf900-\ufaff\uff00-\uffef]")


@dataclass(frozen=True)
class _Paragraph:
    lines: tuple[Line, ...]
    text: str

    @property
    def height(self) -> float:
        return self.lines[0].height


def read_pdf(source: Source) -> Iterator[Block]:
    """The paragraphs of a PDF file, page by page; their place is the page.

    Raises:
        DocumentError: the file is damaged, needs a password, or holds nothing but scanned pages.
        DependencyError: pypdfium2 is not installed.
    """
    pdfium = optional("pypdfium2", extra="documents", purpose="Reading PDF files")
    logging.getLogger("pypdfium2").setLevel(logging.ERROR)
    with _opened(source, source.file, pdfium) as document:
        if not (source.ocr and _has_scans(document, pdfium)):
            yield from _document(source, document, pdfium)
            return
    with ocr(source.file, name=source.name) as path, _opened(source, path, pdfium) as document:
        yield from _document(source, document, pdfium)


@contextmanager
def _opened(source: Source, file: Any, pdfium: Any) -> Iterator[Any]:
    try:
        document = pdfium.PdfDocument(file)
        len(document)
    except pdfium.PdfiumError as error:
        if "password" in str(error).lower():
            raise source.failure("is protected by a password. Save a copy without one.") from error
        raise source.failure("is damaged, or not a PDF file.") from error
    try:
        yield document
    finally:
        document.close()


def _has_scans(document: Any, pdfium: Any) -> bool:
    """Whether a page is only an image."""
    for index in range(len(document)):
        with suppress(pdfium.PdfiumError):
            if _page(document, index, pdfium)[1]:
                return True
    return False


def _document(source: Source, document: Any, pdfium: Any) -> Iterator[Block]:
    pages = _Pages(_outline(document, pdfium))
    scanned, failed, full = [], [], 0
    for number in range(1, len(document) + 1):
        try:
            lines, only_image = _page(document, number - 1, pdfium)
        except pdfium.PdfiumError:
            failed.append(number)
            continue
        if only_image:
            scanned.append(number)
        full += bool(lines)
        yield from pages.blocks(lines, number)
    _report(source, scanned, failed, full=full, pages=len(document))


def _report(source: Source, scanned: list[int], failed: list[int], *, full: int, pages: int) -> None:
    name = source.name
    if scanned and source.ocr:
        if not full:
            raise source.failure("is a scan, and OCR recognised no text in it.")
        source.notes.warn(f"{name}: OCR recognised no text on pages: {_ranges(scanned)}.")
    elif scanned:
        advice = Option("ocr", True), f" recognises it, or add a text layer: ocrmypdf --skip-text {name!r} OUTPUT.pdf"
        if not full:
            raise source.failure("has no text, only scanned pages. ", *advice)
        which = f"{len(scanned):,} of {pages:,} pages are scanned and have no text ({_ranges(scanned)})"
        source.notes.warn(f"{name}: {which}. ", *advice)
    if failed:
        if not full:
            raise source.failure("is damaged: none of its pages can be read.")
        source.notes.warn(f"{name}: pages that are damaged were left out: {_ranges(failed)}.")


def _ranges(numbers: Sequence[int], *, most: int = 8) -> str:
    """Numbers as "1, 3-7"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    shown = [f"{first}" if first == last else f"{first}-{last}" for first, last in runs]
    return ", ".join([*shown[:most], *(["..."] if len(shown) > most else [])])


# --- pages to lines -----------------------------------------------------------------------------------------


def _page(document: Any, index: int, pdfium: Any) -> tuple[list[Line], bool]:
    """The lines of a page, and whether it shows an image but no text."""
    page = document[index]
    try:
        if _has_fields(page, pdfium) and pdfium.raw.FPDFPage_Flatten(page, 0) == pdfium.raw.FLATTEN_SUCCESS:
            page.close()
            page = document[index]  # what was in the fields is now part of the page
        text_page = page.get_textpage()
        try:
            lines = list(_lines(text_page, pdfium))
        finally:
            text_page.close()
        only_image = not lines and _shows_image(page, pdfium)
        return lines, only_image
    finally:
        page.close()


def _shows_image(page: Any, pdfium: Any) -> bool:
    """Whether an image fills a good part of a page, as that of a scanner does."""
    width, height = page.get_size()
    for image in page.get_objects(filter=[pdfium.raw.FPDF_PAGEOBJ_IMAGE]):
        left, bottom, right, top = image.get_bounds()
        if (right - left) * (top - bottom) >= _IMAGE_SHARE * width * height:
            return True
    return False


def _has_fields(page: Any, pdfium: Any) -> bool:
    raw = pdfium.raw
    wanted = (raw.FPDF_ANNOT_WIDGET, raw.FPDF_ANNOT_FREETEXT)
    for index in range(raw.FPDFPage_GetAnnotCount(page)):
        annotation = raw.FPDFPage_GetAnnot(page, index)
        kind = raw.FPDFAnnot_GetSubtype(annotation)
        raw.FPDFPage_CloseAnnot(annotation)
        if kind in wanted:
            return True
    return False


def _lines(text_page: Any, pdfium: Any) -> Iterator[Line]:
    text = text_page.get_text_range(errors="replace")
    vocabulary = set(re.findall(r"[^\W\d_]+(?:-[^\W\d_]+)*", text))
    raw_lines = text.split("\n")
    numbered = _numbered(text_page, raw_lines)
    position = 0
    for index, raw_line in enumerate(raw_lines):
        begin = numbered.get(index, 0)
        stripped = raw_line[begin:].strip()
        if stripped:
            start = position + raw_line.index(stripped[0], begin)
            if begin:
                stripped = _BROKEN_AT_NUMBER.sub(_HYPHEN, stripped)
            # A hyphen joins two lines of the page; the box of the first part tells the paragraph.
            end = start + len(stripped.partition(_HYPHEN)[0]) - 1
            first = text_page.get_charbox(start, loose=True)
            # The mark of an item may be larger than its text.
            word = next((offset for offset, character in enumerate(stripped) if character.isalnum()), 0)
            sized = text_page.get_charbox(start + word, loose=True) if word else first
            last = text_page.get_charbox(max(start, end), loose=True)
            if line := cleaned(_composed(_LEADERS.sub("… ", _dehyphenated(stripped, vocabulary)))):
                right = 1e9 if _HYPHEN in stripped else max(first[2], last[2])
                yield Line(line, first[0], right, sized[1], max(0.1, sized[3] - sized[1]))
        position += len(raw_line) + 1


# Accents that TeX's older fonts set as a character of their own, before the letter: what composes with it.
_ACCENTS: Final = dict(
    zip(
        "\u00b4\u00a8\u02c6\u02dc\u02c7\u00b8\u02da\u02d8\u02dd\u02db",
        "\u0301\u0308\u0302\u0303\u030c\u0327\u030a\u0306\u030b\u0328",
        strict=True,
    )
)
_ACCENTED: Final = re.compile(f"([{''.join(_ACCENTS)}])([A-Za-z\u0131\u0237])")
_DOTLESS: Final = {"\u0131": "i", "\u0237": "j"}


def _composed(line: str) -> str:
    """A line with accents and the letters behind them as one character, where there is one."""

    def composed(match: re.Match[str]) -> str:
        letter = unicodedata.normalize("NFC", _DOTLESS.get(match[2], match[2]) + _ACCENTS[match[1]])
        return letter if len(letter) == 1 else match[0]

    return _ACCENTED.sub(composed, line)


_LINE_NUMBER: Final = re.compile(r"(\d{1,5})(?:\s+|$)")
_BROKEN_AT_NUMBER: Final = re.compile(rf"(?<=[a-z])[-{_HYPHEN}]\d{{1,5}} (?=[a-z])")
_FEWEST_NUMBERED: Final = 10


def _numbered(text_page: Any, lines: Sequence[str]) -> dict[int, int]:
    """How many characters number a line in the margin, as in manuscripts and listings, by the line's index.

    The numbers count one by one, in smaller letters than the text.
    """
    runs: dict[int, list[int]] = {}  # the longest that ends with a number
    ends: dict[int, int] = {}
    for index, line in enumerate(lines):
        if match := _LINE_NUMBER.match(line):
            number = int(match[1])
            ends[index] = match.end()
            # The number of a line that ends a broken word stands inside of the line before.
            before = max((runs.get(number - step, []) for step in (1, 2, 3)), key=len)
            runs[number] = max([*before, index], runs.get(number, []), key=len)
    run = max(runs.values(), key=len, default=[])
    if len(run) < _FEWEST_NUMBERED:
        return {}
    starts = [0, *accumulate(len(line) + 1 for line in lines)]

    def height(position: int) -> float:
        _, bottom, _, top = text_page.get_charbox(position, loose=True)
        return float(top - bottom)

    smaller = [
        height(starts[index]) < 0.9 * height(starts[index] + ends[index])
        for index in run
        if lines[index][ends[index] :].strip()
    ]
    return {index: ends[index] for index in run} if sum(smaller) > 0.7 * len(smaller) else {}


def _dehyphenated(line: str, vocabulary: set[str]) -> str:
    """A line with the words joined that were broken at its end; true hyphens stay."""

    def joined(match: re.Match[str]) -> str:
        before, after = match[1], match[2]
        if before + after in vocabulary:
            return before + after
        true = "-" in before or not after[:1].islower() or f"{before}-{after}" in vocabulary
        return f"{before}-{after}" if true else before + after

    return re.sub(rf"([\w-]*){_HYPHEN}(\w*)", joined, line) if _HYPHEN in line else line


# --- lines to paragraphs ------------------------------------------------------------------------------------


class _Sizes:
    """The sizes of letters so far: the commonest is the body's, larger ones are headings'."""

    def __init__(self) -> None:
        self._characters: Counter[int] = Counter()

    def add(self, lines: Sequence[Line]) -> None:
        for line in lines:
            self._characters[round(line.height)] += len(line.text)

    @property
    def body(self) -> int:
        return self._characters.most_common(1)[0][0]

    def level(self, paragraph: _Paragraph) -> int:
        ratio = paragraph.height / self.body
        is_heading = (
            ratio >= _HEADING_RATIO and _may_be_heading(paragraph) and sum(map(str.isalpha, paragraph.text)) >= 3
        )
        return (1 if ratio >= 1.75 else 2 if ratio >= 1.4 else 3) if is_heading else 0


def _may_be_heading(paragraph: _Paragraph) -> bool:
    return (
        len(paragraph.lines) <= 3
        and len(paragraph.text) <= _HEADING_CHARACTERS
        and not paragraph.text.endswith((".", ",", ";"))
    )


class _Pages:
    """Pages, one after the other, to blocks."""

    def __init__(self, outline: dict[int, dict[str, _Title]] | None) -> None:
        self._outline = outline
        self._sizes = _Sizes()
        self._running = RunningLines()
        self._last: _Paragraph | None = None  # body text at the end of what was read so far

    def blocks(self, lines: Sequence[Line], number: int) -> Iterator[Block]:
        if not lines:
            self._last = None
            return
        self._sizes.add(lines)
        titles = dict(self._outline.get(number - 1, {})) if self._outline else {}
        body = self._sizes.body

        def is_title(line: Line) -> bool:
            return line.height >= _HEADING_RATIO * body or _letters(line.text) in titles

        kept = self._running.without(lines, number, keep=is_title)
        placed = _placed(kept, titles)
        for index, paragraph in enumerate(_paragraphs(kept, {*titles}, placed) if kept else ()):
            level = own = self._sizes.level(paragraph)
            title = placed.get(paragraph.lines[0]) if _may_be_heading(paragraph) else None
            if self._outline is not None:
                found = title or titles.pop(_letters(paragraph.text), None)
                level = found.level if found else 0
            glue = PARAGRAPH if level else _glue(self._last, paragraph, turned=not index)
            yield Block(paragraph.text, number, number, level=level, title=title.text if title else "", glue=glue)
            self._last = None if level or own else paragraph


def _first_words(text: str) -> list[str]:
    return [word.casefold() for word in _WORD.findall(text)[:2]]


def _placed(lines: Sequence[Line], titles: dict[str, _Title]) -> dict[Line, _Title]:
    """Lines that titles of the outline point to, where the page words them otherwise: "search/2" as "search(a, b)".

    These titles are taken out.
    """
    placed: dict[Line, _Title] = {}
    for letters, title in list(titles.items()):
        words = _first_words(title.text)
        if title.top is None or not words:
            continue
        drops = {line: title.top - line.bottom - line.height for line in lines}
        near = (_letters(line.text) for line in lines if abs(drops[line]) < _NEAR_TARGET)
        if any(own == letters or (len(own) >= _BEGINNING and letters.startswith(own)) for own in near):
            continue  # it is on the page word for word
        below = [line for line in lines if -3 < drops[line] < _BELOW_TARGET]
        # The first word, or the one behind a number or letter.
        named = [
            line
            for line in below
            if line not in placed and any(word.startswith(words[0]) for word in _first_words(line.text))
        ]
        line = max(named, key=lambda line: line.bottom, default=None)
        if line is not None and len(line.text) <= _HEADING_CHARACTERS:
            alike = SequenceMatcher(None, _letters(line.text), letters).ratio() >= _ALIKE
            placed[line] = title._replace(text="") if alike else title
            del titles[letters]
    return placed


def _glue(above: _Paragraph | None, paragraph: _Paragraph, *, turned: bool) -> str:
    """What joins a paragraph to the one above: a space where that goes on at the top of a page or column."""
    if above is None or len(above.text) < _SHORTEST_BROKEN or _ENTRY.search(above.text):
        return PARAGRAPH
    last, first = above.lines[-1], paragraph.lines[0]
    if not (turned or first.bottom > last.bottom) or abs(last.height - first.height) > 0.15 * last.height:
        return PARAGRAPH
    end, begin = above.text[-1], paragraph.text[0]
    if above.text.endswith(_SENTENCE_END) or not (begin.isalnum() or begin in "([“\"'"):
        return PARAGRAPH
    # A last line as long as the others goes on; a heading or the row of a table is shorter, or alone on its line.
    rights = [line.right for line in above.lines if line.right < 1e9]
    if len(above.lines) > 1:
        goes_on = last.right >= max(rights, default=0) - last.height and (begin.islower() or len(paragraph.lines) > 1)
    else:
        goes_on = begin.islower() and len(above.text) >= _LONG_LINE
    if not goes_on:
        return PARAGRAPH
    return "" if _CJK.match(begin) and _CJK.match(end) else " "


def _paragraphs(lines: list[Line], titles: Set[str], placed: Container[Line]) -> Iterator[_Paragraph]:
    """Lines of a page that belong together. A line that is a title of the outline stands alone."""
    left, right = min(line.left for line in lines), max((line.right for line in lines if line.right < 1e9), default=0)
    steps = [above.bottom - below.bottom for above, below in pairwise(lines)]
    # Of a page with hardly a paragraph the steps between paragraphs are the commonest.
    pitch = min(
        statistics.median([step for step in steps if step > 0.1] or [1.0]),
        1.6 * statistics.median(line.height for line in lines),
    )

    def is_title(line: Line) -> bool:
        # A full line may be the first of a paragraph that begins with its title.
        return _letters(line.text) in titles or (line in placed and line.right < left + _FULL * (right - left))

    open_lines: list[Line] = []
    for line in lines:
        if open_lines and (is_title(line) or is_title(open_lines[-1]) or _parted(open_lines, line, pitch)):
            yield _joined(open_lines, left, right)
            open_lines = []
        open_lines.append(line)
    yield _joined(open_lines, left, right)


def _parted(lines: list[Line], line: Line, pitch: float) -> bool:
    """Whether a line begins a new paragraph."""
    above = lines[-1]
    step = above.bottom - line.bottom
    if abs(line.height - above.height) > 0.15 * max(line.height, above.height):
        return len(line.text) > 3 and len(above.text) > 3  # a footnote's mark, an index or a fraction does not part
    if step > 1.3 * max(pitch, line.height) or step < -0.5 * line.height:
        return True
    if step > 1.25 * pitch and above.text.endswith(_SENTENCE_END):
        return True
    # An indented first line after a line that ends a sentence.
    indent = line.left - above.left
    return above.text.endswith(_SENTENCE_END) and 0.7 * line.height < indent < 5 * line.height


def _joined(lines: list[Line], left: float, right: float) -> _Paragraph:
    text = lines[0].text
    for above, line in pairwise(lines):
        full = above.right >= left + _FULL * (right - left) or above.right - above.left > 0.35 * (right - left)
        full = full and not _ENTRY.search(above.text) and not _ITEM.match(line.text)
        if full and _CJK.match(line.text) and _CJK.match(text[-1]):
            text += line.text
        else:
            text += (" " if full else "\n") + line.text
    return _Paragraph(tuple(lines), text)


# --- headings -----------------------------------------------------------------------------------------------


class _Title(NamedTuple):
    """A title of the outline, its level from 1, and the height on the page that it points to."""

    text: str
    level: int
    top: float | None


def _outline(document: Any, pdfium: Any) -> dict[int, dict[str, _Title]] | None:
    """The titles of the outline by the index of their page and by their letters; None where there is no outline."""
    found: dict[int, dict[str, _Title]] = defaultdict(dict)
    try:
        for bookmark in document.get_toc(max_depth=10):
            destination = bookmark.get_dest()
            page = destination.get_index() if destination is not None else None
            text = bookmark.get_title() or ""
            if page is not None and _letters(text):
                mode, view = destination.get_view()
                top = view[1] if mode == pdfium.raw.PDFDEST_VIEW_XYZ and len(view) > 1 and view[1] else None
                found[page].setdefault(_letters(text), _Title(cleaned(text), bookmark.level + 1, top))
    except pdfium.PdfiumError:  # a broken outline costs its headings, not the text
        pass
    return found or None


# What numbers a heading: an outline often leaves it out, or has it where the page does not.
_NUMBER: Final = re.compile(r"^\s*(?:chapter|part|section|kapitel|chapitre)?\s*[\da-zIVX]?[\d.]*\s+", re.IGNORECASE)


def _letters(text: str) -> str:
    """Letters and figures alone, to compare a title in the outline with the one on the page."""
    return re.sub(r"[\W_]+", "", _NUMBER.sub("", text)).casefold()
