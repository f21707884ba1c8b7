"""``grit`` under ``mlx.launch``: which commands run in several processes, and how.

mlx.launch starts the same command in every process. Of a command that computes together, the first process runs it as
if it were alone; the others follow (``grit_mlx.model.team``). A run of training is the same in all of them. What each
machine may do for itself, such as downloading a model, each process does. Everything else is refused: several
processes would write the same files.

mlx.launch passes standard input on, but never ends it, and may cut characters of standard output in two.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

import typer

from grit_mlx.cli import console
from grit_mlx.errors import ArgumentError, GritError, Option, ProcessError
from grit_mlx.model.options import ModelChoice, Sharding

if TYPE_CHECKING:
    from grit_mlx.gritlm import GritLM
    from grit_mlx.model.team import Team

__all__ = [
    "SHARD",
    "STOPPED",
    "abandon",
    "check_alone",
    "end_soon",
    "end_with_launcher",
    "enter",
    "interrupted",
    "leave",
    "led",
    "load",
    "refuse_stdin",
    "split",
    "stopped",
]


# What ``--shard`` does for a command that cannot give each process a share of the work.
SHARD: Final = (
    "Under mlx.launch: split the model among the processes, each layer (tensor, the default) or layer by layer "
    "(pipeline)."
)

# Why a process ends that mlx.launch asks to.
STOPPED: Final = ProcessError("mlx.launch stops this process, because another one has ended.")

# Seconds in which a process ends that has lost another one.
_PATIENCE: Final = 5.0


@dataclass
class _State:
    team: Team | None = None


_state = _State()

_FOLLOWED: Final = ("embed", "generate", "serve", "rag index")
_EACH: Final = ("train", "doctor", "models list", "models info", "models pull", "models use")


def led() -> bool:
    """Whether this process leads others."""
    return _size() > 1


def enter(path: str) -> None:
    """Begin a command, which ``path`` names; in a process that follows, do all of it and exit.

    Raises:
        ArgumentError: it does not run in several processes.
        typer.Exit: it is done.
    """
    if _size() == 1 or path in _EACH:
        return
    if path not in _FOLLOWED:
        if _rank():
            raise typer.Exit(1)  # the first process says why
        raise ArgumentError(
            f"'grit {path}' runs in one process: start it without mlx.launch. Several processes can run "
            f"{', '.join(f'grit {one}' for one in _FOLLOWED)} and grit train."
        )
    if _rank():
        _follow(path)
    console.progress_in_lines()  # mlx.launch passes it on
    _team()


def leave() -> None:
    """Let the others end, at the end of a command, whether it succeeded or not."""
    if _state.team is not None and not _rank():
        with suppress(GritError):  # one of them is gone
            _state.team.end()
        if _state.team.lost is not None:
            abandon(1)


def end_soon(error: GritError | None = None) -> None:
    """See that this process ends, and says why, even if mlx waits for another one that has ended."""

    def end() -> None:
        if error is not None and not console.failed():
            console.error(error)
        abandon(0 if error is None else 1)

    timer = threading.Timer(_PATIENCE, end)
    timer.daemon = True
    timer.start()


def abandon(code: int) -> NoReturn:
    """End this process at once: what it waits for of another one that has ended, mlx would wait for at its exit too."""
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def load(choice: ModelChoice, *, mode: str, split: str | None) -> GritLM:
    """Load a model in all processes, from the one that leads.

    Raises:
        GritError: a process cannot load it, or has another model of this name.
    """
    with _team().doing("load", choice=_plain(choice), mode=mode, split=split):
        return _load(choice, mode, split)


def split(sharding: Sharding) -> str | None:
    """How a command that has to split its model among processes does so; None where there is one process.

    Raises:
        ArgumentError: it is to be split in one process.
    """
    if led():
        return sharding.shard or "tensor"
    check_alone(sharding.shard)
    return None


def check_alone(shard: str | None) -> None:
    """Refuse to split a model in one process.

    Raises:
        ArgumentError: that was asked for.
    """
    if shard is not None:
        raise ArgumentError(Option("shard", shard), " needs several processes: mlx.launch -n 2 grit COMMAND ...")


def end_with_launcher() -> None:
    """Interrupt this process once mlx.launch has ended, killed perhaps: it holds the other end of standard input."""
    if "MLX_RANK" not in os.environ:
        return

    def wait() -> None:
        with suppress(OSError):
            while os.read(0, 1 << 16):
                pass
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=wait, daemon=True).start()


def refuse_stdin() -> None:
    """Refuse to read standard input where it never ends.

    Raises:
        ArgumentError: several processes run.
    """
    if _size() > 1:
        raise ArgumentError("Under mlx.launch standard input never ends: write it to a file, and name that.")


def interrupted() -> None:
    """Forget the others: they were interrupted as well, and whoever waits for one that has ended waits for ever."""
    _state.team = None


def stopped() -> None:
    """Say why this process ends, if it was asked to."""
    interrupted()
    if _size() > 1 and not _rank() and not console.failed():
        console.error(STOPPED)


def _follow(path: str) -> NoReturn:
    # Whatever stops this process may do so in the middle of a computation: it keeps nothing.
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        signal.signal(getattr(signal, name), signal.SIG_DFL)
    console.set_up(quiet=True, verbose=False)
    try:
        jobs: dict[str, Any] = {}

        def load(choice: dict[str, Any], **how: Any) -> None:
            model = _load(ModelChoice(**choice), **how)
            jobs.update(model.jobs)
            if path == "serve":
                from grit_mlx.server.following import served_jobs

                jobs.update(served_jobs(model))

        jobs["load"] = load
        _team().follow(jobs)
    except GritError as error:
        if not getattr(error, "told", False):
            console.error(GritError(f"process {_rank()} of {_size()}: ", *error.parts))
        abandon(1)
    # mlx complains in every process whose neighbour ends before it: the one that a person reads is to be the first.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    with suppress(GritError):
        _team().world.from_first(None)
    os._exit(0)


def _load(choice: ModelChoice, mode: str, split: str | None) -> GritLM:
    from grit_mlx.gritlm import GritLM
    from grit_mlx.rag.fingerprint import digest, fingerprint

    team = _team()
    team.split = split
    if split is not None:
        grit = GritLM.from_choice(choice, mode=mode, team=team)
    else:
        grit = team.world.together(lambda: GritLM.from_choice(choice, mode=mode, team=team))
    found = team.world.from_all(digest(fingerprint(grit)))
    team.world.together(lambda: _check_equal(found))
    return grit


def _check_equal(fingerprints: Sequence[str]) -> None:
    """Refuse models of the processes that only have the same name.

    Raises:
        ProcessError: names the first that is another one.
    """
    for rank, one in enumerate(fingerprints):
        if one != fingerprints[0]:
            raise ProcessError(
                f"Process {rank} of {len(fingerprints)} has another model of this name than the first one. "
                "Copy the model's folder to all machines."
            )


def _plain(choice: ModelChoice) -> dict[str, Any]:
    return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(choice).items()}


def _team() -> Team:
    """The processes, which wait here until all have started."""
    if _state.team is None:
        from grit_mlx.model.team import Team
        from grit_mlx.model.world import World

        _state.team = Team(World())
    return _state.team


def _rank() -> int | None:
    """Of this process, as the launcher says; None if it was not launched."""
    return next((int(value) for name in _RANKS if (value := os.environ.get(name))), None)


@cache
def _size() -> int:
    """The number of processes, as the launcher says; without loading mlx."""
    if _rank() is None:
        return 1
    for name in _SIZES:
        if value := os.environ.get(name):
            return int(value)
    for name in _LISTS:
        try:
            return max(1, len(json.loads(Path(os.environ[name]).read_text(encoding="utf-8"))))
        except (KeyError, OSError, ValueError):  # a single process has an empty file
            continue
    return 1


# What mlx.launch sets for its backends (ring, jaccl, nccl), and mpirun.
_RANKS: Final = ("MLX_RANK", "OMPI_COMM_WORLD_RANK")
_SIZES: Final = ("MLX_WORLD_SIZE", "OMPI_COMM_WORLD_SIZE")
_LISTS: Final = ("MLX_HOSTFILE", "MLX_IBV_DEVICES")
