"""What recipes/grit-tiny writes into the weights by hand is what the model computes before any training."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import yaml

from grit_mlx import GritLM, embedding_prompt
from grit_mlx.model import hub
from grit_mlx.model.attention import decoder_of, embedding_caches

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "grit-tiny"
SIZE = 80  # of the bags
PASSAGE = (
    "The keel is the beam along the bottom of a ship. Bread rises because yeast eats sugar and breathes out carbon "
    "dioxide. In 1969 two astronauts of Apollo 11 walked on the Moon while a third one waited in orbit. "
    "Goods were left by the mill or by the quay or by the pier or by the yard."
)


@pytest.fixture(scope="module")
def recipe() -> Iterator[dict[str, Any]]:
    """The recipe's modules, which stand in no package."""
    pytest.importorskip("Stemmer", reason="needs pystemmer (the extra eval)")
    sys.path.insert(0, str(RECIPE))
    names = ("sources", "words", "write_model", "finish")
    yield {name: importlib.import_module(name) for name in names}
    sys.path.remove(str(RECIPE))
    for name in names:
        del sys.modules[name]


@pytest.fixture(scope="module")
def bags() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(16_384, SIZE)).astype(np.float32)


@pytest.fixture(scope="module")
def start(recipe: dict[str, Any], bags: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    write_model = recipe["write_model"]
    config = json.loads((RECIPE / "config.json").read_text(encoding="utf-8"))
    config["hidden_size"] = SIZE + write_model.CODE + write_model.NOTES
    folder = tmp_path_factory.mktemp("start")
    embedded = hub.embedded_model()
    assert embedded is not None
    write_model.write(folder, bags, config, embedded)
    return folder


@pytest.fixture(scope="module")
def model(start: Path) -> GritLM:
    return GritLM(start)


@pytest.mark.parametrize(
    ("begun", "goes_on"),
    [
        ("Bread rises", " because yeast eats sugar"),
        ("In 1969 two", " astronauts of Apollo 11 walked"),
        ("the beam along", " the bottom of a ship"),
        # Two tokens do not tell where this is; those before them do.
        ("Goods were left by the mill or by", " the quay or by the pier or by the yard"),
        ("left by the mill or by the quay or by", " the pier or by the yard"),
    ],
)
def test_it_goes_on_as_the_passage_does(model: GritLM, begun: str, goes_on: str) -> None:
    tokenizer = model.tokenizer
    expected = tokenizer.encode(goes_on.strip(), add_special_tokens=False)
    ids = tokenizer.encode(f"<|user|>\n{PASSAGE}\n\nWhat then?\n<|assistant|>\n{begun}")
    found: list[int] = []
    for _ in expected:
        found.append(int(mx.argmax(model.model(mx.array([ids + found]))[0, -1])))
    assert found == expected


def test_a_head_attends_to_what_was_before(model: GritLM, recipe: dict[str, Any]) -> None:
    """Of each distance as much as ``NEAR`` says, whatever the tokens are."""
    write_model = recipe["write_model"]
    frequencies = model.config["rope_theta"] ** (-np.arange(write_model.FAST) / (model.config["head_dim"] // 2))
    angles = np.outer(np.arange(-60, 60), frequencies)
    logits = np.cos(angles) @ write_model.NEAR[0] + np.sin(angles) @ write_model.NEAR[1]
    weights = np.exp(logits) / np.exp(logits).sum()
    assert weights[:60].sum() < 0.01  # nothing of what comes after, where attention goes both ways
    expected = weights[60:] / weights[60:].sum()
    attention, ids = model.model.model.layers[0].self_attn, model.tokenizer.encode(PASSAGE)[:60]
    states = model.model.model.layers[0].input_layernorm(model.model.model.embed_tokens(mx.array([ids])))
    width = model.config["head_dim"]
    queries = attention.q_proj(states)[:, -1:, 2 * width : 3 * width][:, None]
    queries, keys = attention.rope(queries, offset=len(ids) - 1), attention.rope(attention.k_proj(states)[:, None])
    found = np.array(mx.softmax(queries @ keys.swapaxes(-1, -2) * attention.scale, axis=-1))[0, 0, 0, ::-1]
    np.testing.assert_allclose(found, expected[: len(ids)], atol=0.03)  # the weights are of 8 bits
    assert found[:2].sum() < 0.08 < 0.16 < found[2:4].min()


def _weights(model: GritLM, text: str, *, marked: bool = True) -> tuple[np.ndarray, list[int]]:
    """How much of each token's vector is left of it after the last norm, and the tokens."""
    ids = model.tokenizer.encode((embedding_prompt() if marked else "<|user|>\n") + text)
    caches = embedding_caches(len(model.model.layers), mx.ones((1, len(ids)), dtype=mx.bool_), causal=False)
    states = decoder_of(model.model)(mx.array([ids]), cache=caches)[0, :, :SIZE]
    rows = model.model.model.embed_tokens.weight[mx.array(ids), :SIZE]
    return np.array((states * rows).sum(1) / (rows * rows).sum(1)), ids


def test_repeated_words_weigh_less_each(model: GritLM, recipe: dict[str, Any]) -> None:
    same = recipe["words"].same_words(model.tokenizer.backend_tokenizer)
    text = "A ship, two ships, and a Ship: " + "boat " * 7 + "and the harbour of the city"
    found, ids = _weights(model, text)
    counts = Counter(same[ids])
    expected = recipe["words"].saturation(np.array([counts[word] for word in same[ids]]))
    begin = len(model.tokenizer.encode(embedding_prompt()))
    ratio = found[begin:] / expected[begin:]
    assert counts[same[model.tokenizer.encode("ship", add_special_tokens=False)[0]]] == 3
    # Weights differ by a factor of three here, and codes of words are not quite at right angles.
    assert expected[begin:].max() / expected[begin:].min() > 2
    assert 0.8 < (ratio / ratio.mean()).min() <= (ratio / ratio.mean()).max() < 1.25, np.round(ratio / ratio.mean(), 2)


def test_texts_that_are_written_on_are_not_concerned(model: GritLM) -> None:
    text = "boat " * 9 + "city"
    marked, _ = _weights(model, text)
    unmarked, _ = _weights(model, text, marked=False)
    assert marked[-2] / marked[-1] < 0.6 < 0.7 < unmarked[-2] / unmarked[-1]


def test_an_answer_from_a_cached_document_is_not_concerned(model: GritLM) -> None:
    ids = model.tokenizer.encode(f"{embedding_prompt()}boat\n<|user|>\nWhat?\n<|assistant|>\nboat")
    states = decoder_of(model.model)(mx.array([ids]))[0, :, :SIZE]
    marked = len(model.tokenizer.encode(embedding_prompt()))
    assert ids[marked] == ids[-1]
    assert float(mx.linalg.norm(states[marked])) < 0.5 * float(mx.linalg.norm(states[-1]))


def test_an_embedding_is_a_bag(model: GritLM, bags: np.ndarray) -> None:
    """Of words that are there once each: the mean of their vectors."""
    text = "keel yeast sugar harbour"
    ids = model.tokenizer.encode(text, add_special_tokens=False)
    assert len(set(ids)) == len(ids)
    rows = np.array(model.model.model.embed_tokens.weight)[ids, :SIZE]
    mean = rows.sum(0) / np.linalg.norm(rows.sum(0))
    assert model.encode(text, instruction=embedding_prompt()) @ mean > 0.99


def test_what_was_trained_embeds_as_it_began(
    recipe: dict[str, Any], start: Path, model: GritLM, tmp_path: Path
) -> None:
    before: Any = mx.load(str(start / "model.safetensors"))
    mx.random.seed(3)
    frozen = tuple(yaml.safe_load((RECIPE / "train.yaml").read_text(encoding="utf-8"))["frozen"])
    after = {
        name: value if name.startswith(frozen) else value + 0.05 * mx.random.normal(value.shape)
        for name, value in before.items()
    }
    vectors = model.encode(PASSAGE.split(". "))

    def nearness(weights: dict[str, mx.array], name: str) -> float:
        folder = shutil.copytree(start, tmp_path / name)
        mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
        return float((GritLM(folder).encode(PASSAGE.split(". ")) * vectors).sum(1).min())

    assert nearness(recipe["finish"].finished(before, after), "finished") > 0.995 > 0.98 > nearness(after, "trained")
