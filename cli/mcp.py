"""``grit mcp``: the tools of a running server for programs that speak MCP over stdin and stdout."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from filelock import FileLock

from grit_mlx.cli import console, options
from grit_mlx.errors import ArgumentError, ConfigError, ServerError, unreadable
from grit_mlx.model import hub
from grit_mlx.server.client import ServerClient, UnreachableError
from grit_mlx.server.running import RunningServer, package_version, running_servers

__all__ = ["EXAMPLES", "Connection", "mcp", "serve_while_wanted"]

EXAMPLES = """
Examples:
  grit mcp --store ~/notes.grit
  grit mcp --store ~/notes.grit --allow-index ~/notes
  grit mcp --address http://127.0.0.1:8080
"""

# Minutes after which a server that was started here unloads its model.
_IDLE_MINUTES = 30
# Seconds that a server may take to say that it is there.
_PATIENCE = 10.0
# Seconds for a model to load: large ones are read from disk.
_LOADING_SECONDS = 600.0


@options.command
def mcp(
    *,
    stores: Annotated[
        list[str] | None,
        typer.Option(
            "--store",
            metavar="FOLDER",
            rich_help_panel="Store",
            help="Folder of a store; can be given several times.  [env var: GRIT_STORE; default: .grit]",
        ),
    ] = None,
    allow_index: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-index",
            metavar="FOLDER",
            rich_help_panel="Store",
            help="Also offer a tool that indexes this folder, or what is in it, into the first store.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", metavar="NAME", rich_help_panel="Server", help="The model of the server that is started."
        ),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option("--address", metavar="URL", rich_help_panel="Server", help="Use this server, and start none."),
    ] = None,
    api_key_file: Annotated[
        str | None,
        typer.Option("--api-key-file", metavar="FILE", rich_help_panel="Server", help="File with that server's key."),
    ] = None,
) -> None:
    """Give programs that speak MCP tools to search, read and ask what is indexed.

    It loads no model: it uses the running 'grit serve' that has these stores, or starts one, which ends with it.
    docs/mcp.md shows what to write into the settings of Claude, Cursor, LM Studio and others.
    """
    folders = [_folder(one) for one in stores or ([] if address else [os.environ.get("GRIT_STORE") or ".grit"])]
    allowed = [_existing(one) for one in allow_index or ()]
    if allowed and not folders:
        raise ArgumentError("--allow-index needs --store: the folder of the store to index into.")
    if not allowed and (missing := next((one for one in folders if not Path(one).exists()), None)):
        raise ArgumentError(f"There is no store at {missing}. Create one with 'grit rag index PATH --store {missing}'.")
    connection = Connection(folders, model, address, _key(api_key_file))
    # Here, because it brings mcp and pydantic.
    from grit_mlx.server.tools import mcp_server

    if console.stdin_is_terminal():
        console.note("this waits for a program that speaks MCP: see docs/mcp.md; Ctrl-D ends it")
    index = Indexing(folders[0], allowed, model).index if allowed else None
    server = mcp_server(_Requests(connection), folders=folders or None, index=index)
    connection.prepare()
    try:
        server.run("stdio")
    finally:
        connection.close()


class Connection:
    """The server that is used; it is looked for, or started, when the first request is sent.

    Args:
        folders: of the stores that it must have.
        model: that it must have; None for any.
        address: of the only server to use; None to look for one.
        key: for that server.
    """

    def __init__(self, folders: Sequence[str], model: str | None, address: str | None, key: str) -> None:
        self._folders = folders
        self._model = model
        self._client = None if address is None else ServerClient(address, key)
        self._fixed = address is not None
        self._lock = threading.Lock()
        self._started: subprocess.Popen[bytes] | None = None

    def prepare(self) -> None:
        """Begin to look for the server, or to start it, without waiting; errors are told to the first request."""

        def begin() -> None:
            try:
                self.client()
            except Exception as error:
                console.note(str(error))

        if all(Path(folder).exists() for folder in self._folders):
            threading.Thread(target=begin, daemon=True).start()

    def client(self) -> ServerClient:
        """What sends requests to the server.

        Raises:
            ServerError: it cannot be started.
        """
        with self._lock:
            if self._client is None:
                hub.home().mkdir(parents=True, exist_ok=True)
                # Several programs may start theirs at the same time: one server is enough for all.
                with FileLock(hub.home() / "servers.lock"):
                    server = self._found() or self._start()
                self._client = ServerClient(server.address, server.key)
            return self._client

    def request(self, send: Callable[[ServerClient], Any]) -> Any:
        """Send a request; once more to another server if the one that was used has ended."""
        client = self.client()
        try:
            return send(client)
        except UnreachableError:
            if self._fixed:
                raise
            with self._lock:
                if self._client is client:
                    self._client = None
            return send(self.client())

    def close(self) -> None:
        """End a server that was started here."""
        if self._started is not None and self._started.stdin is not None:
            self._started.stdin.close()  # see ``serve_while_wanted``

    def _found(self) -> RunningServer | None:
        for server in running_servers():
            held = {str(Path(folder).resolve()) for folder in server.stores.values()}
            has_model = self._model is None or self._model in (*server.models, *server.models.values())
            if server.version == package_version() and held.issuperset(self._folders) and has_model:
                with suppress(ServerError):  # another program may have its process id by now
                    ServerClient(server.address, server.key, timeout=_PATIENCE).get("/health")
                    return server
        return None

    def _start(self) -> RunningServer:
        names = _names(self._folders)
        flags = ["--port", "0", "--idle", str(_IDLE_MINUTES)]
        flags += [flag for name, folder in names.items() for flag in ("--store", f"{name}={folder}")]
        flags += ["--model", self._model] if self._model is not None else []
        log = hub.home() / "mcp-server.log"
        program = "from grit_mlx.cli.mcp import serve_while_wanted; serve_while_wanted()"
        with log.open("wb") as output:
            self._started = subprocess.Popen(
                [sys.executable, "-c", program, *flags],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        deadline = time.monotonic() + _LOADING_SECONDS
        while time.monotonic() < deadline:
            for server in running_servers():
                if server.process == self._started.pid:
                    return server
            if self._started.poll() is not None:
                said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["it says nothing"]
                raise ServerError(f"'grit serve' could not be started: {said[-1].removeprefix('error: ')}")
            time.sleep(0.05)
        self.close()
        raise ServerError(f"'grit serve' did not load its model in {_LOADING_SECONDS:.0f} seconds; {log} says more.")


class _Requests:
    """Requests by a thread each, for the loop that speaks MCP; none of them holds up the end of the program."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def get(self, path: str, query: Mapping[str, Any] | None = None) -> Any:
        return await self._sent(lambda client: client.get(path, query))

    async def post(self, path: str, body: Mapping[str, Any]) -> Any:
        return await self._sent(lambda client: client.post(path, body))

    async def _sent(self, send: Callable[[ServerClient], Any]) -> Any:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()

        def settle(result: Any, error: Exception | None) -> None:
            if future.done():
                return
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

        def work() -> None:
            result, failure = None, None
            try:
                result = self._connection.request(send)
            except Exception as error:
                failure = error
            if not loop.is_closed():
                loop.call_soon_threadsafe(settle, result, failure)

        threading.Thread(target=work, daemon=True).start()
        return await future


