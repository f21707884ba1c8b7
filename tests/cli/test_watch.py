"""``grit rag watch`` in a process of its own: what changes in a folder changes in the store."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from grit_mlx.rag import Store

COMMAND = [sys.executable, "-c", "from grit_mlx.cli.main import main; main()"]


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.2)


def test_a_store_is_kept_current(tiny_model: Path, tmp_path: Path) -> None:
    folder, store = tmp_path / "notes", tmp_path / "notes" / ".grit"
    folder.mkdir()
    (folder / "a.txt").write_text("A keel.\n")
    (folder / "b.txt").write_text("A mast.\n")
    settings = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    arguments = ["rag", "watch", folder, "--store", store, "-m", tiny_model, "--exclude", "*.log"]
    process = subprocess.Popen(
        [*COMMAND, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=settings
    )

    def texts() -> list[str]:
        opened = Store(store)
        return sorted(one.text for one in opened.passages()) if opened.exists else []

    try:
        wait_for(lambda: texts() == ["A keel.", "A mast."])
        (folder / "a.txt").write_text("Another keel.\n")
        wait_for(lambda: "Another keel." in texts())
        (folder / "ignored.log").write_text("Noise.\n")
        (folder / "deep").mkdir()
        (folder / "deep" / "c.md").write_text("A buoy.\n")
        wait_for(lambda: "A buoy." in texts())
        (folder / "b.txt").unlink()
        wait_for(lambda: texts() == ["A buoy.", "Another keel."])
    finally:
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert "Traceback" not in error and "watching; Ctrl-C stops" in error
    assert out.startswith("Files: 2 new. ") and len(out.splitlines()) <= 6
