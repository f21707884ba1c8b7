"""The folder of a run: what is in it, and how it gets there so that a crash at any moment leaves it usable.

::

    RUN/
      settings.yaml             the resolved settings
      log.jsonl, curves.png
      adapters.safetensors      the best weights so far (LoRA, DoRA), with adapter_config.json and grit.json;
      model.safetensors         or, for full tuning, a whole model folder with config.json and tokenizer
      checkpoints/
        step-00000200/          the same, with optimizer.safetensors and state.json
      stopped/                  the batch at which the loss was not finite, if it ever was
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx

from grit_mlx.errors import CheckpointError, ModelError, OutputError
from grit_mlx.files.atomic import atomic_path
from grit_mlx.model.checkpoint import read_header
from grit_mlx.training.arrays import read_arrays, save_arrays

__all__ = ["Position", "RunFolder"]

_STATE = "state.json"
_OPTIMIZER = "optimizer.safetensors"

# Bytes that must be free beside the arrays: for what describes them, and for the log.
_SLACK = 16 << 20


@dataclass(frozen=True)
class Position:
    """Where a run is. With the seed in the settings this is all of its state beside weights and optimizer.

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
        """Make the folder.

        Raises:
            OutputError: that is not possible.
        """
        try:
            self._checkpoints.mkdir(parents=True, exist_ok=True)
            for unfinished in self._checkpoints.glob(".*"):
                shutil.rmtree(unfinished, ignore_errors=True)
        except OSError as error:
            raise OutputError(f"Cannot make {self.path}: {error.strerror}.") from error

    def checkpoints(self) -> list[Path]:
        """Whole checkpoints, oldest first."""
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
        """Write a checkpoint, whole or not at all, then remove those that are too old.

        Args:
            position: where the run is.
            weights: what is trained.
            weights_name: its file.
            optimizer: the optimizer's state and what else is needed to go on.
            keep_last: how many to keep, beside the best.
            describe: writes into the folder what the weights need to be loaded.

        Raises:
            OutputError: the disk is full or cannot be written; nothing that was there is changed.
        """
        folder = self._checkpoints / f"step-{position.step:08d}"
        unfinished = self._checkpoints / f".{folder.name}"
        needed = sum(array.nbytes for array in [*weights.values(), *optimizer.values()]) + _SLACK
        try:
            free = shutil.disk_usage(self._checkpoints).free
            if free < needed:
                raise OSError(28, f"{needed / 1e6:.0f} MB are needed and {free / 1e6:.0f} MB are free")
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            save_arrays(unfinished / weights_name, weights)
            save_arrays(unfinished / _OPTIMIZER, optimizer)
            describe(unfinished)
            (unfinished / _STATE).write_text(json.dumps(asdict(position), indent=2) + "\n", encoding="utf-8")
            _sync(unfinished)
            shutil.rmtree(folder, ignore_errors=True)
            unfinished.rename(folder)
        except OSError as error:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise OutputError(
                f"Cannot write the checkpoint of step {position.step} to {self._checkpoints}: {error.strerror}. "
                "Make room and go on with --resume."
            ) from error
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
                f"Cannot go on from {folder}: {error}. Remove that folder to go on from the one before."
            ) from error

    def publish(self, checkpoint: Path, weights_name: str) -> None:
        """Put a checkpoint's files where the run's result is expected, each replaced in one go.

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


def _sync(folder: Path) -> None:
    """Make sure that the files are on the disk before the folder gets its name."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
