"""OpenAI's requests and responses: embeddings, chats, completions, models."""

from __future__ import annotations

import base64
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from grit_mlx.errors import ArgumentError, Option
from grit_mlx.model.options import GenerationOptions
from grit_mlx.options import check, option
from grit_mlx.server.fields import read, text_of, texts_of

__all__ = [
    "ChatRequest",
    "CompletionRequest",
    "EmbeddingRequest",
    "Usage",
    "chat_chunk",
    "chat_reply",
    "chat_request",
    "completion_choice",
    "completion_reply",
    "completion_request",
    "embedding_input",
    "embedding_reply",
    "embedding_request",
    "identifier",
    "messages_of",
    "models_reply",
]

_NOT_DONE: Final = "is not supported. Leave it out."
_TEXT_ONLY: Final = "is not supported: the model reads and writes text only."

# Fields that change nothing about an answer.
_IGNORED: Final = (
    "metadata",
    "parallel_tool_calls",
    "prompt_cache_key",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "store",
    "user",
    "verbosity",
)

_REFUSED: Final = {
    "n": "must be 1: one answer a request. Send several requests.",
}
_REFUSED_IN_CHATS: Final = {
    **_REFUSED,
    "tools": "are not supported: the server calls no functions and returns no calls. Leave them out.",
    "tool_choice": _NOT_DONE,
    "functions": "are not supported. Leave them out.",
    "function_call": _NOT_DONE,
    "audio": _TEXT_ONLY,
    "modalities": "must be ['text']: the model writes text only.",
    "prediction": _NOT_DONE,
    "reasoning_effort": _NOT_DONE,
    "web_search_options": _NOT_DONE,
}
_REFUSED_IN_COMPLETIONS: Final = {
    **_REFUSED,
    "best_of": "must be 1: one answer a prompt.",
    "suffix": "is not supported: the model only continues a prompt.",
}

# Kinds of ``response_format``, and what each may hold besides.
_FORMS: Final[Mapping[str, frozenset[str]]] = {
    "text": frozenset(),
    "json_object": frozenset({"schema"}),
    "json_schema": frozenset({"json_schema", "schema"}),
}
_FORM_NAMES: Final = "text, json_object or json_schema"

# What Cohere's input_type means for a model that knows queries from documents.
_ROLES: Final = {
    "search_query": "query",
    "query": "query",
    "search_document": "document",
    "document": "document",
    "passage": "document",
    "classification": "similarity",
    "clustering": "similarity",
    "similarity": "similarity",
}


@dataclass(frozen=True, kw_only=True)
class EmbeddingRequest:
    """What ``/v1/embeddings`` takes."""

    input: Any = option(None, "Texts, or token ids.")
    model: str | None = option(None, "Which model.")
    encoding_format: str = option("float", "How vectors are written.", choices=("float", "base64"))
    dimensions: int | None = option(None, "Length of a vector.", minimum=1)
    input_type: str | None = option(None, "What the texts are.", choices=tuple(_ROLES))
    instruction: str | None = option(None, "What the texts are embedded with.")
    truncate: bool = option(True, "Whether texts that are too long are cut; else they are refused.")

    def __post_init__(self) -> None:
        check(self)

    @property
    def role(self) -> str | None:
        """A role of ``GritLM.encode``; None if the request names none."""
        return None if self.input_type is None else _ROLES[self.input_type]


@dataclass(frozen=True, kw_only=True)
class _Sampling:
    """What all requests for texts have."""

    model: str | None = option(None, "Which model.")
    max_tokens: int | None = option(None, "Maximum number of tokens to generate.", minimum=0, also={-1: "for no limit"})
    temperature: float = option(0.0, "Sampling temperature.", minimum=0)
    top_p: float = option(1.0, "Nucleus sampling.", minimum=0, maximum=1)
    top_k: int = option(0, "Of the most likely tokens.", minimum=0, also={-1: "for all"})
    min_p: float = option(0.0, "Least probability.", minimum=0, maximum=1)
    repetition_penalty: float | None = option(None, "Divide the logits of recent tokens by this.", above=0)
    presence_penalty: float = option(0.0, "Subtract this from their logits.", minimum=-2, maximum=2)
    frequency_penalty: float = option(0.0, "Subtract this for each time they occur.", minimum=-2, maximum=2)
    logit_bias: dict[str, float] = option({}, "Add to the logits of these ids.", minimum=-100, maximum=100)
    seed: int | None = option(None, "Random seed.", minimum=-(2**63), maximum=2**64 - 1)
    stop: Sequence[str] = option((), "Stop at these.")
    stream: bool = option(False, "Send pieces as they come.")
    stream_options: dict[str, Any] = option({}, "What a stream says besides.")
    response_format: dict[str, Any] = option({}, "What an answer must be.")

    def __post_init__(self) -> None:
        check(self)
        unknown = set(self.stream_options) - {"include_usage", "include_obfuscation"}
        if unknown:
            raise ArgumentError(Option("stream_options"), f" has no field {sorted(unknown)[0]!r}.")

    @property
    def with_usage(self) -> bool:
        """Whether a stream ends with its usage."""
        return bool(self.stream_options.get("include_usage"))

    def options(self, max_tokens: int) -> GenerationOptions:
        """How to sample; ``max_tokens`` where the request does not say."""
        given = {
            field.name: getattr(self, field.name) for field in fields(GenerationOptions) if hasattr(self, field.name)
        }
        given["max_tokens"] = self.max_tokens or max_tokens
        given["top_k"] = max(0, self.top_k)
        given["seed"] = None if self.seed is None else self.seed % 2**64
        given["schema"] = _schema(self.response_format)
        if self.top_p == 0:  # to OpenAI, the likeliest token
            given |= {"top_p": 1.0, "temperature": 0.0}
        return GenerationOptions(**given)


