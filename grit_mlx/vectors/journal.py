"""What a long run of embedding has done so far, beside its output: an interrupted run is continued by the next.

::

    .NAME.part/
      about.json      what the vectors depend on, and their size
      vectors.f32     float32, one after the other, in the order of the texts

The output itself is written anew from it, whatever its format. A run that ends, or fails by an error of its own,
leaves nothing.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from grit_mlx.files.atomic import output_errors

__all__ = ["Journal"]


class Journal:
    """The vectors that are computed already, and a place for more.

    Args:
        output: the file that they are for.
        identity: what they depend on, as JSON: texts, model, settings. Another identity starts from nothing.
        size: E.
    """

    def __init__(self, output: Path, identity: Mapping[str, Any], size: int) -> None:
        self._folder = output.parent / f".{output.name}.part"
        self._vectors = self._folder / "vectors.f32"
        self._size = size
        about = json.dumps({**identity, "size": size}, sort_keys=True)
        path = self._folder / "about.json"
        with output_errors(str(output)):
            if not path.exists() or path.read_text(encoding="utf-8") != about:
                self.remove()
                self._folder.mkdir()
                path.write_text(about, encoding="utf-8")
                self._vectors.touch()
            self.done = self._vectors.stat().st_size // (4 * size)
            self._file = self._vectors.open("r+b")
            self._file.truncate(self.done * 4 * size)  # a vector that was cut off
            self._file.seek(0, 2)

    def vectors(self) -> Iterator[NDArray[np.float32]]:
        """Those that were there at the beginning, each ``(E,)``."""
        with self._vectors.open("rb") as file:
            for _ in range(self.done):
                yield np.frombuffer(file.read(4 * self._size), dtype="<f4").astype(np.float32)

    def append(self, vector: NDArray[np.float32]) -> None:
        """Note a vector that was computed."""
        self._file.write(vector.astype("<f4").tobytes())

    def flush(self) -> None:
        """Make sure that what was noted outlives the process."""
        self._file.flush()

    def close(self) -> None:
        """Keep what there is for the next run; nothing if there is nothing."""
        self._file.close()
        if not self._vectors.stat().st_size:
            self.remove()

    def remove(self) -> None:
        """Remove it all."""
        if hasattr(self, "_file"):
            self._file.close()
        shutil.rmtree(self._folder, ignore_errors=True)
