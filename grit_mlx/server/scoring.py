"""How likely the model finds a text: the tokens of a prompt, and queries after documents. In steps, for the engine."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import make_prompt_cache

from grit_mlx.model import threads
from grit_mlx.model.numpy_linear import through_numpy
from grit_mlx.rag.encoding import Encoder
from grit_mlx.rag.likelihood import likelihood
from grit_mlx.server.decoding import likeliest

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
    cache: Any = make_prompt_cache(model.model)
    for start in range(0, len(tokens) - 1, _CHUNK):
        read = list(tokens[start : start + _CHUNK])
        following = tokens[start + 1 : start + 1 + _CHUNK]
        found += threads.run(_scores, model, read[: len(following)], following, top, cache)
        yield
    return found


@through_numpy()
def _scores(model: GritLM, read: Sequence[int], following: Sequence[int], top: int, cache: Any) -> list[Scored]:
    logits = model.model(mx.array([list(read)]), cache=cache)[0].astype(mx.float32)
    logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    mx.eval(logprobs, [layer.state for layer in cache])
    scores = []
    for row, token in zip(np.array(logprobs), following, strict=True):
        best, own = likeliest(row, top, token)
        scores.append(Scored(own, best))
    return scores


def likelihoods(model: GritLM, query: str, documents: Sequence[str]) -> Generator[None, None, list[float]]:
    """For each document the geometric mean of the probabilities of the query's tokens after it."""
    encoder = Encoder(model)
    scores = []
    for document in documents:
        _, [layers] = encoder.vectors_and_caches([document])
        yield
        scores.append(float(np.exp(likelihood(encoder, query, layers))))
        yield
    return scores
