"""What embed and search read: files checked before a model is loaded, and texts paired with their vectors."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grit_mlx.cli import console
from grit_mlx.cli.wording import number_of
from grit_mlx.errors import ArgumentError, DocumentError, TextError
from grit_mlx.model.options import EmbeddingOptions
from grit_mlx.text.blocks import Notes
from grit_mlx.text.options import ReadingOptions
from grit_mlx.text.packing import Measure, count_words
from grit_mlx.text.reading import read_texts
from grit_mlx.text.rows import failure
from grit_mlx.text.splitting import STDIN, Text

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from grit_mlx.gritlm import GritLM
    from grit_mlx.progress import Progress

__all__ = ["CutTexts", "Inputs", "embedded", "encode_options", "paired", "token_measure"]


@dataclass
class Inputs:
    """Files, and how they are cut into texts.

    Attributes:
        files: paths, and at most once "-" for standard input.
        reading: how they are read.
        skipped: rows without text that ``read`` has skipped so far.
    """

    files: Sequence[str]
    reading: ReadingOptions
    skipped: int = 0

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
        streams = [name for name in self.files if name == STDIN or (Path(name).exists() and not Path(name).is_file())]
        # This refuses what is missing. Warnings are for the reading that counts.
        texts = [read_texts(name, reading, notes=Notes()) for name in self.files]
        if STDIN in self.files and console.stdin_is_terminal():
            console.note("reading from the terminal: one text per line, Ctrl-D ends the input")
        count = sum(1 for name, found in zip(self.files, texts, strict=True) if name not in streams for _ in found)
        if not streams and not count:
            raise self.no_text()
        return None if streams or chunked else count

    def read(self, measure: Measure = count_words) -> Iterator[Text]:
        """All texts, as a stream.

        Args:
            measure: the tokens of a text, for chunks.
        """
        for name in self.files:
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


def token_measure(grit: GritLM) -> Measure:
    """Counts the tokens of a text, without those that the tokenizer adds."""
    return lambda text: len(grit.tokenizer.encode(text, add_special_tokens=False, verbose=False))


def encode_options(embedding: EmbeddingOptions) -> dict[str, Any]:
    """The options of ``GritLM.encode`` that a command has flags for."""
    return {name: getattr(embedding, name) for name in ("batch_size", "max_length", "long_texts")}


def embedded(
    grit: GritLM, texts: Iterable[Text], embedding: EmbeddingOptions, progress: Progress, **role: str | None
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
