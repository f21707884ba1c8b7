"""Vector databases that remember which model their vectors are from."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grit_mlx import GritLM
from tests.integrations.tools import tool

TEXTS = ["Yeast makes bread rise.", "The keel keeps a ship upright.", "Rain falls in spring."]

REOPENED = """
import sys, chromadb
import grit_mlx.integrations.chroma
collection = chromadb.PersistentClient(sys.argv[1]).get_collection("notes")
found = collection.query(query_texts=["Why does bread rise?"], n_results=1)
print(found["documents"][0][0], round(found["distances"][0][0], 5))
"""


def test_a_chroma_collection_is_reopened_and_queried(tmp_path: Path, grit: GritLM) -> None:
    chromadb = tool("chromadb")
    from grit_mlx.integrations.chroma import GritEmbeddingFunction

    client = chromadb.PersistentClient(str(tmp_path / "chroma"))
    collection = client.create_collection("notes", embedding_function=GritEmbeddingFunction())
    collection.add(ids=["a", "b", "c"], documents=TEXTS)
    del collection, client
    command = [sys.executable, "-c", REOPENED, str(tmp_path / "chroma")]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    # The distance proves that the query was embedded as one.
    cosine = float(grit.encode_corpus(TEXTS[0]) @ grit.encode_queries("Why does bread rise?"))
    *words, distance = run.stdout.split()
    assert " ".join(words) == TEXTS[0]
    assert float(distance) == pytest.approx(1 - cosine, abs=1e-4)


def test_a_chroma_collection_keeps_its_model() -> None:
    tool("chromadb")
    from grit_mlx.errors import ArgumentError
    from grit_mlx.integrations.chroma import GritEmbeddingFunction

    function = GritEmbeddingFunction(query_instruction="Find the answer")
    assert GritEmbeddingFunction.build_from_config(function.get_config()).get_config() == function.get_config()
    with pytest.raises(ArgumentError, match="cannot be changed"):
        function.validate_config_update(function.get_config(), {"model": "other"})


def test_lancedb_embeds_columns_and_queries(tmp_path: Path, grit: GritLM) -> None:
    import lancedb
    from lancedb.embeddings import get_registry
    from lancedb.pydantic import LanceModel, Vector

    import grit_mlx.integrations.lancedb  # noqa: F401 - registers it

    registry: Any = get_registry()
    function = registry.get("grit").create()

    class Note(LanceModel):
        text: str = function.SourceField()
        vector: Vector(function.ndims()) = function.VectorField()  # type: ignore[valid-type]

    table = lancedb.connect(str(tmp_path)).create_table("notes", schema=Note)
    table.add([{"text": text} for text in TEXTS])
    reopened: Any = lancedb.connect(str(tmp_path)).open_table("notes")
    found = reopened.search("Why does bread rise?").metric("cosine").limit(1).to_list()[0]
    assert found["text"] == TEXTS[0]
    cosine = float(grit.encode_corpus(TEXTS[0]) @ grit.encode_queries("Why does bread rise?"))
    assert found["_distance"] == pytest.approx(1 - cosine, abs=1e-4)
    assert np.asarray(found["vector"]).shape == (grit.embedding_size,)
