"""``grit search``: like grep, but by meaning."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from grit_mlx.cli import console, options
from grit_mlx.cli.inputs import CutTexts, Sources, embedded_once, token_measure
from grit_mlx.cli.loader import load_model
from grit_mlx.cli.options import Use
from grit_mlx.cli.warm import ServerUse
from grit_mlx.cli.wording import number_of, one_line
from grit_mlx.errors import ArgumentError
from grit_mlx.model.options import EmbeddingOptions, ModelChoice
from grit_mlx.options import check, option
from grit_mlx.rag.options import budget_of
from grit_mlx.text.options import ReadingOptions, WalkOptions
from grit_mlx.text.splitting import Text

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["EXAMPLES", "ScoredText", "SearchOutput", "best", "search"]

EXAMPLES = """
Examples:
  grit search "how do I run the tests" README.md docs/*.md
  grit search "where are tokens counted" src/ --include "*.py"
  grit search "refund after cancelling" mails.jsonl --field body --top 3
  history | grit search "shrink a video" - --min-score 0.4
"""

_BY = (
    "Unit that is ranked: lines (or rows of .jsonl and .csv), paragraphs, complete files, or chunks of at most "
    "--chunk-size tokens. Default: passages of documents as 'grit rag' makes them, lines and rows of other files."
)
_TERMINAL_ROWS = 3  # rows of the terminal that one text may fill


@dataclass(frozen=True, order=True)
class ScoredText:
    """A text and how well it fits. The best compares greatest: by score, then the earlier text."""

    score: float
    order: int
    text: Text


@dataclass(frozen=True)
class SearchOutput:
    """Which texts are printed, and how."""

    heading: ClassVar[str] = options.OUTPUT

    top: int = option(10, "Number of hits.", minimum=1, flags=("--top", "-n"), metavar="COUNT")
    min_score: float | None = option(
        None,
        "Leave out hits below this. What is a good score depends on the model.",
        minimum=-1,
        maximum=1,
        metavar="SCORE",
    )
    keep: list[str] = option(
        [],
        "With --json: also print this field of JSON, CSV or Parquet rows; repeatable. An id is always printed.",
        metavar="FIELD",
    )
    json: bool = option(False, "Print one JSON object per line: source, line, end_line, score, text.")

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True)
class CacheOptions:
    """Whether vectors are kept for the next search."""

    heading: ClassVar[str] = options.MODEL

    no_cache: bool = option(False, "Embed everything anew, and keep nothing for the next search.")
    cache_budget: int | None = option(
        500_000_000,
        "Maximum disk space for kept vectors, such as 500MB or 0; the least recently used are removed.",
        minimum=0,
        parse=budget_of,
        metavar="SIZE",
    )

    def __post_init__(self) -> None:
        check(self)


@options.command
def search(
    *,
    query: Annotated[str, typer.Argument(metavar="QUERY", help="What to look for.")],
    files: Annotated[
        list[str],
        typer.Argument(metavar="PATH...", help="Files and folders, of all kinds that 'grit rag' reads; - reads stdin."),
    ],
    walking: WalkOptions,
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
    server: ServerUse,
    embedding: EmbeddingOptions,
    cache: Annotated[CacheOptions, Use(defaults={"cache_budget": "500MB"})],
    output: SearchOutput,
) -> None:
    """Rank the texts of files by meaning, as grep finds words.

    Each hit is FILE:LINE: SCORE TEXT, where SCORE is the cosine, at most 1. In folders, files excluded by .gitignore
    are left out. A file that cannot be read is named, and the others are searched. Vectors are kept, so that the next
    search embeds only what is new.
    """
    if not query.strip():
        raise ArgumentError("The query is empty. Say what to look for.")
    inputs = Sources(files, reading, walking)
    inputs.check()
    grit = load_model(model, mode="embedding", server=server)
    wanted = grit.encode(query, role="query", instruction=instruction, max_length=embedding.max_length)
    budget = 0 if cache.no_cache else cache.cache_budget
    with CutTexts() as cut, console.progress("Searching", None) as advance:
        texts = inputs.read(token_measure(grit))
        pairs = embedded_once(grit, texts, embedding, advance, budget=budget)
        found, seen = best(pairs, wanted, count=output.top)
    if not seen:
        raise inputs.nothing()
    least = output.min_score
    _print([one for one in found if least is None or one.score >= least], output)
    cut.report(seen)
    if least is not None and found[0].score < least:
        console.note(f"none of {number_of(seen, 'text')} scores {least:g}; the best has {found[0].score:.3f}")
    inputs.finish()


def best(
    pairs: Iterable[tuple[Text, NDArray[np.float32]]], wanted: NDArray[np.float32], *, count: int
) -> tuple[list[ScoredText], int]:
    """The texts whose vectors are closest to the wanted one by cosine, best first; holds no more than ``count``.

    Args:
        pairs: texts and their vectors (E,).
        wanted: (E,).
        count: maximum number of texts.

    Returns:
        The texts, and the number of all pairs.
    """
    from grit_mlx.vectors.compression import cosine

    heap: list[ScoredText] = []
    seen = 0
    for text, vector in pairs:
        scored = ScoredText(float(cosine(wanted, vector)), -seen, text)
        seen += 1
        if len(heap) < count:
            heapq.heappush(heap, scored)
        else:
            heapq.heappushpop(heap, scored)
    return sorted(heap, reverse=True), seen


def _print(found: Sequence[ScoredText], output: SearchOutput) -> None:
    from grit_mlx.vectors.files import fields_of

    for one in found:
        text = one.text
        if output.json:
            place = {"source": text.source, "line": text.line, "end_line": text.end_line}
            entry = {**place, "score": round(one.score, 6), "text": text.text}
            console.write(console.dumps({**fields_of(text, output.keep), **entry}))
        elif console.stdout_is_terminal():
            _draw(one)
        else:
            console.write(f"{console.visible(text.source)}:{text.line}: {one.score:.3f} {one_line(text.text)}")


def _draw(one: ScoredText) -> None:
    """A hit in grep's colours, cut to a few rows."""
    from rich.text import Text as RichText

    place = (console.visible(one.text.source), "magenta"), (":", "cyan"), (str(one.text.line), "green"), (": ", "cyan")
    line = RichText.assemble(*place, (f"{one.score:.3f} ", "bold"), one_line(one.text.text))
    line.truncate(_TERMINAL_ROWS * console.width(), overflow="ellipsis")
    console.show(line)
