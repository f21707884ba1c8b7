"""Settings: from YAML, from flags, and what is said about wrong ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from grit_mlx.errors import ArgumentError, ConfigError
from grit_mlx.options import from_mapping
from grit_mlx.training import TrainingSettings, optimizers, settings
from grit_mlx.training.arrays import number
from grit_mlx.training.settings import commented_yaml, read_yaml, write_yaml


def test_yaml_there_and_back(tmp_path: Path) -> None:
    made = TrainingSettings(model="m", data_weights={"a": 2.0}, matryoshka_dims=[8, 16], learning_rate=3e-5)
    write_yaml(tmp_path / "s.yaml", made)
    assert from_mapping(TrainingSettings, read_yaml(tmp_path / "s.yaml")) == made


def test_the_commented_file_holds_every_setting() -> None:
    text = commented_yaml(model="m", iters=5)
    assert from_mapping(TrainingSettings, yaml.safe_load(text)) == TrainingSettings(model="m", iters=5)
    uncommented = "\n".join(
        line.removeprefix("# ")
        for line in text.splitlines()
        if line.removeprefix("# ").split(":")[0] in TrainingSettings.__dataclass_fields__
    )
    assert from_mapping(TrainingSettings, yaml.safe_load(uncommented)) == TrainingSettings(model="m", iters=5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"learning_rat": 1}, "There is no option 'learning_rat': did you mean 'learning_rate'?"),
        ({"iters": "many"}, "iters must be a whole number, not 'many'."),
        ({"iters": 0}, "iters must be at least 1, not 0."),
        ({"iters": True}, "iters must be a whole number, not True."),
        ({"mode": "both"}, "Unknown mode 'both': use one of unified, embedding, generative."),
        ({"model": 3}, "model must be text, not 3."),
        ({"symmetric": "no"}, "symmetric must be true or false, not 'no'."),
        ({"learning_rate": "fast"}, "learning_rate must be a number, not 'fast'."),
        ({"optimizer": "adamx"}, "Unknown optimizer 'adamx'"),
        ({"report_to": ["paper"]}, "Unknown report_to 'paper': use one of tensorboard, wandb."),
        (
            {"lora_parameters": {"rank": 8, "alpha": 16}},
            "lora_parameters has no entry 'alpha': known are dropout, keys, rank, scale.",
        ),
        ({"lora_parameters": {"rank": 8}}, "lora_parameters needs a scale, which is alpha / rank, as a number."),
        ({"lora_parameters": {"rank": True, "scale": 8}}, "lora_parameters needs a rank of 1 or more."),
        ({"lora_parameters": {"rank": 8, "scale": "8"}}, "as a number."),
        ({"lora_parameters": {"rank": 8, "scale": 8, "dropout": 1}}, "a dropout from 0 to below 1, not 1."),
        ({"lora_parameters": {"rank": 8, "scale": 8, "keys": "q_proj"}}, "needs keys as a list"),
        ({"learning_rate": float("nan")}, "learning_rate must be a finite number, not nan."),
        ({"temperature": "inf"}, "temperature must be a finite number, not inf."),
        ({"iters": 10**11}, "iters must be at most 2147483647, not 100000000000."),
        ({"data_weights": {"a": -1}}, "data_weights must be at least 0, not -1.0 for 'a'."),
        ({"data_weights": {"a": True}}, "data_weights must be a number, not True for 'a'."),
        ({"matryoshka_dims": [0]}, "matryoshka_dims must be at least 1, not 0."),
        ({"matryoshka_dims": ["8"]}, "matryoshka_dims must be a whole number, not '8'."),
        ({"evaluate": "set"}, "evaluate must be a list, not 'set'."),
        ({"tokenizer": "t"}, "tokenizer needs from_scratch: a model brings its own."),
        ({"embedding_factor": 0, "mode": "embedding"}, "All losses have a factor of 0"),
        (
            {"batch_size": 1, "group_size": 1},
            "One query with one passage has no negatives: raise batch_size or group_size.",
        ),
        (
            {"distillation": "cosine", "mode": "generative"},
            "distillation='cosine' trains embedding, which mode='generative' leaves out.",
        ),
        (
            {"evaluate": ["set"], "mode": "generative"},
            "evaluate scores embeddings, which mode='generative' does not train.",
        ),
        ({"best": "score"}, "best='score' needs sets to score: name some with evaluate."),
        ({"frozen": ["model.norm"]}, "frozen is for full tuning"),
        ({"early_stopping": 2, "steps_per_eval": 0}, "need validations: set steps_per_eval above 0."),
        ({"lora_parameters": {"scale": 8}}, "lora_parameters needs a rank of 1 or more."),
        ({"warmup": 100}, "warmup must be at least 0 and below 1, not 100.0."),
        ({"from_scratch": "c.json"}, "from_scratch needs a tokenizer."),
        ({"from_scratch": "c.json", "tokenizer": "t", "model": "m"}, "from_scratch takes the place of model"),
        ({"iters": None}, "iters must be a whole number, not None."),
        ({"temperature": 0}, "temperature must be at least 1e-06, not 0.0."),
    ],
)
def test_wrong_values(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        from_mapping(TrainingSettings, values)
    assert message in str(caught.value)


def test_python_is_checked_as_yaml_is() -> None:
    assert TrainingSettings(learning_rate=1).learning_rate == 1.0
    with pytest.raises(ArgumentError, match="iters must be a whole number, not '3'"):
        TrainingSettings(iters="3")  # type: ignore[arg-type]


def test_yaml_reads_numbers_as_people_write_them() -> None:
    assert from_mapping(TrainingSettings, yaml.safe_load("learning_rate: 2e-5\ntemperature: 1")).learning_rate == 2e-5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("itrs: 3", "s.yaml has an unknown setting 'itrs': did you mean 'iters'?"),
        ("5: x", "s.yaml has an unknown setting '5': see the documentation for the known ones."),
        ("- a", "must hold names and values"),
        ("a: [", "is not YAML"),
    ],
)
def test_wrong_files(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_yaml(path)
    assert message in str(caught.value)
    with pytest.raises(ConfigError, match="does not exist"):
        read_yaml(tmp_path / "none.yaml")


def test_names_are_those_of_the_tables() -> None:
    assert set(settings.OPTIMIZERS) == set(optimizers._CLASSES)
    assert set(settings.SCHEDULES) == set(optimizers._SHAPES)


@pytest.mark.parametrize("name", optimizers._CLASSES)
def test_options_of_optimizers(name: str) -> None:
    schedule = optimizers.make_schedule("constant", learning_rate=1.0, steps=2, warmup_steps=0)
    with pytest.raises(ArgumentError, match=f"optimizer_config does not suit {name}: "):
        optimizers.make_optimizer(name, schedule, options={"bet": 1})


def test_schedules() -> None:
    import mlx.core as mx

    made = {
        name: optimizers.make_schedule(name, learning_rate=1.0, steps=20, warmup_steps=4) for name in settings.SCHEDULES
    }
    rates = {name: [number(schedule(mx.array(step))) for step in range(20)] for name, schedule in made.items()}
    for name, found in rates.items():
        assert found[0] == pytest.approx(0.2), "the first step does something"
        assert max(found) == pytest.approx(1.0) and found[:5] == sorted(found[:5])
        assert found[5:] == sorted(found[5:], reverse=True), name
    assert rates["constant"][-1] == pytest.approx(1.0)
    assert rates["linear"][-1] < 0.15 and rates["cosine"][-1] < 0.05
