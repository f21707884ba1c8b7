"""The command that a missing package's message names, for each way in which the project can have been installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from grit_mlx import optional
from grit_mlx.errors import DependencyError

EDITABLE = {"url": "file:///src/grit%20mlx", "dir_info": {"editable": True}}
CLONE = {"url": "file:///src/grit-mlx", "dir_info": {}}
GIT = {"url": "https://example.org/grit-mlx.git", "vcs_info": {"vcs": "git", "commit_id": "0" * 40}}
FILES = {"uv tool": "uv-receipt.toml", "pipx": "pipx_metadata.json", "pip": "pyvenv.cfg", "uv": "pyvenv.cfg"}


@pytest.mark.parametrize(
    ("installer", "origin", "command"),
    [
        ("pip", {}, "pip install 'grit-mlx[eval]'"),
        ("pip", EDITABLE, "pip install -e '/src/grit mlx[eval]'"),
        ("pip", CLONE, "pip install '/src/grit-mlx[eval]'"),
        ("pip", GIT, "pip install 'grit-mlx[eval] @ git+https://example.org/grit-mlx.git'"),
        ("uv", EDITABLE, "uv pip install -e '/src/grit mlx[eval]'"),
        ("uv tool", {}, "uv tool install 'grit-mlx[eval]'"),
        ("uv tool", EDITABLE, "uv tool install --editable '/src/grit mlx[eval]'"),
        ("uv tool", CLONE, "uv tool install '/src/grit-mlx[eval]'"),
        ("pipx", {}, "pipx install --force 'grit-mlx[eval]'"),
        ("pipx", CLONE, "pipx install --force '/src/grit-mlx[eval]'"),
    ],
)
def test_the_command_fits_the_installation(
    installer: str, origin: dict[str, Any], command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # what tests do about this installation
    (tmp_path / FILES[installer]).write_text("home = /usr/bin\n" + ("uv = 0.9.1\n" if installer == "uv" else ""))
    assert optional.install_command("eval", prefix=tmp_path, origin=origin) == command


def test_this_installation_has_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    with pytest.raises(DependencyError, match=r"Charts needs nothing_like_it: .*install .*\[plots\]"):
        optional.optional("nothing_like_it.at_all", extra="plots", purpose="Charts")
