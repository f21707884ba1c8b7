"""grit bench: what it measures and says, and the size of batches that it keeps."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import pytest

from grit_mlx import GritLM
from grit_mlx.benchmarking import measuring, report
from grit_mlx.benchmarking.measuring import Trial, fastest
from grit_mlx.benchmarking.texts import mixed_lengths, texts_of
from grit_mlx.model import device, tuning
from grit_mlx.model.embedding import Embedder
from tests.cli.conftest import Grit

FLAGS = ("bench", "--seconds", 2)


@pytest.fixture(autouse=True)
def _little_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is time for everything, however busy the machine is."""
    monkeypatch.setattr(measuring, "LENGTHS", (4, 8, 16))
    monkeypatch.setattr(measuring, "PROMPTS", (32, 16))
    monkeypatch.setattr(measuring, "SHORT_PROMPT", 8)
    monkeypatch.setattr(measuring, "NEW_TOKENS", 8)


def measured(grit: Grit, *flags: object) -> dict[str, Any]:
    run = grit(*FLAGS, "--json", *flags)
    assert run.code == 0, run.err
    found: dict[str, Any] = json.loads(run.out)
    return found


def test_json(grit: Grit, tiny_model: Path) -> None:
    found = measured(grit)
    assert set(found) == {
        "machine", "model", "matrix_flops", "matrix_type", "batch_tokens", "embedding", "generation", "document",
        "trials", "memory", "left_out", "seconds", "date", "line",
    }  # fmt: skip
    assert found["model"]["name"] == tiny_model.name and found["model"]["generates"] is True
    assert found["matrix_flops"] > 1e8 and found["matrix_type"] == "float32" and found["memory"]["array_bytes"] > 0
    assert [row["length"] for row in found["embedding"]] == [4, 8, 16, None]
    for row in found["embedding"]:
        assert row["tokens"] > row["texts"] >= 4 and 0 <= row["padding"] < 0.5
        assert row["tokens_per_second"] == pytest.approx(row["tokens"] / row["seconds"], rel=1e-3)
        if row["length"]:
            assert row["tokens"] / row["texts"] > row["length"] / 2
    short, long = found["generation"]
    assert short["prompt_tokens"] == 8 < long["prompt_tokens"]
    for row in (short, long):
        assert row["same_tokens"] and row["rounds"] >= 1 and row["new_tokens"] >= 2
        assert row["ratio"] == pytest.approx(row["mlx_lm_new_seconds"] / row["new_seconds"], rel=1e-3)
    assert found["document"]["tokens"] > 8 and found["document"]["cached_seconds"] > 0
    assert found["trials"] == [] and found["left_out"] == []
    assert f"prompt {long['prompt_tokens']}" in found["line"] and "\n" not in found["line"]


