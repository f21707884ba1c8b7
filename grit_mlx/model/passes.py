"""One pass: a padded batch of tokens to vectors, for embedding and for training alike.

Shapes: B batch, L length, E hidden size, P size of a vector.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.cache import make_prompt_cache
from numpy.typing import NDArray

from grit_mlx.errors import TokenizerError
from grit_mlx.model.attention import decoder_of, document_caches, embedding_caches
from grit_mlx.model.pooling import pool
from grit_mlx.model.settings import Settings

__all__ = ["pad", "pooled_tokens", "represent"]


def pad(
    sequences: Sequence[Any], *, multiple: int = 1, rows: int | None = None
) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Sequences of integers as one array, padded on the right with 0.

    Args:
        sequences: at least one.
        multiple: L is rounded up to a multiple of this.
        rows: of the table that the numbers are looked up in; None if they are not token ids.

    Returns:
        The numbers ``(B, L)``, and ``(B, L)`` true on numbers and false on padding.

    Raises:
        TokenizerError: there is no such row; mlx would read other memory.
    """
    lengths = np.array([len(sequence) for sequence in sequences])
    real = np.arange(-(-int(lengths.max()) // multiple) * multiple) < lengths[:, None]
    padded = np.zeros(real.shape, dtype=np.int32)
    padded[real] = np.concatenate(sequences)
    if rows is not None and not 0 <= padded.min() <= padded.max() < rows:
        raise TokenizerError(f"A token has the id {padded.max()}; the model has {rows:,}, from 0 to {rows - 1}.")
    return padded, real


def pooled_tokens(real: NDArray[np.bool_], skipped: Sequence[int]) -> NDArray[np.bool_]:
    """``real`` without the first ``skipped`` tokens of each row, ``(B, L)``."""
    pooled: NDArray[np.bool_] = real & (np.arange(real.shape[1]) >= np.array(skipped)[:, None])
    return pooled


def represent(
    model: nn.Module,
    ids: mx.array,
    real: mx.array | None,
    pooled: mx.array,
    *,
    settings: Settings,
    projection: Callable[[mx.array], mx.array] | None = None,
    keep: bool = False,
) -> tuple[mx.array, list[Any]]:
    """Vectors of a batch, before they are normalised.

    Args:
        model: mlx-lm's model.
        ids: ``(B, L)``.
        real: ``(B, L)``, false on padding; None if nothing is padded.
        pooled: ``(B, L)``, see ``pooled_tokens``.
        settings: pooling and attention.
        projection: the optional linear map from E to P. Every pooling is a weighted mean, so mapping the pooled state
            equals pooling the mapped states, which is what the official code does, at a fraction of the work.
        keep: whether the caches keep keys and values.

    Returns:
        ``(B, P)`` float32, and the cache of each layer.
    """
    make_caches = document_caches if keep else embedding_caches
    caches: Any = make_caches(len(make_prompt_cache(model)), real, causal=settings.causal)
    vectors = pool(decoder_of(model)(ids, cache=caches), pooled, settings.pooling)
    return vectors if projection is None else projection(vectors), caches