@dataclass(frozen=True)
class Indexing:
    """Indexing of what lies in allowed folders, by a process of its own.

    Attributes:
        store: the folder of the store.
        allowed: real paths.
        model: None for the default.
    """

    store: str
    allowed: Sequence[str]
    model: str | None

    async def index(self, path: str) -> str:
        """Index a file or folder, and say what was done.

        Raises:
            ArgumentError: it is not in an allowed folder.
        """
        real = self.checked(path)
        program = "from grit_mlx.cli.main import main; main()"
        command = [sys.executable, "-c", program, "rag", "index", real, "--store", self.store]
        command += ["--model", self.model] if self.model is not None else []
        process = await asyncio.create_subprocess_exec(
            *command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        try:
            told, problems = await process.communicate()
        finally:
            if process.returncode is None:
                process.terminate()  # what it computed is kept for the next run
        lines = [line for line in problems.decode("utf-8", "replace").splitlines() if line.strip()]
        if process.returncode:
            raise ServerError(next((line for line in reversed(lines)), "Indexing failed.").removeprefix("error: "))
        notes = [line for line in lines if line.startswith("warning: ")]
        return "\n".join([told.decode("utf-8", "replace").strip() or "Done.", *notes])

    def checked(self, path: str) -> str:
        """The real path of what may be indexed.

        Raises:
            ArgumentError: it is elsewhere, wherever links lead, or there is nothing.
        """
        given = Path(path).expanduser()
        try:
            real = given.resolve(strict=True)
        except (OSError, RuntimeError, ValueError):
            real = None
        if real is None or not given.is_absolute() or not any(real.is_relative_to(one) for one in self.allowed):
            folders = ", ".join(self.allowed)
            raise ArgumentError(f"{path} may not be indexed: only what exists in {folders}, by its absolute path.")
        return str(real)


def serve_while_wanted() -> None:
    """``grit serve`` with the arguments of this process, until its standard input is closed.

    So a server ends with the program that started it, even if that is killed.
    """
    from grit_mlx.cli.main import main

    def watch() -> None:
        while os.read(0, 4096):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
    sys.argv = ["grit", "serve", *sys.argv[1:]]
    main()


def _folder(given: str) -> str:
    name, equals, folder = given.partition("=")
    return str(Path(folder if equals and "/" not in name else given).expanduser().resolve())


def _existing(given: str) -> str:
    try:
        return str(Path(given).expanduser().resolve(strict=True))
    except OSError as error:
        raise ConfigError(f"--allow-index: {unreadable(given, error)}") from error


def _names(folders: Sequence[str]) -> dict[str, str]:
    """A name for each store."""
    names: dict[str, str] = {}
    for folder in folders:
        name = stem = Path(folder).name.removesuffix(".grit").strip(".") or "store"
        count = 1
        while name in names:
            count += 1
            name = f"{stem}-{count}"
        names[name.replace("=", "-")] = folder
    return names


def _key(path: str | None) -> str:
    if path is None:
        return ""
    server = RunningServer(0, "", "", {}, {}, str(Path(path).expanduser()))
    if not server.key:
        raise ConfigError(f"{path} holds no key, or cannot be read.")
    return server.key
