"""What one machine takes from the cached documents in a bucket, and gives to them.

Nothing here makes an answer fail or wait for more than a document that it reads. What this machine has computed is
written in the background, from its own folder of cached documents, which also keeps a copy of what was read. A bucket
that cannot be used is warned of once, and tried again after some minutes.
"""

from __future__ import annotations

import json
import logging
import threading
import time
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from grit_mlx.errors import DependencyError, OutputError, StoreError, first_line
from grit_mlx.rag.caches.bucket import CacheBucket, DamagedError
from grit_mlx.rag.caches.folder import CacheFolder

if TYPE_CHECKING:
    from grit_mlx.progress import Progress

__all__ = ["SharedStats", "Sharing"]

logger = logging.getLogger("grit_mlx")

T = TypeVar("T")

_PAUSE_SECONDS: Final = 300.0  # after a failure, in which documents are not shared
_NOTED_SECONDS: Final = 60.0  # how often the bucket learns what was used here
_DOWNLOADS: Final = 4  # at once
_WRITTEN_AT_ONCE: Final = 8  # for whose room there is one request
_WAITING: Final = 64  # documents that wait to be written; who has more waits for them

# Bytes per second, until it was measured here, and again after a day: what seems too slow is not tried.
_DOWNLOAD_RATE: Final = 1e8
_MEASURED_SECONDS: Final = 86400.0


@dataclass(frozen=True)
class SharedStats:
    """What the machines that use a store share."""

    files: int
    bytes: int
    budget: int


