"""Converted folders in sentence-transformers itself: its vectors are ours, alone and beside longer texts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from tests.integrations.tools import tool

SentenceTransformer = tool("sentence_transformers").SentenceTransformer

from grit_mlx import GritLM
from grit_mlx.convert import convert
from grit_mlx.convert.modules import ARCHITECTURES, NEEDED
from grit_mlx.model.settings import Settings, read_settings, write_settings

TEXTS = [
    "Yeast.",
    "The boiler is serviced in October by Mr Smith, who brings a bag of tools and a sandwich.",
    " A text that begins with a blank; " + "and goes on, " * 60,
    "Two\nlines of it.",
]
ROLES = ("query", "document", "similarity")

SIZES = {
    **{"vocab_size": 384, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024},
    **{"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "tie_word_embeddings": False},
}


def checkpoint(folder: Path, tokenizer: Path, kind: str, **config: Any) -> Path:
    """A random model as transformers saves it."""
    transformers, torch = tool("transformers"), tool("torch")
    torch.manual_seed(0)
    described = transformers.AutoConfig.for_model(kind, **{**SIZES, **config})
    model = transformers.AutoModelForCausalLM.from_config(described).to(torch.float32)
    with torch.no_grad():
        for name, values in model.named_parameters():
            values.copy_(torch.randn_like(values) * 0.2 + (1 if name.endswith("norm.weight") else 0))
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer / name, folder)
    return folder


def differences(folder: Path) -> dict[str, float]:
    """Between the vectors of both, by the role of texts, with one batch and with a batch for each."""
    ours, theirs = GritLM(folder), SentenceTransformer(str(folder), device="cpu")
    found = {}
    for role in ROLES:
        vectors = ours.encode(TEXTS, role=role)
        for name, size in (("together", 8), ("alone", 1)):
            other = theirs.encode(TEXTS, prompt_name=role, batch_size=size, show_progress_bar=False)
            found[f"{role} {name}"] = float(np.abs(vectors - other).max())
    documents = theirs.encode_document(TEXTS)
    np.testing.assert_array_equal(theirs.encode(TEXTS), documents)
    assert theirs.encode_query(TEXTS[:1]).shape == (1, theirs.get_embedding_dimension())
    return found


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_every_architecture_has_the_same_vectors(kind: str, tiny_model: Path, tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "source", tiny_model, kind)
    folder = convert(source, tmp_path / "out", verify=False).folder
    assert max(differences(folder).values()) < 1e-5
    causal = GritLM(folder, attn="cccc").encode(TEXTS, role="query")
    assert np.abs(causal - GritLM(folder).encode(TEXTS, role="query")).max() > 0.1, "attention makes no difference"


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("mistral", {"sliding_window": 8}),
        ("phi3", {"sliding_window": 8}),
        ("qwen2", {"sliding_window": 8, "use_sliding_window": False}),
        ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
        (
            "llama",
            {
                "rope_scaling": {
                    **{"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
                    "original_max_position_embeddings": 64,
                }
            },
        ),
        ("llama", {"tie_word_embeddings": True}),
        # As in GritLM-7B, whose code is not among the files.
        ("mistral", {"auto_map": {"AutoModelForCausalLM": "modeling_gritlm7b.MistralForCausalLM"}}),
    ],
    ids=str,
)
def test_configs(kind: str, config: dict[str, Any], tiny_model: Path, tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "source", tiny_model, kind, **config)
    assert max(differences(convert(source, tmp_path / "out", verify=False).folder).values()) < 1e-5


@pytest.mark.parametrize(
    "settings",
    [
        Settings(pooling="cls"),
        Settings(pooling="lasttoken"),
        Settings(pooling="weightedmean", pool_prompt=True),
        Settings(normalized=False, pool_prompt=True),
        Settings(attn="cccc", max_length=128),
        Settings(prompt_format="plain", query_instruction="Find: ", similarity_instruction=""),
    ],
    ids=lambda settings: f"{settings.pooling} {settings.attn} {settings.prompt_format}",
)
def test_settings(settings: Settings, model_copy: Callable[..., Path], tmp_path: Path) -> None:
    source = model_copy()
    write_settings(source, settings)
    assert max(differences(convert(source, tmp_path / "out", verify=False).folder).values()) < 1e-5


@pytest.mark.parametrize("bias", [False, True])
def test_a_projection(bias: bool, model_copy: Callable[..., Path], tmp_path: Path) -> None:
    source = model_copy()
    layer = {"weight": mx.random.normal((8, 32), key=mx.random.key(0))}
    layer |= {"bias": mx.ones((8,))} if bias else {}
    mx.save_safetensors(str(source / "projection.safetensors"), layer)
    folder = convert(source, tmp_path / "out", verify=False).folder
    assert GritLM(folder).embedding_size == 8
    assert max(differences(folder).values()) < 1e-5


def test_transformers_writes_with_causal_attention(tiny_model: Path, tmp_path: Path) -> None:
    transformers, torch = tool("transformers"), tool("torch")
    folder = convert(tiny_model, tmp_path / "out", verify=False).folder
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    ours, ids = GritLM(folder), [1, 52, 61, 70, 45, 33]
    logits = model(torch.tensor([ids])).logits.detach().numpy()
    np.testing.assert_allclose(logits, np.array(ours.model(mx.array([ids]))), atol=1e-4)
    written = model.generate(torch.tensor([ids]), max_new_tokens=5, do_sample=False, pad_token_id=0)[0].tolist()
    for length in range(len(ids), len(written)):
        assert written[length] == ours.model(mx.array([written[:length]]))[0, -1].argmax().item()


def test_what_cannot_be_opened_has_no_modules(
    model_copy: Callable[..., Path], tiny_mixtral: Path, tmp_path: Path
) -> None:
    source = model_copy()
    quantized = convert(source, tmp_path / "4bit", quantize=True, group_size=32, verify=False).folder
    mixture = convert(tiny_mixtral, tmp_path / "mixture", verify=False).folder
    write_settings(source, Settings(pooling="weightedmean"))
    weighted = convert(source, tmp_path / "weighted", verify=False).folder
    for folder in (quantized, mixture, weighted):
        assert not (folder / "modules.json").exists()
        assert "is_causal" not in json.loads((folder / "config.json").read_text())


def test_versions_that_would_be_wrong_are_refused(
    model_copy: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sentence_transformers.util import environment

    folder = convert(model_copy(), tmp_path / "out", verify=False).folder
    installed = environment.get_installed_version
    monkeypatch.setattr(
        environment, "get_installed_version", lambda name: "5.1.0" if name == "transformers" else installed(name)
    )
    with pytest.raises(ImportError, match=rf"transformers.*{NEEDED['transformers']}(.|\n)*causal attention"):
        SentenceTransformer(str(folder))


def test_a_folder_without_our_settings_is_read_back(model_copy: Callable[..., Path], tmp_path: Path) -> None:
    folder = convert(model_copy(), tmp_path / "out", verify=False).folder
    expected = GritLM(folder).encode(TEXTS, role="query")
    config = json.loads((folder / "config.json").read_text())
    (folder / "grit.json").unlink()
    (folder / "config.json").write_text(json.dumps({**config, "is_causal": False}))
    assert read_settings(folder).pooling == "mean"
    np.testing.assert_allclose(GritLM(folder).encode(TEXTS, role="query"), expected, atol=1e-6)
