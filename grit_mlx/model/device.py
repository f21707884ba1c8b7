"""The device: which dtype to compute in, how much memory there is, how large a batch may be.

Metal and CUDA compute in the dtype that a model is stored in, quantised or not. On a CPU mlx has one fast dtype,
float32: products in bfloat16 are about 20 times slower and 4-bit ones 50 times (measured, docs/performance.md),
so there weights are widened when they are loaded, or as they are used where memory does not allow for that
(``widening.py``).
"""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import mlx.core as mx

from grit_mlx.model import threads
from grit_mlx.model.blas import prefer_fast_blas

__all__ = [
    "DTYPES",
    "Device",
    "available_memory",
    "compute_dtype",
    "current_device",
    "free_cached_memory",
    "is_out_of_memory",
    "should_dequantize",
    "token_budget",
    "wired",
]

DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}

# Tokens of a batch beyond which nothing gets faster, found with benchmarks/embed.py --sweep on a CPU: small
# batches stay in the processor's cache. A GPU needs more rows to fill its cores; its figures are estimates, which
# ``grit bench --tune`` replaces by a measured one.
_LARGEST_BATCH = {"cpu": 2048, "metal": 16384, "cuda": 65536}

# Part of the free memory that one batch may take: room for other programs, and for what the estimate misses.
_MEMORY_FRACTION = 0.25

# How mlx's allocators and drivers say that memory ran out.
_OUT_OF_MEMORY = (
    "unable to allocate",
    "out of memory",
    "outofmemory",
    "insufficient memory",
    "bad_alloc",
    "greater than the maximum allowed buffer size",
)

# Bytes of freed arrays that mlx may keep for reuse during a long encode.
_CACHE_BYTES = 1 << 30


@dataclass(frozen=True)
class Device:
    """Where arrays are computed.

    Attributes:
        kind: ``"metal"``, ``"cuda"`` or ``"cpu"``.
        name: the chip's name, if the system knows it.
        memory: bytes of memory that the device can use.
        blas: which library multiplies matrices on the CPU; None on a GPU.
        blas_note: what would make it faster, if anything.
    """

    kind: str
    name: str
    memory: int
    blas: str | None
    blas_note: str


def current_device() -> Device:
    """The default device of mlx."""
    blas = prefer_fast_blas() if _kind() == "cpu" else None
    return Device(
        kind=_kind(),
        name=str(mx.device_info().get("device_name", "unknown")),
        memory=_total_memory(),
        blas=blas.name if blas else None,
        blas_note=blas.note if blas else "",
    )


def compute_dtype(dtype: str) -> mx.Dtype | None:
    """The dtype to compute in; None keeps what is stored, quantised weights included.

    Args:
        dtype: one of ``options.DTYPES``: ``"auto"`` is float32 on a CPU and ``"stored"`` on a GPU.
    """
    if dtype == "auto":
        return mx.float32 if _kind() == "cpu" else None
    return None if dtype == "stored" else DTYPES[dtype]


def should_dequantize(dtype: mx.Dtype | None) -> bool:
    """Whether quantised weights are widened when loaded: only on a CPU, where products with them are slow."""
    return dtype == mx.float32 and _kind() == "cpu"


def available_memory() -> int:
    """Bytes that this process can still take on the device, as far as the system knows."""
    meminfo = Path("/proc/meminfo")
    if _kind() == "cpu" and meminfo.exists():
        kilobytes = re.search(r"^MemAvailable: *([0-9]+)", meminfo.read_text(encoding="ascii"), re.MULTILINE)
        if kilobytes:
            return min(int(kilobytes[1]) * 1024, _control_group_limit())
    limits = {"metal": "max_recommended_working_set_size", "cuda": "total_memory", "cpu": ""}
    limit = int(mx.device_info().get(limits[_kind()]) or _physical_memory())
    return max(0, limit - mx.get_active_memory())


def token_budget(*, hidden: int, intermediate: int, heads: int, length: int, fastest: int | None = None) -> int:
    """Maximum number of tokens of a batch, padding included, that memory allows and that is still fast.

    Counts what one layer holds at its peak for a token: three rows of the feed-forward width, eight of the hidden
    size (residual, norm, queries, keys, values, outputs, with their copies) and, on a CPU, two rows of attention
    scores, which mlx's fused attention does not build on a GPU. Counted as float32, whatever the dtype: what is
    missed here is of that order.

    Args:
        hidden: E.
        intermediate: width of the feed-forward layer; for a mixture of experts, of all experts of a token.
        heads: H.
        length: L, tokens of the longest text.
        fastest: beyond how many tokens nothing gets faster; None for what suits devices of this kind.
    """
    numbers = 8 * hidden + 3 * intermediate
    if _kind() == "cpu":
        numbers += 2 * heads * length
    affordable = int(_MEMORY_FRACTION * available_memory() / (numbers * 4))
    return max(length, min(affordable, fastest or _LARGEST_BATCH[_kind()]))


@contextmanager
def wired() -> Iterator[None]:
    """Keep the weights in wired memory on Metal for as long as this lasts; nothing elsewhere.

    Without it macOS may page out a model that nearly fills the memory, between two batches.
    """
    limit = mx.device_info().get("max_recommended_working_set_size") if mx.metal.is_available() else None
    if limit is None:
        yield
        return
    with _wires.lock:  # the limit is the process's: the first user raises it, the last one puts it back
        _wires.users += 1
        if _wires.users == 1:
            _wires.before = mx.set_wired_limit(int(limit))
    try:
        yield
    finally:
        with _wires.lock:
            _wires.users -= 1
            if not _wires.users:
                # Not before the device is done: changing the limit under running work is undefined.
                threads.run(mx.synchronize)
                mx.set_wired_limit(_wires.before)


@dataclass
class _Wires:
    lock: threading.Lock = field(default_factory=threading.Lock)
    users: int = 0
    before: int = 0  # the limit without users


_wires = _Wires()


def free_cached_memory() -> None:
    """Give freed arrays back to the system once many have piled up (batches of many shapes do that)."""
    if mx.get_cache_memory() > min(_CACHE_BYTES, available_memory() // 4):
        mx.clear_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception of mlx says that memory ran out (it has no class of its own for that)."""
    if isinstance(error, MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(sign in text for sign in _OUT_OF_MEMORY)


def _kind() -> str:
    if mx.default_device() == mx.Device(mx.cpu):
        return "cpu"
    return "metal" if mx.metal.is_available() else "cuda"


def _total_memory() -> int:
    info = mx.device_info()
    for key in ("memory_size", "total_memory"):
        if key in info:
            return int(info[key])
    return min(_physical_memory(), _control_group_limit())


def _physical_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _control_group_limit() -> int:
    """The memory limit of a container (cgroup version 2), if there is one."""
    try:
        return int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii"))
    except (OSError, ValueError):  # no such file, or "max"
        return sys.maxsize
