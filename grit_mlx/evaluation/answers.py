"""How well a model predicts given answers: the mean loss of their tokens, as training computes it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from grit_mlx.datasets.tokens import RowError, TokenizedChat, tokenize_chats
from grit_mlx.errors import DocumentError, ModeError
from grit_mlx.evaluation.sets import AnswerSet
from grit_mlx.gritlm import GritLM
from grit_mlx.model.batching import plan_batches
from grit_mlx.model.numpy_linear import through_numpy
from grit_mlx.model.passes import pad
from grit_mlx.progress import Progress

__all__ = ["AnswerLoss", "answer_loss"]

# Limit of a batch's logits, in bytes; a single row may exceed it.
_LOGITS_BYTES = 256 << 20


@dataclass(frozen=True)
class AnswerLoss:
    """The loss of a set of answers.

    Attributes:
        nats: the sum over all tokens of answers.
        tokens: their number, including the token that ends each answer.
        bytes: of the answers' text in UTF-8.
        rows: number of rows that were scored.
        left_out: number of rows whose answer lies beyond ``max_tokens``.
    """

    nats: float
    tokens: int
    bytes: int
    rows: int
    left_out: int

    @property
    def perplexity(self) -> float:
        """Exponential of the mean loss per token; comparable between models with the same tokenizer only."""
        return math.exp(self.nats / self.tokens)

    @property
    def bits_per_byte(self) -> float:
        """Loss per byte of text; comparable between all models."""
        return self.nats / math.log(2) / self.bytes


def answer_loss(
    model: GritLM, data: AnswerSet, *, max_tokens: int = 1024, progress: Progress | None = None
) -> AnswerLoss:
    """The loss of the answers of a set, in causal mode.

    Args:
        model: loaded in mode ``"unified"`` or ``"generative"``.
        data: of conversations all of the assistant's turns count, of plain texts every token.
        max_tokens: maximum number of tokens of a row, question included.
        progress: called with rows done and rows in all.

    Raises:
        ModeError: the model was loaded for embedding only.
        DocumentError: the chat template refuses a row, or no row has an answer within ``max_tokens``.
    """
    if model.mode == "embedding":
        raise ModeError("This model was loaded with mode='embedding' and predicts nothing: load it with 'unified'.")
    try:
        tokenized = tokenize_chats(model.tokenizer, data.rows, max_length=max_tokens)
    except RowError as error:
        line = data.lines[error.row]
        raise DocumentError(f"{data.path}, line {line}: {error}.", path=data.path, line=line) from error
    rows = [row for row in tokenized if row is not None]
    if not rows:
        raise DocumentError(f"{data.path} has no answer within the first {max_tokens} tokens.", path=data.path)
    vocabulary = int(model.model(mx.array([[0]])).shape[-1])
    budget = max(1, _LOGITS_BYTES // (4 * vocabulary))
    nats = 0.0
    done = 0
    for batch in plan_batches([len(row.ids) for row in rows], token_budget=budget):
        nats += _loss(model, [rows[i] for i in batch])
        done += len(batch)
        if progress is not None:
            progress(done, len(rows))
    tokens = sum(int(row.learned[1:].sum()) for row in rows)
    return AnswerLoss(nats, tokens, sum(_bytes(model, row) for row in rows), len(rows), len(tokenized) - len(rows))


@through_numpy()
def _loss(model: GritLM, rows: list[TokenizedChat]) -> float:
    """Sum of the losses of a batch. Causal attention never sees the padding, which follows the rows."""
    (ids, _), (counted, _) = pad([row.ids for row in rows]), pad([row.learned for row in rows])
    logits = model.model(mx.array(ids))[:, :-1].astype(mx.float32)  # (B, L - 1, V); position i predicts token i + 1
    entropy = nn.losses.cross_entropy(logits, mx.array(ids[:, 1:]))
    return float(mx.sum(entropy * mx.array(counted[:, 1:])))


def _bytes(model: GritLM, row: TokenizedChat) -> int:
    learned = row.ids[1:][row.learned[1:]]
    text = model.tokenizer.decode(learned.tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return len(text.encode("utf-8"))
