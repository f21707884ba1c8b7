"""The store's tables in LanceDB: passages, their vectors and indices, and which version of them is published.

Lance keeps every version of a table. Writers append and delete as they go on, which makes new versions, and
readers see the version that the tag ``published`` points to. Moving the tag is the one atomic commit: until then an
interrupted run is invisible, and what it computed is still there for the next one.
"""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from grit_mlx.errors import GritError, OutputError, StoreError
from grit_mlx.text.passages import Passage

__all__ = ["FileState", "PassageTable", "Row", "is_remote", "sql_text"]

logger = logging.getLogger("grit_mlx")

FORMAT: Final = 1

_PASSAGES, _STATE = "passages", "state"
_PUBLISHED = "published"
_VECTOR, _CONTENT = "vector", "content"

# What a hit is made of; everything but the vector.
_SHOWN: Final = ("id", "name", "unit", "line", "end_line", "heading", "content", "skip", "metadata")

# Versions are kept for this long after they were replaced, for those who still read them.
_GRACE: Final = timedelta(hours=1)
_NEVER: Final = timedelta(days=36500)  # optimize() would otherwise clean up on its own, the published one included

_IDS_AT_ONCE: Final = 500  # in one SQL expression

_DISK_FULL: Final = ("No space left", "os error 28", "File too large", "os error 27", "quota exceeded", "os error 122")


@dataclass(frozen=True)
class Row:
    """A passage as it is stored.

    Attributes:
        id: of its file, the file's content and its place among its passages.
        name: the file, see ``walking.stored_name``.
        unit: what its places count: "line", "page" or "paragraph".
        passage: the passage itself.
    """

    id: str
    name: str
    unit: str
    passage: Passage


@dataclass
class FileState:
    """What is stored of one content of a file.

    Attributes:
        content_hash: of the file's bytes.
        rows: passages that are stored.
        complete: whether the last passage is among them.
    """

    content_hash: str
    rows: int = 0
    complete: bool = False


def is_remote(uri: str) -> bool:
    """Whether a store lies on another machine."""
    return "://" in uri


def sql_text(value: str) -> str:
    """A text as a literal of SQL."""
    return "'" + value.replace("'", "''") + "'"


