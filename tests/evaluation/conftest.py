"""Small labelled sets in files."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

DOCUMENTS = {
    "keel": "The keel keeps a sailing boat upright.",
    "yeast": "Yeast makes bread rise.",
    "moon": "The Moon circles the Earth in a month.",
    "tack": "Tacking turns the bow of a boat through the wind.",
}
QUERIES = {"q1": "What keeps a boat upright?", "q2": "Why does bread rise?", "q3": "nobody asks"}
GAINS: dict[str, dict[str, float]] = {"q1": {"keel": 2, "tack": 1}, "q2": {"yeast": 1, "moon": 0}}


def write_lines(path: Path, rows: Iterable[Mapping[str, Any] | str]) -> Path:
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def write_beir(folder: Path, *, gains: Mapping[str, Mapping[str, float]] = GAINS) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_lines(folder / "corpus.jsonl", ({"_id": i, "title": "", "text": text} for i, text in DOCUMENTS.items()))
    write_lines(folder / "queries.jsonl", ({"_id": i, "text": text} for i, text in QUERIES.items()))
    lines = [f"{query}\t{document}\t{gain}" for query, row in gains.items() for document, gain in row.items()]
    write_lines(folder / "qrels.tsv", ["query-id\tcorpus-id\tscore", *lines])
    return folder


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    """A retrieval set of four documents; one query of three has no judgement."""
    return write_beir(tmp_path / "boats")


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Four pairs of sentences."""
    rows = ["sentence1,sentence2,score", '"A boat, long","A boat, long",5', "A boat,A ship,4", "Bread,The Moon,0.5"]
    return write_lines(tmp_path / "pairs.csv", [*rows, "A keel,A tack,2"])


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    """A question with an answer, a chat of two turns and a plain text."""
    rows: list[Mapping[str, Any]] = [
        {"prompt": "What is a keel?", "completion": "A fin below the hull."},
        {"text": ["What is yeast?", "A fungus.", "And bread?", "Baked dough."]},
        {"text": "The Moon circles the Earth."},
    ]
    return write_lines(tmp_path / "answers.jsonl", rows)
