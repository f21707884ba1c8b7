"""What embed and search read: files checked before a model is loaded, and texts paired with their vectors."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shlex
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grit_mlx.cli import console
from grit_mlx.cli.warm import RemoteModel, identity
from grit_mlx.cli.wording import number_of
from grit_mlx.errors import ArgumentError, DependencyError, DocumentError, GritError, Option, TextError
from grit_mlx.model import hub
from grit_mlx.model.options import EmbeddingOptions
from grit_mlx.text.blocks import Notes
from grit_mlx.text.kinds import kind_of
from grit_mlx.text.options import ReadingOptions, WalkOptions
from grit_mlx.text.packing import Measure, count_words
from grit_mlx.text.passages import passages_of
from grit_mlx.text.reading import read_texts
from grit_mlx.text.rows import failure
from grit_mlx.text.splitting import STDIN, Text
from grit_mlx.text.walking import walk

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from grit_mlx.gritlm import GritLM
    from grit_mlx.progress import Progress

__all__ = [
    "CutTexts",
    "Inputs",
    "Sources",
    "embedded",
    "embedded_once",
    "encode_options",
    "is_text",
    "paired",
    "token_measure",
]

ARGUMENT = "argument"  # the source of texts that were given on the command line
_FILE_NAME = re.compile(r"(?:^[~.]{0,2}/\S|\.[A-Za-z0-9]{1,8}$)")
_WORD = re.compile(r"[\w'?!,-]+")
_LONGEST_WORD = 100

_OVERLAP = 32  # of passages, in tokens, as in a store
_WINDOW = 2048  # texts that are looked up at once


@dataclass
class Inputs:
    """Files, and how they are cut into texts.

    Attributes:
        files: paths, texts in quotes (see ``is_text``), and at most once "-" for standard input.
        reading: how they are read.
        skipped: rows without text that ``read`` has skipped so far.
    """

    files: Sequence[str]
    reading: ReadingOptions
    skipped: int = 0

    @property
    def paths(self) -> list[str]:
        """The files without the texts."""
        return [name for name in self.files if not is_text(name)]

    def check(self) -> int | None:
        """Read every file once, without a model: what is wrong with one shows now and not after an hour.

        Returns:
            The number of texts; None if only reading tells: standard input, pipes, and chunks, whose borders are
            found with the model's tokenizer.

        Raises:
            DocumentError: a file cannot be read, or none holds text.
            ArgumentError: standard input is named twice.
        """
        if list(self.files).count(STDIN) > 1:
            raise ArgumentError("Standard input (-) can be read only once.")
        # Paragraphs stand for chunks: the same files are read the same way, without a tokenizer.
        chunked = self.reading.by == "chunk"
        reading = replace(self.reading, by="paragraph") if chunked else self.reading
        paths = self.paths
        for name in paths:
            _refuse_a_word(name)
        streams = [name for name in paths if name == STDIN or (Path(name).exists() and not Path(name).is_file())]
        # What takes minutes is done once.
        streams += [name for name in paths if self.reading.ocr and kind_of(name).scanned]
        # This refuses what is missing. Warnings are for the reading that counts.
        texts = [read_texts(name, reading, notes=Notes()) for name in paths]
        if STDIN in self.files and console.stdin_is_terminal():
            console.note("reading from the terminal: one text per line, Ctrl-D ends the input")
        count = sum(1 for name, found in zip(paths, texts, strict=True) if name not in streams for _ in found)
        count += len(self.files) - len(paths)
        if not streams and not count:
            raise self.no_text()
        return None if streams or chunked else count

    def read(self, measure: Measure = count_words) -> Iterator[Text]:
        """All texts, as a stream.

        Args:
            measure: the tokens of a text, for chunks.
        """
        for name in self.files:
            if is_text(name):
                yield Text(name, ARGUMENT, 1, 1)
            else:
                yield from read_texts(name, self.reading, measure=measure, on_skip=self._count_skipped)

    def no_text(self) -> DocumentError:
        """The error of files that hold no text."""
        where = "standard input" if list(self.files) == [STDIN] else ", ".join(self.files[:3])
        more = f" and {len(self.files) - 3} more" if len(self.files) > 3 else ""
        return DocumentError(f"There is no text in {where}{more}.", path=self.files[0])

    def report_skipped(self) -> None:
        """Say how many rows had no text, if any."""
        if self.skipped:
            console.note(f"skipped {number_of(self.skipped, 'row')} without text")

    def _count_skipped(self) -> None:
        self.skipped += 1


def is_text(name: str) -> bool:
    """Whether what was named as a file is a text: it has blanks, and neither is nor looks like a file's name."""
    return len(name.split()) > 1 and not _FILE_NAME.search(name) and not _exists(name)


