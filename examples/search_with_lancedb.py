"""Index three sentences in LanceDB and find the one that answers a question."""

import tempfile

import lancedb
from lancedb.embeddings import get_registry
from lancedb.pydantic import LanceModel, Vector

import grit_mlx.integrations.lancedb  # noqa: F401 - registers "grit"

grit = get_registry().get("grit").create()


class Note(LanceModel):
    """A text and its vector."""

    text: str = grit.SourceField()
    vector: Vector(grit.ndims()) = grit.VectorField()


texts = ["Yeast makes bread rise.", "The keel keeps a ship upright.", "Rain falls in spring."]
with tempfile.TemporaryDirectory() as folder:
    table = lancedb.connect(folder).create_table("notes", schema=Note)
    table.add([{"text": text} for text in texts])
    print(table.search("Why does bread rise?").limit(1).to_list()[0]["text"])
