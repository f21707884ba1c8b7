"""Whole runs: every kind of tuning learns, a killed run goes on exactly, two processes equal one."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import yaml

from grit_mlx import GritLM
from grit_mlx.errors import ArgumentError, DocumentError, GritError, MemoryLimitError, NonFiniteError, OutputError
from grit_mlx.model import device, widening
from grit_mlx.model.settings import read_settings
from grit_mlx.training import TrainingSettings, train
from grit_mlx.training.adapters import AdapterLayout, attach_adapter, choose_keys
from grit_mlx.training.arrays import read_arrays, save_arrays
from grit_mlx.training.callbacks import Callback, StepReport, TrainingPlan, ValidationReport, read_log
from grit_mlx.training.recompute import checkpoint_layers
from grit_mlx.training.scratch import random_model
from tests.processes import finished, launch
from tests.training.conftest import embedding_rows, write_rows
from tests.training.test_adapters import quantized

ROOT = Path(__file__).parents[2]
Make = Callable[..., TrainingSettings]


class Record(Callback):
    """Everything that was told."""

    def __init__(self) -> None:
        self.plan: TrainingPlan | None = None
        self.steps: list[StepReport] = []
        self.validations: list[ValidationReport] = []
        self.checkpoints: list[str] = []

    def on_start(self, plan: TrainingPlan) -> None:
        self.plan = plan

    def on_step(self, report: StepReport) -> None:
        self.steps.append(report)

    def on_validation(self, report: ValidationReport) -> None:
        self.validations.append(report)

    def on_checkpoint(self, folder: Path) -> None:
        self.checkpoints.append(folder.name)


def run(settings: TrainingSettings) -> Record:
    record = Record()
    train(settings, [record])
    return record


def python(code: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", code, *arguments]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


# Tuning

KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "dora": {"fine_tune_type": "dora", "lora_parameters": {"rank": 4, "scale": 2.0, "dropout": 0.1}},
    "full": {"fine_tune_type": "full", "learn_temperature": True, "optimizer": "muon"},
    "qlora": {"dtype": "stored", "optimizer": "lion", "learning_rate": 1e-3},
    "scratch": {"iters": 25, "batch_size": 16},
    "mixtral": {"adapt_experts": True, "adapt_router": True, "grad_checkpoint": True, "router_factor": 0.1},
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_lowers_both_losses(
    settings: Make, tiny_model: Path, tiny_mixtral: Path, tmp_path: Path, kind: str
) -> None:
    changes = dict(KINDS[kind])
    if kind == "qlora":
        changes["model"] = str(quantized(tiny_model, tmp_path / "quantized", bits=4))
    elif kind == "scratch":
        changes |= {"from_scratch": str(tiny_model / "config.json"), "tokenizer": str(tiny_model)}
    elif kind == "mixtral":
        changes["model"] = str(tiny_mixtral)
    steps = changes.pop("iters", 12)
    made = settings(iters=steps, steps_per_eval=steps, temperature=0.1, **changes)
    record = run(made)
    before, after = record.validations
    for loss in ("embedding", "generative"):
        assert after.losses[loss] < before.losses[loss], loss
    assert after.is_best and record.plan is not None and record.plan.memory.fits
    folder = Path(made.adapter_path)
    whole = kind in ("full", "scratch")
    dtype = "stored" if kind == "qlora" else "auto"
    model = GritLM(folder) if whole else GritLM(changes.get("model", tiny_model), adapter_path=folder, dtype=dtype)
    assert model.encode(["A keel."]).shape == (1, 32) and model.generate("Say bread.", max_tokens=3) is not None
    assert model.settings.about["steps"] == steps
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {f"step-{steps:08d}"}
    if kind == "full":
        assert record.steps[-1].temperature != pytest.approx(0.1, rel=1e-6)
    if kind == "mixtral":
        assert record.steps[0].losses["router"] > 0


@pytest.mark.parametrize("mode", ["embedding", "generative"])
def test_each_half_alone(settings: Make, tiny_model: Path, mode: str) -> None:
    made = settings(mode=mode, iters=10, steps_per_eval=10, pooling="weightedmean" if mode == "embedding" else None)
    record = run(made)
    assert set(record.steps[0].losses) == {mode, "total"}
    assert record.validations[-1].losses[mode] < record.validations[0].losses[mode]
    expected = "weightedmean" if mode == "embedding" else "mean"
    assert GritLM(tiny_model, adapter_path=made.adapter_path).settings.pooling == expected


def test_all_losses_together(settings: Make, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [
        {**row, "neg": [], "query_vector": rng.normal(size=5).tolist(), "pos_vectors": [rng.normal(size=5).tolist()]}
        for row in embedding_rows(40)
    ]
    record = run(
        settings(
            data=str(write_rows(tmp_path / "v.jsonl", rows)),
            mode="embedding",
            embedding_factor=0.01,
            symmetric=True,
            false_negative_margin=0.1,
            matryoshka_dims=[8, 16],
            distillation="similarity",
            attn="cccc",
            group_size=1,
        )
    )
    assert set(record.steps[0].losses) == {"embedding", "matryoshka", "distillation", "total"}
    assert record.steps[-1].losses["distillation"] < record.steps[0].losses["distillation"]


def test_compiled_equals_interpreted(settings: Make, tmp_path: Path) -> None:
    rows = embedding_rows(40)
    data = str(write_rows(tmp_path / "d.jsonl", rows))
    common: dict[str, Any] = {"mode": "embedding", "data": data, "iters": 2, "chunk_size": 64}
    losses = [
        [
            step.losses
            for step in run(settings(compile=compiled, adapter_path=str(tmp_path / str(compiled)), **common)).steps
        ]
        for compiled in (False, True)
    ]
    for one, other in zip(*losses, strict=True):
        assert one == pytest.approx(other, rel=1e-4)


# Going on


def test_a_killed_run_goes_on_exactly(settings: Make, tmp_path: Path) -> None:
    """kill -9 in the middle of things, then --resume: the same losses, step for step, and the same weights."""
    dropout = {"rank": 4, "scale": 2.0, "dropout": 0.3}
    made = settings(
        iters=10, save_every=3, lora_parameters=dropout, lr_schedule="linear", warmup=0.2, learn_temperature=True
    )
    whole = [step.losses for step in run(made).steps]
    killed = {**asdict(made), "adapter_path": str(tmp_path / "killed")}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(killed))
    # The process kills itself in the middle of a step, right after step 8 was computed and before it was saved.
    code = (
        "import os, signal, sys, yaml\n"
        "from grit_mlx.training import *\n"
        "from grit_mlx.training.callbacks import Callback\n"
        "class Kill(Callback):\n"
        "    def on_step(self, report):\n"
        "        if report.step == 8: os.kill(os.getpid(), signal.SIGKILL)\n"
        "train(TrainingSettings(**yaml.safe_load(open(sys.argv[1]))), [Kill()])"
    )
    done = subprocess.run(python(code, str(tmp_path / "s.yaml")), env=environment(), check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL
    checkpoints = tmp_path / "killed" / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step-00000003", "step-00000006"]
    (checkpoints / ".step-00000009").mkdir()  # what a kill in the middle of writing leaves
    record = run(TrainingSettings(**{**killed, "resume": True}))
    assert [step.step for step in record.steps] == [7, 8, 9, 10]
    assert [step.losses for step in record.steps] == whole[6:], "bit for bit"
    log = [line["losses"] for line in read_log(tmp_path / "killed" / "log.jsonl")]
    assert log == whole
    arrays = [read_arrays(Path(path) / "adapters.safetensors") for path in (made.adapter_path, tmp_path / "killed")]
    for name, value in arrays[0].items():
        assert mx.array_equal(value, arrays[1][name]).item(), name


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor", "lion", "muon", "sgd"])
def test_every_optimizer_goes_on(settings: Make, tmp_path: Path, optimizer: str) -> None:
    common = {"optimizer": optimizer, "iters": 3, "mode": "generative", "fine_tune_type": "full", "learning_rate": 1e-3}
    whole = run(settings(adapter_path=str(tmp_path / "whole"), **common))
    stopped = settings(adapter_path=str(tmp_path / "stopped"), save_every=1, keep_last=5, **common)
    run(stopped)
    shutil.rmtree(tmp_path / "stopped" / "checkpoints" / "step-00000003")
    shutil.rmtree(tmp_path / "stopped" / "checkpoints" / "step-00000002")
    record = run(TrainingSettings(**{**asdict(stopped), "resume": True}))
    assert [step.losses for step in record.steps] == [step.losses for step in whole.steps[1:]]


def test_what_a_resumed_run_refuses(settings: Make, data: Path) -> None:
    made = settings(iters=2, save_every=1)
    with pytest.raises(ArgumentError, match=r"has no checkpoint to resume from\. Leave out resume=True"):
        run(settings(resume=True))
    run(made)
    with pytest.raises(
        ArgumentError, match=r"holds a run at step 2\. Resume it with resume=True, or name another adapter_path"
    ):
        run(made)
    written = (Path(made.adapter_path) / "settings.yaml").read_bytes()
    with pytest.raises(
        ArgumentError, match=r"The run was started with batch_size=8, not 4: .* except chunk_size, chunk_tokens, "
    ):
        run(settings(iters=2, resume=True, batch_size=4))
    assert (Path(made.adapter_path) / "settings.yaml").read_bytes() == written
    with pytest.raises(ArgumentError, match=r"The run was started with fine_tune_type='lora', not 'dora'"):
        run(settings(iters=2, resume=True, fine_tune_type="dora"))
    write_rows(data / "generative" / "chats.jsonl", [{"text": ["a", "b"]}] * 40)
    with pytest.raises(ArgumentError, match=r"The data has changed since the run was started \(generative/chats\)"):
        run(settings(iters=2, resume=True))


def test_what_a_resumed_run_may_change(settings: Make, caplog: pytest.LogCaptureFixture) -> None:
    """Chunks and recomputation change nothing that is computed, more steps only what comes after."""
    whole = run(settings(iters=4))
    folder = Path(settings().adapter_path)
    shutil.rmtree(folder)
    run(settings(iters=2))
    changes: dict[str, Any] = {"iters": 4, "resume": True, "chunk_size": 3, "grad_checkpoint": True}
    record = run(settings(**changes))
    assert "From here on iters=4, not 2." in caplog.text
    for ours, theirs in zip(record.steps, whole.steps[2:], strict=True):
        assert ours.losses == pytest.approx(theirs.losses, rel=1e-4)
    assert yaml.safe_load((folder / "settings.yaml").read_text())["chunk_size"] == 3
    caplog.clear()
    run(settings(**changes))
    assert "From here on" not in caplog.text, "the change was reported once"


def test_the_log_goes_on_in_the_middle_of_a_mean(settings: Make, tmp_path: Path) -> None:
    made = settings(iters=6, steps_per_report=4, mode="generative", save_every=3)
    run(made)
    whole = read_log(Path(made.adapter_path) / "log.jsonl")
    shutil.rmtree(Path(made.adapter_path) / "checkpoints" / "step-00000006")
    run(TrainingSettings(**{**asdict(made), "resume": True}))
    again = read_log(Path(made.adapter_path) / "log.jsonl")
    assert [line["step"] for line in again] == [4, 6]
    assert [line["losses"] for line in again] == [line["losses"] for line in whole]


def test_dropout_and_routers_go_on(settings: Make, tiny_mixtral: Path) -> None:
    """The pass that only counts experts draws the dropout of the step as well, wherever the run began."""
    made = settings(
        model=str(tiny_mixtral),
        mode="generative",
        router_factor=0.5,
        iters=3,
        save_every=1,
        keep_last=3,
        lora_parameters={"rank": 4, "scale": 4.0, "dropout": 0.5},
    )
    whole = run(made)
    for step in (2, 3):
        shutil.rmtree(Path(made.adapter_path) / "checkpoints" / f"step-{step:08d}")
    mx.random.seed(99)
    record = run(TrainingSettings(**{**asdict(made), "resume": True}))
    assert [step.losses for step in record.steps] == [step.losses for step in whole.steps[1:]]


# More than one process


def test_two_processes_equal_one(settings: Make, tiny_mixtral: Path, tmp_path: Path) -> None:
    """On a mixture of experts, whose router loss has to come together as well; one process resumes what two began."""
    one = settings(
        model=str(tiny_mixtral), router_factor=0.1, iters=4, symmetric=True, learn_temperature=True, steps_per_eval=2
    )
    alone = run(one)
    two = {**asdict(one), "adapter_path": str(tmp_path / "two")}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(two))
    script = tmp_path / "two.py"
    # The second process has a folder of its own, as on a second machine, and no checkpoint to go on from.
    script.write_text(
        "import yaml\nfrom dataclasses import replace\nfrom grit_mlx.training import *\n"
        "from grit_mlx.model.world import World\n"
        f"one = TrainingSettings(**yaml.safe_load(open({str(tmp_path / 's.yaml')!r})))\n"
        "one = replace(one, adapter_path=one.adapter_path + '-other' * World().rank)\n"
        "train(replace(one, iters=2))\n"
        "train(replace(one, iters=3, resume=True))\n"
    )
    launcher = launch(2, script)
    _, err = finished(launcher)
    assert "Traceback" not in err, err
    assert not (tmp_path / "two-other" / "log.jsonl").exists()
    last = run(TrainingSettings(**{**two, "resume": True}))
    assert [step.step for step in last.steps] == [4]
    log = [line for line in read_log(tmp_path / "two" / "log.jsonl") if line["kind"] == "train"]
    assert len(log) == 4
    for line, step in zip(log, alone.steps, strict=True):
        assert line["losses"] == pytest.approx(step.losses, rel=1e-5)
        assert line["gradient_norm"] == pytest.approx(step.gradient_norm, rel=1e-4)
        assert line["temperature"] == pytest.approx(step.temperature, rel=1e-5)
    first = read_arrays(Path(one.adapter_path) / "adapters.safetensors")
    second = read_arrays(tmp_path / "two" / "adapters.safetensors")
    for name, value in first.items():
        np.testing.assert_allclose(value, second[name], atol=2e-5, err_msg=name)


# Validation


def test_the_best_checkpoint_is_kept(settings: Make, tmp_path: Path) -> None:
    """A learning rate that destroys the model: the best is an early step, and the run stops."""
    corpus = [{"_id": f"d{i}", "title": "T", "text": row["pos"][0][1]} for i, row in enumerate(embedding_rows(10))]
    queries = [{"_id": f"q{i}", "text": row["query"][1]} for i, row in enumerate(embedding_rows(10))]
    beir = tmp_path / "set"
    write_rows(beir / "corpus.jsonl", corpus)
    write_rows(beir / "queries.jsonl", queries)
    (beir / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(f"q{i}\td{i}\t1\n" for i in range(10)))
    made = settings(
        iters=30, steps_per_eval=1, save_every=1, learning_rate=0.3, early_stopping=3, keep_last=1, evaluate=[str(beir)]
    )
    record = Record()
    result = train(made, [record])
    assert result.stopped_early and result.steps < 30
    values = {report.step: sum(report.losses.values()) for report in record.validations[1:]}
    assert result.best_step == min(values, key=lambda step: values[step]) == result.steps - 3
    kept = sorted(path.name for path in (Path(made.adapter_path) / "checkpoints").iterdir())
    assert kept == sorted({f"step-{result.best_step:08d}", f"step-{result.steps:08d}"})
    best = Path(made.adapter_path) / "checkpoints" / f"step-{result.best_step:08d}" / "adapters.safetensors"
    assert best.read_bytes() == (Path(made.adapter_path) / "adapters.safetensors").read_bytes()
    assert all(0 <= report.scores["set"] <= 1 for report in record.validations)
    again = train(TrainingSettings(**{**asdict(made), "resume": True}), [])
    assert (again.stopped_early, again.steps) == (True, result.steps), "over is over"


def test_a_validation_that_is_not_finite_is_not_the_best(settings: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from grit_mlx.training import trainer

    values = iter([1.0, math.nan, 3.0, 2.0])
    monkeypatch.setattr(trainer, "held_out_losses", lambda *_, **__: {"embedding": next(values)})
    result = train(settings(iters=3, steps_per_eval=1))
    assert result.best_step == 3


def test_kinds_without_a_valid_file_are_split(settings: Make, data: Path) -> None:
    write_rows(data / "embedding" / "valid.jsonl", embedding_rows(8))
    record = run(settings(iters=1, steps_per_eval=1))
    assert record.plan is not None and record.plan.rows == {"embedding": 70, "generative": 36}
    assert set(record.validations[-1].losses) == {"embedding", "generative"}


def test_the_folder_is_of_use_before_the_end(settings: Make, tiny_model: Path) -> None:
    made = settings(iters=3, save_every=2)

    class Stop(Callback):
        def on_step(self, report: StepReport) -> None:
            if report.step == 3:
                raise OSError

    with pytest.raises(OSError):
        train(made, [Stop()])
    assert GritLM(tiny_model, adapter_path=made.adapter_path).settings.about["steps"] == 2


@pytest.mark.parametrize(("where", "kept"), [("on_step", 3), ("on_report", 3), ("on_validating", 3), ("_step", 2)])
def test_an_interruption_keeps_what_is_whole(
    settings: Make, monkeypatch: pytest.MonkeyPatch, where: str, kept: int
) -> None:
    """Between two steps all is saved; in the middle of one, what the last checkpoint has."""
    made = settings(iters=5, save_every=2, steps_per_eval=3, steps_per_report=3)

    class Stop(Callback):
        steps = 0

        def on_step(self, report: StepReport) -> None:
            self.steps = report.step

    stop = Stop()

    def raising(*_: Any) -> None:
        if stop.steps == 3:
            raise KeyboardInterrupt

    if where == "_step":
        from grit_mlx.training.trainer import _Run

        gradients = _Run._gradients

        def interrupted(self: Any, index: int) -> Any:
            if index == 2:
                raise KeyboardInterrupt
            return gradients(self, index)

        monkeypatch.setattr(_Run, "_gradients", interrupted)
    elif where == "on_step":

        def on_step(report: StepReport) -> None:
            stop.steps = report.step
            raising()

        monkeypatch.setattr(stop, "on_step", on_step)
    else:
        monkeypatch.setattr(stop, where, raising)
    with pytest.raises(KeyboardInterrupt):
        train(made, [stop])
    saved = sorted(path.name for path in Path(made.adapter_path).rglob("step-*"))
    assert saved[-1] == f"step-{kept:08d}"
    monkeypatch.undo()
    result = train(replace(made, resume=True), [Callback()])
    assert result.steps == 5


def test_full_tuning_of_a_quantised_model(settings: Make, tiny_model: Path, tmp_path: Path) -> None:
    """A CPU widens the weights, so what comes out is not quantised, and must not say so."""
    made = settings(model=str(quantized(tiny_model, tmp_path / "q", bits=4)), fine_tune_type="full", iters=1)
    run(made)
    assert "quantization" not in json.loads((Path(made.adapter_path) / "config.json").read_text())
    assert GritLM(made.adapter_path).encode(["A keel."]).shape == (1, 32)


@pytest.mark.parametrize("kind", ["lora", "full", "mixtral", "last-block"])
def test_weights_that_are_widened_as_they_are_used(
    settings: Make,
    tiny_model: Path,
    tiny_mixtral: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    kind: str,
) -> None:
    """On a CPU without room for float32, a run takes the same steps as one with room."""
    if device.current_device().kind != "cpu":
        pytest.skip("weights are widened on a CPU only")
    changes: dict[str, Any] = {"iters": 3, "lora_parameters": {"rank": 4, "scale": 2.0, "dropout": 0.5}}
    if kind == "full":
        base = tmp_path / "half"
        shutil.copytree(tiny_model, base)
        arrays = {name: value.astype(mx.bfloat16) for name, value in read_arrays(base / "model.safetensors").items()}
        save_arrays(base / "model.safetensors", arrays)
        changes |= {"fine_tune_type": "full", "learning_rate": 1e-5}
    else:
        base = quantized(tiny_mixtral if kind == "mixtral" else tiny_model, tmp_path / "q", bits=4)
        changes |= {"num_layers": 1} if kind == "last-block" else {}
        changes |= {"adapt_experts": True, "router_factor": 0.1} if kind == "mixtral" else {}
    # As the other does always, and without it dropout draws other masks.
    changes["grad_checkpoint"] = True
    roomy = run(settings(model=str(base), adapter_path=str(tmp_path / "roomy"), **changes))
    monkeypatch.setattr(device, "available_memory", lambda: 1)
    changes |= {"grad_checkpoint": False, "compile": True}
    narrow = run(settings(model=str(base), adapter_path=str(tmp_path / "narrow"), **changes))
    assert "Steps are not compiled" in caplog.text
    tolerance = 2e-2 if kind == "full" else 1e-4  # steps of bfloat16 weights are rounded
    for one, other in zip(roomy.steps, narrow.steps, strict=True):
        assert other.losses == pytest.approx(one.losses, rel=tolerance)
        assert other.gradient_norm == pytest.approx(one.gradient_norm, rel=tolerance * 10)


def test_layers_that_widen_their_weights_keep_nothing_for_the_gradient() -> None:
    """mlx keeps what is computed at once while it traces, so that memory would grow by all of it with each layer."""

    def peak(layers: int) -> int:
        config = {"model_type": "llama", "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": layers}
        config |= {"num_attention_heads": 4, "vocab_size": 64, "rms_norm_eps": 1e-5, "tie_word_embeddings": True}
        model: Any = random_model(config, seed=0)
        model.set_dtype(mx.bfloat16)
        widening.prepare(model)
        attach_adapter(model, AdapterLayout("lora", -1, 4, 1.0, 0.0, choose_keys(model)))
        checkpoint_layers(model.layers)
        ids = mx.array(np.arange(512)[None] % 64)
        mx.eval(model.parameters())
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        loss = nn.value_and_grad(model, lambda ids: model(ids).square().mean())
        mx.eval(loss(ids))
        return mx.get_peak_memory() - before

    one_more = (peak(6) - peak(2)) / 4
    assert one_more < 4 * 512 * 256 * 4, "a layer keeps what goes in and comes out, and gradients of its adapter"


def test_held_out_data_of_its_own(settings: Make, data: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "valid" / "v.jsonl", embedding_rows(9))
    record = run(settings(mode="embedding", iters=1, steps_per_eval=1, valid=str(tmp_path / "valid")))
    assert record.plan is not None and record.plan.rows == {"embedding": 70}
    assert set(record.validations[0].losses) == {"embedding"}


# Bad input


def refused(made: TrainingSettings, kind: type[GritError]) -> str:
    with pytest.raises(kind) as caught:
        run(made)
    return str(caught.value)


def test_bad_input_is_a_sentence(settings: Make, data: Path, tmp_path: Path) -> None:
    assert "There is nothing to train on" in refused(settings(data=None), ArgumentError)
    assert "fewer than one batch of 80" in refused(settings(batch_size=80), ArgumentError)
    assert "data_weights names 'x', but the data files are " in refused(
        settings(data_weights={"x": 1.0}), ArgumentError
    )
    assert "no data file has them" in refused(settings(distillation="cosine"), DocumentError)
    assert "matryoshka_dims=99 exceeds the model's vectors of 32 numbers." in refused(
        settings(matryoshka_dims=[99]), ArgumentError
    )
    vectors = [{"query": "q", "pos": ["p"], "query_vector": [1, 2], "pos_vectors": [[1, 2]]}] * 20
    path = str(write_rows(tmp_path / "vectors.jsonl", vectors))
    message = refused(settings(distillation="cosine", data=path, mode="embedding"), ArgumentError)
    assert "The vectors of vectors have 2 numbers and the model's 32: use distillation='similarity'" in message
    assert "is not an adapter folder" in refused(settings(resume_adapter_file=str(tmp_path)), GritError)
    assert "optimizer_config does not suit adamw" in refused(settings(optimizer_config={"beta": 1}), ArgumentError)
    (tmp_path / "empty").mkdir()
    message = refused(settings(evaluate=[str(tmp_path / "empty")], steps_per_eval=1), DocumentError)
    assert "is not a set to score. A set is a folder with corpus.jsonl" in message
    shutil.rmtree(data / "generative")
    assert "holds no generative data, which mode='unified' needs: add some, or use mode='embedding'." in refused(
        settings(), DocumentError
    )
    (data / "embedding" / "c.jsonl").write_text('{"query": "a", "pos": ["b"]}\n{"query": "a"}\n')
    message = refused(settings(mode="embedding"), DocumentError)
    assert "c.jsonl, line 2: there is no field 'pos'; the fields are 'query'" in message


@pytest.mark.parametrize("limit", [0.5, None])
def test_gradients_are_clipped_as_one(limit: float | None, settings: Make, tiny_model: Path) -> None:
    """A step of plain descent at rate 1 moves all weights together by the gradient's norm, or by the limit."""
    made = settings(iters=1, optimizer="sgd", fine_tune_type="full", learning_rate=1.0, max_grad_norm=limit)
    [step] = run(made).steps
    before, after = (read_arrays(folder / "model.safetensors") for folder in (tiny_model, Path(made.adapter_path)))
    moved = math.sqrt(sum(float(np.sum(np.square(np.array(after[name] - before[name])))) for name in before))
    assert step.gradient_norm > 1, "there is something to clip"
    assert moved == pytest.approx(step.gradient_norm if limit is None else limit, rel=1e-3)


