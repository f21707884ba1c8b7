"""Broken checkpoints: each a named error that names the first tensor at fault, and nothing that looks finished."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from grit_mlx.convert import convert
from grit_mlx.errors import (
    AdapterError,
    ArchitectureError,
    CheckpointError,
    ConfigError,
    ModelError,
    ModelNotFoundError,
    TokenizerError,
)
from tests.convert.conftest import INDEX, load_tensors, write_shards

Damage = Callable[[Path], None]
SECOND = "model-00002-of-00003.safetensors"
UP = "model.layers.0.mlp.up_proj.weight"


def truncate(folder: Path) -> None:
    path = folder / SECOND
    path.write_bytes(path.read_bytes()[:-1000])


def remove(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def write(name: str, text: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).write_text(text)

    return damage


def tensors(change: Callable[[dict[str, mx.array]], Any]) -> Damage:
    def damage(folder: Path) -> None:
        arrays = load_tensors(folder)
        change(arrays)
        write_shards(folder, arrays, 3)

    return damage


def index(change: Callable[[dict[str, str]], Any]) -> Damage:
    def damage(folder: Path) -> None:
        content = json.loads((folder / INDEX).read_text())
        change(content["weight_map"])
        (folder / INDEX).write_text(json.dumps(content))

    return damage


def config(**changes: Any) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return damage


def duplicate(folder: Path) -> None:
    mx.save_safetensors(str(folder / "model-extra.safetensors"), {UP: mx.zeros((48, 32))})


def only_pickle(folder: Path) -> None:
    for path in folder.glob("model*.safetensors*"):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"x")


def wrong_length(folder: Path) -> None:
    path = folder / SECOND
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    name = next(name for name in header if name != "__metadata__" and len(header[name]["shape"]) == 2)
    header[name]["shape"][0] += 1
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])


MISTRAL: list[tuple[str, Damage, type[ModelError], str]] = [
    ("truncated", truncate, CheckpointError, rf"{SECOND} is damaged .* its header promises"),
    ("missing shard", remove(SECOND), CheckpointError, rf"{INDEX} names {SECOND}, which is missing"),
    ("not safetensors", write(SECOND, "no"), CheckpointError, rf"{SECOND} is damaged"),
    ("duplicated", duplicate, CheckpointError, rf"{UP} is in both"),
    ("wrong length", wrong_length, CheckpointError, r"bytes and its shape \(\d+, 32\) takes"),
    ("missing tensor", tensors(lambda t: t.pop(UP)), CheckpointError, rf"lack {UP}, which config.json asks for"),
    ("two missing", tensors(lambda t: (t.pop(UP), t.pop("model.norm.weight"))), CheckpointError, "and 1 more"),
    (
        "surplus tensor",
        tensors(lambda t: t.update({"model.layers.0.mlp.extra.weight": mx.zeros((2, 2))})),
        CheckpointError,
        r"model.layers.0.mlp.extra.weight in model-0000\d-of-00003.safetensors .* belongs to no part",
    ),
    (
        "a layer too many",
        tensors(lambda t: t.update({UP.replace(".0.", ".7."): mx.zeros((48, 32))})),
        CheckpointError,
        r"model.layers.7.mlp.up_proj.weight .* belongs to no part",
    ),
    (
        "misshapen",
        tensors(lambda t: t.update({UP: mx.zeros((32, 48))})),
        CheckpointError,
        rf"{UP} in .* has shape \(32, 48\) and config.json asks for \(48, 32\)",
    ),
    (
        "no such dtype",
        tensors(lambda t: t.update({UP: mx.zeros((48, 32), mx.complex64)})),
        CheckpointError,
        rf"{UP} in .* is stored as C64, which cannot be converted",
    ),
    (
        "index names another file",
        index(lambda m: m.update({UP: SECOND if m[UP] != SECOND else "model-00001-of-00003.safetensors"})),
        CheckpointError,
        rf"{INDEX} of .* says that {UP} is in model-0000\d-of-00003.safetensors, but model-0000",
    ),
    (
        "index names no tensor",
        index(lambda m: m.update(ghost=SECOND)),
        CheckpointError,
        rf"promises ghost in {SECOND}, which does not hold it",
    ),
    ("index lacks a tensor", index(lambda m: m.pop(UP)), CheckpointError, rf"holds {UP}, which {INDEX} does not"),
    ("index is no JSON", write(INDEX, "{"), CheckpointError, f"{INDEX} cannot be read"),
    ("pickle", only_pickle, CheckpointError, r"pickle files .*save_pretrained\(folder\)"),
    ("unknown architecture", config(model_type="zebra"), ArchitectureError, "no architecture 'zebra'"),
    ("own code", config(model_file="own.py"), ArchitectureError, "brings its own code"),
    ("no config", remove("config.json"), ConfigError, "has no config.json"),
    ("config lacks a key", config(hidden_size=None), ModelError, "Cannot|lacks"),
    (
        "quantised elsewhere",
        config(quantization_config={"quant_method": "gptq"}),
        ConfigError,
        "is quantised with GPTQ, which cannot be converted. Use the unquantised original",
    ),
    ("no tokenizer", remove("tokenizer.json"), TokenizerError, "has no tokenizer"),
    ("broken settings", write("grit.json", "{"), ConfigError, "grit.json"),
]
EXPERT = "model.layers.1.block_sparse_moe.experts.2.w1.weight"
MIXTRAL: list[tuple[str, Damage, type[ModelError], str]] = [
    (
        "expert missing",
        tensors(lambda t: t.pop(EXPERT)),
        CheckpointError,
        r"lacks expert 2 of model.layers.1.block_sparse_moe: it has no counterpart of .*experts.0.w1.weight",
    ),
    (
        "last expert missing",
        tensors(lambda t: t.pop(EXPERT.replace(".2.", ".3."))),
        CheckpointError,
        r"experts.0.w1.weight in .* has shape \(3, 48, 32\) and config.json asks for \(4, 48, 32\)",
    ),
    ("fewer experts", config(num_local_experts=2), CheckpointError, r"has shape \(4, 32\) and .* \(2, 32\)"),
    (
        "expert misshapen",
        tensors(lambda t: t.update({EXPERT: mx.zeros((48, 16))})),
        CheckpointError,
        rf"{EXPERT} in .* has shape \(48, 16\) and type F32; .*experts.0.w1.weight has \(48, 32\) and F32",
    ),
    (
        "expert of another type",
        tensors(lambda t: t.update({EXPERT: mx.zeros((48, 32), mx.bfloat16)})),
        CheckpointError,
        rf"{EXPERT} in .* type BF16; .* has \(48, 32\) and F32",
    ),
]


@pytest.mark.parametrize(("damage", "kind", "problem"), [row[1:] for row in MISTRAL], ids=[row[0] for row in MISTRAL])
def test_damaged(
    damage: Damage, kind: type[ModelError], problem: str, in_shards: Callable[..., Path], tmp_path: Path
) -> None:
    source = in_shards()
    damage(source)
    refused(source, tmp_path, kind, problem)


@pytest.mark.parametrize(("damage", "kind", "problem"), [row[1:] for row in MIXTRAL], ids=[row[0] for row in MIXTRAL])
def test_damaged_experts(
    damage: Damage,
    kind: type[ModelError],
    problem: str,
    in_shards: Callable[..., Path],
    tiny_mixtral: Path,
    tmp_path: Path,
) -> None:
    source = in_shards(source=tiny_mixtral)
    damage(source)
    refused(source, tmp_path, kind, problem)


def refused(source: Path, tmp_path: Path, kind: type[ModelError], problem: str) -> None:
    with pytest.raises(kind, match=problem) as caught:
        convert(source, tmp_path / "out", quantize=True, group_size=32)
    message = str(caught.value)
    assert "\n" not in message and message.endswith((".", "transformers."))
    assert {path.name for path in tmp_path.iterdir()} == {"source"}, "nothing is left behind"


def test_damage_that_shows_up_late(
    in_shards: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shard that is cut off while it is read: nothing is left that could be taken for a model, or resumed."""
    source = in_shards()
    real = (source / SECOND).read_bytes()

    def cut(step: Any) -> None:
        (source / SECOND).write_bytes(real[:2000])

    with pytest.raises(CheckpointError, match=rf"{SECOND} has become shorter while it was read"):
        convert(source, tmp_path / "out", verify=False, shard_bytes=4000, progress=cut)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_sources_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="There is no folder"):
        convert(tmp_path / "none", tmp_path / "out")
    with pytest.raises(ModelNotFoundError, match="Did you mean gritlm-7b"):
        convert("gritlm-7", tmp_path / "out")


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({}, "is not an adapter folder"),
        ({"adapter_model.safetensors": b"x"}, r"is not an adapter folder: it has no adapter_config\.json"),
        ({"adapter_config.json": b"{", "adapters.safetensors": None}, "adapter_config.json"),
    ],
)
def test_broken_adapters(files: dict[str, bytes | None], problem: str, tiny_model: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    for name, content in files.items():
        if content is None:
            mx.save_safetensors(str(adapter / name), {"x": mx.zeros(1)})
        else:
            (adapter / name).write_bytes(content)
    with pytest.raises(AdapterError, match=problem):
        convert(tiny_model, tmp_path / "out", adapter=adapter, verify=False)
    assert not (tmp_path / "out").exists()
