"""The finished model in few bits: python recipes/grit-tiny/quantize.py FOLDER OUTPUT

The token table is most of the model and bears few bits: an embedding is a mean of many rows. What is written by hand
into the layers does not, and is small.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from write_model import BITS

from grit_mlx.convert import convert, quantization


def table_apart(model: Any, base: quantization.Quantization) -> quantization.Predicate:
    return lambda path, module: replace(base, bits=BITS["table" if path == "model.embed_tokens" else "layers"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("output", type=Path)
    options = parser.parse_args()
    quantization.RECIPES["table-apart"] = table_apart
    # In float16 the scales take half of the room, too; a CPU widens all of it when it is loaded.
    report = convert(
        options.folder,
        options.output,
        quantize=True,
        bits=BITS["table"],
        recipe="table-apart",
        dtype="float16",
        force=True,
    )
    print(f"{report.output_bytes:,} bytes, {report.bits_per_weight:.2f} bits a weight; {report.drift}")


if __name__ == "__main__":
    main()
