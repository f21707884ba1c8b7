"""Time of single operations on one batch of 2048 tokens, and the device's matmul rate.

    python benchmarks/operations.py

The matmul rate is measured for float32, bfloat16 and 4-bit weights; on Linux also with mlx's bundled BLAS.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grit_mlx  # noqa: F401 - before mlx, to load the fast BLAS

# isort: split
import mlx.core as mx
import mlx.nn as nn
from common import machine, matmul_rate, save, seconds
from mlx_lm.models.activations import swiglu

from grit_mlx.model import numpy_linear

VOCABULARY = 32_000
ROWS, LENGTH, HIDDEN, WIDTH, HEADS, KV_HEADS, SIZE = 8, 256, 512, 1408, 8, 4, 64


def best(work: Callable[[], mx.array]) -> float:
    mx.eval(work())
    return min(seconds(lambda: mx.eval(work())) for _ in range(7))


def operations() -> list[dict[str, Any]]:
    x = mx.random.normal((ROWS, LENGTH, HIDDEN))
    wide = mx.random.normal((ROWS, LENGTH, WIDTH))
    up = mx.random.normal((WIDTH, HIDDEN))
    queries = mx.random.normal((ROWS, HEADS, LENGTH, SIZE))
    keys = mx.random.normal((ROWS, KV_HEADS, LENGTH, SIZE))
    repeated = mx.repeat(keys, HEADS // KV_HEADS, axis=1)
    scores = mx.random.normal((ROWS, HEADS, LENGTH, LENGTH))
    norm = mx.ones((HIDDEN,))
    row, head = mx.random.normal((1, 1, HIDDEN)), nn.Linear(HIDDEN, VOCABULARY, bias=False)
    prepared = nn.Linear(HIDDEN, VOCABULARY, bias=False)
    prepared.weight = head.weight
    numpy_linear.prepare_rows(prepared)

    def through_numpy() -> mx.array:
        with numpy_linear.through_numpy():
            return prepared(row)

    work: dict[str, tuple[Callable[[], mx.array], int]] = {
        "hidden -> feed-forward product": (lambda: x @ up.T, wide.size),
        "SwiGLU": (lambda: swiglu(wide, wide), wide.size),
        "RMS norm": (lambda: mx.fast.rms_norm(x, norm, 1e-5), x.size),
        "rotary positions (queries)": (
            lambda: mx.fast.rope(queries, SIZE, traditional=False, base=1e4, scale=1.0, offset=0),
            queries.size,
        ),
        "attention scores (product)": (lambda: queries @ repeated.swapaxes(-1, -2), scores.size),
        "softmax of the scores": (lambda: mx.softmax(scores, axis=-1), scores.size),
        "attention, whole": (
            lambda: mx.fast.scaled_dot_product_attention(queries, keys, keys, scale=0.1, mask=None),
            scores.size,
        ),
        "one row -> logits": (lambda: head(row), VOCABULARY),
    }
    if machine()["device"] == "cpu":
        work["one row -> logits, through NumPy"] = (through_numpy, VOCABULARY)
    mx.eval(x, wide, up, queries, keys, repeated, scores, norm, row, head.parameters())
    rows = []
    for name, (function, numbers) in work.items():
        took = best(function)
        rows.append(
            {
                "operation": name,
                "milliseconds": round(took * 1e3, 2),
                "nanoseconds_each": round(took / numbers * 1e9, 2),
            }
        )
        print(f"{name:32} {took * 1e3:8.2f} ms  {took / numbers * 1e9:6.2f} ns each", file=sys.stderr)
    return rows


def rates() -> dict[str, float]:
    """GFLOP/s of a 1024 x 1024 product, by dtype of the weights."""
    size = 1024
    a, b = mx.random.normal((size, size)), mx.random.normal((size, size))
    packed = mx.quantize(b, group_size=64, bits=4)
    work: dict[str, Callable[[], mx.array]] = {
        "float32": lambda: a @ b.T,
        "bfloat16": lambda: a.astype(mx.bfloat16) @ b.astype(mx.bfloat16).T,
        "4-bit": lambda: mx.quantized_matmul(a, *packed, transpose=True, group_size=64, bits=4),
    }
    return {name: round(2 * size**3 / best(function) / 1e9, 1) for name, function in work.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", action="store_true", help=argparse.SUPPRESS)
    if parser.parse_args().rate:
        print(round(matmul_rate(1024) / 1e9, 1))
        return
    results: dict[str, Any] = {"operations": operations(), "gflops": rates()}
    if sys.platform == "linux":
        environment = {**os.environ, "GRIT_BLAS": "bundled"}
        command = [sys.executable, str(Path(__file__)), "--rate"]
        bundled = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        results["gflops"]["float32, mlx's bundled BLAS"] = float(bundled)
    print(results["gflops"], file=sys.stderr)
    save(f"operations-{machine()['device']}", results)


if __name__ == "__main__":
    main()
