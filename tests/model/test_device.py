"""The device: dtypes, memory, and the BLAS that is arranged before mlx is imported."""

from __future__ import annotations

import ctypes.util
import os
import subprocess
import sys

import mlx.core as mx
import pytest

from grit_mlx.errors import ArgumentError
from grit_mlx.model import device
from grit_mlx.model.options import DTYPES, ModelChoice


def test_dtype_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_kind", lambda: "cpu")
    assert device.compute_dtype("auto") == mx.float32
    assert device.compute_dtype("stored") is None
    assert device.compute_dtype("float16") == mx.float16
    assert device.should_dequantize(mx.float32) and not device.should_dequantize(mx.float16)
    for kind in ("metal", "cuda"):
        monkeypatch.setattr(device, "_kind", lambda kind=kind: kind)
        assert device.compute_dtype("auto") is None
        assert not device.should_dequantize(mx.float32)
    with pytest.raises(ArgumentError, match="Unknown dtype 'int4': use one of auto, stored, float32, float16"):
        ModelChoice(dtype="int4")
    assert {"auto", "stored", *device.DTYPES} == set(DTYPES)


def test_device_describes_itself() -> None:
    here = device.current_device()
    assert here.kind in {"cpu", "metal", "cuda"}
    assert here.memory > 1 << 28
    assert 0 < device.available_memory() <= here.memory


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (RuntimeError("[malloc_or_wait] Unable to allocate 5 bytes."), True),
        (RuntimeError("[METAL] Command buffer execution failed: Insufficient Memory (0000008:kIOGPU...)"), True),
        (RuntimeError("cudaMallocAsync failed: out of memory"), True),
        (RuntimeError("[matmul] shapes do not match"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_out_of_memory_is_recognised(error: BaseException, expected: bool) -> None:
    assert device.is_out_of_memory(error) is expected


def test_wired_limit_is_set_and_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Metal's calls, on a machine without Metal: what matters is that they come in pairs, whatever happens."""
    limits = [7]

    def set_limit(limit: int) -> int:
        limits.append(limit)
        return limits[-2]

    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(mx, "device_info", lambda: {"max_recommended_working_set_size": 100})
    monkeypatch.setattr(mx, "set_wired_limit", set_limit)
    with pytest.raises(KeyboardInterrupt), device.wired():
        assert limits == [7, 100]
        raise KeyboardInterrupt
    assert limits == [7, 100, 7]
    monkeypatch.setattr(mx.metal, "is_available", lambda: False)
    with device.wired():
        pass
    assert limits == [7, 100, 7]


def test_metal_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_kind", lambda: "metal")
    monkeypatch.setattr(
        mx, "device_info", lambda: {"max_recommended_working_set_size": 1000, "memory_size": 1500, "device_name": "M9"}
    )
    monkeypatch.setattr(mx, "get_active_memory", lambda: 300)
    assert device.available_memory() == 700
    here = device.current_device()
    assert (here.kind, here.name, here.memory, here.blas) == ("metal", "M9", 1500, None)


BLAS = (
    "import {first}; from grit_mlx.model.blas import prefer_fast_blas as b; import grit_mlx; print(b().name, b().note)"
)


def blas(first: str = "grit_mlx", **environment: str) -> str:
    env = {**os.environ, **environment}
    return subprocess.run(
        [sys.executable, "-c", BLAS.format(first=first)], env=env, capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.mark.skipif(sys.platform != "linux", reason="macOS has a fast BLAS of its own")
def test_blas_is_chosen_before_mlx_is_imported() -> None:
    assert blas(GRIT_BLAS="bundled") == "bundled GRIT_BLAS=bundled is set"
    missing = blas(GRIT_BLAS="libnowhere.so.0")
    assert missing.startswith("bundled libnowhere.so.0 is not installed; with it matrix products run about 50 times")
    environment = {"GRIT_BLAS": "libopenblas.so.0"}
    assert blas("mlx.core", **environment).startswith("bundled mlx was imported before grit_mlx")
    if ctypes.util.find_library("openblas"):
        assert blas(**environment) == "openblas"
