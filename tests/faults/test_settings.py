"""Settings files of mlx_lm.lora, and answers that end where the model's context does."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import yaml

from grit_mlx import GritLM
from grit_mlx.errors import ConfigError
from grit_mlx.options import from_mapping
from grit_mlx.training.settings import TrainingSettings, read_yaml

# The example of mlx-lm's documentation, lora_config.yaml.
EXAMPLE = """
model: "mlx_model"
train: true
fine_tune_type: lora
optimizer: adamw
optimizer_config:
  adamw:
    betas: [0.9, 0.98]
    eps: 1e-6
data: "data"
seed: 0
num_layers: 16
batch_size: 1
iters: 1000
val_batches: 25
learning_rate: 1e-5
steps_per_report: 10
steps_per_eval: 200
grad_accumulation_steps: 1
resume_adapter_file: null
adapter_path: "adapters"
save_every: 100
test: false
test_batches: 100
max_seq_length: 2048
grad_checkpoint: false
lora_parameters:
  keys: ["self_attn.q_proj", "self_attn.v_proj"]
  rank: 8
  scale: 20.0
  dropout: 0.0
lr_schedule:
  name: cosine_decay
  warmup: 100
  warmup_init: 1e-7
  arguments: [1e-5, 1000, 1e-7]
"""


def settings(path: Path, text: str) -> TrainingSettings:
    path.write_text(text)
    return from_mapping(TrainingSettings, read_yaml(path))


def test_mlx_lms_example(tmp_path: Path) -> None:
    found = settings(tmp_path / "lora.yaml", EXAMPLE)
    assert (found.mode, found.model, found.data, found.num_layers) == ("generative", "mlx_model", "data", 16)
    assert (found.generative_batch_size, found.iters, found.learning_rate) == (1, 1000, 1e-5)
    assert (found.lr_schedule, found.warmup, found.optimizer) == ("cosine", 0.1, "adamw")
    assert found.optimizer_config == {"betas": [0.9, 0.98], "eps": 1e-6}
    assert found.lora_parameters["rank"] == 8 and found.lora_parameters["scale"] == 20.0


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"train": True}, {"mode": "generative", "lora_parameters": {"rank": 8, "dropout": 0.0, "scale": 20.0}}),
        ({"mask_prompt": True}, {"optimizer": "adam", "learning_rate": 1e-5, "max_seq_length": 2048}),
        ({"train": True, "grad_accumulation_steps": 4, "batch_size": 2, "iters": 100}, {
            "generative_batch_size": 8, "iters": 25}),
        ({"train": True, "resume_adapter_file": "a/adapters.safetensors"}, {"resume_adapter_file": "a"}),
        ({"train": True, "report_to": "wandb, tensorboard"}, {"report_to": ["wandb", "tensorboard"]}),
        ({"train": True, "report_to": None, "project_name": None}, {"report_to": [], "project_name": "grit-mlx"}),
    ],
)  # fmt: skip
def test_single_settings_of_mlx_lm(tmp_path: Path, changes: dict[str, Any], expected: dict[str, Any]) -> None:
    found = settings(tmp_path / "lora.yaml", yaml.safe_dump(changes))
    assert {name: getattr(found, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: true\nhf_dataset: {path: x}\n", "names a data set of the hub"),
        ("train: true\nlr_schedule: {name: step_decay}\n", "asks for the schedule 'step_decay'"),
        ("train: true\nwarp: 9\n", "unknown setting 'warp'"),
    ],
)
def test_what_mlx_lm_has_and_this_project_has_not(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings(tmp_path / "lora.yaml", text)


def test_an_exponent_is_a_number(tmp_path: Path) -> None:
    assert settings(tmp_path / "own.yaml", "learning_rate: 1e-5\n").learning_rate == 1e-5


@pytest.mark.parametrize("limit", [-1, 5000])
def test_an_answer_ends_with_the_context(model_copy: Any, caplog: pytest.LogCaptureFixture, limit: int) -> None:
    model = GritLM(model_copy(max_position_embeddings=40))
    model._engine_tokenizer._eos_token_ids = set()
    with caplog.at_level(logging.WARNING, "grit_mlx"):
        responses = list(model.stream_responses([1, *range(10, 25)], max_tokens=limit))
    assert responses[-1].generation_tokens == 40 - 16
    assert "the model's context of 40 tokens is full" in caplog.text


def test_a_limit_within_the_context_gives_no_note(tiny_model: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "grit_mlx"):
        GritLM(tiny_model).generate([1, 20, 30], max_tokens=3)
    assert not caplog.text