@dataclass(frozen=True, kw_only=True)
class ChatRequest(_Sampling):
    """What ``/v1/chat/completions`` takes."""

    messages: list[Any] = option([], "The chat.")
    max_tokens: int | None = option(None, "Maximum number of tokens to generate.", minimum=1, also={-1: "for no limit"})
    max_completion_tokens: int | None = option(None, "As max_tokens.", minimum=1, also={-1: "for no limit"})
    logprobs: bool = option(False, "Report log-probabilities.")
    top_logprobs: int = option(0, "Of this many tokens.", minimum=0, maximum=20)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.top_logprobs and not self.logprobs:
            raise ArgumentError(Option("top_logprobs"), " needs ", Option("logprobs", True), ".")

    @property
    def limit(self) -> int:
        """Maximum number of tokens; -1 for what the context allows."""
        return self.max_completion_tokens or self.max_tokens or -1

    @property
    def alternatives(self) -> int | None:
        """How many tokens to report at each place; None for no log-probabilities."""
        return self.top_logprobs if self.logprobs else None


@dataclass(frozen=True, kw_only=True)
class CompletionRequest(_Sampling):
    """What ``/v1/completions`` takes."""

    prompt: Any = option(None, "Texts or token ids.")
    echo: bool = option(False, "Begin with the prompt.")
    logprobs: int | None = option(None, "Report the log-probabilities of this many tokens.", minimum=0, maximum=20)

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each prompt as text or token ids."""
        given = self.prompt
        if isinstance(given, list) and given and all(_is_id(one) for one in given):
            return [given]
        if isinstance(given, list) and given and all(isinstance(one, list) for one in given):
            for index, ids in enumerate(given):
                if not ids or not all(map(_is_id, ids)):
                    raise ArgumentError(Option("prompt"), f": item {index} must be token ids.")
            return given
        return list(texts_of(given, "prompt"))


@dataclass(frozen=True)
class Usage:
    """Tokens of a request.

    Attributes:
        prompt: of the prompt, cached ones included.
        completion: that were generated.
        cached: of the prompt, that did not have to be read again.
    """

    prompt: int
    completion: int
    cached: int = 0

    @property
    def openai(self) -> dict[str, Any]:
        """In OpenAI's shape."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        }


def _schema(form: Mapping[str, Any]) -> Any:
    """The JSON schema that a ``response_format`` asks for; None for any text.

    It stands in ``json_schema.schema`` (OpenAI), or directly in ``schema`` (llama.cpp and others).

    Raises:
        ArgumentError: it is of another kind, has none, or has fields that nobody knows.
    """
    given = {name: value for name, value in form.items() if value is not None}
    kind = given.pop("type", "text")
    if not isinstance(kind, str) or kind not in _FORMS:
        raise ArgumentError(Option("response_format"), f" must be of type {_FORM_NAMES}, not {kind!r:.60}.")
    if unknown := given.keys() - _FORMS[kind]:
        raise ArgumentError(Option("response_format"), f" of type {kind} has no field {min(unknown)!r:.60}.")
    described = given.get("json_schema", {})
    schema = given.get("schema", described.get("schema") if isinstance(described, Mapping) else None)
    if schema is None and kind != "json_schema":
        return {"type": "object"} if kind == "json_object" else None
    if not isinstance(schema, Mapping):
        where = "json_schema.schema" if kind == "json_schema" else "schema"
        raise ArgumentError(Option("response_format"), f" of type {kind} needs {where}, an object.")
    return schema


def embedding_request(body: Mapping[str, Any]) -> EmbeddingRequest:
    """Read a request; its texts are looked at by ``embedding_texts``."""
    return read(EmbeddingRequest, body, ignored=("user",))


def embedding_input(request: EmbeddingRequest, *, ids: bool) -> list[Any]:
    """The texts of a request, or its token ids if these are allowed.

    Raises:
        ArgumentError: names the index of what cannot be embedded.
    """
    given = request.input
    is_ids = isinstance(given, list) and bool(given) and (_is_id(given[0]) or isinstance(given[0], list))
    if not is_ids:
        return texts_of(given, "input")
    if not ids:
        raise ArgumentError(
            Option("input"),
            " holds token ids, which are another tokenizer's with most clients. Send text: in LangChain, set "
            "check_embedding_ctx_length=False.",
        )
    lists = [given] if _is_id(given[0]) else given
    for index, one in enumerate(lists):
        if not isinstance(one, list) or not one or not all(map(_is_id, one)):
            raise ArgumentError(Option("input"), f": item {index} must be token ids.")
    return lists


