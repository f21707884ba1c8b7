"""Data files as tokens on disk: each is checked and tokenised once, then mapped into memory as it is read.

A cached file is named after what it holds: a hash of the data file's bytes, of the tokenizer and of the options.
So a file that changes is tokenised again, and one that is copied or renamed is not. Nothing of the size of the data is
ever held in memory.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from grit_mlx.datasets.examples import EMBEDDING, EmbeddingRow, Example, examples
from grit_mlx.datasets.tokens import (
    RowError,
    TokenizedChat,
    TokenizedText,
    tokenize_chats,
    tokenize_embedding_rows,
)
from grit_mlx.errors import DocumentError, Option, unreadable
from grit_mlx.files.folder import atomic_folder
from grit_mlx.text.kinds import kind_of, stem
from grit_mlx.text.reading import read_rows
from grit_mlx.text.rows import failure

logger = logging.getLogger("grit_mlx")

__all__ = [
    "TEST",
    "TRAIN",
    "VALID",
    "TokenFile",
    "TokenOptions",
    "find_data_files",
    "split_of",
    "tokenize_file",
    "tokenizer_fingerprint",
]

# A new number invalidates all caches.
_FORMAT = 3

# Rows that are tokenised together.
_WINDOW = 1024


@dataclass(frozen=True)
class TokenOptions:
    """What a data file's tokens depend on, beside its contents and the tokenizer.

    Attributes:
        query_max_length: tokens of a query, instruction included.
        passage_max_length: tokens of a passage.
        max_seq_length: tokens of a generative row.
        label_mask: one of ``settings.LABEL_MASKS``.
        prompt_format: one of the model's ``settings.PROMPT_FORMATS``.
    """

    query_max_length: int = 256
    passage_max_length: int = 512
    max_seq_length: int = 1024
    label_mask: str = "exact"
    prompt_format: str = "grit"


class TokenFile:
    """The rows of one data file, as tokens on disk.

    Attributes:
        name: the data file's, without its suffix; sampling weights are given by it.
        kind: ``examples.EMBEDDING`` or ``examples.GENERATIVE``.
        key: a hash of the data file's contents, the tokenizer and the options.
        tokens: number of tokens of all rows.
        left_out: number of rows of the data file that have nothing to learn within ``max_seq_length``.
        vector_size: length of the vectors to distil from; 0 if there are none.
    """

    def __init__(self, folder: Path, name: str) -> None:
        about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
        self.name, self.kind, self.key = name, str(about["kind"]), folder.name
        counts = ("rows", "tokens", "left_out", "vector_size")
        self._rows, self.tokens, self.left_out, self.vector_size = (int(about[count]) for count in counts)
        self._folder = folder
        self._arrays: dict[str, NDArray[Any]] = {}

    def __len__(self) -> int:
        """Rows."""
        return self._rows

    def passages(self, row: int) -> tuple[int, int]:
        """How many positives and negatives an embedding row has."""
        first, last = self._array("row_starts")[row : row + 2]
        positives = int(self._array("positives")[row])
        return positives, int(last - first) - 1 - positives

    def text(self, row: int, position: int) -> TokenizedText:
        """A text of an embedding row: 0 is the query, then come the positives and the negatives."""
        number = int(self._array("row_starts")[row]) + position
        return TokenizedText(self._tokens_of(number), int(self._array("skipped")[number]))

    def vector(self, row: int, position: int) -> NDArray[np.float32]:
        """The vector to distil from for the same text."""
        number = int(self._array("row_starts")[row]) + position
        return np.array(self._array("vectors")[number * self.vector_size : (number + 1) * self.vector_size])

    def chat(self, row: int) -> TokenizedChat:
        """A generative row."""
        start, end = self._array("starts")[row : row + 2]
        return TokenizedChat(self._tokens_of(row), np.array(self._array("learned")[start:end], dtype=bool))

    def _tokens_of(self, number: int) -> NDArray[np.int32]:
        start, end = self._array("starts")[number : number + 2]
        return np.array(self._array("tokens")[start:end])

    def _array(self, name: str) -> NDArray[Any]:
        """Mapped on first use, and then kept: one handle for each array and file."""
        if name not in self._arrays:
            path, dtype = self._folder / name, _ARRAYS[name]
            # An empty file cannot be mapped.
            mapped = np.memmap(path, dtype=dtype, mode="r") if path.stat().st_size else np.empty(0, dtype=dtype)
            self._arrays[name] = mapped
        return self._arrays[name]


# The arrays of a cached file. A sequence is a text of an embedding row or a generative row.
_ARRAYS: dict[str, type] = {
    "tokens": np.int32,
    "starts": np.int64,  # of each sequence in tokens, and the end
    "skipped": np.int32,  # of each sequence: tokens left out of the mean
    "learned": np.uint8,  # of each token: whether it takes part in the generative loss
    "row_starts": np.int64,  # of each embedding row in the sequences, and the end
    "positives": np.int32,  # of each embedding row
    "vectors": np.float32,  # of each sequence, if the data has them
}


# What a file of a data folder is for. mlx-lm's names, and those that ``datasets`` and others have for the same.
TRAIN, VALID, TEST = "train", "valid", "test"
_SPLITS = {
    **dict.fromkeys(("valid", "validation", "val", "dev", "eval"), VALID),
    **dict.fromkeys(("test", "testing", "heldout", "held_out"), TEST),
}
# The hub numbers the parts of a split: validation-00000-of-00002.
_PART = re.compile(r"-\d{5}-of-\d{5}$")


def split_of(path: Path, folder: Path) -> str:
    """What a file of a data folder is for, by its name or by that of a folder between: one of the above."""
    within = path.relative_to(folder) if path.is_relative_to(folder) else Path(path.name)
    names = [_PART.sub("", stem(path)), *within.parts[:-1]]
    return next((_SPLITS[name.lower()] for name in names if name.lower() in _SPLITS), TRAIN)


def find_data_files(
    folder: Path, *, splits: Sequence[str] = (TRAIN, VALID, TEST), outside: Path | None = None
) -> list[Path]:
    """The files of rows in and below a folder, in a fixed order; or the one file that was named.

    These are JSON lines, Parquet, the Arrow files of ``datasets``, and JSON that is an array. Links are followed,
    hidden files and folders (``.ipynb_checkpoints``, a Mac's ``._data.jsonl``) are not data.

    Args:
        folder: a folder, or a single file.
        splits: what the files may be for.
        outside: a folder whose files are left out, such as a run's with its log.

    Raises:
        DocumentError: there are none.
    """
    if folder.is_file():
        return [folder]
    found = sorted(path for path in _files_below(folder) if _holds_rows(path))
    found = [path for path in found if split_of(path, folder) in splits]
    if outside is not None:
        found = [path for path in found if not path.resolve().is_relative_to(outside.resolve())]
    if not found and not folder.is_dir():
        raise DocumentError(unreadable(folder, FileNotFoundError(errno.ENOENT, "")), path=folder)
    if not found:
        raise failure(folder, None, "holds no .jsonl files, nor Parquet files")
    return found


def _files_below(folder: Path) -> Iterator[Path]:
    seen: set[str] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        if os.path.realpath(place) in seen:  # a link that leads in a circle, or a folder that is linked to twice
            folders.clear()
            continue
        seen.add(os.path.realpath(place))
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__pycache__")
        yield from (Path(place) / name for name in names if not name.startswith("."))


def _holds_rows(path: Path) -> bool:
    reader = kind_of(path).reader
    if reader == "json":  # an object is settings, as in dataset_info.json
        try:
            with path.open("rb") as file:
                return file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")
        except OSError:
            return False
    return reader in ("jsonl", "parquet", "arrow") and path.is_file()


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """A hash of everything about a tokenizer that changes tokens."""
    special = [tokenizer.bos_token, tokenizer.eos_token, tokenizer.chat_template]
    backend = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else repr(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(json.dumps([backend, special]).encode()).hexdigest()


def tokenize_file(
    path: Path,
    tokenizer: Any,
    options: TokenOptions,
    *,
    cache: Path,
    name: str | None = None,
    fingerprint: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> TokenFile:
    """A data file's tokens, from the cache or computed into it.

    Args:
        path: a file of rows; see ``read_rows``.
        tokenizer: a Hugging Face tokenizer.
        options: what else the tokens depend on.
        cache: the folder of all cached files.
        name: what the file is called; None for its stem.
        fingerprint: of the tokenizer, if the caller has it already.
        progress: called with the number of rows done.

    Raises:
        DocumentError: the first row that cannot be used, with its line.
        OutputError: the cache cannot be written.
    """
    key = hashlib.sha256(_digest(path))
    key.update((fingerprint or tokenizer_fingerprint(tokenizer)).encode())
    reader = kind_of(path, rows=True).reader
    how = [_FORMAT, asdict(options), *([] if reader == "jsonl" else [reader])]
    key.update(json.dumps(how, sort_keys=True).encode())
    folder = cache / key.hexdigest()[:32]
    if not (folder / "about.json").exists():
        # Two processes may do this at once: the first one's folder stays.
        with atomic_folder(folder, replace=False) as unfinished:
            _write(unfinished, _tokenized(path, tokenizer, options, progress))
    file = TokenFile(folder, name or stem(path))
    if file.left_out:
        logger.warning(
            "%d of %d rows of %s are left out: their answer lies beyond %s (%d tokens).",
            file.left_out,
            file.left_out + len(file),
            path.name,
            Option("max_seq_length"),
            options.max_seq_length,
        )
    return file


def _digest(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            found = hashlib.sha256()
            while block := file.read(1 << 20):
                found.update(block)
    except OSError as error:
        raise DocumentError(unreadable(path, error), path=path) from error
    return found.digest()


# Rows that are tokenised together, and their tokens.
_Window = tuple[list[Example], list[Any]]


def _tokenized(
    path: Path, tokenizer: Any, options: TokenOptions, progress: Callable[[int], None] | None
) -> Iterator[_Window]:
    rows = _examples(path)
    done = 0
    while window := list(islice(rows, _WINDOW)):
        lines, parsed = [line for line, _ in window], [row for _, row in window]
        try:
            yield parsed, _tokens(tokenizer, parsed, options)
        except RowError as error:
            raise failure(path, lines[error.row], str(error)) from error
        done += len(window)
        if progress is not None:
            progress(done)
    if not done:
        raise failure(path, None, "is empty. Remove it, or add rows")


def _tokens(tokenizer: Any, rows: list[Any], options: TokenOptions) -> list[Any]:
    if isinstance(rows[0], EmbeddingRow):
        return tokenize_embedding_rows(
            tokenizer,
            rows,
            query_max_length=options.query_max_length,
            passage_max_length=options.passage_max_length,
            prompt_format=options.prompt_format,
        )
    return tokenize_chats(tokenizer, rows, max_length=options.max_seq_length, label_mask=options.label_mask)


def _examples(path: Path) -> Iterator[tuple[int, Example]]:
    """The examples of a file and their lines, all of one kind and with vectors of one length."""
    kind = vector_size = None
    for line, row in examples(read_rows(path), path):
        kind = kind or row.kind
        if row.kind != kind:
            problem = f"this is a row of {row.kind} data in a file of {kind} data."
            raise failure(path, line, problem)
        if isinstance(row, EmbeddingRow):
            size = len(row.vectors[0]) if row.vectors else 0
            vector_size = size if vector_size is None else vector_size
            if size != vector_size:
                problem = f"the vectors have {size} numbers, those before them {vector_size}."
                raise failure(path, line, problem)
        yield line, row


def _write(folder: Path, windows: Iterator[_Window]) -> None:
    """All arrays of a file, appended to window by window."""
    counts = {"rows": 0, "sequences": 0, "tokens": 0, "vector_size": 0, "left_out": 0}
    kind = None
    with ExitStack() as stack:
        files = {name: stack.enter_context((folder / name).open("wb")) for name in _ARRAYS}

        def append(name: str, values: Any) -> None:
            files[name].write(np.asarray(values, dtype=_ARRAYS[name]).tobytes())

        for rows, tokenized in windows:
            kind = rows[0].kind
            for row, texts in zip(rows, tokenized, strict=True):
                if texts is None:
                    counts["left_out"] += 1
                    continue
                if isinstance(row, EmbeddingRow):
                    append("row_starts", [counts["sequences"]])
                    append("positives", [row.positives])
                    append("vectors", row.vectors)
                    counts["vector_size"] = len(row.vectors[0]) if row.vectors else 0
                for sequence in texts if kind == EMBEDDING else [texts]:
                    append("starts", [counts["tokens"]])
                    append("tokens", sequence.ids)
                    append(*(("skipped", [sequence.skipped]) if kind == EMBEDDING else ("learned", sequence.learned)))
                    counts["tokens"] += len(sequence.ids)
                    counts["sequences"] += 1
                counts["rows"] += 1
        append("starts", [counts["tokens"]])
        append("row_starts", [counts["sequences"]])
    # Last: a folder without it is incomplete.
    (folder / "about.json").write_text(json.dumps({"kind": kind, **counts}), encoding="utf-8")
