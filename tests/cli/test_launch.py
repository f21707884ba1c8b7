"""``grit`` in several processes, as ``mlx.launch`` starts them."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grit_mlx.cli import launch
from grit_mlx.errors import ProcessError
from tests import processes
from tests.cli.conftest import run


def texts(path: Path, count: int) -> Path:
    path.write_text("".join(f"text number {i} of many, about a keel{' and a sail' * (i % 7)}\n" for i in range(count)))
    return path


def test_vectors_are_those_of_one_process(tiny_model: Path, tmp_path: Path) -> None:
    """In every byte; with more processes than batches as well."""
    rows = [{"key": i, "text": f"A ship {'sails ' * (i % 90)}on."} for i in range(300)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ("embed", tmp_path / "rows.jsonl", "-m", tiny_model, "--id", "key", "-o")
    processes.alone(*command, tmp_path / "one.parquet", "-q")
    out, err = processes.grit(2, *command, tmp_path / "two.parquet")
    assert (out, err) == ("", f"note: 300 vectors of 32 numbers -> {tmp_path / 'two.parquet'}\n")
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()
    few = texts(tmp_path / "few.txt", 1)
    processes.alone("embed", few, "-m", tiny_model, "-o", tmp_path / "one.npy", "-q")
    _, err = processes.grit(3, "embed", few, "-m", tiny_model, "-o", tmp_path / "three.npy", "-q")
    assert err == ""
    assert (tmp_path / "one.npy").read_bytes() == (tmp_path / "three.npy").read_bytes()


def test_a_process_that_is_killed_ends_the_others_and_loses_nothing(tiny_model: Path, tmp_path: Path) -> None:
    many, parts = texts(tmp_path / "many.txt", 2100), tmp_path / ".v.npy.part" / "parts.u32"
    command = ("embed", many, "-m", tiny_model, "-o", tmp_path / "v.npy")
    launcher = processes.launch(2, *processes.GRIT, *command)
    deadline = time.monotonic() + 240
    while not (parts.exists() and parts.stat().st_size) and launcher.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process_of(tmp_path, rank=1), signal.SIGKILL)
    _, err = processes.finished(launcher)
    assert err.count("error: ") == 1 and "nother" in err and "has ended" in err, err
    assert "resuming: " in processes.alone(*command)
    processes.alone(*command[:-1], tmp_path / "w.npy", "-q")
    assert (tmp_path / "v.npy").read_bytes() == (tmp_path / "w.npy").read_bytes()
    assert not parts.parent.exists()


def process_of(argument: str | Path, *, rank: int) -> int:
    """The process of a rank that was started with a file of a folder, or another argument that is the test's own."""
    if not Path("/proc").is_dir():
        pytest.skip("needs /proc")
    for path in Path("/proc").glob("[0-9]*"):
        try:
            known = (path / "environ").read_bytes(), (path / "cmdline").read_bytes()
        except OSError:
            continue
        if f"MLX_RANK={rank}\0".encode() in known[0] + b"\0" and os.fsencode(argument) in known[1]:
            return int(path.name)
    raise AssertionError("there is no such process")


def test_a_store_is_that_of_one_process(tiny_model: Path, tmp_path: Path) -> None:
    import lancedb

    texts(tmp_path / "many.txt", 60)
    tables = []
    for size in (1, 2):
        store = tmp_path / f"store-{size}"
        command = ("rag", "index", tmp_path / "many.txt", "--store", store, "-m", tiny_model)
        if size == 1:
            processes.alone(*command, "-q")
        else:
            out, err = processes.grit(size, *command)
            assert "error" not in err and "1 new" in out + err
        tables.append(lancedb.connect(store).open_table("passages").to_arrow().sort_by("id"))
    assert tables[0].num_rows > 3
    assert all(tables[0][name].equals(tables[1][name]) for name in tables[0].column_names)


