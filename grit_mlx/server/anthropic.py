"""Anthropic's messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from grit_mlx.errors import ArgumentError, Option
from grit_mlx.model.options import GenerationOptions
from grit_mlx.options import check, option
from grit_mlx.server.fields import read, text_of
from grit_mlx.server.openai import identifier, messages_of

if TYPE_CHECKING:
    from grit_mlx.server.work import Work

__all__ = ["MessageRequest", "first_events", "last_events", "message_reply", "message_request", "piece"]

_IGNORED: Final = ("metadata", "service_tier", "cache_control")
_REFUSED: Final = {
    "tools": "are not supported: the server calls no functions and returns no calls. Leave them out.",
    "tool_choice": "is not supported. Leave it out.",
    "mcp_servers": "are not supported. Leave them out.",
    "output_config": "is not supported. Leave it out.",
    "output_format": "is not supported. Leave it out.",
}


@dataclass(frozen=True, kw_only=True)
class MessageRequest:
    """What ``/v1/messages`` takes."""

    messages: list[Any] = option([], "The chat.")
    max_tokens: int | None = option(None, "Maximum number of tokens to generate.", minimum=1)
    model: str | None = option(None, "Which model.")
    system: Any = option(None, "What comes before the chat.")
    stop_sequences: Sequence[str] = option((), "Stop at these.")
    stream: bool = option(False, "Send pieces as they come.")
    temperature: float = option(0.0, "Sampling temperature.", minimum=0)
    top_p: float = option(1.0, "Nucleus sampling.", above=0, maximum=1)
    top_k: int = option(0, "Of the most likely tokens.", minimum=0)
    thinking: dict[str, Any] = option({}, "Whether to think first.")

    def __post_init__(self) -> None:
        check(self)
        if self.max_tokens is None:
            raise ArgumentError(Option("max_tokens"), " is missing.")
        if self.thinking.get("type", "disabled") != "disabled":
            raise ArgumentError(Option("thinking"), " is not supported. Leave it out.")

    @property
    def chat(self) -> list[dict[str, str]]:
        """The messages, the system's first."""
        system = text_of(self.system, "system")
        first = [{"role": "system", "content": system}] if system else []
        return messages_of([*first, *self.messages])

    @property
    def options(self) -> GenerationOptions:
        """How to sample."""
        return GenerationOptions(
            max_tokens=self.max_tokens or 1,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            stop=tuple(self.stop_sequences),
        )


def message_request(body: Mapping[str, Any]) -> MessageRequest:
    """Read a request."""
    return read(MessageRequest, body, ignored=_IGNORED, refused=_REFUSED)


def message_reply(model: str, message: Mapping[str, Any], work: Work) -> dict[str, Any]:
    """A complete answer."""
    content = [{"type": "text", "text": message["content"], "citations": None}]
    return {**_head(model), **_ended(work), "content": content, "usage": _usage(work), **_cited(work)}


def first_events(model: str, work: Work) -> list[dict[str, Any]]:
    """What a stream begins with."""
    head = {**_head(model), "content": [], "stop_reason": None, "stop_sequence": None, "usage": _usage(work)}
    head |= _cited(work)  # here as well, for who stops the answer
    return [
        {"type": "message_start", "message": head},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": "", "citations": None}},
        {"type": "ping"},
    ]


def piece(text: str) -> dict[str, Any]:
    """A piece of the answer."""
    return {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}


def last_events(work: Work) -> list[dict[str, Any]]:
    """What a stream ends with."""
    return [
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {**_ended(work), **_cited(work)}, "usage": _usage(work)},
        {"type": "message_stop"},
    ]


def _head(model: str) -> dict[str, Any]:
    return {"id": identifier("msg"), "type": "message", "role": "assistant", "model": model}


def _ended(work: Work) -> dict[str, Any]:
    reason = "stop_sequence" if work.stopped_by else {"length": "max_tokens"}.get(work.reason, "end_turn")
    return {"stop_reason": reason, "stop_sequence": work.stopped_by}


def _cited(work: Work) -> dict[str, Any]:
    return {} if work.citations is None else {"grit_citations": work.citations}


def _usage(work: Work) -> dict[str, int]:
    usage = work.usage
    return {
        "input_tokens": usage.prompt - usage.cached,
        "cache_read_input_tokens": usage.cached,
        "cache_creation_input_tokens": 0,
        "output_tokens": usage.completion,
    }
