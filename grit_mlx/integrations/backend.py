"""What the adapters share: a model in this process, or one that ``grit serve`` holds, behind one interface.

Shapes: N texts, E embedding size.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from grit_mlx.errors import ArgumentError, ServerError
from grit_mlx.model.options import GenerationOptions
from grit_mlx.server.client import ServerClient

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from grit_mlx.gritlm import GritLM

__all__ = ["Backend", "LocalBackend", "Passage", "Piece", "ServerBackend", "answer", "connect", "generation_options"]

Message = Mapping[str, Any]

# What the server calls the roles of texts: Cohere's names, which OpenAI's API has no field for.
_INPUT_TYPES: Final = {"query": "search_query", "document": "search_document", "similarity": "clustering"}


@dataclass(frozen=True)
class Piece:
    """A part of an answer.

    Attributes:
        text: what is new.
        finish_reason: "stop" or "length" with the last piece; else None.
        prompt_tokens: of the prompt; None if they are not known yet.
        completion_tokens: generated so far; None if they are not known yet.
    """

    text: str
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


@dataclass(frozen=True)
class Passage:
    """A passage of a store that was found.

    Attributes:
        text: its words.
        source: the file it is from.
        place: where it stands, as people write it: ``notes.md:3-9``.
        score: what it is ranked by.
        metadata: the fields of its row, if it is from a table.
    """

    text: str
    source: str
    place: str
    score: float
    metadata: Mapping[str, Any]


class Backend(ABC):
    """One model that embeds and writes."""

    name: str

    @abstractmethod
    def embed(self, texts: Sequence[str], *, role: str, instruction: str | None = None) -> NDArray[np.float32]:
        """Vectors ``(N, E)``.

        Args:
            texts: N texts, none of them empty.
            role: ``"query"``, ``"document"`` or ``"similarity"``.
            instruction: in place of the model's own for this role, without GRIT's markers.
        """

    def embed_lists(self, texts: Sequence[str], *, role: str, instruction: str | None = None) -> list[list[float]]:
        """As ``embed``, in Python's own numbers, which many tools want."""
        vectors: list[list[float]] = self.embed(texts, role=role, instruction=instruction).astype(float).tolist()
        return vectors

    @abstractmethod
    def chat(self, messages: Sequence[Message], **options: Any) -> Iterator[Piece]:
        """The answer to a chat, piece by piece.

        Args:
            messages: the chat.
            **options: fields of ``GenerationOptions``, ``schema`` (the answer is JSON of this form) and, for a model in
                this process, ``cache`` (a ``PromptCache``).
        """

    @abstractmethod
    def rerank(self, query: str, documents: Sequence[str], *, method: str | None = None) -> list[float]:
        """A score for each document; a higher one fits better.

        Args:
            query: the question.
            documents: N texts.
            method: ``"likelihood"`` of the query after the document, or ``"cosine"``; None for cosine where a model
                only embeds, else likelihood.
        """

    @abstractmethod
    def search(self, store: str, question: str, **options: Any) -> list[Passage]:
        """Passages of a store, best first; ``options`` are ``top``, ``method``, ``paths`` and ``metadata``."""


def connect(
    model: str | Path | GritLM | None = None, *, base_url: str | None = None, api_key: str | None = None
) -> Backend:
    """The backend that an adapter was told to use.

    Args:
        model: a name, a folder or a loaded model; None for the default model. With ``base_url`` the server's name of
            the model; None for its first.
        base_url: of a running ``grit serve``, such as ``http://127.0.0.1:8080``; None to load the model here. Equal
            models of one process are loaded once.
        api_key: the server's key, if it has one; a model in this process needs none.

    Raises:
        ModelError: the model cannot be found or loaded.
        ArgumentError: a loaded model and a server.
    """
    if base_url is None:
        return LocalBackend(model)
    if not isinstance(model, str | Path | None):
        raise ArgumentError("With base_url the server holds the model: name it, or leave it out.")
    return ServerBackend(base_url, model=None if model is None else str(model), api_key=api_key)


