"""One process that leads and others that follow, so that a command runs in one process and computes in all.

Only the leader reads, decides and writes. Where it computes, it tells the others what; they wait for the next thing in
``follow``. Whoever uses a model with a team need not know of it: ``Embedder`` and ``GritLM`` do the telling.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import mlx.core as mx

from grit_mlx.errors import ProcessError, first_line, lost_process
from grit_mlx.model.world import World

__all__ = ["Team"]

_END: Final = "end"
_REST: Final = "rest"


class Team:
    """The processes of a run, the first of which leads.

    Args:
        world: the processes.
        split: how one model is split among them (``options.SPLITS``); None if each has all of it, and a share of the
            work.
    """

    def __init__(self, world: World, *, split: str | None = None) -> None:
        self.world = world
        self.split = split
        self._busy = False

    @property
    def leads(self) -> bool:
        """Whether this process leads."""
        return self.world.is_first

    @property
    def abreast(self) -> int:
        """How many batches are computed at a time."""
        return self.world.size if self.split is None else 1

    @property
    def lost(self) -> ProcessError | None:
        """Why the processes cannot go on together; None as long as they can."""
        return self.world.lost

    @contextmanager
    def doing(self, job: str, **body: Any) -> Iterator[None]:
        """Do a job in this block, and let the others do it too; only the leader tells.

        Args:
            job: its name.
            **body: what it takes, which JSON can hold.

        Raises:
            ProcessError: the processes cannot go on together, now or since earlier.
        """
        self._tell({"job": job, **body})
        self._busy = True
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            # mlx's, in the middle of a computation: the others may wait for what this process does not send any more.
            if self.split is not None and self.lost is None:
                self.world.lost = self._apart(error)
                raise self.world.lost from error
            raise
        self._busy = False

    def rest(self, seconds: float) -> None:
        """Let the others sleep: waiting for a word keeps a processor busy."""
        self._tell({"job": _REST, "seconds": seconds})

    def end(self) -> None:
        """Let the others end, unless they are in the middle of a job, which this process then leaves."""
        if not self._busy:
            self._tell({"job": _END})

    def follow(self, jobs: Mapping[str, Callable[..., object]]) -> None:
        """Do what the leader tells until it ends.

        Args:
            jobs: what is called, by the name of a job, with its body.

        Raises:
            ProcessError: the leader has ended without a word.
        """
        while (job := (body := self._tell({})).pop("job")) != _END:
            if job == _REST:
                time.sleep(body["seconds"])
            else:
                jobs[job](**body)

    def _tell(self, body: Mapping[str, Any]) -> Any:
        with self.world.waiting():
            _settle()
        return self.world.from_first(body)

    def _apart(self, error: BaseException) -> ProcessError:
        reason = f"The model failed in process {self.world.rank} of {self.world.size}: {first_line(error)} "
        return lost_process(error) or ProcessError(f"{reason}Processes that share a model cannot go on apart.")


def _settle() -> None:
    """Wait for what mlx-lm computes ahead: messages go another way, and must not overtake its."""
    from mlx_lm.generate import generation_stream  # brings transformers, which refusing a command does not need

    mx.synchronize(generation_stream)
