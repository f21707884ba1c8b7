"""Both attention modes, as key/value caches for unmodified mlx-lm models. The only place where masks are made.

mlx-lm's decoders take no mask. They ask their cache for one (``cache.make_mask``), hand it new keys and values
(``cache.update_and_fetch``) and read positions off it (``cache.offset``). So the attention mode is a property of
the cache:

- ``EmbeddingCache``: one pass that keeps nothing, bidirectional or causal, with padding on the right.
- ``DocumentCache``: bidirectional for the first pass and causal after it; it keeps keys and values, so that a
  document that was embedded can be continued by generation (the paper's document caching).
- generation alone uses mlx-lm's own caches.

``check_both_modes`` proves on a loaded model that the hook works: an architecture that ignores it would silently
embed causally.

Shapes: B batch, L length, H heads, D head size, E hidden size.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.base import create_causal_mask
from mlx_lm.models.cache import KVCache, make_prompt_cache

from grit_mlx.errors import ArchitectureError, NonFiniteError, Option
from grit_mlx.model.intercept import intercept

__all__ = [
    "DocumentCache",
    "EmbeddingCache",
    "MixedCache",
    "bidirectional_mask",
    "broadcast_masks",
    "check_both_modes",
    "decoder_of",
    "document_caches",
    "embedding_caches",
    "not_finite",
    "table_rows",
]

# As mlx's attention takes it: boolean, "causal", or None to see everything.
Mask = mx.array | str | None

# Where mlx-lm's models keep their decoder, most common first.
_DECODERS = ("model", "language_model.model", "transformer", "backbone")

# What they call their table of token embeddings.
_TABLES = ("embed_tokens", "wte", "tok_embeddings", "word_embeddings", "embeddings", "embedding", "embed_in", "embed")


def bidirectional_mask(length: int, padding: mx.array | None, window: int | None = None) -> mx.array | None:
    """Who sees whom when every token sees every other.

    Args:
        length: L.
        padding: ``(B, L)`` boolean, true on tokens and false on padding; None if nothing is padded.
        window: for layers with a sliding window of W tokens: a token sees W - 1 tokens on *either* side. A causal
            window of W reaches W - 1 back, so no distance occurs that the layer was not trained on.

    Returns:
        ``(B, 1, 1, L)`` or with a window that matters ``(B or 1, 1, L, L)``; None if all is seen. Boolean, because an
        additive mask would need the dtype of the (possibly quantised) embeddings.
    """
    mask = None if padding is None else padding[:, None, None, :]
    if window is not None and window < length:
        positions = mx.arange(length)
        near = mx.abs(positions[:, None] - positions[None, :]) < window
        mask = near[None, None] if mask is None else mask & near
    return mask


class EmbeddingCache:
    """One pass over right-padded sequences that keeps nothing; one object can serve every layer.

    Args:
        padding: ``(B, L)`` boolean, true on tokens; None if nothing is padded.
        causal: the official ``attn="cccc"``. Padding on the right needs no mask then: no token looks ahead.
    """

    offset = 0

    def __init__(self, padding: mx.array | None = None, *, causal: bool = False) -> None:
        self.padding = padding
        self.causal = causal

    def make_mask(self, N: int, return_array: bool = False, window_size: int | None = None) -> Mask:
        """mlx-lm's hook: the mask for ``N`` new tokens."""
        if not self.causal:
            return bidirectional_mask(N, self.padding, window_size)
        if return_array or (window_size is not None and window_size < N):
            return create_causal_mask(N, window_size=window_size)  # type: ignore[no-any-return]
        return "causal" if N > 1 else None

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """mlx-lm's hook: keys and values ``(B, H, L, D)`` to attend to."""
        return keys, values


class MixedCache(EmbeddingCache):
    """One pass in both modes, row by row, so that a batch needs the weights only once; keeps nothing.

    Args:
        padding: ``(B, L)`` boolean, true on tokens.
        causal_rows: ``(B,)`` boolean, true for rows with causal attention.
    """

    def __init__(self, padding: mx.array, causal_rows: mx.array) -> None:
        super().__init__(padding)
        self.causal_rows = causal_rows
        self.asked = False

    def make_mask(self, N: int, return_array: bool = False, window_size: int | None = None) -> Mask:
        """mlx-lm's hook: ``(B, 1, L, L)`` for ``N`` new tokens."""
        self.asked = True
        causal = create_causal_mask(N, window_size=window_size)  # (L, L)
        both = bidirectional_mask(N, self.padding, window_size)  # (B, 1, 1 or L, L)
        assert both is not None
        return mx.where(self.causal_rows[:, None, None, None], causal, both)


