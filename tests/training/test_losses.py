"""The losses against the official code's numbers, and against NumPy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from grit_mlx.datasets.examples import row_from
from grit_mlx.datasets.tokens import TokenizedChat, tokenize_chats, tokenize_embedding_rows
from grit_mlx.errors import ArgumentError
from grit_mlx.model.loading import load
from grit_mlx.model.options import ModelChoice
from grit_mlx.model.settings import Settings
from grit_mlx.model.world import World
from grit_mlx.training import TrainingSettings, losses
from grit_mlx.training.arrays import named_arrays, number
from grit_mlx.training.data import EmbeddingBatch
from grit_mlx.training.recompute import checkpoint_layers
from grit_mlx.training.router import Routers, expert_sums
from grit_mlx.training.step import StepResult, Trainee, TrainingStep, merged
from tests import reference

QUERIES = [["Find it:", "what keeps the ship upright?"], ["", "bread"], ["Find it:", "wind and sails"]]
PASSAGES = ["A keel keeps a ship upright.", "Bread rises.", "Yeast eats sugar.", "a", "The wind leans.", "The page."]
CHATS = [["Say it.", "A keel keeps a ship upright."], ["Why?", "Because.", "And then?", "Then the wind leans."]]


def random(*shape: int, seed: int = 0) -> mx.array:
    return mx.array(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def compute(folder: Path, batch: dict[str, Any], training: TrainingSettings, **options: Any) -> StepResult:
    """Losses and gradients of a batch of queries, passages in pairs, and conversations."""
    loaded = load(ModelChoice(folder, dtype="float32"))
    tokenizer = loaded.tokenizer._tokenizer
    rows = [
        row_from({"query": query, "pos": [batch["passage"][2 * i]], "neg": [batch["passage"][2 * i + 1]]})
        for i, query in enumerate(batch["query"])
    ]
    limits = {"query_max_length": training.query_max_length, "passage_max_length": training.passage_max_length}
    texts = tokenize_embedding_rows(tokenizer, rows, **limits)  # type: ignore[arg-type]
    chats = tokenize_chats(
        tokenizer,
        [row_from({"text": turns}) for turns in batch["generative"]],  # type: ignore[misc]
        max_length=training.max_seq_length,
    )
    routers = None
    if "router_factor" in options:
        routers = Routers(loaded.model, loaded.config["num_experts_per_tok"])
    if training.grad_checkpoint:
        checkpoint_layers(loaded.model.layers, routers)
    embedding = EmbeddingBatch(
        [row[0] for row in texts],
        [text for row in texts for text in row[1:]],
        np.arange(2 * len(texts), dtype=np.int32),
    )
    step = TrainingStep(Trainee(loaded.model), training, Settings(), world=World(), routers=routers, **options)
    return merged([step.embedding(embedding, seed=0), step.generative([c for c in chats if c], seed=0)])


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("kind", ["mixed", "token"])
def test_official_losses_and_gradients(shared: Path, kind: str, recompute: bool) -> None:
    folder = shared / "golden" / "mistral"
    golden = json.loads((folder / "golden.json").read_text(encoding="utf-8"))
    arrays, case = np.load(folder / "golden.npz"), golden["train"][kind]
    training = TrainingSettings(
        generative_loss=kind,
        generative_factor=case["factor"],
        temperature=case["temperature"],
        query_max_length=case["query_max_len"],
        passage_max_length=case["passage_max_len"],
        max_seq_length=case["generative_max_len"],
        chunk_size=3,
        grad_checkpoint=recompute,
    )
    result = compute(folder / "checkpoint", golden["train_batch"], training)
    assert result.losses["embedding"] == pytest.approx(case["loss_emb"], rel=1e-4)
    assert result.losses["generative"] * case["factor"] == pytest.approx(case["loss_gen"], rel=1e-4)
    assert result.losses["total"] == pytest.approx(case["loss"], rel=1e-4)
    gradients = dict(named_arrays(result.gradients))
    norm = np.sqrt(sum(number((value.astype(mx.float32) ** 2).sum()) for value in gradients.values()))
    assert norm == pytest.approx(case["grad_norm"], rel=1e-3)
    names = [name for name in arrays if name.startswith(f"train/{kind}/grad/")]
    assert len(names) == 4
    for name in names:
        ours, theirs = np.array(gradients["model." + name.rpartition("/")[2]]), arrays[name]
        ours = np.linalg.norm(ours, axis=1) if theirs.ndim == 1 and ours.ndim == 2 else ours
        assert np.linalg.norm(ours - theirs) < 1e-3 * np.linalg.norm(theirs), name


def test_official_representations(shared: Path) -> None:
    arrays = np.load(shared / "golden" / "mistral" / "golden.npz")
    golden = json.loads((shared / "golden" / "mistral" / "golden.json").read_text(encoding="utf-8"))
    query, passage = (mx.array(arrays[f"train/mixed/{name}_reps"]) for name in "qp")
    loss = losses.contrastive_loss(query, passage, temperature=0.02)
    assert loss.item() == pytest.approx(golden["train"]["mixed"]["loss_emb"], rel=1e-4)


BATCH = {"query": QUERIES, "passage": PASSAGES, "generative": CHATS}


@pytest.mark.parametrize("kind", ["mistral", "mixtral"])
def test_losses_equal_the_numpy_reference(tiny_model: Path, tiny_mixtral: Path, kind: str) -> None:
    """Without the official numbers: the model and both losses computed by an implementation of their own."""
    folder = {"mistral": tiny_model, "mixtral": tiny_mixtral}[kind]
    weights = reference.load_weights(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    tokenizer = load(ModelChoice(folder)).tokenizer._tokenizer

    def vector(instruction: str, text: str) -> Any:
        prompt = f"<|user|>\n{instruction.rstrip(':')}\n<|embed|>\n" if instruction else "<|embed|>\n"
        skipped = len(tokenizer.encode(prompt))
        return reference.embed(weights, config, tokenizer.encode(prompt + text), skipped=skipped)

    queries = np.stack([vector(*query) for query in QUERIES])
    scores = queries @ np.stack([vector("", text) for text in PASSAGES]).T / 0.02
    entropy = np.log(np.exp(scores).sum(1)) - scores[np.arange(3), [0, 2, 4]]
    total, tokens = 0.0, 0
    for turns in CHATS:
        text = "\n".join(
            f"<|user|>\n{user}\n<|assistant|>\n{answer}</s>"
            for user, answer in zip(turns[::2], turns[1::2], strict=True)
        )
        ids = tokenizer.encode("<s>" + text, add_special_tokens=False)
        logits = reference.logits(weights, config, ids)
        pieces = ["<s>"]
        for i, turn in enumerate(turns):  # where each answer begins and ends
            pieces.append(("\n" if i else "") + f"<|user|>\n{turn}\n<|assistant|>\n" if i % 2 == 0 else turn + "</s>")
            if i % 2:
                begin, end = (
                    len(tokenizer.encode("".join(pieces[:n]), add_special_tokens=False))
                    for n in (len(pieces) - 1, len(pieces))
                )
                for at in range(begin, end):
                    row = logits[at - 1]
                    total += np.log(np.exp(row - row.max()).sum()) + row.max() - row[ids[at]]
                    tokens += 1
    result = compute(folder, BATCH, TrainingSettings(temperature=0.02))
    assert result.losses["embedding"] == pytest.approx(entropy.mean(), rel=1e-4)
    assert result.losses["generative"] == pytest.approx(total / tokens, rel=1e-4)


@pytest.mark.parametrize("recompute", [False, True])
def test_the_router_loss_does_not_depend_on_chunks(tiny_mixtral: Path, recompute: bool) -> None:
    results = [
        compute(
            tiny_mixtral,
            BATCH,
            TrainingSettings(chunk_size=size, grad_checkpoint=recompute and size == 1),
            router_factor=0.5,
        )
        for size in (8, 1)
    ]
    assert results[0].losses["router"] > 0.9  # two of four experts for each token; 2 x 4 x 1/4 x 1/2 is even
    assert results[1].losses == pytest.approx(results[0].losses, rel=1e-5)
    whole, parts = (dict(named_arrays(result.gradients)) for result in results)
    assert number(mx.abs(whole["model.model.layers.0.block_sparse_moe.gate.weight"]).max()) > 1e-4
    for name, value in whole.items():
        np.testing.assert_allclose(value, parts[name], atol=1e-5 * number(mx.abs(value).max()) + 1e-6, err_msg=name)
    total = results[0].losses["embedding"] + results[0].losses["generative"] + 0.5 * results[0].losses["router"]
    assert results[0].losses["total"] == pytest.approx(total, rel=1e-5)


def test_the_router_loss_is_hugging_faces() -> None:
    """``load_balancing_loss_func`` of transformers' modeling_mixtral.py, all layers as one, without padding."""
    experts, chosen, layers = 5, 2, 3
    logits = [random(2, 6, experts, seed=seed) for seed in range(layers)]
    real = np.arange(6) < np.array([[6], [4]])
    rows = np.concatenate([np.array(one, dtype=np.float64)[real] for one in logits])  # (layers x tokens, experts)
    weights = np.exp(rows) / np.exp(rows).sum(1, keepdims=True)
    mask = np.eye(experts)[np.argsort(-weights, axis=1)[:, :chosen]]  # (layers x tokens, chosen, experts)
    tokens_per_expert, probability_per_expert = mask.mean(0), weights.mean(0)
    expected = (tokens_per_expert * probability_per_expert[None]).sum() * experts
    sums = expert_sums(logits, mx.array(real), chosen)
    tokens = real.sum() * layers
    assert losses.balance_loss(sums[0] / tokens, sums[1] / tokens).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["mixed", "token"])
