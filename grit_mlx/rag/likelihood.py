"""Reranking with the same weights: how likely the model finds a question after a document."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from grit_mlx.model import threads
from grit_mlx.model.caches import TextCache, copy_cache
from grit_mlx.model.numpy_linear import through_numpy
from grit_mlx.model.prompts import literal_tokens, rag_prompt
from grit_mlx.rag.encoding import Encoder

__all__ = ["likelihood", "mean_likelihood", "question_tokens"]


@threads.computes
@through_numpy()
def likelihood(encoder: Encoder, question: str, layers: TextCache) -> float:
    """The mean log-probability of a question's tokens after a document (UPR, Sachan et al. 2022).

    Args:
        encoder: with the model.
        question: the question.
        layers: the document's keys and values, from ``encoder``; they are not changed.
    """
    tokens, start = question_tokens(encoder, question)
    logits = encoder.model.model(mx.array([tokens[:-1]]), cache=copy_cache(layers))[0].astype(mx.float32)
    return mean_likelihood(logits, tokens, start)


def question_tokens(encoder: Encoder, question: str) -> tuple[list[int], int]:
    """What follows a document: a question's tokens with those before it, and where its own begin."""
    tokenizer, asked = encoder.model.tokenizer, encoder.neutralised(question)
    before = rag_prompt("doc", query="\0").split("\0")[0] if encoder.in_grit else "\n\nQuestion: "
    frame, tokens = literal_tokens(tokenizer, before), literal_tokens(tokenizer, before + asked)
    return tokens, min(len(frame), len(tokens) - 1)


def mean_likelihood(logits: mx.array, tokens: Sequence[int], start: int) -> float:
    """The mean log-probability of the tokens from ``start`` on; ``logits`` ``(T - 1, V)`` are of those after them."""
    chosen = mx.take_along_axis(logits, mx.array(list(tokens[1:]))[:, None], axis=-1)[:, 0]
    score: Any = mx.mean((chosen - mx.logsumexp(logits, axis=-1))[start - 1 :]).item()
    return float(score)
