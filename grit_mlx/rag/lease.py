"""One writer at a time for a store that several machines share: a lease that is kept in the store itself.

A file's lock holds for the processes of one machine. Here a row of a small table names who is writing. Taking the
lease, renewing and returning it are updates that name the token they replace, and Lance commits an update only if
nobody else has committed one since (on S3 by conditional writes), so of any number of processes one succeeds.

A writer that dies leaves its row behind. Others take the lease over once nothing has renewed it for ``_EXPIRES``,
counted by their own clock: those of two machines may differ. A writer that was suspended for so long finds at its next
step that the lease is another's, and writes no more.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final

from grit_mlx.errors import GritError, Option, StoreBusyError, StoreError
from grit_mlx.rag.database import connected, lance_errors, sql_text, table_names

__all__ = ["Lease"]

logger = logging.getLogger("grit_mlx")

_TABLE: Final = "writer"
_EXPIRES: Final = 60.0  # seconds without a renewal
_RENEWED: Final = 15.0  # how often it is renewed
_POLLED: Final = 2.0
_ATTEMPTS: Final = 5  # at what another writer may be doing at the same moment
_LOSSES: Final = 50  # races for a free lease; somebody wins each
_OLD: Final = timedelta(hours=1)  # versions of the table that are removed


@dataclass(frozen=True)
class _Row:
    """Who has the lease. The token is "" if nobody has it."""

    token: str
    machine: str
    holder: str  # in words
    renewals: int
    time: float  # of the last one, by the holder's clock


_NOBODY = _Row("", "", "", 0, 0.0)


class Lease:
    """The right to write to a store.

    Args:
        uri: the store.
        folder: a folder of this machine, which gets a file that tells the machine from others.
        clock: what this machine takes for the time.
    """

    def __init__(self, uri: str, folder: Path, *, clock: Callable[[], float] = time.time) -> None:
        self.uri = uri
        self._folder = folder
        self._clock = clock
        self._token = ""
        self._renewed_at = (0.0, 0.0)
        self._ended = threading.Event()

    def holder(self) -> str | None:
        """Who is writing, such as ``"process 12 on mini"``; None if nobody seems to be."""
        database = connected(self.uri)
        with lance_errors(self.uri):
            if _TABLE not in table_names(database):
                return None
            row = _read(database.open_table(_TABLE))
        return row.holder if self._is_fresh(row) else None

    @contextmanager
    def held(self, *, wait: float = 0.0, on_wait: Callable[[str], None] | None = None) -> Iterator[None]:
        """Have the lease, renewed by a thread.

        Args:
            wait: seconds to wait for another writer.
            on_wait: called once with who is waited for.

        Raises:
            StoreBusyError: another machine is writing.
            StoreError: the store cannot be reached.
        """
        self._acquire(wait, on_wait)
        self._ended.clear()
        renewing = threading.Thread(target=self._keep_renewing, name="grit-lease", daemon=True)
        renewing.start()
        try:
            yield
        finally:
            self._ended.set()
            renewing.join()
            self._release()

    def check(self) -> None:
        """To be called before each write.

        Raises:
            StoreBusyError: another process has taken the lease over.
        """
        if self._age() > _EXPIRES / 2 and not self._renew():
            raise StoreBusyError(
                f"This process stopped responding for a minute, and another one is writing to {self.uri}. Run the same "
                "command again when that is done: what was embedded so far is stored."
            )

    def _acquire(self, wait: float, on_wait: Callable[[str], None] | None) -> None:
        token, deadline = secrets.token_hex(8), time.monotonic() + wait
        seen: _Row | None = None
        since, moved, told, lost = time.monotonic(), False, False, 0
        while True:
            row = self._attempted(self._row)
            if row != seen:
                seen, since, moved = row, time.monotonic(), seen is not None
            # The file's lock is ours, so a holder on this machine is dead.
            if not row.token or row.machine == self._machine or time.monotonic() - since > _EXPIRES:
                if self._attempted(partial(self._replace, row, token)):
                    return
                lost += 1
                if lost == _LOSSES:
                    raise StoreBusyError(f"Several processes want to write to {self.uri} at once. Try again later.")
                time.sleep(_POLLED * secrets.randbelow(100) / 1000)
                continue
            alive = moved or self._is_fresh(row)
            if alive and time.monotonic() >= deadline:
                raise StoreBusyError(
                    f"{row.holder.capitalize()} is writing to {self.uri}. Stop it, or wait until it is done (",
                    Option("wait"),
                    ").",
                )
            if not told and on_wait is not None:
                on_wait(row.holder if alive else f"{row.holder}, which seems to have died,")
            told = True
            time.sleep(_POLLED)

    def _is_fresh(self, row: _Row) -> bool:
        """Whether somebody has the lease, as far as the clocks of two machines can tell."""
        return bool(row.token) and self._clock() - row.time < _EXPIRES

    def _row(self) -> _Row:
        """The row as it is now, made if there is none."""
        database = connected(self.uri)
        with lance_errors(self.uri):
            if _TABLE in table_names(database):
                self._table = database.open_table(_TABLE)
            else:
                self._table = database.create_table(_TABLE, [vars(_NOBODY)])
                if self._table.version > 1:  # another machine made it since, and maybe took it: that holds
                    self._table.checkout(self._table.version - 1)
                    self._table.restore()
            return _read(self._table)

    def _replace(self, row: _Row, token: str) -> bool:
        """Whether the lease went from a holder to this process."""
        mine = _Row(token, self._machine, f"process {os.getpid()} on {socket.gethostname()}", 0, self._clock())
        at = _now()
        taken = self._changed(f"token = {sql_text(row.token)} AND renewals = {row.renewals}", vars(mine))
        if taken:
            self._token, self._renewals, self._renewed_at = token, 0, at
        return taken

    def _renew(self) -> bool:
        """Whether the lease is still this process's."""
        at = _now()
        values = {"renewals": self._renewals + 1, "time": self._clock()}
        kept = self._changed(f"token = {sql_text(self._token)}", values)
        if kept:
            self._renewals, self._renewed_at = self._renewals + 1, at
        return kept

    def _changed(self, where: str, values: dict[str, Any]) -> bool:
        """Whether there was such a row, which is changed now; after a conflict the next try sees what came between."""
        try:
            with lance_errors(self.uri):
                return bool(self._table.update(where=where, values=values).rows_updated)
        except StoreError:
            with suppress(StoreError, NotImplementedError), lance_errors(self.uri):
                self._table.checkout_latest()
            raise

    def _keep_renewing(self) -> None:
        while not self._ended.wait(_RENEWED):
            try:
                if not self._renew():
                    return  # ``check`` tells
            except GritError as error:  # the network may be back before the lease expires; if not, a write tells
                logger.debug("The lease of %s was not renewed: %s", self.uri, error)

    def _release(self) -> None:
        """Give the lease back; if that fails it expires."""
        with suppress(GritError, NotImplementedError):
            self._changed(f"token = {sql_text(self._token)}", vars(_NOBODY))
            with lance_errors(self.uri):
                self._table.optimize(cleanup_older_than=_OLD)

    def _age(self) -> float:
        """Seconds since it was renewed. One clock stops while a machine sleeps, and the other may be set."""
        return max(now - then for now, then in zip(_now(), self._renewed_at, strict=True))

    def _attempted(self, step: Callable[[], Any]) -> Any:
        """What a step returns, tried again if another process came between."""
        for attempt in range(_ATTEMPTS):
            try:
                return step()
            except StoreError:
                if attempt == _ATTEMPTS - 1:
                    raise
                time.sleep(_POLLED * (attempt + secrets.randbelow(100) / 100) / 10)
        raise AssertionError

    @property
    def _machine(self) -> str:
        """A name of this machine that no other has."""
        path = self._folder / "machine"
        with suppress(FileExistsError), path.open("x", encoding="ascii") as file:
            file.write(secrets.token_hex(8))
        return f"{socket.gethostname()} {path.read_text(encoding='ascii')}"


def _now() -> tuple[float, float]:
    return time.monotonic(), time.time()


def _read(table: Any) -> _Row:
    [row] = table.to_arrow().to_pylist()
    return _Row(**row)
