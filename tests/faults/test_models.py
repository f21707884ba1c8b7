"""Other people's models: what embedders, transformers 5 and sentence-transformers save is read as they mean it."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models import gemma2
from safetensors import safe_open
from safetensors.numpy import save_file

from grit_mlx import GritLM
from grit_mlx.errors import ArchitectureError, CheckpointError, ConfigError
from grit_mlx.model import attention
from grit_mlx.model.foreign import config_fixes, renames
from grit_mlx.model.loading import load
from grit_mlx.model.options import ModelChoice
from grit_mlx.model.settings import Settings, read_settings, write_settings
from grit_mlx.training.scratch import write_random_model

Copy = Callable[..., Path]

TEXTS = ["The keel keeps the ship upright.", "Bread.", "What leans on the wind and eats sugar, page after page?"]


def rewritten(folder: Path, change: Callable[[str], str | None]) -> Path:
    """The folder with its tensors renamed; None drops one."""
    path = folder / "model.safetensors"
    with safe_open(str(path), "numpy") as file:
        kept = {new: file.get_tensor(name) for name in file.keys() if (new := change(name)) is not None}  # noqa: SIM118
    path.unlink()
    save_file(kept, path)
    return folder


def made(tiny_model: Path, folder: Path, **config: Any) -> Path:
    """A random model of any architecture."""
    base = {
        "vocab_size": 384,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e4,
        "max_position_embeddings": 256,
    }
    path = folder.with_suffix(".json")
    path.write_text(json.dumps({**base, "initializer_range": 0.2, **config}))
    write_random_model(folder, config_path=path, tokenizer=tiny_model, seed=0)
    return folder


# Exports of embedders


def without_head(name: str) -> str | None:
    return None if name.startswith("lm_head") else name


def without_prefix(name: str) -> str | None:
    return None if name.startswith("lm_head") else name.removeprefix("model.")


def wrapped(name: str) -> str | None:
    return None if name.startswith("lm_head") else f"module.{name}"


@pytest.mark.parametrize("change", [without_head, without_prefix, wrapped])
@pytest.mark.parametrize("tied", [False, None])
def test_embedding_exports_embed(
    model_copy: Copy, tiny_model: Path, change: Callable[[str], str | None], tied: bool | None
) -> None:
    folder = rewritten(model_copy(tie_word_embeddings=tied), change)
    expected = GritLM(tiny_model).encode(TEXTS)
    np.testing.assert_array_equal(GritLM(folder, mode="embedding").encode(TEXTS), expected)
    with pytest.raises(CheckpointError, match=r"no language-model head \(lm_head\.weight\)"):
        GritLM(folder)


def test_a_base_model_without_the_prefix_but_with_a_head(model_copy: Copy, tiny_model: Path) -> None:
    folder = rewritten(model_copy(), lambda name: name.removeprefix("model."))
    ids = mx.array([[1, 20, 30]])
    assert mx.array_equal(load(ModelChoice(folder)).model(ids), load(ModelChoice(tiny_model)).model(ids))


def test_other_missing_tensors_are_still_named(model_copy: Copy) -> None:
    folder = rewritten(model_copy(), lambda name: None if "layers.1.mlp.up_proj" in name else name)
    for mode in ("embedding", "unified"):
        with pytest.raises(CheckpointError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
            GritLM(folder, mode=mode)


def test_renames() -> None:
    expected = ["language_model.model.layers.0.a", "language_model.model.norm", "language_model.lm_head.weight"]
    stored = ["layers.0.a", "norm", "lm_head.weight"]
    assert renames(stored, expected) == dict(zip(stored, expected, strict=True))
    assert renames(expected, expected) == {}
    assert renames(["_orig_mod.model.layers.0.a"], ["model.layers.0.a"]) == {
        "_orig_mod.model.layers.0.a": "model.layers.0.a"
    }


# What transformers 5 writes


@pytest.mark.parametrize(
    ("config", "fixes"),
    [
        ({"model_type": "qwen3_moe", "num_local_experts": 4}, {"num_experts": 4}),
        ({"model_type": "phi", "rope_parameters": {"rope_theta": 1.0, "partial_rotary_factor": 0.5}}, {
            "partial_rotary_factor": 0.5, "rope_theta": 1.0}),
        ({"model_type": "gemma3_text", "sliding_window": 512, "use_bidirectional_attention": True}, {
            "sliding_window": 257, "use_bidirectional_attention": False}),
        ({"model_type": "gemma3_text", "layer_types": ["sliding_attention", "full_attention"]}, {
            "sliding_window_pattern": 2}),
        ({"model_type": "mistral"}, {"tie_word_embeddings": False}),
        ({"model_type": "mistral", "tie_word_embeddings": None}, {"tie_word_embeddings": False}),
        ({"model_type": "gemma"}, {"tie_word_embeddings": True}),
    ],
)  # fmt: skip
def test_entries_that_mlx_lm_reads_elsewhere(config: dict[str, Any], fixes: dict[str, Any]) -> None:
    found = config_fixes(config, ["model.norm.weight"])
    assert {name: found.get(name) for name in fixes} == fixes


def test_qwen3_moe_as_transformers_5_saves_it(tiny_model: Path, tmp_path: Path) -> None:
    moe = {"num_experts_per_tok": 2, "moe_intermediate_size": 32, "decoder_sparse_step": 1, "mlp_only_layers": []}
    folder = made(tiny_model, tmp_path / "m", model_type="qwen3_moe", num_experts=4, norm_topk_prob=True, **moe)
    before = GritLM(folder).encode(TEXTS)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["num_local_experts"] = config.pop("num_experts")
    path.write_text(json.dumps(config))
    np.testing.assert_array_equal(GritLM(folder).encode(TEXTS), before)


# Gemma 2


@pytest.fixture
def gemma2_model(tiny_model: Path, tmp_path: Path) -> Path:
    options = {"query_pre_attn_scalar": 16, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
    return made(tiny_model, tmp_path / "gemma2", model_type="gemma2", **options)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
def test_gemma_2_in_batches(gemma2_model: Path, size: int) -> None:
    """Two texts are as many as its key/value heads, which was silently wrong; three failed."""
    model = GritLM(gemma2_model)
    texts = [*TEXTS, "Sail.", "A page keeps the answer of a line."][:size]
    alone = np.stack([model.encode(text) for text in texts])
    np.testing.assert_allclose(model.encode(texts, batch_size=size), alone, atol=2e-6)


def test_a_mask_that_does_not_fit_is_found_at_load(gemma2_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grit_mlx.model.loading.broadcast_masks", lambda model: None)
    with pytest.raises(ArchitectureError, match=r"unequal lengths|changes with the padding|does not see all"):
        GritLM(gemma2_model)


def test_a_mask_on_the_wrong_rows_is_found_at_load(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing fails there: the vectors are wrong."""

    def swapped(length: int, padding: mx.array | None, window: int | None = None) -> mx.array | None:
        return None if padding is None else padding[::-1][:, None, None, :]

    monkeypatch.setattr(attention, "bidirectional_mask", swapped)
    with pytest.raises(ArchitectureError, match=r"changes with the padding|does not see all"):
        GritLM(tiny_model)


