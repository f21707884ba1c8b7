"""grit train and grit fuse as one types them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.training.conftest import chat_rows, embedding_rows, write_rows

Grit = Any

QUICK = ("--batch-size", 8, "--generative-batch-size", 4, "--steps-per-eval", 0)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_rows(tmp_path / "data" / "a.jsonl", embedding_rows(30))
    write_rows(tmp_path / "data" / "b.jsonl", chat_rows(30))
    return tmp_path / "data"


def test_train_resume_export_and_fuse(grit: Grit, tiny_model: Path, data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    common = ("--model", tiny_model, "--data", data, "--adapter-path", folder)
    found = grit("train", *common, "--iters", 3, "--steps-per-report", 1, "--lora-parameters", "rank=4", *QUICK)
    assert found.code == 0, found.err
    assert found.out.splitlines() == [
        f"The tuned adapter is in {folder} (step 3).",
        f'Next: grit search "your question" FILE --model {tiny_model} --adapter {folder}',
    ]
    assert "note: training 3,712 of" in found.err and "note: estimated peak memory" in found.err
    assert "note: step 3: embedding" in found.err and "tokens/s" in found.err
    saved = yaml.safe_load((folder / "settings.yaml").read_text())
    assert saved["lora_parameters"] == {"rank": 4, "scale": 4.0, "dropout": 0.0}
    assert json.loads((folder / "adapter_config.json").read_text())["lora_parameters"]["rank"] == 4

    again = grit("train", *common, *QUICK)
    assert again.code == 1 and "holds a run of 3 steps. Go on with --resume" in again.err
    resumed = grit("train", "--adapter-path", folder, "--resume")
    assert resumed.code == 0 and "Going on from step 3." in resumed.err

    peft, back = tmp_path / "peft", tmp_path / "back"
    assert grit("train", *common, "--export-peft", peft).code == 0
    assert grit("train", "--model", tiny_model, "--adapter-path", back, "--import-peft", peft).code == 0
    fused = grit("fuse", folder, "--model", tiny_model, "--output", tmp_path / "fused")
    assert fused.code == 0 and "Cosine of vectors before and after fusing: 1.000000" in fused.out
    assert grit("similarity", "a", "b", "--model", tmp_path / "fused").code == 0


def test_init_and_config(grit: Grit, data: Path, tiny_model: Path, tmp_path: Path) -> None:
    config = tmp_path / "t.yaml"
    found = grit("train", "--init", "--config", config, "--model", tiny_model)
    assert found.code == 0 and found.out == (
        f"{config} holds all settings. Change them, then: grit train --config {config}\n"
    )
    assert yaml.safe_load(config.read_text()) == {"model": str(tiny_model), "data": "data"}
    assert "exists already" in grit("train", "--init", "--config", config).err
    config.write_text(f"model: {tiny_model}\ndata: {data}\niters: 9\nbatch_size: 8\nsteps_per_eval: 0\n")
    run = ("train", "--config", config, "--adapter-path", tmp_path / "run", "--generative-batch-size", 4, "--iters", 1)
    assert grit(*run).code == 0
    saved = yaml.safe_load((tmp_path / "run" / "settings.yaml").read_text())
    assert (saved["iters"], saved["batch_size"]) == (1, 8), "flags go before the file"


def test_bad_input(grit: Grit, data: Path, tiny_model: Path, tmp_path: Path) -> None:
    def error(*arguments: object) -> str:
        found = grit("train", "--model", tiny_model, "--adapter-path", tmp_path / "run", *arguments)
        assert (found.code, found.out) == (1, "")
        assert found.err.count("error: ") == 1
        return str(found.err)

    config = tmp_path / "t.yaml"
    config.write_text("learning_rat: 1\n")
    assert "did you mean 'learning_rate'?" in error("--config", config)
    assert "There is nothing to train on" in error()
    assert "does not exist" in error("--data", tmp_path / "none")
    assert "takes NAME=VALUE" in error("--data", data, "--data-weights", "a")
    assert "--lora-parameters" not in error("--data", data, "--lora-parameters", "alpha=3")
    assert "is no adapter folder" in error("--data", data, "--resume-adapter-file", tmp_path)
    (data / "a.jsonl").write_text('{"query": 1, "pos": ["a"]}\n')
    assert "a.jsonl, line 1: query must be a text or [instruction, text], not 1." in error("--data", data)
    assert grit("train", "--mode", "both").code == 2
    assert "adapter folder" in grit("fuse", tmp_path, "--model", tiny_model, "--output", tmp_path / "f").err
