"""A Hugging Face hub on 127.0.0.1, small enough to read: just what ``snapshot_download`` asks for.

Serves model folders from disk, and misbehaves on request: gated, missing, a connection that drops half-way.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
# What the client asks for when it wants the header of a safetensors file only.
FIRST_BYTES = "bytes=0-100000"
REVISIONS = {"main": COMMIT, "v1": COMMIT, COMMIT: COMMIT}


class FakeHub:
    """Repositories by id, what was asked for, and what should go wrong.

    Attributes:
        repositories: hub id -> folder.
        gated: ids that answer as gated ones do.
        drop_after: file name -> bytes after which the first connection for it is cut.
        hold: file names whose contents, but not their first bytes, wait until ``/release`` is asked for.
        missing: file name -> where its first bytes are read from; the whole file cannot be had.
        requests: ``(method, path, range)`` of every request.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Path] = {}
        self.gated: set[str] = set()
        self.drop_after: dict[str, int] = {}
        self.hold: set[str] = set()
        self.missing: dict[str, Path] = {}
        self.released = threading.Event()
        self.requests: list[tuple[str, str, str | None]] = []
        self.url = ""

    def downloads(self, name: str) -> list[str | None]:
        """The byte ranges with which a file was fetched."""
        return [span for method, path, span in self.requests if method == "GET" and path.endswith("/" + name)]


def serve(hub: FakeHub) -> ThreadingHTTPServer:
    class Handler(_Handler):
        fake = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@contextmanager
def running() -> Iterator[FakeHub]:
    hub = FakeHub()
    server = serve(hub)
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    fake: FakeHub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self, *, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.fake.requests.append((self.command, path, self.headers.get("Range")))
        if path == "/release":
            self.fake.released.set()
            self._send(200, b"", {}, body)
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(tree|revision)/([^/]+))?(?:/.*)?", path):
            self._describe(match[1], match[2], match[3] or "main", body)
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(match[1], match[2], match[3], body)
        else:
            self._error(404, "EntryNotFound", body)

    def _describe(self, name: str, what: str | None, revision: str, body: bool) -> None:
        if not self._allowed(name, revision, body):
            return
        files = sorted(p for p in self.fake.repositories[name].rglob("*") if p.is_file())
        root = self.fake.repositories[name]
        listing: Any
        if what == "tree":
            listing = [_entry(p, root) for p in files]
        else:
            siblings = [{"rfilename": p.relative_to(root).as_posix(), "size": p.stat().st_size} for p in files]
            siblings += [{"rfilename": name, "size": p.stat().st_size} for name, p in self.fake.missing.items()]
            listing = {"id": name, "modelId": name, "sha": COMMIT, "siblings": siblings, "private": False, "tags": []}
        self._send(200, json.dumps(listing).encode(), {"Content-Type": "application/json"}, body)

    def _file(self, name: str, revision: str, file: str, body: bool) -> None:
        if not self._allowed(name, revision, body):
            return
        path = self.fake.missing.get(file, self.fake.repositories[name] / file)
        whole = body and self.headers.get("Range") != FIRST_BYTES
        if whole and file in self.fake.missing:
            self._error(500, "Broken", body)
            return
        if whole and file in self.fake.hold:
            self.fake.released.wait(timeout=10)
            assert self.fake.released.is_set(), f"nobody released {file}"
        if not path.is_file():
            self._error(404, "EntryNotFound", body)
            return
        data = path.read_bytes()
        headers = {"ETag": f'"{_oid(data)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        start = 0
        if span := self.headers.get("Range"):
            first, _, last = span.removeprefix("bytes=").partition("-")
            start, end = int(first), int(last) if last else len(data) - 1
            headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
            data = data[start : end + 1]
        cut = self.fake.drop_after.pop(file, None) if whole else None
        self._send(206 if span else 200, data, headers, body, cut=cut)

    def _allowed(self, name: str, revision: str, body: bool) -> bool:
        if name in self.fake.gated:
            self._error(403, "GatedRepo", body)
        elif name not in self.fake.repositories:
            self._error(404, "RepoNotFound", body)
        elif revision not in REVISIONS:
            self._error(404, "RevisionNotFound", body)
        else:
            return True
        return False

    def _error(self, status: int, code: str, body: bool) -> None:
        self._send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code}, body)

    def _send(self, status: int, data: bytes, headers: dict[str, str], body: bool, cut: int | None = None) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data[:cut])
        if cut is not None:
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()


def _oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _entry(path: Path, root: Path) -> dict[str, Any]:
    data = path.read_bytes()
    return {"type": "file", "path": path.relative_to(root).as_posix(), "size": len(data), "oid": _oid(data)}
