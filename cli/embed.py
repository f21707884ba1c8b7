"""``grit embed``: texts to vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from grit_mlx.cli import console, options
from grit_mlx.cli.inputs import CutTexts, Inputs, embedded, token_measure
from grit_mlx.cli.loader import load_model
from grit_mlx.cli.options import Use
from grit_mlx.cli.warm import ServerUse
from grit_mlx.cli.wording import number_of, one_line
from grit_mlx.errors import ArgumentError
from grit_mlx.model.options import EmbeddingOptions, ModelChoice
from grit_mlx.options import check, option
from grit_mlx.text.options import ReadingOptions
from grit_mlx.text.splitting import STDIN, Text

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from grit_mlx.gritlm import GritLM
    from grit_mlx.progress import Progress
    from grit_mlx.vectors.journal import Journal

    Pairs = Iterable[tuple[Text, NDArray[np.float32]]]

__all__ = ["EXAMPLES", "VectorOutput", "embed"]

EXAMPLES = """
Examples:
  grit embed README.md
  grit embed *.txt --by paragraph --output vectors.npz
  grit embed corpus.jsonl --field body --output vectors.parquet --dtype float16
  echo "what keeps a ship upright?" | grit embed - --query
"""

_SHOWN_TEXTS = 20  # rows of the table on a terminal
_SHOWN_NUMBERS = 5
_WIDE_COLUMNS = 90  # of a terminal that has room for all of them
_PATH_COLUMNS = 30
_WRITTEN_TEXTS = 256  # written to a file or pipe at once
_NOTED_TEXTS = 1024  # computed between two states to which an interrupted run can return


@dataclass(frozen=True)
class VectorOutput:
    """Where vectors are written, and how."""

    heading: ClassVar[str] = options.OUTPUT

    output: str | None = option(
        None,
        "Write .npy (vectors only), .npz, .jsonl, .jsonl.gz or .parquet. An existing file is replaced once the new "
        "one is complete.",
        flags=("--output", "-o"),
        metavar="FILE",
    )
    no_overwrite: bool = option(False, "Refuse to replace an existing file.")
    keep: list[str] = option(
        [],
        "Also write this field of JSON, CSV or Parquet rows; repeatable. JSON lines always have the id.",
        metavar="FIELD",
    )
    precision: str = option(
        "float32",
        "Precision of the vectors written. int8 and binary come with a scale per vector.",
        choices=("float32", "float16", "int8", "binary"),
        flags=("--dtype",),
    )

    def __post_init__(self) -> None:
        check(self)


@options.command
def embed(
    *,
    files: options.Files,
    reading: Annotated[ReadingOptions, Use(defaults={"by": "line"})],
    instruction: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            rich_help_panel=options.MODEL,
            help="Instruction to embed the texts with. Default: the model's document instruction, usually none.",
        ),
    ] = None,
    query: Annotated[
        bool,
        typer.Option(
            "--query",
            rich_help_panel=options.MODEL,
            help="Embed the texts as search queries, with the model's query instruction.",
        ),
    ] = False,
    model: ModelChoice,
    server: ServerUse,
    embedding: EmbeddingOptions,
    target: VectorOutput,
) -> None:
    """Turn texts into vectors.

    Without --output a terminal shows a table of the first texts; a pipe gets JSON lines with index, source,
    line, end_line, text and embedding. Any number of texts takes the same memory.
    """
    if query and instruction is not None:
        raise typer.BadParameter("--query brings its own instruction: omit one of the two.", param_hint="--query")
    inputs = Inputs(files, reading)
    total = inputs.check()
    in_table = target.output is None and console.stdout_is_terminal()
    with ExitStack() as stack:
        writer = None
        if target.output is not None:
            _refuse_to_replace_an_input(target.output, files)
            from grit_mlx.vectors.files import open_writer

            # Opened before the model is loaded: a path that cannot be written costs no waiting.
            opened = open_writer(
                target.output, dtype=target.precision, overwrite=not target.no_overwrite, keep=target.keep
            )
            writer = stack.enter_context(opened)
        grit = load_model(model, mode="embedding", server=server)
        texts: Iterable[Text] = inputs.read(token_measure(grit))
        if in_table:
            texts = islice(texts, _SHOWN_TEXTS)
            total = None if total is None else min(total, _SHOWN_TEXTS)
        cut = stack.enter_context(CutTexts())
        advance = stack.enter_context(console.progress("Embedding", total))
        role = "query" if query else "document"

        def compute(texts: Iterable[Text], progress: Progress) -> Pairs:
            return embedded(grit, texts, embedding, progress, role=role, instruction=instruction)

        if target.output is None or not all(Path(name).is_file() for name in files):  # a pipe is read once
            pairs = compute(texts, advance)
        else:
            used = [reading, embedding, role, instruction]
            journal = stack.enter_context(_journal(Path(target.output), files, grit, used))
            if journal.done:
                console.note(f"resuming: {number_of(journal.done, 'text')} embedded already")
            pairs = _resumed(iter(texts), journal, compute, advance)
        shown = list(pairs) if in_table else []
        count = len(shown) if in_table else _write(pairs, target, writer)
        if not count:
            raise inputs.no_text()
    if in_table:  # once the progress bar is gone
        _show(shown, grit.embedding_size, several=len(files) > 1)
    inputs.report_skipped()
    _report(count, grit, output=target.output, in_table=in_table, cut=cut)


def _refuse_to_replace_an_input(output: str, files: Iterable[str]) -> None:
    for name in files:
        if name != STDIN and Path(output).exists() and Path(output).samefile(name):
            raise ArgumentError(f"{output} is also an input. Name another file for the vectors.")


@contextmanager
def _journal(output: Path, files: Iterable[str], grit: GritLM, options: Sequence[object]) -> Iterator[Journal]:
    """What an interrupted run of the same command has done; kept if this one is interrupted, too."""
    from grit_mlx.vectors.journal import Journal

    folders = [grit.folder, *([grit.adapter] if grit.adapter else [])]
    weights = [path for folder in folders for path in sorted(folder.glob("*.safetensors"))]
    identity = {
        "files": [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in [*map(Path, files), *weights]],
        "options": [str(option) for option in (*options, grit.settings)],
    }
    journal = Journal(output, identity, grit.embedding_size)
    try:
        yield journal
    except Exception:
        journal.remove()  # the same would happen again
        raise
    except BaseException:
        journal.close()
        raise
    journal.remove()


def _resumed(
    texts: Iterator[Text], journal: Journal, compute: Callable[[Iterable[Text], Progress], Pairs], progress: Progress
) -> Pairs:
    """Each text with its vector: those of the journal, then those that are computed, which it notes."""
    for vector in journal.vectors():
        yield next(texts), vector
    done = journal.done
    while block := list(islice(texts, _NOTED_TEXTS)):
        for text, vector in compute(block, partial(_shifted, progress, done)):
            journal.append(vector)
            yield text, vector
        journal.flush()
        done += len(block)


def _shifted(progress: Progress, before: int, done: int, total: int | None) -> None:
    progress(before + done, total)


def _write(pairs: Pairs, target: VectorOutput, writer: Any) -> int:
    """Write all pairs to a file's writer, or to stdout as JSON lines if there is none; returns their number."""
    import numpy as np

    from grit_mlx.vectors.compression import compress
    from grit_mlx.vectors.files import json_lines

    count = 0
    pairs = iter(pairs)
    while group := list(islice(pairs, _WRITTEN_TEXTS)):
        texts = [text for text, _ in group]
        vectors = np.stack([vector for _, vector in group])  # (n, E)
        if writer is not None:
            writer.write(vectors, texts)
        else:
            for line in json_lines(compress(vectors, target.precision), texts, first=count, keep=target.keep):
                console.write(line)
            console.flush()
        count += len(group)
    return count


