"""The loss of answers, against training's loss of the same rows."""

from __future__ import annotations

import math
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from grit_mlx import GritLM
from grit_mlx.datasets.tokens import tokenize_chats
from grit_mlx.errors import DocumentError, ModeError
from grit_mlx.evaluation import answers as module
from grit_mlx.evaluation.answers import AnswerLoss, answer_loss
from grit_mlx.evaluation.sets import AnswerSet, load_set
from grit_mlx.training.losses import IGNORED, next_token_sum


def loaded(path: Path) -> AnswerSet:
    found = load_set(path)
    assert isinstance(found, AnswerSet)
    return found


@pytest.mark.parametrize("logits_bytes", [1, 256 << 20])
def test_it_is_trainings_loss(
    answers: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, logits_bytes: int
) -> None:
    monkeypatch.setattr(module, "_LOGITS_BYTES", logits_bytes)  # one row at a time, or all together
    model = GritLM(tiny_model)
    data = loaded(answers)
    nats, tokens = 0.0, 0
    for row in tokenize_chats(model.tokenizer, data.rows, max_length=1024):
        assert row is not None
        labels = np.where(row.learned, row.ids, IGNORED)
        nats += float(next_token_sum(model.model(mx.array(row.ids[None])), mx.array(labels[None])))
        tokens += int(row.learned[1:].sum())
    found = answer_loss(model, data)
    assert (found.tokens, found.rows, found.left_out) == (tokens, 3, 0)
    assert found.nats == pytest.approx(nats, rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(nats / tokens), rel=1e-5)
    learned = ["A fin below the hull.", "A fungus.", "Baked dough.", "The Moon circles the Earth."]
    assert found.bytes == sum(map(len, learned))


def test_bits_per_byte() -> None:
    assert AnswerLoss(nats=8 * math.log(2), tokens=4, bytes=2, rows=1, left_out=0).bits_per_byte == pytest.approx(4)


def test_what_cannot_be_scored(answers: Path, tiny_model: Path) -> None:
    data = loaded(answers)
    with pytest.raises(ModeError, match="predicts nothing"):
        answer_loss(GritLM(tiny_model, mode="embedding"), data)
    model = GritLM(tiny_model)
    with pytest.raises(DocumentError, match="has no answer within the first 1 tokens"):
        answer_loss(model, data, max_tokens=1)
    assert answer_loss(model, data, max_tokens=12).left_out > 0
    model.tokenizer.chat_template = "{{ raise_exception('no') }}"
    with pytest.raises(DocumentError, match=r"answers\.jsonl, line 1: the chat template refuses it"):
        answer_loss(model, data)
