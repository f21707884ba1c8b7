"""Bringing a store up to date with files: what changed, embedded, written, and published in one step."""

from __future__ import annotations

import hashlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from grit_mlx.errors import DependencyError, DocumentError
from grit_mlx.rag.table import FileState, PassageTable
from grit_mlx.text.kinds import kind_of
from grit_mlx.text.passages import Passage
from grit_mlx.text.walking import Walk, stored_name

__all__ = ["Embed", "IndexReport", "Plan", "hash_of", "plan_from", "write_passages"]

logger = logging.getLogger("grit_mlx")

# What is embedded at once, and after how long it is written even if there is room for more: that much is lost when
# the process is killed.
_ROWS_AT_ONCE: Final = 512
_ROWS_UNWRITTEN: Final = 8192
_SECONDS_UNWRITTEN: Final = 20.0

_BLOCK_BYTES: Final = 1 << 20

# Vectors (N, E) of passages, and whatever else their pass is good for; ids tell the rows.
Embed = Callable[[Sequence[str], Sequence[Passage]], NDArray[np.float32]]


@dataclass
class IndexReport:
    """What a run of indexing did.

    Attributes:
        added: files that were new.
        changed: files whose content had changed.
        unchanged: files that were left alone.
        removed: files that are gone.
        passages: that were embedded.
        resumed: passages that an interrupted run had left.
        skipped: files that were left out, by the keys of ``walking.SKIPPED``.
        problems: files that could not be read, with the reason.
        total: passages in the store now.
        seconds: that it took.
    """

    added: int = 0
    changed: int = 0
    unchanged: int = 0
    removed: int = 0
    passages: int = 0
    resumed: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    problems: list[tuple[str, str]] = field(default_factory=list)
    total: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class _Job:
    """A file to embed."""

    path: Path
    name: str
    content_hash: str
    key: str
    done: int  # passages that are stored already
    replaces: bool  # whether an older content is stored
    bytes: int


@dataclass
class Plan:
    """What has to be done.

    Attributes:
        jobs: files to embed.
        stale: keys of contents that the store holds and no file has any more.
        gone: names of files that were deleted.
    """

    jobs: list[_Job] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)


