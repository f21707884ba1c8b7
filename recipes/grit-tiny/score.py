"""The development scores of a model folder, one line: python recipes/grit-tiny/score.py FOLDER..."""

from __future__ import annotations

import sys
import time

import sources

from grit_mlx.evaluation.retrieval import evaluate_set, load_set
from grit_mlx.gritlm import GritLM

SETS = ("clapnq_dev", "fairytaleqa_val", "pubmedqa", "scitldr_test", "xquad_en", "stsb")


def main() -> None:
    for folder in sys.argv[1:] or [None]:
        started = time.perf_counter()
        model = GritLM(folder)
        found = {name: evaluate_set(model, load_set(sources.DEV / name)) for name in SETS}
        mean = sum(found[name] for name in SETS[:-1]) / (len(SETS) - 1)
        parts = " ".join(f"{name} {value:.3f}" for name, value in found.items())
        print(f"{folder}: mean {mean:.4f} | {parts} ({time.perf_counter() - started:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
