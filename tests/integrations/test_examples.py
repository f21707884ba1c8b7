"""The scripts in examples/ find what they look for."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
NEEDED = {"langchain": "langchain_core", "llama_index": "llama_index", "haystack": "haystack", "chroma": "chromadb"}


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_finds_its_sentence(path: Path, tmp_path: Path) -> None:
    tool = NEEDED.get(path.stem)
    if tool and find_spec(tool) is None:
        pytest.skip(f"needs {tool}: make integrations")
    # Not run from its folder, whose modules have the tools' names.
    code = f"exec(compile(open({str(path)!r}).read(), {str(path)!r}, 'exec'))"
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip().endswith("Yeast makes bread rise.")