def _show(pairs: Sequence[tuple[Text, NDArray[np.float32]]], size: int, *, several: bool) -> None:
    """Draw a table.

    Args:
        pairs: texts with their vectors.
        size: E.
        several: whether the texts come from several files.
    """
    import numpy as np
    from rich import box
    from rich.table import Table
    from rich.text import Text as RichText

    numbers = _SHOWN_NUMBERS if console.width() >= _WIDE_COLUMNS else _SHOWN_NUMBERS // 2 + 1
    places = [_place(text) if several else str(text.line) for text, _ in pairs]
    header = f"first of {size} numbers"
    # rich would shorten all columns; here only the text is shortened. 5 is the norm, 11 the gaps.
    taken = max(map(len, [*places, "line"])) + max(len(header), 7 * numbers - 1) + 5 + 11
    room = max(20, console.width() - taken)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("line", justify="left" if several else "right", style="dim", no_wrap=True)
    table.add_column("text", no_wrap=True)
    table.add_column(header, no_wrap=True)
    table.add_column("norm", justify="right", no_wrap=True)
    for place, (text, vector) in zip(places, pairs, strict=True):
        start = RichText(one_line(text.text[:1000]))
        start.truncate(room, overflow="ellipsis")
        shown = " ".join(f"{number:+.3f}" for number in vector[:numbers])
        table.add_row(place, start, shown, f"{np.linalg.norm(vector):.3f}")
    console.show(table)


def _place(text: Text) -> str:
    """File and line; of a long path the end."""
    name = console.visible(text.source)
    return f"{name if len(name) <= _PATH_COLUMNS else '…' + name[-_PATH_COLUMNS:]}:{text.line}"


def _report(count: int, grit: GritLM, *, output: str | None, in_table: bool, cut: CutTexts) -> None:
    if output is not None:
        console.note(f"{number_of(count, 'vector')} of {grit.embedding_size} numbers -> {output}")
    elif in_table:
        what = f"these are the first {_SHOWN_TEXTS}; to embed all" if count == _SHOWN_TEXTS else "to save the vectors"
        console.note(f"{what}: --output vectors.npz (or .npy, .jsonl, .parquet)")
    cut.report(count)
