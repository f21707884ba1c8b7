"""Restore the weights that embedding depends on: python recipes/grit-tiny/finish.py TRAINED [--output FOLDER]

Training for generation also changes weights that embedding depends on: those with which the layers write into the
bags' dimensions, and the numbers by which words are weighted. This script restores them. Generation does not need the
changes: the last layer does not read the bags' dimensions, and the head almost ignores them (``GAINS`` in
write_model.py).
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import grit_mlx  # noqa: F401 - before mlx, to load the fast BLAS

# isort: split
import mlx.core as mx
import sources
from write_model import CODE, CONSTANT, NEURONS, NOTES

COPIED = ("config.json", "grit.json", "tokenizer.json", "tokenizer_config.json", "projection.safetensors")


def finished(before: dict[str, mx.array], after: dict[str, mx.array]) -> dict[str, mx.array]:
    """The trained weights, with those that embedding depends on as before training."""
    size = before["model.embed_tokens.weight"].shape[1]
    bag, numbers = size - CODE - NOTES, size - NOTES + CONSTANT
    last = max(name for name in after if name.endswith("mlp.down_proj.weight")).removesuffix("down_proj.weight")
    found = dict(after)
    for name, value in after.items():
        old = before[name]
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            found[name] = mx.concatenate([old[:bag], value[bag:numbers], old[numbers:]], axis=0)
        if name == f"{last}down_proj.weight":
            found[name][:, :NEURONS] = old[:, :NEURONS]
        elif name.startswith(last):
            found[name][:NEURONS] = old[:NEURONS]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trained", type=Path)
    parser.add_argument("--output", type=Path, default=sources.WORK / "final")
    options = parser.parse_args()
    start = sources.WORK / "start"
    options.output.mkdir(parents=True, exist_ok=True)
    for name in COPIED:
        shutil.copyfile(start / name, options.output / name)
    before, after = (mx.load(str(folder / "model.safetensors")) for folder in (start, options.trained))
    mx.save_safetensors(str(options.output / "model.safetensors"), finished(before, after), {"format": "mlx"})


if __name__ == "__main__":
    main()
