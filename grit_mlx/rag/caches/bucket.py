"""Cached documents in a bucket, which the machines that use a store share, with one budget.

``ledger`` is the list of them, as an object that is written only if nobody has written it since it was read; it says
what keeps the bucket within the budget. Here are the requests: a document that is found costs one to read it, and,
unless it was read just now, one for the list; those that are written together cost two for the list, one each, and one
to delete what gives way.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
import zlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Final

from grit_mlx.errors import StoreBusyError, first_line
from grit_mlx.progress import Progress
from grit_mlx.rag.caches.ledger import ABANDONED_SECONDS, Ledger, Shared, object_name
from grit_mlx.rag.caches.objects import Bucket, Version, tag_of

__all__ = ["CacheBucket", "DamagedError", "Reservation"]

logger = logging.getLogger("grit_mlx")

_LIST: Final = "ledger.json"

_FRESH_SECONDS: Final = 2.0  # for which what is not in the list is taken to be nowhere
_WRITING_SECONDS: Final = ABANDONED_SECONDS / 3  # after which no further object is begun: others would not count it
_ATTEMPTS: Final = 30  # to write the list; each time another process was faster
_PAUSE_SECONDS: Final = 0.05


class DamagedError(ValueError):
    """A document is not what was written."""


@dataclass(frozen=True)
class Reservation:
    """Room for documents that are about to be written."""

    token: str
    keys: Collection[str]
    deleted: Collection[str]  # objects that gave way
    until: float  # by this machine's clock


class CacheBucket:
    """The documents of a store that its machines share.

    Args:
        bucket: the folder of the store's caches.
        budget: in bytes, for a list that is not there yet or is lost; else the list has its own.
    """

    def __init__(self, bucket: Bucket, *, budget: int) -> None:
        self._bucket = bucket
        self._budget = budget
        self._lock = threading.RLock()
        self._ledger = Ledger(budget)
        self._version: Version | None = None
        self._read_at = float("-inf")

    @classmethod
    def of(cls, uri: str, budget: int) -> CacheBucket:
        """The documents of the store at an address.

        Raises:
            DependencyError: obstore is not installed.
            StoreError: the address or the credentials are incomplete.
        """
        bucket = Bucket(f"{uri.rstrip('/')}/caches", purpose="Sharing cached documents")
        return cls(bucket, budget=budget)

    def sizes(self, keys: Collection[str]) -> dict[str, int]:
        """Bytes of those documents that are there.

        Raises:
            StoreError: the bucket cannot be read.
        """
        found = {key: one for key in keys if (one := self._find(key)) is not None}
        return {key: one.bytes for key, one in found.items()}

    def read(self, key: str) -> tuple[bytes, int] | None:
        """A document's file, with its checksum; None if it is not there.

        Raises:
            DamagedError: it is not what was written; ``forget`` removes it.
            StoreError: the bucket cannot be read.
        """
        document = self._find(key)
        if document is None:
            return None
        try:
            content, _ = self._bucket.get(object_name(key, document)) or (b"", None)
        except FileNotFoundError:
            with self._lock:
                self._refresh()
                if self._ledger.documents.get(key) != document:  # another process has just made room
                    return None
            raise DamagedError(f"{object_name(key, document)} is missing") from None
        if zlib.crc32(content) != document.crc:
            raise DamagedError(f"{object_name(key, document)} has changed since it was written")
        return content, document.crc

    def reserve(self, sizes: Mapping[str, int]) -> Reservation:
        """Make room for documents, as far as there is room and nobody else is writing them.

        Args:
            sizes: of their files, in bytes, by their keys.

        Raises:
            StoreError: the bucket cannot be written.
        """
        token, started = secrets.token_hex(8), time.monotonic()
        ledger = self._change(lambda ledger, now: ledger.reserved(sizes, token, time=now))
        if len(ledger.mine(token)) < len(sizes) and len(ledger.written) < len(ledger.documents):
            # What another process is writing is in the way. If it is dead, that shows once it is known what time it is.
            self._touch()
            ledger = self._change(lambda ledger, now: ledger.reserved(sizes, token, time=now))
        mine = ledger.mine(token)
        gone = ledger.doomed if mine else frozenset()
        self._bucket.delete(gone)
        return Reservation(token, mine, gone, started + _WRITING_SECONDS)

    def write(self, reserved: Reservation, key: str, content: bytes) -> tuple[int, str] | None:
        """Write a document for which there is room.

        Returns:
            Its checksum and the server's tag; None if it is too late.

        Raises:
            StoreError: the bucket cannot be written.
        """
        if time.monotonic() > reserved.until:
            return None
        name = object_name(key, Shared(reserved.token, len(content), 0))
        version = self._bucket.put(name, content)
        return None if version is None else (zlib.crc32(content), tag_of(version.name))

    def register(self, reserved: Reservation, written: Mapping[str, tuple[int, str]]) -> None:
        """Let documents that were written be found, and give back the room of the others.

        Raises:
            StoreError: the bucket cannot be written.
        """
        token, deleted = reserved.token, reserved.deleted
        ledger = self._change(lambda ledger, _: ledger.registered(token, written, deleted))
        lost = set(written).difference(ledger.mine(token))  # this process was taken for dead
        self._clear(ledger.doomed.intersection(object_name(key, Shared(token, 0, 0)) for key in reserved.keys))
        self._bucket.delete({object_name(key, Shared(token, 0, 0)) for key in lost})

    def forget(self, keys: Collection[str]) -> None:
        """Remove documents.

        Raises:
            StoreError: the bucket cannot be written.
        """
        self._clear(self._change(lambda ledger, _: ledger.forgotten(keys)).doomed)

    def note_use(self, keys: Collection[str]) -> None:
        """Documents were used, so that others give way before them.

        Raises:
            StoreError: the bucket cannot be written.
        """
        if keys:
            self._change(lambda ledger, _: ledger.used(keys))

    def resize(self, budget: int) -> None:
        """Set the budget, in bytes, and remove what it has no room for.

        Raises:
            StoreError: the bucket cannot be written.
        """
        self._budget = budget
        self._clear(self._change(lambda ledger, _: ledger.resized(budget)).doomed)
        if self._version is None:  # the list of a new store, which is as large as it should be
            self._touch()

    def ledger(self) -> Ledger:
        """The list as it is now.

        Raises:
            StoreError: the bucket cannot be read.
        """
        with self._lock:
            if time.monotonic() - self._read_at > _FRESH_SECONDS:
                self._refresh()
            return self._ledger

    def verify(self, progress: Progress | None = None) -> list[str]:
        """Remove what is damaged, what belongs to no document, and what was begun and never finished.

        Sizes and tags are compared as the server lists them: nothing is downloaded.

        Returns:
            A sentence for each problem.

        Raises:
            StoreError: the bucket cannot be read or written.
        """
        listed = {one.name: one for one in self._bucket.list() if one.name != _LIST}
        # After the listing: what has been written since is missing there, and what is unknown here is nobody's.
        self._touch()
        ledger, now = self._ledger, self._version.time if self._version is not None else None
        wrong: dict[str, str] = {}
        for done, (key, document) in enumerate(ledger.written.items(), start=1):
            name = object_name(key, document)
            found = listed.get(name) or self._bucket.head(name)
            if found is None:
                wrong[key] = f"The shared document {name} is missing."
            elif found.bytes != document.bytes or found.tag != document.tag:
                wrong[key] = f"The shared document {name} is damaged; it was removed."
            if progress is not None:
                progress(done, len(ledger.written))
        unfinished = set(ledger.documents).difference(ledger.without_abandoned(now).documents)
        unknown = [name for name in set(listed) - ledger.objects if self._bucket.head(name) is not None]
        newest = self._change(lambda ledger, now: ledger.without_abandoned(now))
        self._clear(newest.doomed)
        # Another process may have removed some, or written them anew.
        wrong = {key: said for key, said in wrong.items() if newest.documents.get(key) == ledger.documents[key]}
        self.forget(wrong)
        self._bucket.delete(unknown)
        return [
            *wrong.values(),
            *(f"The shared document {key} was never finished; it was removed." for key in sorted(unfinished)),
            *(f"The object {name} belongs to no shared document; it was removed." for name in sorted(unknown)),
        ]

    def _find(self, key: str) -> Shared | None:
        with self._lock:
            found = self._ledger.documents.get(key)
            if found is None or not found.is_written:
                found = self.ledger().documents.get(key)
            return found if found is not None and found.is_written else None

    def _clear(self, doomed: Collection[str]) -> None:
        """Delete objects that are doomed."""
        if doomed:
            self._bucket.delete(doomed)
            self._change(lambda ledger, _: ledger.cleared(doomed))

    def _touch(self) -> None:
        """Write the list as it is: its new version tells what time it is."""
        self._change(lambda ledger, _: ledger, always=True)
        with self._lock:
            self._refresh()

    def _change(self, step: Callable[[Ledger, float | None], Ledger], *, always: bool = False) -> Ledger:
        """Commit a step, on the newest version of the list, and return what came of it.

        Args:
            step: makes a version of the list and the time, as far as it is known, the next version; may be called
                several times.
            always: whether to write even what is the same.
        """
        with self._lock:
            if self._version is None:
                self._refresh()
            for attempt in range(_ATTEMPTS):
                now = self._version.time if self._version is not None else None
                made = step(self._ledger, now)
                if made is self._ledger and not always:
                    return made
                version = self._bucket.put(_LIST, made.dump(), instead_of=self._version)
                if version is not None:
                    self._ledger, self._version, self._read_at = made, version, time.monotonic()
                    return made
                if attempt:
                    time.sleep(_PAUSE_SECONDS * min(attempt, 10) * secrets.randbelow(100) / 100)
                self._refresh()
        raise StoreBusyError(f"Many processes write to {self._bucket.uri} at once. Try again later.")

    def _refresh(self) -> None:
        """Read the list, if it is another than the one that is known."""
        known = self._version if self._version is not None and self._version.time is not None else None
        try:
            found = self._bucket.get(_LIST, unless=known)
        except FileNotFoundError:
            self._version = None
            self._ledger = Ledger(self._budget, doomed=self._all())  # a list that was lost: nobody knows what they are
        else:
            if found is not None:
                content, self._version = found
                self._ledger = self._parsed(content)
        self._read_at = time.monotonic()

    def _parsed(self, content: bytes) -> Ledger:
        try:
            ledger = Ledger.parse(content)
        except ValueError as error:
            logger.warning("The list of shared documents was damaged and is started again: %s", first_line(error))
            return Ledger(self._budget, doomed=self._all())
        time_of_it = None if self._version is None else self._version.time
        return ledger if time_of_it is None else ledger.dated(time_of_it)

    def _all(self) -> frozenset[str]:
        return frozenset(one.name for one in self._bucket.list() if one.name != _LIST)
