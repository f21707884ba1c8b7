"""Packages that only some features need, imported when they do, and the command that installs them here."""

from __future__ import annotations

import importlib
import json
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from grit_mlx.errors import DependencyError

__all__ = ["importing", "install_command", "optional"]

_PROJECT = "grit-mlx"


def optional(module: str, *, extra: str, purpose: str) -> Any:
    """A module of a package that an extra brings.

    Args:
        module: its dotted name.
        extra: of this project.
        purpose: what needs it, as the subject of a sentence.

    Raises:
        DependencyError: it is not installed; names the command that installs it.
    """
    with importing(extra=extra, purpose=purpose):
        return importlib.import_module(module)


@contextmanager
def importing(*, extra: str, purpose: str) -> Iterator[None]:
    """As ``optional``, around import statements.

    Raises:
        DependencyError: what they import is not installed.
    """
    try:
        yield
    except ImportError as error:
        package = (error.name or extra).partition(".")[0]
        raise DependencyError(f"{purpose} needs {package}: {install_command(extra)}.") from error


def install_command(extra: str, *, prefix: Path | None = None, origin: dict[str, Any] | None = None) -> str:
    """The command that adds an extra, in the way in which this project was installed.

    Args:
        extra: its name.
        prefix: the environment; None for this process's.
        origin: the contents of the installation's ``direct_url.json``, which an index does not leave; None to read it.
    """
    prefix = Path(sys.prefix) if prefix is None else prefix
    origin = _origin() if origin is None else origin
    editable = bool(origin.get("dir_info", {}).get("editable"))
    repository = f" @ {origin['vcs_info'].get('vcs', 'git')}+{origin['url']}" if "vcs_info" in origin else ""
    wanted = shlex.quote(f"{_source(origin)}[{extra}]{repository}")
    if (prefix / "uv-receipt.toml").exists():
        return f"uv tool install {'--editable ' if editable else ''}{wanted}"
    if (prefix / "pipx_metadata.json").exists():
        return f"pipx install --force {'--editable ' if editable else ''}{wanted}"
    installer = "uv pip install" if _made_by_uv(prefix) else "pip install"
    return f"{installer} {'-e ' if editable else ''}{wanted}"


def _source(origin: dict[str, Any]) -> str:
    """What names the project to an installer: the folder that it was installed from, else its name."""
    url = str(origin.get("url") or "")
    if "dir_info" in origin and url.startswith("file:"):
        return url2pathname(urlsplit(url).path)
    return _PROJECT


def _origin() -> dict[str, Any]:
    try:
        text = distribution(_PROJECT).read_text("direct_url.json")
        found = json.loads(text or "{}")
    except (PackageNotFoundError, OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _made_by_uv(prefix: Path) -> bool:
    """Whether uv made the environment, which then has no pip."""
    try:
        return any(line.startswith("uv =") for line in (prefix / "pyvenv.cfg").read_text("utf-8").splitlines())
    except OSError:
        return False
