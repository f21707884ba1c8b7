"""Files to paragraphs: what stands in a text, a table, a web page, a PDF or an office document, and where.

Nothing here knows of tokens or passages. Markdown's headings are the common form: web pages and office documents
come out with ``#`` before theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from grit_mlx.errors import DependencyError, DocumentError
from grit_mlx.text.html import html_paragraphs
from grit_mlx.text.options import ReadingOptions
from grit_mlx.text.reading import read_texts
from grit_mlx.text.splitting import Text

__all__ = ["Kind", "is_known", "kind_of", "paragraphs"]


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        name: what it is called.
        unit: what its places count: "line", "page" or "paragraph".
        headings: whether its paragraphs may begin with Markdown's headings.
        rows: whether it is a table, each row of which is a document of its own.
    """

    name: str
    unit: str = "line"
    headings: bool = False
    rows: bool = False


_TEXT: Final = Kind("text")
_CODE: Final = Kind("code")
_MARKDOWN: Final = Kind("markdown", headings=True)
_HTML: Final = Kind("html", headings=True)
_PDF: Final = Kind("pdf", unit="page")
_DOCX: Final = Kind("docx", unit="paragraph", headings=True)
_ROWS: Final = Kind("rows", rows=True)

_CODE_SUFFIXES: Final = (
    "py pyi js mjs ts tsx jsx java kt scala go rs c h cc cpp hpp cs m mm swift rb php pl lua r jl sh bash zsh fish "
    "ps1 sql hs ml ex exs erl clj dart zig nim vue svelte css scss toml yaml yml ini cfg proto graphql tf cmake"
)

_KINDS: Final[dict[str, Kind]] = {
    **dict.fromkeys((".txt", ".text", ".rst", ".adoc", ".org", ".tex", ".log", ".srt", ".vtt"), _TEXT),
    **dict.fromkeys((".md", ".markdown", ".mdx"), _MARKDOWN),
    **dict.fromkeys((".html", ".htm", ".xhtml"), _HTML),
    **dict.fromkeys((".jsonl", ".ndjson", ".csv", ".tsv"), _ROWS),
    **{f".{suffix}": _CODE for suffix in _CODE_SUFFIXES.split()},
    ".pdf": _PDF,
    ".docx": _DOCX,
}

# Files that are known by their whole name.
_NAMES: Final = {"readme": _TEXT, "license": _TEXT, "changelog": _TEXT, "authors": _TEXT, "makefile": _CODE,
                 "dockerfile": _CODE}  # fmt: skip


def is_known(path: Path) -> bool:
    """Whether a file of a folder is of a kind that is read."""
    return _known(path) is not None


def kind_of(path: Path) -> Kind:
    """The kind of a file by its name; plain text where that says nothing."""
    if path.suffix.lower() == ".json":  # in folders mostly settings; one that is named is a table
        return _ROWS
    return _known(path) or _TEXT


def _known(path: Path) -> Kind | None:
    name = path.name.lower().removesuffix(".gz")
    return _KINDS.get(Path(name).suffix) or _NAMES.get(name)


def paragraphs(path: Path, *, field: str | None = None) -> Iterator[Text]:
    """The paragraphs of a file, with their places; for a table, its rows.

    Args:
        path: a file.
        field: for a table, the field or column that holds the text; None for "text" or the only column.

    Raises:
        DocumentError: the file cannot be read, is binary or damaged.
        DependencyError: the package that reads this kind is not installed.
    """
    kind = kind_of(path)
    reader = _READERS.get(kind.name)
    if reader is not None:
        return reader(path)
    if kind.rows:
        return read_texts(path, ReadingOptions(by="line", field=field, skip_empty=True))
    return read_texts(path, ReadingOptions(by="paragraph"))


def _html(path: Path) -> Iterator[Text]:
    for page in read_texts(path, ReadingOptions(by="file")):  # one, or none where there is no text
        yield from html_paragraphs(page.text, source=str(path), first_line=page.line)


def _pdf(path: Path) -> Iterator[Text]:
    pypdf: Any = _needed("pypdf", "PDF files")
    try:
        with path.open("rb") as file:
            for number, page in enumerate(pypdf.PdfReader(file).pages, start=1):
                for block in (page.extract_text() or "").split("\n\n"):
                    if block.strip():
                        yield Text(block.strip(), str(path), number, number)
    except OSError as error:
        raise DocumentError(f"{path} cannot be read: {error.strerror or error}.", path=path) from error
    except Exception as error:  # pypdf raises whatever its parsing trips over
        raise DocumentError(f"{path} cannot be read as PDF ({error or type(error).__name__}).", path=path) from error


def _docx(path: Path) -> Iterator[Text]:
    docx: Any = _needed("docx", "Word documents")
    try:
        document = docx.Document(str(path))
    except OSError as error:
        raise DocumentError(f"{path} cannot be read: {error.strerror or error}.", path=path) from error
    except Exception as error:  # a zip that is no document, damaged XML, ...
        raise DocumentError(f"{path} cannot be read as DOCX ({error or type(error).__name__}).", path=path) from error
    for number, block in enumerate(document.iter_inner_content(), start=1):
        if hasattr(block, "rows"):  # a table
            text = "\n".join(" | ".join(cell.text.strip() for cell in row.cells) for row in block.rows)
        else:
            style = block.style.name if block.style is not None else ""
            level = style.removeprefix("Heading ") if style.startswith("Heading ") else "1" if style == "Title" else ""
            text = ("#" * min(int(level), 6) + " " if level.isdigit() else "") + block.text.strip()
        if text.strip("# |\n"):
            yield Text(text, str(path), number, number)


_READERS: Final[dict[str, Callable[[Path], Iterator[Text]]]] = {"html": _html, "pdf": _pdf, "docx": _docx}


def _needed(module: str, what: str) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DependencyError(f"To read {what} install grit-mlx[documents].") from error
