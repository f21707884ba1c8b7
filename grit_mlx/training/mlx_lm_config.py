"""Settings files of ``mlx_lm.lora``: the same run in this project's settings (pure functions)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grit_mlx.errors import ConfigError

__all__ = ["from_mlx_lm", "is_mlx_lm"]

logger = logging.getLogger("grit_mlx")

# Names that only mlx-lm has, or gives another kind of value to.
_THEIRS = (
    "train",
    "test",
    "test_batches",
    "mask_prompt",
    "grad_accumulation_steps",
    "clear_cache_threshold",
    "hf_dataset",
)

# What mlx-lm takes if its file does not say, where that is not what is taken here.
_DEFAULTS: dict[str, Any] = {
    "learning_rate": 1e-5,
    "optimizer": "adam",
    "batch_size": 4,
    "max_seq_length": 2048,
    "lora_parameters": {"rank": 8, "dropout": 0.0, "scale": 20.0},
}
_SCHEDULES = {"cosine_decay": "cosine", "linear_schedule": "linear"}


def is_mlx_lm(values: Mapping[str, Any]) -> bool:
    """Whether the contents of a settings file are mlx-lm's."""
    nested = (values.get("optimizer_config") or {}).get(values.get("optimizer", "adam"))
    return any(name in values for name in _THEIRS) or isinstance(values.get("lr_schedule"), Mapping) or nested == {}


def from_mlx_lm(values: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The contents of mlx-lm's settings file in the settings of this project.

    Raises:
        ConfigError: it asks for what this project does not have.
    """
    if values.get("hf_dataset"):
        raise ConfigError(f"{path} names a data set of the hub (hf_dataset). Download it, and name its folder as data.")
    settings = {**_DEFAULTS, **{name: value for name, value in values.items() if value is not None}}
    notes = {"test data is not scored": values.get("test"), "prompts are not learned": not values.get("mask_prompt")}
    settings = {name: value for name, value in settings.items() if name not in (*_THEIRS, "config")}
    steps = int(values.get("grad_accumulation_steps") or 1)
    settings["generative_batch_size"] = int(settings.pop("batch_size")) * steps
    settings["iters"] = max(1, int(settings.get("iters", 1000)) // steps)
    settings |= {"mode": "generative", "lr_schedule": "constant", "warmup": 0.0, "max_grad_norm": 0.0}
    settings |= _schedule(values.get("lr_schedule"), settings["iters"], path)
    by_optimizer = settings.pop("optimizer_config", {})
    if own := by_optimizer.get(settings["optimizer"]):
        settings["optimizer_config"] = own
    adapter = settings.get("resume_adapter_file")
    if adapter and str(adapter).endswith(".safetensors"):  # mlx-lm names the file, this project its folder
        settings["resume_adapter_file"] = str(Path(adapter).parent)
    if isinstance(settings.get("report_to"), str):
        settings["report_to"] = [name.strip() for name in settings["report_to"].split(",") if name.strip()]
    logger.info(
        "%s is a settings file of mlx_lm.lora: its run is a generative one%s.",
        path,
        "".join(f"; {note}" for note, holds in notes.items() if holds),
    )
    return settings


def _schedule(schedule: Any, steps: int, path: Path) -> dict[str, Any]:
    if not schedule:
        return {}
    name = schedule.get("name")
    if name not in _SCHEDULES:
        known = ", ".join(_SCHEDULES)
        raise ConfigError(f"{path} asks for the schedule {name!r}; of mlx-lm's there are {known}.")
    rates = schedule.get("arguments") or []
    peak = {"learning_rate": float(rates[0])} if rates else {}
    return {"lr_schedule": _SCHEDULES[name], "warmup": min(0.99, float(schedule.get("warmup") or 0) / steps), **peak}
