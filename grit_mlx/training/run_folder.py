"""The folder of a run: what is in it, and how it gets there so that a crash at any time leaves it usable.

::

    RUN/
      settings.yaml             the resolved settings
      log.jsonl, curves.png
      adapters.safetensors      the best weights so far (LoRA, DoRA), with adapter_config.json and grit.json;
      model.safetensors         or, for full tuning, a complete model folder with config.json and tokenizer
      checkpoints/
        step-00000200/          the same, with optimizer.safetensors and state.json
      stopped/                  the batch whose loss was not finite, if there was one
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx

from grit_mlx.errors import CheckpointError, ModelError, Option, OutputError, first_line
from grit_mlx.files.atomic import atomic_path, output_errors
from grit_mlx.files.folder import atomic_folder, require_space, sweep
from grit_mlx.model.checkpoint import read_header
from grit_mlx.training.arrays import read_arrays, save_arrays

__all__ = ["Position", "RunFolder"]

_STATE = "state.json"
_OPTIMIZER = "optimizer.safetensors"

# Bytes that must be free besides the arrays: for what describes them, and for the log.
_SLACK = 16 << 20


@dataclass(frozen=True)
class Position:
    """Where a run is. With the seed in the settings this is all of its state besides weights and optimizer.

    The data's position and the state of the random numbers are functions of the seed and ``step``.

    Attributes:
        step: steps that are done.
        best: the best validation so far, lower is better; None before the first.
        best_step: when that was.
        stale: validations since then.
        data: the data files and the hash of their contents and tokens.
        settings: the settings it was trained with.
        pending: steps that the log's next line will be the mean of.
    """

    step: int = 0
    best: float | None = None
    best_step: int | None = None
    stale: int = 0
    data: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    pending: Sequence[Mapping[str, Any]] = ()


class RunFolder:
    """A run's files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._checkpoints = path / "checkpoints"

    def make(self) -> None:
        """Make the folder, and remove what a killed run has left in it.

        Raises:
            OutputError: that is not possible.
        """
        with output_errors(str(self.path)):
            self._checkpoints.mkdir(parents=True, exist_ok=True)
            sweep(self._checkpoints)

    def checkpoints(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return sorted(path for path in self._checkpoints.glob("step-*") if (path / _STATE).exists())

    def save(
        self,
        position: Position,
        *,
        weights: Mapping[str, mx.array],
        weights_name: str,
        optimizer: Mapping[str, mx.array],
        keep_last: int,
        describe: Callable[[Path], None],
    ) -> Path:
        """Write a checkpoint, completely or not at all, then remove those that are too old.

        Args:
            position: where the run is.
            weights: what is trained.
            weights_name: its file.
            optimizer: the optimizer's state and what else is needed to resume.
            keep_last: how many to keep, besides the best.
            describe: writes into the folder what the weights need to be loaded.

        Raises:
            OutputError: the disk is full or cannot be written; nothing that was there is changed.
        """
        folder = self._checkpoints / f"step-{position.step:08d}"
        needed = sum(array.nbytes for array in [*weights.values(), *optimizer.values()]) + _SLACK
        try:
            require_space(folder, needed, "Make room.")
            with atomic_folder(folder) as unfinished:
                save_arrays(unfinished / weights_name, weights)
                save_arrays(unfinished / _OPTIMIZER, optimizer)
                describe(unfinished)
                (unfinished / _STATE).write_text(json.dumps(asdict(position), indent=2) + "\n", encoding="utf-8")
        except OutputError as error:
            raise OutputError(*error.parts, " Then go on with ", Option("resume", True), ".") from error
        self._prune(keep_last, position.best_step)
        return folder

    def load(self, folder: Path, weights_name: str) -> tuple[Position, dict[str, mx.array]]:
        """A checkpoint's position and arrays; the names of the weights begin with ``weights.``.

        Raises:
            ModelError: it cannot be read.
        """
        try:
            position = Position(**json.loads((folder / _STATE).read_text(encoding="utf-8")))
            for name in (weights_name, _OPTIMIZER):
                read_header(folder / name)
            weights = {f"weights.{name}": value for name, value in read_arrays(folder / weights_name).items()}
            return position, {**weights, **read_arrays(folder / _OPTIMIZER)}
        except (OSError, ValueError, TypeError, CheckpointError) as error:
            raise ModelError(
                f"Cannot resume from {folder}: {first_line(error)} Remove that folder to resume from the one before."
            ) from error

    def publish(self, checkpoint: Path, weights_name: str) -> None:
        """Put a checkpoint's files where the run's result is expected, each replaced atomically.

        Raises:
            OutputError: the disk is full or cannot be written.
        """
        names = {path.name for path in checkpoint.iterdir()} - {_STATE, _OPTIMIZER}
        # The weights last: whoever finds them finds the rest.
        for name in sorted(names, key=lambda name: name == weights_name):
            with atomic_path(self.path / name) as unfinished:
                shutil.copyfile(checkpoint / name, unfinished)

    def _prune(self, keep_last: int, best_step: int | None) -> None:
        best = None if best_step is None else f"step-{best_step:08d}"
        for old in self.checkpoints()[:-keep_last]:
            if old.name != best:
                shutil.rmtree(old, ignore_errors=True)