class DocumentCache(KVCache):
    """Bidirectional for the first pass, causal after it; keeps keys and values.

    Args:
        padding: as in ``EmbeddingCache``.
        causal: the first pass is causal too (``attn="cccc"``).
    """

    def __init__(self, padding: mx.array | None = None, *, causal: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.first_pass = EmbeddingCache(padding, causal=causal)

    def make_mask(self, N: int, return_array: bool = False, window_size: int | None = None) -> Mask:
        """mlx-lm's hook: the mask for ``N`` new tokens."""
        if self.offset == 0:
            return self.first_pass.make_mask(N, return_array, window_size)
        return super().make_mask(N, return_array=return_array, window_size=window_size)  # type: ignore[no-any-return, no-untyped-call]


def embedding_caches(layers: int, padding: mx.array | None = None, *, causal: bool = False) -> list[EmbeddingCache]:
    """A cache for each layer, for one embedding pass."""
    return [EmbeddingCache(padding, causal=causal)] * layers


def document_caches(layers: int, padding: mx.array | None = None, *, causal: bool = False) -> list[DocumentCache]:
    """A cache for each layer, for one embedding pass whose keys and values are kept."""
    return [DocumentCache(padding, causal=causal) for _ in range(layers)]


def decoder_of(model: nn.Module) -> Callable[..., mx.array]:
    """The part of an mlx-lm model below its head: ``f(ids, cache=...)`` gives normed hidden states ``(B, L, E)``.

    Raises:
        ArchitectureError: it has none of the known names.
    """
    for path in _DECODERS:
        part: Any = model
        for name in path.split("."):
            part = getattr(part, name, None)
        if callable(part):
            return part  # type: ignore[no-any-return]
    raise ArchitectureError(
        f"{_name(model)} cannot embed: grit-mlx does not find its hidden states "
        f"(looked for {', '.join(_DECODERS)}). It can still generate, with mode='generative'."
    )


def broadcast_masks(model: nn.Module) -> None:
    """Let masks of batches reach the scores of architectures that group them: ``(B, K, H // K, L, L)``.

    Works around https://github.com/ml-explore/mlx-lm/pull/1903: a mask ``(B, 1, L, L)`` is broadcast from the right,
    so its batch meets the K key/value heads. That fails, or is silently wrong if both are equal.
    """
    grouped = [
        module
        for _, module in model.named_modules()
        if type(module).__module__.rpartition(".")[2] in _GROUPED and type(module).__name__ == "Attention"
    ]
    intercept([module for module in grouped if _groups(module) > 1], _with_five_axes)


# Architectures that compute scores with an axis for the query heads of each key/value head.
_GROUPED = ("gemma2", "phi3small")


def _groups(attention: Any) -> int:
    groups: int = getattr(attention, "repeats", 0) or getattr(attention, "n_q_per_kv", 1)
    return groups


def _with_five_axes(attention: nn.Module, call: Callable[..., mx.array], x: mx.array, *args: Any, **kwargs: Any) -> Any:
    arguments = inspect.signature(call).bind(x, *args, **kwargs).arguments
    mask = arguments.get("mask")
    if isinstance(mask, mx.array) and mask.ndim == 4:
        arguments["mask"] = mask[:, :, None]
    return call(**arguments)


def table_rows(model: nn.Module) -> int | None:
    """Rows of the table of token embeddings: ids from there on read other memory. None if it is not found."""
    tables = {
        name.rpartition(".")[2]: int(module.weight.shape[0])
        for name, module in reversed(model.named_modules())
        if isinstance(module, nn.Embedding | nn.QuantizedEmbedding)
    }
    return next((tables[name] for name in _TABLES if name in tables), None)


def check_both_modes(model: nn.Module, *, vocabulary_size: int, briefly: bool = False) -> int:
    """Prove that the model attends in both ways, and return E.

    Two sequences that differ only in their last token go through the model. In bidirectional mode the state of
    the first token must differ between them; in causal mode it must not. Then batches of several sizes with texts of
    unequal lengths go through it: padding must change nothing, and a text's own tokens must.

    Args:
        model: mlx-lm's model.
        vocabulary_size: V.
        briefly: look only at as many of the first layers as show each kind of layer, because all take long.

    Raises:
        ArchitectureError: the model ignores the hook, or cannot run with these caches at all.
        NonFiniteError: the states are NaN or infinite, so the weights are damaged or overflow their dtype.
    """
    length = 6
    ids = [(7 * position + 3) % vocabulary_size for position in range(length)]
    other = [*ids[:-1], (ids[-1] + 1) % vocabulary_size]
    tokens = mx.array([ids, other])
    layers = len(make_prompt_cache(model))
    with _shortened(model) if briefly else nullcontext():
        size = _check_modes(model, layers, tokens)
        _check_batches(model, layers, vocabulary_size)
    return size


@contextmanager
def _shortened(model: nn.Module) -> Iterator[None]:
    """The model without its last layers, if each is of the same kind as an earlier one."""
    layers = model.layers
    kinds = [_kind(layer) for layer in layers]
    count = max(kinds.index(kind) for kind in set(kinds)) + 1
    rest = layers[count:]
    del layers[count:]
    try:
        yield
    finally:
        layers.extend(rest)


def _kind(layer: nn.Module) -> tuple[Any, ...]:
    """What tells a layer from others of the same class: the settings of its parts, but not how they are quantised."""
    parts = [
        (name, type(module).__name__, tuple(sorted((k, v) for k, v in vars(module).items() if isinstance(v, _PLAIN))))
        for name, module in layer.named_modules()
        if not any(isinstance(value, mx.array) for value in module.values())
    ]
    return tuple(sorted(parts))


_PLAIN = (bool, int, float, str)


def _check_modes(model: nn.Module, layers: int, tokens: mx.array) -> int:
    """Prove that what the first token of two sequences sees is what each mode lets it see, and return E."""
    states_of = decoder_of(model)
    try:
        causal = states_of(tokens, cache=embedding_caches(layers, causal=True))[:, 0].astype(mx.float32)
        both = states_of(tokens, cache=embedding_caches(layers))[:, 0].astype(mx.float32)
        # One after the other: processes that share a model have to send and receive in one order.
        mx.eval(causal)
        mx.eval(both)
    except (AttributeError, IndexError, KeyError, NotImplementedError, TypeError, ValueError) as error:
        # A hybrid or recurrent model trips over a cache that keeps no state of its own kind.
        raise ArchitectureError(_refusal(model, f"it does not run with these caches ({error})")) from error
    if not mx.all(mx.isfinite(both)).item() or not mx.all(mx.isfinite(causal)).item():
        raise not_finite(f"{_name(model)} computes NaN or infinity on a plain input")
    scale = _largest(both)
    causal_change = _largest(causal[0] - causal[1]) / scale
    both_change = _largest(both[0] - both[1]) / scale
    # Both rows are computed in the same product, so rounding is the same in them; half precision keeps about 3 digits.
    if both_change < 1e-6:
        raise ArchitectureError(_refusal(model, "its first token does not see the last one in bidirectional mode"))
    if causal_change > 1e-2 * both_change and causal_change > 1e-6:
        raise ArchitectureError(_refusal(model, "its first token sees the last one in causal mode"))
    return int(both.shape[-1])


def _check_batches(model: nn.Module, layers: int, vocabulary_size: int) -> None:
    """Prove that in a batch of unequal lengths each text sees its own tokens, and no padding.

    Compared are passes of one shape, so rounding is the same in them, and the choice of experts as well.

    Raises:
        ArchitectureError: it does not, or such a batch cannot be computed.
    """
    states_of = decoder_of(model)
    # A mask that meets the wrong axis goes unnoticed if the batch is as large as that axis.
    heads = {
        getattr(module, name, 0) or 0
        for _, module in model.named_modules()
        for name in ("n_kv_heads", "num_key_value_heads")
    }
    for size in sorted({2, 3, *(heads & set(range(4, 9)))}):
        lengths = [6 - row % 4 for row in range(size)]
        ids = np.add.outer(11 * np.arange(size), 7 * np.arange(6)) + 5
        real = np.arange(6) < np.array(lengths)[:, None]
        last = np.arange(6) == np.array(lengths)[:, None] - 1
        try:
            plain, padded, changed = (
                states_of(mx.array(tokens % vocabulary_size), cache=embedding_caches(layers, mx.array(real)))
                for tokens in (ids, np.where(real, ids, ids + 1), np.where(last, ids + 1, ids))
            )
            firsts = [states[:, 0].astype(mx.float32) for states in (plain, padded, changed)]
            for first in firsts:
                mx.eval(first)
        except (AttributeError, IndexError, TypeError, ValueError) as error:
            raise ArchitectureError(_refusal(model, f"it cannot compute texts of unequal lengths ({error})")) from error
        scale = _largest(firsts[0])
        if _largest(firsts[0] - firsts[1]) > 1e-6 * scale:
            raise ArchitectureError(_refusal(model, "a text's vector changes with the padding of its batch"))
        seen = mx.max(mx.abs(firsts[0] - firsts[2]), axis=1) / scale
        if mx.min(seen).item() < 1e-6:  # type: ignore[operator]
            raise ArchitectureError(_refusal(model, "in a batch a text does not see all of its own tokens"))


def not_finite(problem: str) -> NonFiniteError:
    """The error for NaN or infinity that a model computed."""
    return NonFiniteError(
        f"{problem}: the model's weights are damaged, or overflow their dtype. Download or convert the model again, or "
        "load it with ",
        *(Option("dtype", "float32"), "."),
    )


def _largest(array: mx.array) -> float:
    return float(mx.max(mx.abs(array)).item())  # type: ignore[arg-type] # never complex


def _refusal(model: nn.Module, reason: str) -> str:
    return (
        f"{_name(model)} cannot embed bidirectionally: {reason}. grit-mlx needs an mlx-lm decoder that takes its "
        "mask from the cache, such as Mistral, Mixtral, Llama, Qwen or Gemma. "
        "It can still generate, with mode='generative'."
    )


def _name(model: nn.Module) -> str:
    return f"The architecture {getattr(model, 'model_type', type(model).__module__.rsplit('.', 1)[-1])!r}"
