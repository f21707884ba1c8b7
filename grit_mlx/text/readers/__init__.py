"""Which reader reads which kind of file, by its suffix."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import PurePath
from typing import Final

from grit_mlx.errors import DocumentError
from grit_mlx.text.blocks import Block, Notes
from grit_mlx.text.readers.source import Source, opened

__all__ = ["READERS", "Reader", "read", "reader_of"]


@dataclass(frozen=True)
class Reader:
    """How a kind of file is read.

    Attributes:
        name: of the kind.
        function: "module:function" in this package; imported when such a file is met.
        unit: what its places count.
        rows: whether each of its blocks is a document of its own.
        at_random: whether it jumps to and fro in the file.
    """

    name: str
    function: str
    unit: str = "line"
    rows: bool = False
    at_random: bool = False


_KINDS: Final[dict[Reader, str]] = {
    Reader("text", "markup:read_text"): ".txt .text .log .srt .vtt",
    Reader("markdown", "markup:read_markdown"): ".md .markdown .mdx .qmd .rmd",
    Reader("rst", "markup:read_rst"): ".rst .rest",
    Reader("org", "markup:read_org"): ".org",
    Reader("asciidoc", "markup:read_asciidoc"): ".adoc .asciidoc",
    Reader("tex", "markup:read_tex"): ".tex .ltx",
    Reader("html", "html:read_html"): ".html .htm .xhtml",
    Reader("pdf", "pdf:read_pdf", "page", at_random=True): ".pdf",
    Reader("word", "word:read_word", "paragraph", at_random=True): ".docx .docm .dotx .dotm",
    Reader("opendocument", "opendocument:read_opendocument", "paragraph", at_random=True): ".odt .ott",
    Reader("slides", "slides:read_slides", "slide", at_random=True): ".pptx .pptm .potx .ppsx",
    Reader("opendocument slides", "opendocument:read_opendocument", "slide", at_random=True): ".odp .otp",
    Reader("sheets", "sheets:read_sheets", "row", rows=True, at_random=True): ".xlsx .xlsm .xlsb .xls .ods .ots",
    Reader("epub", "epub:read_epub", "chapter", at_random=True): ".epub",
    Reader("mail", "mail:read_mail", "paragraph"): ".eml .mht .mhtml",
    Reader("mailbox", "mail:read_mailbox", "message"): ".mbox",
    Reader("notebook", "notebook:read_notebook", "cell"): ".ipynb",
    Reader("rtf", "rtf:read_rtf", "paragraph"): ".rtf",
}

READERS: Final[dict[str, Reader]] = {
    suffix: reader for reader, suffixes in _KINDS.items() for suffix in suffixes.split()
}

# Kinds that people have and that are not read, with what helps.
_CONVERT: Final = "Convert it first, for example with: soffice --headless --convert-to"
NOT_READ: Final[dict[str, str]] = {
    ".doc": f"is in Word's format of before 2007. {_CONVERT} docx",
    ".ppt": f"is in PowerPoint's format of before 2007. {_CONVERT} pptx",
    ".pages": "is an Apple Pages document. Export it as Word or PDF first.",
    ".key": "is an Apple Keynote presentation. Export it as PowerPoint or PDF first.",
    ".numbers": "is an Apple Numbers spreadsheet. Export it as Excel or CSV first.",
    ".mobi": "is an e-book in Amazon's format. Convert it to EPUB first, for example with Calibre.",
    ".azw3": "is an e-book in Amazon's format. Convert it to EPUB first, for example with Calibre.",
    ".djvu": "is a DjVu file. Convert it to PDF first, for example with ddjvu -format=pdf.",
    ".msg": "is an Outlook message. Save it as .eml first.",
}


def reader_of(path: str | PathLike[str]) -> Reader | None:
    """The reader of a file by its name, which may end in ".gz"; None where there is none for its suffix."""
    return READERS.get(_suffix(path))


def read(path: str | PathLike[str], *, notes: Notes | None = None, encoding: str | None = None) -> Iterator[Block]:
    """The blocks of a file, in order, as a stream.

    Args:
        path: a file of a kind in ``READERS``.
        notes: where to note warnings; None to drop them.
        encoding: of its text; None to find out.

    Raises:
        DocumentError: the file cannot be read.
        DependencyError: it needs a package that is not installed.
    """
    reader = reader_of(path)
    if reader is None:
        problem = NOT_READ.get(_suffix(path), "is of a kind that is not read.")
        raise DocumentError(f"{PurePath(path)} {problem}", path=str(PurePath(path)))
    with opened(path, notes=notes, encoding=encoding, at_random=reader.at_random) as source:
        yield from _function(reader)(source)


def _function(reader: Reader) -> Callable[[Source], Iterator[Block]]:
    module, _, name = reader.function.partition(":")
    function: Callable[[Source], Iterator[Block]] = getattr(importlib.import_module(f"{__name__}.{module}"), name)
    return function


def _suffix(path: str | PathLike[str]) -> str:
    name = PurePath(path).name.lower()
    return PurePath(name.removesuffix(".gz")).suffix
