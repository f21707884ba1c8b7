"""Streams of events: what a client that reads slowly, not at all or no longer does to one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import pytest

from grit_mlx.server import streaming
from grit_mlx.server.streaming import EventStream


class Client:
    """The other side of a stream.

    Args:
        takes: called with each piece; awaits what the client takes its time for.
        leaves: after so many seconds; None if it stays.
    """

    def __init__(self, takes: Callable[[bytes], Awaitable[None]], leaves: float | None = None) -> None:
        self.got: list[bytes] = []
        self.ended = False
        self._takes = takes
        self._leaves = leaves

    async def receive(self) -> Any:
        await asyncio.sleep(1000 if self._leaves is None else self._leaves)
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.body":
            await self._takes(message["body"])
            self.got.append(message["body"])
            self.ended = not message["more_body"]


async def _at_once(body: bytes) -> None:
    pass


async def _never(body: bytes) -> None:
    await asyncio.sleep(1000)


class Events:
    """Pieces, each after some seconds; ``closed`` once nobody wants more."""

    def __init__(self, count: int, seconds: float = 0.0, fails: Exception | None = None) -> None:
        self._count, self._seconds, self._fails = count, seconds, fails
        self.made = 0
        self.closed = False

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        try:
            for number in range(self._count):
                await asyncio.sleep(self._seconds)
                self.made += 1
                yield b"%d" % number
            if self._fails:
                raise self._fails
        finally:
            self.closed = True


def run(events: Events, client: Client) -> int:
    """How often the stream was said to be over."""
    closes: list[int] = []

    async def served() -> None:
        stream = EventStream(events.pieces(), lambda: closes.append(1))
        await asyncio.wait_for(stream({}, client.receive, client.send), 20)
        assert len(asyncio.all_tasks()) == 1, "no task is left behind"

    asyncio.run(served())
    assert events.closed
    return len(closes)


def test_all_pieces_in_their_order_and_an_end() -> None:
    events, client = Events(500), Client(_at_once)
    assert run(events, client) == 1
    assert client.got == [*(b"%d" % number for number in range(500)), b""] and client.ended


def test_silence_is_broken_but_never_a_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "_SILENCE", 0.05)
    events, client = Events(3, 0.2), Client(_at_once)
    assert run(events, client) == 1
    assert b": keep-alive\n\n" in client.got
    assert [one for one in client.got if not one.startswith(b":")] == [b"0", b"1", b"2", b""]


def test_a_client_that_takes_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "_SILENCE", 0.05)
    monkeypatch.setattr(streaming, "_SLOWEST", 0.3)
    events, client = Events(10**6), Client(_never)
    assert run(events, client) == 1
    assert events.made == 1 and not client.got, "nothing is made for who does not take it"


def test_a_slow_client_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    async def slowly(body: bytes) -> None:
        await asyncio.sleep(0.1)

    monkeypatch.setattr(streaming, "_SILENCE", 0.02)
    monkeypatch.setattr(streaming, "_SLOWEST", 0.5)
    events, client = Events(10), Client(slowly)
    assert run(events, client) == 1
    assert client.ended and b": keep-alive\n\n" not in client.got, "it has enough to read"


def test_a_client_that_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    for takes in (_at_once, _never):
        events, client = Events(10**6, 0.01), Client(takes, leaves=0.2)
        assert run(events, client) == 1
        assert events.made < 100 and not client.ended


def test_a_connection_that_breaks_and_a_stream_that_fails() -> None:
    async def breaks(body: bytes) -> None:
        raise BrokenPipeError

    assert run(Events(10), Client(breaks)) == 1
    with pytest.raises(ZeroDivisionError):
        run(events := Events(2, fails=ZeroDivisionError()), Client(_at_once))
    assert events.closed
