"""Processes that write cached documents at once, watched, and some of them killed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

__all__ = ["Watched", "watch"]


@dataclass
class Watched:
    """What was seen of them.

    Attributes:
        largest: the most bytes that there were at once.
        seen: names of all that there was.
        looks: how often it was looked.
        said: of each process, whether it ran to the end, and what it said.
    """

    largest: int = 0
    seen: set[str] = field(default_factory=set)
    looks: int = 0
    said: list[tuple[bool, str]] = field(default_factory=list)


def watch(
    program: str,
    arguments: Sequence[Sequence[object]],
    look: Callable[[], Mapping[str, int]],
    *,
    killed: Sequence[int | None],
    seconds: float,
    environment: Mapping[str, str],
) -> Watched:
    """Let processes write, and kill one after the other.

    Args:
        program: each of them runs it; it prints "ready" and goes on until it is killed.
        arguments: of each.
        look: gives sizes by name.
        killed: which is killed after so many seconds each; None for nobody.
        seconds: between two of them.
        environment: of all.
    """
    path = os.pathsep.join(filter(None, sys.path))
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", program, *map(str, own)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**environment, "PYTHONPATH": path},
        )
        for own in arguments
    ]
    found = Watched()
    try:
        for writer in writers:
            assert writer.stdout is not None and writer.stdout.readline() == "ready\n"
        for one in killed:
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                held = look()
                found.seen |= set(held)
                found.largest, found.looks = max(found.largest, sum(held.values())), found.looks + 1
            if one is not None:
                writers[one].kill()
    finally:
        for writer in writers:
            alive = writer.poll() is None
            writer.kill()
            found.said.append((alive, writer.communicate()[0]))
    return found
