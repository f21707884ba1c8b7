"""Cached documents in a folder, with a small SQLite database that several processes may use at once.

They may also be of several machines, if the folder is on a file system that they share. Room is reserved before a file
is written, and files appear and vanish only within a transaction: the folder never holds more than the budget, and no
process removes what another has just written. A file without an entry, an entry without a file and a file that changed
all count as "not cached", and are cleaned up by ``verify``.
"""

from __future__ import annotations

import logging
import secrets
import sqlite3
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from grit_mlx.errors import OutputError, first_line, unwritable
from grit_mlx.files.atomic import output_errors
from grit_mlx.rag.caches.budget import Held, giving_way
from grit_mlx.rag.caches.kvfiles import checksum

if TYPE_CHECKING:
    from grit_mlx.progress import Progress

__all__ = ["CacheFolder"]

logger = logging.getLogger("grit_mlx")

_TABLE: Final = """
CREATE TABLE IF NOT EXISTS caches (
    key TEXT PRIMARY KEY,
    passage TEXT NOT NULL,  -- id of the passage
    uses INTEGER NOT NULL,  -- how often it was used, cached or not
    last REAL NOT NULL,     -- when it was last used
    bytes INTEGER NOT NULL, -- size of its file; 0 if it is not cached
    crc INTEGER NOT NULL    -- checksum of its file; -1 while that is being written
)
"""
_WRITING: Final = -1
_WAIT_SECONDS: Final = 30.0

# A file that is being written for longer than this belongs to a process that was killed.
_ABANDONED_SECONDS: Final = 600.0


