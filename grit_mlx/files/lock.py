"""One writer at a time: a lock that the system takes back when its holder dies, however that happens."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from grit_mlx.errors import StoreBusyError
from grit_mlx.files.atomic import output_errors

__all__ = ["writing"]

_POLL_SECONDS = 0.2


@contextmanager
def writing(path: Path, *, wait: float = 0.0, on_wait: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold the lock of a store.

    Args:
        path: the lock's file; it stays, and says who held it last.
        wait: seconds to wait for another writer; 0 not to.
        on_wait: called once with who is waited for.

    Raises:
        StoreBusyError: another process holds it.
        OutputError: the file cannot be made.
    """
    with output_errors(str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        _acquire(file, path, wait, on_wait)
        os.ftruncate(file, 0)
        os.pwrite(file, f"process {os.getpid()}".encode(), 0)
        yield
    finally:
        os.close(file)  # which gives the lock back


def _acquire(file: int, path: Path, wait: float, on_wait: Callable[[str], None] | None) -> None:
    end = time.monotonic() + wait
    told = False
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
        holder = os.pread(file, 64, 0).decode("ascii", "replace") or "another process"
        if time.monotonic() >= end:
            raise StoreBusyError(
                f"{holder.capitalize()} is writing to {path.parent}. Wait until it is done, or stop it; "
                "--wait SECONDS waits."
            )
        if on_wait is not None and not told:
            on_wait(holder)
            told = True
        time.sleep(_POLL_SECONDS)
