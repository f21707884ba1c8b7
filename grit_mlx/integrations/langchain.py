"""GRIT models in LangChain (extra ``langchain``): embeddings, chat model, reranker and retriever.

::

    from grit_mlx.integrations.langchain import ChatGrit, GritEmbeddings

    vectors = InMemoryVectorStore(GritEmbeddings())
    chat = ChatGrit(model="gritlm-7b")  # the same weights, loaded once

Each takes ``model`` (a name, a folder, a loaded ``GritLM``; None for the default) or ``base_url`` of a running
``grit serve``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import Any

from grit_mlx.errors import ArgumentError
from grit_mlx.integrations.backend import Backend, Piece, answer, connect
from grit_mlx.optional import importing

with importing(extra="langchain", purpose="The LangChain adapter"):
    from langchain_core.callbacks import CallbackManagerForLLMRun, CallbackManagerForRetrieverRun, Callbacks
    from langchain_core.documents import BaseDocumentCompressor, Document
    from langchain_core.embeddings import Embeddings
    from langchain_core.language_models import BaseChatModel, LanguageModelInput
    from langchain_core.messages import (
        AIMessage,
        AIMessageChunk,
        BaseMessage,
        convert_to_openai_messages,
        merge_message_runs,
    )
    from langchain_core.messages.ai import UsageMetadata
    from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
    from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
    from langchain_core.retrievers import BaseRetriever
    from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
    from langchain_core.utils.function_calling import convert_to_json_schema
    from pydantic import BaseModel, PrivateAttr, SecretStr

__all__ = ["ChatGrit", "GritEmbeddings", "GritReranker", "GritRetriever"]


class GritEmbeddings(Embeddings):
    """Vectors of documents and of queries, which differ.

    Args:
        model: a name, a folder or a loaded model.
        base_url: of a running ``grit serve``.
        api_key: the server's.
        query_instruction: in place of the model's own.
        document_instruction: in place of the model's own.
    """

    def __init__(
        self,
        model: Any = None,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        query_instruction: str | None = None,
        document_instruction: str | None = None,
    ) -> None:
        self.backend = connect(model, base_url=base_url, api_key=api_key)
        self.query_instruction = query_instruction
        self.document_instruction = document_instruction

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Vectors of documents."""
        if not texts:
            return []
        return self.backend.embed_lists(texts, role="document", instruction=self.document_instruction)

    def embed_query(self, text: str) -> list[float]:
        """The vector of a query."""
        return self.backend.embed_lists([text], role="query", instruction=self.query_instruction)[0]


class _Connected(BaseModel):
    """Which model an adapter uses; connected when it is first asked."""

    model: Any = None
    base_url: str | None = None
    api_key: SecretStr | None = None

    _backend: Backend | None = PrivateAttr(default=None)

    @property
    def backend(self) -> Backend:
        if self._backend is None:
            self._backend = self._connected(self.model)
        return self._backend

    def _connected(self, model: Any) -> Backend:
        """The backend of this model; None for its own."""
        if model is None and self._backend is not None:
            return self._backend
        key = None if self.api_key is None else self.api_key.get_secret_value()
        return connect(self.model if model is None else model, base_url=self.base_url, api_key=key)


