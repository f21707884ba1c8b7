"""Tunes the model three times for the same number of steps: unified, embedding and generative.

    python tune.py --seconds 260             as many steps as fit into the time
    python tune.py --iters 500               that many
    python tune.py --iters 4 --set batch_size=4 --set model=...    a trial

Each run's steps see the same rows in the same order, whatever its mode. Runs are resumed; a run that is interrupted,
or that its time is over for, leaves its adapter. Writes runs/grit-small/{unified,embedding,generative} and tune.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

import grit_mlx  # noqa: F401 - before mlx, to load the fast BLAS

# isort: split
import mlx.core as mx
import yaml

from grit_mlx.errors import GritError
from grit_mlx.options import from_mapping
from grit_mlx.training import TrainingSettings, train
from grit_mlx.training.callbacks import Callback, StepReport, TrainingPlan, ValidationReport
from grit_mlx.training.settings import read_yaml

SETTINGS = Path(__file__).with_name("settings.yaml")
MODES = ("unified", "embedding", "generative")
TRIAL_STEPS, SLOW_STEPS = 16, 6  # the first steps also prepare kernels
LEAST_STEPS = 20


class Watch(Callback):
    """Prints what happens, and interrupts a run when its time is over."""

    def __init__(self, name: str, until: float) -> None:
        self.name, self.until = name, until
        self.seconds: list[float] = []
        self.tokens = 0.0

    def on_start(self, plan: TrainingPlan) -> None:
        self._say(f"{plan.trained:,} of {plan.parameters:,} parameters, rows {dict(plan.rows)}, steps {plan.steps}")

    def on_step(self, report: StepReport) -> None:
        self.seconds.append(report.seconds)
        self.tokens += report.tokens_per_second * report.seconds
        if time.monotonic() > self.until:
            raise KeyboardInterrupt

    def on_report(self, report: StepReport) -> None:
        losses = ", ".join(f"{name} {value:.3f}" for name, value in report.losses.items())
        speed = f"{report.seconds:.2f} s, {report.tokens_per_second:,.0f} tokens/s, {report.peak_memory / 1e9:.1f} GB"
        self._say(f"step {report.step}: {losses}; {speed}, norm {report.gradient_norm:.2f}")

    def on_validation(self, report: ValidationReport) -> None:
        losses = ", ".join(f"{name} {value:.3f}" for name, value in report.losses.items())
        self._say(f"step {report.step}, held out: {losses}")

    def _say(self, text: str) -> None:
        print(f"{self.name}: {text}", flush=True)


def run(settings: TrainingSettings, name: str, until: float = float("inf")) -> dict[str, float]:
    """Begin or resume a run."""
    folder = Path(settings.adapter_path).parent / name
    watch, began = Watch(name, until), time.monotonic()
    resume = any((folder / "checkpoints").glob("step-*"))
    try:
        train(replace(settings, adapter_path=str(folder), resume=resume), [watch])
    except KeyboardInterrupt:
        if time.monotonic() < until:
            raise
        print(f"{name}: its time is over", flush=True)
    mx.clear_cache()
    return {
        "steps": len(watch.seconds),
        "tokens": watch.tokens,
        "seconds": time.monotonic() - began,
        "seconds_in_steps": sum(watch.seconds),
        "seconds_a_step": statistics.median(watch.seconds[SLOW_STEPS:] or watch.seconds or [0.0]),
    }


def trial(settings: TrainingSettings) -> dict[str, float]:
    """How long a step of both losses takes."""
    shutil.rmtree(Path(settings.adapter_path).parent / "trial", ignore_errors=True)
    return run(replace(settings, iters=TRIAL_STEPS, steps_per_eval=0, save_every=TRIAL_STEPS), "trial")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, help="for all three runs together")
    parser.add_argument("--iters", type=int, help="steps of each run; measured, if only --seconds is given")
    parser.add_argument("--most", type=int, default=600, help="at most as many steps: more repeat rows")
    parser.add_argument("--only", choices=[*MODES, "trial"], action="append")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="another setting")
    options = parser.parse_args()
    if options.iters is None and options.seconds is None:
        parser.error("give --seconds or --iters")
    values = read_yaml(SETTINGS)
    values |= {name: yaml.safe_load(value) for name, _, value in (one.partition("=") for one in options.set)}
    settings = from_mapping(TrainingSettings, values)
    found: dict[str, dict[str, float]] = {}
    until = float("inf")
    steps = options.iters
    if steps is None or "trial" in (options.only or ()):
        found["trial"] = trial(settings)
        print(f"trial: {found['trial']}", flush=True)
    if options.seconds:
        until = time.monotonic() + options.seconds
    if steps is None:
        # The unified run takes as long as the other two together; a tenth is for validations and checkpoints.
        affordable = 0.9 * options.seconds / 2 / found["trial"]["seconds_a_step"]
        steps = max(LEAST_STEPS, min(options.most, int(affordable)))
    for name in options.only or MODES:
        if name != "trial":
            try:
                found[name] = run(replace(settings, mode=name, iters=steps), name, until)
            except GritError as error:  # the others may still succeed
                print(f"{name}: {error}", flush=True)
            else:
                print(f"{name}: {found[name]}", flush=True)
    path = Path(settings.adapter_path).parent / "tune.json"
    path.write_text(json.dumps({"steps": steps, "runs": found}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
