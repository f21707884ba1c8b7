"""Bringing a store up to date with files: what changed is embedded and written; publishing it is one step."""

from __future__ import annotations

import hashlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from grit_mlx.errors import DependencyError, DocumentError, unreadable
from grit_mlx.rag.schema import NewPassage, SourceFile, rows
from grit_mlx.rag.table import FileState, PassageTable
from grit_mlx.text.blocks import Notes
from grit_mlx.text.kinds import kind_of
from grit_mlx.text.passages import Passage
from grit_mlx.text.walking import Walk, stored_name

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Embed", "IndexPlan", "IndexReport", "PassageWriter", "hash_of", "plan_index"]

logger = logging.getLogger("grit_mlx")

# Passages that are embedded at once; after how many passages or seconds they are written. A process that is killed
# loses no more than that.
_ROWS_AT_ONCE: Final = 512
_ROWS_UNWRITTEN: Final = 8192
_SECONDS_UNWRITTEN: Final = 20.0

_BLOCK_BYTES: Final = 1 << 20

# Vectors (N, E) of passages with their ids; may keep whatever else the pass yields.
Embed = Callable[[Sequence[str], Sequence[Passage]], NDArray[np.float32]]


@dataclass
class IndexReport:
    """What a run of indexing did."""

    added: int = 0  # new files
    changed: int = 0  # files whose content had changed
    unchanged: int = 0  # files that were skipped
    removed: int = 0  # files that were deleted
    passages: int = 0  # that were embedded
    resumed: int = 0  # passages that an interrupted run had embedded
    skipped: Counter[str] = field(default_factory=Counter)  # files that were left out, by the keys of walking.SKIPPED
    problems: list[tuple[str, str]] = field(default_factory=list)  # files that could not be read, with the reason
    kinds: Counter[str] = field(default_factory=Counter)  # suffixes of files that were left out for their kind
    notes: Notes = field(default_factory=Notes)  # warnings about files that were read, and what was left out of them
    total: int = 0  # passages in the store now
    seconds: float = 0.0

    @property
    def failed(self) -> bool:
        """Whether there were files, and none could be read."""
        return bool(self.problems) and not (self.added or self.changed or self.unchanged)


@dataclass(frozen=True)
class _ChangedFile:
    """A file to embed."""

    path: Path
    file: SourceFile
    done: int  # passages that are stored already
    replaces: bool  # whether an older content is stored
    bytes: int


@dataclass
class IndexPlan:
    """What a run of indexing has to do."""

    changed: list[_ChangedFile] = field(default_factory=list)  # to embed
    stale: list[str] = field(default_factory=list)  # keys of stored contents that no file has any more


