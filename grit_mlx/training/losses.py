"""The training losses, as pure functions of arrays.

Shapes: Q queries, P = Q x G passages in groups of G (the positive first), E embedding size, B batch, L length,
V vocabulary. Source of the formulas: the official GritLM's ``training/model.py``; additions are marked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from grit_mlx.errors import ArgumentError
from grit_mlx.training.settings import GENERATIVE_KINDS

__all__ = [
    "IGNORED",
    "balance_loss",
    "contrastive_loss",
    "cosine_distillation",
    "matryoshka_loss",
    "next_token_loss",
    "next_token_sum",
    "normalize",
    "similarity_distillation",
]

# The label of a token that takes no part in the loss.
IGNORED = -100


def normalize(vectors: mx.array) -> mx.array:
    """``(N, E)`` brought to length 1, with PyTorch's eps of 1e-12."""
    return vectors / mx.maximum(mx.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def contrastive_loss(
    query: mx.array,
    passage: mx.array,
    *,
    temperature: float | mx.array,
    symmetric: bool = False,
    identities: mx.array | None = None,
    answered: tuple[mx.array, mx.array] | None = None,
    false_negative_margin: float | None = None,
) -> mx.array:
    """Cross entropy of each query's own passage among all passages of the batch.

    Args:
        query: ``(Q, E)``, as they are compared: normalise them first for cosines.
        passage: ``(Q*G, E)``; those of query i are rows ``i*G`` to ``i*G + G - 1``, its positive first.
        temperature: what the scores are divided by.
        symmetric: also let each positive find its query, and take the mean of both (not in the official code).
        identities: ``(Q*G,)`` integers, equal for equal texts. A passage equal to a query's own positive is not a
            negative for it and is left out (not in the official code).
        answered: ``(Q,)`` and ``(Q*G,)`` integers: each query, and the query that a passage is a right answer to. A
            right answer to an equal query is not a negative and is left out (not in the official code).
        false_negative_margin: leave out negatives that score above the positive plus this, which are likely to
            be right answers as well (not in the official code; cosine units, before the temperature).

    Returns:
        A scalar, float32.

    Raises:
        ArgumentError: the passages do not come in groups of one size.
    """
    Q, P = query.shape[0], passage.shape[0]
    if P == 0 or P % Q:
        raise ArgumentError(f"{P} passages cannot be shared out evenly among {Q} queries.")
    scores = (query @ passage.T).astype(mx.float32)  # (Q, P)
    positives = mx.arange(Q) * (P // Q)
    left_out = _false_negatives(scores, positives, identities, answered, false_negative_margin)
    logits = scores / temperature
    if left_out is not None:
        logits = mx.where(left_out, -mx.inf, logits)
    loss = nn.losses.cross_entropy(logits, positives, reduction="mean")
    if symmetric:
        back = logits[:, positives].T  # (Q positives, Q queries)
        loss = (loss + nn.losses.cross_entropy(back, mx.arange(Q), reduction="mean")) / 2
    return loss


def _false_negatives(
    scores: mx.array,
    positives: mx.array,
    identities: mx.array | None,
    answered: tuple[mx.array, mx.array] | None,
    margin: float | None,
) -> mx.array | None:
    """``(Q, P)`` boolean, true on passages that must not count as negatives; None if all do."""
    left_out = None
    if identities is not None:
        left_out = identities[positives][:, None] == identities[None, :]
    if answered is not None:
        right = answered[0][:, None] == answered[1][None, :]
        left_out = right if left_out is None else left_out | right
    if margin is not None:
        own = mx.take_along_axis(scores, positives[:, None], axis=1)
        close = mx.stop_gradient(scores) > mx.stop_gradient(own) + margin
        left_out = close if left_out is None else left_out | close
    if left_out is None:
        return None
    return left_out & (mx.arange(scores.shape[1])[None, :] != positives[:, None])


def matryoshka_loss(query: mx.array, passage: mx.array, dimensions: Sequence[int], **options: Any) -> mx.array:
    """The mean of ``contrastive_loss`` over vectors cut to several sizes, each normalised again.

    Source: Kusupati et al. 2022, Matryoshka Representation Learning, with equal weights.
    """
    cut = [(normalize(query[:, :size]), normalize(passage[:, :size])) for size in dimensions]
    return mx.stack([contrastive_loss(*pair, **options) for pair in cut]).mean()


def cosine_distillation(student: mx.array, teacher: mx.array) -> mx.array:
    """Mean of 1 - cosine between vectors ``(N, E)`` and their targets ``(N, E)``."""
    return mx.mean(1 - mx.sum(normalize(student) * normalize(teacher), axis=-1))


def similarity_distillation(student: mx.array, teacher: mx.array) -> mx.array:
    """Mean squared difference of all pairwise cosines of ``(N, E)`` from those of ``(N, T)``; sizes may differ."""
    ours, theirs = normalize(student), normalize(teacher)
    return mx.mean(mx.square(ours @ ours.T - theirs @ theirs.T))


def next_token_sum(logits: mx.array, labels: mx.array) -> mx.array:
    """Sum of the cross entropy of each next token; the rest is as for ``next_token_loss``."""
    targets = labels[:, 1:]  # position i predicts token i + 1
    counted = targets != IGNORED
    entropy = nn.losses.cross_entropy(logits[:, :-1].astype(mx.float32), mx.where(counted, targets, 0))
    return mx.sum(entropy * counted)


def next_token_loss(logits: mx.array, labels: mx.array, *, kind: str = "mixed", factor: float = 1.0) -> mx.array:
    """The generative loss.

    Args:
        logits: ``(B, L, V)``; those at position i are for token i + 1.
        labels: ``(B, L)``, the tokens themselves, or ``IGNORED``.
        kind: see ``settings.GENERATIVE_KINDS``.
        factor: what the loss is multiplied by.

    Returns:
        A scalar, float32; 0 if no token takes part.

    Raises:
        ArgumentError: an unknown kind.
    """
    if kind not in GENERATIVE_KINDS:
        raise ArgumentError(f"Unknown generative loss {kind!r}: use one of {', '.join(GENERATIVE_KINDS)}.")
    learned = mx.maximum(mx.sum(labels[:, 1:] != IGNORED), 1)
    return next_token_sum(logits, labels) / (labels.shape[0] if kind == "token" else learned) * factor


def balance_loss(probability: mx.array, share: mx.array) -> mx.array:
    """A mixture's load-balancing loss: low where tokens are spread evenly over the experts.

    Source: Switch Transformer, equations 4 to 6, as Hugging Face computes it for Mixtral (all layers as one).

    Args:
        probability: ``(X,)`` mean probability that the router gives each expert; this is what learns.
        share: ``(X,)`` tokens that each expert was chosen for / tokens; it has no gradient.
    """
    return mx.sum(probability * mx.stop_gradient(share)) * probability.shape[0]
