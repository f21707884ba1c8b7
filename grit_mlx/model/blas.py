"""Fast matrix products on Linux CPUs, arranged before mlx is first imported.

mlx's Linux wheel carries the reference BLAS, about 50 times slower than OpenBLAS. Both export the same
symbols, so an OpenBLAS that is loaded globally *before* ``mlx.core`` takes its place. If the library is
not installed nothing changes. ``GRIT_BLAS=bundled`` keeps mlx's own; any other value names the library to
load. Standard library only: this runs when ``grit_mlx`` is imported and costs a few milliseconds.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

__all__ = ["Blas", "numpy_threads", "prefer_fast_blas"]

OPENBLAS = "libopenblas.so.0"


@dataclass(frozen=True)
class Blas:
    """Which BLAS serves matrix products on the CPU.

    Attributes:
        name: ``"openblas"``, ``"bundled"`` (mlx's own) or ``"system"`` (macOS: Accelerate).
        note: why it is not OpenBLAS, and what to do; empty if there is nothing to do.
    """

    name: str
    note: str = ""


@cache
def prefer_fast_blas() -> Blas:
    """Load OpenBLAS in front of mlx's bundled BLAS, once, and return which one is in use. Never fails."""
    if sys.platform != "linux":
        return Blas("system")
    # Threads of OpenBLAS wait busily for the next product, by default for some 30 ms. mlx's and NumPy's take turns, and
    # those of one would keep the cores from those of the other. 2 ** 20 cycles bridge the gaps within a model.
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "20")
    wanted = os.environ.get("GRIT_BLAS", OPENBLAS)
    if wanted == "bundled":
        return Blas("bundled", "GRIT_BLAS=bundled is set")
    if "mlx.core" in sys.modules:
        return Blas("bundled", "mlx was imported before grit_mlx: import grit_mlx first")
    try:
        ctypes.CDLL(wanted, mode=ctypes.RTLD_GLOBAL)
    except OSError:
        return Blas(
            "bundled",
            f"{wanted} is not installed; with it matrix products run about 50 times faster "
            "(Debian and Ubuntu: apt install libopenblas0)",
        )
    return Blas("openblas")


def numpy_threads(count: int | None) -> int | None:
    """Set the number of threads of the OpenBLAS inside NumPy's wheel.

    Several threads of ours that multiply at once are slowed down many times by threads of OpenBLAS, which wait busily.

    Returns:
        The number until now; None, and nothing is set, if NumPy has another BLAS or ``count`` is None.
    """
    library = None if count is None else _numpy_library()
    if library is None:
        return None
    get, put = library
    before = int(get())
    if before != count:
        put(count)
    return before


@cache
def _numpy_library() -> tuple[Callable[[], int], Callable[[int | None], None]] | None:
    """Of the OpenBLAS inside NumPy's wheel, the functions that tell and set its number of threads."""
    import numpy as np

    libraries = Path(np.__file__).parent.parent / "numpy.libs"
    path = next(libraries.glob("libscipy_openblas*"), None)
    if path is None:
        return None
    suffix = "64_" if "openblas64_" in path.name else ""
    library = ctypes.CDLL(str(path))  # loaded already
    try:
        return library[f"scipy_openblas_get_num_threads{suffix}"], library[f"scipy_openblas_set_num_threads{suffix}"]
    except AttributeError:
        return None
