"""class Store: passages of files, found again by meaning and by words."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from grit_mlx.errors import ArgumentError, DependencyError, DocumentError, ModeError, StoreBusyError, StoreError
from grit_mlx.files.lock import writing
from grit_mlx.gritlm import GritLM
from grit_mlx.model import hub
from grit_mlx.model.prompts import embedding_prompt, neutralised
from grit_mlx.progress import Progress
from grit_mlx.rag.caches import CacheStats, DocumentCaches, cache_key
from grit_mlx.rag.fingerprint import check_fingerprint, digest, fingerprint
from grit_mlx.rag.indexing import IndexReport, hash_of, plan_from, write_passages
from grit_mlx.rag.kvfiles import PRECISIONS, bytes_of
from grit_mlx.rag.relevance import PROBES, bm25_threshold, threshold
from grit_mlx.rag.retrieval import METHODS, Hit, Retriever, bytes_in_memory, condition, exact_budget
from grit_mlx.rag.table import PassageTable, Row, is_remote
from grit_mlx.text.passages import Passage, passages_of
from grit_mlx.text.splitting import check_chunking
from grit_mlx.text.walking import walk

__all__ = ["CACHE_BUDGET", "Estimate", "Store", "StoreStats", "cache_bytes_per_token"]

logger = logging.getLogger("grit_mlx")

PASSAGE_TOKENS: Final = 256
OVERLAP: Final = 32
CACHE_BUDGET: Final = 10_000_000_000  # bytes: a cached passage of a 7B model takes tens of megabytes

# Documents whose keys and values are computed at once when they are cached ahead: they are large.
_CACHED_AT_ONCE: Final = 16

# Share of the budget from which on caching ahead gives up, before it would push out what it has just cached.
_FULL: Final = 0.95

# Queries that the recall of the approximate index is measured with, and the depth it is measured at.
_RECALL_QUERIES, _RECALL_DEPTH = 64, 10


@dataclass(frozen=True)
class StoreStats:
    """What a store holds.

    Attributes:
        files: number of files.
        passages: number of passages.
        model: the name of the model's folder.
        embedding_size: E.
        passage_tokens: most tokens of a passage.
        overlap: tokens that a passage repeats.
        bytes: of the tables on disk; None on another machine.
        relevance: the cosine above which a passage is relevant; None before it was measured.
        relevance_bm25: BM25's score above which it is relevant whatever its cosine.
        approximate: whether there is an approximate index of the vectors.
        recall: of that index, at 10, measured against exact search when it was built.
        caches: the cached documents.
    """

    files: int
    passages: int
    model: str
    embedding_size: int
    passage_tokens: int
    overlap: int
    bytes: int | None
    relevance: float | None
    relevance_bm25: float | None
    approximate: bool
    recall: float | None
    caches: CacheStats


@dataclass(frozen=True)
class Estimate:
    """What indexing would do.

    Attributes:
        files: files that are new or have changed.
        unchanged: files that would be left alone.
        passages: that would be embedded.
        tokens: of these, prompts included.
        cache_bytes: that these would take as cached documents, by precision.
    """

    files: int
    unchanged: int
    passages: int
    tokens: int
    cache_bytes: dict[str, int]


class Store:
    """Passages of files with their vectors, in LanceDB.

    Args:
        uri: a folder; or ``s3://bucket/path``, ``gs://...`` or ``db://name`` for LanceDB's server, which keep their
            cached documents on this machine.
        model: embeds; None to look at a store without one.
        passage_tokens: most tokens of a passage; None for the store's own, 256 in a new one.
        overlap: tokens that a passage repeats of the one before; None for the store's own, 32 in a new one.
        exact_bytes: bytes of vectors up to which search is exact; None for what memory allows, at most 4 GiB.
        cache_folder: where documents are cached; None for "caches" in the store.
        cache_precision: "full", "8" or "4" bits for cached documents.
        cache_budget: most bytes of cached documents; the least recently used are given up. None for no limit.

    Raises:
        StoreError: the store was made with another model, with other passages, or cannot be read.
        ArgumentError: sizes that cannot work.
    """

    def __init__(
        self,
        uri: str | PathLike[str],
        model: GritLM | None = None,
        *,
        passage_tokens: int | None = None,
        overlap: int | None = None,
        exact_bytes: int | None = None,
        cache_folder: Path | None = None,
        cache_precision: str = "full",
        cache_budget: int | None = CACHE_BUDGET,
    ) -> None:
        self.uri = fspath(uri) if is_remote(fspath(uri)) else str(Path(uri).expanduser().resolve())
        self.model = model
        self._exact_bytes = exact_bytes
        self._local = self._local_folder()
        self.caches = DocumentCaches(
            cache_folder or self._local / "caches", precision=cache_precision, budget=cache_budget
        )
        self._open()
        stored = self._newest_fingerprint()
        self.passage_tokens = _chosen(passage_tokens, stored, "passage_tokens", PASSAGE_TOKENS, self.uri)
        self.overlap = _chosen(overlap, stored, "overlap", min(OVERLAP, self.passage_tokens // 4), self.uri)
        check_chunking(self.passage_tokens, self.overlap)
        if model is not None and stored:
            check_fingerprint(stored, self._fingerprint, uri=self.uri)

    def _open(self) -> None:
        if not is_remote(self.uri) and not (Path(self.uri) / "passages.lance").exists():
            self._table: PassageTable | None = None  # looking must not make a folder
        else:
            table = PassageTable(self.uri)
            self._table = table if table.exists else None
        self._retriever: Retriever | None = None

    def _newest_fingerprint(self) -> dict[str, Any]:
        """Of the published version, or of one that an interrupted first run began."""
        if self._table is not None:
            return self._table.fingerprint
        if is_remote(self.uri) or (Path(self.uri) / "passages.lance").exists():
            table = PassageTable(self.uri, published=False)
            return table.fingerprint if table.exists else {}
        return {}

    @cached_property
    def _fingerprint(self) -> dict[str, Any]:
        return fingerprint(self._needed_model())

    @property
    def exists(self) -> bool:
        """Whether there is anything to search."""
        return self._table is not None

    def require(self) -> None:
        """See that there is something to search.

        Raises:
            StoreError: there is not.
        """
        self._published()

    @property
    def model_digest(self) -> str:
        """What cached documents of the store's model are told apart by; needs no model."""
        return digest(self._published().fingerprint)

    def __len__(self) -> int:
        return 0 if self._table is None else len(self._table)

    # Writing

    def index(
        self,
        paths: Sequence[str | PathLike[str]],
        *,
        field: str | None = None,
        keep_missing: bool = False,
        cache_ahead: str | int = 0,
        approximate: bool | None = None,
        wait: float = 0.0,
        on_wait: Callable[[str], None] | None = None,
        progress: Progress | None = None,
    ) -> IndexReport:
        """Bring the store up to date with files and folders.

        Unchanged files are skipped by the hash of their content, changed ones replaced, and those that are gone from
        ``paths`` removed. Readers see all of it at once, at the end. An interrupted run is gone on from by the next.

        Args:
            paths: files and folders; what the store holds of other places stays.
            field: of tables, the field or column that holds the text.
            keep_missing: leave the passages of deleted files.
            cache_ahead: documents to cache: 0 for none, "all", or how many of those that were used most.
            approximate: whether to build the approximate index; None where exact search has no room in memory.
            wait: seconds to wait for another writer.
            on_wait: called once with who is waited for.
            progress: called with bytes done and bytes in all.

        Raises:
            DocumentError: one of ``paths`` does not exist.
            StoreBusyError: another process writes to the store.
            OutputError: the disk is full or may not be written; the next run goes on from there.
        """
        model = self._needed_model()
        if model.mode == "generative":
            raise ModeError("This model was loaded with mode='generative' and cannot embed. Load it with 'unified'.")
        started = time.monotonic()
        report = IndexReport()
        walked = walk(paths, without=[] if is_remote(self.uri) else [Path(self.uri)])
        report.skipped.update(walked.skipped)
        report.problems += walked.problems
        with writing(self._local, lock=self._local / "writer.lock", busy=StoreBusyError, wait=wait, on_wait=on_wait):
            table = PassageTable(self.uri, published=False)
            if not table.exists:
                about = {**self._fingerprint, "passage_tokens": self.passage_tokens, "overlap": self.overlap}
                table.create(model.embedding_size, about)
            check_fingerprint(table.fingerprint, self._fingerprint, uri=self.uri)
            published = None if table.is_published else PassageTable(self.uri).file_keys()
            plan = plan_from(walked, table.files(), report, field=field, keep_missing=keep_missing, published=published)
            write_passages(
                table,
                plan,
                self._embed_and_cache if cache_ahead == "all" else self._embed,
                report,
                read=lambda path: self._read(path, field),
                progress=progress,
            )
            self._delete(table, plan.stale)
            if not table.is_published:
                table.update_text_index()
                self._index_vectors(table, approximate)
                table.publish()
                self._open()
                table.write_state(relevance=None)
            if table.read_state().get("relevance") is None:  # the last run may have been killed just before this
                table.write_state(**self._measured_thresholds())
        if isinstance(cache_ahead, int):
            self.cache_most_used(cache_ahead)
        else:
            self._cache_others()
        report.total = len(self)
        report.seconds = time.monotonic() - started
        return report

    def estimate(
        self, paths: Sequence[str | PathLike[str]], *, field: str | None = None, progress: Progress | None = None
    ) -> Estimate:
        """What ``index`` would do, counted without embedding anything; files that cannot be read are left out.

        Args:
            paths: see ``index``.
            field: see there.
            progress: called with files done and files in all.

        Raises:
            DocumentError: one of ``paths`` does not exist.
        """
        model = self._needed_model()
        report = IndexReport()
        walked = walk(paths, without=[] if is_remote(self.uri) else [Path(self.uri)])
        plan = plan_from(walked, {} if self._table is None else self._table.files(), report, field=field)
        prompt = len(model.tokenizer.encode(embedding_prompt(model.settings.document_instruction)))
        passages = tokens = 0
        for done, job in enumerate(plan.jobs, start=1):
            with suppress(DocumentError, DependencyError):
                for passage in self._read(job.path, field):
                    passages += 1
                    tokens += prompt + self._measure(passage.content)
            if progress is not None:
                progress(done, len(plan.jobs))
        sizes = {name: int(tokens * size) for name, size in cache_bytes_per_token(model).items()}
        return Estimate(len(plan.jobs), report.unchanged, passages, tokens, sizes)

    def _read(self, path: Path, field: str | None) -> Iterator[Passage]:
        sizes = {"size": self.passage_tokens, "overlap": self.overlap}
        return passages_of(path, **sizes, measure=self._measure, field=field)

    def _delete(self, table: PassageTable, file_keys: Collection[str]) -> None:
        """Remove passages with their cached documents."""
        if not file_keys:
            return
        model = digest(table.fingerprint)
        self.caches.remove(cache_key(model, content) for content in table.contents_of(file_keys))
        table.delete(file_keys)

    def _embed(self, ids: Sequence[str], passages: Sequence[Passage]) -> NDArray[np.float32]:
        del ids
        vectors: NDArray[np.float32] = self._encode(passages)
        return vectors

    def _embed_and_cache(self, ids: Sequence[str], passages: Sequence[Passage]) -> NDArray[np.float32]:
        """Keys and values come from the same pass as the vectors."""
        parts = []
        model = digest(self._fingerprint)
        for start in range(0, len(passages), _CACHED_AT_ONCE):
            group = passages[start : start + _CACHED_AT_ONCE]
            vectors, caches = self._encode(group, get_cache=True)
            parts.append(vectors)
            for name, passage, layers in zip(ids[start:], group, caches, strict=False):
                self.caches.save(cache_key(model, passage.content), name, layers)
        return np.concatenate(parts)

    def _encode(self, passages: Sequence[Passage], **options: Any) -> Any:
        model = self._needed_model()
        texts = [neutralised(model.tokenizer, passage.content) for passage in passages]
        # Nothing is cut: a token stands for at least a byte.
        room = max(len(text.encode()) for text in texts) + 64
        instruction = embedding_prompt(model.settings.document_instruction)
        return model.encode(texts, instruction=instruction, max_length=room, progress=False, **options)

    def _measure(self, text: str) -> int:
        return len(self._needed_model().tokenizer.encode(text, add_special_tokens=False, verbose=False))

    def _index_vectors(self, table: PassageTable, wanted: bool | None) -> None:
        budget = exact_budget() if self._exact_bytes is None else self._exact_bytes
        if wanted is None:
            wanted = bytes_in_memory(len(table), table.embedding_size) > budget
        if wanted and len(table):
            table.build_vector_index()
            table.write_state(recall=_recall(table))

    def _measured_thresholds(self) -> dict[str, float | None]:
        if not len(self):
            return {"relevance": None, "relevance_bm25": None}
        model = self._needed_model()
        vectors = model.encode_queries(list(PROBES), progress=False)
        cosines = [self._search("", vector, "dense", 1, None)[0].score for vector in vectors]
        words = [hit.score for probe in PROBES for hit in self._search(probe, None, "bm25", 1, None)]
        return {"relevance": threshold(cosines), "relevance_bm25": bm25_threshold([0.0, *words])}

    def cache_most_used(self, count: int) -> int:
        """Cache the documents that were answered from most often and are not cached; returns how many that were."""
        rows = self._published().rows_by_id(self.caches.most_used(count)) if count else []
        if rows:
            self._embed_and_cache([row.id for row in rows], [row.passage for row in rows])
        return len(rows)

    def _cache_others(self) -> None:
        """Cache what an earlier run embedded without caching it, as far as the budget has room for it."""
        model, budget = digest(self._fingerprint), self.caches.budget
        rows = [row for row in self.rows() if cache_key(model, row.passage.content) not in self.caches]
        for start in range(0, len(rows), _CACHED_AT_ONCE):
            if budget is not None and self.caches.stats().bytes > _FULL * budget:
                logger.info("The budget of cached documents is used up: %d were left out.", len(rows) - start)
                return
            group = rows[start : start + _CACHED_AT_ONCE]
            self._embed_and_cache([row.id for row in group], [row.passage for row in group])

    def remove(self, paths: Sequence[str], *, wait: float = 0.0) -> int:
        """Take files out of the store, with their cached documents; the files themselves stay.

        Args:
            paths: files, folders, or patterns, as for ``search``.
            wait: seconds to wait for another writer.

        Returns:
            The number of files that were removed.

        Raises:
            ArgumentError: the store holds none of them.
        """
        where = condition(paths)
        if where is None:
            raise ArgumentError("Say which files to remove.")
        with writing(self._local, lock=self._local / "writer.lock", busy=StoreBusyError, wait=wait):
            table = PassageTable(self.uri, published=False)
            if table.exists:
                table.drop_unpublished()
            rows = list(table.rows_where(where)) if table.exists else []
            if not rows:
                raise ArgumentError(f"The store {self.uri} holds no passages of {', '.join(paths)}.")
            self._delete(table, {row.id.rpartition("-")[0] for row in rows})
            table.publish()
            self._open()
        return len({row.name for row in rows})

    # Reading

    def search(
        self,
        question: str,
        *,
        top: int = 10,
        method: str = "hybrid",
        paths: Sequence[str] = (),
        metadata: Sequence[str] = (),
        vector: NDArray[np.float32] | None = None,
    ) -> list[Hit]:
        """The passages that suit a question, best first.

        Args:
            question: what to look for.
            top: most hits.
            method: "hybrid" (both, fused by scores), "rrf" (by ranks), "dense" (by meaning) or "bm25" (by words; needs
                no model).
            paths: only these files, folders or patterns such as ``docs/*.md``.
            metadata: only rows with all of these "key=value".
            vector: the question's, where it was embedded already.

        Raises:
            ArgumentError: an empty question, an unknown method, metadata without "=".
            StoreError: there is no store.
        """
        if not question.strip():
            raise ArgumentError("The question is empty.")
        if method not in METHODS:
            raise ArgumentError(f"Unknown search method {method!r}: use one of {', '.join(METHODS)}.")
        if vector is None and method != "bm25":
            model = self._needed_model()
            vector = model.encode_queries(neutralised(model.tokenizer, question))
        return self._search(question, vector, method, top, condition(paths, metadata))

    def _search(
        self, question: str, vector: NDArray[np.float32] | None, method: str, top: int, where: str | None
    ) -> list[Hit]:
        if self._retriever is None:
            self._retriever = Retriever(self._published(), exact_bytes=self._exact_bytes)
        return self._retriever.search(question, vector, method=method, top=top, where=where)

    @property
    def relevance(self) -> float | None:
        """The cosine above which a passage is relevant, as measured when the store was indexed."""
        return self._state_number("relevance")

    @property
    def relevance_bm25(self) -> float | None:
        """BM25's score above which a passage is relevant whatever its cosine, likewise."""
        return self._state_number("relevance_bm25")

    def _state_number(self, name: str) -> float | None:
        value = self._published().read_state().get(name)
        return None if value is None else float(value)

    def rows(self, paths: Sequence[str] = (), metadata: Sequence[str] = ()) -> Iterator[Row]:
        """All passages, in no order; the filters are those of ``search``."""
        return self._published().rows_where(condition(paths, metadata))

    def stats(self) -> StoreStats:
        """What the store holds."""
        table = self._published()
        about, state = table.fingerprint, table.read_state()
        return StoreStats(
            files=len(table.files()),
            passages=len(table),
            model=str(about.get("model")),
            embedding_size=table.embedding_size,
            passage_tokens=self.passage_tokens,
            overlap=self.overlap,
            bytes=table.bytes_on_disk,
            relevance=state.get("relevance"),
            relevance_bm25=state.get("relevance_bm25"),
            approximate=table.has_vector_index,
            recall=state.get("recall"),
            caches=self.caches.stats(),
        )

    def verify(self, progress: Progress | None = None) -> list[str]:
        """Look for what is wrong: files that changed or went, rows that are damaged, caches that do not add up.

        Damaged caches are removed (they are computed again when they are needed); everything else is only told.

        Args:
            progress: called with files done and files in all.

        Returns:
            A sentence for each problem.
        """
        table = self._published()
        return [
            *_wrong_files(table, progress),
            *_wrong_vectors(table),
            *self.caches.verify(progress),
        ]

    # Pieces

    def _published(self) -> PassageTable:
        if self._table is None:
            raise StoreError(
                f"There is no store at {self.uri}. Make one with 'grit rag index PATH --store {self.uri}'."
            )
        return self._table

    def _needed_model(self) -> GritLM:
        if self.model is None:
            raise ModeError("This store was opened without a model: it can be looked at, but not searched by meaning.")
        return self.model

    def _local_folder(self) -> Path:
        """Where the lock and the cached documents are."""
        if not is_remote(self.uri):
            return Path(self.uri)
        return hub.home() / "stores" / hashlib.sha256(self.uri.encode()).hexdigest()[:16]


