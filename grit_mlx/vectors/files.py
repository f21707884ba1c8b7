"""Vectors to files: .npy, .npz, .jsonl (also gzipped) and .parquet.

Files are written to a temporary name in the folder of the target and renamed at the end, so that a target is
either the old file or the complete new one. Vectors are written as they come: memory does not grow with their
number.

.npy
    The array (N, E), float32 or float16. No texts, and no place for scales.
.npz
    The array ``vectors``; with scales also ``scales`` and ``dimensions``; of the texts ``texts`` and
    ``sources`` (unicode), ``lines`` and ``end_lines`` (int64). Loads with ``allow_pickle=False``.
.jsonl, .jsonl.gz
    One object a line: ``index``, ``source``, ``line``, ``end_line``, ``text``, ``embedding``; with
    scales also ``dtype``, ``dimensions`` and ``scale``.
.parquet
    The columns ``text``, ``source``, ``line``, ``end_line`` and ``embedding``, a list of fixed size; with
    scales also ``scale``.
FOLDER/
    Parquet files of such columns, ``part-00000.parquet`` and so on, as Spark and Ray read and write them.

Fields of rows that are kept are int64 in .npz and Parquet where every row has an integer, and text otherwise.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from os import PathLike, fspath
from pathlib import Path
from typing import IO, Any, BinaryIO, ClassVar, Final
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

import numpy as np
import numpy.typing as npt

from grit_mlx.errors import ArgumentError, Option, OutputError
from grit_mlx.files.atomic import atomic_write, output_errors
from grit_mlx.files.folder import atomic_folder
from grit_mlx.text.rows import failure, missing
from grit_mlx.text.splitting import Text
from grit_mlx.vectors.compression import CompressedVectors, check_dtype, compress

__all__ = ["VectorWriter", "fields_of", "json_lines", "open_writer"]

Stored = npt.NDArray[Any] | CompressedVectors

# Fields of rows that are written beside vectors: their names, or by the names that they are written under.
Kept = Sequence[str] | Mapping[str, str]

_COMPRESSED: Final = ("int8", "binary")
_ROW_GROUP_ROWS: Final = 4096
_FILE_BYTES: Final = 1 << 29  # of the float32 vectors of one file among many
_BLOCK_BYTES: Final = 1 << 16
_UNICODE_LIMIT_BYTES: Final = 4 << 30


# --- writing ------------------------------------------------------------------------------------------------


@contextmanager
def open_writer(
    path: str | PathLike[str], *, dtype: str = "float32", overwrite: bool = True, keep: Kept = ()
) -> Iterator[VectorWriter | _FolderWriter]:
    """Lends a writer for the format that the suffix of a path names.

    That the path can be written is tried at once, before anything is embedded. When the block ends the file
    is put in its place; if it raises, whatever the reason, nothing is left and an existing file is as it was.

    Args:
        path: ends in .npy, .npz, .jsonl, .jsonl.gz or .parquet, or in a slash: a folder of Parquet files.
        dtype: the storage precision, see `grit_mlx.vectors.compression`.
        overwrite: whether an existing file may be replaced.
        keep: names of fields of the texts' rows to write beside the vectors, or by the names to write them under.

    Yields:
        The writer, to which vectors are handed in batches.

    Raises:
        ArgumentError: the format cannot hold the dtype.
        OutputError: the path cannot be written, or has no known suffix, or no vector was written.
    """
    name = fspath(path)
    writer_class = _ParquetWriter if name.endswith("/") else _WRITERS.get(_suffix(name))
    if writer_class is None:
        raise OutputError(f"Cannot write {name}: name a file that ends in {_listed(_WRITERS)}, or a folder, in /.")
    check_dtype(dtype)
    if dtype in _COMPRESSED and not writer_class.keeps_scales:
        kept = _listed(suffix for suffix, writer in _WRITERS.items() if writer.keeps_scales)
        raise ArgumentError(f"A .npy file cannot keep the scales of {dtype} vectors. Write {kept}.")
    if keep and writer_class is _NpyWriter:
        raise ArgumentError("A .npy file holds vectors only, and no fields. Write .npz, .jsonl or .parquet.")
    for column in _named(keep):
        if column in writer_class.columns:
            raise ArgumentError(f"The file has a column {column!r} of its own: leave it out of ", Option("keep"), ".")
    with ExitStack() as stack:
        writer: VectorWriter | _FolderWriter
        if name.endswith("/"):
            _refuse_a_full_folder(name)
            folder = stack.enter_context(atomic_folder(name))
            writer = stack.enter_context(_FolderWriter(folder, name=name, dtype=dtype, keep=keep))
        else:
            file = stack.enter_context(atomic_write(name, overwrite=overwrite))
            writer = stack.enter_context(writer_class(file, name=name, dtype=dtype, keep=keep))
        yield writer
        writer.finish()


def _refuse_a_full_folder(name: str) -> None:
    with output_errors(name):
        if Path(name).is_dir() and any(Path(name).iterdir()):
            raise OutputError(f"Cannot write {name}: it holds files. Name a new folder, or remove this one first.")


class VectorWriter(ABC):
    """Writes vectors to one file, in batches; made by `open_writer`.

    Attributes:
        rows: how many vectors have been written.
    """

    keeps_scales: ClassVar = True
    columns: ClassVar[Sequence[str]] = ("text", "source", "line", "end_line", "embedding", "scale")

    def __init__(self, file: BinaryIO, *, name: str, dtype: str, keep: Kept = ()) -> None:
        self.rows = 0
        self._keep = _named(keep)
        self._file = file
        self._name = name
        self._dtype = dtype
        self._dimensions = 0
        self._has_texts = False
        self._open_files = ExitStack()

    def __enter__(self) -> VectorWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._open_files.close()
        else:  # the file is thrown away: that closing it fails too, on a full disk, must not hide why
            with suppress(Exception):
                self._open_files.close()

    def write(self, vectors: npt.ArrayLike, texts: Sequence[Text] | None = None) -> None:
        """Writes a batch.

        Args:
            vectors: shape (n, E), the same E in each batch.
            texts: the n texts they stand for; all batches have texts or none has. A .npy file leaves them
                out.

        Raises:
            ArgumentError: the shapes do not fit together, or a vector holds NaN or infinity.
            OutputError: the disk is full, or the like.
        """
        stored = compress(vectors, self._dtype)
        if not len(stored):
            return
        dimensions = _dimensions(stored)
        if self.rows and dimensions != self._dimensions:
            raise ArgumentError(f"After vectors of {self._dimensions} dimensions came some of {dimensions}.")
        if self.rows and (texts is not None) != self._has_texts:
            raise ArgumentError("Either all batches come with texts or none does.")
        if texts is not None and len(texts) != len(stored):
            raise ArgumentError(f"There are {len(stored)} vectors, but {len(texts)} texts.")
        with output_errors(self._name):
            if not self.rows:
                self._dimensions, self._has_texts = dimensions, texts is not None
                self._begin()
            self._append(stored, texts)
        self.rows += len(stored)

    def finish(self) -> None:
        """Completes the file; called by `open_writer`.

        Raises:
            OutputError: nothing was written, or the disk is full.
        """
        if not self.rows:
            raise OutputError(f"Cannot write {self._name}: there are no vectors to write.")
        with output_errors(self._name):
            self._finish()
            self._file.flush()

    @abstractmethod
    def _begin(self) -> None:
        """Called before the first batch, when the dimensions are known."""

    @abstractmethod
    def _append(self, stored: Stored, texts: Sequence[Text] | None) -> None: ...

    @abstractmethod
    def _finish(self) -> None: ...


class _NpyWriter(VectorWriter):
    """Rows after a header of fixed size, which learns their number at the end."""

    keeps_scales = False

    def _begin(self) -> None:
        self._file.write(self._header(0))

    def _append(self, stored: Stored, texts: Sequence[Text] | None) -> None:
        self._file.write(_bytes(_values(stored)))

    def _finish(self) -> None:
        self._file.seek(0)
        self._file.write(self._header(self.rows))

    def _header(self, rows: int) -> bytes:
        return _npy_header((rows, self._dimensions), np.dtype(_VALUE_TYPES[self._dtype]))


class _NpzWriter(VectorWriter):
    """A zip of arrays. Each begins with its shape, so rows are kept in temporary files until it is known."""

    columns: ClassVar = ("texts", "sources", "lines", "end_lines", "vectors", "scales", "dimensions")

    def _begin(self) -> None:
        self._spooled_values = self._spool()
        self._spooled_scales = self._spool()
        self._spooled_texts = self._spool()
        self._widths = {"texts": 1, "sources": 1, **dict.fromkeys(self._keep, 1)}  # code points of the longest
        self._whole = set(self._keep)  # those that are integers so far

    def _spool(self) -> IO[bytes]:
        # On the disk of the target, which has to have the room anyway; /tmp may be small, or memory.
        folder = Path(os.path.realpath(self._name)).parent
        return self._open_files.enter_context(tempfile.TemporaryFile(dir=folder))

    def _append(self, stored: Stored, texts: Sequence[Text] | None) -> None:
        self._spooled_values.write(_bytes(_values(stored)))
        if isinstance(stored, CompressedVectors):
            self._spooled_scales.write(_bytes(stored.scales))
        for text in texts or ():
            kept = _kept(text, self._keep)
            self._whole -= {name for name, value in kept.items() if not _is_whole(value)}
            fields = [_as_text(value) or "" for value in kept.values()]
            cells = [_clean(text.text), _clean(text.source), *fields]
            for name, cell in zip(self._widths, cells, strict=True):
                self._widths[name] = max(self._widths[name], len(cell))
            row = [*cells[:2], text.line, text.end_line, *fields]
            self._spooled_texts.write(json.dumps(row).encode() + b"\n")
        padded = 4 * max(self._widths.values()) * (self.rows + len(stored))  # bytes
        if texts is not None and padded > _UNICODE_LIMIT_BYTES:
            reason = "arrays pad all texts to the longest, which takes too much memory here"
            raise OutputError(f"Cannot write {self._name}: {reason}. Write .parquet or .jsonl instead.")

    def _finish(self) -> None:
        kind = np.dtype(_VALUE_TYPES[self._dtype])
        columns = -(-self._dimensions // 8) if self._dtype == "binary" else self._dimensions
        with ZipFile(self._file, "w") as archive:
            self._add(archive, "vectors", (self.rows, columns), kind, _blocks(self._spooled_values))
            if self._dtype in _COMPRESSED:
                scales = _blocks(self._spooled_scales)
                self._add(archive, "scales", (self.rows,), np.dtype(np.float32), scales)
                dimensions = np.array(self._dimensions, np.int64)
                self._add(archive, "dimensions", (), dimensions.dtype, [_bytes(dimensions)])
            if self._has_texts:
                self._add_texts(archive)

    def _add_texts(self, archive: ZipFile) -> None:
        columns = {
            "texts": np.dtype(f"U{self._widths['texts']}"),
            "sources": np.dtype(f"U{self._widths['sources']}"),
            "lines": np.dtype(np.int64),
            "end_lines": np.dtype(np.int64),
            **{name: np.dtype(np.int64 if name in self._whole else f"U{self._widths[name]}") for name in self._keep},
        }
        for index, (column, kind) in enumerate(columns.items()):
            self._spooled_texts.seek(0)
            cells = (np.array(json.loads(row)[index], kind).tobytes() for row in self._spooled_texts)
            self._add(archive, column, (self.rows,), kind, cells, method=ZIP_DEFLATED)

    @staticmethod
    def _add(
        archive: ZipFile,
        array: str,
        shape: tuple[int, ...],
        kind: np.dtype[Any],
        blocks: Iterable[bytes],
        *,
        method: int = ZIP_STORED,
    ) -> None:
        entry = ZipInfo(f"{array}.npy")  # of a fixed date: the same vectors make the same file
        entry.compress_type = method
        with archive.open(entry, "w", force_zip64=True) as file:
            file.write(_npy_header(shape, kind))
            for block in blocks:
                file.write(block)


class _JsonlWriter(VectorWriter):
    columns: ClassVar = ("index", *VectorWriter.columns, "dtype", "dimensions")

    def _begin(self) -> None:
        self._sink: BinaryIO | gzip.GzipFile = self._file

    def _append(self, stored: Stored, texts: Sequence[Text] | None) -> None:
        for line in json_lines(stored, texts, first=self.rows, keep=self._keep):
            self._sink.write(line.encode() + b"\n")

    def _finish(self) -> None:
        pass


class _JsonlGzipWriter(_JsonlWriter):
    def _begin(self) -> None:
        # Neither a name nor a date: the same vectors make the same file.
        packed = gzip.GzipFile(filename="", fileobj=self._file, mode="wb", compresslevel=6, mtime=0)
        self._sink = self._open_files.enter_context(packed)

    def _finish(self) -> None:
        self._sink.close()


class _ParquetWriter(VectorWriter):
    """Row groups of some thousand rows, gathered from smaller batches.

    A column that held integers so far and holds something else now becomes text: what is written is written again.

    Attributes:
        whole: the fields that are integers so far.
    """

    def __init__(self, file: BinaryIO, *, name: str, dtype: str, keep: Kept = ()) -> None:
        super().__init__(file, name=name, dtype=dtype, keep=keep)
        self.whole = set(self._keep)

    def _begin(self) -> None:
        self._gathered: list[Any] = []  # record batches
        self._parquet: Any = None
        self._open_files.callback(self._close)
        self._schema = self._columns()

    def _columns(self) -> Any:
        """The schema, with the integers there are."""
        import pyarrow as pa

        values = np.dtype(_VALUE_TYPES[self._dtype])
        columns = -(-self._dimensions // 8) if self._dtype == "binary" else self._dimensions
        fields = [("embedding", pa.list_(pa.from_numpy_dtype(values), columns))]
        if self._dtype in _COMPRESSED:
            fields.append(("scale", pa.float32()))
        if self._has_texts:
            strings = [(name, pa.string()) for name in ("text", "source")]
            numbers = [(name, pa.int64()) for name in ("line", "end_line")]
            kept = [(name, pa.int64() if name in self.whole else pa.string()) for name in self._keep]
            fields = [*strings, *numbers, *kept, *fields]
        facts = {"grit_mlx.dtype": self._dtype, "grit_mlx.dimensions": str(self._dimensions)}
        return pa.schema(fields, metadata=facts)

    def _append(self, stored: Stored, texts: Sequence[Text] | None) -> None:
        import pyarrow as pa

        values = _values(stored)
        flat = pa.array(np.ascontiguousarray(values).reshape(-1))  # (n, E) -> (n * E,)
        columns: dict[str, Any] = {"embedding": pa.FixedSizeListArray.from_arrays(flat, values.shape[1])}
        if isinstance(stored, CompressedVectors):
            columns["scale"] = pa.array(stored.scales)
        if texts is not None:
            columns["text"] = pa.array([_clean(text.text) for text in texts], pa.string())
            columns["source"] = pa.array([_clean(text.source) for text in texts], pa.string())
            columns["line"] = pa.array([text.line for text in texts], pa.int64())
            columns["end_line"] = pa.array([text.end_line for text in texts], pa.int64())
            rows = [_kept(text, self._keep) for text in texts]
            self._take([name for name in self._keep if not all(_is_whole(row[name]) for row in rows)])
            columns |= {name: self._column([row[name] for row in rows], name) for name in self._keep}
        batch = pa.record_batch([columns[name] for name in self._schema.names], schema=self._schema)
        self._gathered.append(batch)
        if sum(len(batch) for batch in self._gathered) >= _ROW_GROUP_ROWS:
            self._write_group()

    def _column(self, values: Sequence[object], name: str) -> Any:
        import pyarrow as pa

        return pa.array(values, pa.int64()) if name in self.whole else pa.array(map(_as_text, values), pa.string())

    def _take(self, texts: Iterable[str]) -> None:
        """Write these fields as text from now on, and what is written of them as well."""
        if not self.whole.intersection(texts):
            return
        self.whole -= set(texts)
        self._schema = self._columns()
        self._gathered = [batch.cast(self._schema) for batch in self._gathered]
        if self._parquet is not None:
            self._close()
            self._file.flush()
            with tempfile.TemporaryFile(dir=Path(self._file.name).parent) as before:
                with Path(self._file.name).open("rb") as written:
                    shutil.copyfileobj(written, before)
                self._file.seek(0)
                self._file.truncate()
                self._parquet = _with_schema(before, self._file, self._schema)

    def _write_group(self) -> None:
        import pyarrow as pa

        self._parquet = self._parquet or _parquet(self._file, self._schema)
        self._parquet.write_table(pa.Table.from_batches(self._gathered, self._schema))
        self._gathered = []

    def _finish(self) -> None:
        if self._gathered:
            self._write_group()
        self._close()

    def _close(self) -> None:
        if self._parquet is not None:
            self._parquet.close()


def _parquet(file: BinaryIO, schema: Any) -> Any:
    from pyarrow.parquet import ParquetWriter

    # Only sources repeat enough to be worth a dictionary.
    return ParquetWriter(file, schema, use_dictionary=["source"] if "source" in schema.names else False)


def _with_schema(before: IO[bytes], file: BinaryIO, schema: Any) -> Any:
    """A writer of a file that has the groups of another one, with columns of other types."""
    from pyarrow.parquet import ParquetFile

    groups, writer = ParquetFile(before), _parquet(file, schema)
    for number in range(groups.num_row_groups):
        writer.write_table(groups.read_row_group(number).cast(schema))
    return writer


class _FolderWriter:
    """Parquet files in a folder, each of about half a gigabyte."""

    def __init__(self, folder: Path, *, name: str, dtype: str, keep: Kept = ()) -> None:
        self.rows = 0
        self._folder, self._name, self._dtype, self._keep = folder, name, dtype, keep
        self._file = ExitStack()
        self._paths: list[Path] = []
        self._whole = set(_named(keep))
        self._writer: _ParquetWriter | None = None

    def __enter__(self) -> _FolderWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            with suppress(Exception):  # as a writer of one file
                self._file.close()

    def write(self, vectors: npt.ArrayLike, texts: Sequence[Text] | None = None) -> None:
        """As `VectorWriter.write`."""
        vectors = np.asarray(vectors)
        if self._writer is not None and self._writer.rows * vectors[0].nbytes >= _FILE_BYTES:
            self._end_file()
        with output_errors(self._name):
            if self._writer is None:
                path = self._folder / f"part-{len(self._paths):05}.parquet"
                file = self._file.enter_context(path.open("wb"))
                self._writer = _ParquetWriter(file, name=self._name, dtype=self._dtype, keep=self._keep)
                self._writer.whole = self._whole  # what one file has found is so in all
                self._file.enter_context(self._writer)
                self._paths.append(path)
        self._writer.write(vectors, texts)
        self.rows += len(vectors)

    def finish(self) -> None:
        """As `VectorWriter.finish`."""
        if not self.rows:
            raise OutputError(f"Cannot write {self._name}: there are no vectors to write.")
        self._end_file()
        with output_errors(self._name):
            for path in self._paths:
                _with_texts(path, self._whole)

    def _end_file(self) -> None:
        if self._writer is not None:
            self._writer.finish()
            self._writer = None
            self._file.close()


def _with_texts(path: Path, whole: Collection[str]) -> None:
    """Make text of a file's integers that are not integers in others of its folder."""
    import pyarrow as pa
    from pyarrow.parquet import read_schema

    schema, own = read_schema(path), ("line", "end_line")
    changed = [name for name in schema.names if schema.field(name).type == pa.int64() and name not in (*own, *whole)]
    if not changed:
        return
    for name in changed:
        schema = schema.set(schema.get_field_index(name), pa.field(name, pa.string()))
    with path.open("rb") as before, atomic_write(path) as file:
        _with_schema(before, file, schema).close()


