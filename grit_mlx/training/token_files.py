"""Data files as tokens on disk: each is checked and tokenised once, then mapped into memory as it is read.

A cached file is named after what it holds: a hash of the data file's bytes, of the tokenizer and of the options.
So a file that changes is tokenised again, and a file that is copied or renamed is not. Nothing of the size of
the data is ever held in memory.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from grit_mlx.datasets.examples import EMBEDDING, EmbeddingRow, Row, kind_of, row_from
from grit_mlx.datasets.tokens import (
    RowError,
    TokenizedChat,
    TokenizedText,
    tokenize_chats,
    tokenize_embedding_rows,
)
from grit_mlx.errors import ArgumentError, DocumentError
from grit_mlx.files.folder import atomic_folder

logger = logging.getLogger("grit_mlx")

__all__ = ["SUFFIXES", "TokenFile", "TokenOptions", "find_data_files", "stem", "tokenize_file", "tokenizer_fingerprint"]

SUFFIXES = (".jsonl", ".jsonl.gz")

# A new number makes old caches count for nothing.
_FORMAT = 2

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
    """

    query_max_length: int = 256
    passage_max_length: int = 512
    max_seq_length: int = 1024
    label_mask: str = "exact"


class TokenFile:
    """The rows of one data file, as tokens on disk.

    Attributes:
        name: the data file's, without its suffix; sampling weights are given by it.
        kind: ``rows.EMBEDDING`` or ``rows.GENERATIVE``.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self.name = name
        self._about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
        self.kind: str = self._about["kind"]

    @property
    def key(self) -> str:
        """A hash of the data file's contents, the tokenizer and the options."""
        return self._folder.name

    def __len__(self) -> int:
        """Rows."""
        return int(self._about["rows"])

    @property
    def tokens(self) -> int:
        """Tokens of all rows."""
        return int(self._about["tokens"])

    @property
    def left_out(self) -> int:
        """Rows of the data file that have nothing to learn within ``max_seq_length``."""
        return int(self._about["left_out"])

    @property
    def vector_size(self) -> int:
        """Length of the vectors to distil from; 0 where there are none."""
        return int(self._about["vector_size"])

    def passages(self, row: int) -> tuple[int, int]:
        """How many positives and negatives an embedding row has."""
        first, last = self._row_starts[row : row + 2]
        positives = int(self._positives[row])
        return positives, int(last - first) - 1 - positives

    def text(self, row: int, position: int) -> TokenizedText:
        """Text of an embedding row: 0 the query, then the positives, then the negatives."""
        number = int(self._row_starts[row]) + position
        return TokenizedText(self._tokens_of(number), int(self._skipped[number]))

    def vector(self, row: int, position: int) -> NDArray[np.float32]:
        """The vector to distil from for the same text."""
        number = int(self._row_starts[row]) + position
        return np.array(self._vectors[number * self.vector_size : (number + 1) * self.vector_size])

    def chat(self, row: int) -> TokenizedChat:
        """A generative row."""
        start, end = self._starts[row : row + 2]
        return TokenizedChat(self._tokens_of(row), np.array(self._learned[start:end], dtype=bool))

    def _tokens_of(self, number: int) -> NDArray[np.int32]:
        start, end = self._starts[number : number + 2]
        return np.array(self._tokens[start:end])

    def _array(self, name: str) -> NDArray[Any]:
        path = self._folder / name
        dtype = _ARRAYS[name]
        # An empty file cannot be mapped.
        return np.memmap(path, dtype=dtype, mode="r") if path.stat().st_size else np.empty(0, dtype=dtype)

    # Opened on first use, and then kept: one handle for each array and file.
    _tokens = cached_property(lambda self: self._array("tokens"))
    _starts = cached_property(lambda self: self._array("starts"))
    _skipped = cached_property(lambda self: self._array("skipped"))
    _learned = cached_property(lambda self: self._array("learned"))
    _row_starts = cached_property(lambda self: self._array("row_starts"))
    _positives = cached_property(lambda self: self._array("positives"))
    _vectors = cached_property(lambda self: self._array("vectors"))


