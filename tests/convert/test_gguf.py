"""Conversions of GGUF files, which must make the same bytes as those of the checkpoints that they hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind

from grit_mlx import GritLM
from grit_mlx.convert import convert
from grit_mlx.convert import writing as writing_module
from grit_mlx.convert.conversion import default_output
from grit_mlx.convert.options import ConversionOptions
from grit_mlx.errors import CheckpointError, NonFiniteError, OutputError
from tests.convert.conftest import checkpoint_of, load_tensors, same_tensors
from tests.gguf_files import gguf_of

WIDE: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "vocab_size": 384,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@pytest.fixture
def source(tmp_path: Path, tiny_model: Path) -> Path:
    return checkpoint_of("llama", WIDE, tmp_path / "source", tiny_model)


@pytest.mark.parametrize(
    "options",
    [{}, {"dtype": "float16"}, {"bits": 4, "group_size": 32}, {"mode": "mxfp4"}, {"bits": 8, "recipe": "uniform"}],
)
def test_the_same_bytes_as_from_the_checkpoint(source: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    file = gguf_of(source, tmp_path / "model.gguf", kind=Kind.BF16)
    from_file = convert(file, tmp_path / "a", **options)
    from_folder = convert(source, tmp_path / "b", **options)
    assert same_tensors(load_tensors(from_file.folder), load_tensors(from_folder.folder)) == []
    assert from_file.drift is not None and from_folder.drift is not None
    assert from_file.drift.kl == pytest.approx(from_folder.drift.kl, abs=1e-6)
    assert from_file.source == "model.gguf" and 0.9 < from_file.source_bytes / file.stat().st_size < 1


@pytest.mark.parametrize("split", [False, True])
def test_mixtures(tiny_mixtral: Path, tmp_path: Path, split: bool) -> None:
    file = gguf_of(tiny_mixtral, tmp_path / "Mixtral.gguf", split_experts=split)
    convert(file, tmp_path / "a", bits=4, group_size=32)
    convert(tiny_mixtral, tmp_path / "b", bits=4, group_size=32)
    assert same_tensors(load_tensors(tmp_path / "a"), load_tensors(tmp_path / "b")) == []


@pytest.mark.parametrize("kind", [Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, Kind.Q8_0])
def test_packed_weights_go_over_as_they_are(source: Path, tmp_path: Path, kind: Kind) -> None:
    file = gguf_of(source, tmp_path / "model.gguf", kind=kind)
    report = convert(file, tmp_path / "a")
    assert report.drift is not None and report.drift.cosine_worst > 1 - 1e-6
    bits = {Kind.Q4_0: 4, Kind.Q4_1: 4, Kind.Q5_0: 5, Kind.Q5_1: 5, Kind.Q8_0: 8}[kind]
    assert set(report.bits) == {str(bits), "16"}
    tensors = load_tensors(tmp_path / "a")
    assert tensors["model.layers.0.mlp.up_proj.scales"].dtype == mx.float16
    ids = mx.array([[1, 5, 9, 44, 300]])
    plain, packed = (GritLM(place, dtype="float32").model(ids) for place in (file, tmp_path / "a"))
    np.testing.assert_array_equal(np.array(plain), np.array(packed))
    whole = convert(file, tmp_path / "b", dequantize=True, dtype="float32")
    assert set(whole.bits) == {"32"}
    np.testing.assert_allclose(np.array(GritLM(tmp_path / "b").model(ids)), np.array(plain), atol=1e-5)


def test_an_interrupted_conversion_is_resumed(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = gguf_of(source, tmp_path / "model.gguf", kind=Kind.Q8_0)
    written: list[str] = []
    original = writing_module.ShardWriter.__exit__

    def stops(self: Any, *given: Any) -> None:
        original(self, *given)
        written.append(self._shard.name)
        if len(written) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(writing_module.ShardWriter, "__exit__", stops)
    with pytest.raises(KeyboardInterrupt):
        convert(file, tmp_path / "a", shard_bytes=40_000)
    report = convert(file, tmp_path / "a", shard_bytes=40_000)
    assert report.resumed and len(written) == len(set(written)) > 2
    convert(file, tmp_path / "b")
    assert same_tensors(load_tensors(tmp_path / "a"), load_tensors(tmp_path / "b")) == []


def test_where_the_result_goes(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metadata = {"general.license": "apache-2.0", "general.languages": ["en"]}
    file = gguf_of(source, tmp_path / "model.Q8_0.gguf", kind=Kind.Q8_0, metadata=metadata)
    assert default_output(file, ConversionOptions()) == Path("model.Q8_0-mlx")
    with pytest.raises(OutputError, match="holds the model that is to be converted"):
        convert(file, file)
    monkeypatch.chdir(tmp_path)
    assert convert(file, verify=False).folder == Path("model.Q8_0-mlx")
    card = (tmp_path / "model.Q8_0-mlx" / "README.md").read_text()
    assert "model.Q8_0.gguf" in card and "license: apache-2.0" in card


def test_what_does_not_fit_is_named(source: Path, tmp_path: Path) -> None:
    file = gguf_of(source, tmp_path / "model.gguf", metadata={"llama.feed_forward_length": 64})
    with pytest.raises(
        CheckpointError, match=r"in model.gguf of .*/model.gguf has shape \(128, 64\) and config.json asks for"
    ):
        convert(file, tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_damaged_weights_are_named(source: Path, tmp_path: Path) -> None:
    file = gguf_of(source, tmp_path / "model.gguf", kind=Kind.Q8_0)
    content = bytearray(file.read_bytes())
    content[-68:-66] = b"\xff\x7f"  # the scale of a block
    file.write_bytes(content)
    with pytest.raises(NonFiniteError, match=r"of model.gguf holds NaN or infinity"):
        convert(file, tmp_path / "a")
