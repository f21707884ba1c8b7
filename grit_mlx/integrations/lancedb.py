"""GRIT models in LanceDB's registry of embedding functions, under the name ``grit``.

::

    import grit_mlx.integrations.lancedb  # registers it
    from lancedb.embeddings import get_registry

    grit = get_registry().get("grit").create(name="gritlm-7b")

    class Note(LanceModel):
        text: str = grit.SourceField()
        vector: Vector(grit.ndims()) = grit.VectorField()
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

from lancedb.embeddings import TextEmbeddingFunction, register

from grit_mlx.integrations.backend import Backend, connect

__all__ = ["GritEmbeddings"]


@register("grit")  # type: ignore[no-untyped-call]
class GritEmbeddings(TextEmbeddingFunction):
    """Vectors of the source column and of queries.

    Attributes:
        name: a model's name or folder; None for the default model.
        base_url: of a running ``grit serve``.
        api_key: the server's; as ``$var:NAME``, so that it is not stored in the table.
        query_instruction: in place of the model's own.
        document_instruction: in place of the model's own.
    """

    name: str | None = None
    base_url: str | None = None
    api_key: str | None = None
    query_instruction: str | None = None
    document_instruction: str | None = None
    max_retries: int = 0  # a model in this process does not get better by asking again

    @staticmethod
    def sensitive_keys() -> list[str]:
        """What LanceDB does not store."""
        return ["api_key"]

    @cached_property
    def _backend(self) -> Backend:
        return connect(self.name, base_url=self.base_url, api_key=self.api_key)

    def ndims(self) -> int:
        """The length of a vector."""
        return len(self.compute_query_embeddings("length")[0])

    def compute_query_embeddings(self, query: str, *args: Any, **kwargs: Any) -> list[Any]:
        """The vector of a query."""
        return list(self._backend.embed([query], role="query", instruction=self.query_instruction))

    def generate_embeddings(self, texts: Any, *args: Any, **kwargs: Any) -> list[Any]:
        """Vectors of rows; None for those without text."""
        rows = list(texts)
        full = [i for i, text in enumerate(rows) if isinstance(text, str) and text.strip()]
        vectors: list[Any] = [None] * len(rows)
        if full:
            embedded = self._backend.embed(
                [rows[i] for i in full], role="document", instruction=self.document_instruction
            )
            for i, vector in zip(full, embedded, strict=True):
                vectors[i] = vector
        return vectors
