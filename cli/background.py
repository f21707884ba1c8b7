"""Work that Ctrl-C stops at its next step, and that answers at once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final, TypeVar

__all__ = ["stoppable"]

T = TypeVar("T")

# Between two looks at whether the work is done: Windows delivers no signal to a thread that waits for ever.
_SECONDS: Final = 0.2


def stoppable(work: Callable[[Callable[[], None]], T], *, on_stop: Callable[[], None]) -> T:
    """Do some work in a thread of its own.

    A step of a large model takes seconds, in which the thread that computes is deaf to signals. So the main thread only
    waits: Ctrl-C is answered there, and ends the work at its next step.

    Args:
        work: called with a function that it calls at each step, which raises KeyboardInterrupt once it is to stop.
        on_stop: called at once when Ctrl-C is pressed. A second press ends everything.

    Returns:
        What the work returns.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed, even if the work came to its end before it was to stop.
    """
    stopping, ended = threading.Event(), threading.Event()
    results: list[T] = []
    errors: list[BaseException] = []

    def check() -> None:
        if stopping.is_set():
            raise KeyboardInterrupt

    def run() -> None:
        from grit_mlx.model.threads import stopped_by  # brings mlx

        try:
            with stopped_by(check):
                results.append(work(check))
        except BaseException as error:
            errors.append(error)
        finally:
            ended.set()

    # Waited for by an event: a thread whose join() is interrupted is taken for one that has ended.
    threading.Thread(target=run, name="grit-work", daemon=True).start()
    try:
        _wait(ended)
    except BaseException as error:  # Ctrl-C, or SystemExit by SIGTERM
        stopping.set()
        if isinstance(error, KeyboardInterrupt):
            on_stop()
        _wait(ended)
        raise
    if errors:
        raise errors[0]
    return results[0]


def _wait(event: threading.Event) -> None:
    while not event.wait(_SECONDS):
        pass
