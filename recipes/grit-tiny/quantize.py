"""Quantise the finished model: python recipes/grit-tiny/quantize.py FOLDER OUTPUT"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from grit_mlx.convert import convert, quantization

BITS = {"table": 4, "layers": 8}
GROUP = 32  # the width is no multiple of 64


def table_apart(model: Any, base: quantization.Quantization) -> quantization.Predicate:
    return lambda path, module: replace(base, bits=BITS["table" if path == "model.embed_tokens" else "layers"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("output", type=Path)
    options = parser.parse_args()
    # float16 also halves the size of the scales. On a CPU, everything is converted to float32 when it is loaded.
    report = convert(
        options.folder,
        options.output,
        quantize=True,
        bits=BITS["table"],
        group_size=GROUP,
        recipe=table_apart,
        dtype="float16",
        force=True,
    )
    print(f"{report.output_bytes:,} bytes, {report.bits_per_weight:.2f} bits a weight; {report.drift}")


if __name__ == "__main__":
    main()
