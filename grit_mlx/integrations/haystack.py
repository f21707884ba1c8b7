"""GRIT models in Haystack (extra ``haystack``): embedders, chat generator, ranker and retriever.

Each component takes ``model`` (a name or a folder; None for the default) or ``base_url`` of a running ``grit serve``,
and can be saved with its pipeline.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from grit_mlx.errors import ArgumentError
from grit_mlx.integrations.backend import Backend, answer, connect
from grit_mlx.optional import importing

with importing(extra="haystack", purpose="The Haystack adapter"):
    from haystack import Document, component, default_from_dict, default_to_dict
    from haystack.dataclasses import ChatMessage, StreamingChunk
    from haystack.utils import Secret, deserialize_callable, serialize_callable

__all__ = ["GritChatGenerator", "GritDocumentEmbedder", "GritRanker", "GritRetriever", "GritTextEmbedder"]


class _Component:
    """Which model a component uses, and how it is saved.

    A component's parameters are kept under their names, and the model is loaded when it first runs or warms up.
    """

    model: str | None
    base_url: str | None
    api_key: Secret | None
    _backend: Backend | None = None

    def warm_up(self) -> None:
        """Load the model, or find the server."""
        if self._backend is None:
            key = None if self.api_key is None else self.api_key.resolve_value()
            self._backend = connect(self.model, base_url=self.base_url, api_key=key)

    @property
    def backend(self) -> Backend:
        """The model."""
        self.warm_up()
        assert self._backend is not None
        return self._backend

    def to_dict(self) -> dict[str, Any]:
        """Its parameters, as a pipeline is saved."""
        kept = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        if key := kept["api_key"]:
            kept["api_key"] = key.to_dict()
        if callback := kept.get("streaming_callback"):
            kept["streaming_callback"] = serialize_callable(callback)
        saved: dict[str, Any] = default_to_dict(self, **kept)
        return saved

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Any:
        """A component as it was saved."""
        parameters = data["init_parameters"]
        if key := parameters.get("api_key"):
            parameters["api_key"] = Secret.from_dict(key)
        if callback := parameters.get("streaming_callback"):
            parameters["streaming_callback"] = deserialize_callable(callback)
        return default_from_dict(cls, data)


@component
class GritTextEmbedder(_Component):
    """The vector of a query."""

    def __init__(
        self,
        model: str | None = None,
        base_url: str | None = None,
        api_key: Secret | None = None,
        instruction: str | None = None,
    ) -> None:
        self.model, self.base_url, self.api_key = model, base_url, api_key
        self.instruction = instruction

    @component.output_types(embedding=list[float], meta=dict[str, Any])
    def run(self, text: str) -> dict[str, Any]:
        """Embed a query."""
        if not isinstance(text, str):
            raise TypeError("GritTextEmbedder takes a text; for documents use GritDocumentEmbedder.")
        (vector,) = self.backend.embed_lists([text], role="query", instruction=self.instruction)
        return {"embedding": vector, "meta": {"model": self.backend.name}}


@component
class GritDocumentEmbedder(_Component):
    """The vectors of documents.

    Args:
        model: a name or a folder.
        base_url: of a running ``grit serve``.
        api_key: the server's.
        instruction: in place of the model's own.
        meta_fields_to_embed: fields whose values are put before the text.
        embedding_separator: what stands between them.
    """

    def __init__(
        self,
        model: str | None = None,
        base_url: str | None = None,
        api_key: Secret | None = None,
        instruction: str | None = None,
        meta_fields_to_embed: list[str] | None = None,
        embedding_separator: str = "\n",
    ) -> None:
        self.model, self.base_url, self.api_key = model, base_url, api_key
        self.instruction = instruction
        self.meta_fields_to_embed = meta_fields_to_embed or []
        self.embedding_separator = embedding_separator

    @component.output_types(documents=list[Document], meta=dict[str, Any])
    def run(self, documents: list[Document]) -> dict[str, Any]:
        """Embed documents; those without text keep no vector."""
        if not isinstance(documents, list) or not all(isinstance(document, Document) for document in documents):
            raise TypeError("GritDocumentEmbedder takes a list of documents; for a text use GritTextEmbedder.")
        texts = [self._text(document) for document in documents]
        full = [i for i, text in enumerate(texts) if text.strip()]
        embedded = list(documents)
        if full:
            given = [texts[i] for i in full]
            vectors = self.backend.embed_lists(given, role="document", instruction=self.instruction)
            for i, vector in zip(full, vectors, strict=True):
                embedded[i] = replace(documents[i], embedding=vector)
        return {"documents": embedded, "meta": {"model": self.backend.name}}

    def _text(self, document: Document) -> str:
        fields = [str(document.meta[name]) for name in self.meta_fields_to_embed if document.meta.get(name) is not None]
        return self.embedding_separator.join([*fields, document.content or ""])


@component
class GritChatGenerator(_Component):
    """Answers to chats.

    Args:
        model: a name or a folder.
        base_url: of a running ``grit serve``.
        api_key: the server's.
        generation_kwargs: fields of ``GenerationOptions``, and ``schema``.
        streaming_callback: called with each piece.
    """

    def __init__(
        self,
        model: str | None = None,
        base_url: str | None = None,
        api_key: Secret | None = None,
        generation_kwargs: dict[str, Any] | None = None,
        streaming_callback: Any = None,
    ) -> None:
        self.model, self.base_url, self.api_key = model, base_url, api_key
        self.generation_kwargs = generation_kwargs or {}
        self.streaming_callback = streaming_callback

    @component.output_types(replies=list[ChatMessage])
    def run(
        self,
        messages: list[ChatMessage] | str,
        streaming_callback: Any = None,
        generation_kwargs: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Answer a chat."""
        if isinstance(messages, str):
            messages = [ChatMessage.from_user(messages)]
        callback = streaming_callback or self.streaming_callback
        options = {**self.generation_kwargs, **(generation_kwargs or {})}

        def noted() -> Any:
            for piece in self.backend.chat([_message(message) for message in messages], **options):
                if callback and piece.text:
                    callback(StreamingChunk(content=piece.text))
                yield piece

        whole = answer(noted())
        usage = {"prompt_tokens": whole.prompt_tokens, "completion_tokens": whole.completion_tokens}
        meta = {"model": self.backend.name, "finish_reason": whole.finish_reason, "usage": usage}
        return {"replies": [ChatMessage.from_assistant(whole.text, meta=meta)]}