_WRITERS: Final[dict[str, type[VectorWriter]]] = {
    ".npy": _NpyWriter,
    ".npz": _NpzWriter,
    ".jsonl": _JsonlWriter,
    ".jsonl.gz": _JsonlGzipWriter,
    ".parquet": _ParquetWriter,
}

_VALUE_TYPES: Final = {"float32": "<f4", "float16": "<f2", "int8": "i1", "binary": "u1"}
# As many digits as it takes to read the same number back.
_NUMBER_FORMATS: Final = {"float32": "%.9g", "float16": "%.5g", "int8": "%d", "uint8": "%d"}


def json_lines(
    vectors: Stored, texts: Sequence[Text] | None = None, *, first: int = 0, keep: Kept = ()
) -> Iterator[str]:
    """One JSON object per vector, without line ends: the contents of a .jsonl file.

    Args:
        vectors: (n, E), as `grit_mlx.vectors.compression.compress` gives them.
        texts: the n texts they stand for; None leaves their keys out.
        first: the index of the first vector.
        keep: as for `open_writer`; an id is kept in any case.
    """
    values = _values(vectors)
    number = _NUMBER_FORMATS[values.dtype.name]
    for row, embedding in enumerate(values):
        entry: dict[str, object] = {"index": first + row}
        if texts is not None:
            text = texts[row]
            entry |= {"source": _clean(text.source), "line": text.line, "end_line": text.end_line}
            entry["text"] = _clean(text.text)
            entry |= {name: value for name, value in fields_of(text, keep).items() if name not in entry}
        if isinstance(vectors, CompressedVectors):
            entry |= {"dtype": vectors.dtype, "dimensions": vectors.dimensions}
            entry["scale"] = float(vectors.scales[row])
        elif values.dtype != np.float32:
            entry["dtype"] = values.dtype.name  # by which the few digits of a float16 read back alike
        numbers = ", ".join([number % value for value in embedding.tolist()])
        yield f'{json.dumps(entry, ensure_ascii=False)[:-1]}, "embedding": [{numbers}]}}'


