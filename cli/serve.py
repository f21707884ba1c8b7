"""``grit serve``: one process with one set of weights for every program on the machine."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from grit_mlx.cli import console, launch, options
from grit_mlx.cli.loader import EMBEDDED, model_name
from grit_mlx.cli.options import Use
from grit_mlx.errors import ArgumentError, ConfigError, GritError, Option, ServerError, unreadable
from grit_mlx.model import hub
from grit_mlx.model.options import ModelChoice, Sharding
from grit_mlx.options import from_mapping
from grit_mlx.server.options import ServeOptions
from grit_mlx.server.running import RunningServer, announced, loaded_as, package_version
from grit_mlx.text import kinds

if TYPE_CHECKING:
    from uvicorn import Server

    from grit_mlx.gritlm import GritLM
    from grit_mlx.server.hosting import Host

__all__ = ["EXAMPLES", "serve"]

EXAMPLES = """
Examples:
  grit serve
  grit serve --model gritlm-7b-4bit --store notes=~/notes.grit
  grit serve --config serve.yaml --port 9000
"""

# Seconds that running requests have once the server is told to stop.
_PATIENCE = 10

# Seconds in which a signal that other processes ended of reaches this one as well.
_SIGNAL_SECONDS = 0.3


@options.command
def serve(
    *,
    given: Annotated[Mapping[str, Any], Use(given=ServeOptions, defaults={"prompt_memory": "1GB"})],
    config: Annotated[
        str | None,
        typer.Option("--config", "-c", metavar="FILE", rich_help_panel="Server", help="YAML file of these options."),
    ] = None,
    loading: Annotated[ModelChoice, Use(only=("dtype", "trust_remote_code"))],
    sharding: Annotated[Sharding, Use(helps={"shard": launch.SHARD})],
    install: Annotated[
        bool,
        typer.Option(
            "--install",
            rich_help_panel="Service",
            help="Write a service with these options for launchd or systemd, and exit. Nothing is started.",
        ),
    ] = False,
    uninstall: Annotated[
        bool, typer.Option("--uninstall", rich_help_panel="Service", help="Remove that service's file, and exit.")
    ] = False,
) -> None:
    """Serve models and stores to other programs, over HTTP.

    Programs made for OpenAI's API take the address that is printed, with /v1 behind it. The server is ready when the
    models are loaded. Ctrl-C finishes what is being answered; a second one stops at once.
    """
    chosen = from_mapping(ServeOptions, {**_configured(config), **given})
    shard = launch.split(sharding)
    if launch.led():
        _check_split(chosen, service=install or uninstall)
    if install or uninstall:
        _service(given, config, loading, install=install)
        return
    keys = _keys(chosen.api_key_file)
    if not keys and chosen.host not in ("127.0.0.1", "::1", "localhost"):
        console.warn(f"{chosen.host} can be reached from other machines, and no key is needed: see --api-key-file")
    models = _models(chosen, loading)
    stores = _stores(chosen)
    listening = _listen(chosen.host, chosen.port)
    with console.status("Loading"):
        # Here, because it brings mlx and transformers.
        from grit_mlx.server.hosting import Host

        host = Host(chosen, models, stores, load=_together(chosen, loading, shard) if shard else None)
    _run(host, keys, listening)


def _check_split(chosen: ServeOptions, *, service: bool) -> None:
    """Refuse what a model that is split among processes cannot do.

    Raises:
        ArgumentError: names the option.
    """
    if service:
        raise ArgumentError("A service runs one process: mlx.launch is not part of it.")
    if len(chosen.models) > 1:
        raise ArgumentError("Several processes serve one model, split among them: name one.")
    if chosen.idle:
        raise ArgumentError(Option("idle"), " does not work in several processes: all keep their parts of the model.")


def _together(chosen: ServeOptions, loading: ModelChoice, shard: str) -> Callable[[ModelChoice], GritLM]:
    """How a model is loaded in all processes, each of which finds it by its name."""
    named = hub.settled(replace(loading, model=next(iter(chosen.models), None)))

    def load(_: ModelChoice) -> GritLM:
        from grit_mlx.model import threads

        return threads.run(partial(launch.load, named, mode="unified", split=shard))

    return load


def _service(given: Mapping[str, Any], config: str | None, loading: ModelChoice, *, install: bool) -> None:
    """Write or remove the service, and say how to start or stop it.

    Raises:
        ServerError: the command is not installed.
    """
    from grit_mlx.server import service

    beside = Path(sys.executable).with_name("grit")
    command = str(beside) if beside.exists() else shutil.which("grit")
    if command is None:
        raise ServerError("There is no command grit beside this Python. Install the package first.")
    more = ["--model-dtype", loading.dtype] if loading.dtype != "auto" else []
    more += ["--trust-remote-code"] if loading.trust_remote_code else []
    made = service.service([command, "serve", *service.arguments(given, config=config), *more])
    if install:
        service.install(made)
        console.write(f"{made.path} was written. Start it now and at each login with:\n  {made.start}")
    elif service.uninstall(made):
        console.write(f"{made.path} was removed. If it is running, stop it with:\n  {made.stop}")
    else:
        console.note(f"there is no {made.path}")


def _run(host: Host, keys: list[str], listening: socket.socket) -> None:
    """Serve until a signal.

    Raises:
        GritError: something could not be loaded.
    """
    import uvicorn

    from grit_mlx.server.app import application

    failed: list[GritError] = []
    server: Server | None = None

    def fail(error: GritError) -> None:
        failed.append(error)
        if server is not None:
            server.should_exit = True

    def lost(error: GritError) -> None:
        time.sleep(_SIGNAL_SECONDS)  # who was interrupted with the others has nothing to say
        if server is None or not server.should_exit:
            launch.end_soon(error)
            fail(error)

    def loaded(error: GritError | None) -> None:
        if error is None:
            console.note(f"serving {', '.join(host.names())} on {_address(listening)}")
            running.enter_context(announced(_announcement(host, listening)))
            return
        fail(error)

    # Before the application adds a handler that sends commands what they cause.
    for handler in logging.getLogger("grit_mlx").handlers:
        handler.addFilter(_Seldom())
    host.engine.on_loss = lost
    app = application(host, keys=keys, loaded=loaded)
    settings = uvicorn.Config(
        app,
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_PATIENCE,
        timeout_keep_alive=75,  # clients keep connections for a minute
    )
    server = _server(settings, fail)
    if launch.led():
        launch.end_with_launcher()
    with ExitStack() as running:
        server.run(sockets=[listening])
    if failed:
        raise failed[0]
    if launch.led():
        launch.abandon(0)  # the others were told to stop as well


class _Seldom(logging.Filter):
    """Lets a message through once a minute, whatever it is about: a client may cause it with each request."""

    def __init__(self) -> None:
        super().__init__()
        self._shown: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether it is shown."""
        now, before = time.monotonic(), self._shown.get(str(record.msg))
        if record.levelno >= logging.ERROR or before is None or now - before > 60:
            self._shown[str(record.msg)] = now
            return True
        return console.verbose()


