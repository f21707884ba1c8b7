"""``grit rag``: files made searchable, and questions answered from them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from grit_mlx.cli import console, options
from grit_mlx.cli.chat import interruptible, piped_lines, typed_lines
from grit_mlx.cli.generate import show_piece
from grit_mlx.cli.loader import load_model
from grit_mlx.cli.options import Use
from grit_mlx.cli.wording import bytes_of_size, number_of, one_line, size_of
from grit_mlx.errors import ArgumentError, GritError
from grit_mlx.model.options import GenerationOptions, ModelChoice
from grit_mlx.text.options import ReadingOptions

if TYPE_CHECKING:
    from grit_mlx.gritlm import GritLM
    from grit_mlx.rag import Found, Hit, IndexReport, Rag, Response, Store

__all__ = [
    "ASK_EXAMPLES",
    "CHAT_EXAMPLES",
    "EXAMPLES",
    "INDEX_EXAMPLES",
    "REMOVE_EXAMPLES",
    "STATS_EXAMPLES",
    "VERIFY_EXAMPLES",
    "ask",
    "budget_of",
    "chat",
    "index",
    "remove",
    "stats",
    "verify",
]

EXAMPLES = """
Examples:
  grit rag index ~/notes
  grit rag ask "When is the boiler serviced?"
  grit rag chat
"""
INDEX_EXAMPLES = """
Examples:
  grit rag index ~/notes docs/ README.md
  grit rag index mails.jsonl --field body --store mails.grit
  grit rag index docs/ --dry-run
  grit rag index docs/ --cache-ahead all --cache-bits 8
"""
ASK_EXAMPLES = """
Examples:
  grit rag ask "When is the boiler serviced?"
  grit rag ask "How is a model converted?" --path "docs/*.md" --sources-only
  grit rag ask "Who wrote to us?" --store mails.grit --where year=1999 --json
"""
CHAT_EXAMPLES = """
Examples:
  grit rag chat
  printf 'What is a keel?\\nWho made ours?\\n' | grit rag chat --top 2
"""
STATS_EXAMPLES = """
Examples:
  grit rag stats
  grit rag stats --store mails.grit --json
"""
REMOVE_EXAMPLES = """
Examples:
  grit rag remove ~/notes/old
  grit rag remove "*.log" --store mails.grit
"""
VERIFY_EXAMPLES = """
Examples:
  grit rag verify
