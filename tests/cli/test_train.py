"""grit train and grit fuse as one types them."""

from __future__ import annotations

import json
import os
import shlex
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml

from grit_mlx.errors import ArgumentError
from grit_mlx.training import TrainingSettings
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
    assert again.code == 1 and "holds a run at step 3. Resume it with --resume, or" in again.err
    assert (
        "The run was started with --seed 0, not 5"
        in grit("train", "--adapter-path", folder, "--resume", "--seed", 5).err
    )
    resumed = grit("train", "--adapter-path", folder, "--resume")
    assert resumed.code == 0 and "Resuming from step 3." in resumed.err

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
    assert "exists already. Name another file with --config" in grit("train", "--init", "--config", config).err
    config.write_text(f"model: {tiny_model}\ndata: {data}\niters: 9\nbatch_size: 8\nsteps_per_eval: 0\n")
    run = ("train", "--config", config, "--adapter-path", tmp_path / "run", "--generative-batch-size", 4, "--iters", 1)
    assert grit(*run).code == 0
    saved = yaml.safe_load((tmp_path / "run" / "settings.yaml").read_text())
    assert (saved["iters"], saved["batch_size"]) == (1, 8), "flags override the file"


def test_flags_override_the_file_which_overrides_the_defaults(
    grit: Grit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a flag repeats the default, is a switch, or names a part of a table."""
    from grit_mlx.training import trainer

    seen = []

    def stop(settings: TrainingSettings, *_: Any) -> None:
        seen.append(settings)
        raise ArgumentError("seen")

    monkeypatch.setattr(trainer, "train", stop)
    config = tmp_path / "t.yaml"
    config.write_text(
        "iters: 9\nseed: 4\nsymmetric: true\ncompile: true\nlora_parameters: {rank: 8, scale: 2}\nevaluate: [a]\n"
    )
    table = ("--lora-parameters", "scale=10", "--lora-parameters", "keys=[self_attn.q_proj]")
    assert grit("train", "--config", config, "--iters", 1000, "--no-symmetric", *table, "--evaluate", "b").code == 1
    [settings] = seen
    assert (settings.iters, settings.seed, settings.symmetric, settings.compile) == (1000, 4, False, True)
    assert settings.lora_parameters == {"rank": 8, "scale": 10, "dropout": 0.0, "keys": ["self_attn.q_proj"]}
    assert (settings.evaluate, settings.batch_size) == (["b"], 32)


def test_an_interrupted_run_says_how_it_goes_on(
    grit: Grit, tiny_model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from grit_mlx.training.trainer import _Run

    step, folder = _Run._step, tmp_path / "a run"

    def interrupted(self: Any, index: int) -> Any:
        if index == 3:
            raise KeyboardInterrupt
        return step(self, index)

    monkeypatch.setattr(_Run, "_step", interrupted)
    run = ("train", "--model", tiny_model, "--data", data, "--adapter-path", folder, *QUICK)
    found = grit(*run)
    assert found.code == 130
    assert "stopped after step 3, before the first checkpoint (--save-every 200), so nothing was saved" in found.err
    found = grit(*run, "--save-every", 2, "--iters", 5)
    command = f"grit train --adapter-path '{folder}' --resume"
    assert found.code == 130 and f"stopped after step 3; step 2 is saved. Resume: {command}\n" in found.err
    monkeypatch.undo()
    found = grit(*shlex.split(command)[1:])
    assert found.code == 0, found.err
    assert f"--adapter '{folder}'" in found.out


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
    assert "--export-peft and --import-peft are each other's opposite" in error(
        "--export-peft", "x", "--import-peft", "y"
    )
    assert "--lora-parameters has no entry 'alpha'" in error("--data", data, "--lora-parameters", "alpha=3")
    assert "Unknown --report-to 'paper': use one of tensorboard, wandb." in error("--report-to", "paper")
    assert "is not an adapter folder" in error("--data", data, "--resume-adapter-file", tmp_path)
    (data / "a.jsonl").write_text('{"query": 1, "pos": ["a"]}\n')
    assert "a.jsonl, line 1: query must be a text or [instruction, text], not 1." in error("--data", data)
    for flag, value, message in (
        ("--mode", "both", "'both' is not one of 'unified'"),
        ("--iters", 0, "greater than or equal to 1"),
        ("--data-weights", "a", "'a' is not NAME=VALUE."),
        ("--optimizer-config", "a=[", "'a=[' is not NAME=VALUE: the value is not YAML."),
    ):
        found = grit("train", flag, value)
        assert found.code == 2 and message in " ".join(found.err.split()) and flag in found.err
    assert "adapter folder" in grit("fuse", tmp_path, "--model", tiny_model, "--output", tmp_path / "f").err


@pytest.mark.parametrize(("presses", "saved"), [(1, 3), (2, 0)])
def test_ctrl_c_lets_a_step_end_and_saves_it(
    grit: Grit,
    tiny_model: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    presses: int,
    saved: int,
) -> None:
    from grit_mlx.training.trainer import _Run

    gradients, folder = _Run._gradients, tmp_path / "run"

    def pressed(self: Any, index: int) -> Any:
        if index == 2:
            for _ in range(presses):
                os.kill(os.getpid(), signal.SIGINT)
        return gradients(self, index)

    monkeypatch.setattr(_Run, "_gradients", pressed)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it
    try:
        found = grit("train", "--model", tiny_model, "--data", data, "--adapter-path", folder, *QUICK)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert found.code == 130
    assert "stopping after this step, which is saved then; Ctrl-C again stops at once" in found.err
    if saved:
        assert (
            f"stopped after step 3; step 3 is saved. Resume: grit train --adapter-path {folder} --resume" in found.err
        )
        monkeypatch.undo()
        assert grit("train", "--adapter-path", folder, "--resume", "--iters", 4).code == 0
    else:
        assert "nothing was saved" in found.err


def test_the_first_validation_does_not_look_like_nothing(
    grit: Grit, tiny_model: Path, data: Path, tmp_path: Path
) -> None:
    run = ("train", "--model", tiny_model, "--data", data, "--adapter-path", tmp_path / "run", *QUICK)
    found = grit(*run, "--iters", 1, "--steps-per-eval", 1, "--val-rows", 8)
    assert found.code == 0, found.err
    assert found.err.index("validating before the first step") < found.err.index("step 0: held out")
    assert found.err.count("validating") == 1
