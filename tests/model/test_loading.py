"""Loading: Hugging Face and MLX folders, quantised or not, with an adapter or not, and every way to be wrong."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm import convert as mlx_convert
from mlx_lm.tuner.utils import linear_to_lora_layers
from mlx_lm.utils import load_model

from grit_mlx import GritLM
from grit_mlx.errors import (
    AdapterError,
    ArchitectureError,
    CheckpointError,
    ConfigError,
    GritError,
    NonFiniteError,
    TokenizerError,
)
from grit_mlx.model import device, hub
from grit_mlx.model.loading import config_fixes, load
from grit_mlx.model.options import ModelChoice

Copy = Callable[..., Path]
TEXTS = ["A keel keeps a ship upright.", "Bread rises."]


def vectors(folder: Path, **options: Any) -> Any:
    return GritLM(folder, **options).encode(TEXTS)


def cosine(a: Any, b: Any) -> Any:
    return np.sum(a * b, axis=1)


def parameters(model: Any) -> dict[str, mx.array]:
    flat: Any = tree_flatten(model.parameters())
    return dict(flat)


def split(folder: Path) -> None:
    """The folder's weights as two shards with an index, as Hugging Face writes large models."""
    whole: Any = mx.load(str(folder / "model.safetensors"))
    names = sorted(whole)
    weight_map = {}
    for i, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-{i:05}-of-00002.safetensors"
        mx.save_safetensors(str(folder / file), {name: whole[name] for name in part})
        weight_map.update(dict.fromkeys(part, file))
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def rewrite(folder: Path, change: Callable[[dict[str, mx.array]], None]) -> None:
    """Change the tensors of the folder's checkpoint."""
    path = folder / "model.safetensors"
    tensors: Any = mx.load(str(path))
    tensors = {name: mx.array(np.array(value)) for name, value in tensors.items()}
    change(tensors)
    path.unlink()
    mx.save_safetensors(str(path), tensors)


def test_shards_are_the_same_model(model_copy: Copy, tiny_model: Path) -> None:
    folder = model_copy()
    split(folder)
    np.testing.assert_array_equal(vectors(folder), vectors(tiny_model))


@pytest.mark.parametrize("name", ["tiny_model", "tiny_mixtral"])
@pytest.mark.parametrize("quantize", [False, True])
def test_mlx_lms_own_folders(request: pytest.FixtureRequest, tmp_path: Path, name: str, quantize: bool) -> None:
    source = request.getfixturevalue(name)
    folder = tmp_path / "mlx"
    mlx_convert(str(source), str(folder), quantize=quantize, q_bits=8, q_group_size=32)
    assert (cosine(vectors(folder), vectors(source)) > (0.995 if quantize else 0.999999)).all()
    assert GritLM(folder).generate("Why?", max_tokens=5)


