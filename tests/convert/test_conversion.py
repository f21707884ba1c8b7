"""Whole conversions: what comes out computes what went in, mlx-lm reads it, and nothing is overwritten."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx_lm
import numpy as np
import pytest
from mlx_lm.convert import convert as mlx_lm_convert
from mlx_lm.tuner.utils import linear_to_lora_layers
from mlx_lm.utils import load_model

from grit_mlx import GritLM
from grit_mlx.convert import ConversionStep, conversion, convert, plan, verify
from grit_mlx.convert.layout import parameters
from grit_mlx.convert.quantization import Predicate, Quantization
from grit_mlx.convert.verification import adapter_drift
from grit_mlx.errors import ArgumentError, OutputError
from grit_mlx.evaluation.drift import outputs_of
from grit_mlx.model.options import ModelChoice
from grit_mlx.model.settings import Settings, read_settings, write_settings
from tests.conftest import GOLDEN
from tests.convert.conftest import checkpoint_of, load_tensors, same_tensors, sharded, write_shards
from tests.training.test_adapters import write_adapter

ARCHITECTURES = ("mistral", "mixtral")
TEXTS = ("A keel keeps a ship upright.", "Bread rises.", "a", "The answer is in the first paragraph.") * 4


def quick(source: Path, output: Path, **options: Any) -> Path:
    return convert(source, output, verify=False, **options).folder


def config_of(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config


# Unquantised


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_unquantised_models_compute_the_same(architecture: str, tmp_path: Path) -> None:
    golden = json.loads((GOLDEN / architecture / "golden.json").read_text())
    model = GritLM(quick(sharded(GOLDEN / architecture, tmp_path / "source"), tmp_path / "out"))
    for case in golden["encode"]:
        options = {key: value for key, value in case["options"].items() if key in ("instruction", "max_length")}
        if options == case["options"]:
            np.testing.assert_allclose(model.encode(golden["texts"], **options), case["vectors"], atol=1e-5)
    for case in golden["generate"]:
        assert [r.token for r in model.stream_responses(case["prompt"], max_tokens=12)] == case["greedy"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_official_models_compute_the_same(architecture: str, shared: Path, tmp_path: Path) -> None:
    golden = shared / "golden" / architecture
    cases, arrays = json.loads((golden / "golden.json").read_text()), np.load(golden / "golden.npz")
    model = GritLM(quick(golden / "checkpoint", tmp_path / "out"))
    case = cases["encode"][0]
    vectors = model.encode(case["texts"], instruction=case.get("instruction", ""))
    np.testing.assert_allclose(vectors, arrays["encode/" + case["name"]], atol=1e-5)
    for case in cases["generate"]:
        tokens = [r.token for r in model.stream_responses(case["prompt"], max_tokens=len(case["greedy"]))]
        assert tokens == case["greedy"]


def test_dtype_is_cast_and_recorded(tiny_model: Path, tmp_path: Path) -> None:
    folder = quick(tiny_model, tmp_path / "half", dtype="float16")
    assert {tensor.dtype for tensor in load_tensors(folder).values()} == {mx.float16}
    assert config_of(folder)["torch_dtype"] == "float16"
    mlx_lm_convert(str(tiny_model), str(tmp_path / "theirs"), dtype="float16")
    assert not same_tensors(load_tensors(folder), load_tensors(tmp_path / "theirs"))


# Quantised

QUANTIZED: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"q_bits": 4, "q_group_size": 32}, {"bits": 4, "group_size": 32}),
    ({"q_bits": 3, "q_group_size": 32}, {"bits": 3, "group_size": 32}),
    ({"q_mode": "mxfp4"}, {"mode": "mxfp4"}),
    ({"q_mode": "nvfp4"}, {"mode": "nvfp4"}),
    ({"q_mode": "mxfp8"}, {"mode": "mxfp8"}),
    ({"q_group_size": 32, "quant_predicate": "mixed_3_6"}, {"group_size": 32, "recipe": "mixed_3_6"}),
]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("theirs", "ours"), QUANTIZED, ids=[str(ours) for _, ours in QUANTIZED])
def test_bytes_are_mlx_lms(architecture: str, theirs: dict[str, Any], ours: dict[str, Any], tmp_path: Path) -> None:
    """With the same recipe each tensor is the same, bit by bit, and the config reads the same."""
    mlx_lm_convert(str(GOLDEN / architecture), str(tmp_path / "theirs"), quantize=True, **theirs)
    folder = quick(GOLDEN / architecture, tmp_path / "ours", quantize=True, **{"recipe": "uniform", **ours})
    assert not same_tensors(load_tensors(folder), load_tensors(tmp_path / "theirs"))
    theirs_config, ours_config = config_of(tmp_path / "theirs"), config_of(folder)
    quantization = theirs_config.pop("quantization")
    default = {key: quantization[key] for key in ("bits", "group_size", "mode")}
    del theirs_config["quantization_config"], ours_config["quantization_config"]
    table = ours_config.pop("quantization")
    own_default = {key: table[key] for key in default}
    for path in {key for key in (*quantization, *table) if key not in default}:
        assert table.get(path, own_default) == quantization.get(path, default)
    assert ours_config == theirs_config


def test_small_blocks_and_shards_change_nothing(
    tiny_mixtral: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = quick(tiny_mixtral, tmp_path / "whole", quantize=True, group_size=32)
    monkeypatch.setattr("grit_mlx.convert.streaming.BLOCK", 7 * 32)
    parts = quick(tiny_mixtral, tmp_path / "parts", quantize=True, group_size=32, shard_bytes=20_000)
    assert len(list(parts.glob("model-*.safetensors"))) > 5
    assert not same_tensors(load_tensors(whole), load_tensors(parts))
    index = json.loads((parts / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(load_tensors(parts))


ARCHITECTURE_CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": True},
    "qwen2": {"tie_word_embeddings": False},
    "qwen3_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "decoder_sparse_step": 1,
        "moe_intermediate_size": 64,
        "mlp_only_layers": [],
        "norm_topk_prob": True,
        "head_dim": 16,
        "tie_word_embeddings": False,
    },
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": True},
    "gemma2": {"head_dim": 16, "final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0,
               "query_pre_attn_scalar": 8},
    "phi3": {"tie_word_embeddings": False},
    # Its sanitize transposes weights, so they are computed and not only renamed.
    "gpt2": {"n_ctx": 64, "n_embd": 64, "n_head": 4, "n_layer": 2, "n_positions": 64, "layer_norm_epsilon": 1e-5},
}  # fmt: skip
BASE = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 384, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "max_position_embeddings": 256,
}  # fmt: skip


@pytest.mark.parametrize("kind", ARCHITECTURE_CONFIGS)
def test_other_architectures(kind: str, tiny_model: Path, tmp_path: Path) -> None:
    config = {**BASE, **ARCHITECTURE_CONFIGS[kind]}
    source = checkpoint_of(kind, config, tmp_path / "source", tiny_model)
    if kind == "gpt2":  # as Hugging Face stores it
        tensors = {name.removeprefix("model."): tensor for name, tensor in load_tensors(source).items()}
        for name in tensors:
            if any(part in name for part in ("c_attn.weight", "c_proj.weight", "c_fc.weight")):
                tensors[name] = mx.contiguous(tensors[name].T)
        write_shards(source, tensors, 2)
    mlx_lm_convert(str(source), str(tmp_path / "theirs"), quantize=True, q_bits=4, q_group_size=64)
    folder = quick(source, tmp_path / "ours", quantize=True, bits=4, group_size=64, recipe="uniform")
    assert not same_tensors(load_tensors(folder), load_tensors(tmp_path / "theirs"))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_drift_falls_with_bits(architecture: str, tmp_path: Path) -> None:
    drifts = []
    for bits in (8, 6, 4, 3):
        # All the built-in texts: one token that goes to another expert moves a short text far.
        report = convert(GOLDEN / architecture, tmp_path / str(bits), quantize=True, bits=bits, group_size=32)
        assert report.drift is not None and report.drift.kl is not None
        drifts.append((1 - report.drift.cosine_mean, report.drift.kl))
        assert read_settings(report.folder).about["drift"] == report.drift.as_dict()
    assert drifts == sorted(drifts) and drifts[0][0] < 2e-3 and drifts[0][1] < 1e-2


def test_the_router_stays_intact_and_tables_keep_six_bits(tiny_mixtral: Path, tmp_path: Path) -> None:
    folder = quick(tiny_mixtral, tmp_path / "out", quantize=True, bits=4, group_size=32)
    before, after = load_tensors(tiny_mixtral), load_tensors(folder)
    for name in before:
        if name.endswith("block_sparse_moe.gate.weight"):
            assert mx.array_equal(before[name], after[name]).item()
    table = config_of(folder)["quantization"]
    assert table["bits"] == 4 and not any(path.endswith(".gate") for path in table)
    for path in ("model.embed_tokens", "lm_head", "model.layers.0.self_attn.v_proj"):
        assert table[path]["bits"] == 6


def test_a_recipe_of_ones_own(tiny_model: Path, tmp_path: Path) -> None:
    def only_the_table(model: nn.Module, base: Quantization) -> Predicate:
        return lambda path, module: base if path == "model.embed_tokens" else None

    folder = quick(tiny_model, tmp_path / "out", bits=5, group_size=32, recipe=only_the_table)
    assert {name for name in load_tensors(folder) if name.endswith(".scales")} == {"model.embed_tokens.scales"}
    assert read_settings(folder).about["recipe"] == "only_the_table, 5 bits, groups of 32, affine"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_mlx_lm_loads_and_generates(architecture: str, tmp_path: Path) -> None:
    folder = quick(GOLDEN / architecture, tmp_path / "out", quantize=True, bits=4, group_size=32)
    model, tokenizer = mlx_lm.load(str(folder))[:2]
    text = mlx_lm.generate(model, tokenizer, prompt="A keel", max_tokens=4)
    assert isinstance(text, str)
    # The loader rebuilt every module as it was written.
    quantized = {path for path, module in model.named_modules() if isinstance(module, nn.QuantizedLinear)}
    assert "model.layers.1.self_attn.v_proj" in quantized


def test_mlx_lms_own_folders_load_here(tiny_mixtral: Path, tmp_path: Path) -> None:
    mlx_lm_convert(str(tiny_mixtral), str(tmp_path / "theirs"), quantize=True, q_group_size=32)
    drift = verify(tiny_mixtral, tmp_path / "theirs", texts=TEXTS)
    assert 0.5 < drift.cosine_mean < 1


# From quantised to quantised


def test_quantised_folders_are_copied_unpacked_and_packed_again(tiny_mixtral: Path, tmp_path: Path) -> None:
    eight = quick(tiny_mixtral, tmp_path / "8", quantize=True, bits=8, group_size=32)
    copy = quick(eight, tmp_path / "copy")
    assert not same_tensors(load_tensors(eight), load_tensors(copy))
    assert config_of(copy) == config_of(eight)

    plain = quick(eight, tmp_path / "plain", dequantize=True)
    assert "quantization" not in config_of(plain) and not any(".scales" in name for name in load_tensors(plain))
    before = outputs_of(GritLM(eight), TEXTS)
    np.testing.assert_allclose(outputs_of(GritLM(plain), TEXTS).vectors, before.vectors, atol=1e-5)

    four = quick(eight, tmp_path / "4", quantize=True, bits=4, group_size=32)
    assert config_of(four)["quantization"]["bits"] == 4
    assert verify(tiny_mixtral, four, texts=TEXTS).cosine_mean > 0.8


# Layouts of official training checkpoints


def _nested(name: str) -> str:
    return f"model.{name}"


def _bare(name: str) -> str | None:
    return name.removeprefix("model.")


def _bare_without_head(name: str) -> str | None:
    return None if name == "lm_head.weight" else name.removeprefix("model.")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("rename", [_nested, _bare])
def test_prefixes(architecture: str, rename: Callable[[str], str | None], tmp_path: Path) -> None:
    source = sharded(GOLDEN / architecture, tmp_path / "source", 3, rename)
    plain = quick(GOLDEN / architecture, tmp_path / "plain", quantize=True, group_size=32)
    other = quick(source, tmp_path / "other", quantize=True, group_size=32)
    assert not same_tensors(load_tensors(plain), load_tensors(other))


def test_a_base_model_without_head_embeds(
    in_shards: Callable[..., Path], tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    report = convert(in_shards(rename=_bare_without_head), tmp_path / "out", texts=TEXTS)
    assert "only embeds" in caplog.text and report.drift is not None and report.drift.kl is None
    vectors = GritLM(report.folder, mode="embedding").encode(list(TEXTS))
    np.testing.assert_allclose(vectors, GritLM(tiny_model).encode(list(TEXTS)), atol=1e-6)
    assert "generate(" not in (report.folder / "README.md").read_text()


@pytest.mark.parametrize("inside", [True, False])
def test_projection_heads(inside: bool, in_shards: Callable[..., Path], tmp_path: Path) -> None:
    source = in_shards()
    weight, bias = mx.random.normal((8, 32)), mx.random.normal((8,))
    if inside:  # in the checkpoint, as the official training code saves it
        mx.save_safetensors(
            str(source / "model-extra.safetensors"), {"projection.weight": weight, "projection.bias": bias}
        )
        (source / "model.safetensors.index.json").unlink()
    else:
        mx.save_safetensors(str(source / "projection.safetensors"), {"weight": weight, "bias": bias})
    folder = quick(source, tmp_path / "out", quantize=True, group_size=32)
    written: Any = mx.load(str(folder / "projection.safetensors"))
    assert mx.array_equal(written["weight"], weight).item() and mx.array_equal(written["bias"], bias).item()
    assert GritLM(folder).encode("a").shape == (8,)


# Adapters


def make_adapter(source: Path, folder: Path, *, dora: bool = False, keys: list[str] | None = None) -> Path:
    """An adapter whose weights are not the neutral ones that it begins with."""
    model, _ = load_model(source)
    model.freeze()
    shape: dict[str, Any] = {"rank": 4, "scale": 2.0, "dropout": 0.0}
    if keys is not None:
        shape["keys"] = keys
    linear_to_lora_layers(model, 2, dict(shape), use_dora=dora)
    mx.random.seed(1)
    names = ("lora_a", "lora_b", "m")
    tuned = {
        name: array + 0.1 * mx.random.normal(array.shape)
        for name, array in parameters(model).items()
        if name.rpartition(".")[2] in names
    }
    folder.mkdir()
    mx.save_safetensors(str(folder / "adapters.safetensors"), tuned)
    content = {"fine_tune_type": "dora" if dora else "lora", "num_layers": 2, "lora_parameters": shape}
    (folder / "adapter_config.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("architecture", "dora", "keys"),
    [
        ("mistral", False, None),
        ("mistral", True, ["self_attn.q_proj", "mlp.down_proj"]),
        ("mistral", False, ["model.embed_tokens", "self_attn.v_proj"]),
        ("mixtral", False, None),  # the experts and the router too
    ],
)
def test_adapters_are_fused(
    architecture: str,
    dora: bool,
    keys: list[str] | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = GOLDEN / architecture
    adapter = make_adapter(source, tmp_path / "adapter", dora=dora, keys=keys)
    write_settings(adapter, Settings(query_instruction="of the adapter"))
    monkeypatch.setattr("grit_mlx.convert.streaming.BLOCK", 10 * 32)  # rows of one weight come in several blocks
    folder = quick(source, tmp_path / "fused", adapter=adapter)
    apart, fused = GritLM(source, adapter_path=adapter), GritLM(folder)
    assert fused.settings.query_instruction == "of the adapter"
    expected = outputs_of(apart, TEXTS)
    np.testing.assert_allclose(outputs_of(fused, TEXTS).vectors, expected.vectors, atol=1e-5)
    assert np.abs(expected.vectors - outputs_of(GritLM(source), TEXTS).vectors).max() > 1e-3
    # The proof compares with the adapted model, not with the bare one.
    report = convert(source, tmp_path / "proven", adapter=adapter, texts=TEXTS)
    assert report.drift is not None and report.drift.cosine_worst > 0.99999


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_fusing_costs_nothing_without_quantising(tiny_model: Path, tmp_path: Path, kind: str) -> None:
    write_adapter(tmp_path / "a", tiny_model, kind)
    choice = ModelChoice(tiny_model, adapter=tmp_path / "a")
    own, fused = adapter_drift(choice, convert(choice, tmp_path / "fused", verify=False).folder)
    assert fused.cosine_worst == pytest.approx(1, abs=1e-6) and own.cosine_mean < 0.99
    text = ["A keel keeps a ship upright.", "Bread."]
    together, apart = GritLM(tmp_path / "fused"), GritLM(tiny_model, adapter_path=tmp_path / "a")
    np.testing.assert_allclose(together.encode(text), apart.encode(text), atol=1e-5)
    assert together.generate("Hello", max_tokens=8) == apart.generate("Hello", max_tokens=8)


def test_fusing_into_quantised_weights_is_measured(tiny_model: Path, tmp_path: Path) -> None:
    base = quick(tiny_model, tmp_path / "base", bits=4, group_size=32, recipe="uniform")
    write_adapter(tmp_path / "a", tiny_model)
    choice = ModelChoice(base, adapter=tmp_path / "a")
    own, fused = adapter_drift(choice, convert(choice, tmp_path / "fused", verify=False).folder)
    assert 0.5 < fused.cosine_mean < 1 - 1e-5 and own.cosine_mean < 1
    assert config_of(tmp_path / "fused")["quantization"]["bits"] == 4
    _, wide = adapter_drift(choice, convert(choice, tmp_path / "wide", dequantize=True, verify=False).folder)
    assert wide.cosine_mean == pytest.approx(1, abs=1e-5) and "quantization" not in config_of(tmp_path / "wide")
    assert GritLM(tmp_path / "fused", dtype="stored").encode(["a"]).shape == (1, 32)


def test_a_fully_tuned_model_is_an_adapter_too(tiny_model: Path, tmp_path: Path) -> None:
    tuned = {"model.layers.0.mlp.up_proj.weight": mx.ones((48, 32))}
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    mx.save_safetensors(str(adapter / "adapters.safetensors"), tuned)
    (adapter / "adapter_config.json").write_text('{"fine_tune_type": "full", "num_layers": 2}')
    after = load_tensors(quick(tiny_model, tmp_path / "out", adapter=adapter))
    assert same_tensors(load_tensors(tiny_model), after) == list(tuned)
    assert mx.array_equal(after[next(iter(tuned))], next(iter(tuned.values()))).item()


@pytest.mark.parametrize("options", [{}, {"bits": 4}, {"target_bits": 8.0}])
def test_everything_is_planned_once(
    options: dict[str, Any], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def counted(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            calls.append(name)
            return original(*given, **named)

        return call

    for module, name in ((conversion, "make_plan"), (plan, "lay_out"), (plan, "build_model")):
        monkeypatch.setattr(module, name, counted(name, getattr(module, name)))
    write_adapter(tmp_path / "a", tiny_model)
    quick(tiny_model, tmp_path / "out", adapter=tmp_path / "a", group_size=32, **options)
    assert sorted(calls) == ["build_model", "lay_out", "make_plan"]


# What surrounds the weights


def test_the_folder_is_complete_and_described(model_copy: Callable[..., Path], tmp_path: Path) -> None:
    source = model_copy()
    write_settings(source, Settings(pooling="lasttoken", max_length=77))
    (source / "README.md").write_text("---\nlicense: apache-2.0\nlanguage: [en]\ntags: [sailing]\n---\n# Old\n")
    steps: list[ConversionStep] = []
    report = convert(
        source, tmp_path / "out", quantize=True, group_size=32, verify=True, texts=TEXTS, progress=steps.append
    )
    names = {path.name for path in report.folder.iterdir()}
    assert names == {
        "README.md", "config.json", "golden.json", "grit.json", "model.safetensors", "model.safetensors.index.json",
        "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    assert not list(tmp_path.glob(".*")), "nothing is left beside the result"
    settings = read_settings(report.folder)
    assert (settings.pooling, settings.max_length) == ("lasttoken", 77)
    assert settings.about["base_model"] == "model" and settings.about["bits_per_weight"] == pytest.approx(
        report.bits_per_weight, abs=1e-3
    )
    card = (report.folder / "README.md").read_text()
    for text in ("license: apache-2.0", "- sailing", "- mlx", "library_name: mlx", 'GritLM("out")', "KL of next token"):
        assert text in card
    assert report.drift is not None and f"{report.drift.cosine_mean:.4f}" in card
    written = [step for step in steps if step.phase == "write"]
    assert written[-1].done == written[-1].total and written[-1].tensors == written[-1].all_tensors
    assert [step.done for step in written] == sorted(step.done for step in written)
    assert report.parameters == sum(t.size for t in load_tensors(source).values())
    assert sum(report.bits.values()) == report.parameters


def test_the_card_names_the_hub_repository_it_is_uploaded_to(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, dict[str, Any]]] = []

    class Api:
        def __getattr__(self, name: str) -> Callable[..., None]:
            return lambda **options: calls.append((name, options))

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    report = convert(tiny_model, tmp_path / "out", verify=False, upload_repo="own/tiny-mlx")
    assert [name for name, _ in calls] == ["create_repo", "upload_folder"]
    assert calls[1][1] == {"folder_path": str(report.folder), "repo_id": "own/tiny-mlx"}
    assert 'GritLM("own/tiny-mlx")' in (report.folder / "README.md").read_text()


# Nothing is lost


def test_what_is_there_is_not_overwritten(tiny_model: Path, tmp_path: Path) -> None:
    folder = quick(tiny_model, tmp_path / "out")
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(OutputError, match=r"out exists. Choose another output, or replace it with force=True\."):
        quick(tiny_model, folder, quantize=True, group_size=32)
    assert (folder / "model.safetensors").read_bytes() == before
    quick(tiny_model, folder, quantize=True, group_size=32, force=True)
    assert "quantization" in config_of(folder) and not list(tmp_path.glob(".*"))
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "letter.txt").write_text("dear")
    with pytest.raises(OutputError, match="exists and is not a model folder"):
        quick(tiny_model, tmp_path / "documents", force=True)
    with pytest.raises(OutputError, match="is a file"):
        quick(tiny_model, tmp_path / "documents" / "letter.txt", force=True)
    (tmp_path / "empty").mkdir()
    assert quick(tiny_model, tmp_path / "empty").name == "empty"


def test_the_source_is_never_the_target(model_copy: Callable[..., Path]) -> None:
    source = model_copy()
    for target in (source, source.parent):
        with pytest.raises(OutputError, match="holds the model that is to be converted"):
            quick(source, target, force=True)


def test_a_full_disk_is_noticed_before_and_while_writing(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
        with pytest.raises(
            OutputError,
            match=r"out needs 0\.07 GB and 0\.00 GB are free on its disk\..* fewer bits",
        ):
            quick(tiny_model, tmp_path / "out")
    assert not list(tmp_path.iterdir())

    def full(*arguments: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.pwrite", full)
        with pytest.raises(OutputError, match=r"the disk is full\. .* What is done so far is kept"):
            quick(tiny_model, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert quick(tiny_model, tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"bits": 7}, "Mode affine has no bits 7: use 2, 3, 4, 5, 6, 8"),
        ({"mode": "mxfp4", "bits": 8}, "Mode mxfp4 has no bits 8: use 4"),
        ({"group_size": 20}, "no group_size 20: use 32, 64, 128"),
        ({"mode": "fp2"}, "Unknown mode 'fp2'"),
        ({"recipe": "best"}, "Unknown recipe 'best'"),
        ({"quantize": True, "dequantize": True}, "Choose one of quantize and dequantize"),
        ({"dtype": "int8"}, "Unknown dtype 'int8'"),
        ({"target_bits": 4.5, "fit_bytes": 10}, "Choose one of target_bits and fit_bytes"),
        ({"target_bits": 4.5, "mode": "mxfp4"}, "in mode affine only, not in mxfp4"),
        ({"quantize": True, "recipe": "mixed_3_6", "mode": "mxfp4"}, "Recipe mixed_3_6 is for mode affine"),
        ({"target_bits": 1.0}, "at the fewest bits and the budget is"),
        ({"shard_bytes": 0}, "shard_bytes must be at least 1, not 0"),
        ({"colour": "red"}, "There is no option 'colour'"),
    ],
)
def test_options_that_cannot_work(options: dict[str, Any], problem: str, tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=problem.replace(".", r"\.")):
        quick(tiny_model, tmp_path / "out", **{"group_size": 32, **options})
    assert not list(tmp_path.iterdir())
