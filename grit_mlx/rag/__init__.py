"""Retrieval and answers from one set of weights.

::

    from grit_mlx import GritLM
    from grit_mlx.rag import Rag, Store

    model = GritLM("GritLM/GritLM-7B")
    store = Store("notes.grit", model)
    store.index(["~/notes"])
    response = Rag(model, store).ask("When is the boiler serviced?")
    print(response.text, [source.passage.place for source in response.sources])

The public names are imported on first use: LanceDB takes a second or two to import.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from grit_mlx.rag.answering import Answerer, AnswerStream, Turn
    from grit_mlx.rag.caches.documents import DocumentCaches
    from grit_mlx.rag.indexing import IndexReport
    from grit_mlx.rag.modes import choose_mode
    from grit_mlx.rag.options import ChatOptions, IndexOptions, RagOptions, SearchOptions, StoreOptions
    from grit_mlx.rag.prefix import Document
    from grit_mlx.rag.quotes import Quote
    from grit_mlx.rag.rag import Rag, Response
    from grit_mlx.rag.retrieval import SearchResult, SearchResults
    from grit_mlx.rag.rotation import Rotation
    from grit_mlx.rag.schema import StoredPassage
    from grit_mlx.rag.store import Estimate, Store, StoreStats
    from grit_mlx.text.passages import Passage, passages_of
    from grit_mlx.text.walking import walk

__all__ = [
    "AnswerStream",
    "Answerer",
    "ChatOptions",
    "Document",
    "DocumentCaches",
    "Estimate",
    "IndexOptions",
    "IndexReport",
    "Passage",
    "Quote",
    "Rag",
    "RagOptions",
    "Response",
    "Rotation",
    "SearchOptions",
    "SearchResult",
    "SearchResults",
    "Store",
    "StoreOptions",
    "StoreStats",
    "StoredPassage",
    "Turn",
    "choose_mode",
    "passages_of",
    "walk",
]

_MODULES = {
    "grit_mlx.rag.answering": ("AnswerStream", "Answerer", "Turn"),
    "grit_mlx.rag.caches.documents": ("DocumentCaches",),
    "grit_mlx.rag.indexing": ("IndexReport",),
    "grit_mlx.rag.modes": ("choose_mode",),
    "grit_mlx.rag.options": ("ChatOptions", "IndexOptions", "RagOptions", "SearchOptions", "StoreOptions"),
    "grit_mlx.rag.prefix": ("Document",),
    "grit_mlx.rag.quotes": ("Quote",),
    "grit_mlx.rag.rag": ("Rag", "Response"),
    "grit_mlx.rag.retrieval": ("SearchResult", "SearchResults"),
    "grit_mlx.rag.rotation": ("Rotation",),
    "grit_mlx.rag.schema": ("StoredPassage",),
    "grit_mlx.rag.store": ("Estimate", "Store", "StoreStats"),
    "grit_mlx.text.passages": ("Passage", "passages_of"),
    "grit_mlx.text.walking": ("walk",),
}


def __getattr__(name: str) -> object:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module 'grit_mlx.rag' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