def test_quantized_weights_stay_or_are_widened(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "mlx"
    mlx_convert(str(tiny_model), str(folder), quantize=True, q_bits=4, q_group_size=32)

    def names(**options: Any) -> set[str]:
        return set(parameters(load(ModelChoice(folder, **options)).model))

    with caplog.at_level(logging.DEBUG, logger="grit_mlx"):
        widened = names()
    assert not any(name.endswith(".scales") for name in widened)
    assert "widened to float32" in caplog.text
    assert any(name.endswith(".scales") for name in names(dtype="stored"))
    np.testing.assert_allclose(vectors(folder), vectors(folder, dtype="stored"), atol=2e-3)
    monkeypatch.setattr(device, "available_memory", lambda: 1000)
    with caplog.at_level(logging.WARNING, logger="grit_mlx"):
        assert any(name.endswith(".scales") for name in names())
    assert "each layer widens its own while it computes" in caplog.text


def test_a_token_table_that_is_only_looked_up_stays_packed(model_copy: Copy, tmp_path: Path) -> None:
    folder = tmp_path / "quantized"
    mlx_convert(str(model_copy()), str(folder), quantize=True, q_bits=4, q_group_size=32)
    looked_up, whole = (GritLM(folder, mode=mode, dtype="float32") for mode in ("embedding", "unified"))
    if device.current_device().kind == "cpu":
        assert "model.embed_tokens.scales" in parameters(looked_up.model)
        assert "model.embed_tokens.scales" not in parameters(whole.model)
    np.testing.assert_array_equal(looked_up.encode(TEXTS), whole.encode(TEXTS))


def test_matrices_turned_for_the_reference_blas_are_the_same(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = GritLM(tiny_model, dtype="float32")
    here = replace(device.current_device(), blas="bundled")
    monkeypatch.setattr(device, "current_device", lambda: here)
    turned = GritLM(tiny_model, dtype="float32")
    np.testing.assert_allclose(turned.encode(TEXTS), before.encode(TEXTS), atol=1e-6)
    for name, value in parameters(turned.model).items():
        assert np.array_equal(value, parameters(before.model)[name]), name
    mx.save_safetensors(str(tmp_path / "saved.safetensors"), parameters(turned.model))
    saved: Any = mx.load(str(tmp_path / "saved.safetensors"))
    for name, value in parameters(before.model).items():
        assert np.array_equal(value, saved[name]), name


def test_bfloat16_is_widened_on_a_cpu(model_copy: Copy, tiny_model: Path) -> None:
    folder = model_copy()
    rewrite(folder, lambda t: t.update({name: value.astype(mx.bfloat16) for name, value in t.items()}))
    dtypes = {value.dtype for value in parameters(load(ModelChoice(folder)).model).values()}
    assert dtypes == {mx.float32}
    assert (cosine(vectors(folder), vectors(tiny_model)) > 0.999).all()


def test_weights_are_read_once_and_only_those_needed(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    real = mx.load

    def watched(path: str) -> Any:
        opened.append(str(path))
        return real(path)

    monkeypatch.setattr(mx, "load", watched)
    load(ModelChoice(tiny_model), mode="embedding")
    assert opened == [str(tiny_model / "model.safetensors")]


def make_adapter(source: Path, folder: Path, keys: list[str]) -> None:
    """An adapter in mlx-lm's layout, with weights that do something."""
    model, _ = load_model(source)
    lora = {"rank": 4, "scale": 8.0, "dropout": 0.0, "keys": keys}
    linear_to_lora_layers(model, 2, lora)
    mx.random.seed(1)
    weights = {name: mx.random.normal(value.shape) * 0.1 for name, value in parameters(model).items() if "lora" in name}
    folder.mkdir()
    mx.save_safetensors(str(folder / "adapters.safetensors"), weights)
    config = {"fine_tune_type": "lora", "num_layers": 2, "lora_parameters": lora}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def test_an_adapter_changes_both_jobs(tiny_model: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    make_adapter(tiny_model, adapter, ["self_attn.q_proj", "self_attn.v_proj"])
    plain, tuned = GritLM(tiny_model), GritLM(tiny_model, adapter_path=adapter)
    assert np.abs(tuned.encode(TEXTS) - plain.encode(TEXTS)).max() > 1e-3
    assert tuned.generate("Why?", max_tokens=20) != plain.generate("Why?", max_tokens=20)
    (adapter / "grit.json").write_text('{"pooling": "cls"}')
    assert GritLM(tiny_model, adapter_path=adapter).settings.pooling == "cls"


def test_adapters_that_do_not_fit(tiny_model: Path, tiny_mixtral: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    make_adapter(tiny_model, adapter, ["mlp.up_proj"])

    def refused(message: str, model: Path = tiny_model) -> None:
        with pytest.raises(AdapterError, match=message):
            GritLM(model, adapter_path=adapter)

    refused("does not fit the model: .*Use it with the model it was trained on", tiny_mixtral)
    weights = adapter / "adapters.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-10])
    refused("is damaged")
    weights.unlink()
    refused(r"has no adapters\.safetensors")
    weights.write_bytes(whole)
    (adapter / "adapter_config.json").write_text("{}")
    refused("does not describe an adapter of mlx-lm or PEFT: KeyError")
    with pytest.raises(AdapterError, match="There is no adapter folder"):
        GritLM(tiny_model, adapter_path=tmp_path / "none")


@pytest.mark.parametrize(
    ("config", "tensors", "mended"),
    [
        ({}, ["lm_head.weight"], {"tie_word_embeddings": False}),
        ({}, ["model.norm.weight"], {"tie_word_embeddings": True}),
        ({"tie_word_embeddings": True}, ["lm_head.weight"], {}),
        (
            {"tie_word_embeddings": True, "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}},
            [],
            {"rope_theta": 5e5},
        ),
        (
            {"tie_word_embeddings": True, "rope_parameters": {"rope_theta": 1e6, "rope_type": "linear", "factor": 8.0}},
            [],
            {"rope_theta": 1e6, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
        ),
        (
            {
                "tie_word_embeddings": True,
                "rope_parameters": {
                    "full_attention": {"rope_theta": 1e6, "rope_type": "default"},
                    "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
                },
            },
            [],
            {"rope_theta": 1e6, "rope_local_base_freq": 1e4},
        ),
    ],
)
def test_traps_in_the_config(config: dict[str, Any], tensors: list[str], mended: dict[str, Any]) -> None:
    assert config_fixes(config, tensors) == mended


def test_the_traps_would_have_been_sprung(model_copy: Copy, tiny_model: Path) -> None:
    """Without the keys that mlx-lm reads, the same checkpoint computes the same numbers."""
    folder = model_copy(
        rope_theta=None, rope_parameters={"rope_theta": 10000.0, "rope_type": "default"}, tie_word_embeddings=None
    )
    model, original = GritLM(folder), GritLM(tiny_model)
    np.testing.assert_array_equal(model.encode(TEXTS), original.encode(TEXTS))
    assert model.generate("Why?", max_tokens=12) == original.generate("Why?", max_tokens=12)
    other = model_copy(name="other", rope_theta=None, rope_parameters={"rope_theta": 500.0, "rope_type": "default"})
    assert np.abs(GritLM(other).encode(TEXTS) - original.encode(TEXTS)).max() > 1e-3


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def write(name: str, text: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_text(text)

    return change


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[:-1000])


def tensors(change: Callable[[dict[str, mx.array]], Any]) -> Callable[[Path], None]:
    return lambda folder: rewrite(folder, change)


def missing_shard(folder: Path) -> None:
    split(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()


def doubled(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model-00001-of-00001.safetensors").write_bytes(data)


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


NORM = "model.layers.1.input_layernorm.weight"
DAMAGES: list[tuple[str, Callable[[Path], Any], dict[str, Any], type[GritError], str]] = [
    ("no config", remove("config.json"), {}, ConfigError, r"has no config\.json, so it is not a model folder"),
    ("broken config", write("config.json", "{"), {}, ConfigError, r"config\.json cannot be read: Expecting"),
    ("config is a list", write("config.json", "[]"), {}, ConfigError, "it needs a 'model_type'"),
    ("no model_type", lambda f: None, {"model_type": None}, ConfigError, "it needs a 'model_type'"),
    ("no hidden_size", lambda f: None, {"hidden_size": None}, ConfigError, "lacks what mistral needs: 'hidden_size'"),
    ("unknown", lambda f: None, {"model_type": "zebra"}, ArchitectureError, "mlx-lm has no architecture 'zebra'"),
    ("own code", lambda f: None, {"model_file": "m.py"}, ArchitectureError, r"brings its own code \(m\.py\)"),
    ("wrong size", lambda f: None, {"intermediate_size": 50}, CheckpointError, "do not fit its config.json: Expected"),
    ("fewer layers", lambda f: None, {"num_hidden_layers": 1}, CheckpointError, r"not in model: model\.layers\.1"),
    ("more layers", lambda f: None, {"num_hidden_layers": 3}, CheckpointError, r"Missing .*model\.layers\.2"),
    ("truncated", truncate, {}, CheckpointError, "is damaged .* it has .* bytes and its header promises"),
    ("empty", write("model.safetensors", ""), {}, CheckpointError, "it ends after 0 bytes, inside its header"),
    ("not safetensors", write("model.safetensors", "PK" * 50), {}, CheckpointError, "inside its header"),
    ("no weights", remove("model.safetensors"), {}, CheckpointError, r"holds no model\*\.safetensors"),
    ("pickle", pickled, {}, CheckpointError, "pickle files .* can run code and are not read. Save it as safetensors"),
    ("missing shard", missing_shard, {}, CheckpointError, r"names model-00002-of-00002\.safetensors, which is missing"),
    ("doubled", doubled, {}, CheckpointError, r"is in both model-00001-of-00001\.safetensors and model\.safetensors"),
    (
        "broken index",
        write("model.safetensors.index.json", "{}"),
        {},
        CheckpointError,
        r"index\.json has no table 'weight_map'",
    ),
    ("missing tensor", tensors(lambda t: t.pop(NORM)), {}, CheckpointError, f"Missing .*{NORM}"),
    ("extra tensor", tensors(lambda t: t.update(x=t[NORM])), {}, CheckpointError, "not in model: x"),
    ("misshapen", tensors(lambda t: t.update({NORM: t[NORM][:5]})), {}, CheckpointError, rf"Expected shape .*{NORM}"),
    ("nan", tensors(lambda t: t.update({NORM: t[NORM] * float("nan")})), {}, NonFiniteError, f"{NORM} holds NaN"),
    ("no tokenizer", remove("tokenizer.json"), {}, TokenizerError, "has no tokenizer"),
    ("broken tokenizer", write("tokenizer.json", "{"), {}, TokenizerError, "Cannot read the tokenizer in"),
    ("odd tokenizer", write("tokenizer.json", '{"a": 1}'), {}, TokenizerError, "Cannot read the tokenizer in"),
    (
        "broken grit.json",
        write("grit.json", '{"pool": 1}'),
        {},
        ConfigError,
        "There is no option 'pool': did you mean 'pooling'",
    ),
]


@pytest.mark.parametrize(("damage", "config", "kind", "message"), [d[1:] for d in DAMAGES], ids=[d[0] for d in DAMAGES])
def test_damaged_folders(
    model_copy: Copy,
    damage: Callable[[Path], Any],
    config: dict[str, Any],
    kind: type[GritError],
    message: str,
) -> None:
    folder = model_copy(**config)
    damage(folder)
    with pytest.raises(kind, match=message) as caught:
        GritLM(folder)
    text = str(caught.value)
    assert "\n" not in text and str(folder) in text


def test_a_tokenizer_of_another_model(model_copy: Copy) -> None:
    folder = model_copy(vocab_size=200)
    rewrite(folder, lambda t: t.update({k: v[:200] for k, v in t.items() if v.shape[0] == 384}))
    with pytest.raises(TokenizerError, match="has 384 tokens and the model 200: they belong to different models"):
        GritLM(folder)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_weights(model_copy: Copy) -> None:
    folder = model_copy()
    (folder / "model.safetensors").chmod(0)
    with pytest.raises(CheckpointError, match=r"cannot be read: permission denied"):
        GritLM(folder)


def test_quantised_weights_are_the_same_for_every_job() -> None:
    """Widened to float32, not to the dtype of their scales: stores are embedded by one load and asked by another."""
    texts = ["what keeps a ship upright?", "The keel is the lowest part of a boat."]
    embedding, unified = (GritLM(hub.embedded_model(), mode=mode).encode(texts) for mode in ("embedding", "unified"))
    np.testing.assert_array_equal(embedding, unified)


TOKENIZED = """
import sys
from pathlib import Path
from grit_mlx import GritLM

tokenizer = GritLM(sys.argv[1]).tokenizer

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

def tokenize(numbers):
    for number in numbers:
        tokenizer.encode(f"{number} is the number of this text, which is " + f"not {number * 7} " * 12)

tokenize(range(500))
before = resident()
tokenize(range(500, 10_000))
print(resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_tokenized_texts_are_not_kept(tiny_model: Path) -> None:
    """A tokenizer without a pre-tokenizer takes each text for a word, and would remember it."""
    command = [sys.executable, "-c", TOKENIZED, str(tiny_model)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=True)
    assert int(result.stdout) < 10_000_000
