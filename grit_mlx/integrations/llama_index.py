"""GRIT models in LlamaIndex (extra ``llama-index``): embedding, LLM, reranker and retriever.

::

    from llama_index.core import Settings
    from grit_mlx.integrations.llama_index import GritEmbedding, GritLLM

    Settings.embed_model, Settings.llm = GritEmbedding(), GritLLM(model="gritlm-7b")

Each takes ``model`` (a name, a folder, a loaded ``GritLM``; None for the default) or ``base_url`` of a running
``grit serve``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from grit_mlx.errors import ArgumentError
from grit_mlx.integrations.backend import Backend, answer, connect
from grit_mlx.optional import importing

with importing(extra="llama-index", purpose="The LlamaIndex adapter"):
    from llama_index.core.base.base_retriever import BaseRetriever
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.base.llms.types import (
        ChatMessage,
        ChatResponse,
        ChatResponseGen,
        CompletionResponse,
        CompletionResponseGen,
        LLMMetadata,
        MessageRole,
        TextBlock,
    )
from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.custom import CustomLLM
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle, TextNode

__all__ = ["GritEmbedding", "GritLLM", "GritReranker", "GritRetriever"]


class GritEmbedding(BaseEmbedding):
    """Vectors of nodes and of queries, which differ.

    Attributes:
        query_instruction: in place of the model's own.
        document_instruction: in place of the model's own.
    """

    model: Any = Field(default=None, exclude=True)
    base_url: str | None = None
    query_instruction: str | None = None
    document_instruction: str | None = None

    _backend: Backend = PrivateAttr()

    def __init__(self, model: Any = None, *, api_key: str | None = None, **options: Any) -> None:
        backend = connect(model, base_url=options.get("base_url"), api_key=api_key)
        # Batches are formed by length here, so LlamaIndex need not cut the texts into tens.
        options = {"model_name": backend.name, "embed_batch_size": 2048, **options}
        super().__init__(model=model, **options)
        self._backend = backend

    @classmethod
    def class_name(cls) -> str:
        """LlamaIndex's name of this class."""
        return "GritEmbedding"

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._backend.embed_lists([query], role="query", instruction=self.query_instruction)[0]

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_query_embedding(query)

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return self._backend.embed_lists(texts, role="document", instruction=self.document_instruction)


class GritLLM(CustomLLM):
    """A model that writes. Options that are None are the model's own."""

    model: Any = Field(default=None, exclude=True)
    base_url: str | None = None
    max_tokens: int | None = 256
    temperature: float | None = None
    top_p: float | None = None
    stop: list[str] | None = None
    context_window: int = 4096

    _backend: Backend = PrivateAttr()

    def __init__(self, model: Any = None, *, api_key: str | None = None, **options: Any) -> None:
        super().__init__(model=model, **options)
        self._backend = connect(model, base_url=self.base_url, api_key=api_key)

    @classmethod
    def class_name(cls) -> str:
        """LlamaIndex's name of this class."""
        return "GritLLM"

    @property
    def metadata(self) -> LLMMetadata:
        """What LlamaIndex asks about a model."""
        return LLMMetadata(
            context_window=self.context_window,
            num_output=self.max_tokens or 256,
            is_chat_model=True,
            model_name=self._backend.name,
        )

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """The answer to a chat."""
        whole = answer(self._backend.chat([_message(message) for message in messages], **self._options(kwargs)))
        usage = {"prompt_tokens": whole.prompt_tokens, "completion_tokens": whole.completion_tokens}
        return ChatResponse(
            message=ChatMessage(role=MessageRole.ASSISTANT, content=whole.text),
            raw={"finish_reason": whole.finish_reason, "usage": usage},
            additional_kwargs=usage,
        )

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """The answer to a chat, piece by piece."""
        pieces = self._backend.chat([_message(message) for message in messages], **self._options(kwargs))

        def responses() -> ChatResponseGen:
            text = ""
            for piece in pieces:
                text += piece.text
                message = ChatMessage(role=MessageRole.ASSISTANT, content=text)
                yield ChatResponse(message=message, delta=piece.text, raw={"finish_reason": piece.finish_reason})

        return responses()

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """The answer to a prompt, as a user's message."""
        response = self.chat([ChatMessage(role=MessageRole.USER, content=prompt)], **kwargs)
        return CompletionResponse(text=response.message.content or "", raw=response.raw)

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        """The answer to a prompt, piece by piece."""
        chunks = self.stream_chat([ChatMessage(role=MessageRole.USER, content=prompt)], **kwargs)

        def responses() -> CompletionResponseGen:
            for chunk in chunks:
                yield CompletionResponse(text=chunk.message.content or "", delta=chunk.delta, raw=chunk.raw)

        return responses()

    def _options(self, given: dict[str, Any]) -> dict[str, Any]:
        names = ("max_tokens", "temperature", "top_p", "stop")
        chosen = {name: getattr(self, name) for name in names}
        return {name: value for name, value in {**chosen, **given}.items() if value is not None}


class GritReranker(BaseNodePostprocessor):
    """Reorders nodes by how well they fit the query.

    Attributes:
        top_n: how many to keep; None for all.
        method: ``"likelihood"`` of the query after the node, or ``"cosine"``; None for what the model can.
    """

    model: Any = Field(default=None, exclude=True)
    base_url: str | None = None
    top_n: int | None = None
    method: str | None = None

    _backend: Backend = PrivateAttr()

    def __init__(self, model: Any = None, *, api_key: str | None = None, **options: Any) -> None:
        super().__init__(model=model, **options)
        self._backend = connect(model, base_url=self.base_url, api_key=api_key)

    @classmethod
    def class_name(cls) -> str:
        """LlamaIndex's name of this class."""
        return "GritReranker"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        if query_bundle is None:
            raise ArgumentError("Reranking needs the query: postprocess_nodes(nodes, query_str=...).")
        if not nodes:
            return []
        texts = [node.node.get_content(metadata_mode=MetadataMode.EMBED) for node in nodes]
        scores = self._backend.rerank(query_bundle.query_str, texts, method=self.method)
        order = sorted(range(len(nodes)), key=lambda i: -scores[i])[: self.top_n]
        return [NodeWithScore(node=nodes[i].node, score=scores[i]) for i in order]


class GritRetriever(BaseRetriever):
    """Finds passages in a store that ``grit rag index`` made.

    Args:
        store: its folder; with ``base_url`` the server's name of it.
        model: a name, a folder or a loaded model: the one that the store was made with.
        similarity_top_k: how many passages.
        base_url: of a running ``grit serve``.
        api_key: the server's.
        **search_options: other fields of ``SearchOptions``, such as ``method``, ``paths`` and ``metadata``.
    """

    def __init__(
        self,
        store: str,
        model: Any = None,
        *,
        similarity_top_k: int = 4,
        base_url: str | None = None,
        api_key: str | None = None,
        **search_options: Any,
    ) -> None:
        super().__init__()
        self._backend = connect(model, base_url=base_url, api_key=api_key)
        self._store = store
        self._options = {"top": similarity_top_k, **search_options}

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return [
            NodeWithScore(
                node=TextNode(
                    text=passage.text,
                    metadata={**passage.metadata, "source": passage.source, "place": passage.place},
                ),
                score=passage.score,
            )
            for passage in self._backend.search(self._store, query_bundle.query_str, **self._options)
        ]


def _message(message: ChatMessage) -> dict[str, Any]:
    if not all(isinstance(block, TextBlock) for block in message.blocks):
        raise ArgumentError("Only text is supported in messages, not images or sound.")
    return {"role": message.role.value, "content": message.content or ""}
