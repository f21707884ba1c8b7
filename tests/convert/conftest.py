"""Checkpoints in the shapes that the converter meets: in shards, under other names, of other architectures."""

from __future__ import annotations

import importlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from grit_mlx.convert.layout import parameters

INDEX = "model.safetensors.index.json"

Tensors = dict[str, mx.array]
Rename = Callable[[str], "str | None"]


def load_tensors(folder: Path) -> Tensors:
    tensors: Tensors = {}
    for path in sorted(folder.glob("model*.safetensors")):
        loaded: Any = mx.load(str(path))
        tensors.update(loaded)
    return tensors


def write_shards(folder: Path, tensors: Tensors, count: int) -> None:
    """Write tensors as ``count`` shards with an index, in the model's order, in place of the folder's weights."""
    mx.eval(tensors)
    tensors = dict(sorted(tensors.items(), key=lambda item: _place(item[0])))
    for path in folder.glob("model*.safetensors*"):
        path.unlink()
    names = list(tensors)
    size = -(-len(names) // count)
    index = {}
    for number in range(count):
        file = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
        part = names[number * size : (number + 1) * size]
        mx.save_safetensors(str(folder / file), {name: tensors[name] for name in part}, {"format": "pt"})
        index.update(dict.fromkeys(part, file))
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": index}))


def _place(name: str) -> tuple[int, str]:
    """Token embeddings, layer by layer, final norm, head: as Hugging Face saves a model."""
    layer = re.search(r"\.(\d+)\.", name)
    if layer is not None:
        return int(layer[1]), name
    return (-1 if "embed" in name else 999, "z" + name if "lm_head" in name else name)


def sharded(source: Path, folder: Path, count: int = 3, rename: Rename = lambda name: name) -> Path:
    """A copy of a checkpoint in shards, with its tensors renamed, or left out where the new name is None."""
    shutil.copytree(source, folder)
    tensors = {new: tensor for name, tensor in load_tensors(source).items() if (new := rename(name)) is not None}
    write_shards(folder, tensors, count)
    return folder


def same_tensors(first: Tensors, second: Tensors) -> list[str]:
    """Names of tensors that are not the same, bit by bit."""
    names = first.keys() | second.keys()
    return sorted(
        name
        for name in names
        if name not in first
        or name not in second
        or first[name].dtype != second[name].dtype
        or first[name].shape != second[name].shape
        or not mx.array_equal(first[name].view(mx.uint8), second[name].view(mx.uint8)).item()
    )


def checkpoint_of(kind: str, config: dict[str, Any], folder: Path, tokenizer: Path) -> Path:
    """A random model of one of mlx-lm's architectures, as Hugging Face would store it: experts one by one."""
    module = importlib.import_module(f"mlx_lm.models.{ {'mistral': 'llama'}.get(kind, kind) }")
    mx.random.seed(0)
    config = {"model_type": kind, **config}
    model = module.Model(module.ModelArgs.from_dict(config))
    tensors: Tensors = {}
    for name, array in parameters(model).items():
        array = array.astype(mx.bfloat16)
        if ".switch_mlp." in name:
            for expert in range(array.shape[0]):
                tensors[name.replace(".switch_mlp.", f".experts.{expert}.")] = array[expert]
        else:
            tensors[name] = array
    folder.mkdir(parents=True)
    for path in tokenizer.glob("tokenizer*"):
        shutil.copy(path, folder)
    (folder / "config.json").write_text(json.dumps({"torch_dtype": "bfloat16", **config}))
    write_shards(folder, tensors, 2)
    return folder


@pytest.fixture
def in_shards(tmp_path: Path, tiny_model: Path) -> Callable[..., Path]:
    """``in_shards(count=3, source=..., rename=...)``: a copy of a tiny model that a test may damage."""

    def make(count: int = 3, source: Path = tiny_model, rename: Rename = lambda name: name) -> Path:
        return sharded(source, tmp_path / "source", count, rename)

    return make
