"""The files for sentence-transformers; its vectors are compared in tests/integrations, where PyTorch is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from grit_mlx.convert import convert
from grit_mlx.convert.modules import modules_of, why_not
from grit_mlx.model.sentence_transformers import read_modules
from grit_mlx.model.settings import Settings, write_settings

MISTRAL = {"model_type": "mistral", "hidden_size": 32}
TOKENIZER = {"eos_token": {"content": "</s>"}}


@pytest.mark.parametrize(
    ("settings", "config", "tokenizer", "said"),
    [
        (Settings(), MISTRAL, TOKENIZER, ""),
        (Settings(), {**MISTRAL, "quantization": {"bits": 4}}, TOKENIZER, "quantised"),
        (Settings(), {**MISTRAL, "model_type": "mixtral"}, TOKENIZER, "mixtral"),
        (Settings(), {**MISTRAL, "rope_scaling": {"type": "yarn"}}, TOKENIZER, "yarn"),
        (Settings(), {**MISTRAL, "rope_parameters": {"rope_type": "llama3"}}, TOKENIZER, ""),
        (Settings(), {"model_type": "qwen2", "use_sliding_window": True}, TOKENIZER, "window"),
        (Settings(pooling="weightedmean"), MISTRAL, TOKENIZER, "weights"),
        (Settings(pooling="weightedmean", pool_prompt=True), MISTRAL, TOKENIZER, ""),
        (Settings(), MISTRAL, {**TOKENIZER, "add_eos_token": True}, "appends"),
        (Settings(), MISTRAL, {}, "pad"),
    ],
    ids=str,
)
def test_what_is_described(settings: Settings, config: dict[str, Any], tokenizer: dict[str, Any], said: str) -> None:
    reason = why_not(settings, config, tokenizer)
    assert said in reason and bool(said) == bool(reason)


def test_attention_is_said_where_it_is_heeded() -> None:
    config = {**MISTRAL, "sliding_window": 4096}
    files = modules_of(Settings(), config, TOKENIZER)
    assert files["sentence_bert_config.json"]["config_kwargs"] == {"is_causal": False, "sliding_window": None}
    causal = modules_of(Settings(attn="cccc"), MISTRAL, TOKENIZER)
    assert causal["sentence_bert_config.json"]["config_kwargs"] == {"is_causal": True}
    assert files["config_sentence_transformers.json"]["requirements"]["transformers"]["specifier"] == ">=5.2.0"


def test_our_reader_reads_them(model_copy: Callable[..., Path], tmp_path: Path) -> None:
    source = model_copy()
    write_settings(source, Settings(max_length=77, normalized=True))
    folder = convert(source, tmp_path / "out", verify=False).folder
    modules = read_modules(folder)
    assert modules is not None
    assert (modules.pooling, modules.pools_prompt, modules.normalized, modules.max_length) == ("mean", False, True, 77)
    assert modules.prompt("document") == "<|embed|>\n"
    assert modules.prompt("query").startswith("<|user|>\n") and modules.prompt("query").endswith("\n<|embed|>\n")
    assert json.loads((folder / "config.json").read_text())["is_causal"] is True
    again = convert(folder, tmp_path / "4bit", quantize=True, group_size=32, verify=False).folder
    assert read_modules(again) is None
