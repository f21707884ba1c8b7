"""A model and a store that the adapters share."""

from __future__ import annotations

import pytest

from grit_mlx import GritLM
from grit_mlx.rag import Store

NOTES = {
    "boiler.md": "# Boiler\n\nThe boiler is serviced in October by Mr Smith.\n",
    "bread.md": "# Bread\n\nYeast makes bread rise. Sugar feeds the yeast.\n",
    "ship.md": "# Ship\n\nThe keel keeps a ship upright.\n",
}


@pytest.fixture(scope="session")
def grit() -> GritLM:
    """The built-in model."""
    return GritLM()


@pytest.fixture(scope="session")
def notes(grit: GritLM, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store of three files, which are in the folder ``files`` beside it."""
    root = tmp_path_factory.mktemp("notes")
    folder = root / "files"
    folder.mkdir()
    for name, text in NOTES.items():
        (folder / name).write_text(text)
    store = root / "notes.grit"
    Store(store, grit).index([folder])
    return str(store)