def hash_of(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    state = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            state.update(block)
    return state.hexdigest()


def plan_from(
    walked: Walk,
    stored: Mapping[str, Mapping[str, FileState]],
    report: IndexReport,
    *,
    field: str | None = None,
    keep_missing: bool = False,
    published: Collection[str] | None = None,
) -> Plan:
    """Compare files with what is stored; counts what it finds in ``report``.

    Args:
        walked: the files there are.
        stored: ``PassageTable.files``.
        report: is added to.
        field: of tables, the field that holds the text; a table that was read by another one is read again.
        keep_missing: leave passages of deleted files in the store.
        published: keys of the contents that readers see, where an interrupted run left others beside them. Of files
            that this run does not read only these are kept: it must not publish halves. None where it left nothing.
    """
    plan = Plan()
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
            report.problems.append((name, error.strerror or str(error)))
            plan.stale += _unfinished(states, published)
            continue
        key = _key(name, content_hash, field if kind_of(path).rows else None)
        plan.stale += [other for other in states if other != key]
        state = states.get(key)
        if state is not None and state.complete:
            report.unchanged += 1
            continue
        replaces = any(other.complete for other_key, other in states.items() if other_key != key)
        plan.jobs.append(_Job(path, name, content_hash, key, state.rows if state else 0, replaces, size))
        report.resumed += state.rows if state else 0
    unreadable = {name for name, _ in walked.problems} | {name for name, _ in report.problems}
    for name, states in stored.items():
        if name not in present and not keep_missing and walked.covers(name) and not _lies_in(name, unreadable):
            plan.stale += states
            plan.gone.append(name)
            report.removed += 1
        elif name not in present:
            plan.stale += _unfinished(states, published)
    return plan


def _unfinished(states: Mapping[str, FileState], published: Collection[str] | None) -> list[str]:
    """The keys that an interrupted run left of a file, and did not finish."""
    if published is None:
        return []
    # Where what readers see is gone already, the run had written everything, and was about to be published.
    kept = {key for key in states if key in published} or {key for key, state in states.items() if state.complete}
    return [key for key in states if key not in kept]


def _lies_in(name: str, unreadable: set[str]) -> bool:
    return any(name == other or name.startswith(other + "/") for other in unreadable)


def write_passages(
    table: PassageTable,
    plan: Plan,
    embed: Embed,
    report: IndexReport,
    *,
    read: Callable[[Path], Iterator[Passage]],
    progress: Callable[[int, int | None], None] | None = None,
) -> None:
    """Embed the files of a plan and append their passages, a few seconds' worth at a time.

    A file that turns out unreadable, binary or damaged is counted and left out. Nothing is published. However large
    a file is, no more than ``_ROWS_UNWRITTEN`` of its passages are held.

    Args:
        table: the newest version of the store.
        plan: see ``plan_from``.
        embed: makes vectors of texts.
        report: is added to.
        read: yields the passages of a file.
        progress: called with bytes done and bytes in all.
    """
    waiting: list[_Waiting] = []
    parts: list[Any] = []
    unwritten, written_at = 0, time.monotonic()

    def embed_waiting() -> None:
        nonlocal unwritten
        if not waiting:
            return
        vectors = embed([one.id for one in waiting], [one.passage for one in waiting])
        for start, stop in _runs(waiting):
            job = waiting[start].job
            rows = [(one.number, one.last, one.passage) for one in waiting[start:stop]]
            file = (job.key, job.name, job.content_hash)
            parts.append(table.prepared(file, kind_of(job.path).unit, rows, vectors[start:stop]))
        report.passages += len(waiting)
        unwritten += len(waiting)
        waiting.clear()

    def write() -> None:
        nonlocal unwritten, written_at
        table.add(parts)
        parts.clear()
        unwritten, written_at = 0, time.monotonic()

    def add(job: _Job) -> int:
        """Returns the number of passages that the file has."""
        number, seen = -1, 0
        for number, last, passage in _numbered(read(job.path)):
            seen += len(passage.text)  # of a file that is one long table: about how far it is
            if number < job.done:
                continue
            waiting.append(_Waiting(job, number, last, passage))
            if len(waiting) >= _ROWS_AT_ONCE:
                embed_waiting()
                if unwritten >= _ROWS_UNWRITTEN or time.monotonic() - written_at > _SECONDS_UNWRITTEN:
                    write()
                if progress is not None:
                    progress(done + min(seen, job.bytes), total)
        return number + 1

    total, done = sum(job.bytes for job in plan.jobs), 0
    for job in plan.jobs:
        if progress is not None:
            progress(done, total)
        try:
            found = add(job)
        except (KeyboardInterrupt, SystemExit):
            write()  # who stops a run politely loses nothing
            raise
        except (DocumentError, DependencyError) as error:
            # What was read of it before the damage goes again, with everything else that is stale.
            report.skipped["package" if isinstance(error, DependencyError) else "binary"] += 1
            report.problems.append((job.name, str(error).removeprefix(str(job.path)).lstrip(" ,:")))
            plan.stale.append(job.key)
        else:
            if not found:
                report.skipped["empty"] += 1
            report.changed += job.replaces and found > 0
            report.added += not job.replaces and found > 0
        done += job.bytes
    embed_waiting()
    write()
    if progress is not None:
        progress(total, total)


class _Waiting(NamedTuple):
    """A passage that is not embedded yet."""

    job: _Job
    number: int
    last: bool
    passage: Passage

    @property
    def id(self) -> str:
        return f"{self.job.key}-{self.number}"


def _numbered(passages: Iterator[Passage]) -> Iterator[tuple[int, bool, Passage]]:
    """Each passage with its number from 0, and whether it is the last."""
    held = next(passages, None)
    number = 0
    while held is not None:
        following = next(passages, None)
        yield number, following is None, held
        held, number = following, number + 1


def _runs(waiting: Sequence[_Waiting]) -> Iterator[tuple[int, int]]:
    """The stretches of one file each."""
    start = 0
    for i in range(1, len(waiting) + 1):
        if i == len(waiting) or waiting[i].job is not waiting[start].job:
            yield start, i
            start = i


def _key(name: str, content_hash: str, field: str | None) -> str:
    parts = [name, content_hash, *([field] if field is not None else [])]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
