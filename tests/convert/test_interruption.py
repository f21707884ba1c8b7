"""kill -9 at random points, then the same command again: the same bytes as without the interruption."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from grit_mlx.convert import convert
from grit_mlx.errors import OutputError

OPTIONS: dict[str, Any] = {"quantize": True, "group_size": 32, "shard_bytes": 8000, "verify": False}
# Every call that changes what is on the disk is a point at which to die.
EVENTS = ("pwrite", "fsync", "rename", "mkdir", "unlink")


def convert_and_die(source: str, output: str, deadly: int, block: int, counted: Any = None) -> None:
    """Convert in a process of its own that kills itself at the ``deadly``-th change of the disk."""
    from grit_mlx.convert import streaming

    streaming.BLOCK = block  # several blocks even for a tiny weight
    count = 0

    def watched(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any, **keywords: Any) -> Any:
            nonlocal count
            count += 1
            if count == deadly:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **keywords)

        return wrapper

    for name in EVENTS:
        setattr(os, name, watched(getattr(os, name)))
    convert(source, output, **OPTIONS)
    if counted is not None:
        counted.value = count


def run(*arguments: Any) -> int | None:
    # A server that forks before mlx has computed anything: a fresh interpreter each time would take seconds.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["grit_mlx.convert.conversion"])
    process = context.Process(target=convert_and_die, args=arguments)
    process.start()
    process.join(60)
    return process.exitcode


def digest(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_killed_anywhere_it_goes_on_to_the_same_bytes(tiny_mixtral: Path, tmp_path: Path) -> None:
    counted = multiprocessing.get_context("forkserver").Value("i", 0)
    block = 500
    assert run(str(tiny_mixtral), str(tmp_path / "whole" / "out"), 0, block, counted) == 0
    whole = digest(tmp_path / "whole" / "out")
    assert len(whole) > 10 and counted.value > 100
    chosen = random.Random(0)
    resumed = 0
    for attempt in range(10):
        output = tmp_path / str(attempt) / "out"
        assert run(str(tiny_mixtral), str(output), chosen.randrange(1, counted.value), block) == -signal.SIGKILL
        if not output.exists():
            resumed += convert(tiny_mixtral, output, **OPTIONS).resumed
        assert digest(output) == whole
        # Killed after the last rename, the note of what was being made and the lock are all that is left.
        notes = {".out.unfinished.json", ".out.unfinished.lock"}
        assert {path.name for path in output.parent.iterdir()} - {"out"} <= notes
    assert resumed >= 8


def test_other_options_begin_anew(tiny_model: Path, tmp_path: Path) -> None:
    def stop(step: Any) -> None:
        if step.tensors > 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(tiny_model, tmp_path / "out", **OPTIONS, progress=stop)
    unfinished = list((tmp_path / ".out.unfinished").glob("model-*.safetensors"))
    assert unfinished and not (tmp_path / "out").exists()
    report = convert(tiny_model, tmp_path / "out", **{**OPTIONS, "bits": 3})
    assert not report.resumed
    clean = convert(tiny_model, tmp_path / "clean", **{**OPTIONS, "bits": 3})
    names = [path.name for path in clean.folder.iterdir() if path.name != "README.md"]
    assert {n: digest(report.folder)[n] for n in names} == {n: digest(clean.folder)[n] for n in names}


def test_finished_shards_are_not_made_again(tiny_model: Path, tmp_path: Path) -> None:
    def stop(step: Any) -> None:
        if step.tensors > 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(tiny_model, tmp_path / "out", **OPTIONS, progress=stop)
    finished = {path.name: path.stat().st_mtime_ns for path in (tmp_path / ".out.unfinished").glob("model-*")}
    report = convert(tiny_model, tmp_path / "out", **OPTIONS)
    assert report.resumed
    whole = {name: time for name, time in finished.items() if not name.endswith(".part")}
    assert whole and all((tmp_path / "out" / name).stat().st_mtime_ns == time for name, time in whole.items())


def test_two_conversions_to_one_folder(tiny_model: Path, tmp_path: Path) -> None:
    def second(step: Any) -> None:
        with pytest.raises(OutputError, match=rf"Process {os.getpid()} is writing to .*out\. Stop it"):
            convert(tiny_model, tmp_path / "out", **OPTIONS)

    assert convert(tiny_model, tmp_path / "out", **OPTIONS, progress=second).folder.exists()
