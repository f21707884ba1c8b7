"""Questions and passages to vectors, and to keys and values: complete, and without special tokens."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from grit_mlx.model.prompts import has_grit_format, neutralised, rag_prompt, rag_tokens
from grit_mlx.rag.options import check_question

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from grit_mlx.gritlm import GritLM
    from grit_mlx.model.caches import TextCache
    from grit_mlx.model.settings import Settings
    from grit_mlx.progress import Progress

__all__ = ["Encoder"]


class Encoder:
    """Embeds the texts of a store and its questions.

    Args:
        model: embeds.
        query_instruction: what questions are embedded with; None for the model's own.
    """

    def __init__(self, model: GritLM, *, query_instruction: str | None = None) -> None:
        instruction = model.settings.query_instruction if query_instruction is None else query_instruction
        self.model = model
        # A model that was not trained to read in both directions writes from what it read in its own.
        natural = model.trained_to_embed or model.settings.causal
        self._reader = model if natural else model.with_attention("cccc")
        self.query_prompt = model.settings.prompt(instruction)
        self.document_prompt = model.settings.prompt(model.settings.document_instruction)

    def neutralised(self, text: str) -> str:
        """A text without GRIT's markers and the tokenizer's special tokens; see ``prompts.neutralised``."""
        return neutralised(self.model.tokenizer, text)

    def count(self, text: str) -> int:
        """The number of tokens of a text."""
        return len(self.model.tokenizer.encode(text, add_special_tokens=False, verbose=False))

    @cached_property
    def in_grit(self) -> bool:
        """Whether prompts are in GRIT's words."""
        return has_grit_format(self.model.tokenizer)

    def frame(self, mode: str) -> int:
        """The number of tokens of a prompt beside question and documents; ``mode`` is one of ``modes.MODES``."""
        if self.in_grit:
            return self.count(rag_prompt("none-document-first" if mode == "none" else mode))
        return len(rag_tokens(self.model.tokenizer, mode, [""], document=""))

    def query(self, question: str) -> tuple[NDArray[np.float32], TextCache]:
        """The question's vector ``(E,)`` and, from the same pass, its keys and values; none of a model that is split.

        Raises:
            ArgumentError: the question is empty.
        """
        check_question(question)
        if self.model.is_split:
            return self.queries([question])[0], []
        vectors, layers = self._with_caches([question], self.query_prompt)
        return vectors[0], layers[0]

    def document_tokens(self, content: str) -> tuple[list[int], Settings]:
        """The tokens of a passage whose keys and values are wanted, and how they are to be read."""
        prompt, harmless = self.document_prompt, self.neutralised(content)
        room = len((prompt + harmless).encode()) + 64
        [piece] = self._reader.embedder.pieces(
            [harmless], self._reader.embedding_options(instruction=prompt, max_length=room)
        )
        return piece.ids, self._reader.settings

    def queries(self, questions: Sequence[str]) -> NDArray[np.float32]:
        """Vectors of questions, ``(N, E)``."""
        vectors: NDArray[np.float32] = self._encode(questions, self.query_prompt)
        return vectors

    def vectors(self, contents: Sequence[str], progress: Progress | None = None) -> NDArray[np.float32]:
        """Vectors of passages, ``(N, E)``; ``progress`` is called with passages done and passages in all."""
        vectors: NDArray[np.float32] = self._encode(contents, self.document_prompt, progress=progress or False)
        return vectors

    def vectors_and_caches(self, contents: Sequence[str]) -> tuple[NDArray[np.float32], list[TextCache]]:
        """Vectors of passages, ``(N, E)``, and their keys and values."""
        return self._with_caches(contents, self.document_prompt)

    def continued(self, content: str) -> TextCache:
        """Keys and values of a passage that follows a question as in the official code: no BOS, but a line break."""
        prompt = "\n" + self.document_prompt
        options = {"get_cache": True, "add_special_tokens": False}
        layers: list[TextCache] = self._encode([content], prompt, by=self._reader, **options)[1]
        return layers[0]

    def _with_caches(self, texts: Sequence[str], prompt: str) -> tuple[NDArray[np.float32], list[TextCache]]:
        """Vectors and caches: from one pass, unless the model reads in another direction than it embeds."""
        vectors, layers = self._encode(texts, prompt, get_cache=True, by=self._reader)
        return (vectors if self._reader is self.model else self._encode(texts, prompt)), layers

    def _encode(self, texts: Sequence[str], prompt: str, *, by: GritLM | None = None, **options: Any) -> Any:
        harmless = [self.neutralised(text) for text in texts]
        # Nothing is truncated: a token stands for at least a byte.
        room = max((len((prompt + text).encode()) for text in harmless), default=0) + 64
        options = {"progress": False, **options}
        return (by or self.model).encode(harmless, instruction=prompt, max_length=room, **options)
