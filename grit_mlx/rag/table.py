"""The store's tables in LanceDB: passages, their vectors and indices, and which version of them is published.

Lance keeps every version of a table. Writers append and delete, which makes new versions, and readers see the version
that the tag ``published`` points to. Moving the tag is the one atomic commit: until then an interrupted run is
invisible, and what it computed is still there for the next one.
"""

from __future__ import annotations

import json
import logging
import math
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import chain
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from grit_mlx.errors import OutputError, StoreError
from grit_mlx.rag.database import connected, is_remote, lance_errors, sql_text, table_names
from grit_mlx.rag.schema import CONTENT, FORMAT, PARTS, SHOWN, VECTOR, WORDS, StoredPassage, schema, stored, with_words
from grit_mlx.rag.words import asked_parts, asked_terms

__all__ = ["FileState", "PassageTable"]

logger = logging.getLogger("grit_mlx")

_PASSAGES, _STATE = "passages", "state"
_PUBLISHED = "published"

# Replaced versions are kept for this long, for processes that still read them, but no more than a few updates' worth:
# each holds the rows anew. A reader whose version was removed opens the newest (``Store``).
_GRACE: Final = timedelta(hours=1)
_KEPT_VERSIONS: Final = 16
_NEVER: Final = timedelta(days=36500)  # by default optimize() would remove old versions, the published one included

# Rows that each column of words contributes, and more if more are asked for.
_DEPTH: Final = 100

_UNSEEN: Final = 1.5  # of BM25's saturated term frequency, which is between 1 and 2.2 where a word is found

_IDS_AT_ONCE: Final = 500  # in one SQL expression

# The columns of words that are indexed, how they are read from a question, and how much each of their terms counts:
# each letter of a word is in four of its pieces.
_SEARCHED: Final[Mapping[str, tuple[Callable[[str], list[str]], float]]] = {
    WORDS: (asked_terms, 1.0),
    PARTS: (asked_parts, 0.25),
}


@dataclass
class FileState:
    """What is stored of one content of a file."""

    content_hash: str  # of the file's bytes
    rows: int = 0
    complete: bool = False  # whether the last passage is among them


