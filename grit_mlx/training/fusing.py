"""Fusing an adapter into the weights it was trained on, and what that costs where they are quantised.

Into full-precision weights it costs nothing. Quantised ones are widened, added to and quantised again, which can
round a small adapter away: so what was lost is measured.
"""

from __future__ import annotations

import errno
import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_unflatten
from mlx_lm.utils import dequantize_model, save_config, save_model

from grit_mlx.errors import ArgumentError, CheckpointError
from grit_mlx.files.atomic import output_errors
from grit_mlx.gritlm import GritLM
from grit_mlx.model.checkpoint import read_header
from grit_mlx.model.loading import LoadedModel, load
from grit_mlx.model.options import ModelChoice
from grit_mlx.model.settings import write_settings
from grit_mlx.training.adapters import is_quantized
from grit_mlx.training.arrays import save_arrays
from grit_mlx.training.scratch import QUANTIZATION_KEYS, copy_tokenizer

__all__ = ["Drift", "fuse", "fused_model"]

logger = logging.getLogger("grit_mlx")

_TEXTS = (
    "A keel keeps a ship upright when the wind leans on its sails.",
    "What are the symptoms of iron deficiency?",
    "def mean(values): return sum(values) / len(values)",
    "The treaty was signed in 1648 and ended thirty years of war.",
    "How do I renew my passport?",
    "Entropy never decreases in an isolated system.",
    "She sold the farm, bought a boat and never came back.",
    "Bring 200 g of sugar and 100 ml of water to the boil.",
)


@dataclass(frozen=True)
class Drift:
    """Mean cosines of vectors of sample texts.

    Attributes:
        fused: with the adapter beside the weights, and fused into them; 1 where fusing costs nothing.
        adapter: without the adapter, and with it: the change that fusing is to keep.
        quantized: whether the fused weights are quantised.
    """

    fused: float
    adapter: float
    quantized: bool


def fuse(model: str | Path | None, adapter: Path, output: Path, *, dequantize: bool = False) -> Drift:
    """Write a model folder with the adapter fused in.

    Args:
        model: the name of the model that the adapter was trained on.
        adapter: its folder.
        output: a folder that does not hold a model yet.
        dequantize: leave the fused model unquantised.

    Returns:
        What fusing cost.

    Raises:
        ArgumentError: the adapter is of a kind that cannot be fused, or ``output`` is taken.
        OutputError: the folder cannot be written.
    """
    if (output / "config.json").exists():
        raise ArgumentError(f"{output} holds a model already. Name another folder, or remove it.")
    base = _vectors(load(ModelChoice(model, dtype="stored")))
    loaded = load(ModelChoice(model, adapter=adapter, dtype="stored"))
    beside = _vectors(loaded)
    config = fused_model(loaded.model, dict(loaded.config), dequantize=dequantize)
    fused = _vectors(loaded)
    with output_errors(str(output)):
        output.parent.mkdir(parents=True, exist_ok=True)
        # Beside its place: no half of a model is ever found there.
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=".unfinished-") as unfinished:
            _write(Path(unfinished), loaded, config)
            output.mkdir(exist_ok=True)
            for path in sorted(Path(unfinished).iterdir(), key=lambda path: path.name == "config.json"):
                path.replace(output / path.name)
    return Drift(_cosine(beside, fused), _cosine(base, beside), is_quantized(loaded.model))


def fused_model(model: Any, config: dict[str, Any], *, dequantize: bool) -> dict[str, Any]:
    """Fuse all adapted layers of a model in place, and return its config.

    Raises:
        ArgumentError: there are none.
    """
    fused = [(name, module.fuse(dequantize=dequantize)) for name, module in model.named_modules() if _can_fuse(module)]
    if not fused:
        raise ArgumentError("The adapter has no LoRA or DoRA layers to fuse: it holds whole weights.")
    model.update_modules(tree_unflatten(fused))
    if dequantize:
        dequantize_model(model)
        config = {key: value for key, value in config.items() if key not in QUANTIZATION_KEYS}
    mx.eval(model.parameters())
    return config


def _write(folder: Path, loaded: LoadedModel, config: dict[str, Any]) -> None:
    try:
        save_model(folder, loaded.model)
        for path in folder.glob("*.safetensors"):
            read_header(path)  # mlx does not always notice a full disk
    except (RuntimeError, CheckpointError) as error:
        raise OSError(errno.ENOSPC, "the weights came out incomplete") from error
    save_config(config, config_path=folder / "config.json")
    copy_tokenizer(loaded.folder, folder)
    write_settings(folder, loaded.settings)
    if loaded.projection is not None:
        weight, bias = loaded.projection
        save_arrays(folder / "projection.safetensors", {"weight": weight} | ({} if bias is None else {"bias": bias}))


def _can_fuse(module: Any) -> bool:
    return hasattr(module, "fuse")


def _vectors(loaded: LoadedModel) -> Any:
    return GritLM.from_loaded(loaded).encode_corpus(list(_TEXTS)).astype(np.float64)


def _cosine(first: Any, second: Any) -> float:
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return float(np.mean(np.sum(first * second, axis=1) / lengths))