# The arrays of a cached file. A sequence is a text of an embedding row or a generative row.
_ARRAYS: dict[str, type] = {
    "tokens": np.int32,
    "starts": np.int64,  # of each sequence in tokens, and the end
    "skipped": np.int32,  # of each sequence: tokens left out of the mean
    "learned": np.uint8,  # of each token: whether it takes part in the generative loss
    "row_starts": np.int64,  # of each embedding row in the sequences, and the end
    "positives": np.int32,  # of each embedding row
    "vectors": np.float32,  # of each sequence, where the data has them
}


def find_data_files(folder: Path, *, skip: Sequence[str] = (), outside: Path | None = None) -> list[Path]:
    """The data files in and below a folder, in a fixed order; or the one file that was named.

    Args:
        folder: a folder, or a single file.
        skip: names without suffix that are left out.
        outside: a folder whose files are left out, such as a run's with its log.

    Raises:
        DocumentError: there are none.
    """
    if folder.is_file():
        return [folder]
    found = [path for path in sorted(folder.rglob("*")) if path.name.endswith(SUFFIXES) and path.is_file()]
    found = [path for path in found if stem(path) not in skip]
    if outside is not None:
        found = [path for path in found if not path.resolve().is_relative_to(outside.resolve())]
    if not found:
        reason = "holds no" if folder.is_dir() else "does not exist: name a folder of"
        raise DocumentError(f"{folder} {reason} {' or '.join(SUFFIXES)} files.", path=folder)
    return found


