"""Scanned PDF files to ones with a text layer, by ocrmypdf where it is installed."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike, fspath
from pathlib import Path
from typing import Final

from grit_mlx.errors import DependencyError, DocumentError

__all__ = ["ocr"]

_PROGRAM: Final = "ocrmypdf"


@contextmanager
def ocr(path: str | PathLike[str], *, languages: str | None = None) -> Iterator[Path]:
    """A copy of a PDF file with a text layer on the pages that have none; it is removed afterwards.

    Args:
        path: the PDF file; it stays as it is.
        languages: of its text, as Tesseract names them, such as "deu+eng"; None for Tesseract's default.

    Raises:
        DependencyError: ocrmypdf is not installed.
        DocumentError: it fails; its last words are in the message.
    """
    program = shutil.which(_PROGRAM)
    if program is None:
        raise DependencyError("Reading scanned pages needs ocrmypdf: brew install ocrmypdf, or apt install ocrmypdf.")
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder, "with-text.pdf")
        options = ["--skip-text", "--quiet", "--output-type", "pdf", *(["--language", languages] if languages else [])]
        done = subprocess.run(
            [program, *options, fspath(path), str(result)], capture_output=True, text=True, check=False
        )
        if done.returncode or not result.is_file():
            said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise DocumentError(f"{fspath(path)} cannot be read by ocrmypdf: {said}", path=fspath(path))
        yield result