def test_accumulated_generation_equals_the_whole_batch(tiny_model: Path, kind: str) -> None:
    """Rows of very different lengths: a mean of the chunks' means would be another loss."""
    loaded = load(ModelChoice(tiny_model, dtype="float32"))
    rng = np.random.default_rng(0)
    chats = []
    for length, learned in ((40, 3), (9, 8), (25, 20), (12, 1), (30, 15)):
        ids = rng.integers(3, 384, length).astype(np.int32)
        chats.append(TokenizedChat(ids, np.arange(length) >= length - learned))
    labels, padded = np.full((5, 40), losses.IGNORED), np.zeros((5, 40), dtype=np.int32)
    for row, chat in enumerate(chats):
        padded[row, : len(chat.ids)] = chat.ids
        labels[row, : len(chat.ids)][chat.learned] = chat.ids[chat.learned]
    trainee = Trainee(loaded.model)

    def whole(ids: mx.array) -> mx.array:
        return losses.next_token_loss(trainee.model(ids), mx.array(labels), kind=kind)

    expected, gradients = nn.value_and_grad(trainee, whole)(mx.array(padded))
    for size in (1, 2, 100):
        training = TrainingSettings(chunk_size=size, generative_loss=kind)
        step = TrainingStep(trainee, training, Settings(), world=World())
        found = step.generative(chats, seed=0)
        assert found.losses["generative"] == pytest.approx(expected.item(), rel=1e-5)
        for (name, ours), (_, theirs) in zip(named_arrays(found.gradients), named_arrays(gradients), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-5 * number(mx.abs(theirs).max()) + 1e-7, err_msg=name)


