"""The model inside the package: it is whole, small, and good enough to be a first run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from grit_mlx import GritLM
from grit_mlx.errors import ModeError
from grit_mlx.model import hub
from grit_mlx.model.loading import load
from grit_mlx.model.options import ModelChoice
from grit_mlx.rag import Rag, Store

COMMAND = [sys.executable, "-c", "from grit_mlx.cli.main import main; main()"]
PASSAGES = [
    "The keel is the beam along the bottom of a ship. It keeps the ship upright and stops it from drifting sideways.",
    "Bread rises because yeast eats sugar and breathes out carbon dioxide, which is caught in the dough.",
    "The heart pumps blood through the body. Its left side sends blood that is rich in oxygen to the organs.",
    "In 1969 two astronauts of Apollo 11 walked on the Moon while a third one waited in orbit.",
    "A contract is an agreement that a court will enforce. It needs an offer, an acceptance and something of value.",
]
QUESTIONS = [
    "what stops a boat from tipping over?",
    "why does dough get bigger?",
    "which organ moves blood around?",
    "who were the first people on the moon?",
    "when is a promise legally binding?",
]
PARAMETERS_OF_THE_BODY = 9_000_000
BYTES = 19_000_000


@pytest.fixture(scope="module")
def model() -> GritLM:
    return GritLM()


@pytest.fixture
def offline(tmp_path: Path) -> dict[str, str]:
    """An environment in which nothing was chosen, and in which nobody can be asked."""
    own = {name: value for name, value in os.environ.items() if name not in ("GRIT_MODEL", "HF_ENDPOINT")}
    return {**own, "GRIT_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}


def test_it_is_the_default_and_small() -> None:
    folder = hub.embedded_model()
    assert folder is not None and hub.resolve(ModelChoice()) == folder == hub.resolve(ModelChoice("grit-tiny"))
    assert sum(path.stat().st_size for path in folder.iterdir()) <= BYTES
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["model_type"] == "mistral" and config["tie_word_embeddings"]
    assert config["max_position_embeddings"] >= 512
    loaded = load(ModelChoice(folder, dtype="float32"))
    sizes = {name: value.size for name, value in loaded.model.parameters()["model"]["embed_tokens"].items()}
    total = sum(value.size for value in _arrays(loaded.model.parameters()))
    assert 0 < total - sum(sizes.values()) <= PARAMETERS_OF_THE_BODY
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "GritLM-7B" in card and "Apache" in card


def _arrays(tree: object) -> list[np.ndarray]:
    if isinstance(tree, dict):
        return [array for value in tree.values() for array in _arrays(value)]
    if isinstance(tree, list):
        return [array for value in tree for array in _arrays(value)]
    return [np.array(tree)]


def test_questions_find_their_passages(model: GritLM) -> None:
    documents = model.encode_corpus(PASSAGES)
    assert documents.shape[1] >= 256
    ranking = np.argsort(-(model.encode_queries(QUESTIONS) @ documents.T), axis=1)
    right = ranking[:, 0] == np.arange(len(QUESTIONS))
    assert right.sum() >= len(QUESTIONS) - 1, ranking


def test_similar_sentences_are_nearer(model: GritLM) -> None:
    a, b, c = model.encode(["A man is playing a guitar.", "Someone plays the guitar.", "The stock market fell."])
    assert a @ b > a @ c + 0.2


def test_any_text_has_a_vector(model: GritLM) -> None:
    """In other scripts and of signs it has no tokens for; letter case does not matter."""
    texts = ["漢字", "Ωμέγα", "🚢", "🚢🚢 ahoy", "\u0e40\u0e23\u0e37\u0e2d", "x" * 3000, "1984, 3.14"]
    vectors = model.encode(texts)
    assert np.isfinite(vectors).all() and np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-4)
    lower, upper = model.encode(["a keel of oak", "A KEEL OF OAK"])
    assert lower @ upper > 0.9999


def test_it_only_embeds(model: GritLM) -> None:
    assert not model.settings.generates
    asked: list[Callable[[], object]] = [
        lambda: model.generate("What is a keel?"),
        lambda: next(model.stream("What is a keel?")),
        lambda: model.generate_batch(["What is a keel?"]),
        lambda: GritLM(mode="generative"),
    ]
    for ask in asked:
        with pytest.raises(ModeError, match=r"^grit-tiny only embeds\..* can run .*gritlm.*: grit models pull \S+"):
            ask()


def test_it_answers_with_quotes(model: GritLM, tmp_path: Path) -> None:
    path = tmp_path / "passages.txt"
    path.write_text("\n\n".join(PASSAGES), encoding="utf-8")
    store = Store(tmp_path / "store", model)
    store.index([path])
    rag = Rag(model, store, min_score=-1)  # of five lines, nothing much is rare
    answers = [rag.ask(question).quotes[0].text for question in QUESTIONS]
    right = [answer in passage for answer, passage in zip(answers, PASSAGES, strict=True)]
    assert sum(right) >= len(QUESTIONS) - 1, answers


@pytest.mark.parametrize(
    "arguments",
    [
        ("embed", "{file}"),
        ("search", "what stops a boat from tipping over?", "{file}"),
        ("similarity", "a ship", "a boat"),
        ("rag", "index", "{file}", "--store", "{file}.grit"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_commands_need_no_model_and_no_network(
    arguments: tuple[str, ...], offline: dict[str, str], tmp_path: Path
) -> None:
    file = tmp_path / "passages.txt"
    file.write_text("\n".join(PASSAGES), encoding="utf-8")
    given = [argument.format(file=file) for argument in arguments]
    run = subprocess.run([*COMMAND, *given], env=offline, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert run.stderr.count("grit-tiny") == 1 and "gritlm-7b" in run.stderr
    assert run.stdout.strip()
    if arguments[0] == "search":
        assert "keel" in run.stdout.splitlines()[0]


@pytest.mark.parametrize("arguments", [("generate", "What is a keel?"), ("chat",)], ids=["generate", "chat"])
def test_commands_that_write_name_models_that_can(arguments: tuple[str, ...], offline: dict[str, str]) -> None:
    run = subprocess.run(
        [*COMMAND, *arguments], env=offline, input="hello\n", capture_output=True, text=True, timeout=120
    )
    assert (run.returncode, run.stdout) == (1, "")
    assert "grit-tiny only embeds" in run.stderr and "grit models pull" in run.stderr


def test_who_names_it_is_not_told_what_it_is(offline: dict[str, str]) -> None:
    command = [*COMMAND, "similarity", "a ship", "a boat", "--model", "grit-tiny"]
    run = subprocess.run(command, env=offline, capture_output=True, text=True, timeout=120)
    assert (run.returncode, run.stderr) == (0, "")
