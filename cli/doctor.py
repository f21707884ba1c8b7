"""``grit doctor``: what this machine has, and how to fix what is wrong with it."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grit_mlx
from grit_mlx.cli import console, options
from grit_mlx.cli.wording import size_of
from grit_mlx.errors import GritError
from grit_mlx.model import hub

__all__ = ["EXAMPLES", "doctor", "facts"]

EXAMPLES = """
Examples:
  grit doctor
  grit doctor --json
"""

_PACKAGES = ("mlx", "mlx-lm", "transformers", "huggingface-hub", "numpy", "pyarrow")
_PROGRAMS = ("apt", "brew", "export", "grit", "hf", "pip", "pipx", "sudo", "unset", "uv")
_TRUE = {"1", "ON", "YES", "TRUE"}
_MEASURED_SECONDS = 0.3
# Below this a CPU uses mlx's reference BLAS, whichever was to be loaded.
_SLOW_GFLOPS = 20


@options.command
def doctor(*, json_output: options.JsonFlag = False) -> None:
    """Check this machine, and say what to do about problems.

    Looks at versions, device, memory, the speed of matrix products, the default model and the model cache.
    """
    with console.status("Looking at this machine"):
        found = facts()
    if json_output:
        console.write(console.dumps(found, indent=2))
        return
    console.write_rows(_rows(found))
    console.write("")
    for problem in found["problems"]:
        console.write(console.visible(f"! {problem}"))
    if commands := found["commands"]:
        console.write("\nTo fix this:")
        for command in commands:
            console.write(f"  {console.visible(command)}")
    elif not found["problems"]:
        console.write("No problems found.")


def facts() -> dict[str, Any]:
    """What is checked; ``problems``, sentences that say what to do; and the ``commands`` in them."""
    problems: list[str] = []
    device: dict[str, Any] = {}
    with _noting(problems, "mlx does not work here"):
        device = _device(problems)
    default = folder = None
    with _noting(problems):
        default = hub.default_model()
        folder = _place(default, problems)
    return {
        "commands": [command for problem in problems if (command := _command_in(problem))],
        "grit_mlx": grit_mlx.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "packages": {name: _version(name) for name in _PACKAGES},
        "device": device,
        "default_model": default,
        "default_model_folder": folder,
        "settings_folder": str(hub.home()),
        "hub_cache": _hub_cache(),
        "hub_offline": os.environ.get("HF_HUB_OFFLINE", "").upper() in _TRUE,
        "problems": problems,
    }


def _command_in(problem: str) -> str | None:
    """The command that a sentence names, ready to be copied."""
    match = re.search(rf"[:,] ((?:{'|'.join(_PROGRAMS)}) [^():]+?)\.?(?:\)|$| \()", problem)
    return match[1] if match else None


@contextmanager
def _noting(problems: list[str], what: str = "") -> Iterator[None]:
    """Add an error of ours to the problems, or any error if ``what`` says what fails with it."""
    try:
        yield
    except Exception as error:
        if not what and not isinstance(error, GritError):
            raise
        problems.append(f"{what}: {error}" if what else str(error))


def _device(problems: list[str]) -> dict[str, Any]:
    from grit_mlx.benchmarking.machine import matrix_rate
    from grit_mlx.model import device

    here = device.current_device()
    gflops = matrix_rate(seconds=_MEASURED_SECONDS) / 1e9
    if here.blas_note:
        problems.append(f"Matrix products use mlx's slow BLAS: {here.blas_note}.")
    elif here.kind == "cpu" and gflops < _SLOW_GFLOPS:
        problems.append(f"Matrix products are slow here: {gflops:.1f} GFLOP/s. Are other programs running?")
    if sys.platform == "darwin" and here.kind == "cpu":
        problems.append("mlx does not use this Mac's GPU. It needs Apple silicon and a native (arm64) Python.")
    return {
        "kind": here.kind,
        "name": here.name,
        "memory_bytes": here.memory,
        "available_memory_bytes": device.available_memory(),
        "blas": here.blas,
        "matmul_gflops": round(gflops, 1),
    }


def _place(default: str | None, problems: list[str]) -> str | None:
    """The folder of the default model; None if it is not on this machine."""
    if default is None:
        problems.append("There is no default model. Choose one: grit models use gritlm-7b (or a folder)")
        return None
    place = hub.identify(default)
    if not isinstance(place, str):
        return str(place)
    for model in hub.local_models():
        if model.name.lower() == place.lower():
            return str(model.folder)
    problems.append(f"The default model {place} is not on this machine yet. Download it: grit models pull {default}")
    return None


def _hub_cache() -> str:
    from huggingface_hub.constants import HF_HUB_CACHE

    return str(HF_HUB_CACHE)


def _version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _rows(found: dict[str, Any]) -> dict[str, str]:
    """The facts as a person reads them."""
    rows = {
        "grit-mlx": found["grit_mlx"],
        "Python": f"{found['python']} on {found['system']}",
        **{name: number or "not installed" for name, number in found["packages"].items()},
    }
    if device := found["device"]:
        memory, free = size_of(device["memory_bytes"]), size_of(device["available_memory_bytes"])
        blas = f" with {device['blas']} BLAS" if device["blas"] else ""
        rows |= {
            "device": f"{device['name']} ({device['kind']})",
            "memory": f"{memory}, {free} free for models",
            "matrix products": f"{device['matmul_gflops']:,.0f} GFLOP/s in float32{blas}",
        }
    offline = " (offline: HF_HUB_OFFLINE is set)" if found["hub_offline"] else ""
    return rows | {
        "default model": found["default_model"] or "none",
        "settings": found["settings_folder"],
        "model cache": found["hub_cache"] + offline,
    }
