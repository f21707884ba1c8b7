"""What a run reports, and to whom: log file, TensorBoard, Weights & Biases, your own callbacks."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grit_mlx.errors import Option
from grit_mlx.files.atomic import atomic_path, output_errors
from grit_mlx.optional import optional

if TYPE_CHECKING:
    from grit_mlx.training.memory import MemoryEstimate  # which imports mlx

__all__ = ["Callback", "JsonLog", "StepReport", "TrainingPlan", "ValidationReport", "make_reporters", "read_log"]


@dataclass(frozen=True)
class TrainingPlan:
    """What is about to be trained.

    Attributes:
        run: the run's folder.
        steps: total steps.
        start: steps already done.
        trained: trained parameters.
        parameters: parameters of the model.
        memory: the estimate.
        advice: what would make the run fit, if it does not.
        rows: training rows of each kind.
        epochs: passes of the run over the rows of each kind.
        processes: processes that share the work.
    """

    run: Path
    steps: int
    start: int
    trained: int
    parameters: int
    memory: MemoryEstimate
    advice: Sequence[str | Option]
    rows: Mapping[str, int]
    epochs: Mapping[str, float]
    processes: int


@dataclass(frozen=True)
class StepReport:
    """One step, or the mean over those since the last report.

    Attributes:
        step: steps done.
        losses: by name.
        learning_rate: of this step.
        gradient_norm: before clipping.
        tokens_per_second: without padding, over all processes.
        seconds: per step.
        peak_memory: bytes, since the run started.
        temperature: by which similarities are divided.
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
        step: steps done.
        losses: on held-out data, by name.
        scores: nDCG@10 or Spearman correlation of each set.
        is_best: whether it is the best so far.
    """

    step: int
    losses: Mapping[str, float] = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict)
    is_best: bool = False


class Callback:
    """Methods that a run calls, in its first process only; these do nothing."""

    def on_rows(self, file: str, rows: int) -> None:
        """This many rows of a data file have been checked and tokenised."""

    def on_start(self, plan: TrainingPlan) -> None:
        """Training is about to begin."""

    def on_step(self, report: StepReport) -> None:
        """A step was done."""

    def on_report(self, report: StepReport) -> None:
        """``steps_per_report`` steps were done; gets their means."""

    def on_validating(self, step: int, done: int, total: int) -> None:
        """A validation is under way: so many of its batches and sets are done."""

    def on_validation(self, report: ValidationReport) -> None:
        """A validation was done."""

    def on_checkpoint(self, folder: Path) -> None:
        """A checkpoint was written."""

    def on_end(self) -> None:
        """The run is over, also if by an error."""


class JsonLog(Callback):
    """A file with one JSON object per line: ``{"kind": "train" or "validation", "step": ..., ...}``."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_start(self, plan: TrainingPlan) -> None:
        """Drop what was logged after the step that is resumed from, or everything."""
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
    """The records of a log, without a last line that a crash cut off."""
    records = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                records.append(json.loads(line))
            except ValueError:
                break
    return records


class Reporter(Callback):
    """Sends scalars to a service.

    Args:
        send: called with scalars by name, and their step.
        close: called when the run is over.
    """

    def __init__(self, send: Callable[[Mapping[str, float], int], Any], close: Callable[[], Any]) -> None:
        self._send = send
        self._close = close

    def on_report(self, report: StepReport) -> None:
        """Send the means."""
        self._send(_scalars(report), report.step)

    def on_validation(self, report: ValidationReport) -> None:
        """Send losses and scores."""
        self._send(_scalars(report), report.step)

    def on_end(self) -> None:
        """Close the connection."""
        self._close()


def _tensorboard(run: Path, project: str) -> Reporter:
    tensorboard = optional("tensorboardX", extra="tensorboard", purpose="TensorBoard")
    writer = tensorboard.SummaryWriter(str(run / "tensorboard"))

    def send(scalars: Mapping[str, float], step: int) -> None:
        for name, value in scalars.items():
            writer.add_scalar(name, value, step)

    return Reporter(send, writer.close)


def _wandb(run: Path, project: str) -> Reporter:
    wandb = optional("wandb", extra="wandb", purpose="Weights & Biases")
    service = wandb.init(project=project, dir=str(run), name=run.name)
    return Reporter(lambda scalars, step: service.log(scalars, step=step), service.finish)


_REPORTERS = {"tensorboard": _tensorboard, "wandb": _wandb}


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
