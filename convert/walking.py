"""Models that are computed while their weights pass by: block by block, never more than a few megabytes at once.

mlx-lm's model runs as it is; only its linear layers, token tables and stacks of experts are replaced by ones that read
their weights when they are called. On a CPU each thread reads, unpacks and multiplies a block of its own. The products
go through NumPy, whose wheels bring a fast BLAS; one with threads of its own would only get in the way.

Both attention modes go through the model in one batch (``MixedCache``), so that the weights pass by once.

Shapes: B rows, L length, E hidden size, M predicted positions, V vocabulary.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_unflatten
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.models.switch_layers import SwitchLinear
from numpy.typing import NDArray

from grit_mlx.convert.plan import Weight
from grit_mlx.convert.streaming import Stream
from grit_mlx.errors import ArchitectureError
from grit_mlx.model import device
from grit_mlx.model.attention import MixedCache, broadcast_masks, decoder_of
from grit_mlx.model.blas import numpy_threads
from grit_mlx.model.passes import pad

__all__ = ["Values", "Walk", "Wrapper", "path_of"]

_THREADS = 8
# Numbers of a block: 2 MB, which stay in the processor's cache until they are multiplied with.
_BLOCK = 512 << 10


class Values:
    """Weights in the dtype that is computed in, read when they are asked for."""

    def __init__(self, stream: Stream) -> None:
        self.weights = {weight.name: weight for weight in stream.plan.weights}
        self.dtype = device.compute_dtype("auto")
        self._stream = stream

    def __call__(self, name: str) -> mx.array:
        """A weight, by its name."""
        values = self._stream.values(self.weights[name])
        if self.dtype is not None and mx.issubdtype(values.dtype, mx.floating):
            values = values.astype(self.dtype)
        mx.eval(values)
        return values


class Wrapper:
    """Stands for a part of a model. Models look at their layers, for instance for whether one slides its window."""

    def __init__(self, part: nn.Module) -> None:
        self._part = part

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._part, name)


class Walk:
    """A model as a context in which it can be run without being in memory.

    Args:
        stream: the weights.
        model: mlx-lm's model, unquantised and uncomputed; it is as before afterwards.
        done: called after each large weight that passed by.
    """

    def __init__(self, stream: Stream, model: nn.Module, done: Callable[[], None] = lambda: None) -> None:
        self._stream = stream
        self._model = model
        self._done = done
        self._values = Values(stream)

    def __enter__(self) -> Walk:
        self._pool = ThreadPoolExecutor(min(os.cpu_count() or 1, _THREADS), thread_name_prefix="walk")
        self._originals = [
            (path, module)
            for path, module in self._model.named_modules()
            if type(module) in _STREAMED and f"{path}.weight" in self._values.weights
        ]
        streamed = [(path, _STREAMED[type(module)](self, path, "bias" in module)) for path, module in self._originals]
        self._model.update_modules(tree_unflatten(streamed))
        passing = {f"{path}.weight" for path, _ in streamed}
        for name in self._values.weights:
            if name not in passing:
                self._model.load_weights([(name, self._values(name))], strict=False)
        self._model.eval()
        broadcast_masks(self._model)
        self._threads = numpy_threads(1)
        return self

    def __exit__(self, *_: object) -> None:
        numpy_threads(self._threads)
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._model.update_modules(tree_unflatten(self._originals))

    @property
    def count(self) -> int:
        """Number of large weights that pass by when states are computed: those of the decoder."""
        decoder: Any = decoder_of(self._model)
        return sum(type(module) in _STREAMED.values() for module in decoder.modules())

    def passed(self) -> None:
        """A large weight has passed by."""
        self._done()

    def states(self, rows: Sequence[Sequence[int]], causal: Sequence[bool]) -> NDArray[np.float32]:
        """Normed hidden states ``(B, L, E)`` of rows of ids, each in its attention mode; beyond a row's end noise.

        Raises:
            ArchitectureError: the model does not take its mask from the cache.
        """
        ids, real = pad(rows)
        cache = MixedCache(mx.array(real), mx.array(list(causal)))
        layers = len(make_prompt_cache(self._model))
        states = decoder_of(self._model)(mx.array(ids), cache=[cache] * layers)
        if not cache.asked:
            kind = self._stream.plan.config["model_type"]
            raise ArchitectureError(f"The architecture {kind!r} does not take its mask from the cache.")
        return np.array(states.astype(mx.float32))

    def logits(self, states: NDArray[np.float32]) -> NDArray[np.float32]:
        """What the model's own head makes of hidden states: ``(M, E)`` to ``(M, V)``."""
        decoder: Any = decoder_of(self._model)
        parent, _, name = path_of(self._model, decoder).rpartition(".")
        owner: Any = self._model
        for part in parent.split(".") if parent else ():
            owner = getattr(owner, part)
        dtype = self._values.dtype or next(iter(self._values.weights.values())).dtype
        setattr(owner, name, _Computed(decoder, mx.array(states)[None].astype(dtype)))
        try:
            logits = self._model(mx.zeros((1, len(states)), mx.int32))[0]
        finally:
            setattr(owner, name, decoder)
        return np.array(logits.astype(mx.float32))

    # What the streamed layers call

    def weight(self, name: str) -> mx.array:
        """A complete weight."""
        return self._values(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a weight."""
        return self._values.weights[name].shape

    def rows(self, name: str, ids: mx.array) -> mx.array:
        """The rows of a table for ids of any shape, ``(..., width)``."""
        weight = self._values.weights[name]
        unique, places = np.unique(np.array(ids), return_inverse=True)
        rows = [self._stream.wide(weight, row, row + 1) for row in unique.tolist()]
        if any(row is None for row in rows):
            return self._values(name)[ids]
        table = mx.array(np.concatenate([row for row in rows if row is not None]))
        return table[mx.array(places.reshape(ids.shape))].astype(self._values.dtype or weight.dtype)

    def product(self, x: mx.array, name: str, first: int = 0, last: int | None = None) -> mx.array:
        """``x`` times the transposed rows ``first`` to ``last`` of a weight: ``(..., I)`` to ``(..., O)``."""
        weight = self._values.weights[name]
        last = weight.rows if last is None else last
        multiply = self._by_numpy if self._values.dtype == mx.float32 else self._by_mlx
        result = multiply(x.reshape(-1, weight.width), weight, first, last)
        return result.reshape(*x.shape[:-1], last - first)

    def _by_numpy(self, x: mx.array, weight: Weight, first: int, last: int) -> mx.array:
        """On a CPU: each thread reads, unpacks and multiplies a block."""
        flat = np.array(x.astype(mx.float32))
        product = np.empty((len(flat), last - first), np.float32)

        def multiply(start: int) -> int | None:
            """The block's first row again if its values need mlx, which computes in this thread only."""
            stop = min(start + step, last)
            block = self._stream.wide(weight, start, stop)
            if block is None:
                return start
            with np.errstate(all="ignore"):  # what is not finite in the end is refused there
                product[:, start - first : stop - first] = flat @ block.T
            return None

        step = max(1, _BLOCK // weight.width)
        for start in self._pool.map(multiply, range(first, last, step)):
            if start is not None:
                stop = min(start + step, last)
                block = np.array(self._stream.rows(weight, start, stop).astype(mx.float32))
                product[:, start - first : stop - first] = flat @ block.T
        return mx.array(product)

    def _by_mlx(self, x: mx.array, weight: Weight, first: int, last: int) -> mx.array:
        parts = []
        for block in self._blocks(weight, first, last):
            parts.append(x @ mx.array(block).T.astype(x.dtype))
            mx.eval(parts[-1])
        return mx.concatenate(parts, axis=1)

    def _blocks(self, weight: Weight, first: int, last: int) -> Iterator[NDArray[np.float32]]:
        """Rows in order; the next block is prepared meanwhile."""
        step = max(1, _BLOCK // weight.width)
        waiting = self._pool.submit(self._stream.wide, weight, first, min(first + step, last))
        for start in range(first, last, step):
            block = waiting.result()
            stop = min(start + step, last)
            if stop < last:
                waiting = self._pool.submit(self._stream.wide, weight, stop, min(stop + step, last))
            if block is None:  # only mlx can compute it, and only in this thread
                block = np.array(self._stream.rows(weight, start, stop).astype(mx.float32))
            yield block


class _Streamed(nn.Module):
    """Stands for a layer whose weight passes by."""

    def __init__(self, walk: Walk, path: str, bias: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._walk = walk
        self._name = f"{path}.weight"
        if bias:
            self.bias = mx.zeros((1,))

    @property
    def weight(self) -> mx.array:
        """For models that reach past their layers; in memory while they use it."""
        return self._walk.weight(self._name)


class _Linear(_Streamed):
    def __call__(self, x: mx.array) -> mx.array:
        product = self._walk.product(x, self._name)
        self._walk.passed()
        return product + self.bias if "bias" in self else product


class _Table(_Streamed):
    def __call__(self, ids: mx.array) -> mx.array:
        rows = self._walk.rows(self._name, ids)
        self._walk.passed()
        return rows

    def as_linear(self, x: mx.array) -> mx.array:
        """As the head that the table is tied to."""
        product = self._walk.product(x, self._name)
        self._walk.passed()
        return product


class _Experts(_Streamed):
    """As ``SwitchLinear``: each row is multiplied by the weight of its own expert."""

    def __call__(self, x: mx.array, indices: mx.array, sorted_indices: bool = False) -> mx.array:
        batch = np.broadcast_shapes(x.shape[:-2], indices.shape)
        outputs = self._walk.shape(self._name)[1]
        rows = mx.broadcast_to(x, (*batch, *x.shape[-2:])).reshape(-1, *x.shape[-2:])
        chosen = np.broadcast_to(np.array(indices), batch).ravel()
        own = {int(expert): np.flatnonzero(chosen == expert) for expert in np.unique(chosen)}
        parts = [
            self._walk.product(rows[mx.array(which)], self._name, expert * outputs, (expert + 1) * outputs)
            for expert, which in own.items()
        ]
        self._walk.passed()
        order = np.argsort(np.concatenate(list(own.values())))
        product = mx.concatenate(parts)[mx.array(order)].reshape(*batch, x.shape[-2], outputs)
        return product + mx.expand_dims(self.bias[indices], -2) if "bias" in self else product


_STREAMED: dict[type, type[_Streamed]] = {nn.Linear: _Linear, nn.Embedding: _Table, SwitchLinear: _Experts}


class _Computed(Wrapper):
    """Stands for a decoder whose states are there already."""

    def __init__(self, part: nn.Module, states: mx.array) -> None:
        super().__init__(part)
        self._states = states

    def __call__(self, *_: object, **__: object) -> mx.array:
        return self._states


def path_of(model: nn.Module, part: nn.Module) -> str:
    """The path of a part of a model."""
    return next(str(path) for path, module in model.named_modules() if module is part)
