"""What a store holds of each passage: one table of columns, from which rows are written and read back. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from grit_mlx.rag.words import indexed_parts, indexed_words
from grit_mlx.text.passages import Passage
from grit_mlx.text.walking import stored_name

__all__ = [
    "CONTENT",
    "FORMAT",
    "PARTS",
    "SHOWN",
    "VECTOR",
    "WORDS",
    "NewPassage",
    "SourceFile",
    "StoredPassage",
    "rows",
    "schema",
    "stored",
    "with_words",
]

# 2: the columns of words. What ``words`` returns is part of it.
FORMAT: Final = 2

VECTOR, CONTENT, WORDS, PARTS = "vector", "content", "words", "parts"


class SourceFile(NamedTuple):
    """One content of a file."""

    key: str  # of the name and the content
    name: str  # see walking.stored_name
    content_hash: str  # of the file's bytes
    unit: str  # what its places count: "line", "page" or "paragraph"


class NewPassage(NamedTuple):
    """A passage to be stored."""

    file: SourceFile
    number: int  # among the file's passages, from 0
    last: bool  # whether it is the file's last one
    passage: Passage

    @property
    def id(self) -> str:
        """Of the file, its content and the number."""
        return f"{self.file.key}-{self.number}"


@dataclass(frozen=True, kw_only=True)
class StoredPassage(Passage):
    """A passage of a store.

    Attributes:
        id: of its file, the file's content and its number.
        source: the file, see ``walking.stored_name``.
        unit: what its places count: "line", "page" or "paragraph".
    """

    id: str
    source: str
    unit: str

    @property
    def place(self) -> str:
        """Where it stands, as editors and people write it: ``notes.md:3-9``, ``book.pdf, page 7``.

        Relative to the current folder for what lies in it.
        """
        path, here = Path(self.source), Path(stored_name(Path.cwd()))
        shown = path.relative_to(here).as_posix() if path.is_relative_to(here) else self.source
        span = f"{self.line}" if self.line == self.end_line else f"{self.line}-{self.end_line}"
        return f"{shown}:{span}" if self.unit == "line" else f"{shown}, {self.unit} {span}"


# Each column with its type and what it holds of a passage; the vector comes last.
_COLUMNS: Final[dict[str, tuple[pa.DataType, Callable[[NewPassage], Any]]]] = {
    "id": (pa.string(), lambda new: new.id),
    "file": (pa.string(), lambda new: new.file.key),
    "name": (pa.string(), lambda new: new.file.name),
    "content_hash": (pa.string(), lambda new: new.file.content_hash),
    "number": (pa.int32(), lambda new: new.number),
    "last": (pa.bool_(), lambda new: new.last),
    "unit": (pa.string(), lambda new: new.file.unit),
    "line": (pa.int32(), lambda new: new.passage.line),
    "end_line": (pa.int32(), lambda new: new.passage.end_line),
    "heading": (pa.string(), lambda new: new.passage.heading),
    CONTENT: (pa.string(), lambda new: new.passage.content),
    # Characters of the content before the text.
    "skip": (pa.int32(), lambda new: len(new.passage.content) - len(new.passage.text)),
    "metadata": (pa.list_(pa.string()), lambda new: list(new.passage.metadata)),
}

# What full-text search needs of the content.
_INDEXED: Final[dict[str, Callable[[str], str | None]]] = {WORDS: indexed_words, PARTS: indexed_parts}

# Nobody reads these columns but the index, when it is built.
_COMPRESSED: Final = {"lance-encoding:compression": "zstd"}

# What ``stored`` needs.
SHOWN: Final = ("id", "name", "unit", "line", "end_line", "heading", CONTENT, "skip", "metadata")


def schema(embedding_size: int, fingerprint: Mapping[str, Any]) -> pa.Schema:
    """The schema of a store, which carries the fingerprint: there never is one without the other."""
    fields = [pa.field(name, kind) for name, (kind, _) in _COLUMNS.items()]
    indexed = [pa.field(name, pa.string(), metadata=_COMPRESSED) for name in _INDEXED]
    vector = pa.field(VECTOR, pa.list_(pa.float16(), embedding_size))
    about = json.dumps({"format": FORMAT, "fingerprint": dict(fingerprint)})
    return pa.schema([*fields, *indexed, vector], metadata={"grit": about})


def rows(passages: Sequence[NewPassage], vectors: NDArray[np.float32]) -> pa.Table:
    """Passages and their vectors ``(N, E)`` as an Arrow table, its columns in the order of ``schema``."""
    arrays = [pa.array([value(new) for new in passages], type=kind) for kind, value in _COLUMNS.values()]
    flat = pa.array(np.ascontiguousarray(vectors, dtype=np.float16).reshape(-1))
    arrays.append(pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]))
    return with_words(pa.Table.from_arrays(arrays, names=[*_COLUMNS, VECTOR]))


def with_words(table: pa.Table) -> pa.Table:
    """Rows with the columns of words, made from their contents; those that they have are made anew."""
    contents = table[CONTENT].to_pylist()
    columns = {name: table[name] for name in table.column_names if name not in _INDEXED}
    vector = columns.pop(VECTOR)
    made = {name: pa.array(map(read, contents), type=pa.string()) for name, read in _INDEXED.items()}
    return pa.table({**columns, **made, VECTOR: vector})


def stored(values: Mapping[str, Any]) -> StoredPassage:
    """A row with the columns ``SHOWN``."""
    return StoredPassage(
        id=values["id"],
        source=values["name"],
        unit=values["unit"],
        text=values[CONTENT][values["skip"] :],
        line=values["line"],
        end_line=values["end_line"],
        heading=values["heading"],
        metadata=tuple(values["metadata"]),
    )