def _exists(name: str) -> bool:
    try:
        return Path(name).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # too long, a NUL, or nobody's home
        return False


def _refuse_a_word(name: str) -> None:
    """Say how a word is embedded, which looks like a file's name.

    Raises:
        DocumentError: there is no such file.
    """
    if name != STDIN and len(name) < _LONGEST_WORD and _WORD.fullmatch(name) and not _exists(name):
        word = shlex.quote(name)
        raise DocumentError(f"There is no file {name}. To embed it as a text: echo {word} | grit embed -", path=name)


@dataclass
class Sources:
    """Files and folders to search. A file that cannot be read is named and passed over, unless it is the only one.

    Attributes:
        paths: files and folders, and at most once "-" for standard input.
        reading: how files are read. By default documents become the passages that a store has, and other files lines.
        walking: which files of ``paths``.
        skipped: rows without text that ``read`` has skipped so far.
        expected: about how many texts there are, by what was read of the files so far; None where that is unknown.
    """

    paths: Sequence[str]
    reading: ReadingOptions
    walking: WalkOptions
    skipped: int = 0
    _files: list[tuple[str, ReadingOptions]] = field(default_factory=list)
    _failures: list[GritError] = field(default_factory=list)
    _tried: int = 0
    _excluded: int = 0
    expected: int | None = None

    def check(self) -> None:
        """Find the files, without a model.

        Raises:
            GritError: none of them can be read.
        """
        if list(self.paths).count(STDIN) > 1:
            raise ArgumentError("Standard input (-) can be read only once.")
        for path in self.paths:
            try:
                found = list(self._found(path))
                for name, reading in found:
                    read_texts(name, reading)  # refuses what is missing
                self._files += found
            except (DocumentError, DependencyError) as error:
                self._fail(error)
        self._tried = len(self._files) + len(self._failures)
        if self._failures and not self._files:
            raise self.nothing()
        if STDIN in self.paths and console.stdin_is_terminal():
            console.note("reading from the terminal: one text per line, Ctrl-D ends the input")

    def read(self, measure: Measure) -> Iterator[tuple[Text, str]]:
        """All texts as a stream, each with what is embedded of it: a passage's headings too.

        Args:
            measure: the tokens of a text.
        """
        sizes = [_size(name) for name, _ in self._files]
        total, before, count = sum(size or 0 for size in sizes), 0, 0
        for (name, reading), size in zip(self._files, sizes, strict=True):
            seen = 0
            for text, content in self._texts(name, reading, measure):
                count, seen = count + 1, seen + len(text.text)
                if None not in sizes:
                    read = before + min(seen, size or 0)
                    self.expected = max(count, count * total // max(1, read))
                yield text, content
            before += size or 0
        if None not in sizes:
            self.expected = count

    def with_total(self, progress: Progress) -> Progress:
        """Progress in texts, which adds how many there are about."""
        return lambda done, _total: progress(done, None if self.expected is None else max(ceil(done), self.expected))

    def _texts(self, name: str, reading: ReadingOptions, measure: Measure) -> Iterator[tuple[Text, str]]:
        """The texts of a file; one that cannot be read is named and passed over."""
        try:
            if reading.by is None and kind_of(name).by == "paragraph":
                for one in passages_of(
                    Path(name),
                    size=reading.chunk_size,
                    overlap=min(_OVERLAP, reading.chunk_size // 4),
                    measure=measure,
                    how=reading.of_files,
                ):
                    yield Text(one.text, name, one.line, one.end_line), one.content
            else:
                texts = read_texts(name, reading, measure=measure, on_skip=self._count_skipped)
                yield from ((text, text.text) for text in texts)
        except (DocumentError, DependencyError) as error:
            self._fail(error)

    def nothing(self) -> GritError:
        """The error of files that hold no text, or cannot be read."""
        if failed := self._failed():
            return failed
        if self._excluded:
            return DocumentError(
                f"{number_of(self._excluded, 'file')} below {', '.join(self.paths[:3])}: ",
                *("none is taken by ", Option("include"), " and ", Option("exclude"), "."),
                path=self.paths[0],
            )
        return Inputs(self.paths, self.reading).no_text()

    def finish(self) -> None:
        """Say how many rows had no text, if any.

        Raises:
            GritError: no file could be read to its end.
        """
        if self.skipped:
            console.note(f"skipped {number_of(self.skipped, 'row')} without text")
        if failed := self._failed():
            raise failed

    def _failed(self) -> GritError | None:
        if not self._failures or len(self._failures) < self._tried:
            return None
        if len(self._failures) == len(self.paths) == 1:
            return self._failures[0]
        return DocumentError(f"None of {number_of(len(self._failures), 'file')} can be read.", path=self.paths[0])

    def _found(self, path: str) -> Iterator[tuple[str, ReadingOptions]]:
        if path == STDIN or not Path(path).expanduser().is_dir():
            yield path, self.reading
            return
        walked = walk([path], patterns=self.walking)
        for name, reason in walked.problems:
            self._failures.append(DocumentError(f"{name}: ", reason, path=name))
            console.warn(f"{name}: ", reason)
        self._excluded += walked.skipped["excluded"]
        for file in walked.files:
            # As it was named; a field is for tables, of which a folder may have some.
            name = str(Path(path) / file.relative_to(walked.roots[0]))
            yield name, self.reading if kind_of(file).rows else replace(self.reading, field=None)

    def _fail(self, error: GritError) -> None:
        self._failures.append(error)
        if len(self.paths) > 1 or len(self._files) > 1:
            console.warn(*error.parts)

    def _count_skipped(self) -> None:
        self.skipped += 1


def _size(name: str) -> int | None:
    """The bytes of a file; None of a stream."""
    path = Path(name)
    return path.stat().st_size if name != STDIN and path.is_file() else None


def token_measure(grit: GritLM | RemoteModel) -> Measure:
    """Counts the tokens of a text, without those that the tokenizer adds."""
    if isinstance(grit, RemoteModel):
        return grit.count_tokens
    return lambda text: len(grit.tokenizer.encode(text, add_special_tokens=False, verbose=False))


def encode_options(embedding: EmbeddingOptions) -> dict[str, Any]:
    """The options of ``GritLM.encode`` that a command has flags for."""
    return {name: getattr(embedding, name) for name in ("batch_size", "batch_tokens", "max_length", "long_texts")}


def embedded(
    grit: GritLM | RemoteModel,
    texts: Iterable[Text],
    embedding: EmbeddingOptions,
    progress: Progress,
    **role: str | None,
) -> Iterator[tuple[Text, NDArray[np.float32]]]:
    """Each text with its vector; see ``paired``.

    Args:
        grit: the model.
        texts: any number of them.
        embedding: how they are embedded.
        progress: called with the number of texts done.
        **role: ``role`` and ``instruction``, as for ``GritLM.encode``.
    """
    options = {**encode_options(embedding), **role}
    return paired(texts, lambda strings: grit.encode_iter(strings, progress=progress, **options))


def embedded_once(
    grit: GritLM | RemoteModel,
    texts: Iterable[tuple[Text, str]],
    embedding: EmbeddingOptions,
    progress: Progress,
    *,
    budget: int | None,
) -> Iterator[tuple[Text, NDArray[np.float32]]]:
    """Each text with its vector as a document, which is taken from the cache if it was embedded before.

    Args:
        grit: the model.
        texts: any number of them, each with what is embedded of it.
        embedding: how they are embedded.
        progress: called with the number of texts done.
        budget: of the cache, in bytes; 0 to use none, None for no limit.
    """
    from grit_mlx.vectors.cache import VectorCache

    cache = VectorCache(hub.home() / "vectors.sqlite", budget=sys.maxsize if budget is None else budget)
    how = json.dumps([*identity(grit), embedding.max_length, embedding.long_texts])
    stream, done = iter(texts), 0
    while window := list(islice(stream, _WINDOW)):
        keys = [hashlib.blake2b(f"{how}\0{content}".encode(), digest_size=16).digest() for _, content in window]
        vectors = cache.get(list(dict.fromkeys(keys))) if budget != 0 else {}
        missing = {key: replace(text, text=content) for key, (text, content) in zip(keys, window, strict=True)}
        missing = {key: text for key, text in missing.items() if key not in vectors}
        start = done + len(window) - len(missing)
        new: dict[bytes, NDArray[np.float32]] = {}
        try:
            pairs = embedded(grit, missing.values(), embedding, _from(progress, start), role="document")
            for key, (_, vector) in zip(missing, pairs, strict=True):
                new[key] = vector
        finally:
            cache.keep(new)
        vectors |= new
        yield from ((text, vectors[key]) for key, (text, _) in zip(keys, window, strict=True))
        done += len(window)
        progress(done, done)


def _from(progress: Progress, start: int) -> Progress:
    return lambda done, total: progress(start + done, total)


def paired(
    texts: Iterable[Text], encode: Callable[[Iterator[str]], Iterator[NDArray[np.float32]]]
) -> Iterator[tuple[Text, NDArray[np.float32]]]:
    """Each text with its vector; holds only the texts that ``encode`` has taken and not yet answered.

    Args:
        texts: any number of them; read as the pairs are taken.
        encode: such as ``GritLM.encode_iter``: vectors in the order of the texts.

    Raises:
        DocumentError: a text cannot be embedded; names its file and line instead of ``encode``'s index.
    """
    waiting: deque[Text] = deque()
    done = 0

    def feed() -> Iterator[str]:
        for text in texts:
            waiting.append(text)
            yield text.text

    try:
        for vector in encode(feed()):
            done += 1
            yield waiting.popleft(), vector
    except TextError as error:
        text = waiting[error.index - done]
        # "Text 12 is empty." has a number that no user sees; they can look up the file and line.
        _, *reason = str(error.parts[0]).partition(f"Text {error.index} ")
        raise failure(text.source, text.line, f"the text {reason[-1]}", *error.parts[1:]) from error


class CutTexts(logging.Filter):
    """While open, adds up the library's warnings about long texts, which come once for each window of a stream."""

    def __init__(self) -> None:
        super().__init__()
        self._count = 0
        self._limit = 0

    def __enter__(self) -> CutTexts:
        logging.getLogger("grit_mlx").addFilter(self)
        return self

    def __exit__(self, *error: object) -> None:
        logging.getLogger("grit_mlx").removeFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        """Count such a warning instead of showing it."""
        cut = getattr(record, "cut_texts", None)
        if cut is None:
            return True
        self._count += cut
        self._limit = record.__dict__["cut_at"]
        return False

    def report(self, total: int | None = None) -> None:
        """Warn once, if texts were truncated.

        Args:
            total: number of texts; None if they are not counted and cannot be split otherwise.
        """
        if not self._count:
            return
        texts = number_of(self._count, "text") if total is None else f"{self._count:,} of {number_of(total, 'text')}"
        chunks = "" if total is None else " or --by chunk"
        console.warn(
            f"{texts} {'was' if self._count == 1 else 'were'} truncated at {self._limit} tokens. "
            f"Raise --max-length, or embed complete texts with --long average{chunks}."
        )
