"""An adapter in float16, as it ships: python pack.py runs/grit-small/unified FOLDER

It has half the size that it was trained with, and scores the same.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import mlx.core as mx

WEIGHTS = "adapters.safetensors"
BESIDE = ("adapter_config.json", "grit.json", "settings.yaml", "log.jsonl")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.astype(mx.float16) for name, value in mx.load(str(options.run / WEIGHTS)).items()}
    mx.save_safetensors(str(options.folder / WEIGHTS), weights, metadata={"format": "mlx"})
    for name in BESIDE:
        if (options.run / name).exists():
            shutil.copyfile(options.run / name, options.folder / name)


if __name__ == "__main__":
    main()
