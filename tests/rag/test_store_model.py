"""A store brings the model that it was made with; an adapter brings its base."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from grit_mlx import GritLM
from grit_mlx.errors import AdapterError, StoreError
from grit_mlx.model import hub
from grit_mlx.model.options import ModelChoice
from grit_mlx.rag import Store
from grit_mlx.rag.fingerprint import check_fingerprint
from tests.cli.conftest import Run, run
from tests.training.conftest import embedding_rows, write_rows


@pytest.fixture
def grit(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Run]:
    monkeypatch.setenv("GRIT_MODEL", "grit-tiny")
    return run


@pytest.fixture
def store(tiny_model: Path, tmp_path: Path) -> Path:
    (tmp_path / "notes.txt").write_text("A keel keeps a ship upright.\n\nBread needs yeast.\n")
    assert run("rag", "index", tmp_path / "notes.txt", "--store", tmp_path / "s", "-m", tiny_model).code == 0
    return tmp_path / "s"


def test_its_model_is_used_unless_one_is_named(grit: Any, store: Path, tiny_model: Path) -> None:
    note = "note: using mistral, the model that the store was made with\n"
    found = grit("rag", "ask", "keel", "--store", store, "--sources-only", "--min-score", -1)
    assert (found.code, found.err) == (0, note) and "notes.txt" in found.out
    answered = grit("rag", "ask", "keel", "--store", store, "--min-score", -1, "--max-tokens", 2)
    assert answered.code == 0 and note in answered.err
    assert grit("rag", "chat", "--store", store, "--max-tokens", 2, stdin="keel\n").err.startswith(note)
    assert grit("rag", "index", store.parent / "notes.txt", "--store", store).code == 0
    named = grit("rag", "ask", "keel", "--store", store, "--model", "grit-tiny")
    assert named.code == 1
    assert "was made with another model (mistral; now grit-tiny). What differs: the weights" in named.err
    assert f"Use that model: --model {tiny_model}, or index into another store: grit rag index PATH" in named.err
    assert "{" not in named.err and "Given a" not in named.err
    assert grit("rag", "ask", "keel", "--store", store, "--model", tiny_model, "--sources-only").code == 0


def test_its_model_is_found_under_another_name(
    grit: Any, store: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = Store(store)._made_with
    moved = tmp_path / "moved"
    shutil.copytree(tiny_model, moved)
    elsewhere = {**made, "folder": str(tmp_path / "gone")}
    monkeypatch.setattr(Store, "_made_with", property(lambda self: elsewhere, lambda self, value: None), raising=False)
    assert Store(store).made_with is None
    missing = grit("rag", "ask", "keel", "--store", store)
    assert missing.code == 1 and "That model is not on this machine: name its folder with --model" in missing.err
    grit("models", "use", moved)
    assert Store(store).made_with == ModelChoice(moved)


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("gritlm-7b-4bit", "Get that model: grit models pull gritlm-7b --bits 4, or index"),
        ("GritLM/GritLM-7B", "Get that model: grit models pull GritLM/GritLM-7B, or index"),
        ("some-folder", "That model is not on this machine: name its folder with model, or index"),
    ],
)
def test_a_model_that_is_not_here(name: str, advice: str) -> None:
    with pytest.raises(StoreError) as caught:
        check_fingerprint({"model": name, "weights": "0"}, {"model": "other", "weights": "1"}, uri="s")
    assert advice in str(caught.value)


@pytest.fixture
def adapter(tiny_model: Path, tmp_path: Path) -> Path:
    write_rows(tmp_path / "data" / "train.jsonl", embedding_rows(20))
    quick = ("--mode", "embedding", "--iters", 1, "--batch-size", 4, "--steps-per-eval", 0, "--learning-rate", 0.1)
    folder = tmp_path / "adapters"
    made = run("train", "--model", tiny_model, "--data", tmp_path / "data", "--adapter-path", folder, *quick)
    assert made.code == 0, made.err
    return folder


def test_an_adapter_brings_its_base(grit: Any, adapter: Path, tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one text\nanother\n")
    texts = ("embed", tmp_path / "a.txt")
    expected = grit(*texts, "--model", tiny_model, "--adapter", adapter)
    assert expected.code == 0 and expected.out != grit(*texts, "--model", tiny_model).out
    for way in (("--adapter", adapter), ("--model", adapter), ("-m", adapter)):
        found = grit(*texts, *way)
        assert (found.code, found.out) == (0, expected.out), found.err
        assert f"Using {tiny_model}, the model that the adapter was trained on." in found.err
    assert GritLM(adapter).adapter == adapter and GritLM(adapter).folder == tiny_model
    grit("models", "use", adapter)
    assert hub.is_adapter(adapter) and not hub.is_adapter(tiny_model)


def test_an_adapter_as_the_default(adapter: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("GRIT_MODEL", raising=False)
    assert run("models", "use", adapter).code == 0
    (tmp_path / "a.txt").write_text("one text\n")
    assert run("embed", tmp_path / "a.txt").out == run("embed", tmp_path / "a.txt", "--adapter", adapter).out


def test_a_base_that_is_not_here(adapter: Path) -> None:
    path = adapter / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "model": "own/absent", "base_model": {}}))
    with pytest.raises(AdapterError, match="was trained on own/absent, which is not on this machine"):
        GritLM(adapter)


def test_a_store_of_an_adapter(grit: Any, adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "n.txt").write_text("A keel keeps a ship upright.\n")
    assert grit("rag", "index", tmp_path / "n.txt", "--store", tmp_path / "s2", "-m", adapter).code == 0
    found = grit("rag", "ask", "keel", "--store", tmp_path / "s2", "--sources-only", "--min-score", -1)
    assert found.code == 0 and "n.txt" in found.out
    shutil.rmtree(adapter)
    lost = grit("rag", "ask", "keel", "--store", tmp_path / "s2", "--sources-only")
    assert lost.code == 1 and "was made with another model" in lost.err
