"""What a model folder holds, read from its config and the headers of its weights, and whether it is complete.

mlx reads weights lazily: a file that was cut off fails deep inside the first computation, if it fails at all.
The headers are a few kilobytes, so the check costs nothing next to loading and names the file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grit_mlx.errors import CheckpointError, ConfigError, unreadable

__all__ = ["Tensor", "decoder_config", "file_error", "read_config", "read_header", "read_headers", "refuse_pointer"]

INDEX = "model.safetensors.index.json"

_LFS = b"version https://git-lfs"
_POINTER = int.from_bytes(_LFS[:8], "little")  # taken for the length of a header


@dataclass(frozen=True)
class Tensor:
    """One tensor of a checkpoint.

    Attributes:
        file: the file that holds it.
        dtype: safetensors' name, such as ``"BF16"``.
        shape: its dimensions.
        nbytes: its size in the file.
        offset: where it begins, counted from the file's first byte.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    offset: int


def file_error(path: Path) -> str:
    """What to say of a file that was named in the place of a model's folder."""
    return f"{path} is a file. Name the folder that it is in, the one with config.json."


def read_config(folder: Path) -> dict[str, Any]:
    """The contents of a model folder's ``config.json``.

    Raises:
        ConfigError: the file is missing, is not a JSON object, or names no architecture.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(_not_a_model(folder)) from None
    except (OSError, ValueError) as error:
        refuse_pointer(path)
        raise ConfigError(f"{unreadable(path, error)} Download the model again.") from error
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise ConfigError(f"{path} does not say which architecture it is: it needs a 'model_type' such as \"mistral\".")
    return config


def decoder_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that describe the decoder, which models of text and images nest under ``text_config``."""
    return {**config, **(config.get("text_config") or {})}


def read_header(path: Path) -> dict[str, Tensor]:
    """The tensors of one safetensors file, by name.

    Source of the layout: 8 bytes of little-endian header length, a JSON header, then the data.

    Raises:
        CheckpointError: the file is not a safetensors file, or shorter than its header says.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length == _POINTER:
                refuse_pointer(path)
            if size < 8 or length > size - 8:
                raise CheckpointError(_broken(path, f"it ends after {size:,} bytes, inside its header"))
            header: dict[str, Any] = json.loads(file.read(length))
        header.pop("__metadata__", None)
        tensors = {name: _tensor(path, entry, data=8 + length) for name, entry in header.items()}
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except OSError as error:
        raise CheckpointError(unreadable(path, error)) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(_broken(path, "its header is not valid")) from error
    if 8 + length + end != size:
        problem = f"it has {size:,} bytes and its header promises {8 + length + end:,}"
        raise CheckpointError(_broken(path, problem))
    return tensors


def read_headers(folder: Path) -> dict[str, Tensor]:
    """The tensors of all ``model*.safetensors`` in a folder, by name.

    Raises:
        CheckpointError: there are none, one is broken, one that the index names is missing, or two of them hold
            the same tensor.
    """
    files = sorted(folder.glob("model*.safetensors"))
    for name in sorted(_shards_in_index(folder)):
        if folder / name not in files:
            raise CheckpointError(f"{folder / INDEX} names {name}, which is missing. Download the model again.")
    if not files:
        raise CheckpointError(_no_weights(folder))
    tensors: dict[str, Tensor] = {}
    for path in files:
        for name, tensor in read_header(path).items():
            if name in tensors:
                raise CheckpointError(
                    f"{name} is in both {tensors[name].file.name} and {path.name} of {folder}. "
                    "Remove the files that belong to another download or conversion."
                )
            tensors[name] = tensor
    return tensors


def refuse_pointer(path: Path) -> None:
    """Refuse what Git leaves in the place of a large file that was not fetched.

    Raises:
        CheckpointError: the file is one.
    """
    with path.open("rb") as file:
        pointer = file.read(len(_LFS)) == _LFS
    if pointer:
        raise CheckpointError(
            f"{path} is a Git LFS pointer, which stands for a file that was not downloaded. "
            "Run 'git lfs pull' in its folder, or download the model with 'grit models pull'."
        )


def _shards_in_index(folder: Path) -> set[str]:
    path = folder / INDEX
    try:
        return set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values())
    except FileNotFoundError:
        return set()
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{unreadable(path, error)} Download the model again.") from error
    except (KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{path} has no table 'weight_map'. Download the model again.") from None


def _tensor(path: Path, entry: dict[str, Any], data: int) -> Tensor:
    start, end = entry["data_offsets"]
    return Tensor(path, str(entry["dtype"]), tuple(map(int, entry["shape"])), int(end) - int(start), data + int(start))


def _broken(path: Path, problem: str) -> str:
    return f"{path} is damaged or not a safetensors file: {problem}. Download or convert the model again."


def _not_a_model(folder: Path) -> str:
    """What to say of a folder without ``config.json``."""
    if (folder / "adapter_config.json").exists():
        return f"{folder} holds an adapter. Name the model it was trained on, and this folder as the adapter."
    return f"{folder} has no config.json, so it is not a model folder. Name a folder with a Hugging Face or MLX model."


def _no_weights(folder: Path) -> str:
    if next(folder.glob("*.bin"), None) or next(folder.glob("*.pth"), None):
        return (
            f"{folder} holds its weights as pickle files (.bin or .pth), which can run code and are not read. "
            "Save it as safetensors: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder) "
            "with PyTorch and transformers."
        )
    return f"{folder} holds no model*.safetensors. Name a Hugging Face or MLX model folder."
