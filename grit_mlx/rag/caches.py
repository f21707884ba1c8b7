"""Cached documents on disk: found by content, checked, kept within a budget, the least recently used removed first.

The files are in a folder, with a small SQLite database that several processes may use at once, also of several machines
if the folder is on a file system that they share. Room is reserved before a file is written, and files appear and
vanish only within a transaction: the folder never holds more than the budget, and no process removes what another has
just written. A file without an entry, an entry without a file and a file that changed all count as "not cached", and
are cleaned up by ``verify``.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
import sqlite3
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from grit_mlx.errors import ArgumentError, OutputError, first_line, unwritable
from grit_mlx.files.atomic import output_errors
from grit_mlx.rag.kvfiles import bytes_of, checksum, load_layers, save_layers
from grit_mlx.rag.options import PRECISIONS

if TYPE_CHECKING:
    from grit_mlx.model.caches import TextCache
    from grit_mlx.progress import Progress

__all__ = ["CacheStats", "DocumentCaches", "cache_key"]

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

_HEADER_BYTES: Final = 128  # of a file, for each of its arrays, at most

# A file that is being written for longer than this belongs to a process that was killed.
_ABANDONED_SECONDS: Final = 600.0


@dataclass(frozen=True)
class CacheStats:
    """What a folder of cached documents holds, and what became of them since it was opened."""

    files: int
    bytes: int
    hits: int  # documents that were found
    built: int  # documents that were computed
    damaged: int  # files that were damaged


def cache_key(model: str, content: str) -> str:
    """The name of a text's cache: one for each text and model, wherever the text stands.

    Args:
        model: the digest of its fingerprint.
        content: the text as it was embedded.
    """
    return hashlib.sha256(f"{model}\0{content}".encode()).hexdigest()[:40]


class DocumentCaches:
    """The cached documents of one store.

    Args:
        folder: where the files are; created when the first one is saved.
        precision: "full", "8" or "4" bits, for what is saved from now on.
        budget: maximum size of all files in bytes; None for no limit, 0 to save none.
        memory: maximum size of loaded caches that are kept for the next use, in bytes.

    Raises:
        ArgumentError: an unknown precision or a negative budget.
    """

    def __init__(
        self, folder: Path, *, precision: str = "full", budget: int | None = None, memory: int = 1 << 28
    ) -> None:
        if precision not in PRECISIONS:
            raise ArgumentError(f"Unknown cache precision {precision!r}: use one of {', '.join(PRECISIONS)}.")
        if budget is not None and budget < 0:
            raise ArgumentError(f"The budget of cached documents must be 0 bytes or more, not {budget}.")
        self.folder = folder
        self.precision = precision
        self.budget = budget
        self._memory = memory
        self._loaded: OrderedDict[str, TextCache] = OrderedDict()
        self._hits = self._built = self._damaged = 0

    def __contains__(self, key: str) -> bool:
        return key in self._loaded or self.size_on_disk(key) > 0

    def size_on_disk(self, key: str) -> int:
        """Bytes that loading a document reads; 0 if it is in memory already, or is not cached."""
        if key in self._loaded:
            return 0
        size, _ = self._entry(key)
        return size if size and self._path(key).exists() else 0

    def get(self, key: str) -> TextCache | None:
        """A cached document; None if it is not cached, or its file is damaged (which removes it)."""
        if key in self._loaded:
            self._loaded.move_to_end(key)
            self._hits += 1
            return self._loaded[key]
        size, crc = self._entry(key)
        path = self._path(key)
        if not size or not path.exists():
            return None
        try:
            layers = load_layers(path, crc=crc)
        except FileNotFoundError:  # another process has just made room
            return None
        except (ValueError, OSError) as error:
            if self._entry(key) != (size, crc):  # another process has just removed it, or written it anew
                return None
            logger.warning("A cached document is damaged and is computed again: %s", first_line(error))
            self._damaged += 1
            self._forget([key])
            return None
        self._hits += 1
        self._remember(key, layers)
        return layers

    def note_use(self, keys: Iterable[tuple[str, str]]) -> None:
        """Count that documents were used for an answer: (key, id of the passage), cached or not."""
        now = time.time()
        try:
            self._write(
                "INSERT INTO caches VALUES (?, ?, 1, ?, 0, 0) "
                "ON CONFLICT (key) DO UPDATE SET uses = uses + 1, last = excluded.last, passage = excluded.passage",
                [(key, passage, now) for key, passage in keys],
            )
        except OutputError as error:  # the answer matters more
            logger.info("The use of documents was not noted: %s", error)

    def forget_loaded(self) -> None:
        """Release what is in memory; the next use reads it from disk."""
        self._loaded.clear()

    def keep(self, key: str, layers: TextCache) -> None:
        """Keep a document that was just computed in memory; ``save`` writes it to disk."""
        self._built += 1
        self._remember(key, layers)

    def save(self, key: str, passage: str, layers: TextCache) -> bool:
        """Write a document, and remove the least recently used ones that the budget has no room for.

        Returns:
            Whether it was written. A full or read-only disk is not an error, as documents can be computed again: there
            is one warning.
        """
        size = bytes_of(layers, precision=self.precision)
        if self.budget is not None and size > self.budget:
            return False
        path = self._path(key)
        temporary = path.with_name(f"{secrets.token_hex(8)}{path.suffix}")
        try:
            with output_errors(str(path)):
                path.parent.mkdir(parents=True, exist_ok=True)
            # Room first, so that the disk never holds more than the budget.
            arrays = 2 + 2 * len(layers) * (1 if PRECISIONS[self.precision] is None else 3)
            if not self._reserve(key, passage, size + _HEADER_BYTES * arrays):
                return False
            save_layers(temporary, layers, precision=self.precision)
            return self._register(key, temporary)
        except (OutputError, OSError, sqlite3.Error) as error:
            with suppress(OutputError):
                self._forget([key])
            logger.warning("Documents are not kept on disk: %s", error)
            self.budget = 0
            return False
        finally:
            with suppress(OSError):
                temporary.unlink()

    def _reserve(self, key: str, passage: str, size: int) -> bool:
        """Make room for a file; False if there is none, or if another process is writing it at this moment."""
        self._entry(key)  # starts a damaged list again
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

    def _register(self, key: str, temporary: Path) -> bool:
        """Let a file that was written be found; False if it has been removed from the list in the meantime."""
        written, crc = temporary.stat().st_size, checksum(temporary)
        with self._transaction() as database:
            reserved = database.execute("SELECT 1 FROM caches WHERE key = ? AND crc = ?", (key, _WRITING)).fetchone()
            if not reserved or not self._make_room(database, written, keeping=key):
                database.execute("UPDATE caches SET bytes = 0, crc = 0 WHERE key = ? AND crc = ?", (key, _WRITING))
                return False
            temporary.replace(self._path(key))
            database.execute("UPDATE caches SET bytes = ?, crc = ? WHERE key = ?", (written, crc, key))
        return True

    def most_used(self, count: int) -> list[str]:
        """Ids of the passages that were used most often and are not cached."""
        statement = "SELECT passage FROM caches WHERE bytes = 0 AND uses > 0 ORDER BY uses DESC, last DESC LIMIT ?"
        return [str(passage) for (passage,) in self._read(statement, count)]

    def remove(self, keys: Iterable[str]) -> None:
        """Remove documents, on disk and in memory, and their entries."""
        wanted = list(keys)
        if self._list.exists():
            self._forget(wanted)
            self._write("DELETE FROM caches WHERE key = ?", [(key,) for key in wanted])

    def stats(self) -> CacheStats:
        """What the folder holds now."""
        counted = "SELECT COUNT(*), TOTAL(bytes) FROM caches WHERE bytes > 0 AND crc != ?"
        [(files, size)] = self._read(counted, _WRITING) or [(0, 0)]
        return CacheStats(files, int(size), self._hits, self._built, self._damaged)

    def verify(self, progress: Progress | None = None) -> list[str]:
        """Check every file against its checksum, and remove those that are damaged or unknown.

        Returns:
            A sentence for each problem.
        """
        problems = []
        known = dict(self._read("SELECT key, crc FROM caches WHERE bytes > 0 AND crc != ?", _WRITING))
        for done, (key, crc) in enumerate(known.items(), start=1):
            path = self._path(key)
            try:
                problem = "" if checksum(path) == crc else "is damaged; it was removed"
            except FileNotFoundError:
                problem = "is missing"
            except (OSError, ValueError) as error:  # an empty file cannot be mapped
                problem = f"cannot be read ({first_line(error).rstrip('.')}); it was removed"
            if problem:
                problems.append(f"The cached document {path.name} {problem}.")
                self._forget([key])
            if progress is not None:
                progress(done, len(known))
        for path in self.folder.glob("*/*"):
            with suppress(FileNotFoundError):
                age = time.time() - path.stat().st_mtime
                if path.stem not in known and age > _ABANDONED_SECONDS:  # else another process is writing it
                    problems.append(f"The file {path.name} belongs to no cached document; it was removed.")
                    path.unlink()
        return problems

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"

    def _remember(self, key: str, layers: TextCache) -> None:
        self._loaded[key] = layers
        self._loaded.move_to_end(key)
        size = sum(map(bytes_of, self._loaded.values()))
        while len(self._loaded) > 1 and size > self._memory:
            _, oldest = self._loaded.popitem(last=False)
            size -= bytes_of(oldest)

    def _make_room(self, database: sqlite3.Connection, size: int, *, keeping: str) -> bool:
        """Remove what the budget has no room for beside a file of some size; False if that is not enough.

        Files that are being written are not removed: they are counted, and not there yet.
        """
        if self.budget is None:
            return True
        others = "SELECT key, bytes, crc, last FROM caches WHERE bytes > 0 AND key != ? ORDER BY last"
        rows = database.execute(others, (keeping,)).fetchall()
        excess = size + sum(held for _, held, _, _ in rows) - self.budget
        abandoned = time.time() - _ABANDONED_SECONDS
        removed = []
        for key, held, crc, last in rows:
            if excess <= 0:
                break
            if crc != _WRITING or last < abandoned:
                removed.append(key)
                excess -= held
        if excess > 0:
            return False
        self._remove_files(database, removed)
        return True

    def _forget(self, keys: list[str]) -> None:
        """They are no longer cached, but the counts of their uses stay."""
        if keys:
            with self._transaction() as database:
                self._remove_files(database, keys)

    def _remove_files(self, database: sqlite3.Connection, keys: list[str]) -> None:
        for key in keys:
            self._loaded.pop(key, None)
            with suppress(OSError):
                self._path(key).unlink()
        database.executemany("UPDATE caches SET bytes = 0, crc = 0 WHERE key = ?", [(key,) for key in keys])

    # The database. A connection for each use costs 0.1 ms, and none is shared between processes or threads.

    @property
    def _list(self) -> Path:
        return self.folder / "caches.sqlite"

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """The list, while no other process changes it or the files."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
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
            for path in (self._list, *self.folder.glob("*/*.safetensors")):
                with suppress(OSError):
                    path.unlink()
            return []

    def _entry(self, key: str) -> tuple[int, int]:
        """Size and checksum of a document's file, if it is cached; else zeros."""
        wanted = "SELECT bytes, crc FROM caches WHERE key = ? AND crc != ?"
        [(size, crc)] = self._read(wanted, key, _WRITING) or [(0, 0)]
        return int(size), int(crc)