@component
class GritRanker(_Component):
    """Reorders documents by how well they fit a query.

    Args:
        model: a name or a folder.
        base_url: of a running ``grit serve``.
        api_key: the server's.
        top_k: how many to keep; None for all.
        method: ``"likelihood"`` of the query after the document, or ``"cosine"``; None for what the model can.
    """

    def __init__(
        self,
        model: str | None = None,
        base_url: str | None = None,
        api_key: Secret | None = None,
        top_k: int | None = None,
        method: str | None = None,
    ) -> None:
        self.model, self.base_url, self.api_key = model, base_url, api_key
        self.top_k = top_k
        self.method = method

    @component.output_types(documents=list[Document])
    def run(self, query: str, documents: list[Document], top_k: int | None = None) -> dict[str, Any]:
        """Rerank documents; each gets its score."""
        if not documents:
            return {"documents": []}
        texts = [document.content or "" for document in documents]
        scores = self.backend.rerank(query, texts, method=self.method)
        order = sorted(range(len(documents)), key=lambda i: -scores[i])[: top_k or self.top_k]
        return {"documents": [replace(documents[i], score=scores[i]) for i in order]}


@component
class GritRetriever(_Component):
    """Finds passages in a store that ``grit rag index`` made.

    Args:
        store: its folder; with ``base_url`` the server's name of it.
        model: a name or a folder: the one that the store was made with.
        base_url: of a running ``grit serve``.
        api_key: the server's.
        top_k: how many passages.
        search_options: other fields of ``SearchOptions``, such as ``method``, ``paths`` and ``metadata``.
    """

    def __init__(
        self,
        store: str,
        model: str | None = None,
        base_url: str | None = None,
        api_key: Secret | None = None,
        top_k: int = 4,
        search_options: dict[str, Any] | None = None,
    ) -> None:
        self.store = store
        self.model, self.base_url, self.api_key = model, base_url, api_key
        self.top_k = top_k
        self.search_options = search_options or {}

    @component.output_types(documents=list[Document])
    def run(self, query: str, filters: dict[str, Any] | None = None, top_k: int | None = None) -> dict[str, Any]:
        """Search; ``filters`` override ``search_options``."""
        options = {"top": top_k or self.top_k, **self.search_options, **(filters or {})}
        return {
            "documents": [
                Document(
                    content=passage.text,
                    meta={**passage.metadata, "source": passage.source, "place": passage.place},
                    score=passage.score,
                )
                for passage in self.backend.search(self.store, query, **options)
            ]
        }


def _message(message: ChatMessage) -> dict[str, Any]:
    if message.text is None:
        raise ArgumentError("Only text is supported in messages, not tools or images.")
    return {"role": message.role.value, "content": message.text}
