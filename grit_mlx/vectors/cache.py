"""Vectors by key in a SQLite file of bounded size: the least recently used are removed first.

What cannot be read or written is not an error, as vectors can be computed again. Several processes may use one file.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from grit_mlx.errors import first_line

__all__ = ["VectorCache"]

logger = logging.getLogger("grit_mlx")

_TABLE: Final = """
CREATE TABLE IF NOT EXISTS vectors (
    key BLOB PRIMARY KEY,
    used REAL NOT NULL,   -- when it was last used
    vector BLOB NOT NULL  -- float32
)
"""
_WAIT_SECONDS: Final = 10.0
_KEYS_AT_ONCE: Final = 500  # in one SQL expression
_KEY_BYTES: Final = 64  # of a row, beside its vector
_ROOM: Final = 0.9  # of the budget that is left filled when something is removed


class VectorCache:
    """Vectors of one file.

    Args:
        path: the file; made, with its folder, when the first vector is kept.
        budget: maximum size of all vectors in bytes.
    """

    def __init__(self, path: Path, *, budget: int) -> None:
        self.path = path
        self.budget = budget

    def get(self, keys: Sequence[bytes]) -> dict[bytes, NDArray[np.float32]]:
        """The vectors ``(E,)`` that are known, by their keys; they count as used."""
        found: dict[bytes, NDArray[np.float32]] = {}
        if not self.path.exists():
            return found

        def read(database: sqlite3.Connection) -> None:
            for start in range(0, len(keys), _KEYS_AT_ONCE):
                part = keys[start : start + _KEYS_AT_ONCE]
                rows = database.execute(
                    f"SELECT key, vector FROM vectors WHERE key IN ({','.join('?' * len(part))})", part
                )
                found.update((key, np.frombuffer(vector, np.float32)) for key, vector in rows)
            now = time.time()
            database.executemany("UPDATE vectors SET used = ? WHERE key = ?", [(now, key) for key in found])

        self._try(read)
        return {key: vector for key, vector in found.items() if np.isfinite(vector).all()}

    def keep(self, vectors: Mapping[bytes, NDArray[np.float32]]) -> None:
        """Keep vectors ``(E,)``, and remove the least recently used ones that the budget has no room for."""
        if not vectors or self.budget <= 0:
            return

        def write(database: sqlite3.Connection) -> None:
            now = time.time()
            rows = ((key, now, np.ascontiguousarray(one, np.float32).tobytes()) for key, one in vectors.items())
            database.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?, ?)", rows)
            self._make_room(database)

        self._try(write)

    def _make_room(self, database: sqlite3.Connection) -> None:
        count, size = database.execute("SELECT COUNT(*), TOTAL(LENGTH(vector)) FROM vectors").fetchone()
        total = size + count * _KEY_BYTES
        if total <= self.budget:
            return
        removed: list[tuple[bytes]] = []
        for key, length in database.execute("SELECT key, LENGTH(vector) FROM vectors ORDER BY used, key"):
            if total <= _ROOM * self.budget:
                break
            removed.append((key,))
            total -= length + _KEY_BYTES
        database.executemany("DELETE FROM vectors WHERE key = ?", removed)

    def _try(self, use: Any) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self.path, timeout=_WAIT_SECONDS)) as database, database:
                database.execute(_TABLE)
                use(database)
        except sqlite3.OperationalError as error:  # locked, full, read-only
            logger.info("The cache of vectors was not used: %s", first_line(error))
        except sqlite3.DatabaseError as error:
            logger.info("The cache of vectors was damaged and is started again: %s", first_line(error))
            with suppress(OSError):
                self.path.unlink()
        except OSError as error:
            logger.info("The cache of vectors was not used: %s", first_line(error))
