"""How likely the model finds a text: the tokens of a prompt, and queries after documents. In steps, for the engine."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import mlx.core as mx
import numpy as np

from grit_mlx.model import threads
from grit_mlx.rag.encoding import Encoder
from grit_mlx.rag.likelihood import mean_likelihood, question_tokens
from grit_mlx.server.decoding import likeliest
from grit_mlx.server.reading import Reading

if TYPE_CHECKING:
    from grit_mlx.gritlm import GritLM

__all__ = ["Scored", "likelihoods", "scored"]

# Tokens that are read at a time: their logits are as many rows of the vocabulary.
_CHUNK: Final = 128


@dataclass(frozen=True)
class Scored:
    """A token of a prompt.

    Attributes:
        logprob: its log-probability after those before it; None for the first.
        top: the likeliest tokens in its place, each with its log-probability.
    """

    logprob: float | None
    top: Sequence[tuple[int, float]]


def scored(model: GritLM, tokens: Sequence[int], top: int) -> Generator[None, None, list[Scored]]:
    """Log-probabilities of the tokens of a prompt.

    Args:
        model: reads.
        tokens: the prompt.
        top: how many of the likeliest tokens to report for each.
    """
    found = [Scored(None, ())]
    with closing(Reading(model)) as reading:
        for start in range(0, len(tokens) - 1, _CHUNK):
            read = list(tokens[start : start + _CHUNK])
            following = tokens[start + 1 : start + 1 + _CHUNK]
            found += threads.run(_scores, reading, read[: len(following)], following, top)
            yield
    return found


def _scores(reading: Reading, read: Sequence[int], following: Sequence[int], top: int) -> list[Scored]:
    logits = reading.logits(read)
    logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    scores = []
    for row, token in zip(np.array(logprobs), following, strict=True):
        best, own = likeliest(row, top, token)
        scores.append(Scored(own, best))
    return scores


def likelihoods(model: GritLM, query: str, documents: Sequence[str]) -> Generator[None, None, list[float]]:
    """For each document the geometric mean of the probabilities of the query's tokens after it."""
    encoder = Encoder(model)
    scores = []
    asked, start = question_tokens(encoder, query)

    def likelihood(reading: Reading) -> float:
        return mean_likelihood(reading.logits(asked[:-1]), asked, start)

    for document in documents:
        tokens, settings = encoder.document_tokens(document)
        with closing(Reading(model, tokens, settings=settings)) as reading:
            scores.append(float(np.exp(threads.run(likelihood, reading))))
        yield
    return scores
