"""What a newcomer meets: grit without arguments, notes, models by machine, completion, doctor."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from grit_mlx.cli import console, doctor
from grit_mlx.cli.similarity import _show
from grit_mlx.model import catalogue, hub
from grit_mlx.model.device import Device

Grit = Any

COMMAND = [sys.executable, "-c", "from grit_mlx.cli.main import main; main()"]


def on_a_terminal(*args: str, columns: int = 80) -> str:
    """What a run shows on a terminal of so many columns."""
    master, slave = pty.openpty()
    settings = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm", "NO_COLOR": "1"}
    process = subprocess.Popen([*COMMAND, *args], stdin=slave, stdout=slave, stderr=slave, env=settings)
    os.close(slave)
    shown = b""
    while process.poll() is None or select.select([master], [], [], 0.2)[0]:
        if not select.select([master], [], [], 0.2)[0]:
            continue
        try:
            shown += os.read(master, 4096)
        except OSError:  # the other end is closed
            break
    process.wait()
    os.close(master)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", shown.decode())


def test_no_arguments_on_a_terminal_show_three_commands() -> None:
    shown = on_a_terminal(columns=60)
    assert len(re.findall(r"^  grit ", shown, re.M)) == 3
    assert "grit --help" in shown and "grit models list --available" in shown
    assert max(map(len, shown.splitlines())) <= 60
    assert "Usage:" in subprocess.run(COMMAND, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("columns", [30, 60, 80])
def test_notes_break_between_words(columns: int) -> None:
    words = "models use gritlm-7b-4bit"
    shown = on_a_terminal(*words.split(), columns=columns)
    message = "error: gritlm-7b-4bit is not on this machine yet. Get it: grit models pull gritlm-7b --bits 4"
    assert " ".join(shown.split()) == message
    lines = [line for line in shown.splitlines() if line.strip()]
    assert len(lines) > 1 and max(map(len, lines)) <= columns
    assert set(" ".join(lines).split()) == set(message.split())  # no word was broken


def test_long_words_stay_whole() -> None:
    path = "/tmp-of-nobody/" + "deep/" * 30 + "file.txt"
    assert path in on_a_terminal("embed", path, columns=60)


@pytest.mark.parametrize("columns", [40, 60, 80])
@pytest.mark.parametrize("count", [3, 6, 12])
def test_similarity_keeps_its_numbers(columns: int, count: int, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    import numpy as np

    monkeypatch.setenv("COLUMNS", str(columns))
    console.reset()
    texts = [f"words of some length, number {i}" for i in range(count)]
    _show(texts, -np.ones((count, count), dtype=np.float32))
    shown = capsys.readouterr().out
    console.reset()
    assert max(map(len, shown.splitlines())) <= columns
    tables = shown.split("text ")[1:]
    for table in tables:
        numbers = [int(row.split()[0]) for row in table.splitlines() if row.split() and row.split()[0].isdigit()]
        assert numbers[-count:] == list(range(1, count + 1))
    assert shown.count("-1.000") == count * count


# The built-in model


def test_the_built_in_model_is_noted_once(grit: Grit, notes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRIT_MODEL")
    said = "this is grit-tiny"
    assert said not in grit("embed", notes, "--by", "paragraph", "--dtype", "float16", "-q").err
    assert said not in grit("search", "ships", notes, "--json").err
    missing = grit("search", "ships", notes, "--instruction", "x", "--min-score", "0.2", "--max-length", "1")
    assert missing.code == 1 and said not in missing.err
    first = grit("search", "ships", notes)
    assert said in first.err and said not in first.out and first.err.count("\n") == 1
    assert "grit models pull" in first.err
    assert said not in grit("search", "ships", notes).err
    assert said not in grit("similarity", "a b", "c d").err


def test_a_named_model_is_not_noted(grit: Grit, notes: Path, tiny_model: Path) -> None:
    assert grit("embed", notes, "--model", "grit-tiny").err == ""
    assert grit("embed", notes).err == ""


# Models by machine


def a_machine(monkeypatch: pytest.MonkeyPatch, gib: float, kind: str = "metal") -> None:
    here = Device(kind=kind, name="M9", memory=int(gib * catalogue.GIB), blas=None, blas_note="")
    monkeypatch.setattr("grit_mlx.model.device.current_device", lambda: here)


@pytest.mark.parametrize(("gib", "bits"), [(8, 4), (16, 6), (64, 8)])
def test_pull_without_a_name_recommends(grit: Grit, monkeypatch: pytest.MonkeyPatch, gib: int, bits: int) -> None:
    a_machine(monkeypatch, gib)
    monkeypatch.setattr(hub, "download", lambda *_, **__: pytest.fail("nothing may be downloaded"))
    run = grit("models", "pull")
    assert (run.code, run.out) == (0, f"grit models pull gritlm-7b --bits {bits}\n")
    assert f"gritlm-7b-{bits}bit embeds and writes" in run.err
    a_machine(monkeypatch, 0.1)
    assert "too little for a model that writes" in grit("models", "pull").err


def test_pull_yes_downloads(grit: Grit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    a_machine(monkeypatch, 16)
    asked = []
    monkeypatch.setattr("grit_mlx.cli.models._pulled", lambda choice, bits: asked.append((choice.model, bits)))
    assert grit("models", "pull", "--yes").code == 0
    assert grit("models", "pull", "gritlm-7b-4bit").code == 0
    assert grit("pull", "SmolLM2-1.7B-Instruct-8bit").code == 0
    assert asked == [("gritlm-7b", 6), ("gritlm-7b", 4), ("smollm2-1.7b", 8)]


def test_the_models_that_there_are(grit: Grit, monkeypatch: pytest.MonkeyPatch) -> None:
    a_machine(monkeypatch, 16)
    run = grit("models", "list", "--available")
    assert (run.code, run.err) == (0, "")
    assert max(map(len, run.out.splitlines())) <= 60
    for family in catalogue.CATALOGUE:
        assert f"\n{family.name}: " in run.out
    assert re.search(r"^\* +6 +6\.0 GB .* 16 GB  fits$", run.out, re.M)
    assert run.out.endswith("* for this machine, with 17.2 GB:\n  grit models pull gritlm-7b --bits 6\n")
    found = json.loads(grit("models", "list", "--available", "--json").out)
    assert [one["command"] for one in found if one["recommended"]] == ["grit models pull gritlm-7b --bits 6"]
    assert {one["here"] for one in found} <= {"fits", "short texts", "too large"}
    assert all(one["size_bytes"] < one["memory_bytes_512_tokens"] < one["memory_bytes_8192_tokens"] for one in found)
    a_machine(monkeypatch, 16, kind="cpu")
    slow = {one["name"] for one in json.loads(grit("list", "--available", "--json").out) if one["here"] == "slow"}
    assert slow == {"gritlm-7b-8bit", "gritlm-7b-6bit", "gritlm-7b-4bit"}


@pytest.mark.parametrize("name", ["gritlm-7b-4bit", "GritLM-7B-4bit", "smollm2-1.7b-8bit", "gritlm-8x7b-3bit"])
def test_a_quantised_model_that_is_not_there(grit: Grit, name: str, notes: Path) -> None:
    short, bits = name.lower().rsplit("-", 1)
    command = f"Get it: grit models pull {short} --bits {bits[0]}\n"
    for args in (("models", "use", name), ("embed", notes, "--model", name), ("models", "info", name)):
        run = grit(*args)
        assert run.code == 1 and run.err.endswith(command)


def test_a_quantised_model_is_found_by_its_short_name(model_copy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = model_copy(name="smollm2-1.7b-instruct-8bit")
    monkeypatch.setattr(hub, "models_folder", lambda: folder.parent)
    assert hub.identify("smollm2-1.7b-8bit") == hub.identify("SmolLM2-1.7B-Instruct-8bit") == folder


def test_a_chosen_folder_stays_in_the_list(grit: Grit, model_copy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRIT_MODEL")
    first, second = model_copy(name="first"), model_copy(name="second")
    for folder in (first, second, first):
        assert grit("models", "use", folder).code == 0
    assert grit("models", "use", "grit-tiny").err == "note: the default is now grit-tiny\n"
    shown = grit("models", "list").out
    assert re.findall(r"^. (\S+)", shown, re.M) == ["grit-tiny", "second", "first"]
    assert shown.startswith("* grit-tiny")
    grit("models", "use", "--unset")
    assert str(second) in grit("models", "list").out
    (second / "config.json").unlink()
    assert str(second) not in grit("models", "list").out and hub.default_model() == str(hub.embedded_model())


def test_init_names_the_default(grit: Grit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model_copy: Any) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GRIT_MODEL", "own/model")
    for number, expected in enumerate(["own/model", "grit-tiny"]):
        file = tmp_path / f"{number}.yaml"
        assert grit("train", "--init", "--config", file).code == 0
        assert re.search(rf"^model: {expected}\b", file.read_text(), re.M)
        monkeypatch.delenv("GRIT_MODEL", raising=False)


@pytest.mark.parametrize("offline", [True, False])
@pytest.mark.parametrize("args", [("models", "pull", "own/x"), ("pull", "own/x", "-q", "4"), ("convert", "own/x")])
def test_without_a_network_one_sentence_says_so(args: tuple[str, ...], offline: bool, tmp_path: Path) -> None:
    settings = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    settings |= {"HF_HUB_OFFLINE": "1"} if offline else {}
    run = subprocess.run([*COMMAND, *args], env=settings, capture_output=True, text=True, cwd=tmp_path, check=False)
    why = "HF_HUB_OFFLINE is set" if offline else "the hub cannot be reached"
    assert run.returncode == 1 and f"error: own/x is not on this machine and {why}. Connect" in run.stderr
    assert "Errno" not in run.stderr and "Error" not in run.stderr


# Completion


@pytest.mark.parametrize(
    ("typed", "offered"),
    [("grit mod", "models"), ("grit rag in", "index"), ("grit models pu", "pull"), ("grit convert --q-b", "--q-bits")],
)
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str, typed: str, offered: str) -> None:
    words = {"COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" "))}
    asked = {
        "_TYPER_COMPLETE_ARGS": typed,
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        "_TYPER_COMPLETE_WORD_TO_COMPLETE": "",
    }
    settings = {**os.environ, "_GRIT_COMPLETE": f"complete_{shell}", **words, **asked}
    run = subprocess.run(COMMAND, env=settings, capture_output=True, text=True, check=False)
    assert re.search(rf"(?<![\w-]){re.escape(offered)}(?![\w-])", run.stdout), run


def test_completion_in_bash(tmp_path: Path) -> None:
    """The script that bash is given completes what is typed, through commands that are imported late."""
    program = tmp_path / "grit"
    program.write_text(f"#!{sys.executable}\nfrom grit_mlx.cli.main import main\nmain()\n")
    program.chmod(0o755)
    settings = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    script = """
        eval "$(grit --show-completion bash)"
        COMP_WORDS=(grit rag a) COMP_CWORD=2
        _grit_completion grit a rag
        echo "${COMPREPLY[@]}"
    """
    run = subprocess.run(["bash", "-c", script], env=settings, capture_output=True, text=True, check=False)
    assert run.stdout.split() == ["ask"], run


# Doctor


def test_doctor_ends_with_commands_or_nothing(grit: Grit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_device", lambda problems: problems.append("Slow: apt install libopenblas0.") or {})
    monkeypatch.setattr(hub, "local_models", lambda: iter(()))
    monkeypatch.setenv("GRIT_MODEL", "gritlm-7b")
    run = grit("doctor")
    assert run.out.endswith("\nTo fix this:\n  apt install libopenblas0\n  grit models pull gritlm-7b\n")
    assert json.loads(grit("doctor", "--json").out)["commands"] == [
        "apt install libopenblas0",
        "grit models pull gritlm-7b",
    ]
    monkeypatch.setattr(doctor, "_device", lambda problems: {})
    monkeypatch.delenv("GRIT_MODEL")
    assert grit("doctor").out.endswith("\nNo problems found.\n")


@pytest.mark.parametrize(
    ("problem", "command"),
    [
        ("Download it: grit models pull x", "grit models pull x"),
        ("Choose one: grit models use gritlm-7b (or a folder)", "grit models use gritlm-7b"),
        ("Slow BLAS: install OpenBLAS (Debian and Ubuntu: apt install libopenblas0).", "apt install libopenblas0"),
        ("Nothing to do here.", None),
        ("mlx does not work here: no Metal device", None),
    ],
)
def test_commands_in_problems(problem: str, command: str | None) -> None:
    assert doctor._command_in(problem) == command
