"""The wheel: what is in it, and how large it is."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BYTES = 20_000_000

BUILD = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"


def test_the_wheel_carries_the_model_and_is_small(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    setuptools = pytest.importorskip("setuptools", minversion="77", reason="needs setuptools >= 77 to build a wheel")
    assert setuptools
    source = tmp_path / "source"
    for name in ("grit_mlx", "cli", "convert"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, source / name)
    run = subprocess.run([sys.executable, "-c", BUILD, tmp_path], cwd=source, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    (wheel,) = tmp_path.glob("*.whl")
    size = wheel.stat().st_size
    with capsys.disabled():
        sys.stdout.write(f"\n{wheel.name}: {size:,} bytes\n")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for path in (ROOT / "grit_mlx" / "builtin" / "grit-tiny").iterdir():
        assert f"grit_mlx/builtin/grit-tiny/{path.name}" in names
    assert size <= BYTES