def embedding_reply(vectors: NDArray[np.float32], request: EmbeddingRequest, model: str, tokens: int) -> dict[str, Any]:
    """Vectors ``(N, E)`` in OpenAI's shape."""

    def written(vector: NDArray[np.float32]) -> Any:
        if request.encoding_format == "base64":
            return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")
        return vector.tolist()

    data = [{"object": "embedding", "index": i, "embedding": written(vector)} for i, vector in enumerate(vectors)]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": model, "usage": usage}


def chat_request(body: Mapping[str, Any]) -> ChatRequest:
    """Read a request."""
    if "none" in (body.get("tool_choice"), body.get("function_call")):  # what may not be called need not be known
        body = {name: value for name, value in body.items() if name not in ("tools", "functions")}
    return read(ChatRequest, body, ignored=_IGNORED, refused=_REFUSED_IN_CHATS)


def completion_request(body: Mapping[str, Any]) -> CompletionRequest:
    """Read a request."""
    return read(CompletionRequest, body, ignored=_IGNORED, refused=_REFUSED_IN_COMPLETIONS)


def messages_of(given: Sequence[Any]) -> list[dict[str, str]]:
    """A chat as ``prompts.chat_tokens`` takes it.

    Raises:
        ArgumentError: names the message.
    """
    messages: list[dict[str, str]] = []
    for index, message in enumerate(given):
        where = f"messages[{index}]"
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise ArgumentError(Option("messages"), f": item {index} must be an object with a role and content.")
        role = "system" if message["role"] == "developer" else message["role"]
        if role in ("tool", "function") or message.get("tool_calls") or message.get("function_call"):
            raise ArgumentError(Option("messages"), f": item {index} belongs to a call of a tool, {_NOT_DONE[3:]}")
        if role not in ("system", "user", "assistant"):
            raise ArgumentError(Option("messages"), f": item {index} has the unknown role {role!r:.40}.")
        content = text_of(message.get("content"), where)
        if role == "system" and messages and messages[-1]["role"] == "system":
            messages[-1]["content"] += "\n\n" + content
        else:
            messages.append({"role": role, "content": content})
    if not messages:
        raise ArgumentError(Option("messages"), " is empty.")
    return messages


def identifier(kind: str) -> str:
    """A name for one answer."""
    return f"{kind}-{uuid.uuid4().hex}"


def chat_reply(name: str, model: str, message: Mapping[str, Any], reason: str, usage: Usage) -> dict[str, Any]:
    """A complete answer; ``message`` may hold ``logprobs`` and ``citations`` besides its content."""
    message = dict(message)
    logprobs = message.pop("logprobs", None)
    choice = {
        "index": 0,
        "message": {"role": "assistant", "refusal": None, **message},
        "logprobs": logprobs,
        "finish_reason": reason,
    }
    made = {"id": name, "object": "chat.completion", "created": int(time.time()), "model": model, "choices": [choice]}
    return {**made, "usage": usage.openai, **_cited(message)}


def chat_chunk(
    name: str, model: str, delta: Mapping[str, Any] | None, reason: str | None = None, *, usage: Usage | None = None
) -> dict[str, Any]:
    """A piece of an answer; without ``delta`` only the usage."""
    choices = []
    if delta is not None:
        delta = dict(delta)
        choices = [{"index": 0, "logprobs": delta.pop("logprobs", None), "delta": delta, "finish_reason": reason}]
    made = {"id": name, "object": "chat.completion.chunk", "created": int(time.time()), "model": model}
    return {**made, "choices": choices, **({} if usage is None else {"usage": usage.openai}), **_cited(delta or {})}


def completion_reply(
    name: str, model: str, choices: Sequence[Mapping[str, Any]], usage: Usage | None
) -> dict[str, Any]:
    """Complete texts, or pieces of them."""
    made = {"id": name, "object": "text_completion", "created": int(time.time()), "model": model}
    return {**made, "choices": list(choices), **({} if usage is None else {"usage": usage.openai})}


def completion_choice(index: int, text: str, reason: str | None, logprobs: Any = None) -> dict[str, Any]:
    """A text, or a piece of it."""
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}


def models_reply(names: Mapping[str, int]) -> dict[str, Any]:
    """Names of models, each with when it was loaded, in seconds."""
    data = [{"id": name, "object": "model", "created": made, "owned_by": "grit"} for name, made in names.items()]
    return {"object": "list", "data": data}


def _cited(message: Mapping[str, Any]) -> dict[str, Any]:
    return {"citations": message["citations"]} if "citations" in message else {}


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
