"""``grit embed``: texts to vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from grit_mlx.cli import console, launch, options
from grit_mlx.cli.inputs import CutTexts, Inputs, embedded, is_text, token_measure
from grit_mlx.cli.loader import load_model
from grit_mlx.cli.options import Use
from grit_mlx.cli.warm import ServerUse
from grit_mlx.cli.wording import number_of, one_line
from grit_mlx.errors import ArgumentError, DocumentError, NonFiniteError, Option
from grit_mlx.model.options import EmbeddingOptions, ModelChoice, Sharding
from grit_mlx.options import check, option
from grit_mlx.text.options import ReadingOptions
from grit_mlx.text.splitting import STDIN, Text
from grit_mlx.text.tables import dataset_files

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
  grit embed "what keeps a ship upright?"
  grit embed README.md
  grit embed *.txt --by paragraph --output vectors.npz
  grit embed corpus.jsonl --field body --output vectors.parquet --dtype float16
  grit embed corpus/ --id doc_id --keep lang --output vectors/
  mlx.launch -n 2 grit embed corpus.jsonl --output vectors.npy
  echo "what keeps a ship upright?" | grit embed - --query
"""

_SHOWN_TEXTS = 20  # rows of the table on a terminal
_SHOWN_NUMBERS = 5
_WIDE_COLUMNS = 90  # of a terminal that has room for all of them
_PATH_COLUMNS = 30
_WRITTEN_TEXTS = 256  # written to a file or pipe at once


@dataclass(frozen=True)
class VectorOutput:
    """Where vectors are written, and how."""

    heading: ClassVar[str] = options.OUTPUT

    output: str | None = option(
        None,
        "Write .npy (vectors only), .npz, .jsonl, .jsonl.gz or .parquet, or FOLDER/ for Parquet files in a new folder. "
        "An existing file is replaced once the new one is complete.",
        flags=("--output", "-o"),
        metavar="FILE",
    )
    no_overwrite: bool = option(False, "Refuse to replace an existing file.")
    id: str | None = option(
        None,
        "Write this field of JSON, CSV or Parquet rows as id. JSON lines have a field id or _id in any case.",
        metavar="FIELD",
    )
    keep: list[str] = option(
        [],
        "Also write this field of JSON, CSV or Parquet rows; repeatable.",
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
        if self.id is not None and "id" in self.keep and self.id != "id":
            raise ArgumentError(Option("id", self.id), " and ", Option("keep", "id"), " would both be the id.")

    @property
    def fields(self) -> dict[str, str]:
        """Fields of rows that are written, by the names that they are written under."""
        return {**({} if self.id is None else {"id": self.id}), **{name: name for name in self.keep}}


@options.command
def embed(
    *,
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE...",
            help="Text, Markdown, HTML, PDF, DOCX, .jsonl, .json, .csv, .tsv or .parquet, optionally gzipped; a folder "
            "of Parquet files; - reads stdin; a text in quotes is embedded itself.",
        ),
    ],
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
    sharding: Sharding,
    embedding: EmbeddingOptions,
    target: VectorOutput,
) -> None:
    """Turn texts into vectors.

    Without --output a terminal shows a table of the first texts; a pipe gets JSON lines with index, source,
    line, end_line, text and embedding. Any number of texts takes the same memory. The next run with the same --output
    resumes an interrupted one.
    """
    if query and instruction is not None:
        raise typer.BadParameter("--query brings its own instruction: omit one of the two.", param_hint="--query")
    if STDIN in files:
        launch.refuse_stdin()
    if launch.led() and target.output is None:
        raise ArgumentError("Several processes write to a file: name one with ", Option("output"), ".")
    files = [file for name in files for file in ([name] if is_text(name) else dataset_files(name))]
    inputs = Inputs(files, reading)
    total = inputs.check()
    in_table = target.output is None and console.stdout_is_terminal()
    with ExitStack() as stack:
        writer = None
        if target.output is not None:
            _refuse_to_replace_an_input(target.output, inputs.paths)
            from grit_mlx.vectors.files import open_writer

            # Opened before the model is loaded: a path that cannot be written costs no waiting.
            opened = open_writer(
                target.output, dtype=target.precision, overwrite=not target.no_overwrite, keep=target.fields
            )
            writer = stack.enter_context(opened)
        grit = load_model(model, mode="embedding", server=server, split=sharding.shard)
        texts: Iterable[Text] = inputs.read(token_measure(grit))
        if in_table:
            texts = islice(texts, _SHOWN_TEXTS)
            total = None if total is None else min(total, _SHOWN_TEXTS)
        cut = stack.enter_context(CutTexts())
        advance = stack.enter_context(console.progress("Embedding", total))
        role = "query" if query else "document"

        def compute(texts: Iterable[Text], progress: Progress) -> Pairs:
            return embedded(grit, texts, embedding, progress, role=role, instruction=instruction)

        again = len(inputs.paths) == len(files) and all(Path(name).is_file() for name in files)
        if target.output is None or not again:  # a pipe is read once
            pairs = compute(texts, advance)
        else:
            loaded = replace(model, model=None, adapter=None)  # they are told by their weights, not by their names
            used = [reading, embedding, loaded, sharding, role, instruction]
            journal = stack.enter_context(_journal(Path(target.output), files, grit, used))
            if journal.changed:
                changed = ", the ".join(journal.changed)
                console.note(f"starting anew: since the interrupted run of {target.output} changed the {changed}")
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
    from grit_mlx import __version__
    from grit_mlx.vectors.journal import Journal

    folders = [grit.folder, *([grit.adapter] if grit.adapter else [])]
    weights = [path for folder in folders for path in sorted(folder.glob("*.safetensors"))]
    identity = {
        "texts": list(map(_state, map(Path, files))),
        "model": list(map(_state, weights)),
        "options": [__version__, *(str(option) for option in (*options, grit.settings))],
    }
    journal = Journal(output, identity, grit.embedding_size)
    try:
        yield journal
    except (DocumentError, ArgumentError, NonFiniteError):
        journal.remove()  # the same would happen again
        raise
    except BaseException:
        journal.close()
        raise
    journal.remove()


def _state(path: Path) -> list[object]:
    return [str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns]


def _resumed(
    texts: Iterator[Text], journal: Journal, compute: Callable[[Iterable[Text], Progress], Pairs], progress: Progress
) -> Pairs:
    """Each text with its vector: those of the journal, then those that are computed, which it notes."""
    import numpy as np

    from grit_mlx.vectors.journal import PART_TEXTS

    for vector, text in zip(journal.vectors(), texts, strict=False):
        yield text, vector
    done = journal.done
    while part := list(islice(texts, PART_TEXTS)):
        pairs = list(compute(part, partial(_shifted, progress, done)))
        if len(part) == PART_TEXTS:
            journal.append(np.stack([vector for _, vector in pairs]))
        yield from pairs
        done += len(part)


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
            for line in json_lines(compress(vectors, target.precision), texts, first=count, keep=target.fields):
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