class PassageTable:
    """Passages in LanceDB. Nothing here knows about models.

    Args:
        uri: a folder, ``s3://bucket/path``, ``gs://...``, or ``db://name`` for LanceDB's server.
        published: open the version that readers see; False for the newest one, which writers continue.
        check: called before each write, and raises if this process may not write any more.
    """

    def __init__(self, uri: str, *, published: bool = True, check: Callable[[], None] = lambda: None) -> None:
        self.uri = uri
        self._check = check
        self._database = connected(uri)
        self._table: Any = None
        self._indexed: frozenset[str] | None = None  # columns; None if that may have changed
        with lance_errors(uri):
            if _PASSAGES not in table_names(self._database):
                return
            self._table = self._database.open_table(_PASSAGES)
            if published:
                if _PUBLISHED not in self._table.tags.list():
                    self._table = None
                else:
                    self._table.checkout(_PUBLISHED)

    @property
    def exists(self) -> bool:
        """Whether there is anything to read (or, for a writer, to continue)."""
        return self._table is not None

    def create(self, embedding_size: int, fingerprint: Mapping[str, Any]) -> None:
        """Create the table, for vectors of E numbers."""
        self._check()
        with lance_errors(self.uri):
            self._table = self._database.create_table(_PASSAGES, schema=schema(embedding_size, fingerprint))

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What the store was made with.

        Raises:
            StoreError: it is not a store of grit-mlx, or a later version's.
        """
        about = (self._table.schema.metadata or {}).get(b"grit")
        if about is None:
            raise StoreError(f"{self.uri} holds a table 'passages' that grit-mlx did not make. Choose another place.")
        content = json.loads(about)
        if content.get("format") not in range(1, FORMAT + 1):
            raise StoreError(f"{self.uri} has format {content.get('format')!r}: update grit-mlx, or index again.")
        return dict(content["fingerprint"])

    @property
    def version(self) -> int:
        """The number of the version that is open."""
        return int(self._table.version)

    @property
    def is_outdated(self) -> bool:
        """Whether an earlier version made it, so that its words are to be read anew; see ``rewrite``."""
        return int(json.loads(self._table.schema.metadata[b"grit"])["format"]) < FORMAT

    @property
    def embedding_size(self) -> int:
        """E."""
        return int(self._table.schema.field(VECTOR).type.list_size)

    def __len__(self) -> int:
        return int(self._table.count_rows()) if self.exists else 0

    # Writing

    def add(self, parts: Sequence[pa.Table]) -> None:
        """Store what ``schema.rows`` made, as one version."""
        self._check()
        if parts:
            with lance_errors(self.uri):
                self._table.add(pa.concat_tables(parts))

    def delete(self, file_keys: Iterable[str]) -> None:
        """Remove all passages of some contents of files."""
        for where in _file_conditions(file_keys):
            self._check()
            with lance_errors(self.uri):
                self._table.delete(where)

    def contents_of(self, file_keys: Iterable[str]) -> Iterator[str]:
        """What is embedded of all passages of some contents of files."""
        for where in _file_conditions(file_keys):
            for batch in self._scan([CONTENT], where):
                yield from batch.column(CONTENT).to_pylist()

    def contents(self, *, without: Collection[str] = ()) -> Iterator[str]:
        """What is embedded of all passages, but those of some contents of files."""
        for batch in self._scan(["file", CONTENT]):
            values = (batch.column(column).to_pylist() for column in ("file", CONTENT))
            yield from (content for key, content in zip(*values, strict=True) if key not in without)

    def update_text_index(self) -> None:
        """Bring the full-text indices, and every other, up to date with the rows."""
        self._check()
        from lancedb.index import FTS

        self._indexed = None
        with lance_errors(self.uri):
            missing = [name for name in _SEARCHED if not self._has_index(name)]
            if len(missing) < len(_SEARCHED):
                self._table.optimize(cleanup_older_than=_NEVER)
            for name in missing:
                if self._table.count_rows(f"{name} IS NOT NULL"):
                    # Everything is done by ``words`` but the stems of English words. There are no stop words: a
                    # question may have nothing else.
                    config = FTS(
                        base_tokenizer="whitespace",
                        lower_case=False,
                        ascii_folding=False,
                        remove_stop_words=False,
                        stem=name == WORDS,
                        max_token_length=None,
                    )
                    self._table.create_index(name, config=config, replace=True)
        self._indexed = None

    def build_vector_index(self) -> None:
        """Build Lance's approximate index of the vectors anew."""
        self._check()
        from lancedb.index import IvfHnswSq

        # Lance advises about a million vectors per partition for graphs; few partitions, few misses.
        partitions = max(1, len(self) // 1_000_000)
        with lance_errors(self.uri):
            self._table.create_index(
                VECTOR, config=IvfHnswSq(distance_type="cosine", num_partitions=partitions), replace=True
            )
        self._indexed = None

    @property
    def has_vector_index(self) -> bool:
        """Whether the approximate index was built."""
        return self._has_index(VECTOR)

    def _has_index(self, column: str) -> bool:
        if self._indexed is None:
            self._indexed = frozenset(name for index in self._table.list_indices() for name in index.columns)
        return column in self._indexed

    def publish(self) -> None:
        """Let readers see what was written: the one commit of a run. Old versions are removed after a while."""
        self._check()
        with lance_errors(self.uri):
            version = self._table.version
            if _PUBLISHED in self._table.tags.list():
                self._table.tags.update(_PUBLISHED, version)
            else:
                self._table.tags.create(_PUBLISHED, version)
        try:
            with lance_errors(self.uri):
                self._table.optimize(cleanup_older_than=self._grace())
                if self._table.version != version:  # it merged small files; the rows are the same
                    self._table.tags.update(_PUBLISHED, self._table.version)
        except (StoreError, OutputError) as error:
            # The rows are published; the next run cleans up.
            logger.info("Old versions were not removed: %s", error)

    def _grace(self) -> timedelta:
        """How old a version must be to be removed."""
        made = sorted(version["timestamp"] for version in self._table.list_versions())
        if len(made) <= _KEPT_VERSIONS:
            return _GRACE
        oldest: datetime = made[-_KEPT_VERSIONS]
        return min(_GRACE, max(timedelta(0), datetime.now(oldest.tzinfo) - oldest))

    def rewrite(self) -> None:
        """Write all rows anew, their words as this version reads them. What readers see stays until ``publish``."""
        self._check()
        indexed = self.has_vector_index
        columns = schema(self.embedding_size, self.fingerprint)
        with lance_errors(self.uri):
            names = [name for name in self._table.schema.names if name in columns.names]
            tables = (with_words(pa.Table.from_batches([batch])) for batch in self._scan(names))
            batches = (batch for table in tables for batch in table.select(columns.names).cast(columns).to_batches())
            reader = pa.RecordBatchReader.from_batches(columns, batches)
            self._table = self._database.create_table(_PASSAGES, reader, mode="overwrite")
        self.update_text_index()
        if indexed and len(self):
            self.build_vector_index()

    def purge(self) -> None:
        """Write the rows anew and remove every older version at once, with the texts that only they hold.

        Processes that still read an older version fail.
        """
        self.rewrite()
        self.publish()
        with lance_errors(self.uri), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that readers fail, which was asked for
            self._table.optimize(cleanup_older_than=timedelta(0), delete_unverified=True)

    @property
    def is_published(self) -> bool:
        """Whether readers see the newest version."""
        tags = self._table.tags.list()
        return _PUBLISHED in tags and tags[_PUBLISHED]["version"] == self._table.version

    @property
    def was_replaced(self) -> bool:
        """Whether readers who open the table now see another version than the one that is open."""
        with lance_errors(self.uri):
            published = self._table.tags.list().get(_PUBLISHED)
            return published is None or published["version"] != self._table.version

    def drop_unpublished(self) -> None:
        """Remove what an interrupted run left: go back to what readers see."""
        self._check()
        if not self.is_published:
            with lance_errors(self.uri):
                if _PUBLISHED in self._table.tags.list():
                    self._table.checkout(_PUBLISHED)
                    self._table.restore()
                else:
                    self._table.delete("true")

    def read_state(self) -> dict[str, Any]:
        """Small measured facts, such as the thresholds of relevance."""
        if _STATE not in table_names(self._database):
            return {}
        with lance_errors(self.uri):
            return dict(json.loads(self._database.open_table(_STATE).to_arrow()["json"][0].as_py()))

    def write_state(self, **values: Any) -> None:
        """Set some of these facts."""
        self._check()
        state = {**self.read_state(), **values}
        with lance_errors(self.uri):
            table = self._database.create_table(_STATE, [{"json": json.dumps(state)}], mode="overwrite")
        with suppress(StoreError), lance_errors(self.uri):
            table.optimize(cleanup_older_than=_GRACE)

    # Reading

    def files(self) -> dict[str, dict[str, FileState]]:
        """For each file's name the contents that are stored, by their keys."""
        states: dict[str, dict[str, FileState]] = {}
        columns = ["file", "name", "content_hash", "last"]
        for batch in self._scan(columns):
            values = (batch.column(column).to_pylist() for column in columns)
            for key, name, content_hash, last in zip(*values, strict=True):
                state = states.setdefault(name, {}).setdefault(key, FileState(content_hash))
                state.rows += 1
                state.complete |= last
        return states

    def names(self) -> Iterator[str]:
        """The names of the files, each once."""
        seen: set[str] = set()
        for batch in self._scan(["name"]):
            new = set(batch.column("name").unique().to_pylist()) - seen
            seen |= new
            yield from new

    def content_hashes(self, hash_of: Callable[[str], int]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """A hash of 64 bits of what is embedded of each row, and the row ids."""
        hashes, rows = [np.empty(0, np.uint64)], [np.empty(0, np.uint64)]
        for batch in self._scan([CONTENT], row_ids=True):
            hashes.append(np.array([hash_of(content) for content in batch.column(CONTENT).to_pylist()], np.uint64))
            rows.append(batch.column("_rowid").to_numpy())
        return np.concatenate(hashes), np.concatenate(rows)

    def contents_and_vectors(self, row_ids: Sequence[int]) -> dict[str, NDArray[np.float16]]:
        """Vectors ``(E,)`` of some rows by what was embedded."""
        if not row_ids:
            return {}
        table = self._taken(row_ids, [CONTENT, VECTOR])
        vectors = table[VECTOR].combine_chunks().flatten().to_numpy().reshape(table.num_rows, -1)
        return dict(zip(table[CONTENT].to_pylist(), vectors, strict=True))

    def hashes_of(self, name: str) -> set[str]:
        """Hashes of the contents that are stored of a file; see ``FileState``."""
        return {
            row
            for batch in self._scan(["content_hash"], f"name = {sql_text(name)}")
            for row in batch["content_hash"].to_pylist()
        }

    def file_keys(self) -> set[str]:
        """The keys of all contents that are stored."""
        return {key for states in self.files().values() for key in states} if self.exists else set()

    def count(self, where: str | None) -> int:
        """The number of rows that satisfy a condition."""
        with lance_errors(self.uri):
            return int(self._table.count_rows(where))

    def _scan(self, columns: Sequence[str], where: str | None = None, *, row_ids: bool = False) -> Iterator[Any]:
        query = self._table.search().select(list(columns)).limit(max(1, len(self)))
        query = query.where(where) if where else query
        with lance_errors(self.uri):
            yield from (query.with_row_id(True) if row_ids else query).to_batches(8192)

    def row_ids(self, where: str) -> NDArray[np.uint64]:
        """Lance's row ids of the rows that satisfy a condition."""
        parts = [batch.column("_rowid").to_numpy() for batch in self._scan(["id"], where, row_ids=True)]
        return np.concatenate([np.empty(0, np.uint64), *parts])

    def vectors(self) -> Iterator[tuple[NDArray[np.uint64], NDArray[np.float16]]]:
        """All vectors ``(N, E)`` with their row ids, a block at a time."""
        for batch in self._scan([VECTOR], row_ids=True):
            flat = batch.column(VECTOR).flatten().to_numpy()
            yield batch.column("_rowid").to_numpy(), flat.reshape(batch.num_rows, -1)

    def nearest(self, vector: NDArray[np.float32], count: int, where: str | None = None) -> list[tuple[int, float]]:
        """Row ids and cosines of about the nearest rows, by the approximate index."""
        query = self._table.search(vector, vector_column_name=VECTOR).distance_type("cosine").ef(max(128, 4 * count))
        return [
            (row, 1 - distance) for row, distance in self._ranked(query.refine_factor(4), "_distance", count, where)
        ]

    def matching(self, question: str, count: int, where: str | None = None) -> list[tuple[int, float]]:
        """Row ids and BM25 scores of the rows that match the words of a question best."""
        depth = max(count, _DEPTH)
        sides = {name: self._matching(name, question, depth, where) for name in _SEARCHED}
        found = [side for side in sides.values() if side]
        if len(found) < 2:  # already in order
            return list(found[0].items())[:count] if found else []
        rows = {row for side in sides.values() for row in side}
        scores = dict.fromkeys(rows, 0.0)
        for name, side in sides.items():
            # A side that is full has left rows out, perhaps some that another one found.
            missing = rows - side.keys() if len(side) == depth else ()
            among = f"_rowid IN ({', '.join(map(str, sorted(missing)))})"
            others = self._matching(name, question, len(missing), among) if missing else {}
            for row, score in chain(side.items(), others.items()):
                scores[row] += score
        return sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))[:count]

    def weight(self, term: str) -> float:
        """How much a term says: the highest BM25 score it can bring, or could if it were in one row."""
        from lancedb.query import MatchQuery

        if self._has_index(WORDS):
            match: Any = MatchQuery(term, WORDS)  # type: ignore[call-arg] # pydantic's defaults
            if found := self._ranked(self._table.search(match, query_type="fts"), "_score", 1, None):
                return found[0][1]
        return _UNSEEN * math.log(2 * len(self) + 2)

    def _matching(self, column: str, question: str, count: int, where: str | None) -> dict[int, float]:
        from lancedb.query import MatchQuery

        read, boost = _SEARCHED[column]
        if not self._has_index(column) or not (terms := read(question)):
            return {}
        match: Any = MatchQuery(" ".join(terms), column, boost=boost)  # type: ignore[call-arg] # pydantic's defaults
        return dict(self._ranked(self._table.search(match, query_type="fts"), "_score", count, where))

    def _ranked(self, query: Any, value: str, count: int, where: str | None) -> list[tuple[int, float]]:
        query = query.limit(count).select([value]).with_row_id(True)
        query = query.where(where, prefilter=True) if where else query
        with lance_errors(self.uri):
            table = query.to_arrow()
        return list(zip(table["_rowid"].to_pylist(), table[value].to_pylist(), strict=True))

    def cosines(self, row_ids: Sequence[int], unit: NDArray[np.float32]) -> dict[int, float]:
        """Cosines of some rows' vectors with a unit vector ``(E,)``."""
        if not row_ids:
            return {}
        table = self._taken(row_ids, [VECTOR])
        vectors = table[VECTOR].combine_chunks().flatten().to_numpy().astype(np.float32).reshape(table.num_rows, -1)
        lengths = np.maximum(np.linalg.norm(vectors, axis=1), 1e-12)
        return dict(zip(table["_rowid"].to_pylist(), (vectors @ unit / lengths).tolist(), strict=True))

    def passages(self, row_ids: Sequence[int]) -> list[StoredPassage]:
        """Passages by Lance's row ids, in that order."""
        if not len(row_ids):
            return []
        by_row = {row["_rowid"]: stored(row) for row in self._taken(row_ids, SHOWN).to_pylist()}
        return [by_row[int(i)] for i in row_ids if int(i) in by_row]

    def _taken(self, row_ids: Sequence[int], columns: Sequence[str]) -> pa.Table:
        with lance_errors(self.uri):
            return self._table.take_row_ids([int(i) for i in row_ids]).select(list(columns)).with_row_id().to_arrow()

    def passages_by_id(self, ids: Sequence[str]) -> list[StoredPassage]:
        """Passages by their own ids, in no order; those that exist."""
        return list(self.passages_where(f"id IN ({', '.join(map(sql_text, ids))})")) if ids else []

    def passages_where(self, where: str | None = None) -> Iterator[StoredPassage]:
        """All passages that satisfy a condition, in no order."""
        for batch in self._scan(SHOWN, where):
            yield from map(stored, batch.to_pylist())

    @property
    def bytes_on_disk(self) -> int | None:
        """The size of the tables; None on another machine."""
        if is_remote(self.uri):
            return None
        folders = (Path(self.uri) / f"{name}.lance" for name in (_PASSAGES, _STATE))
        return sum(file.stat().st_size for folder in folders for file in folder.rglob("*") if file.is_file())


def _file_conditions(file_keys: Iterable[str]) -> Iterator[str]:
    keys = sorted(file_keys)
    for start in range(0, len(keys), _IDS_AT_ONCE):
        yield f"file IN ({', '.join(map(sql_text, keys[start : start + _IDS_AT_ONCE]))})"
