"""What embed and search read: files checked before a model is loaded, and texts paired with their vectors."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from grit_mlx.cli import console
from grit_mlx.cli.wording import number_of
from grit_mlx.errors import ArgumentError, DocumentError, TextError
from grit_mlx.text.options import ReadingOptions
from grit_mlx.text.reading import read_texts
from grit_mlx.text.splitting import STDIN, Measure, Text, count_words

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from grit_mlx.gritlm import GritLM

__all__ = ["CutTexts", "Inputs", "cut_texts", "paired", "token_measure"]


@dataclass
class Inputs:
    """Files, and how they are cut into texts.

    Attributes:
        files: paths, and at most once "-" for standard input.
        reading: how they are read.
        skipped: rows without text that ``read`` has left out so far.
    """

    files: Sequence[str]
    reading: ReadingOptions = field(default_factory=ReadingOptions)
    skipped: int = 0

    def check(self) -> int | None:
        """Read every file once, without a model: what is wrong with one shows now and not after an hour.

        Returns:
            The number of texts; None where only reading tells: standard input, pipes, and chunks, whose borders
            are found with the model's tokenizer.

        Raises:
            DocumentError: a file cannot be read, or there is no text in any.
            ArgumentError: options that do not go together.
        """
        if list(self.files).count(STDIN) > 1:
            raise ArgumentError("Standard input (-) can be read only once.")
        streams = [name for name in self.files if name == STDIN or (Path(name).exists() and not Path(name).is_file())]
        for name in self.files:
            self._texts(name, count_words)  # what is missing or may not be read is refused here already
        if STDIN in self.files and console.stdin_is_terminal():
            console.note("reading from the keyboard: one text a line, Ctrl-D at the end")
        # Paragraphs stand for chunks: the same files are read the same way, without a tokenizer.
        chunked = self.reading.by == "chunk"
        plain = replace(self, reading=replace(self.reading, by="paragraph")) if chunked else self
        count = sum(1 for name in self.files if name not in streams for _ in plain._texts(name, count_words))
        if not streams and not count:
            raise self.no_text()
        return None if streams or chunked else count

    def read(self, measure: Measure = count_words) -> Iterator[Text]:
        """All texts, as a stream.

        Args:
            measure: the tokens of a text, for chunks.
        """
        for name in self.files:
            yield from self._texts(name, measure, self._count_skipped)

    def no_text(self) -> DocumentError:
        """The error of files that hold nothing."""
        where = "standard input" if list(self.files) == [STDIN] else ", ".join(self.files[:3])
        more = f" and {len(self.files) - 3} more" if len(self.files) > 3 else ""
        return DocumentError(f"There is no text in {where}{more}.", path=self.files[0])

    def report_skipped(self) -> None:
        """Tell how many rows had no text, if any."""
        if self.skipped:
            console.note(f"{number_of(self.skipped, 'row')} without text left out")

    def _count_skipped(self) -> None:
        self.skipped += 1

    def _texts(self, name: str, measure: Measure, on_skip: Callable[[], None] | None = None) -> Iterator[Text]:
        return read_texts(name, self.reading, measure=measure, on_skip=on_skip)


def token_measure(model: GritLM) -> Measure:
    """Counts the tokens of a text, without those that the tokenizer adds."""

    def tokens(text: str) -> int:
        return len(model.tokenizer.encode(text, add_special_tokens=False, verbose=False))

    return tokens


def paired(
    texts: Iterable[Text], encode: Callable[[Iterator[str]], Iterator[NDArray[np.float32]]]
) -> Iterator[tuple[Text, NDArray[np.float32]]]:
    """Each text with its vector; holds only the texts that ``encode`` has taken and not yet answered.

    Args:
        texts: any number of them; read as the pairs are taken.
        encode: such as ``GritLM.encode_iter``: vectors in the order of the texts.

    Raises:
        DocumentError: a text cannot be embedded; names its file and line where ``encode`` names an index.
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
        name = "Standard input" if text.source == STDIN else text.source
        # "Text 12 is empty." counts what no user sees; the file and line are what they can look up.
        _, *reason = str(error.parts[0]).partition(f"Text {error.index} ")
        parts = f"{name}, line {text.line}: the text {reason[-1]}", *error.parts[1:]
        raise DocumentError(*parts, path=text.source, line=text.line) from error


class CutTexts(logging.Filter):
    """Adds up the library's warnings about long texts, which come once for each window of a stream."""

    def __init__(self) -> None:
        super().__init__()
        self._count = 0
        self._limit = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Keep such a warning from being shown, and its numbers."""
        cut = getattr(record, "cut_texts", None)
        if cut is None:
            return True
        self._count += cut
        self._limit = record.__dict__["cut_at"]
        return False

    def report(self, total: int | None = None) -> None:
        """Warn once, if texts were cut.

        Args:
            total: texts in all; None where they are not counted and cannot be split otherwise.
        """
        if self._count:
            verb = "was" if self._count == 1 else "were"
            texts = (
                number_of(self._count, "text") if total is None else f"{self._count:,} of {number_of(total, 'text')}"
            )
            splits = "" if total is None else ", --by chunk splits"
            console.warn(
                f"{texts} {verb} truncated at {self._limit} tokens. "
                f"--max-length reads more, --long average reads all{splits}."
            )


@contextmanager
def cut_texts() -> Iterator[CutTexts]:
    """Collect the warnings about long texts for as long as this lasts."""
    adder = CutTexts()
    logger = logging.getLogger("grit_mlx")
    logger.addFilter(adder)
    try:
        yield adder
    finally:
        logger.removeFilter(adder)
