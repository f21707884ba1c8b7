"""Scans to text with a stand-in for ocrmypdf."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from grit_mlx.errors import DependencyError, DocumentError
from grit_mlx.text.ocr import ocr


def stand_in(folder: Path, script: str) -> None:
    program = folder / "ocrmypdf"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def test_ocr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scan = tmp_path / "a scan.pdf"
    scan.write_bytes(b"scanned")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    stand_in(tmp_path, 'for last; do before="$now"; now="$last"; done; echo "$@" > "$now"; cat "$before" >> "$now"')
    with ocr(scan, languages="deu+eng") as result:
        told, content = result.read_text().split("\n")
    assert content == "scanned" and not result.exists()
    assert told.startswith("--skip-text --quiet --output-type pdf --language deu+eng ")
    stand_in(tmp_path, "echo first >&2; echo 'PriorOcrFoundError: page 1' >&2; exit 6")
    with (
        pytest.raises(DocumentError, match=r"a scan\.pdf cannot be read by ocrmypdf: PriorOcrFoundError: page 1"),
        ocr(scan),
    ):
        pass


def test_without_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DependencyError, match="needs ocrmypdf: brew install ocrmypdf"), ocr(tmp_path / "a.pdf"):
        pass
