"""grit fuse: a conversion with an adapter, and what it costs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from grit_mlx.convert import conversion, convert
from tests.convert.conftest import load_tensors, same_tensors
from tests.gguf_files import gguf_of
from tests.training.conftest import embedding_rows, write_rows
from tests.training.test_adapters import write_adapter

Grit = Any


@pytest.fixture
def quantized(tiny_model: Path, tmp_path: Path) -> Path:
    options: dict[str, Any] = {"bits": 4, "group_size": 32, "recipe": "uniform", "verify": False}
    return convert(tiny_model, tmp_path / "base", **options).folder


@pytest.mark.parametrize("dequantize", [True, False])
def test_fuse_is_convert_with_an_adapter(
    dequantize: bool, grit: Grit, quantized: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both commands call one function, and the same request makes the same files."""
    calls = []
    original = conversion.convert_source

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments[2:])  # where the model comes from, and what is made of it
        return original(*arguments, **options)

    monkeypatch.setattr(conversion, "convert_source", counted)
    write_adapter(tmp_path / "a", tiny_model)
    one, other = tmp_path / "fuse" / "out", tmp_path / "convert" / "out"
    flags = ("--dequantize",) if dequantize else ()
    run = grit("fuse", tmp_path / "a", "--model", quantized, "--output", one, *flags)
    assert run.code == 0, run.err
    adapter = ("--adapter", tmp_path / "a", "--dtype", "stored", "--no-verify")
    run = grit("convert", quantized, "--output", other, *adapter, *flags)
    assert run.code == 0, run.err
    (first, options), (second, others) = calls
    assert first == second
    assert {**vars(options), "output": None} == {**vars(others), "output": None}
    names, others = (
        sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()) for folder in (one, other)
    )
    assert names == others and "model.safetensors" in names
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def test_the_loss_of_quantised_weights_is_reported(
    grit: Grit, quantized: Path, tiny_model: Path, tmp_path: Path
) -> None:
    write_adapter(tmp_path / "a", tiny_model, keys=("self_attn.q_proj",))
    run = grit("fuse", tmp_path / "a", "--model", quantized, "--output", tmp_path / "fused")
    assert run.code == 0, run.err
    assert "Cosine of vectors before and after fusing: 0.9" in run.out
    assert "keep the adapter beside the weights (--adapter), or fuse with --dequantize." in run.err
    before, after = load_tensors(quantized), load_tensors(tmp_path / "fused")
    # Weights that are not adapted keep their bytes.
    changed = same_tensors(before, after)
    assert changed and all(".self_attn.q_proj." in name for name in changed)
    assert json.loads((tmp_path / "fused" / "config.json").read_text())["quantization"]["bits"] == 4
    run = grit("fuse", tmp_path / "a", "--model", quantized, "--output", tmp_path / "wide", "--dequantize")
    assert "Cosine of vectors before and after fusing: 1.000000" in run.out and "warning" not in run.err
    assert {array.dtype for array in load_tensors(tmp_path / "wide").values()} == {mx.float32}
    assert "quantization" not in json.loads((tmp_path / "wide" / "config.json").read_text())


def test_a_model_is_not_replaced(grit: Grit, tiny_model: Path, quantized: Path, tmp_path: Path) -> None:
    write_adapter(tmp_path / "a", tiny_model)
    run = grit("fuse", tmp_path / "a", "--model", tiny_model, "--output", quantized)
    assert (run.code, run.out) == (1, "")
    assert run.err == f"error: {quantized} holds a model already. Name another folder, or remove it.\n"


def test_an_adapter_of_a_gguf_file_knows_its_model(
    grit: Grit, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing names the model, and another one is the default."""
    file = gguf_of(tiny_model, tmp_path / "tiny.gguf")
    write_rows(tmp_path / "data" / "a.jsonl", embedding_rows(8))
    flags = ("--iters", 2, "--batch-size", 4, "--steps-per-eval", 0, "--mode", "embedding", "--learning-rate", 0.01)
    run = grit("train", "--model", file, "--data", tmp_path / "data", "--adapter-path", tmp_path / "a", *flags)
    assert run.code == 0, run.err
    monkeypatch.delenv("GRIT_MODEL")  # the model of the package has vectors of another length
    run = grit("fuse", tmp_path / "a", "--output", tmp_path / "fused")
    assert run.code == 0, run.err
    assert "Cosine of vectors before and after fusing: 1.000000" in run.out
