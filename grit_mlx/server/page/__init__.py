"""The page at ``/``: search, questions, chat and comparing, in plain HTML, CSS and JavaScript that the package carries.

It talks to the server as any other client does, and holds no data: its files are the same for everyone, so that they
are served without a key. What documents and models write reaches it as text nodes only, and its policy allows neither
markup made of text nor any other address.
"""

from __future__ import annotations

from importlib import resources
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

__all__ = ["HEADERS", "PATHS", "routes"]

_TYPES: Final = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}

# The file at each path.
PATHS: Final = {
    "/": "index.html",
    "/favicon.ico": "icon.svg",
    **{f"/page/{name}": name for name in ("api.js", "dom.js", "icon.svg", "main.js", "panel.js", "style.css")},
}

HEADERS: Final = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "cache-control": "no-cache",  # a new version of the package is seen at once
}


def routes() -> list[Route]:
    """The page's routes, for an application of Starlette; none of them needs a key."""
    return [_route(path, name) for path, name in PATHS.items()]


def _route(path: str, name: str) -> Route:
    content = resources.files(__name__).joinpath(name).read_bytes()
    kind = _TYPES[name.rpartition(".")[2]]

    async def serve(_: Request) -> Response:
        return Response(content, media_type=kind, headers=HEADERS)

    return Route(path, serve, methods=["GET"], name=f"page:{name}")