def test_a_loss_that_is_not_finite_stops_the_run(settings: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from grit_mlx.training.step import TrainingStep

    made = settings(iters=5, save_every=1)
    folder = Path(made.adapter_path)
    calls = []
    original = TrainingStep._next_token_sum

    def poisoned(step: TrainingStep, ids: mx.array, labels: mx.array, before: mx.array | None) -> mx.array:
        calls.append(1)
        return original(step, ids, labels, before) * (math.nan if len(calls) == 3 else 1.0)

    monkeypatch.setattr(TrainingStep, "_next_token_sum", poisoned)
    message = refused(made, NonFiniteError)
    assert "The generative loss of step 3 is not finite" in message and str(folder / "stopped") in message
    saved = json.loads((folder / "stopped" / "step-00000003.json").read_text())
    assert saved["step"] == 3 and len(saved["queries"]) == 8 and len(saved["generative"]) == 4
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["step-00000001", "step-00000002"]
    for path in (folder / "checkpoints").rglob("adapters.safetensors"):
        assert all(mx.all(mx.isfinite(value)).item() for value in read_arrays(path).values())
    monkeypatch.undo()
    assert "Use resume=True with a lower learning_rate or dtype='float32'." in message
    record = run(TrainingSettings(**{**asdict(made), "resume": True, "learning_rate": 1e-4}))
    assert [step.step for step in record.steps] == [3, 4, 5]
    assert record.steps[0].learning_rate == pytest.approx(1e-4)


def test_a_full_disk(settings: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    made = settings(iters=4, save_every=1)
    folder = Path(made.adapter_path)
    original, calls = mx.save_safetensors, []

    def full(path: str, *arguments: Any, **options: Any) -> None:
        calls.append(path)
        original(path, *arguments, **options)
        if len(calls) == 6:  # the optimizer of step 3: cut off without a word, as mlx leaves it on a full disk
            Path(path).write_bytes(Path(path).read_bytes()[:100])

    monkeypatch.setattr(mx, "save_safetensors", full)
    message = refused(made, OutputError)
    assert "step-00000003: the disk is full" in message and message.endswith("Then go on with resume=True.")
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["step-00000001", "step-00000002"]
    monkeypatch.setattr(mx, "save_safetensors", original)
    usage = shutil.disk_usage(folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=1000))
    message = refused(TrainingSettings(**{**asdict(made), "resume": True}), OutputError)
    assert "step-00000003 needs 0.02 GB and 0.00 GB are free on its disk. Make room. Then go on with" in message
    assert read_log(folder / "log.jsonl") and yaml.safe_load((folder / "settings.yaml").read_text())["iters"] == 4


def test_memory_that_runs_out(settings: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from grit_mlx.training.step import TrainingStep

    def full(*_arguments: Any, **_options: Any) -> None:
        raise RuntimeError("[malloc] Unable to allocate 900000000000 bytes.")

    monkeypatch.setattr(TrainingStep, "generative", full)
    assert "Memory ran out in step 1. Lower chunk_tokens or chunk_size, use grad_checkpoint=True, or" in refused(
        settings(), MemoryLimitError
    )


def test_settings_and_results_are_written(settings: Make, tiny_model: Path) -> None:
    made = settings(iters=1, max_length=99, query_instruction="Ask")
    run(made)
    folder = Path(made.adapter_path)
    assert yaml.safe_load((folder / "settings.yaml").read_text())["batch_size"] == 8
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["fine_tune_type"], config["num_layers"], config["lora_parameters"]["rank"]) == ("lora", -1, 16)
    found = read_settings(folder)
    assert (found.max_length, found.query_instruction) == (99, "Ask")


def test_answers_are_held_out_and_not_evaluated(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    write_rows(path, [{"prompt": "What is a keel?", "completion": "A fin."}])
    with pytest.raises(ArgumentError, match=r"evaluate names answers, .*answers\.jsonl: put them into the data"):
        train(TrainingSettings(model=str(tiny_model), data=str(tmp_path), evaluate=[str(path)]), [])
