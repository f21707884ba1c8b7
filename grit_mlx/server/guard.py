"""Who may send requests: the names that the server answers to, the pages that may use it, and keys (pure ASGI).

A page on the internet can make a browser send requests to this machine. Two checks stop it: ``Host`` must be a name of
this server, which a name that was rebound to 127.0.0.1 is not (DNS rebinding); and ``Origin``, which a browser sends
with a page's requests, must be one that is allowed.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import re
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping, Sequence
from contextlib import suppress
from typing import Any, Final
from urllib.parse import urlsplit

from grit_mlx.server.replies import Refusal

__all__ = ["Guard"]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

# Pages that may use every server: this machine's, and two desktop programs that are pages.
_ORIGINS: Final = (
    "http://localhost:*",
    "http://127.0.0.1:*",
    "http://[::1]:*",
    "https://localhost:*",
    "app://obsidian.md",
    "vscode-webview://*",
)

# What needs no key: whether the server is up, and the page, which asks for the key itself.
_OPEN: Final = ("/", "/health", "/favicon.ico")
_OPEN_FOLDER: Final = "/page/"

_MOST_BYTES: Final = 64_000_000
_METHODS: Final = "GET, POST, OPTIONS"
_HEADERS: Final = "authorization, content-type, x-api-key"


class Guard:
    """Checks each request before the application sees it.

    Args:
        app: the application.
        host: the address that the server listens on.
        keys: one of which each request needs; empty for none.
        origins: pages that may use the server besides those that always may; ``*`` stands for anything.
    """

    def __init__(self, app: App, *, host: str, keys: Sequence[str] = (), origins: Sequence[str] = ()) -> None:
        self._app = app
        self._keys = [key.encode() for key in keys]
        self._origins = [_pattern(one) for one in (*_ORIGINS, *origins)]
        self._hosts = {"localhost", host.lower(), *(urlsplit(one).hostname or "" for one in origins)} - {""}
        if not _is_loopback(host):
            name = socket.gethostname().lower()
            self._hosts |= {name, f"{name.partition('.')[0]}.local"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        origin = headers.get("origin", "")
        refusal = self._refusal(scope, headers, origin)
        shared = _shared(origin) if self._allows(origin, headers) else []
        if refusal is None and scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            await _reply(send, 204, [*shared, *_preflight(headers)])
            return
        if refusal is None:
            refusal = self._key_refusal(scope, headers)
        if refusal is not None:
            await _refuse(send, refusal, shared)
            return
        await self._app(scope, _bounded(receive, headers), _with(send, shared))

    def _refusal(self, scope: Scope, headers: Mapping[str, str], origin: str) -> Refusal | None:
        host = headers.get("host", "")
        if not self._is_ours(host):
            return Refusal(403, f"This server does not answer to the name {host!r:.100}.", code="host_not_allowed")
        if origin and not self._allows(origin, headers):
            message = (
                f"Pages of {origin!r:.100} may not use this server. To allow them, start it with --origin {origin:.100}"
            )
            return Refusal(403, message, code="origin_not_allowed")
        with suppress(ValueError):
            if int(headers.get("content-length", "0")) > _MOST_BYTES:
                return Refusal(413, f"The body must be at most {_MOST_BYTES:,} bytes.", code="body_too_large")
        return None

    def _is_ours(self, host: str) -> bool:
        name = (urlsplit(f"//{host}").hostname or "") if _is_plain(host) else ""
        if name in self._hosts:
            return True
        with suppress(ValueError):
            ipaddress.ip_address(name)
            return True  # no name that could have been rebound
        return False

    def _allows(self, origin: str, headers: Mapping[str, str]) -> bool:
        if not origin:
            return False
        own = urlsplit(origin).netloc if _is_plain(origin) else ""
        same = bool(own) and own.lower() == headers.get("host", "").lower()
        plain = origin.lower()
        return same or any(one.fullmatch(plain) for one in self._origins)

    def _key_refusal(self, scope: Scope, headers: Mapping[str, str]) -> Refusal | None:
        path = scope["path"]
        if not self._keys or path in _OPEN or path.startswith(_OPEN_FOLDER):
            return None
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = [headers.get("x-api-key", ""), token.strip() if scheme.lower() == "bearer" else ""]
        if any(hmac.compare_digest(one.encode(), key) for one in given if one for key in self._keys):
            return None
        what = "is wrong" if any(given) else "is missing"
        message = f"The key {what}: send 'Authorization: Bearer KEY' with a key of the server's --api-key-file."
        return Refusal(401, message, "authentication_error", code="invalid_api_key")


def _pattern(origin: str) -> re.Pattern[str]:
    """What an allowed origin matches: ``:*`` at its end is any port or none, another ``*`` a part of a name."""
    escaped = re.escape(origin.rstrip("/").lower())
    return re.compile(re.sub(r":\\\*$", r"(?::[0-9]+)?", escaped).replace(r"\*", "[^/:]*"))


def _is_loopback(host: str) -> bool:
    with suppress(ValueError):
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    return host.lower() == "localhost"


def _is_plain(text: str) -> bool:
    """Whether ``urlsplit`` can read it."""
    with suppress(ValueError):
        urlsplit(text if "//" in text else f"//{text}")
        return True
    return False


def _shared(origin: str) -> list[tuple[bytes, bytes]]:
    """Headers that let a page read the response."""
    return [
        (b"access-control-allow-origin", origin.encode("latin-1")),
        (b"access-control-expose-headers", b"retry-after, x-request-id"),
        (b"vary", b"Origin"),
    ]


def _preflight(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    asked = headers.get("access-control-request-headers") or _HEADERS
    allowed = [
        (b"access-control-allow-methods", _METHODS.encode()),
        (b"access-control-allow-headers", asked.encode("latin-1")),
        (b"access-control-max-age", b"600"),
    ]
    if headers.get("access-control-request-private-network") == "true":
        allowed.append((b"access-control-allow-private-network", b"true"))
    return allowed


def _bounded(receive: Receive, headers: Mapping[str, str]) -> Receive:
    """The same messages; a body that is longer than its sender may send ends the connection."""
    read = 0

    async def bounded() -> Message:
        nonlocal read
        message = await receive()
        read += len(message.get("body", b""))
        return {"type": "http.disconnect"} if read > _MOST_BYTES else message

    return bounded if "content-length" not in headers else receive


def _with(send: Send, extra: Iterable[tuple[bytes, bytes]]) -> Send:
    """Adds headers to the response."""

    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), *extra]
        await send(message)

    return sent


async def _reply(send: Send, status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes = b"") -> None:
    length = [] if status == 204 else [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*headers, *length]})
    await send({"type": "http.response.body", "body": body})


async def _refuse(send: Send, refusal: Refusal, shared: Sequence[tuple[bytes, bytes]]) -> None:
    extra = [(name.encode(), value.encode()) for name, value in refusal.headers.items()]
    body = json.dumps(refusal.openai, ensure_ascii=False).encode("utf-8", "replace")
    await _reply(send, refusal.status, [(b"content-type", b"application/json"), *extra, *shared], body)
