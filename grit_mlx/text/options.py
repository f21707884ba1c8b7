"""How files are read as texts. See ``grit_mlx.options``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from grit_mlx.errors import ArgumentError
from grit_mlx.options import check, option
from grit_mlx.text.kinds import Kind
from grit_mlx.text.packing import check_chunking

__all__ = ["UNITS", "FileReading", "ReadingOptions", "WalkOptions"]

# What makes one text.
UNITS = ("line", "paragraph", "file", "chunk")


@dataclass(frozen=True, kw_only=True)
class WalkOptions:
    """Which files are read, besides the rules of ``walking``. Patterns are those of .gitignore."""

    heading: ClassVar[str] = "Input"

    include: Sequence[str] = option(
        (), "Only files that match a pattern such as '*.md' or 'docs/**'; relative to the folder.", metavar="PATTERN"
    )
    exclude: Sequence[str] = option(
        (), "No files that match a pattern such as 'drafts/' or '*.log'; relative to the folder.", metavar="PATTERN"
    )

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True)
class FileReading:
    """How one file is read where its content does not say. A store remembers it for each file.

    Attributes:
        field: of a table, the field or column that holds the text; None for "text" or the only one, else all.
        encoding: of a text file; None to find out.
        ocr: of a PDF file, whether the text of its scanned pages is recognised.
    """

    field: str | None = None
    encoding: str | None = None
    ocr: bool = False

    def of(self, kind: Kind) -> FileReading:
        """What of it concerns a kind of file."""
        return FileReading(
            field=self.field or None if kind.rows else None,
            encoding=self.encoding or None if kind.encoded else None,
            ocr=self.ocr and kind.scanned,
        )

    @property
    def chosen(self) -> dict[str, Any]:
        """What differs from the defaults, as JSON holds it."""
        return {name: value for name, value in vars(self).items() if value}


@dataclass(frozen=True)
class ReadingOptions:
    """How files become texts.

    Attributes:
        by: "line": a line that is not blank, stripped; in JSON, CSV and TSV the text of a row, unchanged.
            "paragraph": a block between blank lines, a heading with what follows it at once, a table. "file":
            everything. "chunk": see ``packing.pack``. Paragraphs and chunks never span two rows. None: lines of plain
            text and code, rows of tables, paragraphs of everything else.
        skip_empty: with by="line", drop rows whose text is empty or null instead of refusing them: dropped unasked,
            they would shift every later vector against its row.

    Raises:
        ArgumentError: an option is unknown or cannot work.
    """

    heading: ClassVar[str] = "Input"

    by: str | None = option(
        None,
        "Unit of text: each non-empty line (or row of .jsonl and .csv), each paragraph, the complete file, or chunks "
        "of at most --chunk-size tokens.",
        choices=UNITS,
    )
    chunk_size: int = option(256, "With --by chunk: maximum number of tokens per chunk.", minimum=1, metavar="TOKENS")
    overlap: int = option(
        0,
        "With --by chunk: maximum number of tokens that a chunk repeats from the previous one.",
        minimum=0,
        metavar="TOKENS",
    )
    field: str | None = option(
        None,
        "Field of .jsonl and .json rows, or column of .csv and .tsv, that holds the text. Default: 'text', or the "
        "only column.",
        metavar="NAME",
    )
    skip_empty: bool = option(False, "Skip rows without text instead of refusing the file.")
    encoding: str | None = option(
        None,
        "Text encoding of the files. Default: what a file declares (a byte order mark, HTML's meta tag, a coding "
        "comment), else UTF-8, else a guess, with a warning. Standard input: UTF-8.",
        metavar="NAME",
    )

    ocr: bool = option(
        False, "Recognise the text of scanned PDF pages with ocrmypdf, which must be installed; it is slow."
    )

    @property
    def of_files(self) -> FileReading:
        """How each file is read."""
        return FileReading(field=self.field, encoding=self.encoding, ocr=self.ocr)

    def __post_init__(self) -> None:
        check(self)
        check_chunking(self.chunk_size, self.overlap)
        if self.encoding is None:
            return
        try:
            # Unlike codecs.lookup this also refuses codecs that are not of text, such as base64.
            "".encode(self.encoding)
        except (LookupError, ValueError) as error:
            raise ArgumentError(f"The encoding {self.encoding!r} is unknown. Try utf-8, latin-1 or utf-16.") from error
