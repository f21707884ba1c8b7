"""grit models and grit doctor."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm.utils import load_model, quantize_model, save_config
from mlx_lm.utils import save_model as save_weights

from grit_mlx.cli import doctor
from grit_mlx.cli.models import describe
from grit_mlx.cli.wording import size_of
from grit_mlx.model import hub
from tests import fake_hub
from tests.gguf_files import gguf_of

Grit = Any


def test_info_of_the_default(grit: Grit, tiny_model: Path) -> None:
    run = grit("models", "info", "--json")
    assert (run.code, run.err) == (0, "")
    found = json.loads(run.out)
    config = json.loads((tiny_model / "config.json").read_text(encoding="utf-8"))
    weights: Any = mx.load(str(tiny_model / "model.safetensors"))
    assert found["folder"] == str(tiny_model)
    assert found["architecture"] == "mistral"
    assert found["parameters"] == sum(value.size for value in weights.values())
    assert found["bytes"] == sum(value.nbytes for value in weights.values())
    assert found["dtypes"] == {"float32": found["bytes"]}
    assert found["quantization"] is None
    assert found["hidden_size"] == config["hidden_size"]
    assert found["settings"]["max_length"] == 512
    shown = grit("models", "info", tiny_model).out
    assert "architecture" in shown
    assert f"{found['parameters']:,}" in shown
    assert "defaults (there is no grit.json)" in shown


def test_info_of_the_embedded_model(grit: Grit) -> None:
    shown = " ".join(grit("models", "info", "grit-tiny").out.split())
    assert "can generate no: it only embeds" in shown and "precision 4 and 8 bits, groups of 32" in shown
    assert json.loads(grit("models", "info", "grit-tiny", "--json").out)["bits"] == [4, 8]


def test_info_tells_the_settings(grit: Grit, model_copy: Any) -> None:
    folder = model_copy()
    (folder / "grit.json").write_text(json.dumps({"pooling": "cls", "query_instruction": "Find it"}))
    found = json.loads(grit("models", "info", folder, "--json").out)
    assert found["settings_file"]
    assert (found["settings"]["pooling"], found["settings"]["query_instruction"]) == ("cls", "Find it")
    assert "Find it" in grit("models", "info", folder).out


def test_parameters_of_a_quantised_model_are_those_before(tiny_model: Path, tmp_path: Path) -> None:
    model, config = load_model(tiny_model)

    def fits(_: str, module: nn.Module) -> bool:
        return hasattr(module, "to_quantized") and module.weight.shape[-1] % 32 == 0

    model, config = quantize_model(model, config, 32, 4, quant_predicate=fits)
    save_weights(tmp_path, model)
    save_config(config, tmp_path / "config.json")
    whole, quantised = describe(tiny_model), describe(tmp_path)
    assert quantised["parameters"] == whole["parameters"]
    assert quantised["bytes"] < whole["bytes"] / 2
    assert quantised["quantization"]["bits"] == 4


def test_list_marks_the_default(grit: Grit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> None:
    models = [
        hub.LocalModel("own/one", tmp_path / "one", 1500),
        hub.LocalModel("own/two", tmp_path / "two", 14_500_000_000),
    ]
    monkeypatch.setattr(hub, "local_models", lambda: iter(models))
    monkeypatch.setenv("GRIT_MODEL", "own/two")
    run = grit("models", "list")
    assert (run.code, run.err) == (0, "")
    assert run.out == f"  own/one    1.5 kB  {tmp_path}/one\n* own/two   14.5 GB  {tmp_path}/two\n"
    found = json.loads(grit("models", "list", "--json").out)
    assert [(model["name"], model["default"]) for model in found] == [("own/one", False), ("own/two", True)]
    monkeypatch.setenv("GRIT_MODEL", str(tiny_model))  # a folder elsewhere is listed because it is the default
    assert grit("models", "list").out.splitlines()[-1].startswith("* mistral")
    monkeypatch.setenv("GRIT_MODEL", "own/absent")
    assert grit("models", "list").err == "note: the default is own/absent, which is not here yet\n"


def test_list_of_nothing_tells_what_to_do(grit: Grit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "local_models", lambda: iter(()))
    monkeypatch.setattr(hub, "embedded_model", lambda: None)
    monkeypatch.delenv("GRIT_MODEL")
    run = grit("models", "list")
    assert (run.code, run.out) == (0, "")
    assert run.err == "note: there are no models on this machine yet. Fetch one: grit models pull gritlm-7b\n"


def test_use_and_unset(grit: Grit, model_copy: Any, monkeypatch: pytest.MonkeyPatch, notes: Path) -> None:
    monkeypatch.setattr(hub, "local_models", lambda: iter(()))
    monkeypatch.setattr(hub, "embedded_model", lambda: None)
    monkeypatch.delenv("GRIT_MODEL")
    folder = model_copy()
    monkeypatch.chdir(folder.parent)
    run = grit("models", "use", "./model")
    assert (run.code, run.out, run.err) == (0, "", f"note: the default is now {folder}\n")
    monkeypatch.chdir("/")  # the choice is a whole path
    assert grit("embed", notes).code == 0
    assert grit("models", "use", "gritlm-7b").err.splitlines() == [
        "note: the default is now GritLM/GritLM-7B",
        "note: it is not on this machine yet; the first use fetches it, or now: grit models pull gritlm-7b",
    ]
    assert grit("models", "use", "--unset").err == "note: the default is now unset\n"
    missing = grit("embed", notes)
    assert missing.code == 1
    assert "grit models use gritlm-7b" in missing.err


def test_use_warns_where_the_environment_comes_first(grit: Grit, model_copy: Any, tiny_model: Path) -> None:
    run = grit("models", "use", model_copy())
    assert f"warning: GRIT_MODEL is set to {tiny_model} and overrides it." in run.err


def test_pull_then_use_from_a_hub(tiny_model: Path, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    shutil.copytree(tiny_model, repository)
    with fake_hub.running() as server:
        server.repositories = {"own/tiny": repository}
        environment = {
            **os.environ,
            "HF_ENDPOINT": server.url,
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_DISABLE_XET": "1",
        }

        def grit(*args: str) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-c", "from grit_mlx.cli.main import main; main()", *args]
            return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)

        early = grit("models", "info", "own/tiny")
        assert early.returncode == 1
        assert early.stderr == "error: own/tiny is not on this machine. Fetch it: grit models pull own/tiny\n"
        assert not server.requests  # asking about a model must not fetch gigabytes
        pulled = grit("models", "pull", "own/tiny")
        assert (pulled.returncode, pulled.stderr) == (0, "")
        folder = Path(pulled.stdout.strip())
        assert (folder / "model.safetensors").exists()
    environment["HF_HUB_OFFLINE"] = "1"
    assert grit("models", "use", "own/tiny").stderr == "note: the default is now own/tiny\n"
    assert "\n* own/tiny " in grit("models", "list").stdout  # below the embedded model
    assert json.loads(grit("models", "info", "--json").stdout)["architecture"] == "mistral"


def test_remove(grit: Grit, model_copy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> None:
    monkeypatch.delenv("GRIT_MODEL")
    monkeypatch.setattr(hub, "models_folder", lambda: tmp_path / "models")
    pulled = tmp_path / "models" / "tiny-4bit"
    shutil.copytree(tiny_model, pulled)
    own = model_copy()
    grit("models", "use", "tiny-4bit")
    refused = grit("models", "remove", "tiny-4bit")  # nobody can be asked in a pipe
    assert refused.code == 2 and "add --yes" in refused.err and pulled.exists()
    run = grit("models", "rm", "tiny-4bit", "--yes")
    assert (run.code, run.out) == (0, "") and not list((tmp_path / "models").iterdir())
    assert "note: tiny-4bit is deleted; " in run.err and "it was the default, which is now" in run.err
    assert "tiny-4bit" not in grit("models", "list").out
    assert grit("models", "remove", "tiny-4bit", "--yes").code == 1
    for name, message in ((str(own), "is a folder of your own: delete it with rm -r."), ("grit-tiny", "cannot be")):
        run = grit("models", "remove", name, "--yes")
        assert run.code == 1 and message in run.err, run
        assert (own / "config.json").exists()


def test_remove_asks_on_a_terminal(
    grit: Grit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Path
) -> None:
    monkeypatch.setattr(hub, "models_folder", lambda: tmp_path / "models")
    shutil.copytree(tiny_model, tmp_path / "models" / "tiny-4bit")
    monkeypatch.setattr("grit_mlx.cli.console.stdin_is_terminal", lambda: True)
    asked: list[str] = []
    monkeypatch.setattr("typer.confirm", lambda text, err: asked.append(text))
    assert grit("models", "remove", "tiny-4bit").code == 1
    assert asked[0].startswith("Delete tiny-4bit (") and (tmp_path / "models" / "tiny-4bit").exists()


def test_a_removal_that_was_interrupted_leaves_no_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Path
) -> None:
    monkeypatch.setattr(hub, "models_folder", lambda: tmp_path)
    shutil.copytree(tiny_model, tmp_path / "tiny-4bit")
    monkeypatch.setattr("shutil.rmtree", lambda *args, **options: None)
    hub.remove(hub.LocalModel("tiny-4bit", tmp_path / "tiny-4bit", 1))
    assert [model.name for model in hub.local_models() if model.folder.parent == tmp_path] == []


def test_remove_of_a_model_in_the_cache_of_the_hub(tiny_model: Path, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    shutil.copytree(tiny_model, repository)
    with fake_hub.running() as server:
        server.repositories = {"own/tiny": repository}
        own = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}

        def grit(*args: str) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-c", "from grit_mlx.cli.main import main; main()", *args]
            environment = {**os.environ, **own}
            return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)

        folder = Path(grit("models", "pull", "own/tiny").stdout.strip())
        assert (folder / "model.safetensors").exists()
        assert grit("models", "remove", "own/tiny", "--yes").returncode == 0
    assert not folder.exists() and not list((tmp_path / "hf").rglob("blobs/*"))


def test_pull_of_a_folder(grit: Grit, tiny_model: Path) -> None:
    run = grit("models", "pull", tiny_model)
    assert (run.code, run.err) == (1, f"error: {tiny_model} is a folder on this machine already.\n")


def test_doctor(grit: Grit, tiny_model: Path) -> None:
    run = grit("doctor", "--json")
    assert (run.code, run.err) == (0, "")
    found = json.loads(run.out)
    assert found["packages"]["mlx"]
    assert found["device"]["kind"] in {"cpu", "metal", "cuda"}
    assert found["device"]["matmul_gflops"] > 0
    assert found["default_model_folder"] == str(tiny_model)
    shown = grit("doctor")
    assert shown.code == 0
    for label in ("grit-mlx", "Python", "device", "memory", "matrix products", "default model", "model cache"):
        assert label in shown.out


def test_doctor_says_what_to_do(grit: Grit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(problems: list[str]) -> dict[str, Any]:
        raise RuntimeError("no Metal device")

    monkeypatch.setattr(doctor, "_device", broken)
    monkeypatch.setattr(hub, "local_models", lambda: iter(()))
    monkeypatch.setenv("GRIT_MODEL", "gritlm-7b")
    run = grit("doctor")
    assert run.code == 0
    problems = [line for line in run.out.splitlines() if line.startswith("! ")]
    assert problems == [
        "! mlx does not work here: no Metal device",
        "! The default model GritLM/GritLM-7B is not on this machine yet. Download it: grit models pull gritlm-7b",
    ]
    monkeypatch.setenv("GRIT_MODEL", "gritlm7b")
    assert "Did you mean gritlm-7b?" in grit("doctor").out


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (123_456, "123 kB"),
        (999_600, "1.0 MB"),
        (14_483_500_000, "14.5 GB"),
    ],
)
def test_sizes(count: int, text: str) -> None:
    assert size_of(count) == text


def test_a_gguf_file(grit: Grit, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = gguf_of(tiny_model, tmp_path / "Tiny.gguf")
    chosen = grit("models", "use", file)
    assert chosen.code == 0 and f"the default is now {file}" in chosen.err
    monkeypatch.delenv("GRIT_MODEL")
    assert '"Tiny.gguf"' in grit("models", "list", "--json").out and "tiny" in grit("models", "list").out
    assert grit("models", "show", file).code == 0
    assert (
        grit("similarity", "a", "b", "--json").out == grit("similarity", "a", "b", "--json", "--model", tiny_model).out
    )
    (tmp_path / "Tiny.gguf").write_bytes(b"GGUF")
    refused = grit("similarity", "a", "b")
    assert refused.code == 1 and "Tiny.gguf is not a GGUF file" in refused.err
    other = grit("models", "use", tmp_path / "Tiny.gguf")
    assert other.code == 1 and "Tiny.gguf is not a GGUF file" in other.err
