"""What recipes/grit-tiny writes into the weights by hand is what the model computes before any training."""

from __future__ import annotations

import importlib
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from grit_mlx import GritLM, embedding_prompt
from grit_mlx.model import hub
from grit_mlx.model.attention import decoder_of, embedding_caches

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "grit-tiny"
SIZE = 128  # of the bags


@pytest.fixture(scope="module")
def recipe() -> Iterator[Path]:
    """Makes the recipe's modules, which stand in no package, importable."""
    pytest.importorskip("Stemmer", reason="needs pystemmer (the extra eval)")
    before = set(sys.modules)
    sys.path.insert(0, str(RECIPE))
    yield RECIPE
    sys.path.remove(str(RECIPE))
    for name in set(sys.modules) - before:
        if (RECIPE / f"{name}.py").exists():
            del sys.modules[name]


@pytest.fixture(scope="module")
def bags() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(16_384, SIZE)).astype(np.float32)


@pytest.fixture(scope="module")
def start(recipe: Path, bags: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    write_model: Any = importlib.import_module("write_model")
    config = json.loads((recipe / "config.json").read_text(encoding="utf-8"))
    config["hidden_size"] = SIZE + write_model.CODE + write_model.NOTES
    folder = tmp_path_factory.mktemp("start")
    embedded = hub.embedded_model()
    assert embedded is not None
    write_model.write(folder, bags, config, embedded)
    return folder


@pytest.fixture(scope="module")
def model(start: Path) -> GritLM:
    return GritLM(start)


def _weights(model: GritLM, text: str) -> tuple[np.ndarray, list[int]]:
    """How much of each token's vector is left of it after the last norm, and the tokens."""
    ids = model.tokenizer.encode(embedding_prompt() + text)
    caches = embedding_caches(len(model.model.model.layers), mx.ones((1, len(ids)), dtype=mx.bool_), causal=False)
    states = decoder_of(model.model)(mx.array([ids]), cache=caches)[0, :, :SIZE]
    rows = model.model.model.embed_tokens.weight[mx.array(ids), :SIZE]
    return np.array((states * rows).sum(1) / (rows * rows).sum(1)), ids


def test_repeated_words_weigh_less_each(model: GritLM) -> None:
    words: Any = importlib.import_module("words")
    same = words.same_words(model.tokenizer.backend_tokenizer)
    text = "A ship, two ships, and a Ship: " + "boat " * 7 + "and the harbour of the city"
    found, ids = _weights(model, text)
    counts = Counter(same[ids])
    expected = words.saturation(np.array([counts[word] for word in same[ids]]))
    begin = len(model.tokenizer.encode(embedding_prompt()))
    ratio = found[begin:] / expected[begin:]
    assert counts[same[model.tokenizer.encode("ship", add_special_tokens=False)[0]]] == 3
    # Weights differ by a factor of three here, and codes of words are not quite at right angles.
    assert expected[begin:].max() / expected[begin:].min() > 2
    assert 0.8 < (ratio / ratio.mean()).min() <= (ratio / ratio.mean()).max() < 1.25, np.round(ratio / ratio.mean(), 2)


def test_an_embedding_is_a_bag(model: GritLM) -> None:
    """Of words that are there once each: the mean of their vectors."""
    text = "keel yeast sugar harbour"
    ids = model.tokenizer.encode(text, add_special_tokens=False)
    assert len(set(ids)) == len(ids)
    rows = np.array(model.model.model.embed_tokens.weight)[ids, :SIZE]
    mean = rows.sum(0) / np.linalg.norm(rows.sum(0))
    assert model.encode(text, instruction=embedding_prompt()) @ mean > 0.99