class Sharing:
    """This machine's side of the documents that machines share.

    Args:
        local: its own documents.
        connect: makes the connection to the bucket when it is first needed.
    """

    def __init__(self, local: CacheFolder, connect: Callable[[], CacheBucket]) -> None:
        self._local = local
        self._connect = connect
        self._connected: CacheBucket | None = None
        self._lock = threading.Lock()
        self._waiting: dict[str, None] = {}  # in order
        self._pool: ThreadPoolExecutor | None = None
        self._jobs: list[Future[None]] = []
        self._paused_until = {"read": float("-inf"), "write": float("-inf")}
        self._warned = self._stopped = False

    @property
    def bucket(self) -> CacheBucket:
        """The documents in the bucket.

        Raises:
            DependencyError: a package is missing.
            StoreError: the address or the credentials are incomplete.
        """
        with self._lock:
            if self._connected is None:
                self._connected = self._connect()
            return self._connected

    @property
    def bytes_per_second(self) -> float:
        """How fast documents come from the bucket to this machine, as far as that was measured."""
        noted = self._noted()
        if abs(time.time() - noted.get("measured", 0.0)) > _MEASURED_SECONDS:
            return _DOWNLOAD_RATE
        return float(noted.get("bytes_per_second", _DOWNLOAD_RATE))

    def sizes(self, keys: Collection[str]) -> dict[str, int]:
        """Bytes of the documents that are in the bucket."""
        nowhere: dict[str, int] = {}
        return self._attempted(lambda bucket: bucket.sizes(keys), nowhere)

    def fetch(self, documents: Mapping[str, str]) -> tuple[dict[str, bytes], int]:
        """Bring documents to this machine.

        Args:
            documents: the ids of their passages, by their keys.

        Returns:
            The files of those for which there is no room on disk, and the number of those that were damaged.
        """
        found = self.sizes(documents)
        if not found:
            return {}, 0
        started = time.monotonic()
        with ThreadPoolExecutor(min(_DOWNLOADS, len(found))) as pool:
            read = list(pool.map(self._read, found))
        contents = {key: content for key, content in zip(found, read, strict=True) if isinstance(content, bytes)}
        self._measure(sum(map(len, contents.values())), time.monotonic() - started)
        kept = {key for key, content in contents.items() if self._keep(key, documents[key], content)}
        damaged = sum(isinstance(content, DamagedError) for content in read)
        return {key: content for key, content in contents.items() if key not in kept}, damaged

    def offer(self, key: str) -> None:
        """Let others have a document that this machine keeps; its file is read later, and may be gone by then."""
        with self._lock:
            self._waiting[key] = None
            waiting = len(self._waiting)
        self._in_background(self._give)
        if waiting >= _WAITING:
            self.settle()

    def offer_held(self, keys: Iterable[str]) -> None:
        """Let others have those of some documents that this machine keeps, as far as nothing gives way to them."""
        held = self._local.held()
        there, stats = self.sizes(held), self.stats()
        room = 0 if stats is None else stats.budget - stats.bytes
        for key in keys:
            if key in held and key not in there and held[key] <= room:
                room -= held.pop(key)
                self.offer(key)

    def note_use(self) -> None:
        """Documents were used on this machine; others learn of it once in a while."""
        noted = float(self._noted().get("noted", 0.0))
        if abs(time.time() - noted) < _NOTED_SECONDS:
            return
        self._note(noted=time.time())
        self._in_background(partial(self._tell, noted))

    def settle(self) -> None:
        """Wait until what is to be written is written."""
        with self._lock:
            jobs, self._jobs = self._jobs, []
        for job in jobs:
            job.result()

    def stop(self) -> None:
        """Write no more than the document that is being written."""
        self._stopped = True

    def stats(self) -> SharedStats | None:
        """What is in the bucket; None if it cannot be read."""
        self.settle()
        ledger = self._attempted(lambda bucket: bucket.ledger(), None)
        return None if ledger is None else SharedStats(len(ledger.written), ledger.bytes, ledger.budget)

    def forget(self, keys: Collection[str]) -> None:
        """Remove documents from the bucket.

        Raises:
            DependencyError: a package is missing.
            StoreError: the bucket cannot be written.
        """
        with self._lock:
            for key in keys:
                self._waiting.pop(key, None)
        self.settle()
        self.bucket.forget(keys)

    def verify(self, progress: Progress | None = None) -> list[str]:
        """Remove from the bucket what is damaged or belongs to no document.

        Returns:
            A sentence for each problem.

        Raises:
            DependencyError: a package is missing.
            StoreError: the bucket cannot be used.
        """
        return self.bucket.verify(progress)

    def _read(self, key: str) -> bytes | DamagedError | None:
        def read(bucket: CacheBucket) -> bytes | DamagedError | None:
            try:
                found = bucket.read(key)
                return None if found is None else found[0]
            except DamagedError as error:
                logger.warning("A shared document is damaged and is computed again: %s", first_line(error))
                self._attempted(lambda bucket: bucket.forget([key]), None, to="write")
                return error

        return self._attempted(read, None)

    def _keep(self, key: str, passage: str, content: bytes) -> bool:
        """Whether there is now a copy on this machine."""
        try:
            return self._local.save(key, passage, len(content), lambda path: _write(path, content))
        except OutputError as error:
            logger.info("A shared document was not kept on this machine: %s", error)
            return False

    def _give(self) -> None:
        """Write what waits to be written."""
        while not self._stopped:
            with self._lock:
                batch = list(self._waiting)[:_WRITTEN_AT_ONCE]
                for key in batch:
                    del self._waiting[key]
            if not batch:
                return
            self._attempted(partial(self._put, batch), None, to="write")

    def _put(self, batch: Collection[str], bucket: CacheBucket) -> None:
        there = bucket.sizes(batch)
        sizes = {key: size for key in batch if key not in there and (size := self._local.entry(key)[0])}
        if not sizes:
            return
        reserved = bucket.reserve(sizes)
        written: dict[str, tuple[int, str]] = {}
        try:
            for key in reserved.keys:
                content = None if self._stopped else self._content(key, sizes[key])
                done = None if content is None else bucket.write(reserved, key, content)
                if done is not None:
                    written[key] = done
        finally:
            if reserved.keys:
                bucket.register(reserved, written)

    def _content(self, key: str, size: int) -> bytes | None:
        """A document's file; None if it has given way to others on this machine, or is damaged."""
        _, crc = self._local.entry(key)
        with suppress(OSError):
            content = self._local.file(key).read_bytes()
            return content if len(content) == size and zlib.crc32(content) == crc else None
        return None

    def _tell(self, since: float) -> None:
        keys = self._local.used_since(since)
        self._attempted(lambda bucket: bucket.note_use(keys), None, to="write")

    def _in_background(self, job: Callable[[], None]) -> None:
        """Do it after what is being done. The interpreter waits for it before it ends."""
        with self._lock, suppress(RuntimeError):  # the interpreter is ending
            if self._pool is None:
                self._pool = ThreadPoolExecutor(1, thread_name_prefix="grit-sharing")
            self._jobs = [*(one for one in self._jobs if not one.done()), self._pool.submit(job)]

    def _attempted(self, function: Callable[[CacheBucket], T], default: T, *, to: str = "read") -> T:
        """What a function makes of the bucket; a default if it cannot be used to read or write."""
        if time.monotonic() < self._paused_until[to]:
            return default
        try:
            return function(self.bucket)
        except (DependencyError, OutputError, StoreError) as error:
            for use in ("read", "write") if to == "read" else ("write",):  # who cannot read cannot write either
                self._paused_until[use] = time.monotonic() + _PAUSE_SECONDS
            log = logger.debug if self._warned else logger.warning
            log("Cached documents are not shared for now: %s", error)
            self._warned = True
            return default

    # What this machine remembers between processes

    @property
    def _notes(self) -> Path:
        return self._local.path / "sharing.json"

    def _noted(self) -> dict[str, Any]:
        with suppress(OSError, ValueError):
            noted = json.loads(self._notes.read_bytes())
            if isinstance(noted, dict) and all(isinstance(value, int | float) for value in noted.values()):
                return noted
        return {}

    def _note(self, **values: float) -> None:
        with suppress(OSError):
            self._notes.parent.mkdir(parents=True, exist_ok=True)
            self._notes.write_text(json.dumps({**self._noted(), **values}), encoding="utf-8")

    def _measure(self, size: int, seconds: float) -> None:
        if size:
            self._note(bytes_per_second=size / max(seconds, 1e-6), measured=time.time())


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)
