"""``grit search``: like grep, but by meaning."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from grit_mlx.cli import console, options
from grit_mlx.cli.inputs import Inputs, cut_texts, paired, token_measure
from grit_mlx.cli.loader import load_model
from grit_mlx.cli.options import Use
from grit_mlx.cli.wording import number_of, one_line
from grit_mlx.errors import ArgumentError
from grit_mlx.model.options import EmbeddingOptions, ModelChoice
from grit_mlx.model.prompts import embedding_prompt
from grit_mlx.text.options import ReadingOptions
from grit_mlx.text.splitting import Text

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["EXAMPLES", "Hit", "best", "search"]

EXAMPLES = """
Examples:
  grit search "how do I run the tests" README.md docs/*.md
  grit search "refund after cancelling" mails.jsonl --field body --top 3
  history | grit search "shrink a video" - --min-score 0.4
"""

_BY = (
    "Unit that is ranked: lines (or rows of .jsonl and .csv), paragraphs, whole files, or chunks of at most "
    "--chunk-size tokens. Default: paragraphs of Markdown, lines and rows of other files."
)
_TERMINAL_ROWS = 3  # rows of the terminal that one hit may fill


@dataclass(frozen=True, order=True)
class Hit:
    """A text and how well it fits; hits compare by score, then the earlier text wins."""

    score: float
    order: int
    text: Text


@options.command
def search(
    *,
    query: Annotated[str, typer.Argument(metavar="QUERY", help="What to look for.")],
    files: options.Files,
    reading: Annotated[ReadingOptions, Use(helps={"by": _BY})],
    instruction: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            rich_help_panel=options.MODEL,
            help="Instruction to embed the query with. Default: the model's query instruction.",
        ),
    ] = None,
    model: ModelChoice,
    embedding: EmbeddingOptions,
    top: Annotated[
        int,
        typer.Option("--top", "-n", metavar="COUNT", min=1, rich_help_panel=options.OUTPUT, help="Number of hits."),
    ] = 10,
    min_score: Annotated[
        float | None,
        typer.Option(
            metavar="SCORE",
            min=-1.0,
            max=1.0,
            rich_help_panel=options.OUTPUT,
            help="Leave out hits below this. What is a good score depends on the model.",
        ),
    ] = None,
    json_output: Annotated[
        bool,
        typer.Option(
            "--json",
            rich_help_panel=options.OUTPUT,
            help="Print one JSON object per line: source, line, end_line, score, text.",
        ),
    ] = False,
) -> None:
    """Rank the texts of files by meaning, as grep finds words.

    Each hit is FILE:LINE: SCORE TEXT, where SCORE is the cosine, at most 1. Nothing is indexed or kept: all
    files are embedded each time, in constant memory.
    """
    if not query.strip():
        raise ArgumentError("The query is empty. Say what to look for.")
    inputs = Inputs(files, reading)
    total = inputs.check()
    grit = load_model(model, mode="embedding")
    wanted = grit.encode_queries(
        query,
        max_length=embedding.max_length,
        instruction=None if instruction is None else embedding_prompt(instruction),
    )
    with cut_texts() as cut, console.progress("Searching", total) as advance:
        pairs = paired(
            inputs.read(token_measure(grit)),
            lambda strings: grit.encode_iter(
                strings,
                batch_size=embedding.batch_size,
                max_length=embedding.max_length,
                instruction=embedding_prompt(grit.settings.document_instruction),
                long_texts=embedding.long_texts,
                progress=advance,
            ),
        )
        hits, seen = best(pairs, wanted, count=top)
    if not seen:
        raise inputs.no_text()
    _print([hit for hit in hits if min_score is None or hit.score >= min_score], in_json=json_output)
    inputs.report_skipped()
    cut.report(seen)
    if min_score is not None and hits[0].score < min_score:
        console.note(f"none of {number_of(seen, 'text')} scores {min_score:g}; the best has {hits[0].score:.3f}")


def best(
    pairs: Iterable[tuple[Text, NDArray[np.float32]]], wanted: NDArray[np.float32], *, count: int
) -> tuple[list[Hit], int]:
    """The texts whose vectors are closest to the wanted one by cosine, best first; holds no more than ``count``.

    Args:
        pairs: texts and their vectors (E,).
        wanted: (E,).
        count: most hits.

    Returns:
        The hits, and the number of all pairs.
    """
    from grit_mlx.vectors.compression import cosine

    heap: list[Hit] = []
    seen = 0
    for text, vector in pairs:
        hit = Hit(float(cosine(wanted, vector)), -seen, text)
        seen += 1
        if len(heap) < count:
            heapq.heappush(heap, hit)
        else:
            heapq.heappushpop(heap, hit)
    return sorted(heap, reverse=True), seen


def _print(hits: Sequence[Hit], *, in_json: bool) -> None:
    for hit in hits:
        text = hit.text
        if in_json:
            place = {"source": text.source, "line": text.line, "end_line": text.end_line}
            console.write(console.dumps({**place, "score": round(hit.score, 6), "text": text.text}))
        elif console.stdout_is_terminal():
            _draw(hit)
        else:
            console.write(f"{console.visible(text.source)}:{text.line}: {hit.score:.3f} {one_line(text.text)}")


def _draw(hit: Hit) -> None:
    """One hit in grep's colours, cut to a few rows."""
    from rich.text import Text as RichText

    parts = [
        (console.visible(hit.text.source), "magenta"),
        (":", "cyan"),
        (str(hit.text.line), "green"),
        (": ", "cyan"),
    ]
    line = RichText.assemble(*parts, (f"{hit.score:.3f} ", "bold"), one_line(hit.text.text))
    line.truncate(_TERMINAL_ROWS * console.width(), overflow="ellipsis")
    console.show(line)