def test_the_workaround_is_still_needed() -> None:
    """If mlx-lm's scores have four axes one day, ``broadcast_masks`` can go."""
    assert "expand_dims(keys, 2)" in Path(gemma2.__file__).read_text(encoding="utf-8")


# sentence-transformers' files


def saved(
    folder: Path, pooling: dict[str, Any], *, normalize: bool = True, dense: bool = False, **prompts: str
) -> Path:
    """The files that sentence-transformers writes beside a model."""
    modules = ["Transformer", "Pooling", *["Dense"] * dense, *["Normalize"] * normalize]
    listed = []
    for i, kind in enumerate(modules):
        place = "" if i == 0 else f"{i}_{kind}"
        listed.append({"idx": i, "name": str(i), "path": place, "type": f"sentence_transformers.models.{kind}"})
        (folder / place).mkdir(exist_ok=True)
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": prompts}))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 100}))
    return folder


LAST = {"word_embedding_dimension": 32, "pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False}


@pytest.mark.parametrize(
    ("pooling", "method"),
    [
        (LAST, "lasttoken"),
        ({"pooling_mode": "lasttoken"}, "lasttoken"),
        ({"pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode": ["weightedmean"]}, "weightedmean"),
        ({"pooling_mode_cls_token": True}, "cls"),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, "mean"),
        ({}, "mean"),
    ],
)
def test_pooling_and_attention(model_copy: Copy, tiny_model: Path, pooling: dict[str, Any], method: str) -> None:
    folder = saved(model_copy(), pooling)
    expected = GritLM(tiny_model, pooling_method=method, attn="cccc").encode(TEXTS)
    np.testing.assert_array_equal(GritLM(folder).encode(TEXTS), expected)
    assert GritLM(folder).settings.max_length == 100


