"""class Store: passages of files, found again by meaning and by words."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from grit_mlx.errors import (
    ArgumentError,
    DependencyError,
    DocumentError,
    ModeError,
    Option,
    StoreBusyError,
    StoreError,
    unreadable,
)
from grit_mlx.files.lock import writer_of, writing
from grit_mlx.model import hub
from grit_mlx.model.options import ModelChoice
from grit_mlx.progress import Progress
from grit_mlx.rag.caches.documents import CacheStats, DocumentCaches, cache_key
from grit_mlx.rag.caches.kvfiles import bytes_of
from grit_mlx.rag.database import BUCKETS, is_bucket, is_remote
from grit_mlx.rag.encoding import Encoder
from grit_mlx.rag.fingerprint import check_fingerprint, digest, find_model, fingerprint
from grit_mlx.rag.indexing import IndexReport, PassageWriter, hash_of, known_contents, plan_index
from grit_mlx.rag.lease import Lease
from grit_mlx.rag.limits import check_length
from grit_mlx.rag.nearest import fits_in_memory, recall
from grit_mlx.rag.options import PRECISIONS, IndexOptions, SearchOptions, StoreOptions, check_question, merged
from grit_mlx.rag.relevance import NEEDED, PROBES, Unrelated, relevance
from grit_mlx.rag.retrieval import Retriever, SearchResult, SearchResults, where_clause
from grit_mlx.rag.schema import StoredPassage
from grit_mlx.rag.table import PassageTable
from grit_mlx.text.blocks import Notes
from grit_mlx.text.options import FileReading, WalkOptions
from grit_mlx.text.passages import Passage, passages_of
from grit_mlx.text.walking import Walk, walk

if TYPE_CHECKING:
    from grit_mlx.gritlm import GritLM

__all__ = ["Estimate", "Store", "StoreStats"]

logger = logging.getLogger("grit_mlx")

T = TypeVar("T")

_PASSAGE_TOKENS: Final = 256
_OVERLAP: Final = 32

# Documents whose keys and values are computed at once when they are cached ahead: they are large.
_CACHED_AT_ONCE: Final = 16

# Results whose words are compared with the question's.
_JUDGED: Final = 10

# Caching ahead stops at this share of the budget: beyond it would remove what it has just cached.
_FULL: Final = 0.95


@dataclass(frozen=True)
class StoreStats:
    """What a store holds. None stands for what was not measured, or for bytes on another machine."""

    files: int
    passages: int
    model: str  # the name of its folder
    embedding_size: int
    passage_tokens: int
    overlap: int
    bytes: int | None  # of the tables on disk
    unrelated: Unrelated | None  # the cosines that unrelated questions find
    approximate: bool  # whether there is an approximate index
    recall: float | None  # of that index, at 10, measured against exact search when it was built
    caches: CacheStats


@dataclass(frozen=True)
class Estimate:
    """What indexing would do."""

    files: int  # new or changed
    unchanged: int  # files that would be skipped
    passages: int  # that would be embedded
    reused: int  # passages whose vector would be taken from an equal one
    tokens: int  # of these passages, prompts included
    cache_bytes: dict[str, int]  # of these passages as cached documents, by precision


class Store:
    """Passages of files with their vectors, in LanceDB.

    Args:
        uri: a folder; or ``s3://bucket/path``, ``gs://...``, ``az://...`` or ``db://name`` for LanceDB's server, whose
            cached documents are kept on this machine, and in the bucket if ``index`` was told so.
        model: embeds; None to look at a store without one.
        options: how files are split and what is cached.
        **keywords: fields of ``StoreOptions``, in place of ``options``.

    Raises:
        StoreError: the store was made with another model or with other passages, or cannot be read.
        ArgumentError: an option that cannot work.
    """

    def __init__(
        self,
        uri: str | PathLike[str],
        model: GritLM | None = None,
        options: StoreOptions | None = None,
        **keywords: Any,
    ) -> None:
        chosen = merged(StoreOptions, options, keywords)
        self.uri = fspath(uri) if is_remote(fspath(uri)) else str(Path(uri).expanduser().resolve())
        self.model: GritLM | None = None
        self._encoder: Encoder | None = None
        self._exact_bytes = chosen.exact_bytes
        # Where the lock and the cached documents are.
        named = hashlib.sha256(self.uri.encode()).hexdigest()[:16]
        self._local = hub.home() / "stores" / named if is_remote(self.uri) else Path(self.uri)
        self.caches = DocumentCaches(
            chosen.cache_folder or self._local / "caches",
            precision=chosen.cache_precision,
            budget=chosen.cache_budget,
        )
        self._open()
        self.passage_tokens = self._size("passage_tokens", chosen.passage_tokens, _PASSAGE_TOKENS)
        self.overlap = self._size("overlap", chosen.overlap, min(_OVERLAP, self.passage_tokens // 4))
        if self.overlap >= self.passage_tokens:
            limit = f" ({self.passage_tokens}), not {self.overlap}."
            raise ArgumentError(Option("overlap"), " must be below ", Option("passage_tokens"), limit)
        if model is not None:
            self.use(model)

    def _open(self) -> None:
        """Open the published version, and read what the store was made with."""
        self._table: PassageTable | None = None
        self._retriever: Retriever | None = None
        self._state: dict[str, Any] | None = None
        self._here: bool | None = None
        self._made_with: dict[str, Any] = {}
        if not is_remote(self.uri) and not (Path(self.uri) / "passages.lance").exists():
            return  # opening it would create the folder
        table = PassageTable(self.uri)
        if table.exists:
            self._table = table
        else:
            table = PassageTable(self.uri, published=False)  # an interrupted first run
        self._made_with = table.fingerprint if table.exists else {}
        if self._made_with and is_bucket(self.uri):
            self._state = table.read_state()
            self._share(int(self._state.get("shared_cache") or 0))

    def _share(self, budget: int) -> None:
        """Share cached documents with the machines that use the store, within a budget; 0 not to."""
        if not budget:
            self.caches.sharing = None
        elif self.caches.sharing is None:
            from grit_mlx.rag.caches.bucket import CacheBucket
            from grit_mlx.rag.caches.sharing import Sharing

            self.caches.sharing = Sharing(self.caches.local, partial(CacheBucket.of, self.uri, budget))

    def refresh(self) -> None:
        """Open what was published since, if anything was.

        Raises:
            StoreError: it was made anew, with another model.
        """
        if self._table is None or self._table.was_replaced:
            self._open()
            if self._made_with and self.model is not None:
                check_fingerprint(self._made_with, self._fingerprint, uri=self.uri)

    def _size(self, name: str, given: int | None, default: int) -> int:
        known = self._made_with.get(name)
        if known is not None and given is not None and given != known:
            raise StoreError(
                f"The store {self.uri} was made with {name}={known}, not {given}: passages of two sizes do not mix. "
                "Omit it, or index into another store."
            )
        return int(known if known is not None else default if given is None else given)

    def use(self, model: GritLM) -> None:
        """Embed with this model.

        Raises:
            StoreError: the store was made with another one.
        """
        self._fingerprint = fingerprint(model)
        if self._made_with:
            check_fingerprint(self._made_with, self._fingerprint, uri=self.uri)
        self.model, self._encoder = model, Encoder(model)

    def takes(self, model: GritLM) -> bool:
        """Whether ``use`` accepts this model."""
        try:
            self.use(model)
        except StoreError:
            return False
        return True

    @property
    def made_with(self) -> ModelChoice | None:
        """The model that the store was made with; None if it is empty, or if that model is not on this machine."""
        return find_model(self._made_with) if self._made_with else None

    @property
    def encoder(self) -> Encoder:
        """Embeds with the store's model.

        Raises:
            ModeError: the store was opened without one.
        """
        if self._encoder is None:
            raise ModeError("This store was opened without a model, which only 'bm25' search does not need.")
        return self._encoder

    @property
    def exists(self) -> bool:
        """Whether there is anything to search."""
        return self._table is not None

    def require(self) -> PassageTable:
        """The published passages.

        Raises:
            StoreError: there are none.
        """
        if self._table is not None and self._table.is_outdated:
            raise StoreError(
                f"The store {self.uri} was made by an earlier version of grit-mlx. Run 'grit rag index' on any of its "
                "files once: it reads the words of all passages anew, and embeds nothing again."
            )
        if self._table is not None:
            return self._table
        if writer := self._writer():
            raise StoreError(f"The store {self.uri} is being built by {writer}. Try again when it is done.")
        if self._made_with:
            raise StoreError(
                f"The store {self.uri} is not complete: its first 'grit rag index' was interrupted. Run the same "
                "command again, which resumes it."
            )
        raise StoreError(f"There is no store at {self.uri}. Create one with 'grit rag index PATH --store {self.uri}'.")

    @property
    def model_digest(self) -> str:
        """The name of the store's model among caches."""
        return digest(self._made_with or self._fingerprint)

    def __len__(self) -> int:
        return 0 if self._table is None else len(self._table)

    def _current(self, read: Callable[[], T]) -> T:
        """What a function reads: from the newest version if the one that is open was removed by later updates."""
        version = self.require().version
        try:
            return read()
        except StoreError:
            self._open()
            if self.require().version == version:
                raise
            return read()

    # Writing

    def index(
        self,
        paths: Sequence[str | PathLike[str]],
        options: IndexOptions | None = None,
        *,
        field: str | None = None,
        patterns: WalkOptions | None = None,
        encoding: str | None = None,
        ocr: bool = False,
        on_wait: Callable[[str], None] | None = None,
        progress: Callable[[int, int], None] | None = None,
        **keywords: Any,
    ) -> IndexReport:
        """Bring the store up to date with files and folders.

        Unchanged files are skipped by the hash of their content, changed ones replaced, and those deleted from
        ``paths`` removed. Readers see all of it at once, at the end. The next run resumes an interrupted one.

        Args:
            paths: files and folders; what the store holds of other places stays.
            options: how to do it.
            field: in tables, the field or column that holds the text. It is remembered for each table that has one;
                None for what is remembered, "" for the default.
            patterns: which files of ``paths``; the passages of others in them are removed.
            encoding: of text files, remembered for each; None for what is remembered, or to find out.
            ocr: recognise the text of scanned pages of PDF files; remembered for each.
            on_wait: called once with the process that is waited for.
            progress: called with bytes done and bytes in all.
            **keywords: fields of ``IndexOptions``, in place of ``options``.

        Raises:
            DocumentError: one of ``paths`` does not exist.
            StoreBusyError: another process is writing to the store.
            OutputError: the disk is full or cannot be written; the next run resumes.
            ModeError: the model cannot embed.
            ArgumentError: caches are to be shared, and the store is not in a bucket.
            DependencyError: they are, and the package for that is missing.
        """
        chosen = merged(IndexOptions, options, keywords)
        if chosen.shared_cache is not None and not is_bucket(self.uri):
            raise ArgumentError(
                Option("shared_cache"),
                f" is for stores at {', '.join(BUCKETS)}. Machines that use a store in a "
                "folder share its cached documents anyway.",
            )
        size = self.encoder.model.embedding_size
        started = time.monotonic()
        report = IndexReport()
        walked = self._walk(paths, patterns)
        report.skipped.update(walked.skipped)
        report.problems += walked.problems
        report.kinds.update(walked.kinds)
        with self._writing(chosen.wait, on_wait) as table:
            if not table.exists:
                sizes = {"passage_tokens": self.passage_tokens, "overlap": self.overlap}
                table.create(size, {**self._fingerprint, **sizes})
            check_fingerprint(table.fingerprint, self._fingerprint, uri=self.uri)
            if table.is_outdated:
                table.rewrite()
            noted = table.read_state()
            self._resize_shared(table, noted, chosen.shared_cache)
            self._delete(table, noted.get("purging") or ())  # a purge that was killed
            stored = table.files()
            plan = plan_index(
                walked,
                stored,
                report,
                how=FileReading(field=field, encoding=encoding, ocr=ocr),
                known=_known_reading(noted),
                keep_missing=chosen.keep_missing,
                published=None if table.is_published else PassageTable(self.uri).file_keys(),
            )
            embed = self._embed_and_cache if chosen.cache_ahead == "all" else self._embed
            read = partial(self._read, notes=report.notes)
            PassageWriter(table, embed, report, read=read, progress=progress).write(plan)
            held = {key: state.rows for states in stored.values() for key, state in states.items()}
            report.removed_passages = sum(held.get(key, 0) for key in set(plan.stale))
            self._delete(table, plan.stale)
            facts = {"reading": plan.reading, "keep_missing": chosen.keep_missing}
            if {name: noted.get(name) for name in facts} != facts:
                table.write_state(**facts)
                self._state = None
            if not table.is_published:
                table.update_text_index()
                self._index_vectors(table, chosen.approximate)
                table.publish()
                self._open()
                table.write_state(unrelated=None)
            if noted.get("purging") is not None:
                self._purge(table)
            if table.read_state().get("unrelated") is None:  # the last run may have been killed just before this
                self._measure_unrelated(table)
        if isinstance(chosen.cache_ahead, int):
            self.cache_most_used(chosen.cache_ahead)
        else:
            self._cache_others()
        self.caches.settle()
        report.total = len(self)
        report.seconds = time.monotonic() - started
        return report

    def _resize_shared(self, table: PassageTable, noted: Mapping[str, Any], wanted: int | None) -> None:
        """Set the budget of the cached documents in the bucket; None to leave it as it is."""
        if wanted is None:
            return
        known = int(noted.get("shared_cache") or 0)
        if wanted or known:
            from grit_mlx.rag.caches.bucket import CacheBucket

            CacheBucket.of(self.uri, wanted).resize(wanted)
        if wanted != known:
            table.write_state(shared_cache=wanted)
            self._state = None
        self._share(wanted)

    def estimate(
        self,
        paths: Sequence[str | PathLike[str]],
        *,
        field: str | None = None,
        patterns: WalkOptions | None = None,
        encoding: str | None = None,
        ocr: bool = False,
        progress: Progress | None = None,
    ) -> Estimate:
        """What ``index`` would do, counted without embedding anything; files that cannot be read are left out.

        Args:
            paths: files and folders.
            field: as for ``index``, and so are the others.
            patterns: which files of ``paths``.
            encoding: of text files.
            ocr: of scanned pages.
            progress: called with files done and files in all.

        Raises:
            DocumentError: one of ``paths`` does not exist.
        """
        encoder, report = self.encoder, IndexReport()
        held = {} if self._table is None else self._table.files()
        known = {} if self._table is None else _known_reading(self._table.read_state())
        how = FileReading(field=field, encoding=encoding, ocr=ocr)
        plan = plan_index(self._walk(paths, patterns), held, report, how=how, known=known)
        prompt = len(encoder.model.tokenizer.encode(encoder.document_prompt))
        embedded = known_contents(self._table)
        tokens = passages = reused = 0
        for done, changed in enumerate(plan.changed, start=1):
            with suppress(DocumentError, DependencyError):
                for passage in self._read(changed.path, changed.how, notes=Notes()):
                    if embedded.add(passage.content):
                        passages += 1
                        tokens += prompt + encoder.count(passage.content)
                    else:
                        reused += 1
            if progress is not None:
                progress(done, len(plan.changed))
        _, [layers] = encoder.vectors_and_caches(["How many bytes does a token of a cached document take?"])
        each = {name: bytes_of(layers, precision=name) / int(layers[0].offset) for name in PRECISIONS}
        sizes = {name: int(tokens * size) for name, size in each.items()}
        return Estimate(len(plan.changed), report.unchanged, passages, reused, tokens, sizes)

    @contextmanager
    def _writing(self, wait: float, on_wait: Callable[[str], None] | None = None) -> Iterator[PassageTable]:
        """The newest version of the rows, which no other process writes to: none of this machine, nor of another."""
        with writing(self.uri, lock=self._lock, busy=StoreBusyError, wait=wait, on_wait=on_wait):
            if not is_remote(self.uri):
                yield PassageTable(self.uri, published=False)
                return
            lease = Lease(self.uri, self._local)
            with lease.held(wait=wait, on_wait=on_wait):
                yield PassageTable(self.uri, published=False, check=lease.check)

    def _writer(self) -> str | None:
        """Who is writing now, if anybody is."""
        if (writer := writer_of(self._lock)) or not is_remote(self.uri):
            return writer
        return Lease(self.uri, self._local).holder()

    @property
    def _lock(self) -> Path:
        return self._local / "writer.lock"

    def _walk(self, paths: Sequence[str | PathLike[str]], patterns: WalkOptions | None) -> Walk:
        without = [] if is_remote(self.uri) else [Path(self.uri)]
        return walk(paths, without=without, patterns=patterns or WalkOptions())

    def _read(self, path: Path, how: FileReading, *, notes: Notes) -> Iterator[Passage]:
        return passages_of(
            path,
            size=self.passage_tokens,
            overlap=self.overlap,
            measure=self.encoder.count,
            how=how,
            notes=notes,
        )

    def _delete(self, table: PassageTable, file_keys: Collection[str]) -> None:
        """Remove passages, with the cached documents that no other passage has."""
        if not file_keys:
            return
        if self.caches.sharing is not None or self.caches.stats().files > 0:
            # Before the rows: a run that is killed in between leaves nothing of them behind.
            gone = set(table.contents_of(file_keys))
            gone.difference_update(table.contents(without=file_keys))  # one by one: all of them may not fit into memory
            self.caches.remove(map(partial(cache_key, self.model_digest), gone))
        table.delete(file_keys)

    def _purge(self, table: PassageTable) -> None:
        table.purge()
        table.write_state(purging=None)
        self._open()

    def _embed(self, _ids: Sequence[str], passages: Sequence[Passage], progress: Progress) -> NDArray[np.float32]:
        return self.encoder.vectors([passage.content for passage in passages], progress)

    def _embed_and_cache(
        self, ids: Sequence[str], passages: Sequence[Passage], progress: Progress = lambda _done, _total: None
    ) -> NDArray[np.float32]:
        """Keys and values come from the same pass as the vectors."""
        parts, model = [], self.model_digest
        for start in range(0, len(passages), _CACHED_AT_ONCE):
            contents = [passage.content for passage in passages[start : start + _CACHED_AT_ONCE]]
            vectors, caches = self.encoder.vectors_and_caches(contents)
            parts.append(vectors)
            for name, content, layers in zip(ids[start:], contents, caches, strict=False):
                self.caches.save(cache_key(model, content), name, layers)
            progress(start + len(contents), len(passages))
        return np.concatenate(parts)

    def _index_vectors(self, table: PassageTable, wanted: bool | None) -> None:
        if wanted is None:
            wanted = not fits_in_memory(table, self._exact_bytes)
        if wanted and len(table):
            table.build_vector_index()
            table.write_state(recall=recall(table))

    def _measure_unrelated(self, table: PassageTable) -> None:
        if len(self):
            retriever = self._searcher()
            vectors = self.encoder.queries(PROBES)
            cosines = [retriever.search("", vector, method="dense", top=1)[0].score for vector in vectors]
            table.write_state(unrelated=vars(Unrelated.of(cosines)))

    def cache_most_used(self, count: int) -> int:
        """Cache the documents that answers used most often, if they are not cached; returns their number."""
        model = self.model_digest
        passages = self.require().passages_by_id(self.caches.most_used(count)) if count else []
        return self._cache([one for one in passages if cache_key(model, one.content) not in self.caches])

    def _cache_others(self) -> None:
        """Cache what an earlier run embedded without caching it, while there is room in the budget."""
        model = self.model_digest
        if self.caches.sharing is not None:
            self.caches.share_held(cache_key(model, one.content) for one in self.passages())
        others = [one for one in self.passages() if cache_key(model, one.content) not in self.caches]
        for start in range(0, len(others), _CACHED_AT_ONCE):
            if self.caches.filled() > _FULL:
                logger.info("The cache budget is used up: %d documents were left out.", len(others) - start)
                return
            self._cache(others[start : start + _CACHED_AT_ONCE])

    def _cache(self, passages: Sequence[StoredPassage]) -> int:
        if passages:
            self._embed_and_cache([passage.id for passage in passages], passages)
        return len(passages)

    def remove(self, paths: Sequence[str], *, purge: bool = False, wait: float = 0.0) -> int:
        """Remove files from the store, with their cached documents; the files themselves stay.

        Args:
            paths: files, folders, or patterns, as for ``search``; none only if ``purge``.
            purge: remove their text, and what earlier runs removed, from the disk at once. Else it stays for an hour
                or more, for processes that still read an older version.
            wait: seconds to wait for another writer.

        Returns:
            The number of files that were removed.

        Raises:
            ArgumentError: the store holds none of them.
        """
        where = where_clause(paths)
        if where is None and not purge:
            raise ArgumentError("Name the files to remove.")
        with self._writing(wait) as table:
            if table.exists:
                table.drop_unpublished()
            passages = list(table.passages_where(where)) if table.exists and where is not None else []
            if not passages and where is not None:
                raise ArgumentError(f"The store {self.uri} holds no passages of {', '.join(paths)}.")
            if not table.exists:
                return 0
            keys = {passage.id.rpartition("-")[0] for passage in passages}
            purging = table.read_state().get("purging")
            if purge or purging is not None:
                # Noted first: if this run is killed, the next one does it.
                purging = sorted(keys.union(purging or ()))
                table.write_state(purging=purging)
            self._delete(table, keys.union(purging or ()))
            if not table.is_published:
                table.publish()
            if purging is not None:
                self._purge(table)
            self._open()
        return len({passage.source for passage in passages})

    # Reading

    def search(
        self,
        question: str,
        options: SearchOptions | None = None,
        *,
        vector: NDArray[np.float32] | None = None,
        **keywords: Any,
    ) -> SearchResults:
        """The passages that match a question best.

        Args:
            question: what to look for.
            options: how to search; "bm25" needs no model.
            vector: the question's, if it was embedded already.
            **keywords: fields of ``SearchOptions``, in place of ``options``.

        Raises:
            ArgumentError: an empty question or one longer than the model's context, or an option that cannot work.
            StoreError: there is no store.
        """
        check_question(question)
        chosen = merged(SearchOptions, options, keywords)
        if vector is None and chosen.method != "bm25":
            check_length(self.encoder, question)
            vector = self.encoder.queries([question])[0]
        where = where_clause(chosen.paths, chosen.metadata)

        def found(*, top: int) -> list[SearchResult]:
            return self._searcher().search(question, vector, top=top, method=chosen.method, where=where)

        results = self._current(partial(self._citable, found, chosen.top))
        if chosen.min_score is not None:
            return SearchResults(question, results, lambda: _best_cosine(results), chosen.min_score)
        return SearchResults(question, results, cache(partial(self._relevance, question, results)), NEEDED)

    def _relevance(self, question: str, results: Sequence[SearchResult]) -> float | None:
        """See ``SearchResults.relevance``; words alone do not tell."""
        cosine, unrelated = _best_cosine(results), self.unrelated
        if cosine is None or unrelated is None:
            return None
        texts = [result.passage.content for result in results[:_JUDGED]]
        return relevance(cosine, self._searcher().coverage(question, texts), unrelated)

    def _citable(self, search: Callable[..., list[SearchResult]], top: int) -> list[SearchResult]:
        """The best results that may be cited: each text once, and none of files that are gone."""
        asked = top
        while True:
            found = search(top=asked)
            once: dict[str, SearchResult] = {}
            for result in found:
                if not self._is_gone(result.passage.source):
                    once.setdefault(" ".join(result.passage.content.split()), result)
            if len(once) >= top or len(found) < asked:
                return list(once.values())[:top]
            asked *= 2

    def _is_gone(self, name: str) -> bool:
        """Whether a file was deleted or moved since it was indexed, and its passages were not kept on purpose.

        A store whose files are all elsewhere was copied from another machine: it is read as it is.
        """
        if "\\x" in name or os.path.lexists(name) or self.state.get("keep_missing"):
            return False
        return Path(name).parent.is_dir() or self._has_files()

    def _has_files(self) -> bool:
        """Whether any of the files is on this machine, as far as was seen when it was first asked."""
        if self._here is None:
            self._here = any(map(os.path.lexists, self.require().names()))
        return self._here

    def check_filters(self, paths: Sequence[str] = (), metadata: Sequence[str] = ()) -> None:
        """Refuse filters that no passage satisfies; they are those of ``search``.

        Raises:
            ArgumentError: names the filter.
        """
        table = self.require()
        for path in paths:
            if not table.count(where_clause([path])):
                raise ArgumentError(Option("paths"), f" {path!r} matches no file of the store {self.uri}.")
        for pair in metadata:
            if not table.count(where_clause(metadata=[pair])):
                raise ArgumentError(Option("metadata"), f" {pair!r} matches no passage of the store {self.uri}.")
        if not table.count(where_clause(paths, metadata)):
            raise ArgumentError(f"No passage of the store {self.uri} satisfies all filters together.")

    def _searcher(self) -> Retriever:
        if self._retriever is None:
            self._retriever = Retriever(self.require(), exact_bytes=self._exact_bytes)
        return self._retriever

    @property
    def unrelated(self) -> Unrelated | None:
        """The cosines that unrelated questions find, as measured when the store was indexed."""
        measured = self.state.get("unrelated")
        return Unrelated(**measured) if measured else None

    @property
    def state(self) -> dict[str, Any]:
        """Facts that were noted when the store was indexed; see ``PassageTable.read_state``."""
        if self._state is None or self._state.get("unrelated") is None:
            self._state = self.require().read_state()
        return self._state

    def passages(self, paths: Sequence[str] = (), metadata: Sequence[str] = ()) -> Iterator[StoredPassage]:
        """All passages, in no order; the filters are those of ``search``."""
        return self.require().passages_where(where_clause(paths, metadata))

    def stats(self) -> StoreStats:
        """What the store holds."""
        return self._current(self._stats)

    def _stats(self) -> StoreStats:
        table = self.require()
        state = table.read_state()
        return StoreStats(
            files=len(table.files()),
            passages=len(table),
            model=str(self._made_with.get("model")),
            embedding_size=table.embedding_size,
            passage_tokens=self.passage_tokens,
            overlap=self.overlap,
            bytes=table.bytes_on_disk,
            unrelated=self.unrelated,
            approximate=table.has_vector_index,
            recall=state.get("recall"),
            caches=self.caches.stats(),
        )

    def verify(self, progress: Progress | None = None) -> list[str]:
        """Check for files that changed or are missing, and for damaged rows and caches.

        Damaged caches are removed (they are computed again when they are needed); everything else is only reported.

        Args:
            progress: called with files done and files in all.

        Returns:
            A sentence for each problem.
        """
        table = self.require()
        return [*_wrong_files(table, progress), *_wrong_vectors(table), *self.caches.verify(progress)]


