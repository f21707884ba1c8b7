"""Reading files of vectors as other programs do."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as parquet

from grit_mlx.text.splitting import Text
from grit_mlx.vectors.compression import CompressedVectors


def read_vectors(path: Path) -> tuple[npt.NDArray[Any] | CompressedVectors, list[Text] | None]:
    """The vectors and texts of a file, read by other means than those that wrote it."""
    columns: dict[str, Any]
    if path.suffix == ".npy":
        columns = {"embedding": np.load(path, allow_pickle=False)}
    elif path.suffix == ".npz":
        names = {"vectors": "embedding", "scales": "scale", "texts": "text", "sources": "source"}
        with np.load(path, allow_pickle=False) as arrays:
            columns = {names.get(name, name.rstrip("s")): arrays[name].tolist() for name in arrays}
            columns["embedding"], columns["dimensions"] = arrays["vectors"], arrays.get("dimensions")
    elif path.suffix == ".parquet":
        table = parquet.read_table(path)
        columns = {name: table[name].to_pylist() for name in table.column_names}
        facts = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
        columns["embedding"] = np.array(columns["embedding"], _TYPES[facts["grit_mlx.dtype"]])
        columns["dimensions"] = facts["grit_mlx.dimensions"]
    else:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            rows = [json.loads(line) for line in file]
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        columns["embedding"] = np.array(columns["embedding"], _TYPES[rows[0].get("dtype", "float32")])
        columns["dimensions"] = rows[0].get("dimensions")
    vectors = columns["embedding"]
    texts = (
        [Text(*row) for row in zip(*(columns[name] for name in _TEXT_COLUMNS), strict=True)]
        if "text" in columns
        else None
    )
    if "scale" not in columns:
        return vectors, texts
    dtype = "int8" if vectors.dtype == np.int8 else "binary"
    return CompressedVectors(vectors, np.array(columns["scale"], np.float32), dtype, int(columns["dimensions"])), texts


_TYPES = {"float32": np.float32, "float16": np.float16, "int8": np.int8, "binary": np.uint8}
_TEXT_COLUMNS = ("text", "source", "line", "end_line")