def test_one_note_says_what_is_used(model_copy: Copy, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "grit_mlx")
    GritLM(saved(model_copy(), LAST, query="query: "))
    [note] = [record.message for record in caplog.records if "sentence-transformers" in record.message]
    assert "lasttoken pooling, causal attention, normalised, at most 100 tokens, prompts query" in note


@pytest.mark.parametrize("include", [True, False])
def test_prompts_are_literal(model_copy: Copy, tiny_model: Path, include: bool) -> None:
    pooling = {"pooling_mode": "mean", "include_prompt": include}
    search = "search: " if include else "search:\n"
    model = GritLM(saved(model_copy(), pooling, query=search, passage="text:\n"))
    plain = GritLM(tiny_model, attn="cccc")
    for encode, prompt in ((model.encode_queries, search), (model.encode_corpus, "text:\n")):
        expected = plain.encode(TEXTS, instruction=prompt, embed_instruction=include)
        if include:  # one string, as its tokenizer has it
            expected = plain.encode([prompt + text for text in TEXTS])
        np.testing.assert_allclose(encode(TEXTS), expected, atol=1e-6)
    assert model.settings.pool_prompt is include


def test_not_normalised(model_copy: Copy) -> None:
    vectors = GritLM(saved(model_copy(), LAST, normalize=False)).encode(TEXTS)
    assert not np.allclose(np.linalg.norm(vectors, axis=1), 1)


def test_dense_layers_are_the_projection(model_copy: Copy) -> None:
    folder = saved(model_copy(), {}, normalize=False, dense=True)
    plain = GritLM(saved(model_copy(name="plain"), {}, normalize=False)).encode(TEXTS)
    rng = np.random.default_rng(0)
    weight, bias = rng.normal(size=(8, 32)).astype(np.float32), rng.normal(size=8).astype(np.float32)
    save_file({"linear.weight": weight, "linear.bias": bias}, folder / "2_Dense" / "model.safetensors")
    identity = {"in_features": 32, "out_features": 8, "activation_function": "torch.nn.modules.linear.Identity"}
    (folder / "2_Dense" / "config.json").write_text(json.dumps(identity))
    np.testing.assert_allclose(GritLM(folder).encode(TEXTS), plain @ weight.T + bias, atol=1e-4)
    identity["activation_function"] = "torch.nn.modules.activation.Tanh"
    (folder / "2_Dense" / "config.json").write_text(json.dumps(identity))
    with pytest.raises(ConfigError, match="asks for a layer with Tanh"):
        GritLM(folder)


@pytest.mark.parametrize("pooling", [{"pooling_mode": "max"}, {"pooling_mode": ["mean", "cls"]}])
def test_poolings_that_are_not_ours(model_copy: Copy, pooling: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="grit-mlx pools by one of"):
        GritLM(saved(model_copy(), pooling))


def test_modules_that_are_not_ours(model_copy: Copy) -> None:
    folder = saved(model_copy(), {})
    text = (folder / "modules.json").read_text().replace("models.Normalize", "models.LayerNorm")
    (folder / "modules.json").write_text(text)
    with pytest.raises(ConfigError, match="sends texts through LayerNorm"):
        GritLM(folder)


def test_grit_json_wins(model_copy: Copy) -> None:
    folder = saved(model_copy(), LAST)
    write_settings(folder, Settings(pooling="mean"))
    assert read_settings(folder) == Settings(pooling="mean")


def test_a_model_with_code_of_its_own_keeps_grits_attention(model_copy: Copy) -> None:
    """The official GritLM is one: its code attends in both directions."""
    folder = saved(model_copy(auto_map={"AutoModel": "modeling_gritlm7b.MistralModel"}), {})
    assert read_settings(folder) == Settings(max_length=100)


def test_damaged_files_are_named(model_copy: Copy) -> None:
    folder = saved(model_copy(), LAST)
    (folder / "modules.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"modules\.json must hold a JSON array"):
        GritLM(folder)
    shutil.rmtree(folder / "1_Pooling")
