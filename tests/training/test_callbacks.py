"""Logs, curves, reporters and the memory estimate."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from grit_mlx.errors import DependencyError, OutputError
from grit_mlx.evaluation.plots import plot_curves
from grit_mlx.model.loading import load
from grit_mlx.model.options import ModelChoice
from grit_mlx.training import TrainingSettings
from grit_mlx.training.adapters import unfreeze_for_full
from grit_mlx.training.callbacks import JsonLog, StepReport, TrainingPlan, ValidationReport, make_reporters, read_log
from grit_mlx.training.memory import MemoryEstimate, advice, estimate

MEMORY = MemoryEstimate(weights=100, training=50, activations=850, available=900)


def plan(run: Path, start: int) -> TrainingPlan:
    return TrainingPlan(run, 10, start, 1, 2, MEMORY, [], {}, {}, 1)


def step(number: int) -> StepReport:
    return StepReport(number, {"embedding": 1.0 / number, "total": 1.0}, 0.1, 1.0, 10.0, 0.1, 1000, 0.02)


def write_log(path: Path) -> None:
    log = JsonLog(path)
    log.on_start(plan(path.parent, 0))
    for number in (1, 2, 3):
        log.on_report(step(number))
    log.on_validation(ValidationReport(3, {"embedding": 0.4}, {"set": 0.5}, is_best=True))


def test_a_log_goes_on_where_the_run_does(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    write_log(path)
    assert [(line["kind"], line["step"]) for line in read_log(path)] == [("train", n) for n in (1, 2, 3)] + [
        ("validation", 3)
    ]
    with path.open("a") as file:
        file.write('{"kind": "tra')  # cut off by a crash
    JsonLog(path).on_start(plan(tmp_path, 2))
    assert [line["step"] for line in read_log(path)] == [1, 2]
    with pytest.raises(OutputError, match="Cannot write"):
        JsonLog(tmp_path / "none" / "log.jsonl").on_report(step(1))


def test_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_log(tmp_path / "log.jsonl")
    records = read_log(tmp_path / "log.jsonl")
    if importlib.util.find_spec("matplotlib"):
        plot_curves(tmp_path / "curves.png", {"": records, "other": records})
        assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(DependencyError, match=r"pip install 'grit-mlx\[plots\]'"):
        plot_curves(tmp_path / "curves.png", {"": records})


def test_reporters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: dict[str, list[Any]] = {"tensorboardX": [], "wandb": []}

    class Writer:
        def __init__(self, folder: str) -> None:
            assert folder == str(tmp_path / "tensorboard")

        def add_scalar(self, *scalar: Any) -> None:
            sent["tensorboardX"].append(scalar)

        def close(self) -> None:
            sent["tensorboardX"].append("closed")

    class Run:
        def log(self, scalars: dict[str, float], step: int) -> None:
            sent["wandb"] += [(name, value, step) for name, value in scalars.items()]

        def finish(self) -> None:
            sent["wandb"].append("closed")

    def init(**about: Any) -> Run:
        assert about == {"project": "project", "dir": str(tmp_path), "name": tmp_path.name}
        return Run()

    monkeypatch.setitem(sys.modules, "tensorboardX", SimpleNamespace(SummaryWriter=Writer))
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    for made in make_reporters(["tensorboard", "wandb"], tmp_path, "project"):
        made.on_report(step(2))
        made.on_validation(ValidationReport(2, {"embedding": 0.4}, {"set": 0.5}))
        made.on_end()
    for scalars in sent.values():
        assert ("train/embedding", 0.5, 2) in scalars and ("score/set", 0.5, 2) in scalars and scalars[-1] == "closed"
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(DependencyError, match=r"Weights & Biases needs wandb: pip install 'grit-mlx\[wandb\]'"):
        make_reporters(["wandb"], tmp_path, "project")


def test_the_estimate_follows_the_settings(tiny_model: Path) -> None:
    loaded = load(ModelChoice(tiny_model))
    unfreeze_for_full(loaded.model, -1)

    def peak(**changes: Any) -> MemoryEstimate:
        settings = TrainingSettings(**{"chunk_tokens": 8192, **changes})
        return estimate(loaded.model, loaded.config, settings, available=10**9, fused_attention=False)

    base = peak()
    parameters = sum(entry["numel"] for entry in sizes(tiny_model))
    assert base.weights == 4 * parameters and base.training == 5 * base.weights
    assert peak(optimizer="sgd").training == 3 * base.weights
    assert peak(mode="generative").training == 4 * base.weights, "one sum of gradients fewer"
    assert peak(chunk_tokens=2048).activations == pytest.approx(base.activations / 4)
    assert peak(grad_checkpoint=True).activations < base.activations
    assert base.fits and not MEMORY.fits


def sizes(folder: Path) -> list[dict[str, int]]:
    data = (folder / "model.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    header.pop("__metadata__", None)
    return [{"numel": (entry["data_offsets"][1] - entry["data_offsets"][0]) // 4} for entry in header.values()]


@pytest.mark.parametrize(
    ("changes", "quantized", "expected"),
    [
        (
            {},
            False,
            ["grad_checkpoint=True", "chunk_tokens=1024", "max_seq_length=512", "a quantised model (grit convert)"],
        ),
        ({"grad_checkpoint": True}, True, ["chunk_tokens=1024", "max_seq_length=512"]),
    ],
)
def test_advice(changes: dict[str, Any], quantized: bool, expected: list[str]) -> None:
    assert list(map(str, advice(MEMORY, TrainingSettings(**changes), quantized=quantized))) == expected
    full = advice(MEMORY, TrainingSettings(fine_tune_type="full"), quantized=False)
    assert str(full[-1]) == "fine_tune_type='lora'"
    roomy = MemoryEstimate(1, 1, 1, 900)
    assert advice(roomy, TrainingSettings(), quantized=False) == []
