"""The machine that a measurement is for, and how fast it multiplies."""

from __future__ import annotations

import os
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx

import grit_mlx
from grit_mlx.model import device

__all__ = ["matrix_rate", "peak_resident_memory", "this_machine"]

# Rows and columns of products: small enough for a CPU's cache, and large enough to keep a GPU busy.
_SIZES = (512, 4096)
_MOST_PRODUCTS = 16  # at once, since all of them are kept


def this_machine() -> dict[str, Any]:
    """The device and the versions that speed depends on."""
    here = device.current_device()
    return {
        "kind": here.kind,
        "name": here.name,
        "memory_bytes": here.memory,
        "cores": os.cpu_count(),
        "blas": here.blas,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "grit_mlx": grit_mlx.__version__,
        "mlx": version("mlx"),
        "mlx_lm": version("mlx-lm"),
    }


def matrix_rate(*, seconds: float = 0.3, dtype: mx.Dtype = mx.float32) -> float:
    """Floating-point operations per second of square products, the best of as many as fit into some seconds."""
    best = 0.0
    for size in _SIZES:
        share = seconds / len(_SIZES)
        if best and 3 * 2 * size**3 / best > share:
            break
        best = max(best, _rate(size, share, dtype))
    return best


def _rate(size: int, seconds: float, dtype: mx.Dtype) -> float:
    """The same of one size. The first product does not count: a device may compile what it is made of."""
    a, b = (mx.random.normal((size, size)).astype(dtype) for _ in range(2))
    mx.eval(a @ b)
    best, repeats = 0.0, 1
    end = time.perf_counter() + seconds
    while not best or time.perf_counter() < end:
        started = time.perf_counter()
        mx.eval([a @ b for _ in range(repeats)])
        taken = time.perf_counter() - started
        best = max(best, repeats * 2 * size**3 / taken)
        # A GPU is faster than the call: many products at once measure the GPU.
        repeats = min(_MOST_PRODUCTS, repeats * 2) if taken < seconds / 8 else repeats
    return best


def peak_resident_memory() -> int | None:
    """The most bytes of memory that this process has held; None where the system does not say."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not getrusage: on Linux its value includes the memory of the parent at the fork.
        lines = status.read_text(encoding="ascii", errors="replace").splitlines()
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)
    if sys.platform == "win32":
        return None
    import resource

    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)  # bytes on macOS