"""

STORE = "Store"
CACHE = "Cached documents"

_HELP = """/sources    where the last answer came from, with the text
/reset      forget the conversation
/quit       leave (so does Ctrl-D)
/help       this list
Ctrl-C stops an answer."""

_EXCERPT_ROWS = 3  # rows of the terminal that a passage may fill

_Model = Annotated[ModelChoice, Use(without=("pooling", "attn"))]
_SAMPLING = ("max_tokens", "temperature", "seed")

StoreOption = Annotated[
    str,
    typer.Option(
        "--store",
        envvar="GRIT_STORE",
        show_envvar=True,
        metavar="FOLDER",
        rich_help_panel=STORE,
        help="Folder of the store, or s3://bucket/path, gs://bucket/path or db://name.",
    ),
]
Top = Annotated[
    int, typer.Option("--top", "-n", metavar="COUNT", min=1, rich_help_panel=STORE, help="Passages to answer from.")
]
Method = Annotated[
    Literal["hybrid", "rrf", "dense", "bm25"],
    typer.Option(
        metavar="hybrid|rrf|dense|bm25",
        rich_help_panel=STORE,
        help="Look for meaning (dense), for words (bm25), or for both, fused by scores (hybrid) or by ranks (rrf).",
    ),
]
Paths = Annotated[
    list[str] | None,
    typer.Option(
        "--path",
        metavar="PATTERN",
        rich_help_panel=STORE,
        help="Only this file, folder or pattern such as 'docs/*.md'; may be given several times.",
    ),
]
Where = Annotated[
    list[str] | None,
    typer.Option(
        "--where",
        metavar="KEY=VALUE",
        rich_help_panel=STORE,
        help="Only rows of .jsonl and .csv with this field, or files with kind=markdown and the like; "
        "all that are given must hold.",
    ),
]
Rerank = Annotated[
    bool,
    typer.Option(
        "--rerank",
        rich_help_panel=STORE,
        help="Order the best passages by how likely the model finds the question after each. Slower.",
    ),
]
MinScore = Annotated[
    float | None,
    typer.Option(
        metavar="SCORE",
        rich_help_panel=STORE,
        help="Cosine above which a passage counts as relevant; -1 for any. "
        "Default: what unrelated questions reach at best, as measured by 'grit rag index'.",
    ),
]
CacheMode = Annotated[
    Literal["none", "doc", "query", "doc-query", "query-doc", "auto"],
    typer.Option(
        metavar="none|doc|query|doc-query|query-doc|auto",
        rich_help_panel=CACHE,
        help="What is taken from keys and values that retrieval computed. "
        "'auto' picks the fastest of doc, none and query.",
    ),
]
CacheBits = Annotated[
    Literal["full", "8", "4"],
    typer.Option(metavar="full|8|4", rich_help_panel=CACHE, help="Precision of what is newly cached on disk."),
]
CacheBudget = Annotated[
    str,
    typer.Option(
        metavar="SIZE",
        rich_help_panel=CACHE,
        help="Most disk for cached documents, such as 500MB, 0, or 'none' for no limit; "
        "the least recently used are given up.",
    ),
]
Wait = Annotated[
    float,
    typer.Option(
        "--wait", metavar="SECONDS", min=0.0, rich_help_panel=STORE, help="Wait this long for another process to end."
    ),
]


@options.command
def index(
    *,
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH...",
            help="Files and folders: text, Markdown, HTML, PDF, DOCX, .jsonl, .csv, source code.",
        ),
    ],
    store: StoreOption = ".grit",
    passage_tokens: Annotated[
        int | None,
        typer.Option(
            metavar="TOKENS",
            min=8,
            rich_help_panel=STORE,
            help="Most tokens of a passage. Default: the store's, or 256.",
        ),
    ] = None,
    overlap: Annotated[
        int | None,
        typer.Option(
            metavar="TOKENS",
            min=0,
            rich_help_panel=STORE,
            help="Most tokens that a passage repeats of the one before. Default: the store's, or 32.",
        ),
    ] = None,
    reading: Annotated[ReadingOptions, Use(only=("field",))],
    keep_missing: Annotated[
        bool, typer.Option("--keep-missing", rich_help_panel=STORE, help="Keep the passages of files that are gone.")
    ] = False,
    approximate: Annotated[
        bool,
        typer.Option(
            "--approximate",
            rich_help_panel=STORE,
            help="Build the approximate index now. Default: once the vectors outgrow a quarter of the memory.",
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", rich_help_panel=STORE, help="Only count: files, passages, tokens, disk.")
    ] = False,
    wait: Wait = 0.0,
    cache_ahead: Annotated[
        str,
        typer.Option(
            metavar="COUNT|all",
            rich_help_panel=CACHE,
            help="Cache this many of the passages that were answered from most often, or all of the store.",
        ),
    ] = "0",
    cache_bits: CacheBits = "full",
    cache_budget: CacheBudget = "10GB",
    model: _Model,
    json_output: options.JsonFlag = False,
) -> None:
    """Make files searchable, or bring a store up to date with them.

    Unchanged files are skipped, changed ones replaced, and those that are gone from PATH removed, all in one step at
    the end. What .gitignore excludes is left out. An interrupted run is gone on from by the next.
    """
    budget, ahead = budget_of(cache_budget), _count_or_all(cache_ahead)
    grit = load_model(model, mode="embedding")
    opened = _opened(
        store,
        grit,
        passage_tokens=passage_tokens,
        overlap=overlap,
        cache_precision=cache_bits,
        cache_budget=budget,
    )
    if dry_run or ahead == "all":
        with console.progress("Counting", None) as advance:
            estimate = opened.estimate(paths, field=reading.field, progress=advance)
        sizes = {name: size_of(count) for name, count in estimate.cache_bytes.items()}
        if dry_run:
            _show_estimate(estimate, sizes, in_json=json_output)
            return
        console.note(f"cached documents will take about {sizes[cache_bits]}")
        if budget is not None and estimate.cache_bytes[cache_bits] > budget:
            console.warn(f"that is more than --cache-budget {cache_budget}: only the last ones will be kept")
    try:
        with _bytes_bar("Indexing") as progress:
            report = opened.index(
                paths,
                field=reading.field,
                keep_missing=keep_missing,
                cache_ahead=ahead,
                approximate=approximate or None,
                wait=wait,
                on_wait=lambda holder: console.note(f"{holder} is writing to {store}; waiting"),
                progress=progress,
            )
    except KeyboardInterrupt:
        console.note("stopped; what was embedded is kept, and the same command goes on from there")
        raise
    _show_report(report, store, in_json=json_output)


@options.command
def ask(
    *,
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="What to answer.")],
    store: StoreOption = ".grit",
    top: Top = 4,
    method: Method = "hybrid",
    path: Paths = None,
    where: Where = None,
    rerank: Rerank = False,
    min_score: MinScore = None,
    cache: CacheMode = "auto",
    cache_bits: CacheBits = "full",
    cache_budget: CacheBudget = "10GB",
    sampling: Annotated[GenerationOptions, Use(only=_SAMPLING, defaults={"max_tokens": 256})],
    model: _Model,
    sources_only: Annotated[
        bool, typer.Option("--sources-only", rich_help_panel=options.OUTPUT, help="Only where, without an answer.")
    ] = False,
    no_generate: Annotated[
        bool,
        typer.Option(
            "--no-generate", rich_help_panel=options.OUTPUT, help="The passages that were found, without an answer."
        ),
    ] = False,
    json_output: options.JsonFlag = False,
) -> None:
    """Answer a question from a store, as it comes, and say where from.

    Each source is FILE:LINES with its cosine and the headings above it. Where no passage is relevant, that is said
    and nothing is made up.
    """
    if not question.strip():
        raise ArgumentError("The question is empty.")
    answering = not (sources_only or no_generate)
    opened, grit = _store_and_model(
        store,
        None if method == "bm25" and not answering and not rerank else model,
        mode="unified" if answering or rerank else "embedding",
        cache_precision=cache_bits,
        cache_budget=budget_of(cache_budget),
    )
    filters: dict[str, Any] = {"paths": path or (), "metadata": where or ()}
    if grit is None or grit.mode == "embedding":
        found = _found(opened, question, top=top, method=method, min_score=min_score, **filters)
        _show_found(found, opened, in_json=json_output, texts=no_generate)
        return
    from grit_mlx.rag import Rag

    rag = Rag(grit, opened, top=top, method=method, cache=cache, rerank=rerank, min_score=min_score)
    found = rag.find(question, **filters)
    if not answering:
        _show_found(found, opened, in_json=json_output, texts=no_generate)
        return
    response = rag.respond(found, **asdict(sampling))
    _answer(response, opened, in_json=json_output)


@options.command
def chat(
    *,
    store: StoreOption = ".grit",
    top: Top = 4,
    method: Method = "hybrid",
    rerank: Rerank = False,
    min_score: MinScore = None,
    cache: Annotated[
        Literal["none", "doc", "auto"],
        typer.Option(metavar="none|doc|auto", rich_help_panel=CACHE, help="Whether documents are taken from caches."),
    ] = "auto",
    cache_bits: CacheBits = "full",
    cache_budget: CacheBudget = "10GB",
    sampling: Annotated[GenerationOptions, Use(only=_SAMPLING, defaults={"max_tokens": 512})],
    model: _Model,
) -> None:
    """Talk about what a store holds.

    As long as a question finds what the one before found, the documents stay in place and only what is new is
    computed. In a pipe each line of standard input is a question. Inside: /sources, /reset, /quit, /help.
    """
    opened, grit = _store_and_model(
        store,
        model,
        mode="unified",
        cache_precision=cache_bits,
        cache_budget=budget_of(cache_budget),
    )
    from grit_mlx.rag import Rag

    assert grit is not None
    rag = Rag(grit, opened, top=top, method=method, cache=cache, rerank=rerank, min_score=min_score)
    typed = console.stdin_is_terminal()
    if typed:
        console.note(f"{number_of(len(opened), 'passage')}: /help lists the commands, Ctrl-D leaves")
    sources: list[Hit] = []
    for line in typed_lines() if typed else piped_lines():
        try:
            if line.startswith("/") and re.fullmatch(r"/[A-Za-z]+", line):
                if not _obey(line, rag, sources):
                    break
                continue
            response = rag.chat(line, **asdict(sampling))
            text = _answer(response, opened)
            if response.answer is not None:
                rag.remember(line, text)
                sources = response.sources
        except GritError as error:
            # Someone who types can mend it; a script must learn that its turn failed.
            if not typed:
                raise
            console.error(error)


@options.command
def stats(
    *,
    store: StoreOption = ".grit",
    json_output: options.JsonFlag = False,
) -> None:
    """Tell what a store holds, and how much disk it takes."""
    found = _existing(store).stats()
    caches = found.caches
    if json_output:
        values = {name: getattr(found, name) for name in found.__dataclass_fields__ if name != "caches"}
        cached = {"files": caches.files, "bytes": caches.bytes}
        console.write(console.dumps({"store": store, **values, "caches": cached}))
        return
    search = "exact" if not found.approximate else f"approximate, recall {found.recall:.3f}"
    lines = {
        "files": f"{found.files:,}",
        "passages": f"{found.passages:,} of at most {found.passage_tokens} tokens, overlap {found.overlap}",
        "model": f"{found.model}, vectors of {found.embedding_size}",
        "search": search,
        "relevant above": _thresholds(found.relevance, found.relevance_bm25),
        "disk": "on another machine" if found.bytes is None else size_of(found.bytes),
        "cached": f"{number_of(caches.files, 'document')}, {size_of(caches.bytes)}",
    }
    for name, value in lines.items():
        console.write(f"{name:<15} {console.visible(value)}")


@options.command
def remove(
    *,
    paths: Annotated[
        list[str], typer.Argument(metavar="PATH...", help="Files, folders, or patterns such as 'docs/*.md'.")
    ],
    store: StoreOption = ".grit",
    wait: Wait = 0.0,
) -> None:
    """Take files out of a store; the files themselves stay."""
    count = _existing(store).remove(paths, wait=wait)
    console.note(f"{number_of(count, 'file')} removed from {store}")


@options.command
def verify(
    *,
    store: StoreOption = ".grit",
) -> None:
    """Look for what is wrong in a store: files that changed, damaged rows and caches.

    Each problem is a line; damaged cached documents are removed, and computed again when they are needed. With
    problems the exit code is 1.
    """
    with console.progress("Verifying", None) as advance:
        problems = _existing(store).verify(advance)
    for problem in problems:
        console.write(console.visible(problem))
    if problems:
        raise typer.Exit(1)
    console.note("all is well")


# Opening


def _opened(uri: str, grit: GritLM | None, **chosen: Any) -> Store:
    with console.status("Opening the store"):
        from grit_mlx.rag import Store

        return Store(uri, grit, **chosen)


def _existing(uri: str) -> Store:
    """The store, to be looked at without a model.

    Raises:
        StoreError: there is none.
    """
    opened = _opened(uri, None)
    opened.require()
    return opened


def _store_and_model(
    uri: str, choice: ModelChoice | None, *, mode: str, cache_precision: str, cache_budget: int | None
) -> tuple[Store, GritLM | None]:
    """Both, where there is a store: a wrong folder shows before a model was loaded.

    Args:
        uri: the store.
        choice: the model; None for none.
        mode: see ``load_model``.
        cache_precision: see ``Store``.
        cache_budget: see there.
    """
    _existing(uri)
    grit = None if choice is None else load_model(choice, mode=mode)
    return _opened(uri, grit, cache_precision=cache_precision, cache_budget=cache_budget), grit


def _count_or_all(text: str) -> int | str:
    if text == "all":
        return text
    if not text.isdecimal():
        raise typer.BadParameter(f"{text!r} is neither a number nor 'all'.", param_hint="--cache-ahead")
    return int(text)


def budget_of(text: str) -> int | None:
    """The bytes of ``--cache-budget``; None for no limit."""
    return None if text.strip().lower() == "none" else bytes_of_size(text, option="--cache-budget")


def _thresholds(cosine: float | None, bm25: float | None) -> str:
    if cosine is None:
        return "not measured"
    return f"cosine {cosine:.3f}" + ("" if bm25 is None else f", or BM25 {bm25:.2f}")


# Finding and answering


def _found(opened: Store, question: str, *, top: int, method: str, min_score: float | None, **filters: Any) -> Found:
    from grit_mlx.rag import Found

    hits = opened.search(question, top=top, method=method, **filters)
    return Found.among(question, hits, opened, min_score=min_score)


def _answer(response: Response, opened: Store, *, in_json: bool = False) -> str:
    """Show an answer as it comes, then its sources; Ctrl-C stops the answer, not the sources. Returns its text."""
    answer = response.answer
    if answer is None:
        _show_found(response.found, opened, in_json=in_json)
        return ""
    pieces: list[str] = []
    with interruptible() as stopped:
        for piece in answer:
            pieces.append(piece)
            if not in_json:
                show_piece(piece)
            if stopped():
                break
    text = "".join(pieces)
    if in_json:
        timings = {
            "mode": answer.mode,
            "cached_tokens": answer.cached_tokens,
            "computed_tokens": answer.computed_tokens,
            "generated_tokens": answer.generated_tokens,
            "finish_reason": answer.finish_reason,
            "seconds_to_first_token": round(answer.seconds_to_first_token or 0.0, 4),
            "seconds": round(answer.seconds, 4),
        }
        console.write(console.dumps({"answer": text, **_as_json(response.found), **timings}))
        return text
    console.write("\n")
    _show_sources(response.sources)
    if console.verbose():
        console.note(
            f"--cache {answer.mode}: {answer.cached_tokens:,} tokens from caches, {answer.computed_tokens:,} computed; "
            f"the first token after {answer.seconds_to_first_token or 0:.2f} s"
        )
    if answer.finish_reason == "length":
        console.note(f"stopped after {answer.generated_tokens} tokens; --max-tokens allows more")
    return text


def _obey(line: str, rag: Rag, sources: Sequence[Hit]) -> bool:
    """Do what a line of a chat asks for; returns whether to go on."""
    name = line[1:].lower()
    if name in {"quit", "exit", "bye"}:
        return False
    if name == "reset":
        rag.reset()
        console.note("the conversation is forgotten")
    elif name == "sources":
        _show_sources(sources, texts=True)
    elif name == "help":
        console.write(_HELP)
    else:
        raise ArgumentError(f"There is no command /{name}. These are: /sources, /reset, /quit and /help.")
    return True


# Showing


def _as_json(found: Found) -> dict[str, Any]:
    sources = [
        {
            "source": hit.row.name,
            hit.row.unit: hit.row.passage.line,
            f"end_{hit.row.unit}": hit.row.passage.end_line,
            "heading": hit.row.passage.heading,
            "score": round(hit.score, 6),
            "cosine": None if hit.cosine is None else round(hit.cosine, 6),
            "text": hit.row.passage.text,
        }
        for hit in found.hits
    ]
    return {"question": found.question, "relevant": found.relevant, "sources": sources if found.relevant else []}


def _show_found(found: Found, opened: Store, *, in_json: bool, texts: bool = False) -> None:
    """What was found, or that nothing relevant was."""
    if in_json:
        console.write(console.dumps({"answer": None, **_as_json(found)}))
    elif found.relevant:
        _show_sources(found.hits, texts=texts, heading=False)
    else:
        console.write(f"Nothing relevant was found among {number_of(len(opened), 'passage')}.")
        if found.hits and found.best is not None and found.needed is not None:
            console.note(
                f"the best passage has a cosine of {found.best:.3f}, and {found.needed:.3f} must be exceeded; "
                "--min-score -1 takes any"
            )


def _show_sources(hits: Sequence[Hit], *, texts: bool = False, heading: bool = True) -> None:
    from grit_mlx.rag import place_of

    if heading and not texts:
        console.write("Sources:")
    for hit in hits:
        score = f"{hit.score:.3f}" if hit.cosine is None else f"{hit.cosine:.3f}"
        above = f"  {one_line(hit.row.passage.heading)}" if hit.row.passage.heading else ""
        console.write(f"{console.visible(place_of(hit.row))}  {score}{above}")
        if texts:
            console.write("".join(f"    {line}\n" for line in _lines(hit.row.passage.text)))


def _lines(text: str) -> list[str]:
    return [console.visible(line.rstrip(), keep="\t") for line in text.splitlines()]


@contextmanager
def _bytes_bar(label: str) -> Iterator[Callable[[int, int | None], None]]:
    with console.phases() as advance:

        def progress(done: int, total: int | None) -> None:
            advance(label, f"{size_of(done)} of {size_of(total or 0)}", done, total or 0)

        yield progress


def _show_estimate(estimate: Any, sizes: dict[str, str], *, in_json: bool) -> None:
    if in_json:
        console.write(console.dumps({name: getattr(estimate, name) for name in estimate.__dataclass_fields__}))
        return
    console.write(
        f"{number_of(estimate.files, 'file')} to embed, {estimate.unchanged:,} unchanged: "
        f"{number_of(estimate.passages, 'passage')}, {number_of(estimate.tokens, 'token')}."
    )
    console.write(
        f"As cached documents they take {sizes['full']} as they are, {sizes['8']} in 8 and {sizes['4']} in 4 bits."
    )


def _show_report(report: IndexReport, store: str, *, in_json: bool) -> None:
    from grit_mlx.text.walking import SKIPPED

    if in_json:
        values = {name: getattr(report, name) for name in report.__dataclass_fields__}
        values["problems"] = [{"source": name, "reason": reason} for name, reason in report.problems]
        console.write(console.dumps({"store": store, **values, "seconds": round(report.seconds, 3)}))
        return
    for name, reason in report.problems:
        console.warn(f"{name}: {reason}")
    left_out = ", ".join(f"{count:,} {SKIPPED[kind]}" for kind, count in report.skipped.items() if count)
    done = {
        "new": report.added,
        "changed": report.changed,
        "unchanged": report.unchanged,
        "removed": report.removed,
    }
    files = ", ".join(f"{count:,} {name}" for name, count in done.items() if count) or "none"
    console.write(
        f"Files: {files}. {number_of(report.passages, 'passage')} embedded in {report.seconds:.1f} s; "
        f"{console.visible(store)} holds {report.total:,}."
    )
    if left_out:
        console.note(f"skipped: {left_out}")
