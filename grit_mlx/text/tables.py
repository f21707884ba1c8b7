"""Rows of Parquet and Arrow files, as ``datasets``, the hub, Spark and Ray keep them."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from grit_mlx.errors import first_line
from grit_mlx.text.rows import Row, failure

__all__ = ["READERS", "dataset_files", "table_rows"]

READERS = ("parquet", "arrow")

# Rows that are in memory at once.
_BATCH_ROWS = 1024


def dataset_files(name: str) -> list[str]:
    """The files that a name stands for, in order: the Parquet files below a folder, those that match a pattern.

    Names that begin with a dot or an underscore are left out, as Spark and pyarrow do. Any other name stands for
    itself, and so does a folder or pattern that finds nothing.
    """
    try:
        if Path(name).is_dir():
            found = [str(path) for path in Path(name).rglob("*.parquet") if not _is_hidden(path.relative_to(name))]
        else:
            found = [] if Path(name).exists() or glob.escape(name) == name else glob.glob(name, recursive=True)  # noqa: PTH207
    except (OSError, ValueError):  # a text, and not a name
        found = []
    return sorted(found) or [name]


def _is_hidden(path: Path) -> bool:
    return any(part.startswith((".", "_")) for part in path.parts)


def table_rows(path: str | PathLike[str], reader: str) -> Iterator[Row]:
    """The rows of a file as mappings, with their numbers in place of lines; fields without a value are left out.

    Raises:
        DocumentError: the file is damaged.
    """
    import pyarrow as pa

    try:
        batches = _parquet(path) if reader == "parquet" else _arrow(path)
        number = 0
        for batch in batches:
            for row in batch.to_pylist():
                number += 1
                yield {name: value for name, value in row.items() if value is not None}, number, number
    except (pa.ArrowException, OSError) as error:
        what = "Parquet" if reader == "parquet" else "Arrow"
        raise failure(path, None, f"cannot be read as {what}: {first_line(error)}") from error


def _parquet(path: str | PathLike[str]) -> Iterator[Any]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(fspath(path)) as file:
        yield from file.iter_batches(batch_size=_BATCH_ROWS)


def _arrow(path: str | PathLike[str]) -> Iterator[Any]:
    """``datasets`` writes streams, other programs files."""
    import pyarrow as pa

    with pa.memory_map(fspath(path)) as source:
        try:
            reader: Any = pa.ipc.open_stream(source)
        except pa.ArrowInvalid:
            source.seek(0)
            file = pa.ipc.open_file(source)
            reader = (file.get_batch(i) for i in range(file.num_record_batches))
        for batch in reader:
            for start in range(0, batch.num_rows, _BATCH_ROWS):
                yield batch.slice(start, _BATCH_ROWS)