# What does not run in several processes


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process as the first of two, without the other one."""
    (tmp_path / "hosts.json").write_text(json.dumps([["127.0.0.1:1"], ["127.0.0.1:2"]]))
    monkeypatch.setenv("MLX_HOSTFILE", str(tmp_path / "hosts.json"))
    monkeypatch.setenv("MLX_RANK", "0")
    launch._size.cache_clear()
    monkeypatch.setattr(launch, "_team", lambda: None)
    yield
    launch._size.cache_clear()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("chat",), "'grit chat' runs in one process: start it without mlx.launch. Several processes can run grit"),
        (("rag", "ask", "why?"), "'grit rag ask' runs in one process"),
        (("serve", "--idle", "5"), "--idle does not work in several processes: all keep their parts of the model."),
        (("serve", "-m", "a", "-m", "b"), "Several processes serve one model, split among them: name one."),
        (("serve", "--install"), "A service runs one process: mlx.launch is not part of it."),
        (("embed", "-", "-o", "v.npy"), "Under mlx.launch standard input never ends: write it to a file"),
        (("generate", "why?", "-"), "Under mlx.launch standard input never ends"),
        (("embed", "a text in quotes"), "Several processes write to a file: name one with --output."),
    ],
)
@pytest.mark.usefixtures("two")
def test_what_is_refused(command: tuple[str, ...], message: str) -> None:
    refused = run(*command)
    assert refused.code == 1 and refused.out == "" and message in refused.err


@pytest.mark.usefixtures("two")
def test_the_others_say_nothing_of_what_the_first_one_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLX_RANK", "1")
    refused = run("chat")
    assert (refused.code, refused.out, refused.err) == (1, "", "")


@pytest.mark.parametrize(
    ("variables", "size"),
    [({}, 1), ({"MLX_HOSTFILE": "empty"}, 1), ({"MLX_WORLD_SIZE": "3"}, 3), ({"OMPI_COMM_WORLD_SIZE": "4"}, 4)],
)
def test_how_many_processes_there_are(
    variables: dict[str, str], size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").touch()
    for name in ("MLX_HOSTFILE", "MLX_WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "MLX_IBV_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLX_RANK", "0")
    for name, value in variables.items():
        monkeypatch.setenv(name, str(tmp_path / value) if name == "MLX_HOSTFILE" else value)
    launch._size.cache_clear()
    assert launch._size() == size
    monkeypatch.delenv("MLX_RANK")
    launch._size.cache_clear()
    assert launch._size() == 1, "it was not launched"


def test_splitting_needs_processes(tiny_model: Path) -> None:
    refused = run("generate", "why?", "-m", tiny_model, "--shard", "tensor")
    assert refused.code == 1
    assert "--shard tensor needs several processes: mlx.launch -n 2 grit" in refused.err


def test_models_that_only_have_the_same_name_are_refused() -> None:
    launch._check_equal(["a", "a"])
    with pytest.raises(ProcessError, match="Process 1 of 2 has another model of this name"):
        launch._check_equal(["a", "b"])


class _Team:
    lost = None
    ended = False

    def end(self) -> None:
        self.ended = True


@pytest.mark.usefixtures("two")
def test_who_was_interrupted_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """mlx.launch interrupts all processes, or one has ended: a message to it would never return."""
    for ends in (launch.interrupted, launch.stopped, lambda: None):
        team = _Team()
        monkeypatch.setattr(launch._state, "team", team)
        ends()
        launch.leave()
        assert team.ended is (ends not in (launch.interrupted, launch.stopped))


def test_nothing_waits_once_another_process_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    from grit_mlx.model.world import World

    world: Any = World()
    world.size = 2
    sent = []

    def lose(*_arguments: Any, **_options: Any) -> None:
        sent.append(1)
        raise RuntimeError("[ring] The connection to a peer was lost.")

    for name in ("all_sum", "all_gather"):
        monkeypatch.setattr(f"mlx.core.distributed.{name}", lose)
    waits: list[Callable[[], object]] = [lambda: world.from_first(1), lambda: world.from_all(1)]
    waits.append(lambda: world.arrays_from_all(np.zeros(2)))
    for wait in waits * 2:
        with pytest.raises(ProcessError, match="Another process of this run has ended"):
            wait()
    assert len(sent) == 1


def test_vectors_of_integers_reach_every_process() -> None:
    """A world of one process is the same as none."""
    from grit_mlx.model.world import World

    world: Any = World()
    assert world.from_first({"a": [1, "é"]}) == {"a": [1, "é"]}
    assert world.from_all("x") == ["x"] and world.together(lambda: 3) == 3
    assert np.array(world.share([1, 2])).tolist() == [1, 2]
