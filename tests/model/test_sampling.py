"""How a conversation is sampled where nobody says it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from grit_mlx.model.sampling import CHAT_SAMPLING, chat_options, recommended_sampling


@pytest.mark.parametrize(
    ("config", "found"),
    [
        (None, {}),
        ({}, {}),
        ({"bos_token_id": 1, "eos_token_id": [2]}, {}),
        ({"do_sample": True, "temperature": 0.6, "top_p": 0.9}, {"temperature": 0.6, "top_p": 0.9}),
        ({"temperature": 0.3, "top_k": 20, "max_length": 99}, {"temperature": 0.3, "top_k": 20}),
        ({"do_sample": True, "top_k": 50}, {"temperature": 1.0, "top_k": 50}),
        ({"do_sample": False, "temperature": 0.6}, {"temperature": 0.0}),
        ({"temperature": None, "top_p": 0.9}, {}),
        ({"temperature": -3}, {}),
        ({"temperature": "warm"}, {}),
        ([1], {}),
        ("{", {}),
    ],
    ids=str,
)
def test_the_models_own_setting(config: Any, found: dict[str, float], tmp_path: Path) -> None:
    if config is not None:
        text = config if isinstance(config, str) else json.dumps(config)
        (tmp_path / "generation_config.json").write_text(text)
    assert recommended_sampling(tmp_path) == found
    chosen = chat_options(tmp_path, {})
    for name, value in (found or CHAT_SAMPLING).items():
        assert getattr(chosen, name) == value
    given = chat_options(tmp_path, {"temperature": 0.0, "max_tokens": 7})
    assert (given.temperature, given.max_tokens) == (0.0, 7)
