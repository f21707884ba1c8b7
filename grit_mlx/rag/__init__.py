"""Retrieval and answers from one set of weights.

::

    from grit_mlx import GritLM
    from grit_mlx.rag import Rag, Store

    model = GritLM("GritLM/GritLM-7B")
    store = Store("notes.grit", model)
    store.index(["~/notes"])
    response = Rag(model, store).ask("When is the boiler serviced?")
    print(response.text, [hit.row.name for hit in response.sources])

The public names are imported on first use: LanceDB takes a second or two to import.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from grit_mlx.rag.answering import Answer, Answerer, Document, Turn
    from grit_mlx.rag.caches import DocumentCaches
    from grit_mlx.rag.indexing import IndexReport
    from grit_mlx.rag.modes import choose_mode
    from grit_mlx.rag.rag import Found, Rag, Response
    from grit_mlx.rag.retrieval import Hit, place_of
    from grit_mlx.rag.rotation import Rotation
    from grit_mlx.rag.store import Estimate, Store, StoreStats
    from grit_mlx.text.passages import Passage, passages_of
    from grit_mlx.text.walking import walk

_HOME = {
    "Answer": "grit_mlx.rag.answering",
    "Answerer": "grit_mlx.rag.answering",
    "Document": "grit_mlx.rag.answering",
    "DocumentCaches": "grit_mlx.rag.caches",
    "Estimate": "grit_mlx.rag.store",
    "Found": "grit_mlx.rag.rag",
    "Hit": "grit_mlx.rag.retrieval",
    "IndexReport": "grit_mlx.rag.indexing",
    "Passage": "grit_mlx.text.passages",
    "Rag": "grit_mlx.rag.rag",
    "Response": "grit_mlx.rag.rag",
    "Rotation": "grit_mlx.rag.rotation",
    "Store": "grit_mlx.rag.store",
    "StoreStats": "grit_mlx.rag.store",
    "Turn": "grit_mlx.rag.answering",
    "choose_mode": "grit_mlx.rag.modes",
    "passages_of": "grit_mlx.text.passages",
    "place_of": "grit_mlx.rag.retrieval",
    "walk": "grit_mlx.text.walking",
}

__all__ = [
    "Answer",
    "Answerer",
    "Document",
    "DocumentCaches",
    "Estimate",
    "Found",
    "Hit",
    "IndexReport",
    "Passage",
    "Rag",
    "Response",
    "Rotation",
    "Store",
    "StoreStats",
    "Turn",
    "choose_mode",
    "passages_of",
    "place_of",
    "walk",
]


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'grit_mlx.rag' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
