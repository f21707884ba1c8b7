"""Moving the keys of a cached text to another place in the prompt.

Rotary position embeddings turn a key by an angle that grows with its position, so a key that was computed at one
position serves any other once it is turned back and turned again. What is stored is the key as the model computed
it at the start of a prompt: the first place then needs no arithmetic at all and equals the official result bit by
bit. For a later place both turns use the model's own rotation, so a moved key differs from one computed there by
rounding alone, however far it moves.

Turning once by the difference would be one step less, but the angles are float32 numbers as large as the position:
at position 4000 two such angles and their sum differ by 2e-4.

Shapes: H heads, L length, D head size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import KVCache

from grit_mlx.errors import ArchitectureError
from grit_mlx.model.caches import held, layer_cache

__all__ = ["Rope", "Rotation"]

# mlx-lm's rotation of one layer: keys (1, H, L, D) and the position of the first of them.
Rope = Callable[..., mx.array]

# The length of the test's keys, and how far they are moved.
_LENGTH, _START = 5, 37
_TOLERANCE = 1e-4


class Rotation:
    """Moves cached texts of one model.

    Args:
        model: mlx-lm's model.

    Raises:
        ArchitectureError: its keys cannot be moved: they are not rotated, or by an angle that depends on more
            than their position (dynamic scaling). Its documents can still be cached for the first place.
    """

    def __init__(self, model: nn.Module) -> None:
        self._ropes = [_rope_of(layer, model) for layer in model.layers]
        shapes = [_head_size(layer, model) for layer in model.layers]
        # Some kinds of scaling (YaRN, longrope) also stretch the key, each time that they are applied.
        pairs = zip(self._ropes, shapes, strict=True)
        self._stretch = [rope(mx.ones((1, 1, 1, size)), offset=0) for rope, size in pairs]
        self._prove(model, shapes)

    def moved(self, layers: Sequence[KVCache], start: int) -> list[KVCache]:
        """A text's cache as if it had been computed at ``start``.

        Args:
            layers: one cache per layer, computed at position 0; they are not changed.
            start: the position of its first token, in tokens from the start of the prompt.
        """
        if start == 0:
            return list(layers)
        pairs = enumerate(map(held, layers))
        return [layer_cache(self._moved_keys(layer, keys, start), values) for layer, (keys, values) in pairs]

    def _moved_keys(self, layer: int, keys: mx.array, start: int) -> mx.array:
        """``(1, H, L, D)`` from positions 0... to ``start``..., in the dtype they came in."""
        rope, length = self._ropes[layer], keys.shape[2]
        # Position p is turned back by turning to -p: in reverse order the positions count up, as mlx wants them.
        back = rope(keys.astype(mx.float32)[:, :, ::-1], offset=1 - length)[:, :, ::-1]
        plain = back / (self._stretch[layer] ** 2)
        return rope(plain, offset=start).astype(keys.dtype)

    def _prove(self, model: nn.Module, shapes: Sequence[int]) -> None:
        for layer, size in enumerate(shapes):
            plain = mx.random.normal((1, 1, _LENGTH, size), key=mx.random.key(layer))
            rope = self._ropes[layer]
            difference = self._moved_keys(layer, rope(plain, offset=0), _START) - rope(plain, offset=_START)
            if not mx.all(mx.abs(difference) < _TOLERANCE).item():  # NaN fails too
                raise ArchitectureError(_refusal(model, "its rotation depends on more than the position"))


def _rope_of(layer: Any, model: nn.Module) -> Rope:
    rope = getattr(getattr(layer, "self_attn", None), "rope", None)
    if not callable(rope):
        raise ArchitectureError(_refusal(model, "grit-mlx does not find the rotation of its keys"))
    return rope  # type: ignore[no-any-return]


def _head_size(layer: Any, model: nn.Module) -> int:
    """D, or the dimensions that the rotation turns; the others stay as they are."""
    attention = layer.self_attn
    size = getattr(attention, "head_dim", None) or getattr(attention.rope, "dims", None)
    if not isinstance(size, int):
        raise ArchitectureError(_refusal(model, "grit-mlx does not find the size of its heads"))
    return size


def _refusal(model: nn.Module, reason: str) -> str:
    kind = getattr(model, "model_type", type(model).__name__)
    return (
        f"Cached documents of the architecture {kind!r} cannot be moved to another place: {reason}. "
        "One document for each answer, or cache='none', works with every model."
    )
