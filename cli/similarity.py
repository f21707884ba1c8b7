"""``grit similarity``: how close texts are in meaning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from grit_mlx.cli import console, options
from grit_mlx.cli.inputs import encode_options
from grit_mlx.cli.loader import load_model
from grit_mlx.cli.options import Use
from grit_mlx.cli.wording import one_line
from grit_mlx.errors import ArgumentError
from grit_mlx.model.options import EmbeddingOptions, ModelChoice

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

__all__ = ["EXAMPLES", "similarity"]

_GAP = 3  # columns between two cells
_CELL = 6 + _GAP  # "-0.123"
_LEAST_TEXT = 10  # columns

EXAMPLES = """
Examples:
  grit similarity "The cat sat on the mat." "A kitten lay on the rug."
  grit similarity "red wine" "white wine" "a sailing boat" --json
"""


@options.command
def similarity(
    *,
    texts: Annotated[list[str], typer.Argument(metavar="TEXT TEXT...", help="Two texts or more.")],
    instruction: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            rich_help_panel=options.MODEL,
            help="Instruction to embed the texts with. Default: the model's similarity instruction.",
        ),
    ] = None,
    model: ModelChoice,
    embedding: Annotated[EmbeddingOptions, Use(without=("batch_size", "batch_tokens"))],
    json_output: options.JsonFlag = False,
) -> None:
    """Compare the meaning of two texts or more.

    Two texts give one number, the cosine of their vectors, at most 1; more give a table of all pairs,
    tab-separated in a pipe.
    """
    if len(texts) < 2:
        raise typer.BadParameter("Give at least two texts to compare.", param_hint="TEXT")
    for number, text in enumerate(texts, start=1):
        if not text.strip():
            raise ArgumentError(f"Text {number} is empty. Give every text at least a word.")
    grit = load_model(model, mode="embedding")
    from grit_mlx.vectors.compression import cosine

    vectors = grit.encode(texts, role="similarity", instruction=instruction, **encode_options(embedding))
    cosines = cosine(vectors, vectors)  # (N, N)
    if json_output:
        rounded = [[round(float(value), 6) for value in row] for row in cosines]
        result = {"cosine": rounded[0][1]} if len(texts) == 2 else {"cosines": rounded}
        console.write(console.dumps({"texts": texts, **result}))
    elif len(texts) == 2:
        console.write(f"{cosines[0, 1]:.4f}")
    elif console.stdout_is_terminal():
        _show(texts, cosines)
    else:
        for row in cosines:
            console.write("\t".join(f"{value:.4f}" for value in row))


def _show(texts: Sequence[str], cosines: NDArray[np.float32]) -> None:
    """Draw the matrix, with the texts beside their rows; in several tables if its columns do not fit into one."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    count, digits = len(texts), len(str(len(texts)))
    room = console.width() - digits - _GAP - 2  # at the edges
    beside = max(_LEAST_TEXT, min(max(map(len, map(one_line, texts))), console.width() // 2, room - count * _CELL))
    columns = max(1, (room - beside) // _CELL)
    for start in range(0, count, columns):
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("", style="dim", justify="right", no_wrap=True, min_width=digits)
        table.add_column("text", no_wrap=True, width=beside)
        numbers = range(start, min(start + columns, count))
        for number in numbers:
            table.add_column(str(number + 1), justify="right", no_wrap=True, min_width=_CELL - _GAP)
        for number, (text, row) in enumerate(zip(texts, cosines, strict=True)):
            words = Text(one_line(text))
            words.truncate(beside, overflow="ellipsis")
            cells = [Text(f"{row[i]:.3f}", style="dim" if i == number else "") for i in numbers]
            table.add_row(str(number + 1), words, *cells)
        console.show(table)
