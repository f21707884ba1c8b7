"""One process that leads and others that follow, so that a command runs in one process and computes in all.

Only the leader reads, decides and writes. Where it computes, it tells the others what; they wait for the next thing in
``follow``. Whoever uses a model with a team need not know of it: ``Embedder`` and ``GritLM`` do the telling.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from grit_mlx.model.world import World

__all__ = ["Team"]

_END: Final = "end"


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

    @contextmanager
    def doing(self, job: str, **body: Any) -> Iterator[None]:
        """Do a job in this block, and let the others do it too; only the leader tells.

        Args:
            job: its name.
            **body: what it takes, which JSON can hold.
        """
        self.world.from_first({"job": job, **body})
        self._busy = True
        yield
        self._busy = False

    def end(self) -> None:
        """Let the others end, unless they are in the middle of a job, which this process then leaves."""
        if not self._busy:
            self.world.from_first({"job": _END})

    def follow(self, jobs: Mapping[str, Callable[..., object]]) -> None:
        """Do what the leader tells until it ends.

        Args:
            jobs: what is called, by the name of a job, with its body.

        Raises:
            ProcessError: the leader has ended without a word.
        """
        while (job := (body := self.world.from_first(None)).pop("job")) != _END:
            jobs[job](**body)
