"""Bringing a store up to date with files: what changed is embedded and written; publishing it is one step."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from grit_mlx.errors import DependencyError, DocumentError, GritError, Sentence, unreadable
from grit_mlx.progress import Progress
from grit_mlx.rag.schema import NewPassage, SourceFile, rows
from grit_mlx.rag.table import FileState, PassageTable
from grit_mlx.text.blocks import Notes
from grit_mlx.text.kinds import Kind, kind_of
from grit_mlx.text.options import FileReading
from grit_mlx.text.passages import Passage
from grit_mlx.text.reading import has_field
from grit_mlx.text.walking import Walk, stored_name

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Embed", "IndexPlan", "IndexReport", "PassageWriter", "hash_of", "known_contents", "plan_index"]

logger = logging.getLogger("grit_mlx")

# Passages that are embedded at once; after how many passages or seconds they are written. A process that is killed
# loses no more than that.
_ROWS_AT_ONCE: Final = 512
_ROWS_UNWRITTEN: Final = 8192
_SECONDS_UNWRITTEN: Final = 20.0

_BLOCK_BYTES: Final = 1 << 20

# Vectors (N, E) of passages with their ids; may keep whatever else the pass yields. Reports progress, in passages.
Embed = Callable[[Sequence[str], Sequence[Passage], Progress], NDArray[np.float32]]


@dataclass
class IndexReport:
    """What a run of indexing did."""

    added: int = 0  # new files
    changed: int = 0  # files whose content had changed
    unchanged: int = 0  # files that were skipped
    removed: int = 0  # files that are gone: deleted, moved, or left out now
    kept: int = 0  # files that could not be read, whose stored passages stay
    passages: int = 0  # that were embedded
    reused: int = 0  # passages whose vector was taken from an equal one
    removed_passages: int = 0  # of an older content, or of files that are gone
    resumed: int = 0  # passages that an interrupted run had embedded
    skipped: Counter[str] = field(default_factory=Counter)  # files that were left out, by the keys of walking.SKIPPED
    problems: list[tuple[str, str]] = field(default_factory=list)  # files that could not be read, with the reason
    kinds: Counter[str] = field(default_factory=Counter)  # suffixes of files that were left out for their kind
    notes: Notes = field(default_factory=Notes)  # warnings about files that were read, and what was left out of them
    total: int = 0  # passages in the store now
    seconds: float = 0.0

    @property
    def failed(self) -> bool:
        """Whether files were found, but none could be read."""
        return bool(self.problems) and not self.added + self.changed + self.unchanged + self.skipped["empty"]


@dataclass(frozen=True)
class _ChangedFile:
    """A file to embed."""

    path: Path
    file: SourceFile
    done: int  # passages that are stored already
    replaced: list[str]  # keys of its older contents, which go if it can be read
    unfinished: list[str]  # those of them that go in any case: an interrupted run left them
    bytes: int
    how: FileReading

    @property
    def replaces(self) -> bool:
        """Whether an older content is stored."""
        return len(self.replaced) > len(self.unfinished)


@dataclass
class IndexPlan:
    """What a run of indexing has to do."""

    changed: list[_ChangedFile] = field(default_factory=list)  # to embed, equal files one after another
    stale: list[str] = field(default_factory=list)  # keys of stored contents that no file has any more
    reading: dict[str, dict[str, Any]] = field(default_factory=dict)  # by name, what files are not read by default with

    def remember(self, name: str, how: FileReading) -> None:
        """Remember how a file was read."""
        self.reading.pop(name, None)
        if how.chosen:
            self.reading[name] = how.chosen


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
    how: FileReading | None = None,
    known: Mapping[str, Mapping[str, Any]] | None = None,
    keep_missing: bool = False,
    published: Collection[str] | None = None,
) -> IndexPlan:
    """Compare files with what is stored.

    Args:
        walked: the files.
        stored: ``PassageTable.files``.
        report: counts what is found.
        how: how files are read now; one that was read otherwise is read again.
        known: how they were read before, by name; for what ``how`` does not say.
        keep_missing: keep the passages of deleted files.
        published: keys of the contents that readers see, if an interrupted run left others. Of files that this run
            does not read only these are kept: incomplete contents must not be published. None if it left nothing.
    """
    how = how or FileReading()
    plan = IndexPlan(reading={name: dict(before) for name, before in (known or {}).items() if name in stored})
    present, hashes = set(), set()
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
            report.kept += bool(states)
            plan.stale += _unfinished(states, published)
            continue
        hashes.add(content_hash)
        chosen = _chosen(path, how, FileReading(**plan.reading.get(name, {})), report.notes)
        kind = kind_of(path)
        file = SourceFile(_key(name, content_hash, chosen, kind), name, content_hash, kind.unit)
        others = {key: state for key, state in states.items() if key != file.key}
        state = states.get(file.key)
        if state is not None and state.complete:
            plan.stale += others
            plan.remember(name, chosen)
            report.unchanged += 1
            continue
        done = state.rows if state else 0
        unfinished = _unfinished(others, published)
        plan.changed.append(_ChangedFile(path, file, done, list(others), unfinished, size, chosen))
        report.resumed += done
    unread = {name for name, _ in (*walked.problems, *report.problems)}
    for name, states in stored.items():
        if name in present:
            continue
        if (
            not keep_missing
            and not _is_below(name, unread)
            and (walked.covers(name) or _was_moved(name, states, hashes))
        ):
            plan.stale += states
            plan.reading.pop(name, None)
            report.removed += 1
        else:
            plan.stale += _unfinished(states, published)
            report.kept += walked.covers(name) and not keep_missing
    plan.changed = _equal_together(plan.changed)
    return plan


def _was_moved(name: str, states: Mapping[str, FileState], hashes: Collection[str]) -> bool:
    """Whether a file outside of what was walked is gone: from a folder that is there, or to what was walked.

    If its folder is gone too, that may be a disk that is not mounted.
    """
    path = Path(name)
    if "\\x" in name or os.path.lexists(path):  # a name whose bytes are not text cannot be looked for
        return False
    return path.parent.is_dir() or any(state.content_hash in hashes for state in states.values())


def _equal_together(files: Sequence[_ChangedFile]) -> list[_ChangedFile]:
    """Files in order, but equal ones one after another, so that their vectors are still at hand."""
    first: dict[str, int] = {}
    for number, changed in enumerate(files):
        first.setdefault(changed.file.content_hash, number)
    return sorted(files, key=lambda changed: first[changed.file.content_hash])


def _unfinished(states: Mapping[str, FileState], published: Collection[str] | None) -> list[str]:
    """The keys of contents that an interrupted run did not finish."""
    if published is None:
        return []
    # If what readers see is gone already, the run had written everything and was about to publish.
    kept = {key for key in states if key in published} or {key for key, state in states.items() if state.complete}
    return [key for key in states if key not in kept]


def _is_below(name: str, folders: set[str]) -> bool:
    return any(name == folder or name.startswith(folder + "/") for folder in folders)


def _chosen(path: Path, wanted: FileReading, before: FileReading, notes: Notes) -> FileReading:
    """How a file is read: as is wanted, as before where nothing is said, and by the default where "" is."""
    kind = kind_of(path)
    both = FileReading(
        field=before.field if wanted.field is None else wanted.field,
        encoding=before.encoding if wanted.encoding is None else wanted.encoding,
        ocr=wanted.ocr or before.ocr,
    ).of(kind)
    if wanted.field and both.field != before.field and not has_field(path, both):
        # In a folder the field of one table is not that of all others.
        as_before = "as before" if before.field else "as if none were named"
        notes.warn(f"{stored_name(path)} has no field or column {wanted.field!r}; it is read {as_before}.")
        return replace(both, field=before.field)
    return both


def _key(name: str, content_hash: str, how: FileReading, kind: Kind) -> str:
    parts = [name, content_hash, *([how.field] if how.field is not None else [])]
    parts += [f"{option}={value}" for option, value in how.chosen.items() if option != "field"]
    parts += [f"edition={kind.edition}"] if kind.edition > 1 else []
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


class PassageWriter:
    """Embeds the files of a plan and appends their passages, a few seconds' worth at a time. Publishes nothing.

    However large a file is, no more than ``_ROWS_UNWRITTEN`` of its passages are held.

    Args:
        table: the newest version of the store.
        embed: makes vectors of passages.
        read: yields the passages of a file, given how it is read.
        report: counts what is done.
        progress: called with the bytes of files whose passages are embedded, and the bytes of all.
    """

    def __init__(
        self,
        table: PassageTable,
        embed: Embed,
        report: IndexReport,
        *,
        read: Callable[..., Iterator[Passage]],
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self._table = table
        self._embed = embed
        self._read = read
        self._report = report
        self._progress = progress or (lambda _done, _total: None)
        self._waiting: list[NewPassage] = []  # not embedded yet
        self._unwritten: list[pa.Table] = []
        self._known = _KnownVectors(table)
        self._written_at = time.monotonic()
        self._done = self._read_to = self._total = 0  # bytes: embedded, read, in all

    def write(self, plan: IndexPlan) -> None:
        """Write the changed files. Those that turn out unreadable, binary or damaged keep what is stored of them."""
        report = self._report
        self._total = sum(changed.bytes for changed in plan.changed)
        try:
            self._write(plan, report)
        except (KeyboardInterrupt, SystemExit):
            self._flush()  # Ctrl-C loses nothing
            raise

    def _write(self, plan: IndexPlan, report: IndexReport) -> None:
        end = 0
        for changed in plan.changed:
            self._progress(self._done, self._total)
            start, end = end, end + changed.bytes
            try:
                count = self._add(changed, start)
            except (DocumentError, DependencyError) as error:
                # What was read of it before the damage is removed again; what was stored of it stays.
                report.skipped["package" if isinstance(error, DependencyError) else "binary"] += 1
                report.problems.append((changed.file.name, _reason(error, changed.path)))
                plan.stale += [changed.file.key, *changed.unfinished]
                report.kept += changed.replaces
            else:
                plan.stale += changed.replaced
                plan.remember(changed.file.name, changed.how)
                if not count:
                    report.skipped["empty"] += 1
                report.changed += changed.replaces
                report.added += not changed.replaces and count > 0
            self._read_to = end
            if not self._waiting:
                self._done = end
        self._embed_waiting()
        self._flush()
        self._progress(self._total, self._total)

    def _add(self, changed: _ChangedFile, start: int) -> int:
        """Returns the number of passages in the file, which begins at some byte of all."""
        count = seen = 0
        for number, last, passage in _numbered(self._read(changed.path, changed.how)):
            count += 1
            seen += len(passage.text)  # about how far it is, if the file is one long table
            self._read_to = start + min(seen, changed.bytes)
            if number < changed.done:
                continue
            self._waiting.append(NewPassage(changed.file, number, last, passage))
            if len(self._waiting) >= _ROWS_AT_ONCE:
                self._embed_waiting()
                held = sum(part.num_rows for part in self._unwritten)
                if held >= _ROWS_UNWRITTEN or time.monotonic() - self._written_at > _SECONDS_UNWRITTEN:
                    self._flush()
        return count

    def _embed_waiting(self) -> None:
        if self._waiting:
            first = {new.passage.content: new for new in self._waiting}
            vectors = self._known.find(list(first))
            new = [one for content, one in first.items() if content not in vectors]
            if new:
                embedded = self._embed([one.id for one in new], [one.passage for one in new], self._embedded)
                vectors |= zip((one.passage.content for one in new), embedded.astype(np.float16), strict=True)
            self._known.keep(vectors)
            self._unwritten.append(
                rows(self._waiting, np.stack([vectors[one.passage.content] for one in self._waiting]))
            )
            self._report.passages += len(new)
            self._report.reused += len(self._waiting) - len(new)
            self._waiting.clear()
        self._done = self._read_to
        self._progress(self._done, self._total)

    def _embedded(self, done: float, total: int | None) -> None:
        """Report how far the passages that wait are embedded, as a part of the bytes that they come from."""
        self._progress(self._done + int((self._read_to - self._done) * done / max(1, total or 1)), self._total)

    def _flush(self) -> None:
        self._table.add(self._unwritten)
        self._unwritten.clear()
        self._written_at = time.monotonic()


class _KnownVectors:
    """Vectors of contents that were embedded before: those of a table, and the last of this run.

    A table of a million passages takes 16 MB: a hash of each content with its row, compared in full when it is found.
    """

    def __init__(self, table: PassageTable) -> None:
        self._table = table
        self._last: OrderedDict[str, NDArray[np.float16]] = OrderedDict()

    @cached_property
    def _stored(self) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """Hashes, sorted, and their rows."""
        hashes, row_ids = self._table.content_hashes(_hash64)
        order = np.argsort(hashes, kind="stable")
        return hashes[order], row_ids[order]

    def find(self, contents: Sequence[str]) -> dict[str, NDArray[np.float16]]:
        """The vectors ``(E,)`` that are known."""
        found = {content: self._last[content] for content in contents if content in self._last}
        hashes, row_ids = self._stored
        missing = [content for content in contents if content not in found]
        if not len(hashes) or not missing:
            return found
        wanted = np.array([_hash64(content) for content in missing], np.uint64)
        places = np.minimum(np.searchsorted(hashes, wanted), len(hashes) - 1)
        rows_of = row_ids[places[hashes[places] == wanted]].tolist()
        stored = self._table.contents_and_vectors(rows_of)
        return found | {content: stored[content] for content in missing if content in stored}

    def keep(self, vectors: Mapping[str, NDArray[np.float16]]) -> None:
        """Remember vectors of this run, the last ``_ROWS_UNWRITTEN`` of them."""
        self._last.update(vectors)
        while len(self._last) > _ROWS_UNWRITTEN:
            self._last.popitem(last=False)


class _Contents:
    """Which contents were seen, by their hashes."""

    def __init__(self, hashes: Iterable[int]) -> None:
        self._hashes = set(hashes)

    def add(self, content: str) -> bool:
        """Whether it is new."""
        hashed = _hash64(content)
        is_new = hashed not in self._hashes
        self._hashes.add(hashed)
        return is_new


def known_contents(table: PassageTable | None) -> _Contents:
    """The contents whose vectors a table holds, to count what is new."""
    return _Contents([] if table is None else table.content_hashes(_hash64)[0].tolist())


def _hash64(content: str) -> int:
    return int.from_bytes(hashlib.blake2b(content.encode(), digest_size=8).digest(), "little")


def _reason(error: GritError, path: Path) -> Sentence:
    """Why a file could not be read, without its name, which stands beside it."""
    first, *rest = error.parts
    return Sentence(str(first).removeprefix(str(path)).lstrip(" ,:") if isinstance(first, str) else first, *rest)


def _numbered(passages: Iterator[Passage]) -> Iterator[tuple[int, bool, Passage]]:
    """Each passage with its number from 0, and whether it is the last."""
    current = next(passages, None)
    number = 0
    while current is not None:
        following = next(passages, None)
        yield number, following is None, current
        current, number = following, number + 1
