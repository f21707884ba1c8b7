"""Cached documents: found by content, checked, kept within a budget, the least recently used removed first.

They are kept in a folder of this machine (``folder``) and, for a store in a bucket, if its machines are to share
them, also in the bucket (``bucket``, ``sharing``). Both reserve room before a document is written, list it only
once it is complete, and remove by the same rule (``budget``).
"""

from __future__ import annotations

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from grit_mlx.errors import ArgumentError, OutputError, first_line
from grit_mlx.rag.caches.folder import CacheFolder
from grit_mlx.rag.caches.kvfiles import bytes_of, layers_from, load_layers, save_layers
from grit_mlx.rag.options import PRECISIONS

if TYPE_CHECKING:
    from grit_mlx.model.caches import TextCache
    from grit_mlx.progress import Progress
    from grit_mlx.rag.caches.sharing import SharedStats, Sharing

__all__ = ["CacheStats", "DocumentCaches", "cache_key"]

logger = logging.getLogger("grit_mlx")

_HEADER_BYTES: Final = 128  # of a file, for each of its arrays, at most


@dataclass(frozen=True)
class CacheStats:
    """What is cached, and what became of documents since the caches were opened."""

    files: int  # on this machine
    bytes: int
    hits: int  # documents that were found
    built: int  # documents that were computed
    damaged: int  # files that were damaged
    shared: SharedStats | None = None  # what is in the bucket; None if nothing is shared, or it cannot be read


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

    Attributes:
        local: the documents on this machine.
        sharing: those that other machines have as well; None if there are none.

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
        self.local = CacheFolder(folder, budget=budget)
        self.sharing: Sharing | None = None
        self.precision = precision
        self._memory = memory
        self._loaded: OrderedDict[str, TextCache] = OrderedDict()
        self._fetched: dict[str, bytes] = {}  # of the bucket, for which there is no room on disk
        self._hits = self._built = self._damaged = 0

    @property
    def folder(self) -> Path:
        """Where the files of this machine are."""
        return self.local.path

    @property
    def budget(self) -> int | None:
        """Maximum size of the files of this machine, in bytes."""
        return self.local.budget

    def __contains__(self, key: str) -> bool:
        return key in self._loaded or any(self.sizes(key))

    def sizes(self, key: str) -> tuple[int, int]:
        """Bytes that loading a document reads from disk and bucket; zeros if it is in memory, or nowhere."""
        if key in self._loaded:
            return 0, 0
        size = self.local.size(key)
        if size or self.sharing is None:
            return size, 0
        return 0, self.sharing.sizes([key]).get(key, 0)

    def fetch(self, documents: Mapping[str, str]) -> None:
        """Bring documents from the bucket to this machine, for ``get`` to find.

        Args:
            documents: the ids of their passages, by their keys.
        """
        if self.sharing is not None and documents:
            found, damaged = self.sharing.fetch(documents)
            self._fetched.update(found)
            self._damaged += damaged

    def get(self, key: str) -> TextCache | None:
        """A cached document; None if it is not cached, or its file is damaged (which removes it)."""
        if key in self._loaded:
            self._loaded.move_to_end(key)
            self._hits += 1
            return self._loaded[key]
        layers = layers_from(self._fetched.pop(key)) if key in self._fetched else self._read(key)
        if layers is not None:
            self._hits += 1
            self._remember(key, layers)
        return layers

    def _read(self, key: str) -> TextCache | None:
        size, crc = self.local.entry(key)
        path = self.local.file(key)
        if not size or not path.exists():
            return None
        try:
            return load_layers(path, crc=crc)
        except FileNotFoundError:  # another process has just made room
            return None
        except (ValueError, OSError) as error:
            if self.local.entry(key) != (size, crc):  # another process has just removed it, or written it anew
                return None
            logger.warning("A cached document is damaged and is computed again: %s", first_line(error))
            self._damaged += 1
            self.local.forget([key])
            return None

    def note_use(self, keys: Iterable[tuple[str, str]]) -> None:
        """Count that documents were used for an answer: (key, id of the passage), cached or not."""
        try:
            self.local.note_use(keys)
        except OutputError as error:  # the answer matters more
            logger.info("The use of documents was not noted: %s", error)
        if self.sharing is not None:
            self.sharing.note_use()

    def forget_loaded(self) -> None:
        """Release what is in memory; the next use reads it from disk."""
        self._loaded.clear()

    def keep(self, key: str, layers: TextCache) -> None:
        """Keep a document that was just computed in memory; ``save`` writes it to disk."""
        self._built += 1
        self._remember(key, layers)

    def save(self, key: str, passage: str, layers: TextCache) -> bool:
        """Write a document, and remove the least recently used ones that the budget has no room for.

        If documents are shared, it is written to the bucket in the background; see ``settle``.

        Returns:
            Whether it was written. A full or read-only disk is not an error, as documents can be computed again: there
            is one warning.
        """
        size = bytes_of(layers, precision=self.precision)
        if self.local.budget is not None and size > self.local.budget:
            return False
        arrays = 2 + 2 * len(layers) * (1 if PRECISIONS[self.precision] is None else 3)
        write = partial(save_layers, layers=layers, precision=self.precision)
        try:
            saved = self.local.save(key, passage, size + _HEADER_BYTES * arrays, write)
        except OutputError as error:
            logger.warning("Documents are not kept on disk: %s", error)
            self.local.budget = 0
            return False
        if saved and self.sharing is not None:
            self.sharing.offer(key)
        return saved

    def share_held(self, keys: Iterable[str]) -> None:
        """Let other machines have those of some documents that are on this one, as far as there is room for them."""
        if self.sharing is not None:
            self.sharing.offer_held(keys)

    def settle(self) -> None:
        """Wait until what is to be written to the bucket is written."""
        if self.sharing is not None:
            self.sharing.settle()

    def stop(self) -> None:
        """Write no more to the bucket than what is on its way."""
        if self.sharing is not None:
            self.sharing.stop()

    def most_used(self, count: int) -> list[str]:
        """Ids of the passages that were used most often on this machine and are not cached on it."""
        return self.local.most_used(count)

    def remove(self, keys: Iterable[str]) -> None:
        """Remove documents, on disk, in the bucket and in memory, and their entries.

        Raises:
            DependencyError: they are shared, and the package for that is missing.
            StoreError: they are shared, and the bucket cannot be written.
        """
        wanted = list(keys)
        for key in wanted:
            self._loaded.pop(key, None)
        if self.sharing is not None:
            self.sharing.forget(wanted)
        self.local.remove(wanted)

    def filled(self) -> float:
        """The share of the budget that is used: of the one that machines share, if they do."""
        stats = self.stats()
        used, budget = stats.bytes, self.local.budget
        if stats.shared is not None:
            used, budget = stats.shared.bytes, stats.shared.budget
        return used / budget if budget else float(budget == 0)

    def stats(self) -> CacheStats:
        """What is cached now."""
        shared = None if self.sharing is None else self.sharing.stats()
        return CacheStats(*self.local.totals(), self._hits, self._built, self._damaged, shared)

    def verify(self, progress: Progress | None = None) -> list[str]:
        """Check every file against its checksum, and remove those that are damaged or unknown; also in the bucket.

        Returns:
            A sentence for each problem.

        Raises:
            DependencyError: documents are shared, and the package for that is missing.
            StoreError: documents are shared, and the bucket cannot be used.
        """
        problems = self.local.verify(progress)
        return problems if self.sharing is None else [*problems, *self.sharing.verify(progress)]

    def _remember(self, key: str, layers: TextCache) -> None:
        self._loaded[key] = layers
        self._loaded.move_to_end(key)
        size = sum(map(bytes_of, self._loaded.values()))
        while len(self._loaded) > 1 and size > self._memory:
            _, oldest = self._loaded.popitem(last=False)
            size -= bytes_of(oldest)
