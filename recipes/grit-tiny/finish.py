"""The last checkpoint as a model: python recipes/grit-tiny/finish.py CHECKPOINT OUTPUT [--layers 1.0]

`grit train` leaves the projection before pooling as it was, while the tied head changes the gains of the last norm for
its own ends. The projection divides by them, so that an embedding weighs its dimensions as the bags did. --layers takes
the layers' output matrices back towards the beginning, where they added next to nothing: less of it is a better search
and a worse writer.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import grit_mlx  # noqa: F401 - before mlx: it arranges the BLAS

# isort: split
import mlx.core as mx
import numpy as np
import sources
from write_model import FILLING

NORM = "model.norm.weight"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--layers", type=float, default=1.0)
    options = parser.parse_args()
    start = sources.WORK / "start"
    options.output.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "grit.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(start / name, options.output / name)
    before = mx.load(str(start / "model.safetensors"))
    after = mx.load(str(options.checkpoint / "model.safetensors"))
    for name in after:
        if "o_proj" in name or "down_proj" in name:
            after[name] = before[name] + options.layers * (after[name] - before[name])
    mx.save_safetensors(str(options.output / "model.safetensors"), after, {"format": "mlx"})
    gains = np.array(after[NORM])[:-FILLING]
    gains = np.sign(gains) * np.maximum(np.abs(gains), 1e-3)
    weight = np.zeros((len(gains), len(gains) + FILLING))
    weight[np.arange(len(gains)), np.arange(len(gains))] = np.mean(np.abs(gains)) / gains
    weight = mx.array(weight.astype(np.float16))
    mx.save_safetensors(str(options.output / "projection.safetensors"), {"weight": weight})


if __name__ == "__main__":
    main()
