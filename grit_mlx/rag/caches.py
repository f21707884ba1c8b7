"""Cached documents on disk: found by content, checked, kept within a budget, the least recently used given up first.

The files stand in a folder; what is known of them stands in a small SQLite database beside them, which several
processes may use at once. A file without an entry, an entry without a file, a file that changed: all count as "not
cached", and are tidied up by ``verify``.
"""

from __future__ import annotations

import hashlib
import logging
import sqlite3
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mlx_lm.models.cache import KVCache

from grit_mlx.errors import ArgumentError, OutputError
from grit_mlx.files.atomic import output_errors
from grit_mlx.rag.kvfiles import PRECISIONS, bytes_of, checksum, load_layers, save_layers

__all__ = ["CacheStats", "DocumentCaches", "cache_key"]

logger = logging.getLogger("grit_mlx")

Layers = list[KVCache]

_TABLE: Final = """
CREATE TABLE IF NOT EXISTS caches (
    key TEXT PRIMARY KEY,
    passage TEXT NOT NULL,  -- the id of the row it was made of
    uses INTEGER NOT NULL,  -- how often it was asked for, cached or not
    last REAL NOT NULL,     -- when it was asked for last
    bytes INTEGER NOT NULL, -- of its file; 0 where it is not cached
    crc INTEGER NOT NULL    -- of its file
)
"""
_WAIT_SECONDS: Final = 30.0


@dataclass(frozen=True)
class CacheStats:
    """What a folder of cached documents holds.

    Attributes:
        files: documents that are cached.
        bytes: of their files.
        budget: most bytes; None without a limit.
        hits: documents that were found since this object was made.
        built: documents that were computed since then.
        damaged: files that were found damaged since then, and computed anew.
    """

    files: int
    bytes: int
    budget: int | None
    hits: int
    built: int
    damaged: int


def cache_key(model: str, content: str) -> str:
    """What a text's cache is called: the same text under the same model has the same, wherever it stands.

    Args:
        model: the digest of its fingerprint.
        content: the text as it was embedded.
    """
    return hashlib.sha256(f"{model}\0{content}".encode()).hexdigest()[:40]


