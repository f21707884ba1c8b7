"""One writer at a time: the second is told who the first is, and gets the lock when that one is done or dead."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from grit_mlx.errors import OutputError, StoreBusyError
from grit_mlx.files.lock import writing

HOLD = """
import sys, time
from pathlib import Path
from grit_mlx.errors import OutputError
from grit_mlx.files.lock import writing
with writing(Path("store"), lock=Path(sys.argv[1]), busy=OutputError):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_killed_holder_is_named_and_gives_the_lock_back(tmp_path: Path) -> None:
    lock = tmp_path / "deeper" / "lock"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(lock)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        message = rf"^Process {process.pid} is writing to store\. Stop it, or wait until it is done \(wait\)\.$"
        with (
            pytest.raises(StoreBusyError, match=message),
            writing(Path("store"), lock=lock, busy=StoreBusyError, wait=0),
        ):
            pass
        process.send_signal(signal.SIGKILL)
    with writing(Path("store"), lock=lock, busy=StoreBusyError):
        assert lock.read_text() == f"process {os.getpid()}"
    assert lock.exists()


def test_waiting(tmp_path: Path) -> None:
    lock, release, waited = tmp_path / "lock", threading.Event(), []
    held = threading.Event()

    def hold() -> None:
        with writing(tmp_path, lock=lock, busy=OutputError):
            held.set()
            release.wait(30)

    def on_wait(holder: str) -> None:
        waited.append(holder)
        release.set()

    other = threading.Thread(target=hold)
    other.start()
    assert held.wait(30)
    with (
        pytest.raises(OutputError, match=r"done \(wait\)\.$"),
        writing(tmp_path, lock=lock, busy=OutputError, wait=0.3, on_wait=waited.append),
    ):
        pass
    with writing(tmp_path, lock=lock, busy=OutputError, wait=30, on_wait=on_wait):
        assert waited == [f"process {os.getpid()}"] * 2
    other.join(30)


def test_a_folder_that_refuses(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(OutputError, match="a part of its path is a file"),
        writing(tmp_path, lock=tmp_path / "file" / "lock", busy=StoreBusyError),
    ):
        pass