def hash_of(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    state = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            state.update(block)
    return state.hexdigest()


def plan_index(
    walked: Walk,
    stored: Mapping[str, Mapping[str, FileState]],
    report: IndexReport,
    *,
    fields: Mapping[str, str] | None = None,
    keep_missing: bool = False,
    published: Collection[str] | None = None,
) -> IndexPlan:
    """Compare files with what is stored.

    Args:
        walked: the files.
        stored: ``PassageTable.files``.
        report: counts what is found.
        fields: of tables, by name, the field that holds the text; a table that was read by another one is read again.
        keep_missing: keep the passages of deleted files.
        published: keys of the contents that readers see, if an interrupted run left others. Of files that this run
            does not read only these are kept: incomplete contents must not be published. None if it left nothing.
    """
    plan = IndexPlan()
    present = set()
    for path in walked.files:
        name = stored_name(path)
        present.add(name)
        states = stored.get(name, {})
        try:
            content_hash, size = hash_of(path), path.stat().st_size
        except OSError as error:
            # It may be readable again tomorrow: what is stored of it stays.
            report.skipped["unreadable"] += 1
            report.problems.append((name, unreadable("", error).lstrip()))
            plan.stale += _unfinished(states, published)
            continue
        kind = kind_of(path)
        key = _key(name, content_hash, (fields or {}).get(name))
        file = SourceFile(key, name, content_hash, kind.unit)
        plan.stale += [other for other in states if other != file.key]
        state = states.get(file.key)
        if state is not None and state.complete:
            report.unchanged += 1
            continue
        done = state.rows if state else 0
        replaces = any(other.complete for key, other in states.items() if key != file.key)
        plan.changed.append(_ChangedFile(path, file, done, replaces, size))
        report.resumed += done
    unread = {name for name, _ in (*walked.problems, *report.problems)}
    for name, states in stored.items():
        if name in present:
            continue
        if walked.covers(name) and not keep_missing and not _is_below(name, unread):
            plan.stale += states
            report.removed += 1
        else:
            plan.stale += _unfinished(states, published)
    return plan


def _unfinished(states: Mapping[str, FileState], published: Collection[str] | None) -> list[str]:
    """The keys of contents that an interrupted run did not finish."""
    if published is None:
        return []
    # If what readers see is gone already, the run had written everything and was about to publish.
    kept = {key for key in states if key in published} or {key for key, state in states.items() if state.complete}
    return [key for key in states if key not in kept]


def _is_below(name: str, folders: set[str]) -> bool:
    return any(name == folder or name.startswith(folder + "/") for folder in folders)


def _key(name: str, content_hash: str, field: str | None) -> str:
    parts = [name, content_hash, *([field] if field is not None else [])]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


class PassageWriter:
    """Embeds the files of a plan and appends their passages, a few seconds' worth at a time. Publishes nothing.

    However large a file is, no more than ``_ROWS_UNWRITTEN`` of its passages are held.

    Args:
        table: the newest version of the store.
        embed: makes vectors of passages.
        read: yields the passages of a file.
        report: counts what is done.
        progress: called with bytes done and bytes in all.
    """

    def __init__(
        self,
        table: PassageTable,
        embed: Embed,
        report: IndexReport,
        *,
        read: Callable[[Path], Iterator[Passage]],
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self._table = table
        self._embed = embed
        self._read = read
        self._report = report
        self._progress = progress or (lambda _done, _total: None)
        self._waiting: list[NewPassage] = []  # not embedded yet
        self._unwritten: list[pa.Table] = []
        self._written_at = time.monotonic()

    def write(self, plan: IndexPlan) -> None:
        """Write the changed files. Those that turn out unreadable, binary or damaged are counted and become stale."""
        report = self._report
        total, done = sum(changed.bytes for changed in plan.changed), 0
        for changed in plan.changed:
            self._progress(done, total)
            try:
                count = self._add(changed, done, total)
            except (KeyboardInterrupt, SystemExit):
                self._flush()  # Ctrl-C loses nothing
                raise
            except (DocumentError, DependencyError) as error:
                # What was read of it before the damage is removed again, with everything else that is stale.
                report.skipped["package" if isinstance(error, DependencyError) else "binary"] += 1
                reason = str(error).removeprefix(str(changed.path)).lstrip(" ,:")
                report.problems.append((changed.file.name, reason))
                plan.stale.append(changed.file.key)
            else:
                if not count:
                    report.skipped["empty"] += 1
                report.changed += changed.replaces and count > 0
                report.added += not changed.replaces and count > 0
            done += changed.bytes
        self._embed_waiting()
        self._flush()
        self._progress(total, total)

    def _add(self, changed: _ChangedFile, done: int, total: int) -> int:
        """Returns the number of passages in the file."""
        count = seen = 0
        for number, last, passage in _numbered(self._read(changed.path)):
            count += 1
            seen += len(passage.text)  # about how far it is, if the file is one long table
            if number < changed.done:
                continue
            self._waiting.append(NewPassage(changed.file, number, last, passage))
            if len(self._waiting) >= _ROWS_AT_ONCE:
                self._embed_waiting()
                held = sum(part.num_rows for part in self._unwritten)
                if held >= _ROWS_UNWRITTEN or time.monotonic() - self._written_at > _SECONDS_UNWRITTEN:
                    self._flush()
                self._progress(done + min(seen, changed.bytes), total)
        return count

    def _embed_waiting(self) -> None:
        if self._waiting:
            vectors = self._embed([new.id for new in self._waiting], [new.passage for new in self._waiting])
            self._unwritten.append(rows(self._waiting, vectors))
            self._report.passages += len(self._waiting)
            self._waiting.clear()

    def _flush(self) -> None:
        self._table.add(self._unwritten)
        self._unwritten.clear()
        self._written_at = time.monotonic()


def _numbered(passages: Iterator[Passage]) -> Iterator[tuple[int, bool, Passage]]:
    """Each passage with its number from 0, and whether it is the last."""
    current = next(passages, None)
    number = 0
    while current is not None:
        following = next(passages, None)
        yield number, following is None, current
        current, number = following, number + 1
