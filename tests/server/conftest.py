"""A server in this process, with the tests' tiny checkpoint and a store, for clients that connect to it."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from grit_mlx import GritLM
from grit_mlx.model.options import ModelChoice
from grit_mlx.rag.store import Store
from grit_mlx.server.app import application
from grit_mlx.server.hosting import Host
from grit_mlx.server.options import ServeOptions

NOTES = {
    "boiler.md": "# Boiler\n\nThe boiler is serviced each October by Frank.\n\nIts pressure should be 1.5 bar.\n",
    "garden.md": "# Garden\n\nTomatoes are sown in March.\n\nThe apple tree is pruned in February.\n",
}


class Server:
    """A server that runs in a thread of its own.

    Attributes:
        host: models and stores, for looking inside.
        model: the one that is served as "tiny".
        url: where it listens.
    """

    def __init__(self, models: dict[str, Path], stores: dict[str, str], keys: list[str], **options: Any) -> None:
        chosen = {name: ModelChoice(model=folder) for name, folder in models.items()}
        self.host = Host(ServeOptions(**options), chosen, stores)
        self.loaded = threading.Event()
        self.error: Exception | None = None
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        app = application(self.host, keys=keys, loaded=self._on_loaded)
        self._server = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=5))
        self._thread = threading.Thread(target=lambda: asyncio.run(self._server.serve([self.socket])), daemon=True)
        self._thread.start()
        assert self.loaded.wait(60)
        if self.error is not None:
            raise self.error

    def _on_loaded(self, error: Exception | None) -> None:
        self.error = error
        self.loaded.set()

    @property
    def model(self) -> GritLM:
        return next(iter(self.host.models.values())).lane().model

    def request(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """One request on a connection of its own: status, headers, body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        try:
            connection.request(method, path, data, headers or {})
            response = connection.getresponse()
            return response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()
        finally:
            connection.close()

    def post(self, path: str, body: Any) -> Any:
        """The JSON of a response that must be one."""
        status, _, data = self.request("POST", path, body)
        assert status == 200, data
        return json.loads(data)

    def get(self, path: str) -> Any:
        """As ``post``."""
        status, _, data = self.request("GET", path)
        assert status == 200, data
        return json.loads(data)

    def settle(self) -> None:
        """Wait until nothing has a place any more; fails if something keeps one."""
        deadline = time.monotonic() + 20
        while self.host.requests or self.host.engine.active:
            assert time.monotonic() < deadline, (self.host.requests, self.host.engine.active)
            time.sleep(0.01)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(20)
        assert not self._thread.is_alive()


@pytest.fixture(scope="session")
def notes(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A folder of notes and, as ``store`` in it, what was indexed of them."""
    folder = tmp_path_factory.mktemp("served")
    for name, text in NOTES.items():
        (folder / name).write_text(text, encoding="utf-8")
    store = Store(folder / "store", GritLM(tiny_model), passage_tokens=64)
    store.index([folder / name for name in NOTES])
    return folder


@pytest.fixture(scope="session")
def start(tiny_model: Path) -> Iterator[Callable[..., Server]]:
    """``start(stores={}, keys=[], **options)``: a server; stopped at the end."""
    running: list[Server] = []

    def begin(
        stores: dict[str, str] | None = None,
        keys: list[str] | None = None,
        models: dict[str, Path] | None = None,
        **options: Any,
    ) -> Server:
        running.append(Server(models or {"tiny": tiny_model}, stores or {}, keys or [], **options))
        return running[-1]

    yield begin
    for server in running:
        server.stop()


@pytest.fixture(scope="session")
def server(start: Callable[..., Server], notes: Path) -> Server:
    """A server with the model "tiny" and the store "notes", shared by tests that leave it as it is."""
    return start(stores={"notes": str(notes / "store")})
