"""GRIT models in Chroma (extra ``chroma``): an embedding function that a collection remembers.

::

    from grit_mlx.integrations.chroma import GritEmbeddingFunction

    collection = client.create_collection("notes", embedding_function=GritEmbeddingFunction())

Chroma embeds what is queried by ``embed_query`` and what is added by calling it, so the two differ as they should.
"""

from __future__ import annotations

from typing import Any

from grit_mlx.errors import ArgumentError
from grit_mlx.integrations.backend import connect
from grit_mlx.optional import importing

with importing(extra="chroma", purpose="The Chroma adapter"):
    from chromadb.api.types import Documents, EmbeddingFunction, Embeddings, Space
    from chromadb.utils.embedding_functions import register_embedding_function

__all__ = ["GritEmbeddingFunction"]


@register_embedding_function
class GritEmbeddingFunction(EmbeddingFunction[Documents]):
    """Vectors of documents and queries.

    Args:
        model: a name or a folder; None for the default model.
        base_url: of a running ``grit serve``.
        api_key_env_var: the variable that holds the server's key; the key itself is not stored in a collection.
        query_instruction: in place of the model's own.
        document_instruction: in place of the model's own.
    """

    def __init__(
        self,
        model: str | None = None,
        base_url: str | None = None,
        api_key_env_var: str | None = None,
        query_instruction: str | None = None,
        document_instruction: str | None = None,
    ) -> None:
        import os

        key = None if api_key_env_var is None else os.environ.get(api_key_env_var)
        if api_key_env_var and not key:
            raise ArgumentError(f"The variable {api_key_env_var} holds no key.")
        self._config = {
            "model": model,
            "base_url": base_url,
            "api_key_env_var": api_key_env_var,
            "query_instruction": query_instruction,
            "document_instruction": document_instruction,
        }
        self._backend = connect(model, base_url=base_url, api_key=key)

    def __call__(self, input: Documents) -> Embeddings:  # noqa: D102
        return self._embed(input, "document")

    def embed_query(self, input: Documents) -> Embeddings:
        """Vectors of queries."""
        return self._embed(input, "query")

    def _embed(self, texts: Documents, role: str) -> Embeddings:
        return list(self._backend.embed(texts, role=role, instruction=self._config[f"{role}_instruction"]))

    @staticmethod
    def name() -> str:
        """Chroma's name of this function."""
        return "grit-mlx"

    def default_space(self) -> Space:
        """How vectors are compared."""
        return "cosine"

    def get_config(self) -> dict[str, Any]:
        """What a collection remembers."""
        return dict(self._config)

    @staticmethod
    def build_from_config(config: dict[str, Any]) -> EmbeddingFunction[Documents]:
        """The function that a collection remembers."""
        return GritEmbeddingFunction(**config)

    def validate_config_update(self, old_config: dict[str, Any], new_config: dict[str, Any]) -> None:
        """Refuse another model: its vectors do not compare with those that are stored."""
        if old_config.get("model") != new_config.get("model"):
            raise ArgumentError("A collection's model cannot be changed: its vectors are another model's.")
