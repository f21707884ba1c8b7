"""Reranking with the same weights: how likely the model finds a question after a document."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from grit_mlx.model import threads
from grit_mlx.model.caches import TextCache, copy_cache
from grit_mlx.model.numpy_linear import through_numpy
from grit_mlx.model.prompts import literal_tokens, rag_prompt
from grit_mlx.rag.encoding import Encoder

__all__ = ["likelihood"]


@threads.computes
@through_numpy()
def likelihood(encoder: Encoder, question: str, layers: TextCache) -> float:
    """The mean log-probability of a question's tokens after a document (UPR, Sachan et al. 2022).

    Args:
        encoder: with the model.
        question: the question.
        layers: the document's keys and values, from ``encoder``; they are not changed.
    """
    tokenizer, asked = encoder.model.tokenizer, encoder.neutralised(question)
    before = rag_prompt("doc", query="\0").split("\0")[0] if encoder.in_grit else "\n\nQuestion: "
    frame, tokens = literal_tokens(tokenizer, before), literal_tokens(tokenizer, before + asked)
    start = min(len(frame), len(tokens) - 1)
    logits = encoder.model.model(mx.array([tokens[:-1]]), cache=copy_cache(layers))[0].astype(mx.float32)
    chosen = mx.take_along_axis(logits, mx.array(tokens[1:])[:, None], axis=-1)[:, 0]
    score: Any = mx.mean((chosen - mx.logsumexp(logits, axis=-1))[start - 1 :]).item()
    return float(score)
