"""What the tests of stores on other machines share: commands run by machines of their own, and the servers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

__all__ = ["GRIT", "Remote", "notes_in", "serving"]

# A machine of its own, by the folder of its choices.
GRIT = "import sys; from grit_mlx.cli.main import main; sys.exit(main())"


class Remote:
    """A place on a server that an environment names, and machines that use it."""

    def __init__(self, environment: dict[str, str], tmp_path: Path) -> None:
        self.environment = environment
        self.tmp_path = tmp_path

    def start(self, *arguments: str, machine: str = "one", **environment: str) -> subprocess.Popen[str]:
        own = {"GRIT_HOME": str(self.tmp_path / machine), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "AZURE_"))}
        return subprocess.Popen(
            [sys.executable, "-c", GRIT, "rag", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**kept, **self.environment, **own, **environment},
        )

    def run(self, *arguments: str, **environment: str) -> tuple[int, str]:
        process = self.start(*arguments, **environment)
        said, _ = process.communicate(timeout=300)
        return process.returncode, said

    def passages(self, store: str) -> int:
        code, said = self.run("stats", "--store", store)
        assert code == 0, said
        found = re.search(r"passages +([\d,]+)", said)
        assert found
        return int(found[1].replace(",", ""))


def notes_in(folder: Path, *, count: int, sentences: int) -> Path:
    """A folder that is made with notes about boilers, each sentence a paragraph that differs from all others."""
    folder.mkdir()
    for number in range(count):
        about = (f"is about the boiler of house {number * 31 + i}." for i in range(sentences))
        lines = [f"Sentence {i} of note {number} {text}" for i, text in enumerate(about)]
        (folder / f"{number}.md").write_text("\n\n".join(lines))
    return folder


@contextmanager
def serving(command: Sequence[str], folder: Path, **environment: str) -> Iterator[str]:
    """A server that prints where it listens; its address."""
    log = folder / "log"
    with log.open("w") as file:
        server = subprocess.Popen(command, stdout=file, stderr=file, env={**os.environ, **environment}, cwd=folder)
    try:
        deadline = time.time() + 120
        while not (found := re.search(r"http://127\.0\.0\.1:(\d+)", log.read_text())):
            assert server.poll() is None and time.time() < deadline, log.read_text()
            time.sleep(0.1)
        yield found[0]
    finally:
        server.terminate()
        server.wait(30)
