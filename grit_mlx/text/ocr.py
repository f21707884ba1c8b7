"""Scanned PDF files to ones with a text layer, by ocrmypdf where it is installed."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

from grit_mlx.errors import DependencyError, DocumentError

__all__ = ["ocr"]

_PROGRAM: Final = "ocrmypdf"


@contextmanager
def ocr(file: IO[bytes], *, name: str, languages: str | None = None) -> Iterator[Path]:
    """A copy of a PDF file with a text layer on the pages that have none; it is removed afterwards.

    Args:
        file: the PDF file.
        name: what to call it in messages.
        languages: of its text, as Tesseract names them, such as "deu+eng"; None for Tesseract's default.

    Raises:
        DependencyError: ocrmypdf is not installed.
        DocumentError: it fails; its last words are in the message.
    """
    program = shutil.which(_PROGRAM)
    if program is None:
        raise DependencyError(
            f"{name} has scanned pages. Reading them needs ocrmypdf: brew install ocrmypdf, or apt install ocrmypdf."
        )
    with tempfile.TemporaryDirectory() as folder:
        scan, result = Path(folder, "scan.pdf"), Path(folder, "with-text.pdf")
        file.seek(0)
        with scan.open("wb") as copy:
            shutil.copyfileobj(file, copy)
        options = ["--skip-text", "--quiet", "--output-type", "pdf", *(["--language", languages] if languages else [])]
        done = subprocess.run(
            [program, *options, str(scan), str(result)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        if done.returncode or not result.is_file():
            said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise DocumentError(f"{name} cannot be read by ocrmypdf: {said}", path=name)
        yield result