def test_recomputation_does_not_nest(tiny_model: Path) -> None:
    model, other = load(ModelChoice(tiny_model)).model, load(ModelChoice(tiny_model)).model
    plain = type(model.layers[0])
    for _ in range(2):
        checkpoint_layers(model.layers)
        kinds = {type(layer) for layer in model.layers}
        assert len(kinds) == 1 and kinds.pop().__mro__[1] is plain
    assert type(other.layers[0]) is plain, "no other model of the process is changed"


def test_balance_loss_is_lowest_where_experts_are_even() -> None:
    even = losses.balance_loss(mx.full((4,), 0.25), mx.full((4,), 0.5))
    uneven = losses.balance_loss(mx.array([0.7, 0.1, 0.1, 0.1]), mx.array([1.0, 0.4, 0.3, 0.3]))
    assert even.item() == pytest.approx(2.0) and number(uneven) > number(even)


def test_next_token_kinds_and_masks() -> None:
    logits, labels = random(2, 5, 7), mx.array([[1, 2, 3, -100, -100], [-100, -100, 4, 5, 6]])
    mixed = losses.next_token_loss(logits, labels)
    token = losses.next_token_loss(logits, labels, kind="token", factor=0.5)
    rows = np.array(logits, dtype=np.float64)
    entropy = sum(
        np.log(np.exp(rows[b, i - 1]).sum()) - rows[b, i - 1, label]
        for b, i, label in [(0, 1, 2), (0, 2, 3), (1, 2, 4), (1, 3, 5), (1, 4, 6)]
    )
    assert mixed.item() == pytest.approx(entropy / 5, rel=1e-5)
    assert token.item() == pytest.approx(entropy / 2 * 0.5, rel=1e-5)
    assert losses.next_token_loss(logits, mx.full((2, 5), -100)).item() == 0
    with pytest.raises(ArgumentError, match="mixed, token"):
        losses.next_token_loss(logits, labels, kind="sum")