def test_what_is_compiled_at_first_decides_no_figure(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU a shape takes longer at first than all the work that there is time for."""
    compiling, now = 100.0, [0.0]
    seen: set[object] = set()

    def work(shape: object, seconds: float) -> None:
        now[0] += seconds if shape in seen else compiling
        seen.add(shape)

    compute = Embedder._compute

    def embedded(self: Embedder, batch: Any, **options: Any) -> Any:
        work((len(batch), max(len(piece.ids) for piece in batch)), 0.001 * len(batch))
        return compute(self, batch, **options)

    model = GritLM(tiny_model)
    forward = type(model.model).__call__

    def called(self: Any, inputs: Any, *args: Any, **options: Any) -> Any:
        work(("call", inputs.shape), 0.001)
        return forward(self, inputs, *args, **options)

    monkeypatch.setattr(Embedder, "_compute", embedded)
    monkeypatch.setattr(type(model.model), "__call__", called)
    monkeypatch.setattr(measuring, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    found = report.measure(model, seconds=2)
    assert len(seen) > 4 and found.left_out == []
    for row in found.embedding:
        assert row.texts > measuring.FEWEST_TEXTS and row.seconds < 1
    for written in found.generation:
        assert written.new_tokens >= 8 and written.rounds > 1
        assert written.prompt_seconds < 1 and written.mlx_lm_prompt_seconds < 1
    assert found.document is not None
    assert found.document.read_seconds < 1 and found.document.cached_seconds < 1


def test_products_are_of_the_type_that_the_model_computes_in(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[mx.Dtype] = []

    def rate(*, seconds: float, dtype: mx.Dtype) -> float:
        asked.append(dtype)
        return 1e9

    monkeypatch.setattr(report, "matrix_rate", rate)
    found = report.measure(GritLM(tiny_model, dtype="bfloat16"), seconds=1)
    assert asked == [mx.bfloat16] and found.matrix_type == "bfloat16" and "GFLOP/s in bfloat16" in found.line()


def test_a_table_for_people(grit: Grit) -> None:
    shown = grit(*FLAGS)
    assert shown.code == 0
    for text in (
        "matrix products",
        "GFLOP/s",
        "padding",
        "mlx_lm",
        "mixed lengths",
        "cached",
        "To paste into a report:",
    ):
        assert text in shown.out
    assert "usual for such a device" in shown.out


def test_a_model_that_only_embeds_is_measured_at_that() -> None:
    found = report.measure(GritLM(), seconds=2)
    assert found.generation == [] and found.document is None and found.left_out == []
    assert len(found.embedding) == 4 and "prompt" not in found.line()
    json.dumps(found.as_dict())


def test_what_there_is_no_time_for_is_said(grit: Grit, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Embedder.steps

    def slow(self: Embedder, pieces: Any, *args: Any, **kwargs: Any) -> Any:
        time.sleep(0.1 * sum(len(piece.ids) for piece in pieces))  # ten tokens a second
        return real(self, pieces, *args, **kwargs)

    monkeypatch.setattr(Embedder, "steps", slow)
    shown = grit(*FLAGS)
    assert shown.code == 0
    assert "there was no time for texts of 8 tokens, texts of 16 tokens, texts of mixed lengths" in shown.err
    assert "raise --seconds" in shown.err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--seconds", "0"], "'--seconds': Input should be greater than or equal to 1"),
        (["--seconds", "nan"], "'--seconds'"),
        (["--tune", "--forget"], "--tune and --forget exclude each other"),
        (["--model", "/nowhere/at-all"], "/nowhere/at-all"),
    ],
)
def test_wrong_input(grit: Grit, flags: list[str], said: str) -> None:
    run = grit("bench", *flags)
    assert run.code in (1, 2) and said in run.err and not run.out


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_it_ends_at_once_and_keeps_nothing(
    tiny_model: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    program = (
        "import sys, grit_mlx.benchmarking.report as report\n"
        "real = report._Clock.advance\n"
        "report._Clock.advance = lambda *a: print('begun', flush=True) or real(*a)\n"
        "from grit_mlx.cli.main import main\n"
        f"sys.argv = ['grit', 'bench', '--tune', '--seconds', '600', '--model', {str(tiny_model)!r}]\n"
        "main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    while process.stdout.readline().strip() != "begun":
        assert process.poll() is None
    time.sleep(1)
    began = time.perf_counter()
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code and time.perf_counter() - began < 20
    assert "Traceback" not in err and "tokens/s" not in out
    assert not tuning.tuning_file().exists()


# Tuning


def test_a_size_is_kept_used_and_forgotten(grit: Grit, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "fastest", lambda found: Trial(96, 1.0))
    before = GritLM(tiny_model).embedder.token_budget(8)
    run = grit(*FLAGS, "--tune")
    assert run.code == 0 and "measured here" in run.out and "batches of at most" in run.out
    assert f"batches of 96 tokens are the fastest here; kept in {tuning.tuning_file()}" in run.err
    model = GritLM(tiny_model)
    assert model.embedder.token_budget(8) == 96 and model.embedder.token_budget(300) == 300
    sizes = batches(model, monkeypatch)
    model.encode(["a b c"] * 200)
    assert max(sizes) <= 96 and len(sizes) > 5
    sizes.clear()
    model.encode(["a b c"] * 200, batch_tokens=64)
    assert 0 < max(sizes) <= 64
    found = measured(grit)
    assert found["batch_tokens"] == {"used": 512, "measured": True}  # a text of 512 tokens is a batch of its own
    run = grit("bench", "--forget")
    assert run.code == 0 and not run.out and "forgot" in run.err
    assert GritLM(tiny_model).embedder.token_budget(8) == before


def batches(model: GritLM, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Fills with the tokens of each batch that is computed."""
    seen: list[int] = []
    real = Embedder._compute

    def watched(self: Embedder, batch: Any, **options: Any) -> Any:
        seen.append(len(batch) * max(len(piece.ids) for piece in batch))
        return real(self, batch, **options)

    monkeypatch.setattr(Embedder, "_compute", watched)
    return seen


def test_commands_use_it_unless_a_flag_says_otherwise(
    grit: Grit, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuning.keep(GritLM(tiny_model).config, 96)
    texts = tmp_path / "texts.txt"
    sizes = batches(GritLM(tiny_model), monkeypatch)
    for command in (["embed", texts], ["search", "keel", texts]):
        for flags in ([], ["--batch-tokens", 4000]):
            sizes.clear()  # other texts each time, since search remembers vectors
            texts.write_text("".join(f"the {len(flags)} keels keep {n} ships upright\n" for n in range(100)))
            assert grit(*command, *flags).code == 0
            assert (max(sizes) > 96) == bool(flags)
    assert grit("embed", texts, "--batch-tokens", 0).code == 2


def test_it_is_not_used_on_another_device_nor_for_another_shape(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {"hidden_size": 64, "intermediate_size": 128}
    tuning.keep(config, 96)
    tuning.keep({**config, "hidden_size": 128}, 192)
    assert tuning.kept(config) == 96 and tuning.kept({**config, "hidden_size": 128}) == 192
    assert tuning.kept({**config, "hidden_size": 32}) is None
    here = replace(device.current_device(), name="another chip")
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(device, "current_device", lambda: here)
        assert tuning.kept(config) is None
        tuning.keep(config, 512)
        assert tuning.kept(config) == 512
        tuning.forget()
        assert tuning.kept(config) is None
    assert tuning.kept(config) == 96
    tuning.forget()
    assert tuning.kept(config) is None and not tuning.tuning_file().exists()


@pytest.mark.parametrize("content", ["{", "[]", "null", '"x"', '{"cpu": 3}', '{"a": {"64x128": "many"}}', ""])
def test_a_damaged_file_is_not_used_and_can_be_replaced(content: str, caplog: pytest.LogCaptureFixture) -> None:
    config = {"hidden_size": 64, "intermediate_size": 128}
    tuning.tuning_file().parent.mkdir(parents=True, exist_ok=True)
    tuning.tuning_file().write_text(content)
    assert tuning.kept(config) is None
    tuning.keep(config, 96)
    assert tuning.kept(config) == 96


def test_the_smallest_size_wins_unless_another_is_faster_by_much() -> None:
    found = [Trial(256, 100.0), Trial(512, 130.0), Trial(1024, 131.0), Trial(2048, 90.0)]
    assert fastest(found).batch_tokens == 512
    assert fastest(found[:1]).batch_tokens == 256


def test_sizes_that_are_tried_double_and_fit_into_the_time(tiny_model: Path) -> None:
    model = GritLM(tiny_model)
    found = measuring.trials(model, rate=20_000, seconds=1, advance=lambda _done: None)
    sizes = [trial.batch_tokens for trial in found]
    assert sizes[0] == 256 and len(sizes) > 2 and all(b == 2 * a for a, b in pairwise(sizes))
    assert all(trial.tokens_per_second > 0 for trial in found)


# Texts


def test_texts_have_about_the_length_asked_for() -> None:
    def count(text: str) -> int:
        return len(text) // 4 + 1

    texts = texts_of([32] * 5 + [500, 1], count)
    assert len(set(texts)) == len(texts)
    assert all(count(text) == pytest.approx(32, rel=0.4) for text in texts[:5])
    assert count(texts[5]) == pytest.approx(500, rel=0.1)


def test_mixed_lengths_spread_evenly_over_orders_of_magnitude() -> None:
    lengths = mixed_lengths(2000, 512)
    assert min(lengths) >= 8 and max(lengths) <= 512
    assert sum(length < 64 for length in lengths) / 2000 == pytest.approx(0.5, abs=0.05)
    assert mixed_lengths(3, 4) == [4, 4, 4]
