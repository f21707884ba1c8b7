"""One writer at a time: a lock that the system releases when its holder dies, however that happens."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from grit_mlx.errors import GritError, Option
from grit_mlx.files.atomic import output_errors

__all__ = ["writer_of", "writing"]

_POLL_SECONDS = 0.2


@contextmanager
def writing(
    target: Path | str,
    *,
    lock: Path,
    busy: type[GritError],
    wait: float | None = None,
    on_wait: Callable[[str], None] | None = None,
) -> Iterator[None]:
    """Hold the lock of what is written.

    Args:
        target: what is written, for messages.
        lock: the lock's file, made with its folder. It stays, and names its last holder.
        busy: raised if another process, or another thread of this one, holds the lock.
        wait: seconds to wait for it; None if the caller offers no waiting.
        on_wait: called once with who is waited for, such as ``"process 123"``.

    Raises:
        GritError: ``busy``.
        OutputError: the file cannot be made.
    """
    with output_errors(str(lock)):
        lock.parent.mkdir(parents=True, exist_ok=True)
        held = FileLock(lock)
        try:
            _acquire(held, wait or 0.0, on_wait)
        except Timeout:
            advice = (".",) if wait is None else (" (", Option("wait"), ").")
            holder = _holder(held).capitalize()
            raise busy(f"{holder} is writing to {target}. Stop it, or wait until it is done", *advice) from None
        lock.write_text(f"process {os.getpid()}", encoding="ascii")
    try:
        yield
    finally:
        held.release()


def writer_of(lock: Path) -> str | None:
    """Who holds a lock now, such as ``"process 123"``; None if nobody does, or it cannot be read."""
    if not lock.is_file():
        return None
    held = FileLock(lock)
    try:
        held.acquire(timeout=0)
    except Timeout:
        return _holder(held)
    except OSError:
        return None
    held.release()
    return None


def _acquire(lock: BaseFileLock, wait: float, on_wait: Callable[[str], None] | None) -> None:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if wait <= 0:
            raise
        if on_wait is not None:
            on_wait(_holder(lock))
        lock.acquire(timeout=wait, poll_interval=_POLL_SECONDS)


def _holder(lock: BaseFileLock) -> str:
    return Path(lock.lock_file).read_text(encoding="ascii", errors="replace") or "another process"
