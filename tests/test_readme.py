"""README.md: its made parts are up to date, and every command in it runs as written in a fresh folder."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import fake_hub

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")

# Commands that are not run, and what runs in place of others: a fresh folder is no clone, and training takes hours.
NOT_RUN = ("uv tool install .", "pipx install .", "pip install .")  # tests/test_wheel.py installs the package
SUBSTITUTES = {
    "git diff |": "echo '+ a line' |",
    "grit chat": "echo 'Hello.' | grit chat --max-tokens 4",
    "grit train ": "grit train --iters 2 --batch-size 1 --generative-batch-size 1 --steps-per-eval 0 ",
    "grit generate ": "grit generate --max-tokens 4 ",
    "grit rag ask ": "grit rag ask --max-tokens 4 --min-score -1 ",
}


@pytest.fixture(scope="module")
def made() -> Any:
    spec = importlib.util.spec_from_file_location("readme", ROOT / "scripts" / "readme.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def without_numbers(text: str) -> str:
    """Scores differ in the last digit between machines."""
    return re.sub(r"[+-]?\d+(?:\.\d+)?", "0", text)


def test_its_parts_are_made_from_what_is_true(made: Any) -> None:
    assert without_numbers(made.page(TEXT)) == without_numbers(TEXT), "run scripts/readme.py"
    recorded = made.RECORDING.read_text(encoding="utf-8")
    assert without_numbers(made.recording()) == without_numbers(recorded), "run scripts/readme.py"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def commands() -> Iterator[str]:
    for line in "".join(blocks("sh")).splitlines():
        command = line.partition("  #")[0].strip()
        if command and command not in NOT_RUN:
            yield command


def test_every_command_runs(tmp_path: Path, tiny_model: Path) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    [program] = blocks("python")
    (tmp_path / "program.py").write_text(program, encoding="utf-8")
    script = "\n".join([*map(substituted, commands()), "python program.py"])
    with fake_hub.running() as hub:
        hub.repositories["GritLM/GritLM-7B"] = tiny_model
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("GRIT_", "HF_"))},
            "GRIT_HOME": str(tmp_path / "home"),
            "HF_HOME": str(tmp_path / "cache"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_ENDPOINT": hub.url,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }
        run = subprocess.run(
            ["bash", "-ex", "-c", script],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
    assert run.returncode == 0, run.stderr[-3000:]
    assert (tmp_path / "my-model" / "config.json").exists()


def substituted(command: str) -> str:
    for written, runs in SUBSTITUTES.items():
        command = command.replace(written, runs)
    return command


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", TEXT):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_it_is_short() -> None:
    assert len(TEXT.splitlines()) <= 200
