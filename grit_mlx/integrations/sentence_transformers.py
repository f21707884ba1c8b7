"""GRIT models for programs written for sentence-transformers, which need not be installed.

::

    from grit_mlx.integrations.sentence_transformers import GritEncoder

    model = GritEncoder("gritlm-7b")
    scores = model.similarity(model.encode_query(questions), model.encode_document(passages))
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from grit_mlx.errors import ArgumentError
from grit_mlx.integrations.backend import Backend, connect
from grit_mlx.optional import optional
from grit_mlx.vectors.compression import cosine, unit

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from grit_mlx.gritlm import GritLM

__all__ = ["GritEncoder"]

# What their models call their prompts, and what texts with them are here; in the order in which they are looked for.
_ROLES: Final = {
    "query": ("query",),
    "document": ("document", "passage", "corpus"),
    "similarity": ("similarity", "STS", "sts"),
}
_ROLE_OF: Final = {name: role for role, names in _ROLES.items() for name in names}

_SIMILARITIES: Final[Mapping[str, Callable[[Any, Any], Any]]] = {
    "cosine": cosine,
    "dot": lambda a, b: a @ b.T,
    "euclidean": lambda a, b: np.stack([-np.linalg.norm(row - b, axis=1) for row in a]),
    "manhattan": lambda a, b: np.stack([-np.abs(row - b).sum(axis=1) for row in a]),
}
_PRECISIONS: Final = ("float32", "int8", "uint8", "binary", "ubinary")

# What concerns PyTorch, or was decided when the model was named.
_IGNORED: Final = {
    "backend", "cache_folder", "config_kwargs", "device", "local_files_only", "model_card_data", "model_kwargs",
    "processor_kwargs", "token", "tokenizer_kwargs", "trust_remote_code", "use_auth_token",
}  # fmt: skip


class _NoCard:
    """Where their evaluators note their scores."""

    def set_evaluation_metrics(self, *_: Any, **__: Any) -> None:
        """Nothing is kept."""


class GritEncoder:
    """A model with the names of ``SentenceTransformer``.

    What needs PyTorch (training, saving, merging, adapters, vectors of tokens) is not here.

    Args:
        model_name_or_path: a name, a folder or a loaded ``GritLM``; None for the default model.
        prompts: instructions by name, without GRIT's markers; in place of the model's own, or in addition.
        default_prompt_name: which of them ``encode`` uses; None for ``"document"``.
        truncate_dim: how many numbers of each vector to keep.
        similarity_fn_name: what ``similarity`` computes: cosine, dot, euclidean or manhattan.
        base_url: of a running ``grit serve``.
        api_key: the server's.
        **ignored: what concerns PyTorch: ``device``, ``trust_remote_code``, ``model_kwargs`` and their like.

    Raises:
        ArgumentError: an unknown argument, prompt or similarity.
        ModelError: the model cannot be found or loaded.
    """

    def __init__(
        self,
        model_name_or_path: str | Path | GritLM | None = None,
        *,
        prompts: Mapping[str, str] | None = None,
        default_prompt_name: str | None = None,
        truncate_dim: int | None = None,
        similarity_fn_name: str | None = None,
        base_url: str | None = None,
        api_key: str | None = None,
        **ignored: Any,
    ) -> None:
        _refuse({name for name, value in ignored.items() if value is not None} - _IGNORED, "GritEncoder")
        self._backend: Backend = connect(model_name_or_path, base_url=base_url, api_key=api_key)
        settings = getattr(getattr(self._backend, "model", None), "settings", None)
        own = {} if settings is None else {role: settings.instruction(role) for role in _ROLES}
        self.prompts: dict[str, str] = {**own, **(prompts or {})}
        self.default_prompt_name = default_prompt_name
        self.truncate_dim = truncate_dim
        self.similarity_fn_name = str(getattr(similarity_fn_name, "value", similarity_fn_name) or "cosine")
        if self.similarity_fn_name not in _SIMILARITIES:
            known = ", ".join(_SIMILARITIES)
            raise ArgumentError(f"Unknown similarity {self.similarity_fn_name!r}: use one of {known}.")
        # None for a server, which cuts texts as its model's settings say.
        self.max_seq_length: int | None = None if settings is None else settings.max_length
        self.device = "cpu"  # their evaluators move tensors there
        self.model_card_data = _NoCard()
        if default_prompt_name is not None:
            self._prompt(None, default_prompt_name)

    def encode(
        self,
        inputs: str | Sequence[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        *positional: Any,
        output_value: str = "sentence_embedding",
        precision: str | None = "float32",
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        **ignored: Any,
    ) -> Any:
        """Vectors ``(N, E)`` float32 of texts, or ``(E,)`` of one.

        Args:
            inputs: one text or many; as documents, unless a prompt says otherwise.
            prompt_name: one of ``prompts``, or ``"query"``, ``"document"``, ``"similarity"`` for the model's own.
            prompt: an instruction, without GRIT's markers.
            *positional: ``batch_size`` and ``show_progress_bar``, which change nothing: batches are formed by length.
            output_value: only ``"sentence_embedding"``.
            precision: ``"float32"``, or ``"int8"``, ``"uint8"``, ``"binary"``, ``"ubinary"`` as they pack them.
            convert_to_numpy: False returns a list of arrays.
            convert_to_tensor: return a PyTorch tensor.
            normalize_embeddings: bring vectors to length 1 (most models do so anyway).
            truncate_dim: how many numbers of each vector to keep.
            **ignored: ``batch_size``, ``show_progress_bar``, ``device``, ``pool``, ``chunk_size``.

        Raises:
            ArgumentError: a prompt or an argument that is not known, or something that only sentence-transformers can
                do.
            TextError: a text is empty.
        """
        _refuse(set(ignored) - {"batch_size", "chunk_size", "device", "pool", "show_progress_bar"}, "encode")
        if len(positional) > 2:
            raise ArgumentError("encode takes at most batch_size and show_progress_bar after prompt without a name.")
        if output_value != "sentence_embedding":
            raise ArgumentError(f"output_value {output_value!r} needs sentence-transformers itself.")
        precision = precision or "float32"  # their evaluators send None
        if precision not in _PRECISIONS:
            raise ArgumentError(f"Unknown precision {precision!r}: use one of {', '.join(_PRECISIONS)}.")
        role, instruction = self._prompt(prompt, prompt_name or self.default_prompt_name or "document")
        single = isinstance(inputs, str)
        texts = [inputs] if isinstance(inputs, str) else list(inputs)
        vectors = np.zeros((0, 0), dtype=np.float32)
        if texts:
            vectors = self._backend.embed(texts, role=role, instruction=instruction)
        if keep := truncate_dim or self.truncate_dim:
            vectors = vectors[:, :keep]
        result: Any = unit(vectors) if normalize_embeddings and len(vectors) else vectors
        result = _packed(result, precision)
        result = result[0] if single else result
        if convert_to_tensor:
            return _tensor(result)
        return result if convert_to_numpy or single else list(result)

    def encode_query(self, inputs: str | Sequence[str], *positional: Any, **options: Any) -> Any:
        """Vectors of queries; the arguments are ``encode``'s."""
        return self._encode_as("query", inputs, positional, options)

    def encode_document(self, inputs: str | Sequence[str], *positional: Any, **options: Any) -> Any:
        """Vectors of documents; the arguments are ``encode``'s."""
        return self._encode_as("document", inputs, positional, options)

    def _encode_as(
        self, role: str, inputs: str | Sequence[str], positional: tuple[Any, ...], options: dict[str, Any]
    ) -> Any:
        name = options.pop("prompt_name", None) if not positional else positional[0]
        own = next((name for name in _ROLES[role] if name in self.prompts), role)
        return self.encode(inputs, name or own, *positional[1:], **options)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Similarities of all pairs, ``(N, M)``: a tensor for tensors, else an array."""
        first, second = _rows(embeddings1), _rows(embeddings2)
        scores = np.asarray(_SIMILARITIES[self.similarity_fn_name](first, second), dtype=np.float32)
        return _tensor(scores) if _has_tensors(embeddings1, embeddings2) else scores

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Similarities of the first with the first, and so on, ``(N,)``: a tensor for tensors, else an array."""
        function = _SIMILARITIES[self.similarity_fn_name]
        pairs = zip(_rows(embeddings1), _rows(embeddings2), strict=True)
        scores = np.array([function(a[None], b[None])[0, 0] for a, b in pairs], dtype=np.float32)
        return _tensor(scores) if _has_tensors(embeddings1, embeddings2) else scores

    def get_embedding_dimension(self) -> int:
        """E, the length of a vector."""
        model = getattr(self._backend, "model", None)
        size = getattr(model, "embedding_size", None)
        size = len(self._backend.embed(["length"], role="document")[0]) if size is None else size
        return min(size, self.truncate_dim or size)

    get_sentence_embedding_dimension = get_embedding_dimension

    def get_max_seq_length(self) -> int | None:
        """The maximum number of tokens of a text; None if the server does not say."""
        return self.max_seq_length

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer.

        Raises:
            ArgumentError: a server has it.
        """
        tokenizer = getattr(getattr(self._backend, "model", None), "tokenizer", None)
        if tokenizer is None:
            raise ArgumentError("The tokenizer is the server's: load the model here, without base_url.")
        return tokenizer

    @contextmanager
    def truncate_embeddings(self, truncate_dim: int | None) -> Iterator[None]:
        """Keep so many numbers of each vector within the block."""
        before, self.truncate_dim = self.truncate_dim, truncate_dim
        try:
            yield
        finally:
            self.truncate_dim = before

    truncate_sentence_embeddings = truncate_embeddings

    def supports(self, modality: Any) -> bool:
        """Whether texts of this kind can be embedded: only ``"text"``."""
        return bool(modality == "text")

    def eval(self) -> GritEncoder:
        """Itself: nothing is trained here."""
        return self

    def to(self, *_: Any, **__: Any) -> GritEncoder:
        """Itself: mlx has one memory."""
        return self

    def start_multi_process_pool(self, target_devices: Sequence[str] | None = None) -> dict[str, Any]:
        """A pool of nothing: one process embeds, in batches by length."""
        return {"input": None, "output": None, "processes": []}

    @staticmethod
    def stop_multi_process_pool(pool: Mapping[str, Any]) -> None:
        """Ends nothing."""

    def encode_multi_process(self, inputs: Sequence[str], pool: Mapping[str, Any], **options: Any) -> Any:
        """As ``encode``."""
        return self.encode(inputs, **options)

    def evaluate(self, evaluator: Any, output_path: str | None = None) -> Any:
        """What one of their evaluators says of the model."""
        return evaluator(self, output_path)

    def _prompt(self, prompt: str | None, name: str) -> tuple[str, str | None]:
        """The role of a text, and the instruction in place of the role's own."""
        if prompt is not None:
            return "query", prompt
        if name in self.prompts:
            return _ROLE_OF.get(name, "query"), self.prompts[name]
        if name not in _ROLE_OF:
            known = ", ".join(sorted({*_ROLE_OF, *self.prompts}))
            raise ArgumentError(f"Unknown prompt name {name!r}: use one of {known}.")
        return _ROLE_OF[name], None