def _announcement(host: Host, listening: socket.socket) -> RunningServer:
    """How other programs of this user find the server."""
    models = {} if host.is_split else host.models  # commands cannot compute in it
    address = _address(listening).replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")
    key_file = host.options.api_key_file
    return RunningServer(
        process=os.getpid(),
        address=address,
        version=package_version(),
        models={name: str(model.choice.model) for name, model in models.items()},
        stores={
            name: store.uri if "://" in store.uri else str(Path(store.uri).expanduser().resolve())
            for name, store in host.stores.items()
        },
        loaded={
            str(model.choice.model): loaded_as(str(model.choice.model), model.choice.dtype) for model in models.values()
        },
        key_file=None if key_file is None else str(key_file.expanduser().resolve()),
    )


def _server(settings: Any, fail: Callable[[GritError], None]) -> Server:
    from uvicorn import Server

    class Stoppable(Server):
        """Stops at the first signal once nothing is being answered, at the second at once; uvicorn dies of both."""

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            if self.should_exit and sig == signal.SIGINT:
                os._exit(128 + sig)
            if launch.led() and not self.should_exit:
                error = launch.STOPPED if sig == signal.SIGTERM else None
                launch.end_soon(error)
                if error is not None:
                    fail(error)
            self.should_exit = True

    return Stoppable(settings)


def _configured(path: str | None) -> dict[str, Any]:
    """The options of a settings file; stores may be a table there."""
    if path is None:
        return {}
    from grit_mlx.training.settings import yaml_values

    values = yaml_values(Path(path), example="port: 9000")
    if isinstance(values.get("stores"), dict):
        values["stores"] = [f"{name}={folder}" for name, folder in values["stores"].items()]
    try:
        from_mapping(ServeOptions, values)
    except ArgumentError as error:
        raise ConfigError(f"{path}: ", *error.parts) from error
    return values


def _models(chosen: ServeOptions, loading: ModelChoice) -> dict[str, ModelChoice]:
    """The models to load by the names that clients use."""
    models: dict[str, ModelChoice] = {}
    for given in chosen.models or (None,):
        choice = replace(loading, model=given)
        folder = hub.resolve(choice)
        if given is None and folder == hub.embedded_model():
            console.note(EMBEDDED)
        name = model_name(given) or folder.name
        if name in models:
            raise ArgumentError(f"Two models are called {name}: rename the folder of one of them.")
        models[name] = replace(choice, model=folder)
    return models


def _stores(chosen: ServeOptions) -> dict[str, str]:
    """The stores by the names that clients use."""
    stores: dict[str, str] = {}
    for name, folder in map(_store, chosen.stores):
        if name in stores:
            raise ArgumentError(
                f"Two stores are called {name}, {stores[name]} and {folder}. Name one of them: ",
                *(Option("stores", f"NAME={folder}"), "."),
            )
        stores[name] = folder
    return stores


def _store(given: str) -> tuple[str, str]:
    """A store's name and folder, from NAME=FOLDER or FOLDER."""
    name, equals, folder = given.partition("=")
    if not equals:
        name, folder = kinds.stem(given) or "store", given
    if not name or "/" in name or not folder:
        raise ArgumentError(f"{given!r} is not NAME=FOLDER, such as notes=~/notes.grit.")
    return name, folder


def _keys(path: Path | None) -> list[str]:
    """The keys in a file, one a line."""
    if path is None:
        return []
    try:
        lines = path.expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(unreadable(path, error)) from error
    keys = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not keys:
        raise ConfigError(f"{path} holds no key. Write one a line.")
    return keys


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens, before anything is loaded.

    Raises:
        ServerError: the address cannot be had.
    """
    try:
        [family, kind, protocol, _, address] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(2048)
    except socket.gaierror as error:
        raise ServerError(f"There is no address {host}. Use 127.0.0.1, or one of this machine's.") from error
    except OSError as error:
        reason = f"Cannot listen on port {port} of {host}: {error.strerror or error}."
        raise ServerError(f"{reason} Stop what uses it, or choose another one with --port.") from error
    listening.set_inheritable(True)
    return listening


def _address(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
