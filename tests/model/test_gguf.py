"""GGUF files against the checkpoints that they were made of."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import struct
from pathlib import Path
from typing import Any

import gguf
import mlx.core as mx
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind

from grit_mlx import GritLM
from grit_mlx.errors import ArchitectureError, CheckpointError, GritError, ModelError, ModelNotFoundError
from grit_mlx.model import hub
from grit_mlx.model.gguf.folder import gguf_in, read_model
from grit_mlx.model.gguf.header import read_header
from grit_mlx.model.gguf.tensors import AFFINE, tensors_of
from grit_mlx.model.options import ModelChoice
from tests.convert.conftest import checkpoint_of
from tests.gguf_files import add, finish, gguf_of, load, stored, write

IDS = mx.array([[1, 5, 9, 100, 44, 200, 300, 7, 7, 250]])

SMALL = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "vocab_size": 384,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"rope_theta": 500000.0, "tie_word_embeddings": False},
    "qwen2": {"rope_theta": 1e6, "tie_word_embeddings": True},
    "qwen3": {"rope_theta": 1e6, "head_dim": 32, "tie_word_embeddings": True},
    "gemma": {"head_dim": 32, "tie_word_embeddings": True},
    "gemma2": {
        "head_dim": 32,
        "query_pre_attn_scalar": 32,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "sliding_window": 4096,
        "tie_word_embeddings": True,
    },
    "gemma3_text": {
        "head_dim": 32,
        "query_pre_attn_scalar": 32,
        "sliding_window": 4,
        "rope_theta": 1e6,
        "num_hidden_layers": 7,
        "tie_word_embeddings": True,
    },
    "phi3": {"partial_rotary_factor": 0.75, "tie_word_embeddings": False},
    "qwen3_moe": {
        "head_dim": 32,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "rope_theta": 1e6,
        "tie_word_embeddings": False,
    },
}


def logits(place: Path) -> np.ndarray[Any, Any]:
    model = GritLM(place, dtype="float32", mode="generative")
    return np.array(model.model(IDS).astype(mx.float32))


def source_of(kind: str, folder: Path, tokenizer: Path, **changes: Any) -> Path:
    return checkpoint_of(kind, {**SMALL, **CONFIGS.get(kind, {}), **changes}, folder, tokenizer)


# Architectures


@pytest.mark.parametrize("kind", CONFIGS)
def test_each_architecture_computes_what_its_source_does(kind: str, tmp_path: Path, tiny_model: Path) -> None:
    source = source_of(kind, tmp_path / "source", tiny_model)
    file = gguf_of(source, tmp_path / "model.gguf")
    np.testing.assert_allclose(logits(file), logits(source), rtol=0, atol=2e-5)
    folder = hub.resolve(ModelChoice(file))
    for name, array in load(source).items():
        if ".experts." not in name and not (kind.startswith("gemma") and name.endswith("norm.weight")):
            np.testing.assert_array_equal(load(folder)[name], array, err_msg=name)


def test_llama_with_biases(tmp_path: Path, tiny_model: Path) -> None:
    source = source_of("llama", tmp_path / "source", tiny_model, attention_bias=True)
    np.testing.assert_array_equal(logits(gguf_of(source, tmp_path / "model.gguf")), logits(source))


@pytest.mark.parametrize("split", [False, True], ids=["stacked", "one by one"])
def test_mixtral(tiny_mixtral: Path, tmp_path: Path, split: bool) -> None:
    file = gguf_of(tiny_mixtral, tmp_path / "Mixtral.gguf", split_experts=split)
    np.testing.assert_array_equal(logits(file), logits(tiny_mixtral))


def test_experts_of_different_types(tiny_mixtral: Path, tmp_path: Path) -> None:
    arrays = dict(stored(tiny_mixtral, split_experts=True))
    whole = gguf_of(tiny_mixtral, tmp_path / "whole.gguf")
    metadata = read_header(whole).metadata
    kinds = {"blk.0.ffn_gate.1.weight": Kind.Q8_0, "blk.1.ffn_up.0.weight": Kind.F16}
    file = write(tmp_path / "mixed.gguf", "llama", metadata, arrays, kinds=kinds)
    np.testing.assert_allclose(logits(file), logits(tiny_mixtral), rtol=0, atol=0.02)


def test_the_name_says_mistral(tiny_model: Path, tmp_path: Path) -> None:
    plain = read_model(gguf_of(tiny_model, tmp_path / "model.gguf"))
    assert plain.config["model_type"] == "llama"
    for key, value in (("general.name", "GritLM 7B"), ("general.basename", "Mistral")):
        named = read_model(gguf_of(tiny_model, tmp_path / "model.gguf", metadata={key: value}))
        assert named.config["model_type"] == "mistral"


SCALINGS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "linear": ("llama", {"type": "linear", "factor": 4.0}, {"scaling.type": "linear", "scaling.factor": 4.0}),
    "linear, as it was written first": ("llama", {"type": "linear", "factor": 2.0}, {"scale_linear": 2.0}),
    "linear in Gemma 3": (
        "gemma3_text",
        {"type": "linear", "factor": 8.0},
        {"scaling.type": "linear", "scaling.factor": 8.0},
    ),
    "yarn": (
        "qwen2",
        {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
        {"scaling.type": "yarn", "scaling.factor": 4.0, "scaling.original_context_length": 128},
    ),
}


@pytest.mark.parametrize("name", SCALINGS)
def test_scaled_rotations(name: str, tmp_path: Path, tiny_model: Path) -> None:
    kind, scaling, keys = SCALINGS[name]
    source = source_of(kind, tmp_path / "source", tiny_model, rope_scaling=scaling)
    architecture = {"gemma3_text": "gemma3"}.get(kind, kind)
    metadata = {f"{architecture}.rope.{key}": value for key, value in keys.items()}
    file = gguf_of(source, tmp_path / "model.gguf", metadata=metadata)
    np.testing.assert_allclose(logits(file), logits(source), rtol=0, atol=2e-5)
    assert np.abs(logits(file) - logits(gguf_of(source, tmp_path / "plain.gguf"))).max() > 1e-3


# As llama.cpp's converter computes them (conversion/llama.py).
def llama3_factors(
    theta: float, size: int, factor: float, low: float, high: float, length: int
) -> np.ndarray[Any, Any]:
    factors = []
    for frequency in 1.0 / theta ** (np.arange(0, size, 2) / size):
        wavelength = 2 * np.pi / frequency
        if wavelength < length / high:
            factors.append(1.0)
        elif wavelength > length / low:
            factors.append(factor)
        else:
            smooth = (length / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, np.float32)


@pytest.mark.parametrize(("factor", "low", "high", "length"), [(8, 1, 4, 8192), (32, 1, 4, 8192), (16, 2, 6, 4096)])
def test_llama3s_rotation(
    tmp_path: Path, tiny_model: Path, factor: float, low: float, high: float, length: int
) -> None:
    scaling = {
        "rope_type": "llama3",
        "factor": float(factor),
        "low_freq_factor": float(low),
        "high_freq_factor": float(high),
        "original_max_position_embeddings": length,
    }
    source = source_of("llama", tmp_path / "source", tiny_model, rope_scaling=scaling, hidden_size=512, head_dim=128)
    whole = gguf_of(source, tmp_path / "plain.gguf")
    factors = llama3_factors(500000.0, 128, factor, low, high, length)
    tensors = {"rope_freqs.weight": factors, **dict(stored(source))}
    metadata = read_header(whole).metadata
    file = write(tmp_path / "model.gguf", "llama", metadata, tensors)
    model, reference = (GritLM(place, dtype="float32", mode="generative").model for place in (file, source))
    np.testing.assert_allclose(
        np.array(model.layers[0].self_attn.rope._freqs), np.array(reference.layers[0].self_attn.rope._freqs), rtol=2e-3
    )
    tensors["rope_freqs.weight"] = factors[::-1].copy()
    strange = write(tmp_path / "strange.gguf", "llama", metadata, tensors)
    with pytest.raises(ArchitectureError, match=r"scales its rotation \(rope_freqs.weight\) in a way"):
        read_model(strange)


def test_longrope(tmp_path: Path, tiny_model: Path) -> None:
    short, long = [1.0, 1.1, 1.2, 1.3, 1.4, 1.5], [2.0, 4.0, 6.0, 8.0, 10.0, 12.5]
    scaling = {"type": "longrope", "short_factor": short, "long_factor": long}
    source = source_of(
        "phi3", tmp_path / "source", tiny_model, rope_scaling=scaling, original_max_position_embeddings=128
    )
    whole = gguf_of(source, tmp_path / "plain.gguf", metadata={"phi3.rope.scaling.original_context_length": 128})
    factors = {
        f"rope_factors_{name}.weight": np.array(value, np.float32) for name, value in (("short", short), ("long", long))
    }
    metadata = read_header(whole).metadata
    file = write(tmp_path / "model.gguf", "phi3", metadata, {**factors, **dict(stored(source))})
    np.testing.assert_array_equal(logits(file), logits(source))
    metadata["phi3.rope.scaling.attn_factor"] = 1.5
    with pytest.raises(ArchitectureError, match=r"scales attention by 1.5, and mlx-lm by 1.13"):
        read_model(write(tmp_path / "other.gguf", "phi3", metadata, {**factors, **dict(stored(source))}))


# Types of weights


def random_blocks(kind: Kind, rows: int, width: int, seed: int) -> np.ndarray[Any, Any]:
    """Any bytes, with scales that are numbers: subnormal, negative and large ones among them."""
    random = np.random.default_rng(seed)
    size, nbytes = gguf.GGML_QUANT_SIZES[kind]
    blocks = random.integers(0, 256, (rows * width // size, nbytes), np.uint8)
    scales = 2 if kind in (Kind.Q4_0, Kind.Q5_0, Kind.Q8_0) else 4
    values = random.standard_normal((len(blocks), scales // 2)) * 10.0 ** random.integers(-7, 2, (len(blocks), 1))
    blocks[:, :scales] = values.astype(np.float16).view(np.uint8)
    return blocks.reshape(rows, -1)


EXACT = [kind for kind, affine in AFFINE.items() if affine.scales == "F16"]


def entry_of(octets: np.ndarray, kind: Kind, path: Path) -> Any:
    """The header's entry of a file that holds one tensor."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("output.weight", octets, raw_dtype=kind)
    finish(writer)
    return read_header(path).entries["output.weight"]


