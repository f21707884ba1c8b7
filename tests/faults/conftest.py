"""Programs as people write them, run in a process of their own: a fault may be an abort, or a hang."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

Program = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def program(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    """``program(source, seconds=..., code=...)`` runs a program, which knows the tiny model's folder as ``MODEL``.

    Its exit code must be ``code``, and nothing but what it prints may reach its streams.
    """
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "error")
    monkeypatch.setenv("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

    def run(source: str, *, seconds: float = 120, code: int | None = 0) -> subprocess.CompletedProcess[str]:
        path = tmp_path / "program.py"
        path.write_text(f"MODEL = {str(tiny_model)!r}\n" + textwrap.dedent(source), encoding="utf-8")
        result = subprocess.run(
            [sys.executable, str(path)], capture_output=True, text=True, timeout=seconds, check=False, cwd=tmp_path
        )
        if code is not None:
            assert result.returncode == code, result.stderr
            assert "Traceback" not in result.stderr and "terminate called" not in result.stderr, result.stderr
            assert "Exception ignored" not in result.stderr, result.stderr
        return result

    return run