def test_contrastive_options() -> None:
    query, passage = losses.normalize(random(3, 8)), losses.normalize(random(6, 8, seed=1))
    scores = np.array(query @ passage.T, dtype=np.float64) / 0.1

    def entropy(rows: Any, targets: list[int]) -> float:
        return float(np.mean(np.log(np.exp(rows).sum(1)) - rows[np.arange(len(targets)), targets]))

    plain = losses.contrastive_loss(query, passage, temperature=0.1)
    assert plain.item() == pytest.approx(entropy(scores, [0, 2, 4]), rel=1e-5)
    both = losses.contrastive_loss(query, passage, temperature=0.1, symmetric=True)
    back = entropy(scores[:, [0, 2, 4]].T, [0, 1, 2])
    assert both.item() == pytest.approx((plain.item() + back) / 2, rel=1e-5)
    # Passage 3 is the text of passage 0: no negative of query 0, but one of the others.
    filtered = scores.copy()
    filtered[0, 3] = -np.inf
    found = losses.contrastive_loss(query, passage, temperature=0.1, identities=mx.array([7, 1, 2, 7, 3, 4]))
    assert found.item() == pytest.approx(entropy(filtered, [0, 2, 4]), rel=1e-5)
    margin = np.where(scores > scores[np.arange(3), [0, 2, 4]][:, None] + 0.05 / 0.1, -np.inf, scores)
    margin[np.arange(3), [0, 2, 4]] = scores[np.arange(3), [0, 2, 4]]
    found = losses.contrastive_loss(query, passage, temperature=0.1, false_negative_margin=0.05)
    assert np.isinf(margin).any() and found.item() == pytest.approx(entropy(margin, [0, 2, 4]), rel=1e-5)
    parts = [
        losses.contrastive_loss(losses.normalize(query[:, :n]), losses.normalize(passage[:, :n]), temperature=0.1)
        for n in (2, 4)
    ]
    cut = losses.matryoshka_loss(query, passage, [2, 4], temperature=0.1)
    assert cut.item() == pytest.approx(sum(number(part) for part in parts) / 2, rel=1e-5)
    with pytest.raises(ArgumentError, match="7 passages cannot be shared out evenly among 3 queries"):
        losses.contrastive_loss(query, random(7, 8), temperature=0.1)


def test_distillation_losses() -> None:
    student = random(5, 8)
    assert losses.cosine_distillation(student, 3 * student).item() == pytest.approx(0, abs=1e-6)
    assert losses.cosine_distillation(student, -student).item() == pytest.approx(2, rel=1e-5)
    rotation, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(8, 8)))
    turned = student @ mx.array(rotation.astype(np.float32))
    assert losses.similarity_distillation(student, turned).item() == pytest.approx(0, abs=1e-6)
    assert number(losses.similarity_distillation(student, random(5, 3, seed=2))) > 0.1
