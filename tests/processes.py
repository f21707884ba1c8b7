"""Running a program in several processes, as ``mlx.launch`` does."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from contextlib import ExitStack, suppress
from itertools import count
from pathlib import Path

import pytest

__all__ = ["alone", "finished", "grit", "launch"]

ROOT = Path(__file__).parents[1]

# What stands for the command: the ``grit`` of this checkout.
GRIT = ("-c", "import sys; from grit_mlx.cli.main import main; sys.exit(main())")

_ports = count(10_000 + os.getpid() * 16 % 20_000)  # below those that systems give to connections


def environment(**more: str) -> dict[str, str]:
    """Of processes that compute: one thread each, and this checkout's modules."""
    one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, **one, "PYTHONPATH": path, **more}


def launch(size: int, *arguments: object, cwd: Path | None = None) -> subprocess.Popen[str]:
    """Start Python with some arguments in several processes.

    Returns:
        The launcher, whose stdout and stderr are pipes.
    """
    pytest.importorskip("mlx._distributed_utils.launch", reason="this mlx has no launcher")
    port = _free(size + 1)
    start = "from mlx._distributed_utils.launch import main; main()"
    command = [sys.executable, "-c", start, "-n", size, "-p", port, "--", sys.executable, *arguments]
    return subprocess.Popen(
        list(map(str, command)),
        cwd=cwd,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _free(count: int) -> int:
    """The first of some ports in a row that nobody listens on."""
    while True:
        ports = [next(_ports) for _ in range(count)]
        with ExitStack() as held, suppress(OSError):
            for port in ports:
                held.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return ports[0]


def finished(launcher: subprocess.Popen[str], timeout: float = 600) -> tuple[str, str]:
    """Its stdout and stderr once it has ended; mlx's own complaints are left out."""
    try:
        out, err = launcher.communicate(timeout=timeout)
    finally:
        launcher.kill()  # one that hangs is not to outlive the test
    return out, "".join(line for line in err.splitlines(keepends=True) if not line.startswith(("[ring]", "\x1b[33m")))


def grit(size: int, *arguments: object, cwd: Path | None = None) -> tuple[str, str]:
    """What ``grit`` says in several processes: stdout and stderr."""
    return finished(launch(size, *GRIT, *arguments, cwd=cwd))


def alone(*arguments: object) -> str:
    """What ``grit`` says on stderr in a single process that computes as several do: with as many threads each.

    The number of threads decides in which order products are summed, and so the last bits of a vector.
    """
    command = [sys.executable, *GRIT, *map(str, arguments)]
    done = subprocess.run(
        command, env=environment(), capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stderr