class DocumentCaches:
    """The cached documents of one store.

    Args:
        folder: where the files are; it is made when the first is saved.
        precision: a key of ``kvfiles.PRECISIONS``, for what is saved from now on.
        budget: most bytes of all files; None for no limit, 0 to save none.
        memory: most bytes of loaded caches that are kept for the next use.

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
        self._loaded: OrderedDict[str, Layers] = OrderedDict()
        self._hits = self._built = self._damaged = 0

    def __contains__(self, key: str) -> bool:
        return key in self._loaded or self.size_on_disk(key) > 0

    def size_on_disk(self, key: str) -> int:
        """Bytes that loading a document reads; 0 where it is in memory already, or is not cached."""
        if key in self._loaded:
            return 0
        row = self._one("SELECT bytes FROM caches WHERE key = ?", key)
        return int(row[0]) if row and self._path(key).exists() else 0

    def get(self, key: str) -> Layers | None:
        """A cached document; None where it is not cached, or its file turned out damaged (which removes it)."""
        if key in self._loaded:
            self._loaded.move_to_end(key)
            self._hits += 1
            return self._loaded[key]
        row = self._one("SELECT bytes, crc FROM caches WHERE key = ?", key)
        path = self._path(key)
        if row is None or not row[0] or not path.exists():
            return None
        try:
            layers = load_layers(path, crc=int(row[1]))
        except (ValueError, OSError) as error:
            logger.warning("A cached document is damaged and is computed again: %s.", error)
            self._damaged += 1
            self._forget([key])
            return None
        self._hits += 1
        self._remember(key, layers)
        return layers

    def note_use(self, keys: Iterable[tuple[str, str]]) -> None:
        """Count that documents were answered from: (key, id of the passage), cached or not."""
        now = time.time()
        try:
            self._write(
                "INSERT INTO caches VALUES (?, ?, 1, ?, 0, 0) "
                "ON CONFLICT (key) DO UPDATE SET uses = uses + 1, last = excluded.last, passage = excluded.passage",
                [(key, passage, now) for key, passage in keys],
            )
        except OutputError as error:  # the answer is there, and matters more
            logger.info("The use of documents was not noted: %s", error)

    def forget_loaded(self) -> None:
        """Let go of what is in memory; the next use reads it from the disk."""
        self._loaded.clear()

    def keep(self, key: str, layers: Layers) -> None:
        """Hold a document that was just computed in memory; ``save`` puts it on the disk."""
        self._built += 1
        self._remember(key, layers)

    def save(self, key: str, passage: str, layers: Layers) -> bool:
        """Write a document, and give up the least recently used ones that the budget has no room for.

        Returns:
            Whether it was written. A disk that is full or may not be written is no error: documents can always be
            computed again. It is warned of once.
        """
        size = bytes_of(layers, precision=self.precision)
        if self.budget is not None and size > self.budget:
            return False
        path = self._path(key)
        try:
            with output_errors(str(path)):
                path.parent.mkdir(parents=True, exist_ok=True)
            # Room first, so that the disk never holds more than the budget.
            self._make_room(size, keeping=key)
            save_layers(path, layers, precision=self.precision)
            written, crc = path.stat().st_size, checksum(path)
            self._write(
                "INSERT INTO caches VALUES (?, ?, 0, ?, ?, ?) "
                "ON CONFLICT (key) DO UPDATE SET bytes = excluded.bytes, crc = excluded.crc, last = excluded.last",
                [(key, passage, time.time(), written, crc)],
            )
            self._make_room(0, keeping=key)
        except (OutputError, OSError, sqlite3.Error) as error:
            with suppress(OSError):
                path.unlink()
            logger.warning("Documents are not kept on disk: %s", error)
            self.budget = 0
            return False
        return True

    def most_used(self, count: int) -> list[str]:
        """Ids of the passages that were asked for most often and are not cached."""
        statement = "SELECT passage FROM caches WHERE bytes = 0 AND uses > 0 ORDER BY uses DESC, last DESC LIMIT ?"
        rows = self._all(statement, count)
        return [str(row[0]) for row in rows]

    def remove(self, keys: Iterable[str]) -> None:
        """Remove documents, on disk and in memory, and what is known of them."""
        wanted = list(keys)
        if not (self.folder / "caches.sqlite").exists():
            return
        self._forget(wanted)
        self._write("DELETE FROM caches WHERE key = ?", [(key,) for key in wanted])

    def stats(self) -> CacheStats:
        """What there is now."""
        files, size = self._one("SELECT COUNT(*), COALESCE(SUM(bytes), 0) FROM caches WHERE bytes > 0") or (0, 0)
        return CacheStats(int(files), int(size), self.budget, self._hits, self._built, self._damaged)

    def verify(self, progress: Callable[[int, int | None], None] | None = None) -> list[str]:
        """Check every file against its checksum, remove those that are damaged or unknown.

        Returns:
            What was wrong, a sentence each.
        """
        problems = []
        known = dict(self._all("SELECT key, crc FROM caches WHERE bytes > 0"))
        for done, (key, crc) in enumerate(known.items(), start=1):
            path = self._path(key)
            try:
                problem = "" if checksum(path) == crc else "is damaged; it was removed"
            except FileNotFoundError:
                problem = "is gone"
            except (OSError, ValueError) as error:  # an empty file cannot be mapped
                problem = f"cannot be read ({error}); it was removed"
            if problem:
                problems.append(f"The cached document {path.name} {problem}.")
                self._forget([key])
            if progress is not None:
                progress(done, len(known))
        for path in self.folder.glob("*/*"):
            if path.stem not in known and time.time() - path.stat().st_mtime > 60:  # else another process writes it
                problems.append(f"The file {path.name} belongs to no cached document; it was removed.")
                path.unlink(missing_ok=True)
        return problems

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"

    def _remember(self, key: str, layers: Layers) -> None:
        self._loaded[key] = layers
        self._loaded.move_to_end(key)
        size = sum(map(bytes_of, self._loaded.values()))
        while len(self._loaded) > 1 and size > self._memory:
            _, oldest = self._loaded.popitem(last=False)
            size -= bytes_of(oldest)

    def _make_room(self, size: int, *, keeping: str) -> None:
        if self.budget is None:
            return
        rows = self._all("SELECT key, bytes FROM caches WHERE bytes > 0 AND key != ? ORDER BY last", keeping)
        own = self._one("SELECT bytes FROM caches WHERE key = ?", keeping)
        total = sum(int(row[1]) for row in rows) + max(size, int(own[0]) if own else 0)
        given_up = []
        for key, held in rows:
            if total <= self.budget:
                break
            given_up.append(str(key))
            total -= int(held)
        if given_up:
            logger.debug("%d cached documents were given up for the budget.", len(given_up))
            self._forget(given_up)

    def _forget(self, keys: list[str]) -> None:
        """They are no longer cached, but how often they were used stays known."""
        for key in keys:
            self._loaded.pop(key, None)
            with suppress(OSError):
                self._path(key).unlink()
        self._write("UPDATE caches SET bytes = 0, crc = 0 WHERE key = ?", [(key,) for key in keys])

    # The database. A connection for each use: they cost 0.1 ms, and none is shared between processes or threads.

    @contextmanager
    def _database(self, *, create: bool) -> Iterator[sqlite3.Connection | None]:
        path = self.folder / "caches.sqlite"
        if not create and not path.exists():
            yield None
            return
        if create:
            self.folder.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(path, timeout=_WAIT_SECONDS)
        try:
            if create:
                connection.execute(_TABLE)
            with connection:
                yield connection
        finally:
            connection.close()

    def _write(self, statement: str, rows: list[tuple[Any, ...]]) -> None:
        if not rows:
            return
        try:
            with self._database(create=True) as database:
                assert database is not None
                database.executemany(statement, rows)
        except (sqlite3.Error, OSError) as error:
            raise OutputError(f"Cannot write {self.folder / 'caches.sqlite'}: {error}.") from error

    def _all(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        try:
            with self._database(create=False) as database:
                return [] if database is None else database.execute(statement, values).fetchall()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                return []  # locked for half a minute, or without its table: nothing is known to be cached
            # The list is lost, not the answers: everything is computed again.
            logger.warning("The list of cached documents was damaged and is begun anew: %s.", error)
            with suppress(OSError):
                (self.folder / "caches.sqlite").unlink()
            return []

    def _one(self, statement: str, *values: Any) -> tuple[Any, ...] | None:
        rows = self._all(statement, *values)
        return rows[0] if rows else None
