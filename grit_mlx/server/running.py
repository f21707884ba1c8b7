"""Which servers run on this machine, so that commands and ``grit mcp`` find one: a file for each in ``$GRIT_HOME``."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from grit_mlx.errors import OutputError
from grit_mlx.files.atomic import atomic_write
from grit_mlx.model import hub

__all__ = ["RunningServer", "announced", "loaded_as", "package_version", "running_servers"]


@dataclass(frozen=True)
class RunningServer:
    """A server that has loaded its models.

    Attributes:
        process: its process id.
        address: such as ``http://127.0.0.1:8080``.
        version: of the package.
        models: names and folders.
        stores: names and folders.
        key_file: the file with its keys, if it asks for one.
        loaded: for each model's folder ``loaded_as`` at the time when it was loaded.
    """

    process: int
    address: str
    version: str
    models: Mapping[str, str]
    stores: Mapping[str, str]
    key_file: str | None = None
    loaded: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """One of its keys; empty if it asks for none, or if the file cannot be read by this user."""
        with suppress(OSError, UnicodeDecodeError):
            lines = Path(self.key_file).read_text(encoding="utf-8").splitlines() if self.key_file else []
            return next((line.strip() for line in lines if line.strip() and not line.startswith("#")), "")
        return ""


def loaded_as(folder: str | Path, dtype: str) -> str:
    """What a model in memory depends on: how it was loaded, and the names, sizes and times of its files."""
    files = [(path.name, path.stat()) for path in sorted(Path(folder).iterdir()) if path.is_file()]
    seen = [dtype, *((name, state.st_size, state.st_mtime_ns) for name, state in files)]
    return hashlib.sha256(json.dumps(seen).encode()).hexdigest()[:16]


def package_version() -> str:
    """The version of the installed package."""
    with suppress(PackageNotFoundError):
        return version("grit-mlx")
    return "0"


@contextmanager
def announced(server: RunningServer) -> Iterator[None]:
    """Let others find a server, which is this process, as long as the context lasts.

    A server whose file cannot be written is not found, and works all the same.
    """
    path = _folder() / f"{server.process}.json"
    with suppress(OutputError, OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(json.dumps(asdict(server), indent=1).encode())
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()


def running_servers() -> list[RunningServer]:
    """The servers of this user that run, the newest first. What servers left that were killed is removed."""
    found: list[tuple[float, RunningServer]] = []
    for path in sorted(_folder().glob("*.json")):
        with suppress(OSError, ValueError, TypeError):
            server = RunningServer(**json.loads(path.read_text(encoding="utf-8")))
            if _is_alive(server.process):
                found.append((path.stat().st_mtime, server))
            else:
                path.unlink()
    return [server for _, server in sorted(found, key=lambda pair: -pair[0])]


def _folder() -> Path:
    return hub.home() / "servers"


def _is_alive(process: int) -> bool:
    if sys.platform == "win32":
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
