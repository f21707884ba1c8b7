"""What to say where a model that only embeds is asked to write."""

from __future__ import annotations

from pathlib import Path

from grit_mlx.errors import ModeError
from grit_mlx.model.catalogue import CatalogueEntry, catalogue, recommended, writers
from grit_mlx.model.device import current_device

__all__ = ["only_embeds"]


def only_embeds(folder: Path) -> ModeError:
    """The error for a model that cannot write: which models can on this machine, and the command that gets one.

    Args:
        folder: of the model.
    """
    memory = current_device().memory
    fitting = {one.family.name: one for one in writers(memory)}  # of each model the fewest bits, which come last
    smallest = min((one for one in catalogue() if one.family.writes), key=lambda one: one.long_bytes)
    best = recommended(memory) or smallest
    names = ", ".join(map(_named, {**fitting, best.family.name: best}.values()))
    return ModeError(
        f"{folder.name} only embeds. To write, this machine ({memory / 1e9:.0f} GB of memory) can run {names}: "
        f"{best.command} && grit models use {best.name}"
    )


def _named(entry: CatalogueEntry) -> str:
    return f"{entry.name} ({entry.size_bytes / 1e9:.1f} GB)"
