"""Loading the model that a command was given."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from grit_mlx.cli import console
from grit_mlx.model import hub

if TYPE_CHECKING:
    from grit_mlx.gritlm import GritLM

__all__ = ["EMBEDDED", "load_model", "model_name"]

# Said by each command that uses the embedded model without being told to.
EMBEDDED = (
    "This is grit-tiny, the small English model inside grit-mlx: fit to try search; of a passage it repeats the first "
    "sentence, and no more. "
    "For the real one: grit models pull gritlm-7b --bits 4, then grit models use gritlm-7b-4bit"
)


def load_model(
    name: str | None,
    *,
    mode: str,
    dtype: str,
    adapter: str | None,
    revision: str | None,
    trust_remote_code: bool,
    pooling: str | None = None,
    attn: str | None = None,
) -> GritLM:
    """The model, found first (downloaded if need be, with the hub's own progress bar) and then loaded.

    Args:
        name: as ``--model``; None for the default.
        mode: see ``GritLM``, as for the others.
        dtype: see there.
        adapter: see there.
        revision: see there.
        trust_remote_code: see there.
        pooling: see there.
        attn: see there.

    Raises:
        GritError: as ``GritLM``.
    """
    folder = hub.resolve(name, revision=revision, trust_remote_code=trust_remote_code)
    if name is None and folder == hub.embedded_model():
        console.note(EMBEDDED)
    with console.status(f"Loading {model_name(name)}"):
        # Here, because it brings mlx and transformers: 1.2 seconds that a wrong name need not cost.
        from grit_mlx.gritlm import GritLM

        return GritLM(
            folder,
            mode=mode,
            dtype=dtype,
            adapter_path=adapter,
            pooling_method=pooling,
            attn=attn,
            trust_remote_code=trust_remote_code,
        )


def model_name(name: str | None) -> str:
    """What to call a model: the last part of a folder, the whole of a hub id."""
    chosen = name or hub.default_model() or ""
    return Path(chosen).name if Path(chosen).expanduser().is_dir() else chosen
