"""Kinds of files, by name: the only table of suffixes, so that one means the same to every command."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from pathlib import PurePath
from typing import Final

__all__ = ["Kind", "is_listed", "kind_of", "stem"]


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        name: the kind that passages carry in their metadata.
        reader: "lines"; "jsonl", "json", "csv", "tsv", "parquet" or "arrow" for rows; "html", "pdf" or "docx".
        unit: what its places count: "line", "page" or "paragraph".
        by: what makes one text by default, as in ``ReadingOptions``.
        headings: whether its paragraphs may begin with Markdown headings.
    """

    name: str
    reader: str = "lines"
    unit: str = "line"
    by: str = "line"
    headings: bool = False

    @property
    def rows(self) -> bool:
        """Whether it is a table, each row of which is a document of its own."""
        return self.name == "rows"


_TEXT: Final = Kind("text")
_CODE: Final = Kind("code")
_MARKDOWN: Final = Kind("markdown", by="paragraph", headings=True)
_HTML: Final = Kind("html", "html", by="paragraph", headings=True)
_JSONL: Final = Kind("rows", "jsonl")

_CODE_SUFFIXES: Final = (
    "py pyi js mjs ts tsx jsx java kt scala go rs c h cc cpp hpp cs m mm swift rb php pl lua r jl sh bash zsh fish "
    "ps1 sql hs ml ex exs erl clj dart zig nim vue svelte css scss toml yaml yml ini cfg proto graphql tf cmake"
)

_SUFFIXES: Final[dict[str, Kind]] = {
    **dict.fromkeys((".txt", ".text", ".rst", ".adoc", ".org", ".tex", ".log", ".srt", ".vtt"), _TEXT),
    **dict.fromkeys((".md", ".markdown", ".mdx"), _MARKDOWN),
    **dict.fromkeys((".html", ".htm", ".xhtml"), _HTML),
    **dict.fromkeys((".jsonl", ".ndjson"), _JSONL),
    **{f".{suffix}": _CODE for suffix in _CODE_SUFFIXES.split()},
    ".json": Kind("rows", "json"),
    ".csv": Kind("rows", "csv"),
    ".tsv": Kind("rows", "tsv"),
    ".parquet": Kind("rows", "parquet"),
    ".arrow": Kind("rows", "arrow"),
    ".pdf": Kind("pdf", "pdf", unit="page", by="paragraph"),
    ".docx": Kind("docx", "docx", unit="paragraph", by="paragraph", headings=True),
}

_NAMES: Final[dict[str, Kind]] = {
    **dict.fromkeys(("readme", "license", "changelog", "authors"), _TEXT),
    **dict.fromkeys(("makefile", "dockerfile"), _CODE),
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


def stem(path: str | PathLike[str]) -> str:
    """A file's name without its suffix and ``.gz``."""
    return PurePath(PurePath(path).name.removesuffix(".gz")).stem


def _known(path: str | PathLike[str]) -> Kind | None:
    name = _name(path)
    return _SUFFIXES.get(name.suffix) or _NAMES.get(name.name)


def _name(path: str | PathLike[str]) -> PurePath:
    return PurePath(PurePath(path).name.lower().removesuffix(".gz"))