def _refuse(unknown: set[str], what: str) -> None:
    if unknown:
        raise ArgumentError(f"{what} does not take {', '.join(sorted(unknown))}.")


def _packed(vectors: NDArray[np.float32], precision: str) -> Any:
    """Vectors ``(N, E)`` as ``sentence_transformers.util.quantize_embeddings`` packs them.

    Raises:
        ArgumentError: integers for a single vector, whose ranges would be empty.
    """
    if precision == "float32":
        return vectors
    if precision.endswith("binary"):
        bits = np.packbits(vectors > 0, axis=-1)
        return bits if precision == "ubinary" else (bits.astype(np.int16) - 128).astype(np.int8)
    if len(vectors) < 2:
        raise ArgumentError(f"{precision} takes each dimension's range from the vectors: give it two texts or more.")
    low, high = vectors.min(axis=0), vectors.max(axis=0)
    steps = (high - low) / 255
    values = np.clip(np.floor((vectors - low) / np.where(steps == 0, 1, steps)), 0, 255)
    return values.astype(np.uint8) if precision == "uint8" else (values - 128).astype(np.int8)


def _rows(embeddings: Any) -> NDArray[np.float32]:
    """Vectors ``(N, E)``: of an array, a list or a tensor, of one or many."""
    one_by_one = embeddings if isinstance(embeddings, list) else [embeddings]
    arrays = [np.asarray(one.cpu() if hasattr(one, "cpu") else one, dtype=np.float32) for one in one_by_one]
    return np.atleast_2d(np.stack(arrays) if isinstance(embeddings, list) else arrays[0])


def _has_tensors(*embeddings: Any) -> bool:
    firsts = (one[0] if isinstance(one, list) and one else one for one in embeddings)
    return any(type(first).__module__.partition(".")[0] == "torch" for first in firsts)


def _tensor(array: Any) -> Any:
    """A PyTorch tensor.

    Raises:
        DependencyError: PyTorch is not installed.
    """
    torch = optional("torch", extra="sentence-transformers", purpose="convert_to_tensor")
    return torch.from_numpy(np.ascontiguousarray(array))
