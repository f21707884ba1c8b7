"""Loading the model that a command was given."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from grit_mlx.cli import console
from grit_mlx.model import hub
from grit_mlx.model.catalogue import recommended
from grit_mlx.model.options import ModelChoice

if TYPE_CHECKING:
    from grit_mlx.gritlm import GritLM

__all__ = ["EMBEDDED", "load_model", "model_name"]

# What the built-in model is.
EMBEDDED = "this is grit-tiny, the small English model that comes with grit."


def load_model(choice: ModelChoice, *, mode: str) -> GritLM:
    """The model, downloaded first if need be (with the hub's own progress bar).

    Args:
        choice: which, and how.
        mode: see ``GritLM``.

    Raises:
        GritError: as ``GritLM``.
    """
    choice = hub.settled(choice)
    if choice.adapter is None or choice.model is not None:  # else the adapter says which model
        folder = hub.resolve(choice)
        if choice.model is None and folder == hub.embedded_model() and console.for_a_person():
            console.afterwards(_note_embedded)
        choice = replace(choice, model=folder)
    name = model_name(choice.adapter if choice.model is None else choice.model)
    with console.status(f"Loading {name}"):
        # Here, because it brings mlx and transformers: 1.2 seconds that a wrong name need not cost.
        from grit_mlx.gritlm import GritLM

        return GritLM.from_choice(choice, mode=mode)


def _note_embedded() -> None:
    """Say once on this machine that the built-in model was used, and which one is better here."""
    marker = hub.home() / "noted-built-in-model"
    if marker.exists():
        return
    from grit_mlx.model.device import current_device

    better = recommended(current_device().memory)
    more = f" A larger one for this machine: {better.command}" if better is not None else ""
    console.note(EMBEDDED + more)
    with suppress(OSError):  # then it is said again
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()


def model_name(name: str | Path | None) -> str:
    """What to call a model: the last part of a folder, a complete hub id."""
    chosen = str(name or hub.default_model() or "")
    return Path(chosen).name if Path(chosen).expanduser().is_dir() else chosen
