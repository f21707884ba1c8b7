"""Kinds of files, by name: the only table of suffixes, so that one means the same to every command."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from pathlib import PurePath
from typing import Final

__all__ = ["Kind", "is_listed", "kind_of", "stem", "why_not"]


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        name: the kind that passages carry in their metadata.
        reader: "module:function" in ``readers``; "jsonl", "json", "csv" or "tsv", which ``rows`` reads; or "parquet" or
            "arrow", which ``tables`` reads.
        unit: what its places count: "line", "page", "paragraph", "slide", "row", ...
        by: what makes one text by default, as in ``ReadingOptions``.
        at_random: whether its reader jumps to and fro in the file.
        whole: whether its reader holds the complete file.
        edition: of its reader. A higher one than before lets stores read such files again.
    """

    name: str
    reader: str
    unit: str = "line"
    by: str = "paragraph"
    at_random: bool = False
    whole: bool = False
    edition: int = 1

    @property
    def rows(self) -> bool:
        """Whether it is a table, each row of which is a document of its own."""
        return self.name == "rows"

    @property
    def has_blocks(self) -> bool:
        """Whether a module of ``readers`` reads it; else it is a file of rows."""
        return ":" in self.reader

    @property
    def encoded(self) -> bool:
        """Whether it is text whose encoding may have to be named; other kinds say it themselves."""
        return self.typed or self.reader in ("jsonl", "json", "csv", "tsv", "html:read_html")

    @property
    def scanned(self) -> bool:
        """Whether its pages may be images of text."""
        return self.name == "pdf"

    @property
    def typed(self) -> bool:
        """Whether it is plain text, whose lines are what people typed."""
        return self.reader.startswith("markup:")


_TEXT: Final = Kind("text", "markup:read_text", by="line")
_CODE: Final = Kind("code", "markup:read_code", by="line")
_JSONL: Final = Kind("rows", "jsonl", by="line")

_CODE_SUFFIXES: Final = (
    ".py .pyi .js .mjs .ts .tsx .jsx .java .kt .scala .go .rs .c .h .cc .cpp .hpp .cs .m .mm .swift .rb .php .pl .lua "
    ".r .jl .sh .bash .zsh .fish .ps1 .sql .hs .ml .ex .exs .erl .clj .dart .zig .nim .vue .svelte .css .scss .toml "
    ".yaml .yml .ini .cfg .proto .graphql .tf .cmake"
)

_KINDS: Final[dict[Kind, str]] = {
    _TEXT: ".txt .text .log .srt .vtt",
    _CODE: _CODE_SUFFIXES,
    _JSONL: ".jsonl .ndjson",
    Kind("rows", "json", by="line", whole=True): ".json",
    Kind("rows", "csv", by="line"): ".csv",
    Kind("rows", "tsv", by="line"): ".tsv",
    Kind("rows", "parquet", "row", by="line"): ".parquet",
    Kind("rows", "arrow", "row", by="line"): ".arrow",
    Kind("markdown", "markup:read_markdown"): ".md .markdown .mdx .qmd .rmd",
    Kind("rst", "markup:read_rst", by="line"): ".rst .rest",
    Kind("org", "markup:read_org", by="line"): ".org",
    Kind("asciidoc", "markup:read_asciidoc", by="line"): ".adoc .asciidoc",
    Kind("latex", "markup:read_tex", by="line"): ".tex .ltx",
    Kind("html", "html:read_html", whole=True, edition=2): ".html .htm .xhtml",
    Kind("pdf", "pdf:read_pdf", "page", at_random=True, edition=2): ".pdf",
    Kind("docx", "word:read_word", "paragraph", at_random=True): ".docx .docm .dotx .dotm",
    Kind("odt", "opendocument:read_opendocument", "paragraph", at_random=True): ".odt .ott",
    Kind("pptx", "slides:read_slides", "slide", at_random=True): ".pptx .pptm .potx .ppsx",
    Kind("odp", "opendocument:read_opendocument", "slide", at_random=True): ".odp .otp",
    Kind("rows", "sheets:read_sheets", "row", at_random=True): ".xlsx .xlsm .xlsb .xls .ods .ots",
    Kind("epub", "epub:read_epub", "chapter", at_random=True, edition=2): ".epub",
    Kind("mail", "mail:read_mail", "paragraph", whole=True, edition=2): ".eml .mht .mhtml",
    Kind("mailbox", "mail:read_mailbox", "message", edition=2): ".mbox",
    Kind("notebook", "notebook:read_notebook", "cell", whole=True): ".ipynb",
    Kind("rtf", "rtf:read_rtf", "paragraph", whole=True): ".rtf",
}

_SUFFIXES: Final[dict[str, Kind]] = {suffix: kind for kind, suffixes in _KINDS.items() for suffix in suffixes.split()}

_NAMES: Final[dict[str, Kind]] = {
    **dict.fromkeys(("readme", "license", "changelog", "authors"), _TEXT),
    **dict.fromkeys(("makefile", "dockerfile"), _CODE),
}

# Kinds that people have and that are not read, with what helps.
_CONVERT: Final = "Convert it first, for example with: soffice --headless --convert-to"
_CALIBRE: Final = "is an e-book in Amazon's format. Convert it to EPUB first, for example with Calibre."
_NOT_READ: Final[dict[str, str]] = {
    ".doc": f"is in Word's format of before 2007. {_CONVERT} docx",
    ".ppt": f"is in PowerPoint's format of before 2007. {_CONVERT} pptx",
    ".pages": "is an Apple Pages document. Export it as Word or PDF first.",
    ".key": "is an Apple Keynote presentation. Export it as PowerPoint or PDF first.",
    ".numbers": "is an Apple Numbers spreadsheet. Export it as Excel or CSV first.",
    ".mobi": _CALIBRE,
    ".azw3": _CALIBRE,
    ".djvu": "is a DjVu file. Convert it to PDF first, for example with: ddjvu -format=pdf",
    ".msg": "is an Outlook message. Save it as .eml first.",
}


def kind_of(path: str | PathLike[str], *, rows: bool = False) -> Kind:
    """The kind of a file by its name.

    Args:
        path: a file, gzipped or not; "-" for standard input.
        rows: whether rows are wanted. A name that says nothing then means JSON lines instead of plain text, and so
            does ``.log``: programs log JSON.
    """
    kind = _known(path)
    return _JSONL if rows and (kind is None or _name(path).suffix == ".log") else kind or _TEXT


def is_listed(path: str | PathLike[str]) -> bool:
    """Whether a file is read when only its folder is named.

    JSON is not, for in folders it is mostly settings; nor are tables that hold anything.
    """
    kind = _known(path)
    return kind is not None and kind.reader not in ("json", "parquet", "arrow")


def why_not(path: str | PathLike[str]) -> str | None:
    """Why a file of a common kind is not read and what helps, as the rest of a sentence; None for all others."""
    return _NOT_READ.get(_name(path).suffix)


def stem(path: str | PathLike[str]) -> str:
    """A file's name without its suffix and ``.gz``."""
    return PurePath(PurePath(path).name.removesuffix(".gz")).stem


def _known(path: str | PathLike[str]) -> Kind | None:
    name = _name(path)
    return _SUFFIXES.get(name.suffix) or _NAMES.get(name.name)


def _name(path: str | PathLike[str]) -> PurePath:
    return PurePath(PurePath(path).name.lower().removesuffix(".gz"))