@pytest.mark.parametrize("kind", EXACT, ids=lambda kind: kind.name)
def test_affine_types_keep_every_value(kind: Kind, tmp_path: Path) -> None:
    octets = random_blocks(kind, 24, 96, seed=3)
    entry = entry_of(octets, kind, tmp_path / "one.gguf")
    parts = [mx.array(tensor.read(0, 24)) for tensor in tensors_of("lm_head.weight", [entry]).values()]
    packed, scales, biases = parts
    bits = AFFINE[kind].bits
    assert (scales.dtype, biases.dtype, packed.shape) == (mx.float16, mx.float16, (24, 96 * bits // 32))
    expected = gguf.dequantize(octets, kind)
    wide = mx.dequantize(packed, scales.astype(mx.float32), biases.astype(mx.float32), group_size=32, bits=bits)
    np.testing.assert_array_equal(np.array(wide), expected)
    some = tensors_of("lm_head.weight", [entry])["lm_head.weight"].read(5, 17)
    np.testing.assert_array_equal(some, np.array(packed)[5:17])


@pytest.mark.parametrize("kind", [Kind.Q4_K, Kind.Q5_K], ids=lambda kind: kind.name)
def test_k_quants_keep_every_code(kind: Kind, tmp_path: Path) -> None:
    """Their values in float32; in half precision scales and minima are rounded, by 1 in 2048 at most."""
    octets = random_blocks(kind, 12, 512, seed=4)
    entry = entry_of(octets, kind, tmp_path / "one.gguf")
    packed, scales, biases = (mx.array(one.read(0, 12)) for one in tensors_of("lm_head.weight", [entry]).values())
    form: dict[str, Any] = {"group_size": 32, "bits": AFFINE[kind].bits}
    expected = gguf.dequantize(octets, kind)
    wide = np.array(mx.dequantize(packed, scales, biases, **form))
    np.testing.assert_allclose(wide, expected, rtol=0, atol=1e-6 * np.abs(expected).max())
    half_scales, half_biases = (one.astype(mx.float16).astype(mx.float32) for one in (scales, biases))
    narrow = np.array(mx.dequantize(packed, half_scales, half_biases, **form))
    steps, minima = (np.repeat(np.abs(np.array(one)), 32, axis=1) for one in (scales, biases))
    bound = (steps * (2 ** AFFINE[kind].bits - 1) + minima) / 2048 + 1e-7 * 2 ** AFFINE[kind].bits
    assert (np.abs(narrow - expected) <= bound).all()


READ = list(gguf.quants._type_traits)


@pytest.mark.parametrize("kind", READ, ids=lambda kind: kind.name)
def test_every_type_is_read(kind: Kind, tmp_path: Path, tiny_model: Path) -> None:
    size, nbytes = gguf.GGML_QUANT_SIZES[kind]
    octets = np.zeros((3, 2 * nbytes), np.uint8)
    octets[1] = np.arange(2 * nbytes) % 60
    path = tmp_path / "one.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("output.weight", octets, raw_dtype=kind)
    finish(writer)
    entry = read_header(path).entries["output.weight"]
    assert entry.shape == (3, 2 * size)
    tensors = tensors_of("lm_head.weight", [entry])
    if kind not in AFFINE:
        found = tensors["lm_head.weight"].read(0, 3)
        if kind == Kind.BF16:
            found = (found.astype(np.uint32) << 16).view(np.float32)
        np.testing.assert_array_equal(found, gguf.dequantize(octets, kind))


@pytest.mark.parametrize(
    "kind", [Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, Kind.Q8_0, Kind.F16, Kind.BF16, Kind.Q6_K]
)
def test_a_quantised_file_loads_as_its_own_values(kind: Kind, tmp_path: Path, tiny_model: Path) -> None:
    """Against a checkpoint that holds what ``gguf`` makes of the same blocks."""
    size = gguf.GGML_QUANT_SIZES[kind][0]
    wide = {"hidden_size": 256, "intermediate_size": 512} if size == 256 else {"hidden_size": 64}
    source = source_of("llama", tmp_path / "source", tiny_model, **wide)
    arrays = dict(stored(source))
    file = gguf_of(source, tmp_path / "model.gguf", kind=kind if kind != Kind.Q6_K else Kind.F16)
    kept = {name: kind for name, array in arrays.items() if array.ndim == 2}
    if kind == Kind.Q6_K:  # gguf cannot quantise to it: any bytes with small scales will do
        file = _with_bytes(source, file, kind)
    values = {
        name: gguf.dequantize(data, kinds) if name in kept else array
        for name, array in arrays.items()
        for data, kinds in [_data(file, name)]
    }
    again = write(
        tmp_path / "values.gguf",
        "llama",
        read_header(file).metadata,
        values,
    )
    tolerance = 2e-3 if kind == Kind.Q6_K else 1e-5  # its values are kept in half precision
    np.testing.assert_allclose(logits(file), logits(again), rtol=0, atol=tolerance * np.abs(logits(again)).max())


def _data(file: Path, name: str) -> tuple[np.ndarray[Any, Any], Kind]:
    entry = read_header(file).entries[name]
    octets = np.fromfile(file, np.uint8, entry.nbytes, offset=entry.offset)
    return octets.reshape(*entry.shape[:-1], -1), entry.kind


def _with_bytes(source: Path, file: Path, kind: Kind) -> Path:
    random = np.random.default_rng(0)
    path = file.with_name("bytes.gguf")
    writer = gguf.GGUFWriter(path, "llama")
    add(writer, read_header(file).metadata)
    for name, array in stored(source):
        if array.ndim == 1:
            writer.add_tensor(name, array)
            continue
        size, nbytes = gguf.GGML_QUANT_SIZES[kind]
        blocks = random.integers(0, 256, (array.shape[0], array.shape[1] // size, nbytes), np.uint8)
        blocks[..., -2:] = np.array([1e-5], np.float16).view(np.uint8)
        writer.add_tensor(name, blocks.reshape(array.shape[0], -1), raw_dtype=kind)
    finish(writer)
    return path


# The folder that is made once


def test_a_file_is_unpacked_once(tiny_model: Path, tmp_path: Path) -> None:
    file = gguf_of(tiny_model, tmp_path / "My Model.Q8_0.gguf")
    folder = hub.resolve(ModelChoice(file))
    assert folder.parent == hub.models_folder() and folder.name == "my-model.q8_0"
    made = (folder / "model.safetensors").stat().st_mtime_ns
    assert hub.resolve(ModelChoice(str(file))) == folder
    assert hub.resolve(ModelChoice(f"{tmp_path}/../{tmp_path.name}/{file.name}")) == folder
    assert hub.resolve(ModelChoice(tmp_path)) == folder  # the only one in its folder
    assert hub.resolve(ModelChoice("my-model.q8_0")) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == made
    os.utime(file, ns=(1, 1))
    hub.resolve(ModelChoice(file))
    assert (folder / "model.safetensors").stat().st_mtime_ns != made
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(file, other)
    assert hub.resolve(ModelChoice(other / file.name)) != folder
    assert {model.name for model in hub.local_models()} >= {"my-model.q8_0"}


def test_a_changed_file_is_unpacked_again(tiny_model: Path, tmp_path: Path) -> None:
    file = gguf_of(tiny_model, tmp_path / "model.gguf")
    before = logits(file)
    gguf_of(tiny_model, file, kind=Kind.Q4_0)
    assert np.abs(logits(file) - before).max() > 1e-3


def test_a_file_without_the_suffix(tiny_model: Path, tmp_path: Path) -> None:
    """As ollama keeps them."""
    file = gguf_of(tiny_model, tmp_path / "model.gguf").rename(tmp_path / "sha256-0123abcd")
    np.testing.assert_array_equal(logits(file), logits(tiny_model))


def test_settings_come_along(tiny_model: Path, tmp_path: Path) -> None:
    template = "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}{% endfor %}"
    file = gguf_of(
        tiny_model,
        tmp_path / "model.gguf",
        metadata={"tokenizer.chat_template": template, "general.sampling.temp": 0.5, "general.sampling.top_k": 20},
    )
    folder = hub.resolve(ModelChoice(file))
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 1, "eos_token_id": [2], "do_sample": True, "temperature": 0.5, "top_k": 20}
    assert GritLM(file).tokenizer.chat_template == template


def test_parts(tiny_model: Path, tmp_path: Path) -> None:
    file = split(gguf_of(tiny_model, tmp_path / "whole.gguf"), tmp_path / "parts", 3)
    np.testing.assert_array_equal(logits(file), logits(tiny_model))
    np.testing.assert_array_equal(logits(file.parent), logits(tiny_model))
    (file.parent / "model-00002-of-00003.gguf").unlink()
    with pytest.raises(CheckpointError, match=r"one of 3 parts, and model-00002-of-00003.gguf is not beside it"):
        GritLM(file)


def split(file: Path, folder: Path, count: int) -> Path:
    """As llama-gguf-split does it: the metadata is in the first part."""
    folder.mkdir()
    header = read_header(file)
    entries = list(header.entries.values())
    for number in range(count):
        writer = gguf.GGUFWriter(folder / f"model-{number + 1:05d}-of-{count:05d}.gguf", "llama")
        if number == 0:
            add(writer, header.metadata)
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", count)
        writer.add_int32("split.tensors.count", len(entries))
        for entry in entries[number::count]:
            writer.add_tensor(entry.name, _data(file, entry.name)[0], raw_dtype=entry.kind)
        finish(writer)
    return folder / f"model-00001-of-{count:05d}.gguf"


def test_several_in_a_folder(tiny_model: Path, tmp_path: Path) -> None:
    for name in ("b.gguf", "a.gguf"):
        gguf_of(tiny_model, tmp_path / name)
    with pytest.raises(ModelNotFoundError, match=r"holds 2 GGUF models: a.gguf, b.gguf\. Name one of the files"):
        GritLM(tmp_path)
    (tmp_path / "b.gguf").rename(tmp_path / "mmproj-b.gguf")
    assert gguf_in(tmp_path) == tmp_path / "a.gguf"


# What is refused


def test_what_is_not_known_is_named(tiny_model: Path, tmp_path: Path) -> None:
    arrays = dict(stored(tiny_model))
    whole = gguf_of(tiny_model, tmp_path / "whole.gguf")
    metadata = read_header(whole).metadata

    def refused(
        match: str, changes: dict[str, Any] | None = None, architecture: str = "llama", without: str = ""
    ) -> None:
        own = {key: value for key, value in {**metadata, **(changes or {})}.items() if value is not None}
        tensors = {key: value for key, value in arrays.items() if key != without}
        with pytest.raises(ModelError, match=match):
            GritLM(write(tmp_path / "model.gguf", architecture, own, tensors))

    bpe = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.merges": ["a b"]}
    refused(r"architecture 'mamba', which cannot be read from GGUF here; llama, mixtral", architecture="mamba")
    refused(r"holds no model: its type is 'adapter'", {"general.type": "adapter"})
    refused(r"is damaged: its num_attention_heads is 0", {"llama.attention.head_count": 0})
    refused(r"says that it has 70000 layers and holds 2", {"llama.block_count": 70000})
    refused(r"is damaged: its metadata is not valid", {"llama.rope.freq_base": "fast"})
    refused(r"lacks llama.embedding_length", {"llama.embedding_length": None})
    refused(r"rotates 4 of the 8 numbers of a head", {"llama.rope.dimension_count": 4})
    refused(r"scales its rotation by su, which cannot", {"llama.rope.scaling.type": "su"})
    yarn = {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0, "llama.rope.scaling.attn_factor": 0.5}
    refused(r"scales attention by 0.5 beside YaRN", yarn)
    refused(r"layers that differ in attention.head_count_kv", {"llama.attention.head_count_kv": [2, 4]})
    refused(r"kind 't5', which cannot be read from GGUF here", {"tokenizer.ggml.model": "t5"})
    refused(r"does not say how texts are split", bpe)
    refused(r"splits texts by 'poro-chat', which is not known", bpe | {"tokenizer.ggml.pre": "poro-chat"})
    refused(r"has no tokenizer", {key: None for key in metadata if key.startswith("tokenizer.")})
    refused(r"lacks token_embd.weight", without="token_embd.weight")
    refused(r"do not fit its config.json", without="blk.1.ffn_down.weight")
    arrays["blk.0.ssm_a.weight"] = np.zeros((2, 32), np.float32)
    refused(r"holds blk.0.ssm_a.weight, which the architecture llama does not have here")


def test_damaged_files(tiny_model: Path, tmp_path: Path) -> None:
    """Cut anywhere, or with any number changed: one of our errors, and never a hang or a model that is wrong."""
    file = gguf_of(tiny_model, tmp_path / "whole.gguf")
    content = file.read_bytes()
    end = min(entry.offset for entry in read_header(file).entries.values())
    broken = tmp_path / "broken.gguf"
    for length in (0, 3, 4, 20, 24, 100, end // 2, end - 40, end + 100, len(content) - 100):
        broken.write_bytes(content[:length])
        with pytest.raises(CheckpointError):
            read_model(broken)
    for place, value in ((4, 1), (4, 9), (8, 1 << 40), (16, 1 << 40), (24, 1 << 60), (4, 3 << 24)):
        broken.write_bytes(
            content[:place]
            + struct.pack("<Q", value)[: 4 if place == 4 else 8]
            + content[place + (4 if place == 4 else 8) :]
        )
        with pytest.raises(CheckpointError, match=r"damaged|version|big-endian"):
            read_model(broken)
    random = np.random.default_rng(1)
    for _ in range(300):
        octets = bytearray(content[:end])
        for place in random.integers(0, end, 3):
            octets[place] = random.integers(0, 256)
        broken.write_bytes(bytes(octets) + content[end:])
        with contextlib.suppress(GritError):
            read_model(broken)


def test_weights_that_are_not_numbers(tiny_model: Path, tmp_path: Path) -> None:
    file = gguf_of(tiny_model, tmp_path / "model.gguf")
    entry = read_header(file).entries["blk.1.ffn_up.weight"]
    with file.open("r+b") as stream:
        stream.seek(entry.offset + 400)
        stream.write(struct.pack("<f", float("nan")))
    with pytest.raises(ModelError, match=r"model.layers.1.mlp.up_proj.weight of .* holds NaN or infinity"):
        GritLM(file)
    assert not (hub.models_folder() / "model").exists()


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"PK\x03\x04" + b"\0" * 100)
    with pytest.raises(CheckpointError, match="is not a GGUF file"):
        GritLM(tmp_path / "model.gguf")
