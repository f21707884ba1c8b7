"""Bringing a store up to date with files: what changed, embedded, written, and published in one step."""

from __future__ import annotations

import hashlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from grit_mlx.errors import DocumentError
from grit_mlx.rag.extracting import kind_of
from grit_mlx.rag.passages import Passage, passages_of
from grit_mlx.rag.table import FileState, PassageTable
from grit_mlx.rag.walking import Walk, stored_name
from grit_mlx.splitting import Measure

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
    done: int  # passages that are stored already
    replaces: bool  # whether an older content is stored

    @property
    def key(self) -> str:
        return _key(self.name, self.content_hash)


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
    walked: Walk, stored: Mapping[str, Mapping[str, FileState]], report: IndexReport, *, keep_missing: bool = False
) -> Plan:
    """Compare files with what is stored; counts what it finds in ``report``.

    Args:
        walked: the files there are.
        stored: ``PassageTable.files``.
        report: is added to.
        keep_missing: leave passages of deleted files in the store.
    """
    plan = Plan()
    present = set()
    for path in walked.files:
        name = stored_name(path)
        present.add(name)
        states = stored.get(name, {})
        try:
            content_hash = hash_of(path)
        except OSError as error:
            # It may be readable again tomorrow: what is stored of it stays.
            report.skipped["unreadable"] += 1
            report.problems.append((name, error.strerror or str(error)))
            continue
        key = _key(name, content_hash)
        plan.stale += [other for other in states if other != key]
        state = states.get(key)
        if state is not None and state.complete:
            report.unchanged += 1
            continue
        replaces = any(other.complete for other_key, other in states.items() if other_key != key)
        plan.jobs.append(_Job(path, name, content_hash, state.rows if state else 0, replaces))
        report.resumed += state.rows if state else 0
    unreadable = {name for name, _ in walked.problems} | {name for name, _ in report.problems}
    for name, states in stored.items():
        if name not in present and not keep_missing and walked.covers(name) and not _lies_in(name, unreadable):
            plan.stale += states
            plan.gone.append(name)
            report.removed += 1
    return plan


def _lies_in(name: str, unreadable: set[str]) -> bool:
    return any(name == other or name.startswith(other + "/") for other in unreadable)


def write_passages(
    table: PassageTable,
    plan: Plan,
    embed: Embed,
    report: IndexReport,
    *,
    size: int,
    overlap: int,
    measure: Measure,
    field: str | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> None:
    """Embed the files of a plan and append their passages, a few seconds' worth at a time.

    A file that turns out unreadable, binary or damaged is counted and left out. Nothing is published.

    Args:
        table: the newest version of the store.
        plan: see ``plan_from``.
        embed: makes vectors of texts.
        report: is added to.
        size: most tokens of a passage.
        overlap: tokens that a passage repeats of the one before.
        measure: counts tokens.
        field: of tables, the field that holds the text.
        progress: called with files done and files in all.
    """
    waiting: list[tuple[_Job, int, bool, Passage]] = []
    parts: list[Any] = []
    unwritten, written_at = 0, time.monotonic()

    def embed_waiting() -> None:
        nonlocal unwritten
        if not waiting:
            return
        ids = [f"{job.key}-{number}" for job, number, _, _ in waiting]
        vectors = embed(ids, [passage for *_, passage in waiting])
        for job, start, stop in _runs(waiting):
            rows = [(number, last, passage) for _, number, last, passage in waiting[start:stop]]
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

    for done, job in enumerate(plan.jobs):
        if progress is not None:
            progress(done, len(plan.jobs))
        try:
            passages = list(passages_of(job.path, size=size, overlap=overlap, measure=measure, field=field))
        except DocumentError as error:
            _leave_out(job, error, report)
            plan.stale += [job.key] if job.done else []
            continue
        if not passages:
            report.skipped["empty"] += 1
            continue
        report.changed += job.replaces
        report.added += not job.replaces
        for number, passage in list(enumerate(passages))[job.done :]:
            waiting.append((job, number, number == len(passages) - 1, passage))
            if len(waiting) >= _ROWS_AT_ONCE:
                embed_waiting()
                if unwritten >= _ROWS_UNWRITTEN or time.monotonic() - written_at > _SECONDS_UNWRITTEN:
                    write()
    embed_waiting()
    write()
    if progress is not None:
        progress(len(plan.jobs), len(plan.jobs))


def _leave_out(job: _Job, error: DocumentError, report: IndexReport) -> None:
    report.skipped["binary"] += 1
    report.problems.append((job.name, str(error).removeprefix(str(job.path)).lstrip(" ,")))


def _runs(waiting: Sequence[tuple[_Job, int, bool, Passage]]) -> Iterator[tuple[_Job, int, int]]:
    """The stretches of one file each."""
    start = 0
    for i in range(1, len(waiting) + 1):
        if i == len(waiting) or waiting[i][0] is not waiting[start][0]:
            yield waiting[start][0], start, i
            start = i


def _key(name: str, content_hash: str) -> str:
    return hashlib.sha256(f"{name}\0{content_hash}".encode()).hexdigest()[:32]