def stem(path: Path) -> str:
    """A data file's name without its suffix."""
    return path.name.removesuffix(".gz").removesuffix(".jsonl")


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
        path: a file of JSON lines, plain or gzipped.
        tokenizer: a Hugging Face tokenizer.
        options: what else the tokens depend on.
        cache: the folder of all cached files.
        name: what the file is called; None for its stem.
        fingerprint: of the tokenizer, where the caller has it already.
        progress: called with the number of rows done.

    Raises:
        DocumentError: the first row that cannot be used, with its line.
        OutputError: the cache cannot be written.
    """
    key = hashlib.sha256(_digest(path))
    key.update((fingerprint or tokenizer_fingerprint(tokenizer)).encode())
    key.update(json.dumps([_FORMAT, asdict(options)], sort_keys=True).encode())
    folder = cache / key.hexdigest()[:32]
    if not (folder / "about.json").exists():
        # Two processes may do this at once: the first one's folder stays.
        with atomic_folder(folder, replace=False) as unfinished:
            _write(unfinished, _tokenized(path, tokenizer, options, progress))
    file = TokenFile(folder, name or stem(path))
    if file.left_out:
        logger.warning(
            "%d of %d rows of %s are left out: their answer lies beyond max_seq_length (%d tokens).",
            file.left_out,
            file.left_out + len(file),
            path.name,
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
        raise DocumentError(f"Cannot read {path}: {error.strerror}.", path=path) from error
    return found.digest()


# Lines of a window, its rows and their tokens.
_Window = tuple[list[Row], list[Any]]


def _tokenized(
    path: Path, tokenizer: Any, options: TokenOptions, progress: Callable[[int], None] | None
) -> Iterator[_Window]:
    rows = _rows(path)
    done = 0
    while window := list(islice(rows, _WINDOW)):
        lines, parsed = [line for line, _ in window], [row for _, row in window]
        try:
            yield parsed, _tokens(tokenizer, parsed, options)
        except RowError as error:
            raise _bad_row(path, lines[error.row], str(error)) from error
        done += len(window)
        if progress is not None:
            progress(done)
    if not done:
        raise DocumentError(f"{path} is empty. Remove it, or give it some rows.", path=path)


def _tokens(tokenizer: Any, rows: list[Any], options: TokenOptions) -> list[Any]:
    if isinstance(rows[0], EmbeddingRow):
        return tokenize_embedding_rows(
            tokenizer,
            rows,
            query_max_length=options.query_max_length,
            passage_max_length=options.passage_max_length,
        )
    return tokenize_chats(tokenizer, rows, max_length=options.max_seq_length, label_mask=options.label_mask)


def _rows(path: Path) -> Iterator[tuple[int, Row]]:
    """Line numbers and rows, all of one kind."""
    kind, vector_size, line = None, None, 0
    try:
        with _open(path) as file:
            for line, text in enumerate(file, start=1):
                if not text.strip():
                    continue
                content = _parsed(text)
                kind = kind or kind_of(content)
                if kind_of(content) != kind:
                    raise ArgumentError(f"it is a row of {kind_of(content)} data in a file of {kind} data")
                row = row_from(content)
                if isinstance(row, EmbeddingRow):
                    size = len(row.vectors[0]) if row.vectors else 0
                    vector_size = size if vector_size is None else vector_size
                    if size != vector_size:
                        raise ArgumentError(f"its vectors have {size} numbers, those before it {vector_size}")
                yield line, row
    except ArgumentError as error:
        raise _bad_row(path, line, str(error)) from error
    except UnicodeDecodeError as error:
        raise _bad_row(path, line + 1, "it is not UTF-8 text") from error
    except (OSError, EOFError, zlib.error) as error:
        raise DocumentError(f"Cannot read {path} after line {line}: {error}.", path=path, line=line) from error


def _parsed(text: str) -> Any:
    try:
        return json.loads(text.rstrip())
    except json.JSONDecodeError as error:
        raise ArgumentError(f"it is not JSON ({error.msg} at column {error.colno})") from error
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, lists within lists within lists
        raise ArgumentError(f"it is no JSON that can be read ({error})") from error


def _open(path: Path) -> IO[str]:
    # Some programs begin a file with a byte order mark.
    encoding = "utf-8-sig"
    return gzip.open(path, "rt", encoding=encoding) if path.suffix == ".gz" else path.open(encoding=encoding)


def _bad_row(path: Path, line: int, problem: str) -> DocumentError:
    return DocumentError(f"{path}, line {line}: {problem}.", path=path, line=line)


def _write(folder: Path, windows: Iterator[_Window]) -> None:
    """All arrays of a file, appended to window by window."""
    counts = {"rows": 0, "sequences": 0, "tokens": 0, "vector_size": 0, "left_out": 0}
    kind = None
    with ExitStack() as stack:
        files = {name: stack.enter_context((folder / name).open("wb")) for name in _ARRAYS}

        def append(name: str, values: Any) -> None:
            files[name].write(np.asarray(values, dtype=_ARRAYS[name]).tobytes())

        for rows, tokenized in windows:
            embedding = isinstance(rows[0], EmbeddingRow)
            kind = kind or (EMBEDDING if embedding else "generative")
            for row, texts in zip(rows, tokenized, strict=True):
                if texts is None:
                    counts["left_out"] += 1
                    continue
                if embedding:
                    append("row_starts", [counts["sequences"]])
                    append("positives", [row.positives])  # type: ignore[union-attr]
                    append("vectors", row.vectors)  # type: ignore[union-attr]
                    counts["vector_size"] = len(row.vectors[0]) if row.vectors else 0  # type: ignore[union-attr]
                for sequence in texts if embedding else [texts]:
                    append("starts", [counts["tokens"]])
                    append("tokens", sequence.ids)
                    append(*(("skipped", [sequence.skipped]) if embedding else ("learned", sequence.learned)))
                    counts["tokens"] += len(sequence.ids)
                    counts["sequences"] += 1
                counts["rows"] += 1
        append("starts", [counts["tokens"]])
        append("row_starts", [counts["sequences"]])
    # Last, for a folder without it is unfinished.
    (folder / "about.json").write_text(json.dumps({"kind": kind, **counts}), encoding="utf-8")
