"""A model that is larger than one machine's memory, split among the processes of ``mlx.launch``.

``"tensor"``
    Every process holds a part of every layer: some heads of its attention, some columns of its feed-forward part or of
    each of its experts. mlx-lm's models bring this as ``shard``; Mixtral, which does not, is split here the same way.
``"pipeline"``
    Every process holds some layers, and hands on what comes out of the last of them. mlx-lm's models call their layers
    in a loop, so it is enough to leave out those of other processes and to put receiving and sending around two layers.

Each process still holds the table of tokens and the head. Layers of other processes are never read from the disk, and
of tensors that are divided no more than one is in memory as a whole.

Shapes: B batch, L length, E hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

import mlx.core as mx
import mlx.nn as nn
from mlx.nn.layers.distributed import shard_inplace, shard_linear

from grit_mlx.errors import ArchitectureError, Option, first_line
from grit_mlx.model.intercept import intercept

__all__ = ["split"]

# mlx-lm's modules whose layers are called in a loop with one mask for all, taken from the first cache.
_LOOPS: Final = ("llama", "mixtral", "qwen2", "qwen3")

# What attention calls its numbers of heads: of queries, and of keys and values.
_HEADS: Final = (("n_heads", "n_kv_heads"), ("num_heads", "num_key_value_heads"))


def split(model: nn.Module, how: str, group: mx.distributed.Group) -> None:
    """Keep this process's part of a model whose weights have not been read yet.

    Args:
        model: mlx-lm's model.
        how: one of ``options.SPLITS``.
        group: the processes.

    Raises:
        ArchitectureError: it cannot be split so, or not among so many.
    """
    {"tensor": _split_tensors, "pipeline": _split_layers}[how](model, group)


# Tensors


def _split_tensors(model: Any, group: mx.distributed.Group) -> None:
    own = _ARCHITECTURES.get(_architecture(model))
    if own is None and not hasattr(model, "shard"):
        raise _refused(model, "tensor", "pipeline")
    for layer in model.layers:
        if (attention := getattr(layer, "self_attn", None)) is not None:
            _fit_heads(attention, group.size())
    try:
        own(model, group) if own else model.shard(group)
    except ValueError as error:  # of a width that cannot be divided
        raise ArchitectureError(
            f"The layers of this model cannot be divided among {group.size()} processes: {first_line(error)} Use "
            "another number of processes, or ",
            *(Option("shard", "pipeline"), "."),
        ) from error


def _split_mixtral(model: Any, group: mx.distributed.Group) -> None:
    for layer in model.layers:
        attention, experts = layer.self_attn, layer.block_sparse_moe.switch_mlp
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            sharding = "sharded-to-all" if name == "o_proj" else "all-to-sharded"
            setattr(attention, name, shard_linear(getattr(attention, name), sharding, group=group))
        attention.num_heads //= group.size()
        attention.num_key_value_heads //= group.size()
        # Each process has a part of every expert; the router is whole in all of them, so they choose alike.
        shard_inplace(experts.gate_proj, "all-to-sharded", group=group)
        shard_inplace(experts.up_proj, "all-to-sharded", group=group)
        shard_inplace(experts.down_proj, "sharded-to-all", group=group)
    intercept([layer.block_sparse_moe for layer in model.layers], partial(_summed, group))


def _summed(group: mx.distributed.Group, _: nn.Module, call: Callable[..., mx.array], x: mx.array) -> mx.array:
    return mx.distributed.all_sum(call(x), group=group)


# How models are split whose module of mlx-lm's has no ``shard``.
_ARCHITECTURES: Final[dict[str, Callable[[Any, mx.distributed.Group], None]]] = {"mixtral": _split_mixtral}


def _fit_heads(attention: Any, size: int) -> None:
    """Give attention as many heads as can be divided among processes, without changing what it computes.

    Keys and values are repeated where every process can then have one of the query heads that share them; otherwise
    heads of zeros are added, to which the output gives no weight.
    """
    names = next((names for names in _HEADS if all(hasattr(attention, name) for name in names)), None)
    if names is None or getattr(attention, names[1]) % size == 0:
        return
    heads, groups = (getattr(attention, name) for name in names)
    if size % groups == 0 and heads % size == 0:
        times = size // groups
        for name in ("k_proj", "v_proj"):
            _change(getattr(attention, name), lambda _, value: _repeated(value, groups, times))
        setattr(attention, names[1], groups * times)
        return
    wanted = -(-groups // size) * size
    for name in ("q_proj", "k_proj", "v_proj"):
        _change(getattr(attention, name), lambda _, value: _padded(value, 0, groups, wanted))
    _change(attention.o_proj, lambda name, value: value if name == "bias" else _padded(value, -1, groups, wanted))
    setattr(attention, names[0], heads // groups * wanted)
    setattr(attention, names[1], wanted)


def _change(linear: nn.Module, change: Callable[[str, mx.array], mx.array]) -> None:
    """Change the arrays of a layer, quantised or not."""
    for name, value in linear.parameters().items():
        if isinstance(value, mx.array):
            linear[name] = change(name, value)


def _repeated(rows: mx.array, groups: int, times: int) -> mx.array:
    """Each of the groups of rows several times, one after the other."""
    grouped = rows.reshape(groups, -1, *rows.shape[1:])
    return mx.repeat(grouped, times, axis=0).reshape(-1, *rows.shape[1:])


def _padded(value: mx.array, axis: int, groups: int, wanted: int) -> mx.array:
    """With zeros for the groups that are missing."""
    length, rest = divmod(value.shape[axis], groups)
    if rest:  # quantised weights come in groups of their own
        raise ValueError(f"{value.shape[axis]} columns of quantised weights are not those of {groups} whole heads")
    widths = [(0, 0)] * value.ndim
    widths[axis] = (0, length * (wanted - groups))
    return mx.pad(value, widths)


# Layers


def _split_layers(model: Any, group: mx.distributed.Group) -> None:
    if _architecture(model) not in _LOOPS or getattr(model.model, "swa_idx", None) is not None:
        raise _refused(model, "pipeline", "tensor")
    decoder, size, rank = model.model, group.size(), group.rank()
    count = len(decoder.layers)
    if count < size:
        raise ArchitectureError(f"A model of {count} layers cannot be a pipeline of {size} processes: start fewer.")
    base, extra = divmod(count, size)
    start = rank * base + min(rank, extra)
    decoder.layers = decoder.layers[start : start + base + (rank < extra)]
    intercept([decoder.layers[0]], partial(_receiving, group))
    intercept([decoder.layers[-1]], partial(_sending, group))


def _receiving(
    group: mx.distributed.Group, _: nn.Module, call: Callable[..., mx.array], h: mx.array, *args: Any, **kwargs: Any
) -> mx.array:
    """The first layer of a process takes what the layer before it gave to another one; ``(B, L, E)``."""
    if group.rank() > 0:
        h = mx.distributed.recv_like(h, group.rank() - 1, group=group)
    return call(h, *args, **kwargs)


def _sending(
    group: mx.distributed.Group, _: nn.Module, call: Callable[..., mx.array], h: mx.array, *args: Any, **kwargs: Any
) -> mx.array:
    """The last layer of a process gives its result to the next one; all of them go on from what the last one gives."""
    h = call(h, *args, **kwargs)
    if group.rank() < group.size() - 1:
        h = mx.distributed.send(h, group.rank() + 1, group=group)
        cache: Any = kwargs.get("cache", args[1] if len(args) > 1 else None)
        # While a prompt is read only keys and values are evaluated: the next process waits for this as well.
        if getattr(cache, "keys", None) is not None:
            cache.keys = mx.depends(cache.keys, h)
    return mx.distributed.all_gather(h, group=group)[-h.shape[0] :]


def _architecture(model: nn.Module) -> str:
    return type(model).__module__.rpartition(".")[2]


def _refused(model: nn.Module, how: str, other: str) -> ArchitectureError:
    return ArchitectureError(
        f"The architecture {_architecture(model)!r} cannot be split by ", Option("shard", how), ". Try ",
        *(Option("shard", other), ", or start one process."),
    )  # fmt: skip
