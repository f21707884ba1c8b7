"""What was trained, with what embeds as it began: python recipes/grit-tiny-next/finish.py TRAINED OUTPUT

Training teaches to write. What the embedding is made of is taken back to where it began, because batches of this size
teach it what holds for them only (LOG.md has the figures): the bags' dimensions of the token table and what the layers
write there, the first layer, which counts words, and the last layer's part in weighing them. Writing misses the first
layer a little, and learns to do without in a few more steps (repair.yaml).
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import grit_mlx  # noqa: F401 - before mlx: it arranges the BLAS

# isort: split
import mlx.core as mx
import sources
from write_model import CODE, NOTES

COPIED = ("config.json", "grit.json", "tokenizer.json", "tokenizer_config.json", "projection.safetensors")


def finished(before: dict[str, mx.array], after: dict[str, mx.array]) -> dict[str, mx.array]:
    """The trained weights with what embeds as it was."""
    table = "model.embed_tokens.weight"
    bag, code = before[table].shape[1] - CODE - NOTES, before[table].shape[1] - NOTES
    last = max(int(name.split(".")[2]) for name in after if name.startswith("model.layers."))
    found = dict(after)
    for name, value in after.items():
        if name == table:
            found[name] = mx.concatenate([before[name][:, :bag], value[:, bag:]], axis=1)
        elif name.startswith(
            ("model.layers.0.", f"model.layers.{last}.mlp", f"model.layers.{last}.post_attention_layernorm")
        ):
            found[name] = before[name]
        elif name.endswith(("o_proj.weight", "down_proj.weight")):
            end = code if name.startswith(f"model.layers.{last}.") else before[table].shape[1]
            found[name] = mx.concatenate([before[name][:bag], value[bag:end], before[name][end:]], axis=0)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trained", type=Path)
    parser.add_argument("output", type=Path)
    options = parser.parse_args()
    start = sources.WORK / "start"
    options.output.mkdir(parents=True, exist_ok=True)
    for name in COPIED:
        shutil.copyfile(start / name, options.output / name)
    before, after = (mx.load(str(folder / "model.safetensors")) for folder in (start, options.trained))
    mx.save_safetensors(str(options.output / "model.safetensors"), finished(before, after), {"format": "mlx"})


if __name__ == "__main__":
    main()
