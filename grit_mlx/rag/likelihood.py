"""Reranking with the same weights: how likely the model finds a question after each passage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from grit_mlx.model import threads
from grit_mlx.model.caches import copy_cache
from grit_mlx.model.prompts import literal_tokens, rag_prompt

if TYPE_CHECKING:
    from grit_mlx.rag.answering import Answerer
    from grit_mlx.rag.prefix import Document

__all__ = ["likelihoods"]


@threads.computes
def likelihoods(answerer: Answerer, question: str, documents: Sequence[Document]) -> list[float]:
    """The mean log-probability of the question's tokens after each document.

    The score is the query likelihood of Sachan et al. 2022 (UPR). What is computed of the documents is kept in the
    answerer's caches, if it has any, for the answer.
    """
    tokenizer = answerer.model.tokenizer
    asked = answerer.encoder.neutralised(question)
    frame = literal_tokens(tokenizer, rag_prompt("doc", query="\0").split("\0")[0])
    tokens = literal_tokens(tokenizer, rag_prompt("doc", query=asked).split(asked)[0] + asked)
    start = min(len(frame), len(tokens) - 1)
    scores = []
    for layers in answerer.prefixes.documents(documents):
        logits = answerer.model.model(mx.array([tokens[:-1]]), cache=copy_cache(layers))[0].astype(mx.float32)
        chosen = mx.take_along_axis(logits, mx.array(tokens[1:])[:, None], axis=-1)[:, 0]
        score: Any = mx.mean((chosen - mx.logsumexp(logits, axis=-1))[start - 1 :]).item()
        scores.append(float(score))
    return scores
