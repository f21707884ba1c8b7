"""The scripts in examples/ find what they look for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.integrations.tools import tool

EXAMPLES = Path(__file__).parents[2] / "examples"
NEEDED = {
    "langchain": "langchain_core",
    "llama_index": "llama_index",
    "haystack": "haystack",
    "chroma": "chromadb",
    "ray": "ray.data",
}


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_finds_its_sentence(path: Path, tmp_path: Path) -> None:
    needed = NEEDED.get(path.stem.partition("_with_")[2])
    if needed:
        tool(needed)
    run = subprocess.run([sys.executable, path], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip().endswith("Yeast makes bread rise.")
