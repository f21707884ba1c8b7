"""An adapter's part of each weight, row by row, so that it can be fused while the weight passes by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from grit_mlx.convert.streaming import Delta
from grit_mlx.errors import AdapterError
from grit_mlx.model.adapters import attach, read_adapter

__all__ = ["deltas_of"]


def deltas_of(model: nn.Module, folder: Path) -> dict[str, Delta]:
    """What an adapter adds to which weights, by the weights' names.

    Args:
        model: mlx-lm's model, unquantised and uncomputed; its layers are as before afterwards.
        folder: an adapter in mlx-lm's layout or PEFT's: LoRA, DoRA, or fully tuned weights.

    Raises:
        AdapterError: it is incomplete, does not fit the model, or is of a kind that cannot be fused.
    """
    adapter = read_adapter(folder)
    attach(model, adapter)
    if adapter.layout is None:
        return {name: _replaced(array) for name, array in adapter.weights.items()}
    deltas, originals = {}, []
    for name, module in model.named_modules():
        if not hasattr(module, "fuse"):
            continue
        make = _KINDS.get(type(module).__name__)
        if make is None:
            raise AdapterError(f"{folder} adapts {name} with {type(module).__name__}, which cannot be fused.")
        deltas[f"{name}.weight"] = make(module)
        originals.append((name, module.linear if "linear" in module else module.embedding))
    if not deltas:
        raise AdapterError(f"{folder} changes no weight of the model. Use it with the model it was trained on.")
    model.update_modules(tree_unflatten(originals))
    return deltas


def _lora(module: nn.Module) -> Delta:
    """The same numbers as ``LoRALinear.fuse``: W + (scale * B^T) A^T, with A ``(I, r)`` and B ``(r, O)``."""

    def delta(rows: mx.array, start: int) -> mx.array:
        b: mx.array = module.scale * module.lora_b.T[start : start + rows.shape[0]]
        part: mx.array = b @ module.lora_a.T
        return rows + part.astype(rows.dtype)

    return delta


def _dora(module: nn.Module) -> Delta:
    """As ``DoRALinear.fuse``: each row of the sum is scaled to the learnt length m."""
    lora = _lora(module)

    def delta(rows: mx.array, start: int) -> mx.array:
        tuned = lora(rows, start)
        length: mx.array = module.m[start : start + rows.shape[0]] / mx.linalg.norm(tuned, axis=1)
        return length[:, None] * tuned

    return delta


def _lora_experts(module: nn.Module) -> Delta:
    """As ``LoRASwitchLinear.fuse``; a block of rows lies within one expert or spans several."""
    experts, outputs, _ = module.lora_b.shape

    def delta(rows: mx.array, start: int) -> mx.array:
        a = module.lora_a.reshape(experts, -1, rows.shape[1])
        parts, row = [], start
        while row < start + rows.shape[0]:
            expert, first = divmod(row, outputs)
            last = min(outputs, first + start + rows.shape[0] - row)
            parts.append((module.scale * module.lora_b[expert, first:last]) @ a[expert])
            row += last - first
        return rows + mx.concatenate(parts).astype(rows.dtype)

    return delta


def _lora_embedding(module: nn.Module) -> Delta:
    """As ``LoRAEmbedding.fuse``: A is ``(V, r)`` there."""

    def delta(rows: mx.array, start: int) -> mx.array:
        a: mx.array = module.scale * module.lora_a[start : start + rows.shape[0]]
        part: mx.array = a @ module.lora_b
        return rows + part.astype(rows.dtype)

    return delta


def _replaced(array: mx.array) -> Delta:
    flat = array.reshape(-1, array.shape[-1])
    return lambda rows, start: flat[start : start + rows.shape[0]]


_KINDS: Mapping[str, Callable[[nn.Module], Delta]] = {
    "LoRALinear": _lora,
    "DoRALinear": _dora,
    "LoRASwitchLinear": _lora_experts,
    "LoRAEmbedding": _lora_embedding,
}
