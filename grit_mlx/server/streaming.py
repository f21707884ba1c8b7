"""Responses that notice when nobody reads them any more."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, Final, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

__all__ = ["DONE", "EventStream", "GoneError", "event", "wanted"]

T = TypeVar("T")

# Seconds without news after which a comment shows that the server is at work, and seconds that a client may take to
# read what was sent to it.
_SILENCE: Final = 10.0
_SLOWEST: Final = 120.0

DONE: Final = b"data: [DONE]\n\n"


class GoneError(Exception):
    """The client has left."""


def event(value: Mapping[str, Any], name: str = "") -> bytes:
    """A server-sent event."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(value, ensure_ascii=False)}\n\n".encode("utf-8", "replace")


async def wanted(request: Request, work: Awaitable[T]) -> T:
    """The result of some work, which is cancelled once the client leaves.

    Args:
        request: whose body was read.
        work: a future or a coroutine.

    Raises:
        GoneError: it left.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.create_task(_left(request.receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise GoneError
        return task.result()
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task


class EventStream(Response):
    """Server-sent events.

    Args:
        events: each as bytes; closed as soon as the client leaves.
        on_close: called once at the end, whatever it is.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None], on_close: Callable[[], Any]) -> None:
        super().__init__()
        self._events = events
        self._on_close = on_close
        # Since when nothing was sent, or a piece has not been taken.
        self._since, self._is_stuck = time.monotonic(), False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them. A single task does so, whatever their number; this one looks after it."""
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
        headers.append((b"x-accel-buffering", b"no"))
        gone = asyncio.create_task(_left(receive))
        sending: asyncio.Task[None] | None = None
        try:
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            sending = asyncio.create_task(self._send(send))
            while not (sending.done() or gone.done()):
                await asyncio.wait({sending, gone}, timeout=_SILENCE, return_when=asyncio.FIRST_COMPLETED)
                silent = time.monotonic() - self._since
                if self._is_stuck and silent > _SLOWEST:
                    return
                if not (self._is_stuck or sending.done() or gone.done()) and silent >= _SILENCE:
                    await self._pass_on(send, b": keep-alive\n\n")
            if sending.done():
                sending.result()
        except OSError:
            return
        finally:
            for task in (gone, sending):
                if task is not None and not task.done():
                    task.cancel()
                    with suppress(asyncio.CancelledError, Exception):
                        await task
            await self._events.aclose()
            self._on_close()

    async def _send(self, send: Send) -> None:
        async for body in self._events:
            await self._pass_on(send, body)
        await self._pass_on(send, b"", more=False)

    async def _pass_on(self, send: Send, body: bytes, *, more: bool = True) -> None:
        self._since, self._is_stuck = time.monotonic(), True
        await send({"type": "http.response.body", "body": body, "more_body": more})
        self._since, self._is_stuck = time.monotonic(), False


async def _left(receive: Receive) -> None:
    """Returns once the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass
