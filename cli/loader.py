"""Loading the model that a command was given."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grit_mlx.cli import console
from grit_mlx.model import hub
from grit_mlx.model.options import ModelChoice

if TYPE_CHECKING:
    from grit_mlx.cli.warm import RemoteModel, ServerUse
    from grit_mlx.gritlm import GritLM

__all__ = ["EMBEDDED", "load_model", "model_name", "note_embedded", "remote_model"]

# Shown by each command that uses the built-in model by default.
EMBEDDED = (
    "Using grit-tiny, the small English model built into grit-mlx: good enough to try search; its answers only repeat "
    "the first sentence of a passage. "
    "For the real one: grit models pull gritlm-7b --bits 4, then grit models use gritlm-7b-4bit"
)


def load_model(choice: ModelChoice, *, mode: str, server: ServerUse | None = None) -> Any:
    """The model, downloaded first if need be (with the hub's own progress bar).

    Args:
        choice: which, and how.
        mode: see ``GritLM``.
        server: whether one that a running server has in memory will do; None for a command that cannot use it.

    Returns:
        A ``GritLM``; with ``server`` perhaps a ``RemoteModel``.

    Raises:
        GritError: as ``GritLM``.
    """
    folder = hub.resolve(choice)
    note_embedded(choice, folder)
    return _remote(choice, folder, mode, server) or _loaded(choice, folder, mode)


def note_embedded(choice: ModelChoice, folder: Path) -> None:
    """Say so where the built-in model is used because none was chosen."""
    if choice.model is None and folder == hub.embedded_model():
        console.note(EMBEDDED)


def remote_model(choice: ModelChoice, server: ServerUse) -> RemoteModel | None:
    """The model in a running server's memory; None if it is in none, or must be loaded here."""
    return _remote(choice, hub.resolve(choice), "unified", server)


def _remote(choice: ModelChoice, folder: Path, mode: str, server: ServerUse | None) -> RemoteModel | None:
    if server is None or server.no_server:
        return None
    from grit_mlx.cli.warm import find

    remote = find(choice, folder, lambda: _loaded(choice, folder, mode))
    if remote is not None and mode == "generative" and not remote.settings.generates:
        return None  # loading it says why it does not
    return remote


def _loaded(choice: ModelChoice, folder: Path, mode: str) -> GritLM:
    with console.status(f"Loading {model_name(choice.model)}"):
        # Here, because it brings mlx and transformers: 1.2 seconds that a wrong name need not cost.
        from grit_mlx.gritlm import GritLM

        return GritLM.from_choice(replace(choice, model=folder), mode=mode)


def model_name(name: str | Path | None) -> str:
    """What to call a model: the last part of a folder, a complete hub id."""
    chosen = str(name or hub.default_model() or "")
    return Path(chosen).name if Path(chosen).expanduser().is_dir() else chosen
