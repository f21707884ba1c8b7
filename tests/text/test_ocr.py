"""Scans to text with a stand-in for ocrmypdf."""

from __future__ import annotations

import gzip
import io
import os
from pathlib import Path

import pytest
from PIL import Image

from grit_mlx import GritLM
from grit_mlx.errors import DependencyError, DocumentError
from grit_mlx.rag import Store
from grit_mlx.text.ocr import ocr
from grit_mlx.text.options import FileReading
from grit_mlx.text.readers import read
from tests.text import documents


def stand_in(folder: Path, script: str) -> None:
    program = folder / "ocrmypdf"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def test_ocr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scan = tmp_path / "a scan.pdf"
    scan.write_bytes(b"scanned")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    stand_in(tmp_path, 'for last; do before="$now"; now="$last"; done; echo "$@" > "$now"; cat "$before" >> "$now"')
    with scan.open("rb") as file, ocr(file, name=str(scan), languages="deu+eng") as result:
        told, content = result.read_text().split("\n")
    assert content == "scanned" and not result.exists()
    assert told.startswith("--skip-text --quiet --output-type pdf --language deu+eng ")
    stand_in(tmp_path, "echo first >&2; echo 'PriorOcrFoundError: page 1' >&2; exit 6")
    with (
        pytest.raises(DocumentError, match=r"a scan\.pdf cannot be read by ocrmypdf: PriorOcrFoundError: page 1"),
        scan.open("rb") as file,
        ocr(file, name="a scan.pdf"),
    ):
        pass


def scan(path: Path) -> Path:
    Image.new("L", (200, 300), "white").save(path, "PDF")
    return path


@pytest.fixture
def recognising(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with scans, whose text a stand-in recognises; and how often it was called, in a file beside it."""
    result = documents.pdf(tmp_path / "result.pdf", [[("The keel of a ship.", 72, 700, 12)]])
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    stand_in(tmp_path, f'echo call >> {tmp_path}/calls; for last; do :; done; cp {result} "$last"')
    folder = tmp_path / "files"
    folder.mkdir()
    scan(folder / "-a.pdf")  # its name is not taken for an option
    (folder / "b.pdf.gz").write_bytes(gzip.compress(scan(tmp_path / "b.pdf").read_bytes()))
    documents.pdf(folder / "c.pdf", [[("A mast of a ship.", 72, 700, 12)]])
    return folder


def test_only_scans_are_recognised(recognising: Path) -> None:
    found = {path.name: [one.text for one in read(path, how=FileReading(ocr=True))] for path in recognising.iterdir()}
    keel = ["The keel of a ship."]
    assert found == {"-a.pdf": keel, "b.pdf.gz": keel, "c.pdf": ["A mast of a ship."]}
    assert (recognising.parent / "calls").read_text().split() == ["call"] * 2
    for path in (recognising / "-a.pdf", recognising / "b.pdf.gz"):
        with pytest.raises(DocumentError, match=r"has no text, only scanned pages\. ocr=True recognises it"):
            list(read(path))


def test_a_scan_without_text_says_so(recognising: Path, tmp_path: Path) -> None:
    stand_in(tmp_path, 'for last; do before="$now"; now="$last"; done; cp "$before" "$now"')
    with pytest.raises(DocumentError, match=r"a\.pdf is a scan, and OCR recognised no text in it\."):
        list(read(recognising / "-a.pdf", how=FileReading(ocr=True)))


def test_a_store_remembers_it(recognising: Path, tiny_model: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "store", GritLM(tiny_model))
    assert store.index([recognising]).skipped["binary"] == 2
    report = store.index([recognising], ocr=True)
    assert (report.added, report.total, report.problems) == (2, 3, [])
    report = store.index([recognising])
    assert (report.unchanged, report.total, report.problems) == (3, 3, [])


def test_without_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with (
        pytest.raises(DependencyError, match=r"a\.pdf has scanned pages.*needs ocrmypdf: brew install ocrmypdf"),
        ocr(io.BytesIO(), name="a.pdf"),
    ):
        pass