def cache_bytes_per_token(model: GritLM) -> dict[str, float]:
    """Bytes that one token of a cached document takes on the disk, by precision."""
    _, layers = model.encode("How many bytes does a token of a cached document take?", get_cache=True)
    return {name: bytes_of(layers, precision=name) / int(layers[0].offset) for name in PRECISIONS}


def _chosen(given: int | None, stored: dict[str, Any], name: str, default: int, uri: str) -> int:
    known = stored.get(name)
    if known is not None and given is not None and given != known:
        raise StoreError(
            f"The store {uri} was made with {name}={known}, not {given}: passages of two sizes do not mix. "
            "Leave it out, or index into another store."
        )
    return int(known if known is not None else default if given is None else given)


def _recall(table: PassageTable) -> float:
    """Of the approximate index at 10: stored vectors, a little moved, are looked for both ways."""
    generator = np.random.default_rng(0)
    picked: list[NDArray[np.float32]] = []
    every = max(1, len(table) // _RECALL_QUERIES)
    seen = 0
    for _, vectors in table.vectors():
        at = np.arange((-seen) % every, len(vectors), every)
        picked += list(vectors[at].astype(np.float32))
        seen += len(vectors)
    queries = np.stack(picked[:_RECALL_QUERIES])
    spread = queries.std(axis=0, keepdims=True) + 1e-6
    queries = queries + 0.5 * spread * generator.standard_normal(queries.shape).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    scores = np.full((len(queries), 0), 0, np.float32)
    numbers = np.empty((len(queries), 0), np.uint64)
    for row_ids, vectors in table.vectors():  # block by block: memory is why there is an index
        found = queries @ vectors.astype(np.float32).T
        scores = np.concatenate([scores, found], axis=1)
        numbers = np.concatenate([numbers, np.broadcast_to(row_ids, found.shape)], axis=1)
        best = np.argsort(-scores, axis=1)[:, :_RECALL_DEPTH]
        scores, numbers = np.take_along_axis(scores, best, 1), np.take_along_axis(numbers, best, 1)
    hits = [
        len({row for row, _ in table.nearest(query, _RECALL_DEPTH)} & set(wanted.tolist())) / len(wanted)
        for query, wanted in zip(queries, numbers, strict=True)
    ]
    return float(np.mean(hits))


def _wrong_files(table: PassageTable, progress: Progress | None) -> Iterator[str]:
    files = table.files()
    for done, (name, states) in enumerate(sorted(files.items()), start=1):
        if not all(state.complete for state in states.values()):
            yield f"{name}: some of its passages are missing. Index it again."
        try:
            changed = hash_of(Path(name)) not in {state.content_hash for state in states.values()}
        except OSError as error:
            # A name with bytes that are no text cannot be opened by its stored form.
            if "\\x" not in name:
                yield f"{name}: {error.strerror or error}; its passages are still in the store."
            continue
        if changed:
            yield f"{name} has changed since it was indexed."
        if progress is not None:
            progress(done, len(files))


def _wrong_vectors(table: PassageTable) -> Iterator[str]:
    damaged = 0
    for _, vectors in table.vectors():
        damaged += int((~np.isfinite(vectors).all(axis=1)).sum())
    if damaged:
        yield f"{damaged} vectors hold NaN or infinity. Index their files into a new store."
