"""``grit serve`` as a service of the user's: a launchd agent on a Mac, a systemd unit on Linux.

Only files are written and removed. Nothing is started or stopped here; the commands that do so are returned.
"""

from __future__ import annotations

import os
import plistlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

from grit_mlx.errors import OutputError, unwritable
from grit_mlx.files.atomic import atomic_path
from grit_mlx.options import spec_of
from grit_mlx.server.options import ServeOptions

__all__ = ["Service", "arguments", "install", "service", "uninstall"]

_LABEL: Final = "org.grit-mlx.serve"
_UNIT: Final = "grit-serve.service"

# What the commands of this terminal see and a service would not.
_KEPT: Final = ("GRIT_HOME", "GRIT_MODEL", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE")


@dataclass(frozen=True)
class Service:
    """A service of this system.

    Attributes:
        path: its file.
        content: of the file.
        start: the command that starts it, now and at each login.
        stop: the command that ends it.
    """

    path: Path
    content: bytes
    start: str
    stop: str


def arguments(given: Mapping[str, Any], *, config: str | None = None) -> list[str]:
    """Options as arguments of ``grit serve``, with complete paths: a service has another working folder.

    Args:
        given: some fields of ``ServeOptions``.
        config: the settings file.
    """
    known = {one.name: spec_of(one) for one in fields(ServeOptions)}
    result = [] if config is None else ["--config", _complete(config)]
    for name, value in given.items():
        flag = (known[name].flags or ("--" + name.replace("_", "-"),))[0]
        if isinstance(value, bool):
            result.append(flag if value else flag.replace("--", "--no-", 1))
            continue
        for one in value if isinstance(value, list | tuple) else [value]:
            if name == "stores":
                store, equals, folder = str(one).partition("=")
                one = f"{store}={_complete(folder)}" if equals else _complete(store)
            result += [flag, _complete(one) if name in ("models", "api_key_file") else str(one)]
    return result


def service(command: Sequence[str], *, system: str = sys.platform, home: Path | None = None) -> Service:
    """The service that runs a command.

    Args:
        command: with a complete path.
        system: Python's name of it.
        home: the user's folder.
    """
    home = home or Path.home()
    environment = {name: os.environ[name] for name in _KEPT if name in os.environ}
    if system == "darwin":
        path = home / "Library" / "LaunchAgents" / f"{_LABEL}.plist"
        content = _agent(command, environment, home)
        return Service(path, content, f"launchctl bootstrap gui/$UID {path}", f"launchctl bootout gui/$UID/{_LABEL}")
    path = home / ".config" / "systemd" / "user" / _UNIT
    content = _unit(command, environment)
    begin = f"systemctl --user daemon-reload && systemctl --user enable --now {_UNIT}"
    return Service(path, content, begin, f"systemctl --user disable --now {_UNIT}")


def install(made: Service) -> None:
    """Write a service's file.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        made.path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(made.path) as path:
            path.write_bytes(made.content)
    except OSError as error:
        raise OutputError(unwritable(made.path, error)) from error


def uninstall(made: Service) -> bool:
    """Remove a service's file; whether there was one.

    Raises:
        OutputError: it cannot be removed.
    """
    try:
        made.path.unlink()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise OutputError(unwritable(made.path, error)) from error
    return True


def _agent(command: Sequence[str], environment: Mapping[str, str], home: Path) -> bytes:
    log = str(home / "Library" / "Logs" / "grit-serve.log")
    return plistlib.dumps(
        {
            "Label": _LABEL,
            "ProgramArguments": list(command),
            "EnvironmentVariables": dict(environment),
            "WorkingDirectory": str(home),
            "RunAtLoad": True,
            "KeepAlive": {"SuccessfulExit": False},  # not after it was told to stop
            "ThrottleInterval": 30,
            "ProcessType": "Interactive",  # or the system slows it down
            "StandardOutPath": log,
            "StandardErrorPath": log,
        }
    )


def _unit(command: Sequence[str], environment: Mapping[str, str]) -> bytes:
    lines = [
        "[Unit]",
        "Description=grit serve: embeddings, chats and stores for other programs",
        "",
        "[Service]",
        *(f"Environment={_quoted(f'{name}={value}')}" for name, value in environment.items()),
        # Of a command $ is read as well.
        "ExecStart=" + " ".join(_quoted(one).replace("$", "$$") for one in command),
        "WorkingDirectory=%h",
        "Restart=on-failure",
        "RestartSec=30",
        "",
        "[Install]",
        "WantedBy=default.target",
        "",
    ]
    return "\n".join(lines).encode()


def _quoted(text: str) -> str:
    """A word as systemd reads it."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"'


def _complete(name: Any) -> str:
    """The complete path of what exists; a name of another kind, such as a hub id, as it is."""
    path = Path(str(name)).expanduser()
    return str(path.absolute()) if path.exists() else str(name)
