"""Loading the model that a command was given."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grit_mlx.cli import console, launch
from grit_mlx.model import hub
from grit_mlx.model.catalogue import recommended
from grit_mlx.model.options import ModelChoice

if TYPE_CHECKING:
    from grit_mlx.cli.warm import RemoteModel, ServerUse
    from grit_mlx.gritlm import GritLM

__all__ = ["EMBEDDED", "load_model", "model_name", "note_embedded", "remote_model"]

# What the built-in model is.
EMBEDDED = "this is grit-tiny, the small English model that comes with grit."


def load_model(choice: ModelChoice, *, mode: str, server: ServerUse | None = None, split: str | None = None) -> Any:
    """The model, downloaded first if need be (with the hub's own progress bar).

    Args:
        choice: which, and how.
        mode: see ``GritLM``.
        server: whether one that a running server has in memory will do; None for a command that cannot use it.
        split: how it is split among the processes that mlx.launch started; None if each has all of it.

    Returns:
        A ``GritLM``; with ``server`` perhaps a ``RemoteModel``.

    Raises:
        GritError: as ``GritLM``.
    """
    if launch.led():
        return launch.load(hub.settled(choice), mode=mode, split=split)
    launch.check_alone(split)
    choice = _resolved(choice)
    return _remote(choice, mode, server) or _loaded(choice, mode)


def note_embedded(choice: ModelChoice, folder: Path) -> None:
    """Say so, once on this machine, where the built-in model is used because none was chosen."""
    if choice.model is None and folder == hub.embedded_model() and console.for_a_person():
        console.afterwards(_note_embedded)


def remote_model(choice: ModelChoice, server: ServerUse) -> RemoteModel | None:
    """The model in a running server's memory; None if it is in none, or must be loaded here."""
    choice = hub.settled(choice)
    if choice.adapter is not None:
        return None
    return _remote(replace(choice, model=hub.resolve(choice)), "unified", server)


def _resolved(choice: ModelChoice) -> ModelChoice:
    """The choice with its model's folder, unless an adapter says which model it is."""
    choice = hub.settled(choice)
    if choice.adapter is not None and choice.model is None:
        return choice
    folder = hub.resolve(choice)
    note_embedded(choice, folder)
    return replace(choice, model=folder)


def _remote(choice: ModelChoice, mode: str, server: ServerUse | None) -> RemoteModel | None:
    if server is None or server.no_server or choice.model is None:
        return None
    from grit_mlx.cli.warm import find

    remote = find(choice, Path(choice.model), lambda: _loaded(choice, mode))
    if remote is not None and mode == "generative" and not remote.settings.generates:
        return None  # loading it says why it does not
    return remote


def _loaded(choice: ModelChoice, mode: str) -> GritLM:
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
