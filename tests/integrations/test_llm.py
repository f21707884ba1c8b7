"""``llm``'s own commands, run for real on a new user's folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.integrations.tools import tool

tool("llm")

from grit_mlx import GritLM

TEXTS = {
    "bread": "Yeast makes bread rise.",
    "ship": "The keel keeps a ship upright.",
    "rain": "Rain falls in spring.",
}

# The entry point is there once the package is installed; from a checkout the plugin is named by hand.
RUN = """
import sys
from llm.plugins import load_plugins, pm
load_plugins()
import grit_mlx.integrations.llm as plugin
if plugin not in pm.get_plugins():
    pm.register(plugin, "grit-mlx")
from llm.cli import cli
cli()
"""


class Llm:
    """Runs ``llm`` as a user does."""

    def __init__(self, user: Path) -> None:
        self.environment = {**os.environ, "LLM_USER_PATH": str(user)}

    def __call__(self, *arguments: str, fails: bool = False) -> str:
        command = [sys.executable, "-c", RUN, *arguments]
        run = subprocess.run(command, capture_output=True, text=True, env=self.environment, check=False)
        assert (run.returncode != 0) == fails, run.stderr
        return run.stderr if fails else run.stdout


@pytest.fixture
def llm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Llm:
    return Llm(tmp_path / "llm")


def test_the_models_appear(llm: Llm) -> None:
    assert "grit/grit-tiny" in llm("grit", "models")
    assert "grit" in llm("embed-models")
    assert "grit" in llm("models")


def test_what_is_stored_is_found_again(llm: Llm, tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for name, text in TEXTS.items():
        (folder / f"{name}.md").write_text(text)
    llm("embed-multi", "notes", "--files", str(folder), "*.md", "-m", "grit", "--store")
    found = [json.loads(line) for line in llm("similar", "notes", "-c", "Why does bread rise?").splitlines()]
    assert found[0]["id"] == "bread.md"
    model = GritLM()
    query, documents = model.encode_queries("Why does bread rise?"), model.encode_corpus(list(TEXTS.values()))
    np.testing.assert_allclose([row["score"] for row in found], sorted(documents @ query)[::-1], atol=1e-5)


def test_a_single_text_is_a_document(llm: Llm) -> None:
    vector = json.loads(llm("embed", "-m", "grit", "-c", "Yeast makes bread rise."))
    np.testing.assert_allclose(vector, GritLM().encode_corpus("Yeast makes bread rise."), atol=1e-6)


def test_a_chat_goes_on(llm: Llm, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llm.environment["GRIT_MODEL"] = str(tiny_model)
    first = llm("-m", "grit", "Hello", "-o", "max_tokens", "6")
    model = GritLM(tiny_model)
    assert first.rstrip("\n") == model.generate("Hello", max_tokens=6).rstrip("\n")
    second = llm("-c", "And now?", "-o", "max_tokens", "6")
    chat = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": model.generate("Hello", max_tokens=6)},
        {"role": "user", "content": "And now?"},
    ]
    assert second.rstrip("\n") == model.generate(chat, max_tokens=6).rstrip("\n")
    logged = json.loads(llm("logs", "--json", "-n", "1"))
    assert logged[0]["input_tokens"] > 0
    assert logged[0]["output_tokens"] == 6


def test_a_wrong_model_is_one_sentence(llm: Llm) -> None:
    llm.environment["GRIT_MODEL"] = "/nowhere/at-all"
    message = llm("-m", "grit", "Hello", fails=True)
    assert "Traceback" not in message
    assert "/nowhere/at-all" in message
