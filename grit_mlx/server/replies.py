"""Errors as OpenAI's and Anthropic's clients know them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from grit_mlx.errors import (
    ArgumentError,
    BusyError,
    GritError,
    MemoryLimitError,
    ModeError,
    ModelError,
    ProcessError,
    ServerError,
    StoreError,
)

__all__ = ["Refusal", "RefusedError", "refusal_of"]

_RETRY_SECONDS = "2"


@dataclass(frozen=True)
class Refusal:
    """Why a request gets no answer.

    Attributes:
        status: of HTTP.
        message: what is wrong, and what to do.
        type: OpenAI's.
        param: the field at fault.
        code: OpenAI's.
    """

    status: int
    message: str
    type: str = "invalid_request_error"
    param: str | None = None
    code: str | None = None

    @property
    def openai(self) -> dict[str, Any]:
        """The body in OpenAI's shape."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    @property
    def anthropic(self) -> dict[str, Any]:
        """The body in Anthropic's."""
        kinds = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "invalid_request_error" if self.status < 500 else "api_error")
        return {"type": "error", "error": {"type": kind, "message": self.message}}

    @property
    def headers(self) -> dict[str, str]:
        """What tells clients whether to try again."""
        if self.status == 429:
            return {"retry-after": _RETRY_SECONDS}
        if self.status == 503:
            return {"retry-after": _RETRY_SECONDS} if self.code == "loading" else {}
        return {"x-should-retry": "false"}


class RefusedError(GritError):
    """A request that is refused in a way of its own."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


def refusal_of(error: Exception) -> Refusal:
    """How an error is told to a client; what nobody expected without its details."""
    if isinstance(error, RefusedError):
        return error.refusal
    message = str(error)
    if isinstance(error, BusyError):
        return Refusal(429, message, "rate_limit_error", code="too_many_requests")
    if isinstance(error, MemoryLimitError):
        return Refusal(503, message, "server_error", code="out_of_memory")
    if isinstance(error, ArgumentError | ModeError):
        return Refusal(400, message, param=error.option)
    if isinstance(error, StoreError | ModelError | ServerError | ProcessError):
        return Refusal(503, message, "server_error")
    if isinstance(error, GritError):
        return Refusal(400, message, param=error.option)
    return Refusal(500, "The server failed; its log says more.", "server_error")
