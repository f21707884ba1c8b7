"""A progress bar on stderr for work that takes a while, shared by the SDK and the command line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Progress", "bar", "reporting"]

# Called with how much is done and how much there is in all, None where that is unknown. What takes long may be done in
# part.
Progress = Callable[[float, "int | None"], None]

# Fewer texts are done before a bar could be read; the official package draws the same line.
_LONG = 256


@contextmanager
def bar(label: str, total: int | None, *, console: Console | None = None) -> Iterator[Progress]:
    """Draw a bar, which goes away when the work is done.

    Args:
        label: what is being done.
        total: how much there is to do; None where that is unknown.
        console: rich's console to draw on; None for stderr.
    """
    from rich.console import Console as RichConsole
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()]
    times = [TimeElapsedColumn(), TimeRemainingColumn()]
    with Bars(*columns, *times, console=console or RichConsole(stderr=True), transient=True) as bars:
        task = bars.add_task(label, total=total)

        def advance(done: float, known: int | None) -> None:
            bars.update(task, completed=done, total=total if known is None else known)

        yield advance


@contextmanager
def reporting(progress: Progress | bool | None, label: str, total: int) -> Iterator[Progress | None]:
    """What to call with the work's progress.

    Args:
        progress: a function; True for a bar, False for nothing, None for a bar where the work is long and stderr is
            a terminal.
        label: what is being done.
        total: how much there is to do.
    """
    if callable(progress):
        yield progress
    elif progress or (progress is None and total >= _LONG and sys.stderr.isatty()):
        with bar(label, total) as advance:
            yield advance
    else:
        yield None