def fields_of(text: Text, keep: Kept = ()) -> dict[str, object]:
    """The fields of a text's row that stand beside it in JSON: its id, and those named.

    Raises:
        DocumentError: the row has no field of a name.
    """
    ids = {name: text.fields[name] for name in ("id", "_id") if name in text.fields} if text.fields else {}
    return {**ids, **_kept(text, _named(keep))}


def _named(keep: Kept) -> dict[str, str]:
    """Names of fields by the names that they are written under."""
    return dict(keep) if isinstance(keep, Mapping) else {name: name for name in keep}


def _kept(text: Text, keep: Mapping[str, str]) -> dict[str, object]:
    for name in keep.values():
        if text.fields is None or name not in text.fields:
            raise failure(text.source, text.line, missing([name], text.fields or ()))
    return {name: text.fields[field] for name, field in keep.items()} if text.fields else {}


def _is_whole(value: object) -> bool:
    """Whether it is an integer that int64 holds."""
    return isinstance(value, int) and not isinstance(value, bool) and -(1 << 63) <= value < 1 << 63


def _as_text(value: object) -> str | None:
    return None if value is None else _clean(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _npy_header(shape: tuple[int, ...], kind: np.dtype[Any]) -> bytes:
    """128 bytes whatever the shape, so that they can be written again (NEP 1, format version 1.0)."""
    facts = f"{{'descr': '{kind.str}', 'fortran_order': False, 'shape': {shape}, }}"
    return b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + f"{facts:<117}\n".encode("latin-1")


def _blocks(file: IO[bytes]) -> Iterator[bytes]:
    file.seek(0)
    while block := file.read(_BLOCK_BYTES):
        yield block


def _values(stored: Stored) -> npt.NDArray[Any]:
    return stored.values if isinstance(stored, CompressedVectors) else stored


def _dimensions(stored: Stored) -> int:
    return stored.dimensions if isinstance(stored, CompressedVectors) else stored.shape[1]


def _bytes(array: npt.NDArray[Any]) -> bytes:
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def _clean(text: str) -> str:
    # A file name that is not UTF-8 reaches Python as lone surrogates, which no output format can hold.
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _suffix(name: str) -> str:
    *_, before, last = ["", "", *Path(name.lower()).suffixes]
    return before + last if last == ".gz" else last


def _listed(suffixes: Iterable[str]) -> str:
    *others, last = suffixes
    return f"{', '.join(others)} or {last}"
