"""Train a small model in the modes unified, embedding and generative for the same number of steps, and unified longer.

    nice python benchmarks/stories.py            everything, about 35 minutes on two cores; resumes if interrupted
    python benchmarks/stories.py --only report   only the results and curves

Requires ../shared (the model, training data and evaluation sets). Writes runs/stories/,
benchmarks/results/stories-*.json and docs/training-curves.png (which needs the extra `plots`).
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import machine, save  # before mlx, to load the fast BLAS

# isort: split
from grit_mlx.evaluation.plots import plot_curves
from grit_mlx.evaluation.scoring import evaluate_set
from grit_mlx.evaluation.sets import load_set
from grit_mlx.gritlm import GritLM
from grit_mlx.model.world import World
from grit_mlx.options import from_mapping
from grit_mlx.training import TrainingSettings, train
from grit_mlx.training.callbacks import Callback, StepReport, TrainingPlan, ValidationReport, read_log
from grit_mlx.training.preparation import prepare_data, prepare_model
from grit_mlx.training.settings import read_yaml
from grit_mlx.training.validation import held_out_losses

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
CONFIG = ROOT / "benchmarks" / "stories.yaml"
RUNS = Path("runs") / "stories"
CURVES = ROOT / "docs" / "training-curves.png"

# Settings that differ from the YAML. The last run shows whether the unified one only needs more steps.
VARIANTS: dict[str, dict[str, Any]] = {
    "unified": {"mode": "unified"},
    "embedding": {"mode": "embedding"},
    "generative": {"mode": "generative"},
    "unified-long": {"mode": "unified", "iters": 400},
}
SETS = ("clapnq_dev", "fairytaleqa_val", "pubmedqa", "scitldr_test", "xquad_en", "stsb")
ROWS = 2000  # of each source
SOURCES = {
    "embedding": (
        *("arxiv", "boolq_train2k", "clapnq_train", "dbpedia7.6k", "fairytaleqa_train", "medquad", "openstax_para"),
        "scitldr_train",
    ),
    "generative": ("clapnq_train", "gsm8k_train", "medquad", "openstax_qa", "opentriviaqa", "strategyqa", "tldr"),
}


class Printer(Callback):
    def on_start(self, plan: TrainingPlan) -> None:
        print(f"{plan.run}: {plan.trained:,} parameters, estimated peak {plan.memory.peak / 1e6:.0f} MB", flush=True)

    def on_report(self, report: StepReport) -> None:
        losses = ", ".join(f"{name} {value:.3f}" for name, value in report.losses.items())
        memory = f"{report.peak_memory / 1e6:.0f} MB"
        print(f"{report.step:5} {losses}; {report.tokens_per_second:.0f} tokens/s, {memory}", flush=True)

    def on_validation(self, report: ValidationReport) -> None:
        losses = ", ".join(f"{name} {value:.3f}" for name, value in report.losses.items())
        print(f"{report.step:5} held out: {losses}", flush=True)


def draw_sample(settings: TrainingSettings) -> None:
    """Write the training data: the same rows in every run, without instructions (see the YAML)."""
    assert settings.data
    for kind, sources in SOURCES.items():
        folder = Path(settings.data) / kind
        folder.mkdir(parents=True, exist_ok=True)
        for name in sources:
            path = folder / f"{name}.jsonl"
            if path.exists():
                continue
            with gzip.open(SHARED / "data" / "train" / kind / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
                rows = [json.loads(line) for line in file]
            rows = random.Random(name).sample(rows, min(ROWS, len(rows)))
            for row in rows:
                if kind == "embedding":
                    row["query"] = row["query"][1]
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def train_all(settings: TrainingSettings) -> None:
    for name, changes in VARIANTS.items():
        one = replace(settings, adapter_path=str(RUNS / name), **changes)
        if (Path(one.adapter_path) / "model.safetensors").exists():
            continue
        resume = any((Path(one.adapter_path) / "checkpoints").glob("step-*"))
        train(replace(one, resume=resume), [Printer()])


def measure(settings: TrainingSettings, name: str, model: str) -> dict[str, Any]:
    """Scores on the development sets and both losses on held-out rows."""
    started = time.perf_counter()
    world = World()
    prepared = prepare_model(replace(settings, model=model), world)
    prepared.trainee.eval()
    data = prepare_data(settings, prepared.loaded.tokenizer._tokenizer, world)
    found: dict[str, Any] = {"losses": held_out_losses(prepared, data, max_batches=settings.val_batches)}
    grit = GritLM.from_loaded(prepared.loaded)
    found["scores"] = {one: evaluate_set(grit, load_set(SHARED / "data" / "dev" / one)) for one in SETS}
    log = read_log(Path(model) / "log.jsonl")
    reports = [record for record in log if record["kind"] == "train"]
    if reports:
        each = settings.steps_per_report
        found["tokens"] = sum(record["tokens_per_second"] * record["seconds"] * each for record in reports)
        found["peak_megabytes"] = max(record["peak_memory"] for record in reports) / 1e6
    print(f"{name}: {found} ({time.perf_counter() - started:.0f} s)", flush=True)
    return found


def measure_all(settings: TrainingSettings) -> None:
    assert settings.model
    path = RUNS / "results.json"
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for name, model in {"before": settings.model, **{name: str(RUNS / name) for name in VARIANTS}}.items():
        if name not in results:
            results[name] = measure(settings, name, model)
            path.write_text(json.dumps(results, indent=1), encoding="utf-8")


def report(settings: TrainingSettings) -> None:
    results = json.loads((RUNS / "results.json").read_text(encoding="utf-8"))
    save(f"stories-{machine()['device']}", {"runs": results})
    plot_curves(CURVES, {name: read_log(RUNS / name / "log.jsonl") for name in VARIANTS})


STAGES = {"sample": draw_sample, "train": train_all, "measure": measure_all, "report": report}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=STAGES)
    only = parser.parse_args().only
    settings = from_mapping(TrainingSettings, read_yaml(CONFIG))
    for name, stage in STAGES.items():
        if only in (None, name):
            stage(settings)


if __name__ == "__main__":
    main()
