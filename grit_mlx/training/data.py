"""Data folders, and the batches of a run.

A batch is a function of its number (see ``sampling``): the same in every process and after every resume.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from grit_mlx.datasets.examples import EMBEDDING, GENERATIVE
from grit_mlx.datasets.tokens import TokenizedChat, TokenizedText
from grit_mlx.errors import ArgumentError, Option
from grit_mlx.text.kinds import stem
from grit_mlx.training.sampling import Sampler, choose_passages
from grit_mlx.training.token_files import (
    TRAIN,
    TokenFile,
    TokenOptions,
    find_data_files,
    tokenize_file,
    tokenizer_fingerprint,
)

__all__ = ["EmbeddingBatch", "EmbeddingData", "Files", "GenerativeData", "load_files", "split_files"]

# Names of the streams of random numbers, so that no two decisions share one.
_EMBEDDING_ORDER, _GENERATIVE_ORDER, _PASSAGES, _HELD_OUT = range(4)


@dataclass(frozen=True)
class FileRows:
    """Rows of one file: all of them, or those of one side of a split.

    Attributes:
        file: the tokens.
        rows: their numbers.
    """

    file: TokenFile
    rows: NDArray[np.int64]


# Files of one kind.
Files = list[FileRows]


def load_files(
    folder: Path,
    tokenizer: Any,
    options: TokenOptions,
    *,
    cache: Path,
    kinds: Sequence[str] = (EMBEDDING, GENERATIVE),
    progress: Callable[[str, int], None] | None = None,
    splits: Sequence[str] = (TRAIN,),
    outside: Path | None = None,
) -> dict[str, Files]:
    """All data files of a folder, checked and tokenised, by kind.

    Args:
        folder: searched with all folders below it; or a single file.
        tokenizer: a Hugging Face tokenizer.
        options: how to tokenise.
        cache: where tokens are kept.
        kinds: the kinds wanted; files of others are checked and left out.
        progress: called with a file's name and its number of rows done.
        splits: which files of a folder are wanted; see ``token_files.split_of``.
        outside: see ``find_data_files``.

    Raises:
        DocumentError: the first row that cannot be used, with its file and line.
    """
    fingerprint = tokenizer_fingerprint(tokenizer)
    result: dict[str, Files] = {EMBEDDING: [], GENERATIVE: []}
    for path in find_data_files(folder, splits=splits, outside=outside):
        # Two folders may hold files of one name, as the project's own embedding/ and generative/ do.
        name = path.relative_to(folder).parent.joinpath(stem(path)).as_posix() if folder.is_dir() else stem(path)
        report = None if progress is None else partial(progress, name)
        file = tokenize_file(path, tokenizer, options, cache=cache, name=name, fingerprint=fingerprint, progress=report)
        result[file.kind].append(FileRows(file, np.arange(len(file))))
    return {kind: files for kind, files in result.items() if kind in kinds}


def split_files(files: Files, rows: int, seed: int) -> tuple[Files, Files]:
    """The files without and with ``rows`` held-out rows, taken from all files (at most a tenth of each)."""
    if rows == 0 or not files:
        return files, []
    share = -(-rows // len(files))
    train, held_out = [], []
    for number, part in enumerate(files):
        order = np.random.default_rng([seed, _HELD_OUT, number]).permutation(part.rows)
        count = min(share, len(order) // 10)
        held_out.append(FileRows(part.file, np.sort(order[:count])))
        train.append(FileRows(part.file, np.sort(order[count:])))
    return train, [part for part in held_out if len(part.rows)]


def file_weights(files: Files, weights: Mapping[str, float]) -> tuple[float, ...]:
    """The sampling weight of each file, given by its name with or without its folder; 1 by default."""
    return tuple(weights.get(part.file.name, weights.get(Path(part.file.name).name, 1.0)) for part in files)


def check_weights(weights: Mapping[str, float], files: Sequence[FileRows]) -> None:
    """Refuse a weight for a file that is not there.

    Raises:
        ArgumentError: names it, and the files that are there.
    """
    known = {part.file.name for part in files} | {Path(part.file.name).name for part in files}
    for name in weights:
        if name not in known:
            there = ", ".join(sorted(part.file.name for part in files))
            raise ArgumentError(Option("data_weights"), f" names {name!r}, but the data files are {there}.")


@dataclass(frozen=True)
class EmbeddingBatch:
    """Queries with their groups of passages.

    Attributes:
        queries: Q texts.
        passages: Q x G texts, group by group, the positive first.
        identities: ``(Q*G,)`` int32, equal for equal passages.
        asked: ``(Q,)`` int32, equal for equal queries.
        answered: ``(Q*G,)`` int32, the query that a passage is a right answer to; 0 for a negative.
        query_vectors: ``(Q, T)`` to distil from, or empty.
        passage_vectors: ``(Q*G, T)``, or empty.
    """

    queries: list[TokenizedText]
    passages: list[TokenizedText]
    identities: NDArray[np.int32]
    asked: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, dtype=np.int32))
    answered: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, dtype=np.int32))
    query_vectors: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0), dtype=np.float32))
    passage_vectors: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0), dtype=np.float32))


class _Rows:
    """Rows of several files, numbered consecutively."""

    def __init__(self, files: Files) -> None:
        self.files = files
        self.ends = np.cumsum([len(part.rows) for part in files])

    def find(self, number: int) -> tuple[FileRows, int]:
        """The file of row ``number``, and the row's position in it."""
        which = int(np.searchsorted(self.ends, number, side="right"))
        return self.files[which], number - (int(self.ends[which - 1]) if which else 0)


