"""``grit serve`` as a process: its line on the terminal, its signals, what it refuses, and the service."""

from __future__ import annotations

import http.client
import json
import os
import plistlib
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from grit_mlx.server.service import arguments, service

COMMAND = [sys.executable, "-c", "from grit_mlx.cli.main import main; main()", "serve"]


@pytest.fixture
def running(tiny_model: Path) -> Iterator[Any]:
    processes: list[subprocess.Popen[str]] = []

    def begin(*options: object, ready: bool = True) -> tuple[subprocess.Popen[str], int]:
        command = [*COMMAND, "--model", str(tiny_model), "--port", "0", *map(str, options)]
        processes.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
        line = ""
        while ready and "serving" not in line:
            assert processes[-1].stderr is not None
            line = processes[-1].stderr.readline()
            assert line, "it ended"
        return processes[-1], int(line.rpartition(":")[2]) if ready else 0

    yield begin
    for process in processes:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


def request(port: int, body: Any) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("POST", "/v1/chat/completions", json.dumps(body))
    return connection.getresponse()


LONG = {"messages": [{"role": "user", "content": "Tell me all"}], "max_tokens": 200, "stream": True}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_what_runs(running: Any, number: int) -> None:
    process, port = running()
    response = request(port, LONG)
    assert response.read(10)
    process.send_signal(number)
    assert b"[DONE]" in response.read()
    assert process.wait(20) == 0
    assert "Traceback" not in process.stderr.read()


def test_a_second_interrupt_stops_at_once(running: Any) -> None:
    process, port = running()
    response = request(port, {**LONG, "max_tokens": 100_000})
    assert response.read(10)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(2) == 130


def test_a_port_that_is_taken(running: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        process, _ = running("--port", taken.getsockname()[1], ready=False)
        assert process.wait(30) == 1
        message = process.stderr.read()
    assert "choose another one with --port" in message and "Traceback" not in message


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--store", "notes=none"], "There is no store"),
        (["--api-key-file", "none.txt"], "none.txt does not exist"),
        (["--host", "999.1.1.1"], "There is no address"),
        (["--config", "none.yaml"], "does not exist"),
        (["--max-queue", "0"], ""),
        (["--origin", "example.org"], "--origin must be a page's address without a path"),
        (["--store", "a.grit", "--store", "a=b.grit"], "Two stores are called a, a.grit and b.grit. Name one of them"),
    ],
)
def test_what_cannot_start_says_why(running: Any, options: list[str], said: str) -> None:
    process, _ = running(*options, ready=False)
    assert process.wait(60) in (1, 2)
    message = process.stderr.read()
    assert said in message and "Traceback" not in message


def test_settings_from_a_file(running: Any, tmp_path: Path, notes: Path, tiny_model: Path) -> None:
    keys = tmp_path / "keys.txt"
    keys.write_text("# mine\nsecret\n", encoding="utf-8")
    file = tmp_path / "serve.yaml"
    settings = {"stores": {"notes": str(notes / "store")}, "api_key_file": str(keys), "max_queue": 3}
    file.write_text(json.dumps(settings), encoding="utf-8")
    _, port = running("--config", file)
    assert request(port, LONG).status == 401
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", "/v1/models", headers={"Authorization": "Bearer secret"})
    assert [one["id"] for one in json.loads(connection.getresponse().read())["data"]] == [tiny_model.name, "rag:notes"]
    file.write_text("porrt: 9", encoding="utf-8")
    process, _ = running("--config", file, ready=False)
    assert process.wait(30) == 1
    assert "did you mean 'port'" in process.stderr.read()


def test_an_idle_model_is_unloaded_and_comes_back(running: Any) -> None:
    _, port = running("--idle", "0.01")

    def loaded() -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request("GET", "/metrics")
        return b"} 1.0" in connection.getresponse().read()

    deadline = time.monotonic() + 30
    while loaded():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert request(port, {**LONG, "max_tokens": 2}).read().endswith(b"[DONE]\n\n")
    assert request(port, {**LONG, "max_tokens": 2}).status == 200


# The service


def test_a_services_arguments_are_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.grit").mkdir()
    given = {"models": ("notes.grit", "gritlm-7b"), "stores": ("n=notes.grit",), "port": 9000, "token_ids": True}
    folder = str(tmp_path / "notes.grit")
    assert arguments(given) == [
        *("--model", folder, "--model", "gritlm-7b", "--store", f"n={folder}", "--port", "9000", "--token-ids")
    ]


def test_a_launchd_agent(tmp_path: Path) -> None:
    made = service(["/opt/grit", "serve", "--store", "a b=/x & y"], system="darwin", home=tmp_path)
    agent = plistlib.loads(made.content)
    assert agent["ProgramArguments"] == ["/opt/grit", "serve", "--store", "a b=/x & y"]
    assert agent["KeepAlive"] == {"SuccessfulExit": False}
    assert made.path.parent == tmp_path / "Library" / "LaunchAgents"


def test_a_systemd_unit(tmp_path: Path) -> None:
    made = service(["/opt/grit", "serve", "--store", 'a "b"=/100%/$x\\y'], system="linux", home=tmp_path)
    line = next(line for line in made.content.decode().splitlines() if line.startswith("ExecStart="))
    words = shlex.split(line.removeprefix("ExecStart=").replace("%%", "%").replace("$$", "$"))
    assert words == ["/opt/grit", "serve", "--store", 'a "b"=/100%/$x\\y']


def test_install_writes_and_uninstall_removes(tmp_path: Path) -> None:
    environment = {**os.environ, "HOME": str(tmp_path)}

    def run(option: str) -> str:
        done = subprocess.run([*COMMAND, option, "--port", "9000"], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    assert "9000" in Path(run("--install").split(" was written")[0]).read_text(encoding="utf-8")
    assert "was removed" in run("--uninstall")
    assert "there is no" in run("--uninstall")