def generation_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those options of a tool that are set and that we know, under our names.

    Raises:
        ArgumentError: one that is not supported.
    """
    known = {field.name for field in fields(GenerationOptions)} | {"schema"}
    names = {"max_completion_tokens": "max_tokens", "max_new_tokens": "max_tokens", "generation_kwargs": ""}
    chosen = {names.get(name, name): value for name, value in options.items() if value is not None}
    if unknown := sorted(set(chosen) - known):
        raise ArgumentError(f"{', '.join(unknown)}: not supported. Use {', '.join(sorted(known))}.")
    if isinstance(chosen.get("stop"), str):
        chosen["stop"] = (chosen["stop"],)
    return chosen


# One model for each name, however many adapters a program makes.
_loaded: dict[str, GritLM] = {}
_loading = threading.Lock()


def _load(model: str | Path | None) -> GritLM:
    from grit_mlx.gritlm import GritLM
    from grit_mlx.model import hub
    from grit_mlx.model.options import ModelChoice

    folder = hub.resolve(ModelChoice(model=model))
    with _loading:
        key = str(folder.resolve())
        if key not in _loaded:
            _loaded[key] = GritLM(folder)
        return _loaded[key]


class LocalBackend(Backend):
    """A model in this process."""

    def __init__(self, model: str | Path | GritLM | None = None) -> None:
        self._given = model
        self.name = str(model) if isinstance(model, str | Path) else "grit" if model is None else model.folder.name
        self._stores: dict[str, Any] = {}

    @cached_property
    def model(self) -> GritLM:
        """The model, loaded on first use."""
        given = self._given
        return _load(given) if given is None or isinstance(given, str | Path) else given

    def embed(self, texts: Sequence[str], *, role: str, instruction: str | None = None) -> NDArray[np.float32]:
        """As ``Backend.embed``."""
        vectors: NDArray[np.float32] = self.model.encode(
            list(texts), role=role, instruction=instruction, progress=False
        )
        return vectors

    def chat(self, messages: Sequence[Message], **options: Any) -> Iterator[Piece]:
        """As ``Backend.chat``."""
        cache = options.pop("cache", None)
        responses = self.model.stream_responses(list(messages), cache=cache, **generation_options(options))
        return (
            Piece(response.text, response.finish_reason, response.prompt_tokens, response.generation_tokens)
            for response in responses
        )

    def rerank(self, query: str, documents: Sequence[str], *, method: str | None = None) -> list[float]:
        """As ``Backend.rerank``."""
        _check_method(method)
        if method == "cosine" or (method is None and not self.model.settings.generates):
            (question,) = self.embed([query], role="query")
            return [float(score) for score in self.embed(documents, role="document") @ question]
        from grit_mlx.rag.answering import Answerer, Document
        from grit_mlx.rag.likelihood import likelihood

        answerer = Answerer(self.model)
        read = answerer.prefixes.documents([Document(text) for text in documents])
        return [likelihood(answerer.encoder, query, layers) for layers in read]

    def search(self, store: str, question: str, **options: Any) -> list[Passage]:
        """As ``Backend.search``."""
        from grit_mlx.rag.store import Store

        if store not in self._stores:
            self._stores[store] = Store(store, self.model)
        return [
            Passage(
                result.passage.text,
                result.passage.source,
                result.passage.place,
                result.score,
                dict(pair.split("=", 1) for pair in result.passage.metadata),
            )
            for result in self._stores[store].search(question, **options)
        ]


class ServerBackend(Backend):
    """A model that ``grit serve`` holds.

    Args:
        base_url: with or without ``/v1``.
        model: the server's name of it; None for its first.
        api_key: the server's key, if it has one.
    """

    def __init__(self, base_url: str, *, model: str | None = None, api_key: str | None = None) -> None:
        self._client = ServerClient(base_url.rstrip("/").removesuffix("/v1"), api_key or "")
        self._model = model
        self.name = model or self._client.address

    @cached_property
    def model(self) -> str:
        """The server's name of the model."""
        return self._model or str(self._client.get("/v1/models")["data"][0]["id"])

    def embed(self, texts: Sequence[str], *, role: str, instruction: str | None = None) -> NDArray[np.float32]:
        """As ``Backend.embed``."""
        import base64

        body = {"model": self.model, "input": list(texts), "encoding_format": "base64"}
        body |= {"input_type": _INPUT_TYPES[role]} if instruction is None else {"instruction": instruction}
        rows = sorted(self._client.post("/v1/embeddings", body)["data"], key=lambda row: row["index"])
        return np.stack([np.frombuffer(base64.b64decode(row["embedding"]), dtype="<f4") for row in rows])

    def chat(self, messages: Sequence[Message], **options: Any) -> Iterator[Piece]:
        """As ``Backend.chat``."""
        chosen = generation_options(options)
        if schema := chosen.pop("schema", None):
            chosen["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
        if "stop" in chosen:
            chosen["stop"] = list(chosen["stop"])
        body = {"model": self.model, "messages": [dict(message) for message in messages], **chosen}
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        for event in self._client.events("/v1/chat/completions", body):
            yield from _pieces(event)

    def rerank(self, query: str, documents: Sequence[str], *, method: str | None = None) -> list[float]:
        """As ``Backend.rerank``."""
        _check_method(method)
        if method == "cosine":  # else as the server was started
            (question,) = self.embed([query], role="query")
            return [float(score) for score in self.embed(documents, role="document") @ question]
        body = {"model": self.model, "query": query, "documents": list(documents)}
        results = self._client.post("/v1/rerank", body)["results"]
        scores = {result["index"]: float(result["relevance_score"]) for result in results}
        return [scores[index] for index in range(len(documents))]

    def search(self, store: str, question: str, **options: Any) -> list[Passage]:
        """As ``Backend.search``."""
        body = {"query": question, **{"top_k" if name == "top" else name: value for name, value in options.items()}}
        results = self._client.post(f"/v1/stores/{store}/search", body)["results"]
        return [
            Passage(row["text"], row["path"], row["place"], float(row["score"]), row["metadata"]) for row in results
        ]


def _pieces(chunk: Mapping[str, Any]) -> Iterator[Piece]:
    if "error" in chunk:
        raise ServerError(str(chunk["error"].get("message", chunk["error"])))
    usage = chunk.get("usage") or {}
    counts = usage.get("prompt_tokens"), usage.get("completion_tokens")
    for choice in chunk["choices"]:
        yield Piece((choice.get("delta") or {}).get("content") or "", choice.get("finish_reason"), *counts)
    if not chunk["choices"] and usage:
        yield Piece("", None, *counts)


def _check_method(method: str | None) -> None:
    if method not in {None, "likelihood", "cosine"}:
        raise ArgumentError(f"Unknown method {method!r}: use likelihood or cosine.")


def answer(pieces: Iterator[Piece]) -> Piece:
    """An answer in one piece."""
    text, finish_reason, prompt_tokens, completion_tokens = "", None, None, None
    for piece in pieces:
        text += piece.text
        finish_reason = piece.finish_reason or finish_reason
        prompt_tokens = prompt_tokens if piece.prompt_tokens is None else piece.prompt_tokens
        completion_tokens = completion_tokens if piece.completion_tokens is None else piece.completion_tokens
    return Piece(text, finish_reason, prompt_tokens, completion_tokens)