class PassageTable:
    """Passages in LanceDB. Nothing here knows of models.

    Args:
        uri: a folder, ``s3://bucket/path``, ``gs://...``, or ``db://name`` for LanceDB's server.
        published: see the version that readers see; False for the newest one, which writers go on from.
    """

    def __init__(self, uri: str, *, published: bool = True) -> None:
        self.uri = uri
        self._database = _connected(uri)
        self._table: Any = None
        if _PASSAGES not in _tables(self._database):
            return
        with _told(uri):
            self._table = self._database.open_table(_PASSAGES)
            if published:
                if _PUBLISHED not in self._table.tags.list():
                    self._table = None
                else:
                    self._table.checkout(_PUBLISHED)

    @property
    def exists(self) -> bool:
        """Whether there is anything to read (or, for a writer, to go on from)."""
        return self._table is not None

    def create(self, embedding_size: int, fingerprint: Mapping[str, Any]) -> None:
        """Make the table, with the fingerprint in its schema: there never is one without the other."""
        import pyarrow as pa

        fields = {
            "id": pa.string(),
            "file": pa.string(),
            "name": pa.string(),
            "content_hash": pa.string(),
            "number": pa.int32(),
            "last": pa.bool_(),
            "unit": pa.string(),
            "line": pa.int32(),
            "end_line": pa.int32(),
            "heading": pa.string(),
            _CONTENT: pa.string(),
            "skip": pa.int32(),  # characters of content before the text
            "metadata": pa.list_(pa.string()),
            _VECTOR: pa.list_(pa.float16(), embedding_size),
        }
        about = json.dumps({"format": FORMAT, "fingerprint": dict(fingerprint)})
        schema = pa.schema(list(fields.items()), metadata={"grit": about})
        with _told(self.uri):
            self._table = self._database.create_table(_PASSAGES, schema=schema)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What the store was made with.

        Raises:
            StoreError: it is no store of grit-mlx, or a later version's.
        """
        about = (self._table.schema.metadata or {}).get(b"grit")
        if about is None:
            raise StoreError(f"{self.uri} holds a table 'passages' that grit-mlx did not make. Choose another place.")
        content = json.loads(about)
        if content.get("format") != FORMAT:
            raise StoreError(f"{self.uri} has format {content.get('format')!r}: update grit-mlx, or index anew.")
        return dict(content["fingerprint"])

    @property
    def version(self) -> int:
        """Grows with every change."""
        return int(self._table.version)

    @property
    def embedding_size(self) -> int:
        """E."""
        return int(self._table.schema.field(_VECTOR).type.list_size)

    def __len__(self) -> int:
        return int(self._table.count_rows()) if self.exists else 0

    # Writing

    def prepared(
        self,
        file: tuple[str, str, str],
        unit: str,
        passages: Sequence[tuple[int, bool, Passage]],
        vectors: NDArray[np.float32],
    ) -> Any:
        """Rows of one file as an Arrow table; ``add`` stores them.

        Args:
            file: its key, name and the hash of its content.
            unit: what its places count.
            passages: number within the file from 0, whether it is the last, and the passage.
            vectors: ``(N, E)``.
        """
        import pyarrow as pa

        key, name, content_hash = file
        schema = self._table.schema
        columns: dict[str, Any] = {
            "id": [f"{key}-{number}" for number, _, _ in passages],
            "file": [key] * len(passages),
            "name": [name] * len(passages),
            "content_hash": [content_hash] * len(passages),
            "number": [number for number, _, _ in passages],
            "last": [last for _, last, _ in passages],
            "unit": [unit] * len(passages),
            "line": [passage.line for _, _, passage in passages],
            "end_line": [passage.end_line for _, _, passage in passages],
            "heading": [passage.heading for _, _, passage in passages],
            _CONTENT: [passage.content for _, _, passage in passages],
            "skip": [len(passage.content) - len(passage.text) for _, _, passage in passages],
            "metadata": [list(passage.metadata) for _, _, passage in passages],
        }
        flat = pa.array(np.ascontiguousarray(vectors, dtype=np.float16).reshape(-1))
        arrays = [
            pa.FixedSizeListArray.from_arrays(flat, self.embedding_size)
            if field.name == _VECTOR
            else pa.array(columns[field.name], type=field.type)
            for field in schema
        ]
        return pa.Table.from_arrays(arrays, schema=schema)

    def add(self, parts: Sequence[Any]) -> None:
        """Store what ``prepared`` made, as one version."""
        import pyarrow as pa

        if parts:
            with _told(self.uri):
                self._table.add(pa.concat_tables(parts))

    def delete(self, file_keys: Iterable[str]) -> None:
        """Remove all passages of some contents of files."""
        for where in _file_conditions(file_keys):
            with _told(self.uri):
                self._table.delete(where)

    def contents_of(self, file_keys: Iterable[str]) -> Iterator[str]:
        """What is embedded of all passages of some contents of files."""
        for where in _file_conditions(file_keys):
            for batch in self._scan([_CONTENT], where):
                yield from batch.column(_CONTENT).to_pylist()

    def update_text_index(self) -> None:
        """Bring the full-text index, and every other, up to date with the rows."""
        from lancedb.index import FTS

        with _told(self.uri):
            if not any(index.columns == [_CONTENT] for index in self._table.list_indices()):
                if len(self):
                    # Every language: no words are dropped, and only English endings are.
                    self._table.create_index(_CONTENT, config=FTS(remove_stop_words=False), replace=True)
            else:
                self._table.optimize(cleanup_older_than=_NEVER)

    def build_vector_index(self) -> None:
        """Make Lance's approximate index of the vectors anew."""
        from lancedb.index import IvfHnswSq

        rows = len(self)
        with _told(self.uri):
            # About a million vectors to a partition is Lance's advice for graphs; few partitions, few misses.
            partitions = max(1, rows // 1_000_000)
            self._table.create_index(
                _VECTOR, config=IvfHnswSq(distance_type="cosine", num_partitions=partitions), replace=True
            )

    @property
    def has_vector_index(self) -> bool:
        """Whether the approximate index was built."""
        return any(index.columns == [_VECTOR] for index in self._table.list_indices())

    def publish(self) -> None:
        """Let readers see what was written: the one commit of a run. Old versions go, after some grace."""
        with _told(self.uri):
            version = self._table.version
            if _PUBLISHED in self._table.tags.list():
                self._table.tags.update(_PUBLISHED, version)
            else:
                self._table.tags.create(_PUBLISHED, version)
        try:
            with _told(self.uri):
                self._table.optimize(cleanup_older_than=_GRACE)
                if self._table.version != version:  # it merged small files; the rows are the same
                    self._table.tags.update(_PUBLISHED, self._table.version)
        except (StoreError, OutputError) as error:
            # The rows are published; the next run tidies up.
            logger.info("Old versions were not removed: %s", error)

    @property
    def is_published(self) -> bool:
        """Whether readers see the newest version."""
        tags = self._table.tags.list()
        return _PUBLISHED in tags and int(tags[_PUBLISHED]["version"]) == self.version

    def drop_unpublished(self) -> None:
        """Go back to what readers see, from what an interrupted run left."""
        if not self.is_published:
            with _told(self.uri):
                if _PUBLISHED in self._table.tags.list():
                    self._table.checkout(_PUBLISHED)
                    self._table.restore()
                else:
                    self._table.delete("true")

    def read_state(self) -> dict[str, Any]:
        """Small facts that were measured, such as the threshold of relevance."""
        if _STATE not in _tables(self._database):
            return {}
        with _told(self.uri):
            return dict(json.loads(self._database.open_table(_STATE).to_arrow()["json"][0].as_py()))

    def write_state(self, **values: Any) -> None:
        """Set some of these facts."""
        state = {**self.read_state(), **values}
        with _told(self.uri):
            self._database.create_table(_STATE, [{"json": json.dumps(state)}], mode="overwrite")

    # Reading

    def files(self) -> dict[str, dict[str, FileState]]:
        """For each name the contents that are stored, by the key of the file."""
        found: dict[str, dict[str, FileState]] = {}
        for batch in self._scan(["file", "name", "content_hash", "last"]):
            columns = (batch.column(name).to_pylist() for name in ("file", "name", "content_hash", "last"))
            for key, name, content_hash, last in zip(*columns, strict=True):
                state = found.setdefault(name, {}).setdefault(key, FileState(content_hash))
                state.rows += 1
                state.complete |= last
        return found

    def file_keys(self) -> set[str]:
        """The contents of files that are stored."""
        return {key for states in self.files().values() for key in states} if self.exists else set()

    def _scan(self, columns: Sequence[str], where: str | None = None, *, row_ids: bool = False) -> Iterator[Any]:
        query = self._table.search().select(list(columns)).limit(max(1, len(self)))
        query = query.where(where) if where else query
        with _told(self.uri):
            yield from (query.with_row_id(True) if row_ids else query).to_batches(8192)

    def row_ids(self, where: str) -> NDArray[np.uint64]:
        """Lance's numbers of the rows that a condition holds for."""
        parts = [batch.column("_rowid").to_numpy() for batch in self._scan(["id"], where, row_ids=True)]
        return np.concatenate([np.empty(0, np.uint64), *parts])

    def vectors(self) -> Iterator[tuple[NDArray[np.uint64], NDArray[np.float16]]]:
        """All vectors ``(N, E)`` with Lance's numbers of their rows, a block at a time."""
        for batch in self._scan([_VECTOR], row_ids=True):
            flat = batch.column(_VECTOR).flatten().to_numpy()
            yield batch.column("_rowid").to_numpy(), flat.reshape(batch.num_rows, -1)

    def nearest(self, vector: NDArray[np.float32], count: int, where: str | None = None) -> list[tuple[int, float]]:
        """Row numbers and cosines of about the nearest rows, by the approximate index."""
        query = self._table.search(vector, vector_column_name=_VECTOR).distance_type("cosine").ef(max(128, 4 * count))
        query = query.refine_factor(4).limit(count).select(["id", "_distance"]).with_row_id(True)
        query = query.where(where, prefilter=True) if where else query
        with _told(self.uri):
            found = query.to_arrow()
        return list(zip(found["_rowid"].to_pylist(), [1 - d for d in found["_distance"].to_pylist()], strict=True))

    def cosines(self, row_ids: Sequence[int], unit: NDArray[np.float32]) -> dict[int, float]:
        """Of some rows' vectors with a unit vector ``(E,)``."""
        if not row_ids:
            return {}
        with _told(self.uri):
            found = self._table.take_row_ids([int(i) for i in row_ids]).select([_VECTOR]).with_row_id().to_arrow()
        stored = found[_VECTOR].combine_chunks().flatten().to_numpy().astype(np.float32).reshape(found.num_rows, -1)
        lengths = np.maximum(np.linalg.norm(stored, axis=1), 1e-12)
        return dict(zip(found["_rowid"].to_pylist(), (stored @ unit / lengths).tolist(), strict=True))

    def matching(self, words: str, count: int, where: str | None = None) -> list[tuple[int, float]]:
        """Row numbers and BM25 scores of the rows that match some words best."""
        from lancedb.query import MatchQuery

        if not any(index.columns == [_CONTENT] for index in self._table.list_indices()):
            return []
        match: Any = MatchQuery(words, _CONTENT)  # type: ignore[call-arg] # pydantic's defaults are not seen
        query = self._table.search(match, query_type="fts").limit(count)
        query = query.select(["id", "_score"]).with_row_id(True)
        query = query.where(where, prefilter=True) if where else query
        with _told(self.uri):
            found = query.to_arrow()
        return list(zip(found["_rowid"].to_pylist(), found["_score"].to_pylist(), strict=True))

    def rows(self, row_ids: Sequence[int]) -> list[Row]:
        """Rows by Lance's numbers, in that order."""
        if not row_ids:
            return []
        with _told(self.uri):
            table = self._table.take_row_ids([int(i) for i in row_ids]).select(list(_SHOWN)).with_row_id().to_arrow()
        found = {row["_rowid"]: _row(row) for row in table.to_pylist()}
        return [found[int(i)] for i in row_ids if int(i) in found]

    def rows_by_id(self, ids: Sequence[str]) -> list[Row]:
        """Rows by their own ids, in no order; those that are there."""
        return list(self.rows_where(f"id IN ({', '.join(map(sql_text, ids))})")) if ids else []

    def rows_where(self, where: str | None = None) -> Iterator[Row]:
        """All rows that a condition holds for."""
        for batch in self._scan(_SHOWN, where):
            yield from map(_row, batch.to_pylist())

    @property
    def bytes_on_disk(self) -> int | None:
        """Of the tables; None on another machine."""
        if is_remote(self.uri):
            return None
        folders = (Path(self.uri) / f"{name}.lance" for name in (_PASSAGES, _STATE))
        return sum(file.stat().st_size for folder in folders for file in folder.rglob("*") if file.is_file())


def _file_conditions(file_keys: Iterable[str]) -> Iterator[str]:
    keys = sorted(file_keys)
    for start in range(0, len(keys), _IDS_AT_ONCE):
        yield f"file IN ({', '.join(map(sql_text, keys[start : start + _IDS_AT_ONCE]))})"


def _row(values: Mapping[str, Any]) -> Row:
    passage = Passage(
        text=values["content"][values["skip"] :],
        line=values["line"],
        end_line=values["end_line"],
        heading=values["heading"],
        metadata=tuple(values["metadata"]),
    )
    return Row(values["id"], values["name"], values["unit"], passage)


def _connected(uri: str) -> Any:
    # Its log of warnings tells users of calls that are not theirs.
    os.environ.setdefault("LANCEDB_LOG", "error")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import lancedb
    with _told(uri):
        return lancedb.connect(uri)


def _tables(database: Any) -> list[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return list(database.table_names(limit=1000))


@contextmanager
def _told(uri: str) -> Iterator[None]:
    """Turn what Lance says into a sentence."""
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        if isinstance(error, GritError):
            raise
        if any(sign in str(error) for sign in _DISK_FULL):
            raise OutputError(
                f"Cannot write to the store {uri}: the disk is full. Make room and run the same command again: "
                "it goes on where it stopped."
            ) from error
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [repr(error)]
        raise StoreError(f"The store {uri} cannot be used: {lines[0][:300].rstrip('.')}.") from error
