"""What people bring to a conversion and how it goes wrong: each a named error or a note, never a damaged model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from grit_mlx.convert import convert
from grit_mlx.errors import CheckpointError, ConfigError, NonFiniteError
from tests.convert.conftest import load_tensors, write_shards
from tests.convert.test_conversion import quick

UP = "model.layers.0.mlp.up_proj.weight"


def damaged(folder: Path, name: str, value: float, *, dtype: mx.Dtype = mx.float32) -> Path:
    tensors = {key: tensor.astype(dtype) for key, tensor in load_tensors(folder).items()}
    tensors[name] = tensors[name].reshape(-1)
    tensors[name][-1] = value
    tensors[name] = tensors[name].reshape(load_tensors(folder)[name].shape)
    write_shards(folder, tensors, 2)
    return folder


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", [UP, "model.norm.weight", "model.embed_tokens.weight"])
@pytest.mark.parametrize("options", [{}, {"bits": 4, "group_size": 32}, {"mode": "mxfp4"}], ids=str)
def test_numbers_that_are_none(
    value: float, name: str, options: dict[str, Any], in_shards: Callable[..., Path], tmp_path: Path
) -> None:
    source = damaged(in_shards(), name, value)
    with pytest.raises(NonFiniteError, match=rf"^{name} of source holds NaN or infinity: .* Download"):
        quick(source, tmp_path / "out", **options)
    assert [path.name for path in tmp_path.iterdir()] == [source.name], "nothing is left that nobody could resume"


@pytest.mark.parametrize("stored", [mx.float32, mx.bfloat16])
@pytest.mark.parametrize("options", [{}, {"bits": 8, "group_size": 32}], ids=str)
def test_numbers_too_large_for_the_dtype(
    stored: mx.Dtype, options: dict[str, Any], in_shards: Callable[..., Path], tmp_path: Path
) -> None:
    source = damaged(in_shards(), UP, 1e5, dtype=stored)
    with pytest.raises(
        NonFiniteError, match=rf"{UP} of source has numbers too large for float16. Choose another dtype"
    ):
        quick(source, tmp_path / "out", dtype="float16", **options)
    assert not (tmp_path / "out").exists()
    assert quick(source, tmp_path / "wide", dtype="bfloat16", **options).exists()


def test_a_model_whose_products_overflow_is_not_verified(
    in_shards: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = damaged(in_shards(), UP, 3e38)
    report = convert(source, tmp_path / "out", bits=4, group_size=32, dtype="float32")
    assert report.drift is None and "Not verified: mistral computes NaN or infinity" in caplog.text


def test_experts_that_are_damaged(in_shards: Callable[..., Path], tiny_mixtral: Path, tmp_path: Path) -> None:
    name = "model.layers.1.block_sparse_moe.experts.2.w1.weight"
    source = damaged(in_shards(source=tiny_mixtral), name, float("nan"))
    with pytest.raises(NonFiniteError, match=r"model.layers.1.block_sparse_moe.*holds NaN"):
        quick(source, tmp_path / "out", bits=4, group_size=32)


@pytest.mark.parametrize("dangling", [False, True])
def test_a_link_is_written_through(dangling: bool, tiny_model: Path, tmp_path: Path) -> None:
    real, link = tmp_path / "disk" / "deep" / "real", tmp_path / "link"
    if not dangling:
        real.mkdir(parents=True)
    link.symlink_to(real)
    report = convert(tiny_model, link, bits=4, group_size=32, verify=False)
    assert link.is_symlink() and (real / "config.json").exists()
    assert report.folder == link and not list(tmp_path.glob(".*")) and not list(real.parent.glob(".*"))
    convert(tiny_model, link, verify=False, force=True)
    assert link.is_symlink() and "quantization" not in json.loads((real / "config.json").read_text())
    assert not list(tmp_path.glob(".*")) and not list(real.parent.glob(".*"))


def test_groups_that_do_not_fit(tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    quick(tiny_model, tmp_path / "64", bits=4)
    assert "rows of 32 do not divide into groups of 64. Use group_size=32." in caplog.text
    caplog.clear()
    quick(tiny_model, tmp_path / "32", bits=4, group_size=32)
    assert "quantised:" not in caplog.text


def test_a_recipe_that_takes_little_says_so(tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    quick(tiny_model, tmp_path / "out", group_size=32, recipe=lambda model, base: lambda path, module: None)
    assert "Nothing is quantised: the recipe leaves them as they are." in caplog.text


@pytest.mark.parametrize("differs", [True, False])
def test_a_head_that_the_config_ties(
    differs: bool, in_shards: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = in_shards()
    tensors = load_tensors(source)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + (1 if differs else 0)
    write_shards(source, tensors, 2)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    quick(source, tmp_path / "out")
    assert ("lm_head.weight differs from the token table" in caplog.text) == differs


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"quant_method": "awq", "bits": 4}, "AWQ"),
        ({"quant_method": "gptq"}, "GPTQ"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, r"fp8 \(8-bit floats of a GPU\)"),
        ({"quant_method": "compressed-tensors"}, "compressed-tensors"),
        ({"quant_method": "newest"}, "newest"),
        ({"_load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "x": "bitsandbytes"}, "bitsandbytes"),
    ],
)
def test_other_tools_quantisation_is_named(
    entry: dict[str, Any], said: str, in_shards: Callable[..., Path], tmp_path: Path
) -> None:
    source = in_shards()
    config = json.loads((source / "config.json").read_text())
    config |= {"quantization_config": entry, "_name_or_path": "someone/original"}
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=rf"is quantised with {said}.*original; its config.json names someone/orig"):
        quick(source, tmp_path / "out")


def test_a_git_lfs_pointer_is_named(in_shards: Callable[..., Path], tmp_path: Path) -> None:
    source = in_shards()
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    (source / "model-00002-of-00003.safetensors").write_text(pointer)
    with pytest.raises(CheckpointError, match=r"00002-of-00003.safetensors is a Git LFS pointer.*git lfs pull"):
        quick(source, tmp_path / "out")
