"""What only a process of its own shows: its streams, its signals, and how fast it starts."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

COMMAND = [sys.executable, "-c", "from grit_mlx.cli.main import main; main()"]


def start(*args: object, **options: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen([*COMMAND, *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def environment(**changes: str) -> dict[str, str]:
    return {**os.environ, **changes}


def test_help_is_there_at_once() -> None:
    def seconds(args: Sequence[str]) -> float:
        times = []
        for _ in range(3):
            started = time.perf_counter()
            subprocess.run([*COMMAND, *args], check=True, capture_output=True)
            times.append(time.perf_counter() - started)
        return min(times)

    # The aim is 0.3 s; a machine under load gets three times as much.
    assert seconds(["--help"]) < 0.9


def imported_by(*arguments: str) -> set[str]:
    """The modules that a run of grit imports."""
    code = (
        "import sys\nfrom grit_mlx.cli.main import app\n"
        "try:\n    app(sys.argv[1:])\nfinally:\n    print(*sys.modules, file=sys.stderr)"
    )
    run = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    return set(run.stderr.split())


@pytest.mark.parametrize(
    ("arguments", "commands"),
    [((), set()), (("--version",), set()), (("embed",), {"embed"}), (("train",), {"train"}), (("rag", "ask"), {"rag"})],
)
def test_help_imports_nothing_heavy(arguments: tuple[str, ...], commands: set[str]) -> None:
    found = imported_by(*arguments, *([] if "--version" in arguments else ["--help"]))
    heavy = {"mlx", "mlx_lm", "transformers", "numpy", "rich", "huggingface_hub", "lancedb", "yaml"}
    assert not heavy & {name.partition(".")[0] for name in found}
    ours = {name.removeprefix("grit_mlx.cli.") for name in found if name.startswith("grit_mlx.cli.")}
    shared = {"console", "inputs", "launch", "loader", "main", "options", "peers", "warm", "wording"}
    if arguments == ("rag", "ask"):
        shared |= {"background", "chat", "generate"}  # whose ways of showing an answer it has
    assert ours - shared == commands


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("grit ra", ["rag"]),
        ("grit rag as", ["ask"]),
        ("grit train --lr", ["--lr-schedule"]),
        ("grit embed --ov", ["--overlap"]),
    ],
)
def test_shells_complete_commands_and_flags(words: str, offered: list[str]) -> None:
    settings = environment(_GRIT_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=str(words.count(" ")))
    run = subprocess.run(COMMAND, env=settings, capture_output=True, text=True, check=False)
    assert run.stdout.split() == offered


def test_a_closed_pipe_is_quiet(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("A sail catches the wind.\n" * 2000)  # far more than a pipe holds
    with start("embed", path, "-m", tiny_model) as process:
        assert process.stdout is not None and process.stderr is not None
        first = json.loads(process.stdout.readline())
        process.stdout.close()
        error = process.stderr.read()
        assert process.wait(60) == 128 + signal.SIGPIPE
    assert first["text"] == "A sail catches the wind."
    assert error == b""


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_an_interrupted_run_leaves_nothing(tiny_model: Path, tmp_path: Path, name: str, code: int) -> None:
    pipe, output = tmp_path / "pipe", tmp_path / "v.npz"
    os.mkfifo(pipe)
    output.write_bytes(b"the vectors of yesterday")
    with start("embed", pipe, "-o", output, "-m", tiny_model) as process:
        with pipe.open("w") as file:  # returns once the model is loaded and the command reads
            file.write("one\n")
            file.flush()
            assert len(list(tmp_path.iterdir())) == 3  # the temporary file is there
            process.send_signal(getattr(signal, name))
            out, error = process.communicate(timeout=60)
        assert (process.returncode, out, error) == (code, b"", b"")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pipe", "v.npz"]
    assert output.read_bytes() == b"the vectors of yesterday"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_behind_stdout(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one\n")
    with Path("/dev/full").open("w") as full:
        command = [*COMMAND, "embed", str(path), "-m", str(tiny_model)]
        run = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    message = "error: Cannot write standard output: the disk is full. Make room, or choose another place.\n"
    assert (run.returncode, run.stderr) == (1, message)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["models"], ["embed", "--help"], ["rag", "-h"]])
def test_a_full_disk_behind_help(arguments: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        run = subprocess.run([*COMMAND, *arguments], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert run.returncode == 1
    assert re.fullmatch(r"error: Cannot write [a-z ]+: the disk is full\. .*\n", run.stderr), run.stderr


def test_other_libraries_add_nothing_to_an_error(tmp_path: Path) -> None:
    pytest.importorskip("pypdfium2", reason="pypdfium2 is not installed")
    path = tmp_path / "a.pdf"
    path.write_bytes(b"%PDF-1.7 and no more")
    run = subprocess.run([*COMMAND, "embed", str(path)], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr == f"error: {path} is damaged, or not a PDF file.\n"


@pytest.mark.parametrize("command", [["embed"], ["search", "wind"], ["generate"]])
@pytest.mark.parametrize("piped", [b"a text\n", b""])
def test_text_that_is_piped_in_without_a_name(command: list[str], piped: bytes) -> None:
    with start(*command, stdin=subprocess.PIPE) as process:
        _, error = process.communicate(piped, timeout=60)
    assert process.returncode == 2 and b"Missing argument" in error
    assert (b"To read standard input, name it: -" in error) == bool(piped)


@pytest.mark.parametrize("kind", ["pipe", "file", "empty", "named"])
def test_text_that_is_piped_in_and_not_read(tiny_model: Path, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.txt"
    path.write_text("" if kind == "empty" else "a text\n")
    arguments = ["generate", "Explain", "-m", str(tiny_model), "--max-tokens", "2", *(["-"] if kind == "named" else [])]
    with path.open("rb") as file:
        stdin = subprocess.PIPE if kind == "pipe" else file
        with start(*arguments, stdin=stdin) as process:
            _, error = process.communicate(b"a text\n" if kind == "pipe" else None, timeout=120)
    assert process.returncode == 0
    assert (b"standard input was not read" in error) == (kind in ("pipe", "file"))


def test_pipes_carry_utf_8_whatever_the_locale_says(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("Zürich 日本語\n", encoding="utf-8")
    settings = environment(LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    with start("search", "wind", path, "-", "-m", tiny_model, env=settings, stdin=subprocess.PIPE) as process:
        out, error = process.communicate("Grüße\n".encode(), timeout=60)
    assert error == b""
    assert sorted(line.split(" ", 2)[2] for line in out.decode("utf-8").splitlines()) == ["Grüße", "Zürich 日本語"]


def on_terminal(*args: object, **changes: str) -> str:
    """What a terminal of 80 columns shows: stdout and stderr, with the escape sequences."""
    import pty

    ours, theirs = pty.openpty()
    settings = environment(TERM="xterm-256color", COLUMNS="80", LINES="40", **changes)
    process = subprocess.Popen(
        [*COMMAND, *map(str, args)], stdin=theirs, stdout=theirs, stderr=theirs, env=settings, close_fds=True
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            block = os.read(ours, 65536)
        except OSError:  # how Linux says that the other side is closed
            break
        if not block:
            break
        shown += block
    process.wait(60)
    os.close(ours)
    return shown.decode("utf-8")


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_a_terminal_gets_progress_a_table_and_colours_unless_unwanted(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("A sail catches the wind.\nText that \x1b[31mcolours\x1b[0m.\n")
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    colourful = on_terminal("embed", path, "-m", tiny_model)
    assert "Embedding" in colourful  # the progress bar
    assert "A sail catches the wind." in colourful
    assert "--output vectors.npz" in colourful
    assert "\\x1b[31mcolours" in colourful
    assert "\x1b[2mnote:" in colourful
    plain = on_terminal("search", "wind", path, "-m", tiny_model, NO_COLOR="1")
    assert "A sail catches the wind." in plain
    assert "\x1b[3" not in plain  # no colour, whatever else
