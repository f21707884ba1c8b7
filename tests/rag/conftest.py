"""Fixtures of the tests of retrieval: a loaded tiny model, a folder to index, and a store of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from grit_mlx import GritLM
from grit_mlx.rag import Store

FILES = {
    "ships.md": "# Ships\n\nA keel keeps a ship upright when the wind leans on its sails.\n\n"
    "## Rigging\n\nThe mast carries the sails. Ropes hold the mast.\n",
    "bread.txt": "Bread rises because yeast eats sugar and breathes out gas.\n\nSalt slows the yeast.\n",
    "code/tide.py": "def tide(hour: float) -> float:\n    return 2.0 * hour\n",
    "rows.jsonl": '{"title": "Anchors", "text": "An anchor holds the ship.", "year": 1999}\n'
    '{"text": "A buoy floats.", "year": 2001}\n',
    "page.html": "<html><head><title>x</title></head><body><h1>Harbours</h1>"
    "<p>A harbour shelters\nships.</p></body></html>",
}


@pytest.fixture(scope="session")
def model(tiny_model: Path) -> GritLM:
    return GritLM(tiny_model)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small folder of several kinds of files."""
    root = tmp_path / "files"
    for name, text in FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


@pytest.fixture
def make_store(tmp_path: Path, model: GritLM) -> Callable[..., Store]:
    """``make_store(**options)``: the store of this test, opened anew."""

    def make(**options: Any) -> Store:
        return Store(tmp_path / "store", model, **{"passage_tokens": 64, "overlap": 0, **options})

    return make


def rows_of(store: Store) -> list[tuple[str, int, int, str]]:
    """All passages of a store, in a fixed order: file, lines, content."""
    rows = store.passages()
    return sorted((row.source, row.line, row.end_line, row.content) for row in rows)