def _known_reading(state: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """How files were read, by name; earlier versions noted only the fields of tables."""
    fields: dict[str, dict[str, Any]] = {name: {"field": field} for name, field in state.get("fields", {}).items()}
    return {**fields, **state.get("reading", {})}


def _best_cosine(results: Sequence[SearchResult]) -> float | None:
    return max((result.cosine for result in results if result.cosine is not None), default=None)


def _wrong_files(table: PassageTable, progress: Progress | None) -> Iterator[str]:
    files = table.files()
    for done, (name, states) in enumerate(sorted(files.items()), start=1):
        if not all(state.complete for state in states.values()):
            yield f"{name}: some of its passages are missing. Index it again."
        try:
            if hash_of(Path(name)) not in {state.content_hash for state in states.values()}:
                yield f"{name} has changed since it was indexed."
        except OSError as error:
            # A name whose bytes are not text cannot be opened by its stored form.
            if "\\x" not in name:
                yield f"{unreadable(name, error)} Its passages are still in the store."
        if progress is not None:
            progress(done, len(files))


def _wrong_vectors(table: PassageTable) -> Iterator[str]:
    damaged = sum(int((~np.isfinite(vectors).all(axis=1)).sum()) for _, vectors in table.vectors())
    if damaged:
        yield f"{damaged} vectors hold NaN or infinity. Index their files into a new store."
