"""Adapter folders from mlx-lm's layout to PEFT's and back; see ``model.peft`` for what the layouts are."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.nn as nn

from grit_mlx.errors import AdapterError
from grit_mlx.files.atomic import output_errors
from grit_mlx.model.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS, attach, complete, read_adapter
from grit_mlx.model.peft import WEIGHTS, to_peft
from grit_mlx.training.adapters import write_layout
from grit_mlx.training.arrays import save_arrays

__all__ = ["export_peft", "import_peft"]

# Architectures of whose experts PEFT computes the same: it has its own table of how transformers 5 fuses them.
_EXPERTS_IN_PEFT = ("mixtral", "olmoe", "qwen3_moe")


def export_peft(adapter: Path, folder: Path, *, model: nn.Module, base: str = "") -> None:
    """Write an adapter folder in PEFT's layout.

    Args:
        adapter: in mlx-lm's layout.
        folder: is made.
        model: that it belongs to, which is changed; the weights need not be computed.
        base: its name; "" for the one that the adapter names.

    Raises:
        AdapterError: ``adapter`` is not an adapter, does not fit the model, or has layers that PEFT does not.
        OutputError: the folder cannot be written.
    """
    found = read_adapter(adapter)
    if found.layout is None:
        raise AdapterError(f"{adapter} holds fully tuned weights, not LoRA layers: there is nothing to export.")
    attach(model, found)
    kind = str(getattr(model, "model_type", ""))
    if kind not in _EXPERTS_IN_PEFT and any(".switch_mlp." in name for name in found.weights):
        raise AdapterError(
            f"{adapter} adapts experts of a {kind} model, which PEFT would read otherwise. Fuse it instead (grit fuse)."
        )
    config, tensors = to_peft(found.layout, found.weights, base=base or found.base or "", layers=len(model.layers))
    with output_errors(str(folder)):
        folder.mkdir(parents=True, exist_ok=True)
        save_arrays(folder / WEIGHTS, tensors, written_by="pt")
        (folder / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def import_peft(adapter: Path, folder: Path, *, model: nn.Module) -> None:
    """Write a PEFT adapter folder in mlx-lm's layout.

    Args:
        adapter: in PEFT's layout.
        folder: is made.
        model: that it belongs to, which is changed; the weights need not be computed.

    Raises:
        AdapterError: ``adapter`` is not an adapter, does not fit the model, or does what mlx-lm's layers cannot.
        OutputError: the folder cannot be written.
    """
    found = complete(read_adapter(adapter), model)
    assert found.layout is not None
    attach(model, found)
    with output_errors(str(folder)):
        folder.mkdir(parents=True, exist_ok=True)
        save_arrays(folder / ADAPTER_WEIGHTS, found.weights)
        write_layout(folder, found.layout, about={"model": found.base} if found.base else {})