class ChatGrit(_Connected, BaseChatModel):
    """A chat model. Options that are None are the model's own."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    stop: list[str] | None = None

    @property
    def _llm_type(self) -> str:
        return "grit-mlx"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"model": self.backend.name, **self._options()}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> Any:
        params = super()._get_ls_params(stop=stop, **kwargs)
        params["ls_model_name"] = str(kwargs.get("model") or self.backend.name)
        params["ls_provider"] = "grit-mlx"
        return params

    def _options(self) -> dict[str, Any]:
        names = ("max_tokens", "temperature", "top_p", "top_k", "seed")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def _pieces(self, messages: list[BaseMessage], stop: list[str] | None, options: dict[str, Any]) -> Iterator[Piece]:
        for name in ("stream", "ls_structured_output_format"):
            options.pop(name, None)
        if options.pop("tools", None) or options.pop("tool_choice", None):
            raise ArgumentError("Tools are not supported; for an answer in a given form use with_structured_output.")
        stop = stop or self.stop
        chosen = {**self._options(), **({"stop": tuple(stop)} if stop else {}), **options}
        # Many chat templates insist on turns that alternate.
        runs = merge_message_runs(messages, chunk_separator="\n\n")
        backend = self._connected(chosen.pop("model", None))
        return backend.chat([_message(message) for message in runs], **chosen)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        whole = answer(self._pieces(messages, stop, kwargs))
        message = AIMessage(whole.text, usage_metadata=_usage(whole), response_metadata=self._metadata(whole))
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        last = Piece("")
        for piece in self._pieces(messages, stop, kwargs):
            last = Piece(
                "",
                piece.finish_reason or last.finish_reason,
                last.prompt_tokens if piece.prompt_tokens is None else piece.prompt_tokens,
                last.completion_tokens if piece.completion_tokens is None else piece.completion_tokens,
            )
            if piece.text:
                chunk = ChatGenerationChunk(message=AIMessageChunk(piece.text))
                if run_manager:
                    run_manager.on_llm_new_token(piece.text, chunk=chunk)
                yield chunk
        # Chunks are added up: what stands for the answer as a whole comes once.
        end = AIMessageChunk(
            "", usage_metadata=_usage(last), response_metadata=self._metadata(last), chunk_position="last"
        )
        yield ChatGenerationChunk(message=end)

    def _metadata(self, last: Piece) -> dict[str, Any]:
        return {"model_name": self.backend.name, "finish_reason": last.finish_reason}

    def with_structured_output(
        self, schema: dict[str, Any] | type, *, include_raw: bool = False, **kwargs: Any
    ) -> Runnable[LanguageModelInput, Any]:
        """A model whose answers have the form of a JSON schema, a TypedDict or a Pydantic class.

        The answer cannot have another form: each token is chosen among those that the schema allows.
        """
        kwargs.pop("method", None)
        kwargs.pop("strict", None)
        if kwargs:
            raise ArgumentError(f"{', '.join(sorted(kwargs))}: not supported by with_structured_output.")
        is_class = isinstance(schema, type) and issubclass(schema, BaseModel)
        parser: Any = PydanticOutputParser(pydantic_object=schema) if is_class else JsonOutputParser()
        json_schema = convert_to_json_schema(schema)
        bound = self.bind(
            schema=json_schema,
            ls_structured_output_format={"kwargs": {"method": "json_schema"}, "schema": json_schema},
        )
        if not include_raw:
            return bound | parser
        parsed = RunnablePassthrough.assign(parsed=itemgetter("raw") | parser, parsing_error=lambda _: None)
        failed = RunnablePassthrough.assign(parsed=lambda _: None)
        return RunnableMap(raw=bound) | parsed.with_fallbacks([failed], exception_key="parsing_error")


class GritReranker(_Connected, BaseDocumentCompressor):
    """Reorders documents by how well they fit a query.

    Attributes:
        top_n: how many to keep; None for all.
        method: ``"likelihood"`` of the query after the document, or ``"cosine"``; None for what the model can.
    """

    top_n: int | None = None
    method: str | None = None

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> Sequence[Document]:
        """The documents, the best first, with ``relevance_score`` in their metadata."""
        if not documents:
            return []
        scores = self.backend.rerank(query, [document.page_content for document in documents], method=self.method)
        order = sorted(range(len(documents)), key=lambda i: -scores[i])[: self.top_n]
        return [
            Document(
                page_content=documents[i].page_content,
                metadata={**documents[i].metadata, "relevance_score": scores[i]},
                id=documents[i].id,
            )
            for i in order
        ]


class GritRetriever(_Connected, BaseRetriever):
    """Finds passages in a store that ``grit rag index`` made.

    Attributes:
        store: its folder; with ``base_url`` the server's name of it.
        k: how many passages.
        search_options: other fields of ``SearchOptions``, such as ``method``, ``paths`` and ``metadata``.
    """

    store: str
    k: int = 4
    search_options: dict[str, Any] = {}

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, **options: Any
    ) -> list[Document]:
        chosen = {"top": options.pop("k", self.k), **self.search_options, **options}
        return [
            Document(
                page_content=passage.text,
                metadata={
                    **passage.metadata,
                    "source": passage.source,
                    "place": passage.place,
                    "score": passage.score,
                },
            )
            for passage in self.backend.search(self.store, query, **chosen)
        ]


def _message(message: BaseMessage) -> dict[str, Any]:
    converted: Any = convert_to_openai_messages(message, text_format="string")
    if not isinstance(converted["content"], str):
        raise ArgumentError("Only text is supported in messages, not images or sound.")
    return {"role": converted["role"], "content": converted["content"]}


def _usage(piece: Piece) -> UsageMetadata | None:
    if piece.prompt_tokens is None:
        return None
    written = piece.completion_tokens or 0
    return UsageMetadata(
        input_tokens=piece.prompt_tokens, output_tokens=written, total_tokens=piece.prompt_tokens + written
    )
