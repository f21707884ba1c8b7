"""Weights that are widened while a layer computes, for CPUs without room for the whole model in float32.

On a CPU float32 is the only fast dtype, and a model in it takes eight times the memory of its 4-bit weights. So layers
keep their weights as they are stored and widen a block of rows at a time, which stays in the processor's cache: the
memory of a block more, and nearly the rate of the products once a few dozen tokens share the work.

Gradients follow, to what a layer is given and to its weight if that is not quantised.

Shapes: N tokens, I inputs, O outputs, X experts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from threading import Event
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear
from numpy.typing import NDArray

from grit_mlx.model import threads
from grit_mlx.model.blas import numpy_threads
from grit_mlx.model.intercept import intercept

__all__ = ["is_widened", "prepare", "size", "watched"]

Floats = NDArray[np.float32]

# Numbers of a block: 2 MB in float32.
_BLOCK = 1 << 19

# Numbers from which on several threads are worth starting.
_SHARED_WORK = 1 << 22

_LINEAR = (nn.Linear, nn.QuantizedLinear)
_EXPERTS = (SwitchLinear, QuantizedSwitchLinear)
_TABLES = (nn.Embedding, nn.QuantizedEmbedding)

_watcher: ContextVar[Callable[[int], None] | None] = ContextVar("watcher", default=None)


@contextmanager
def watched(watcher: Callable[[int], None]) -> Iterator[None]:
    """Call a function after each layer that was widened, in this thread, with the size of its weight."""
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)


def prepare(model: nn.Module) -> None:
    """Let layers whose weights are not float32 widen them as they compute; everything else becomes float32.

    Layers of other kinds than mlx's and mlx-lm's own (linear, experts, tables of tokens) compute as they are stored.
    """
    packed = {id(module): module for _, module in model.named_modules() if _is_packed(module)}
    modules = list(packed.values())
    for _, module in model.named_modules():
        if id(module) not in packed:
            narrow = {key: value for key, value in module.items() if _is_narrow(value)}
            module.update({key: value.astype(mx.float32) for key, value in narrow.items()})
    for module in modules:
        module._widened = True
    intercept([one for one in modules if isinstance(one, _LINEAR)], _linear)
    intercept([one for one in modules if isinstance(one, _EXPERTS)], _experts)
    tables = [one for one in modules if isinstance(one, _TABLES)]
    intercept(tables, _rows)
    intercept(tables, _linear, method="as_linear")


def is_widened(module: nn.Module) -> bool:
    """Whether a layer, or any layer of a model, widens its weight as it computes."""
    return any(getattr(one, "_widened", False) for _, one in module.named_modules())


def size(module: nn.Module) -> int:
    """How many numbers the layers of a module widen when each computes once; tables of tokens are only looked up."""
    layers = [one for _, one in module.named_modules() if getattr(one, "_widened", False)]
    return sum(_size(one) for one in layers if not isinstance(one, _TABLES))


def _is_narrow(value: Any) -> bool:
    return isinstance(value, mx.array) and value.dtype in (mx.float16, mx.bfloat16)


def _is_packed(module: nn.Module) -> bool:
    if not isinstance(module, _LINEAR + _EXPERTS + _TABLES):
        return False
    if "scales" in module:
        return (module.mode, module.bits) in _CODES and module.get("global_scale") is None
    return _is_narrow(module.weight)


# Layers


def _linear(layer: nn.Module, forward: Callable[..., mx.array], x: mx.array) -> mx.array:
    """``(..., I)`` to ``(..., O)``."""

    def multiply(given: mx.array, *, back: bool) -> mx.array:
        computed = _product(_floats(given).reshape(-1, given.shape[-1]), _Weight.of(layer), back=back)
        return mx.array(computed.reshape(*given.shape[:-1], -1))

    def weigh(given: mx.array, cotangent: mx.array) -> mx.array:
        return cotangent.reshape(-1, cotangent.shape[-1]).T @ given.reshape(-1, given.shape[-1])

    return _with_bias(layer, _differentiable(layer, x, multiply, weigh))


def _experts(
    layer: nn.Module, forward: Callable[..., mx.array], x: mx.array, indices: mx.array, sorted_indices: bool = False
) -> mx.array:
    """Each row by its expert: ``(..., M, I)`` and ``(...)`` to ``(..., M, O)``, leading axes being broadcast."""
    chosen = np.asarray(indices)
    places = np.broadcast_shapes(x.shape[:-2], chosen.shape)
    experts = np.broadcast_to(chosen, places).reshape(-1)
    repeated = mx.broadcast_to(x, (*places, *x.shape[-2:])).reshape(len(experts), *x.shape[-2:])

    def multiply(given: mx.array, *, back: bool) -> mx.array:
        rows = _floats(given)  # (n, M, I)
        weights = {int(one): _Weight.of(layer, int(one)) for one in np.unique(experts)}
        width = next((one.columns if back else one.rows for one in weights.values()), 0)
        computed = np.empty((*rows.shape[:2], width), np.float32)
        for expert, weight in weights.items():
            at = np.flatnonzero(experts == expert)
            product = _product(rows[at].reshape(-1, rows.shape[-1]), weight, back=back)
            computed[at] = product.reshape(len(at), rows.shape[1], -1)
        return mx.array(computed)

    def weigh(given: mx.array, cotangent: mx.array) -> mx.array:
        by_expert = [(cotangent * mx.array(experts == one)[:, None, None], given) for one in range(len(layer.weight))]
        return mx.stack([mx.einsum("nmo,nmi->oi", *pair) for pair in by_expert])

    product = _differentiable(layer, repeated, multiply, weigh)
    return _with_bias(layer, product.reshape(*places, *product.shape[1:]), indices)


def _rows(layer: nn.Module, forward: Callable[[mx.array], mx.array], ids: mx.array) -> mx.array:
    """Rows of a table of tokens."""
    if "scales" not in layer:
        return forward(ids).astype(mx.float32)
    scales, biases = layer.scales[ids], layer.get("biases")
    if scales.dtype != mx.uint8:
        scales = scales.astype(mx.float32)
    rows: mx.array = mx.dequantize(
        layer.weight[ids],
        scales,
        None if biases is None else biases[ids].astype(mx.float32),
        group_size=layer.group_size,
        bits=layer.bits,
        mode=layer.mode,
    )
    return rows.astype(mx.float32)


def _with_bias(layer: nn.Module, product: mx.array, indices: mx.array | None = None) -> mx.array:
    watcher = _watcher.get()
    if watcher is not None:
        watcher(_size(layer))
    if "bias" not in layer:
        return product
    bias = layer.bias.astype(mx.float32)
    return product + (bias if indices is None else mx.expand_dims(bias[indices], -2))


def _differentiable(
    layer: nn.Module, x: mx.array, multiply: Callable[..., mx.array], weigh: Callable[[mx.array, mx.array], mx.array]
) -> mx.array:
    """The product, and the gradient through it: the weight is widened once more, not kept.

    Args:
        layer: whose weight it is.
        x: what it is multiplied with.
        multiply: gives the product, or with ``back`` the gradient of what it was given.
        weigh: the gradient of the weight, from what was given and the product's gradient.
    """

    @mx.custom_function
    def product(x: mx.array, _weight: mx.array) -> mx.array:
        return multiply(x, back=False)

    @product.vjp
    def gradient(primals: Any, cotangent: mx.array, _output: mx.array) -> tuple[mx.array, mx.array]:
        given, weight = primals
        # Lazy: nobody computes the second who does not train the weight.
        found = mx.zeros_like(weight) if "scales" in layer else weigh(given, cotangent).astype(weight.dtype)
        return multiply(cotangent, back=True), found

    result: Any = product(x.astype(mx.float32), layer.weight)
    return result  # type: ignore[no-any-return]


def _floats(values: mx.array) -> Floats:
    return np.asarray(values.astype(mx.float32))


# Products


def _product(x: Floats, weight: _Weight, *, back: bool) -> Floats:
    """``x @ weight.T``, or ``x @ weight`` on the way back: ``(N, I)`` to ``(N, O)``, or the other way."""
    pulse = threads.pulse()
    stopped = Event()
    height = max(1, _BLOCK // weight.columns)

    def blocks(start: int, stop: int) -> Iterator[tuple[slice, Floats]]:
        buffer = np.empty((min(height, stop - start), weight.columns), np.float32)
        for at in range(start, stop, height):
            if stopped.is_set():
                return
            pulse()
            rows = slice(at, min(at + height, stop))
            block = buffer[: rows.stop - at]
            weight.read(rows, block)
            yield rows, block

    product = np.zeros((len(x), weight.columns if back else weight.rows), np.float32)

    def forward(start: int, stop: int) -> None:
        for rows, block in blocks(start, stop):
            product[:, rows] = x @ block.T

    def backward(start: int, stop: int) -> Floats:
        total = np.zeros_like(product)
        for rows, block in blocks(start, stop):
            total += x[:, rows] @ block
        return total

    try:
        for part in _shared(backward if back else forward, weight.rows, weight.rows * weight.columns):
            if part is not None:
                product += part
    finally:
        stopped.set()  # if this thread was interrupted while others work
    return product


def _shared(part: Callable[[int, int], Any], rows: int, work: int) -> list[Any]:
    """What a function returns for parts of a range, computed by as many threads as NumPy's products have."""
    before = numpy_threads(1) if work >= _SHARED_WORK else None
    try:
        count = min(before or 1, rows)
        if count == 1:
            return [part(0, rows)]
        bounds = [rows * i // count for i in range(count + 1)]
        return list(_pool(count).map(part, bounds[:-1], bounds[1:]))
    finally:
        numpy_threads(before)


@cache
def _pool(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="grit-widening")


# Weights


def _size(layer: nn.Module) -> int:
    stored: int = layer.weight.size
    return stored * 32 // layer.bits if "scales" in layer else stored


@dataclass(frozen=True)
class _Weight:
    """A layer's weight as it is stored, for threads that know nothing of mlx.

    Attributes:
        stored: bfloat16 as uint16, or float16 ``(O, I)``; quantised as bytes ``(O, bytes)``.
        columns: I.
        code: how bytes become numbers, if it is quantised.
        scales: ``(O, groups)``.
        biases: ``(O, groups)``, added to the scaled numbers; None for none.
    """

    stored: NDArray[Any]
    columns: int
    code: _Code | None = None
    scales: Floats | None = None
    biases: Floats | None = None

    @classmethod
    def of(cls, layer: nn.Module, expert: int | None = None) -> _Weight:
        """The weight of a layer, or of one of its experts."""
        names = [name for name in ("weight", "scales", "biases") if layer.get(name) is not None]
        weight, *rest = (layer[name] if expert is None else layer[name][expert] for name in names)
        if not rest:
            bits = weight.view(mx.uint16) if weight.dtype == mx.bfloat16 else weight
            return cls(np.asarray(bits), weight.shape[-1])
        code = _CODES[layer.mode, layer.bits]
        scales, *biases = (np.asarray(one if one.dtype == mx.uint8 else one.astype(mx.float32)) for one in rest)
        columns = weight.shape[-1] * 32 // layer.bits
        return cls(
            np.asarray(weight).view(np.uint8),
            columns,
            code(),
            scales if scales.dtype == np.float32 else _scale_table(layer.mode)[scales],
            biases[0] if biases else None,
        )

    @property
    def rows(self) -> int:
        """O."""
        return len(self.stored)

    def read(self, rows: slice, out: Floats) -> None:
        """Write some rows ``(n, I)`` as float32."""
        stored = self.stored[rows]
        if self.code is None:
            if stored.dtype == np.uint16:  # the upper half of a float32
                np.left_shift(stored, 16, out=out.view(np.uint32), dtype=np.uint32)
            else:
                np.copyto(out, stored)
            return
        assert self.scales is not None
        self.code.decode(stored, out)
        groups = out.reshape(*self.scales[rows].shape, -1)
        groups *= self.scales[rows, :, None]
        if self.biases is not None:
            groups += self.biases[rows, :, None]


@dataclass(frozen=True)
class _Code:
    """Numbers that are packed into bytes, least significant bits first.

    Attributes:
        bits: of a key: of one byte, or of what several numbers take that do not fit into whole bytes.
        table: the numbers that each key stands for, as one number of their joint size.
    """

    bits: int
    table: NDArray[Any]

    @classmethod
    def made(cls, width: int, values: Floats) -> _Code:
        """The code of numbers of a width in bits, each of which stands for a value."""
        bits = {3: 12, 5: 10, 6: 12}.get(width, 8)
        keys = np.arange(1 << bits)[:, None] >> np.arange(0, bits, width) & (1 << width) - 1
        joint = {4: np.float32, 8: np.float64, 16: np.complex128}[4 * keys.shape[1]]
        return cls(bits, np.ascontiguousarray(values[keys]).view(joint)[:, 0])

    def decode(self, stored: NDArray[np.uint8], out: Floats) -> None:
        """Bytes ``(n, bytes)`` to numbers ``(n, I)``."""
        keys: NDArray[Any] = stored
        if self.bits != 8:
            # Keys begin anew after 3 or 5 bytes, and each lies in two neighbouring ones.
            period = {12: 3, 10: 5}[self.bits]
            units = stored.reshape(len(stored), -1, period).astype(np.uint16)
            bit = np.arange(0, 8 * period, self.bits)
            at, shift = bit // 8, (bit % 8).astype(np.uint16)
            pairs = units[:, :, at] | units[:, :, at + 1] << 8
            keys = (pairs >> shift & (1 << self.bits) - 1).reshape(len(stored), -1)
        np.take(self.table, keys, out=out.view(self.table.dtype), mode="clip")


def _four_bit_floats() -> Floats:
    """The values of e2m1: sign, two bits of exponent, one of fraction."""
    values = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
    return np.concatenate([values, -values])


def _eight_bit_floats() -> Floats:
    """The values of e4m3: sign, four bits of exponent, three of fraction."""
    return np.array(mx.from_fp8(mx.arange(256, dtype=mx.uint8), dtype=mx.float32))


def _scale_table(mode: str) -> Floats:
    """What the bytes of scales stand for."""
    if mode == "nvfp4":
        return _eight_bit_floats()
    return np.append(np.exp2(np.arange(255, dtype=np.float32) - 127), np.float32(np.nan))


def _whole(bits: int) -> Floats:
    return np.arange(1 << bits, dtype=np.float32)


# How mlx packs weights, by mode and bits.
_CODES: dict[tuple[str, int], Callable[[], _Code]] = {
    **{("affine", bits): cache(lambda bits=bits: _Code.made(bits, _whole(bits))) for bits in (2, 3, 4, 5, 6, 8)},
    ("mxfp4", 4): cache(lambda: _Code.made(4, _four_bit_floats())),
    ("nvfp4", 4): cache(lambda: _Code.made(4, _four_bit_floats())),
    ("mxfp8", 8): cache(lambda: _Code.made(8, _eight_bit_floats())),
}
