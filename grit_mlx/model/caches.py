"""The keys and values of one text, as mlx-lm's caches.

Shapes: B batch, H heads, L length, D head size.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import mlx.core as mx

if TYPE_CHECKING:
    from mlx_lm.models.cache import KVCache

__all__ = ["TextCache", "concatenate_caches", "copy_cache", "held", "layer_cache", "split_rows"]

# One cache for each layer.
TextCache: TypeAlias = "list[KVCache]"


def layer_cache(keys: mx.array, values: mx.array) -> KVCache:
    """mlx-lm's cache of one layer that holds these keys and values ``(1, H, L, D)``."""
    from mlx_lm.models.cache import KVCache  # brings transformers, which looking at a store does not need

    cache = KVCache()
    cache.keys, cache.values, cache.offset = keys, values, keys.shape[2]
    return cache


def held(cache: KVCache) -> tuple[mx.array, mx.array]:
    """The keys and values ``(1, H, L, D)`` that a layer's cache holds, without the room that it keeps behind them."""
    assert cache.keys is not None and cache.values is not None
    return cache.keys[..., : cache.offset, :], cache.values[..., : cache.offset, :]


def split_rows(caches: Sequence[KVCache], lengths: Sequence[int]) -> list[TextCache]:
    """The cache of each row of a batch, without its padding: what the text would have left behind alone.

    Args:
        caches: one for each layer, filled by one pass.
        lengths: number of tokens of each row; its padding follows them.
    """
    # Contiguous copies: a slice would hold on to the whole batch and to mlx-lm's steps of 256 tokens.
    rows = [
        [layer_cache(*(mx.contiguous(array[row : row + 1, :, :length]) for array in held(cache))) for cache in caches]
        for row, length in enumerate(lengths)
    ]
    mx.eval([held(cache) for row in rows for cache in row])
    return rows


def concatenate_caches(*texts: TextCache) -> TextCache:
    """The keys and values of several texts, one after the other.

    As in the official code, keys keep the rotation of their own text, so positions overlap; generation starts at
    the total length.
    """
    layers = zip(*texts, strict=True)
    pairs = (zip(*map(held, parts), strict=True) for parts in layers)
    return [layer_cache(*(mx.concatenate(list(arrays), axis=2) for arrays in pair)) for pair in pairs]


def copy_cache(cache: Sequence[Any]) -> list[Any]:
    """A text's cache that can grow without changing the original."""
    from mlx_lm.models.cache import KVCache

    return [
        layer_cache(*held(layer)) if isinstance(layer, KVCache) and layer.keys is not None else copy.deepcopy(layer)
        for layer in cache
    ]
