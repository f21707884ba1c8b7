"""GRIT models for programs written for sentence-transformers, which need not be installed.

::

    from grit_mlx.integrations.sentence_transformers import GritEncoder

    model = GritEncoder("gritlm-7b")
    scores = model.similarity(model.encode_query(questions), model.encode_document(passages))
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from grit_mlx.errors import ArgumentError
from grit_mlx.integrations.backend import Backend, connect
from grit_mlx.vectors.compression import cosine, unit

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from grit_mlx.gritlm import GritLM

__all__ = ["GritEncoder"]

_ROLES: Final = {"query": "query", "document": "document", "passage": "document", "similarity": "similarity"}


class GritEncoder:
    """A model with the names of ``SentenceTransformer``.

    Args:
        model_name_or_path: a name, a folder or a loaded ``GritLM``; None for the default model.
        prompts: instructions by name, without GRIT's markers; in place of the model's own, or in addition.
        default_prompt_name: which of them ``encode`` uses; None for ``"document"``.
        truncate_dim: how many numbers of each vector to keep.
        base_url: of a running ``grit serve``.
        api_key: the server's.
        **ignored: what concerns PyTorch: ``device``, ``trust_remote_code``, ``model_kwargs`` and their like.
    """

    def __init__(
        self,
        model_name_or_path: str | Path | GritLM | None = None,
        *,
        prompts: Mapping[str, str] | None = None,
        default_prompt_name: str | None = None,
        truncate_dim: int | None = None,
        base_url: str | None = None,
        api_key: str | None = None,
        **ignored: Any,
    ) -> None:
        known = {
            "backend", "cache_folder", "config_kwargs", "device", "local_files_only", "model_kwargs", "revision",
            "similarity_fn_name", "tokenizer_kwargs", "trust_remote_code",
        }  # fmt: skip
        if unknown := sorted(set(ignored) - known):
            raise ArgumentError(f"GritEncoder does not take {', '.join(unknown)}.")
        self._backend: Backend = connect(model_name_or_path, base_url=base_url, api_key=api_key)
        self.prompts: dict[str, str] = dict(prompts or {})
        self.default_prompt_name = default_prompt_name
        self.truncate_dim = truncate_dim
        self.device = "mlx"
        self.similarity_fn_name = "cosine"
        if default_prompt_name is not None:
            self._prompt(None, default_prompt_name)

    def encode(
        self,
        sentences: str | list[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        *,
        output_value: str = "sentence_embedding",
        precision: str = "float32",
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        **ignored: Any,
    ) -> Any:
        """Vectors ``(N, E)`` float32 of texts, or ``(E,)`` of one.

        Args:
            sentences: one text or many; as documents, unless a prompt says otherwise.
            prompt_name: one of ``prompts``, or ``"query"``, ``"document"``, ``"similarity"`` for the model's own.
            prompt: an instruction, without GRIT's markers.
            output_value: only ``"sentence_embedding"``.
            precision: only ``"float32"``; ``GritLM.encode`` has others.
            convert_to_numpy: False returns a list of arrays.
            convert_to_tensor: return a PyTorch tensor.
            normalize_embeddings: bring vectors to length 1 (most models do so anyway).
            truncate_dim: how many numbers of each vector to keep.
            **ignored: ``batch_size`` (batches are formed by length), ``show_progress_bar``, ``device`` and their like.

        Raises:
            ArgumentError: a prompt that is not known, or something that only sentence-transformers can do.
        """
        if output_value != "sentence_embedding" or precision != "float32":
            raise ArgumentError("Only sentence embeddings in float32 here: for others use GritLM.encode.")
        role, instruction = self._prompt(prompt, prompt_name or self.default_prompt_name or "document")
        single = isinstance(sentences, str)
        texts = [sentences] if isinstance(sentences, str) else list(sentences)
        vectors = np.zeros((0, 0), dtype=np.float32)
        if texts:
            vectors = self._backend.embed(texts, role=role, instruction=instruction)
        if keep := truncate_dim or self.truncate_dim:
            vectors = vectors[:, :keep]
        result: Any = unit(vectors) if normalize_embeddings and len(vectors) else vectors
        result = result[0] if single else result
        if convert_to_tensor:
            from grit_mlx.model.official import as_tensor

            return as_tensor(result)
        return result if convert_to_numpy or single else list(result)

    def encode_query(self, sentences: str | list[str], **options: Any) -> Any:
        """Vectors of queries; the options are ``encode``'s."""
        return self.encode(sentences, **{"prompt_name": "query", **options})

    def encode_document(self, sentences: str | list[str], **options: Any) -> Any:
        """Vectors of documents; the options are ``encode``'s."""
        return self.encode(sentences, **{"prompt_name": "document", **options})

    def similarity(self, embeddings1: Any, embeddings2: Any) -> NDArray[np.float32]:
        """Cosines of all pairs, ``(N, M)``."""
        return cosine(np.atleast_2d(np.asarray(embeddings1)), np.atleast_2d(np.asarray(embeddings2)))

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> NDArray[np.float32]:
        """Cosines of the first with the first, and so on, ``(N,)``."""
        first, second = (unit(np.atleast_2d(np.asarray(side))) for side in (embeddings1, embeddings2))
        return np.asarray(np.sum(first * second, axis=-1), dtype=np.float32)

    def get_sentence_embedding_dimension(self) -> int:
        """E, the length of a vector."""
        return len(self.encode("length"))

    get_embedding_dimension = get_sentence_embedding_dimension

    @property
    def max_seq_length(self) -> int | None:
        """The maximum number of tokens of a text; None if the server does not say."""
        settings = getattr(getattr(self._backend, "model", None), "settings", None)
        return None if settings is None else settings.max_length

    def _prompt(self, prompt: str | None, name: str) -> tuple[str, str | None]:
        """The role of a text, and the instruction in place of the role's own."""
        if prompt is not None:
            return "query", prompt
        if name in self.prompts:
            return _ROLES.get(name, "query"), self.prompts[name]
        if name not in _ROLES:
            known = ", ".join(sorted({*_ROLES, *self.prompts}))
            raise ArgumentError(f"Unknown prompt name {name!r}: use one of {known}.")
        return _ROLES[name], None