class EmbeddingData:
    """Batches of queries and passages.

    Args:
        files: where rows come from.
        weights: see ``sampling.rows_of_epoch``, one for each file.
        batch_size: Q.
        group_size: G, passages of each query.
        seed: of all random choices.
        same_file: see ``sampling.epoch_batches``.
    """

    def __init__(
        self,
        files: Files,
        *,
        weights: Sequence[float],
        batch_size: int,
        group_size: int,
        seed: int,
        same_file: bool = True,
    ) -> None:
        sizes = tuple(len(part.rows) for part in files)
        self.sampler = Sampler(sizes, tuple(weights), batch_size, (seed, _EMBEDDING_ORDER), same_file)
        self._rows = _Rows(files)
        self._group_size = group_size
        self._seed = seed

    def batch(self, number: int) -> EmbeddingBatch:
        """Batch ``number`` of the run."""
        rng = np.random.default_rng([self._seed, _PASSAGES, number])
        queries, passages = [], []  # (file, row, position of the text in it)
        for index in self.sampler.rows(number):
            part, position = self._rows.find(int(index))
            row = int(part.rows[position])
            queries.append((part.file, row, 0))
            chosen = choose_passages(*part.file.passages(row), self._group_size, rng)
            if chosen is not None:
                passages += [(part.file, row, 1 + i) for i in chosen]
                continue
            # No negatives of its own: other rows' passages, as negatives of the same kind.
            [positive] = choose_passages(part.file.passages(row)[0], 0, 1, rng) or [0]
            passages.append((part.file, row, 1 + positive))
            passages += [(part.file, self._other(part, position, rng), 1) for _ in range(self._group_size - 1)]
        return _embedding_batch(queries, passages)

    def _other(self, part: FileRows, position: int, rng: np.random.Generator) -> int:
        step = int(rng.integers(1, len(part.rows))) if len(part.rows) > 1 else 0
        return int(part.rows[(position + step) % len(part.rows)])


def _embedding_batch(
    queries: list[tuple[TokenFile, int, int]], passages: list[tuple[TokenFile, int, int]]
) -> EmbeddingBatch:
    texts = [file.text(row, position) for file, row, position in passages]
    vectors: dict[str, Any] = {}
    sizes = {file.vector_size for file, _, _ in queries}
    if len(sizes) == 1 and sizes != {0}:
        places = {"query_vectors": queries, "passage_vectors": passages}
        vectors = {name: np.stack([file.vector(row, i) for file, row, i in at]) for name, at in places.items()}
    return EmbeddingBatch(
        queries=[file.text(row, position) for file, row, position in queries],
        passages=texts,
        identities=np.array([_identity(text) for text in texts], dtype=np.int32),
        asked=np.array([_identity(file.text(row, 0)) for file, row, _ in queries], dtype=np.int32),
        answered=np.array([_answered(*place) for place in passages], dtype=np.int32),
        **vectors,
    )


def _answered(file: TokenFile, row: int, position: int) -> int:
    """The query that a passage is a right answer to; 0 for a negative."""
    return _identity(file.text(row, 0)) if position <= file.passages(row)[0] else 0


def _identity(text: TokenizedText) -> int:
    digest = hashlib.blake2b(text.ids.tobytes(), digest_size=4).digest()
    return int.from_bytes(digest, "little", signed=True) or 1


class GenerativeData:
    """Batches of texts to generate, each from all files.

    Args:
        files: where rows come from.
        weights: see ``sampling.rows_of_epoch``, one for each file.
        batch_size: rows of a batch.
        seed: of the order.
    """

    def __init__(self, files: Files, *, weights: Sequence[float], batch_size: int, seed: int) -> None:
        sizes = tuple(len(part.rows) for part in files)
        self.sampler = Sampler(
            sizes,
            tuple(weights),
            batch_size,
            (seed, _GENERATIVE_ORDER),
            same_file=False,
            option="generative_batch_size",
        )
        self._rows = _Rows(files)

    def batch(self, number: int) -> list[TokenizedChat]:
        """Batch ``number`` of the run."""
        chats = []
        for index in self.sampler.rows(number):
            part, position = self._rows.find(int(index))
            chats.append(part.file.chat(int(part.rows[position])))
        return chats