class CacheFolder:
    """The documents that are kept in a folder.

    Args:
        path: of the folder; created when the first document is saved.
        budget: maximum size of all files in bytes; None for no limit, 0 to save none.
    """

    def __init__(self, path: Path, *, budget: int | None) -> None:
        self.path = path
        self.budget = budget

    def size(self, key: str) -> int:
        """Bytes of a document's file; 0 if it is not cached."""
        size, _ = self.entry(key)
        return size if size and self.file(key).exists() else 0

    def entry(self, key: str) -> tuple[int, int]:
        """Size and checksum of a document's file, if it is listed; else zeros."""
        wanted = "SELECT bytes, crc FROM caches WHERE key = ? AND crc != ?"
        [(size, crc)] = self._read(wanted, key, _WRITING) or [(0, 0)]
        return int(size), int(crc)

    def file(self, key: str) -> Path:
        """Where a document's file is, if it is cached."""
        return self.path / key[:2] / f"{key}.safetensors"

    def save(self, key: str, passage: str, size: int, write: Callable[[Path], None]) -> bool:
        """Write a document, and remove the least recently used ones that the budget has no room for.

        Args:
            key: its name.
            passage: id of the passage.
            size: of its file, at most.
            write: writes the file.

        Returns:
            Whether it was written: there may be no room, or another process may be writing it at this moment.

        Raises:
            OutputError: the disk is full, or cannot be written.
        """
        path = self.file(key)
        temporary = path.with_name(f"{secrets.token_hex(8)}{path.suffix}")
        try:
            with output_errors(str(path)):
                path.parent.mkdir(parents=True, exist_ok=True)
                # Room first, so that the disk never holds more than the budget.
                if not self.reserve(key, passage, size):
                    return False
                write(temporary)
                return self.register(key, temporary)
        except OutputError:
            with suppress(OutputError):
                self.forget([key])
            raise
        finally:
            with suppress(OSError):
                temporary.unlink()

    def reserve(self, key: str, passage: str, size: int) -> bool:
        """Make room for a file; False if there is none, or if another process is writing it at this moment."""
        self.entry(key)  # starts a damaged list again
        with self._transaction() as database:
            now = time.time()
            since = database.execute("SELECT last FROM caches WHERE key = ? AND crc = ?", (key, _WRITING)).fetchone()
            if since is not None and now - since[0] < _ABANDONED_SECONDS:
                return False
            if not self._make_room(database, size, keeping=key):
                return False
            database.execute(
                "INSERT INTO caches VALUES (?, ?, 0, ?, ?, ?) "
                "ON CONFLICT (key) DO UPDATE SET bytes = excluded.bytes, crc = excluded.crc, last = excluded.last",
                (key, passage, now, size, _WRITING),
            )
        return True

    def register(self, key: str, temporary: Path) -> bool:
        """Let a file that was written be found; False if it has been removed from the list in the meantime."""
        written, crc = temporary.stat().st_size, checksum(temporary)
        with self._transaction() as database:
            reserved = database.execute("SELECT 1 FROM caches WHERE key = ? AND crc = ?", (key, _WRITING)).fetchone()
            if not reserved or not self._make_room(database, written, keeping=key):
                database.execute("UPDATE caches SET bytes = 0, crc = 0 WHERE key = ? AND crc = ?", (key, _WRITING))
                return False
            temporary.replace(self.file(key))
            database.execute("UPDATE caches SET bytes = ?, crc = ? WHERE key = ?", (written, crc, key))
        return True

    def note_use(self, keys: Iterable[tuple[str, str]]) -> None:
        """Count that documents were used for an answer: (key, id of the passage), cached or not.

        Raises:
            OutputError: the list cannot be written.
        """
        now = time.time()
        self._write(
            "INSERT INTO caches VALUES (?, ?, 1, ?, 0, 0) "
            "ON CONFLICT (key) DO UPDATE SET uses = uses + 1, last = excluded.last, passage = excluded.passage",
            [(key, passage, now) for key, passage in keys],
        )

    def used_since(self, moment: float) -> list[str]:
        """The documents that were used after some time."""
        return [str(key) for (key,) in self._read("SELECT key FROM caches WHERE last > ? ORDER BY last", moment)]

    def most_used(self, count: int) -> list[str]:
        """Ids of the passages that were used most often and are not cached."""
        statement = "SELECT passage FROM caches WHERE bytes = 0 AND uses > 0 ORDER BY uses DESC, last DESC LIMIT ?"
        return [str(passage) for (passage,) in self._read(statement, count)]

    def forget(self, keys: Collection[str]) -> None:
        """They are no longer cached, but the counts of their uses stay.

        Raises:
            OutputError: the list cannot be written.
        """
        if keys:
            with self._transaction() as database:
                self._remove_files(database, keys)

    def remove(self, keys: Collection[str]) -> None:
        """Remove documents and their entries.

        Raises:
            OutputError: the list cannot be written.
        """
        if self._list.exists():
            self.forget(keys)
            self._write("DELETE FROM caches WHERE key = ?", [(key,) for key in keys])

    def held(self) -> dict[str, int]:
        """Bytes of the files of all documents, by their keys."""
        return dict(self._read("SELECT key, bytes FROM caches WHERE bytes > 0 AND crc != ?", _WRITING))

    def totals(self) -> tuple[int, int]:
        """The number of documents, and the bytes of their files."""
        counted = "SELECT COUNT(*), TOTAL(bytes) FROM caches WHERE bytes > 0 AND crc != ?"
        [(files, size)] = self._read(counted, _WRITING) or [(0, 0)]
        return int(files), int(size)

    def verify(self, progress: Progress | None = None) -> list[str]:
        """Check every file against its checksum, and remove those that are damaged or unknown.

        Returns:
            A sentence for each problem.
        """
        problems = []
        known = dict(self._read("SELECT key, crc FROM caches WHERE bytes > 0 AND crc != ?", _WRITING))
        for done, (key, crc) in enumerate(known.items(), start=1):
            path = self.file(key)
            try:
                problem = "" if checksum(path) == crc else "is damaged; it was removed"
            except FileNotFoundError:
                problem = "is missing"
            except (OSError, ValueError) as error:  # an empty file cannot be mapped
                problem = f"cannot be read ({first_line(error).rstrip('.')}); it was removed"
            if problem:
                problems.append(f"The cached document {path.name} {problem}.")
                self.forget([key])
            if progress is not None:
                progress(done, len(known))
        for path in self.path.glob("*/*"):
            with suppress(FileNotFoundError):
                age = time.time() - path.stat().st_mtime
                if path.stem not in known and age > _ABANDONED_SECONDS:  # else another process is writing it
                    problems.append(f"The file {path.name} belongs to no cached document; it was removed.")
                    path.unlink()
        return problems

    def _make_room(self, database: sqlite3.Connection, size: int, *, keeping: str) -> bool:
        """Remove what the budget has no room for beside a file of some size; False if that is not enough.

        Files that are being written are not removed: they are counted, and not there yet.
        """
        if self.budget is None:
            return True
        others = "SELECT key, bytes, last, crc FROM caches WHERE bytes > 0 AND key != ?"
        abandoned = time.time() - _ABANDONED_SECONDS
        held = (
            Held(key, held, last, is_fixed=crc == _WRITING and last >= abandoned)
            for key, held, last, crc in database.execute(others, (keeping,))
        )
        going = giving_way(held, size=size, budget=self.budget)
        if going is not None:
            self._remove_files(database, going)
        return going is not None

    def _remove_files(self, database: sqlite3.Connection, keys: Collection[str]) -> None:
        for key in keys:
            with suppress(OSError):
                self.file(key).unlink()
        database.executemany("UPDATE caches SET bytes = 0, crc = 0 WHERE key = ?", [(key,) for key in keys])

    # The database. A connection for each use costs 0.1 ms, and none is shared between processes or threads.

    @property
    def _list(self) -> Path:
        return self.path / "caches.sqlite"

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """The list, while no other process changes it or the files."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(self._list, timeout=_WAIT_SECONDS, isolation_level=None)
            with closing(connection) as database:  # what was not committed is undone
                database.execute("BEGIN IMMEDIATE")
                database.execute(_TABLE)
                yield database
                database.execute("COMMIT")
        except (sqlite3.Error, OSError) as error:
            raise OutputError(unwritable(self._list, error)) from error

    def _write(self, statement: str, rows: list[tuple[Any, ...]]) -> None:
        if rows:
            with self._transaction() as database:
                database.executemany(statement, rows)

    def _read(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        if not self._list.exists():
            return []
        try:
            with closing(sqlite3.connect(self._list, timeout=_WAIT_SECONDS)) as database:
                return database.execute(statement, values).fetchall()
        except sqlite3.OperationalError:
            return []  # locked for half a minute, or without its table: nothing counts as cached
        except sqlite3.DatabaseError as error:
            # The list is lost, not the answers: everything is computed again.
            logger.warning("The list of cached documents was damaged and is started again: %s", first_line(error))
            # The files as well, whose sizes nobody knows any more.
            for path in (self._list, *self.path.glob("*/*.safetensors")):
                with suppress(OSError):
                    path.unlink()
            return []
