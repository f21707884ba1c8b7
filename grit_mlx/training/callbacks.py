"""What happens during a run, told to whoever wants to know: logs, progress bars, plots."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from grit_mlx.errors import DependencyError
from grit_mlx.files.atomic import atomic_path, output_errors
from grit_mlx.training.memory import MemoryEstimate

__all__ = ["Callback", "JsonLog", "Plan", "StepReport", "ValidationReport", "make_reporters", "read_log"]


@dataclass(frozen=True)
class Plan:
    """What is about to be trained.

    Attributes:
        run: the run's folder.
        steps: in all.
        start: steps that are done already.
        trained: parameters that are trained.
        parameters: of the whole model.
        memory: what it will take.
        advice: options that would make it fit, where it does not.
        rows: training rows of each kind.
        epochs: how often the run sees each kind.
        processes: that share the work.
    """

    run: Path
    steps: int
    start: int
    trained: int
    parameters: int
    memory: MemoryEstimate
    advice: Sequence[str]
    rows: Mapping[str, int]
    epochs: Mapping[str, float]
    processes: int


@dataclass(frozen=True)
class StepReport:
    """One step, or the mean over those since the last report.

    Attributes:
        step: steps that are done.
        losses: by name.
        learning_rate: of this step.
        gradient_norm: before clipping.
        tokens_per_second: without padding, all processes together.
        seconds: a step took.
        peak_memory: bytes, since the run began.
        temperature: what similarities are divided by.
    """

    step: int
    losses: Mapping[str, float]
    learning_rate: float
    gradient_norm: float
    tokens_per_second: float
    seconds: float
    peak_memory: int
    temperature: float


@dataclass(frozen=True)
class ValidationReport:
    """One validation.

    Attributes:
        step: steps that are done.
        losses: on held-out data, by name.
        scores: nDCG@10 or Spearman correlation of each set.
        is_best: whether it is the best so far.
    """

    step: int
    losses: Mapping[str, float] = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict)
    is_best: bool = False


class Callback:
    """Told what happens; does nothing about it. Only the first process of a run calls it."""

    def on_rows(self, file: str, rows: int) -> None:
        """So many rows of a data file are checked and tokenised."""

    def on_start(self, plan: Plan) -> None:
        """Training is about to begin."""

    def on_step(self, report: StepReport) -> None:
        """A step is done."""

    def on_report(self, report: StepReport) -> None:
        """``steps_per_report`` steps are done; their means."""

    def on_validation(self, report: ValidationReport) -> None:
        """A validation is done."""

    def on_checkpoint(self, folder: Path) -> None:
        """A checkpoint is written."""

    def on_end(self) -> None:
        """The run is over, by whatever end."""


class JsonLog(Callback):
    """One JSON object a line: ``{"kind": "train" or "validation", "step": ..., ...}``."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_start(self, plan: Plan) -> None:
        """Drop what was logged after the step that is gone on from, or everything."""
        kept = [line for line in read_log(self._path) if line["step"] <= plan.start] if plan.start else []
        with atomic_path(self._path) as unfinished:
            unfinished.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")

    def on_report(self, report: StepReport) -> None:
        """Write a line."""
        self._write({"kind": "train", **asdict(report)})

    def on_validation(self, report: ValidationReport) -> None:
        """Write a line."""
        self._write({"kind": "validation", **asdict(report)})

    def _write(self, record: Mapping[str, Any]) -> None:
        with output_errors(str(self._path)), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of a log; a last line that a crash cut off is left out."""
    records = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                records.append(json.loads(line))
            except ValueError:
                break
    return records


class TensorBoard(Callback):
    """Scalars for TensorBoard (extra ``tensorboard``)."""

    def __init__(self, run: Path, project: str) -> None:
        self._writer = _optional("tensorboardX", "tensorboard").SummaryWriter(str(run / "tensorboard"))

    def on_report(self, report: StepReport) -> None:
        """Write the means."""
        for name, value in _scalars(report).items():
            self._writer.add_scalar(name, value, report.step)

    def on_validation(self, report: ValidationReport) -> None:
        """Write losses and scores."""
        for name, value in _scalars(report).items():
            self._writer.add_scalar(name, value, report.step)

    def on_end(self) -> None:
        """Close the file."""
        self._writer.close()


class WandB(Callback):
    """Scalars for Weights & Biases (extra ``wandb``)."""

    def __init__(self, run: Path, project: str) -> None:
        self._run = _optional("wandb", "wandb").init(project=project, dir=str(run), name=run.name)

    def on_report(self, report: StepReport) -> None:
        """Send the means."""
        self._run.log(_scalars(report), step=report.step)

    def on_validation(self, report: ValidationReport) -> None:
        """Send losses and scores."""
        self._run.log(_scalars(report), step=report.step)

    def on_end(self) -> None:
        """Finish the run there."""
        self._run.finish()


_REPORTERS = {"tensorboard": TensorBoard, "wandb": WandB}


def make_reporters(names: Sequence[str], run: Path, project: str) -> list[Callback]:
    """The callbacks of ``report_to``.

    Raises:
        DependencyError: one needs a package that is not installed.
    """
    return [_REPORTERS[name](run, project) for name in names]


def _scalars(report: StepReport | ValidationReport) -> dict[str, float]:
    if isinstance(report, ValidationReport):
        losses = {f"valid/{name}": value for name, value in report.losses.items()}
        return losses | {f"score/{name}": value for name, value in report.scores.items()}
    others = ("learning_rate", "gradient_norm", "tokens_per_second", "peak_memory", "temperature")
    return {f"train/{name}": value for name, value in report.losses.items()} | {
        f"train/{name}": float(getattr(report, name)) for name in others
    }


def _optional(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DependencyError(f"This needs {module}: pip install 'grit-mlx[{extra}]'.") from error
