"""Running ``grit`` inside the test process, where a run costs milliseconds and not the start of Python."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from grit_mlx.cli.main import app


@dataclass(frozen=True)
class Run:
    """What a run left behind: exit code, stdout, stderr."""

    code: int
    out: str
    err: str


Grit = Callable[..., Run]


def run(*args: object, stdin: bytes | str | None = None) -> Run:
    result = CliRunner().invoke(app, [str(arg) for arg in args], input=stdin, prog_name="grit")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception  # a bug: nothing but exit codes may come out of it
    return Run(result.exit_code, result.stdout, result.stderr)


@pytest.fixture(autouse=True)
def _restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Undo what a command arranges for its process: the library's log, and the environment of other libraries."""
    for name in ("TRANSFORMERS_VERBOSITY", "TRANSFORMERS_NO_ADVISORY_WARNINGS", "HF_HUB_DISABLE_PROGRESS_BARS"):
        monkeypatch.setenv(name, "error" if name.endswith("VERBOSITY") else "1")
    logger = logging.getLogger("grit_mlx")
    before: dict[str, Any] = {"handlers": logger.handlers, "propagate": logger.propagate, "level": logger.level}
    yield
    logger.__dict__.update(before)
    logger.setLevel(before["level"])


@pytest.fixture
def grit(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Grit:
    """``grit("embed", path)`` runs the command with the tiny model as the default."""
    monkeypatch.setenv("GRIT_MODEL", str(tiny_model))
    return run


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """A text file of three lines and two paragraphs."""
    path = tmp_path / "notes.txt"
    path.write_text(
        "The keel keeps a ship upright.\nA sail catches the wind.\n\nBread needs flour.\n", encoding="utf-8"
    )
    return path
