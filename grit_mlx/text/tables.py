"""Rows of Parquet and Arrow files, as ``datasets`` and the hub keep them."""

from __future__ import annotations

from collections.abc import Iterator
from os import PathLike, fspath
from typing import Any

from grit_mlx.errors import first_line
from grit_mlx.text.rows import Row, failure

__all__ = ["READERS", "table_rows"]

READERS = ("parquet", "arrow")

# Rows that are in memory at once.
_BATCH_ROWS = 1024


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
