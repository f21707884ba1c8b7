"""``grit rag``: files made searchable, and questions answered from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from grit_mlx.cli import console, options
from grit_mlx.cli.background import stoppable
from grit_mlx.cli.chat import Commands, converse, interruptible
from grit_mlx.cli.generate import show_piece
from grit_mlx.cli.loader import load_model, note_embedded, remote_model
from grit_mlx.cli.options import Use
from grit_mlx.cli.warm import RemoteAnswer, RemoteChat, ServerUse
from grit_mlx.cli.wording import number_of, one_line, size_of
from grit_mlx.errors import DocumentError, ModelError, StoreBusyError
from grit_mlx.model import hub
from grit_mlx.model.options import GenerationOptions, ModelChoice
from grit_mlx.options import option
from grit_mlx.rag.options import ChatOptions, IndexOptions, RagOptions, StoreOptions, check_question
from grit_mlx.text.options import ReadingOptions, WalkOptions

if TYPE_CHECKING:
    from grit_mlx.cli.warm import RemoteModel, RemoteResults
    from grit_mlx.gritlm import GritLM
    from grit_mlx.rag import Estimate, IndexReport, Quote, Rag, Response, SearchResult, SearchResults, Store

__all__ = [
    "ASK_EXAMPLES",
    "CHAT_EXAMPLES",
    "EXAMPLES",
    "INDEX_EXAMPLES",
    "REMOVE_EXAMPLES",
    "STATS_EXAMPLES",
    "VERIFY_EXAMPLES",
    "WATCH_EXAMPLES",
    "ask",
    "chat",
    "index",
    "remove",
    "stats",
    "verify",
    "watch",
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
  grit rag remove letters/ --purge
"""
WATCH_EXAMPLES = """
Examples:
  grit rag watch ~/notes
  grit rag watch docs/ --include "*.md" --store docs.grit
"""
VERIFY_EXAMPLES = """
Examples:
  grit rag verify
"""

_STORE = "Store"

_KEPT = "the passages that were embedded are kept, and the same command resumes"

_WATCHED_MILLISECONDS = 500  # between two looks at whether to stop

Location = Annotated[
    str,
    typer.Option(
        "--store",
        envvar="GRIT_STORE",
        show_envvar=True,
        metavar="FOLDER",
        rich_help_panel=_STORE,
        help="Folder of the store, or s3://bucket/path, gs://bucket/path, az://container/path or db://name.",
    ),
]


@dataclass(frozen=True, kw_only=True)
class Output:
    """What ``grit rag ask`` prints."""

    heading: ClassVar[str] = options.OUTPUT

    sources_only: bool = option(False, "Print only the sources.")
    no_generate: bool = option(False, "Print only the sources, with their text.")
    json: bool = option(False, "Print JSON.")


_Model = Annotated[ModelChoice, Use(without=("pooling", "attn"))]
_BUDGET = {"cache_budget": "10GB"}
_Caches = Annotated[StoreOptions, Use(only=("cache_precision", "cache_budget"), defaults=_BUDGET)]
_Reading = Annotated[ReadingOptions, Use(only=("field", "encoding", "ocr"))]
_SAMPLING = ("max_tokens", "temperature", "seed")


@options.command
def index(
    *,
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH...",
            help="Files and folders: text, HTML, PDF, office documents, tables, e-books, e-mail, source code.",
        ),
    ],
    store: Location = ".grit",
    chosen: Annotated[StoreOptions, Use(defaults=_BUDGET)],
    indexing: IndexOptions,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", rich_help_panel=_STORE, help="Only count files, passages, tokens and bytes.")
    ] = False,
    walking: WalkOptions,
    reading: _Reading,
    model: _Model,
    json_output: options.JsonFlag = False,
) -> None:
    """Make files searchable, or bring a store up to date with them.

    Unchanged files are skipped, changed ones replaced, and those deleted from PATH removed, all in one step at the
    end. Files excluded by .gitignore are left out. The next run resumes an interrupted one. Exits with 1 if there are
    files and none can be read.
    """
    opened = _opened(store, chosen)
    opened.use(_loaded(opened, model, mode="embedding"))
    if dry_run or indexing.cache_ahead == "all":
        with console.progress("Counting", None) as advance:
            estimate = opened.estimate(paths, **_how(reading, walking), progress=advance)
        if dry_run:
            _show_estimate(estimate, in_json=json_output)
            return
        size = estimate.cache_bytes[chosen.cache_precision]
        console.note(f"cached documents will take about {size_of(size)}")
        if opened.caches.budget is not None and size > opened.caches.budget:
            console.warn("that is more than --cache-budget allows: only the last ones will be kept")
    report = _indexed(opened, paths, indexing, reading, walking, store=store)
    _show_report(report, store, in_json=json_output)
    if report.failed:
        raise typer.Exit(1)


@options.command
def watch(
    *,
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", help="Files and folders, as for 'grit rag index'.")],
    store: Location = ".grit",
    chosen: Annotated[StoreOptions, Use(defaults=_BUDGET)],
    indexing: Annotated[IndexOptions, Use(defaults={"wait": 60.0})],
    walking: WalkOptions,
    reading: _Reading,
    model: _Model,
) -> None:
    """Keep a store up to date with files until Ctrl-C.

    They are indexed now, and again whenever one of them changes; see 'grit rag index'.
    """
    from watchfiles import watch as changes_of

    opened = _opened(store, chosen)
    opened.use(_loaded(opened, model, mode="embedding"))
    own = Path(opened.uri)
    folders = sorted({str(Path(path) if Path(path).is_dir() else Path(path).absolute().parent) for path in paths})
    # The first time it yields, without changes, it watches already: nothing that happens while indexing is missed.
    changes = changes_of(
        *folders,
        watch_filter=lambda _, path: not Path(path).is_relative_to(own),
        recursive=any(Path(path).is_dir() for path in paths),
        rust_timeout=_WATCHED_MILLISECONDS,
        yield_on_timeout=True,
        raise_interrupt=True,
    )
    for number, changed in enumerate(changes):
        if number and not changed:
            continue
        try:
            report = _indexed(opened, paths, indexing, reading, walking, store=store)
        except (DocumentError, StoreBusyError) as error:  # it may be there, or free, when something changes again
            if not number:
                raise
            console.warn(*error.parts)
            continue
        if not number or report.added + report.changed + report.removed or report.problems:
            _show_report(report, store, in_json=False)
            console.flush()
        if not number:
            console.note("watching; Ctrl-C stops")


@options.command
def ask(
    *,
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="The question to answer.")],
    store: Location = ".grit",
    chosen: RagOptions,
    caches: _Caches,
    sampling: Annotated[GenerationOptions, Use(only=_SAMPLING, defaults={"max_tokens": 256})],
    model: _Model,
    server: ServerUse,
    output: Output,
) -> None:
    """Answer a question from a store, as it comes, and name the sources.

    Each source is FILE:LINES with the score that orders them and the headings above it. A model that only embeds
    answers with quotes: the sentences that fit the question best, each with its place. If no passage is relevant, the
    command says so and makes nothing up.
    """
    check_question(question)
    answering = not (output.sources_only or output.no_generate)
    if answering or chosen.rerank or chosen.method != "bm25":  # words alone need no model
        # Filters are relative to this folder.
        filters = [str(Path.cwd() / Path(path).expanduser()) for path in chosen.paths]
        asked = _asked(replace(chosen, paths=filters), caches, model) | {"sampling": asdict(sampling)}
        remote = _remote(store, model, server)
        if remote and (found := RemoteAnswer.to(remote, question, store, answering=answering, **asked)):
            note_embedded(model, remote.folder)
            if not found.results and (chosen.paths or chosen.metadata):
                _check_filters(found.results, _opened(store, caches), chosen)
            if answering:
                _show_answer(found, found, in_json=output.json)
            else:
                _show_results(found.results, found, in_json=output.json, texts=output.no_generate)
            return
    opened = _opened(store, caches)
    opened.require()
    if answering or chosen.rerank:
        rag = _rag(opened, chosen, model)
        results = rag.find(question)
        _check_filters(results, opened, chosen)
        if answering:
            with _sharing(opened):
                _show_answer(rag.respond(results, **asdict(sampling)), opened, in_json=output.json)
            return
    else:
        if chosen.method != "bm25":
            opened.use(_loaded(opened, model, mode="embedding"))
        results = opened.search(question, chosen)
    _check_filters(results, opened, chosen)
    _show_results(results, opened, in_json=output.json, texts=output.no_generate)


@options.command
def chat(
    *,
    store: Location = ".grit",
    chosen: Annotated[ChatOptions, Use(without=("paths", "metadata"))],
    caches: _Caches,
    sampling: Annotated[GenerationOptions, Use(only=_SAMPLING, defaults={"max_tokens": 512})],
    model: _Model,
    server: ServerUse,
) -> None:
    """Chat about what a store holds.

    As long as a question finds the passages of the previous one, they stay in place and only what is new is computed.
    In a pipe each line of standard input is a question. Inside: /sources, /reset, /quit, /help.
    """

    def here() -> Rag:
        opened = _opened(store, caches)
        opened.require()
        return _rag(opened, chosen, model)

    remote = _remote(store, model, server)
    rag = (remote and RemoteChat.begin(remote, store, here, **_asked(chosen, caches, model))) or here()
    held: Sized = rag if isinstance(rag, RemoteChat) else rag.store
    if remote and rag is held:
        note_embedded(model, remote.folder)
    sources: list[SearchResult] = []

    def turn(question: str) -> None:
        response = rag.chat(question, **asdict(sampling))
        text = _show_answer(response, held)
        if response.answer is not None:
            rag.remember(question, text)
            sources[:] = response.sources

    def reset(_: str) -> None:
        rag.reset()
        console.note("the conversation is forgotten")

    commands: Commands = {
        "/sources": ("the sources of the last answer", lambda _: _show_sources(sources, texts=True)),
        "/reset": ("forget the conversation", reset),
    }
    with _sharing(None if isinstance(rag, RemoteChat) else rag.store):
        converse(turn, commands, greeting=number_of(len(held), "passage"))


@options.command
def stats(*, store: Location = ".grit", json_output: options.JsonFlag = False) -> None:
    """Show what a store holds, and how much disk space it takes."""
    held = _opened(store).stats()
    if json_output:
        unrelated = vars(held.unrelated) if held.unrelated else None
        shared = vars(held.caches.shared) if held.caches.shared else None
        cached = {"files": held.caches.files, "bytes": held.caches.bytes, "shared": shared}
        console.write(console.dumps({"store": store, **vars(held), "unrelated": unrelated, "caches": cached}))
        return
    unmeasured, measured = "not measured", held.unrelated
    lines = {
        "files": f"{held.files:,}",
        "passages": f"{held.passages:,} of at most {held.passage_tokens} tokens, overlap {held.overlap}",
        "model": f"{held.model}, vectors of {held.embedding_size}",
        "search": f"approximate, recall {held.recall:.3f}" if held.approximate else "exact",
        "unrelated": f"cosine {measured.median:.3f}, spread {measured.spread:.3f}" if measured else unmeasured,
        "disk": "on another machine" if held.bytes is None else size_of(held.bytes),
        "cached": f"{number_of(held.caches.files, 'document')}, {size_of(held.caches.bytes)}",
    }
    if held.caches.shared:
        counted = f"{number_of(held.caches.shared.files, 'document')}, {size_of(held.caches.shared.bytes)}"
        lines["shared"] = f"{counted} of at most {size_of(held.caches.shared.budget)}"
    for name, value in lines.items():
        console.write(f"{name:<15} {console.visible(value)}")


@options.command
def remove(
    *,
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PATH...", help="Files, folders, or patterns such as 'docs/*.md'; may be omitted with --purge."
        ),
    ] = None,
    purge: Annotated[
        bool,
        typer.Option(
            "--purge",
            rich_help_panel=_STORE,
            help="Remove the text from the disk at once, also of what was removed before.",
        ),
    ] = False,
    store: Location = ".grit",
    indexing: Annotated[IndexOptions, Use(only=("wait",))],
) -> None:
    """Remove files from a store; the files themselves stay."""
    opened = _opened(store)
    opened.require()
    count = opened.remove(paths or [], purge=purge, wait=indexing.wait)
    console.note(f"{number_of(count, 'file')} removed from {store}" + (", and purged from the disk" if purge else ""))


@options.command
def verify(*, store: Location = ".grit") -> None:
    """Check a store for changed files and damaged rows and caches.

    Each problem is a line; damaged cached documents are removed, and computed again when they are needed. If there are
    problems, the exit code is 1.
    """
    with console.progress("Verifying", None) as advance:
        problems = _opened(store).verify(advance)
    for problem in problems:
        console.write(console.visible(problem))
    if problems:
        raise typer.Exit(1)
    console.note("no problems found")


def _how(reading: ReadingOptions, walking: WalkOptions) -> dict[str, Any]:
    return {**vars(reading.of_files), "patterns": walking}


def _indexed(
    opened: Store,
    paths: Sequence[str],
    indexing: IndexOptions,
    reading: ReadingOptions,
    walking: WalkOptions,
    *,
    store: str,
) -> IndexReport:
    """Index, with a bar; Ctrl-C is answered at once, and stops between two batches."""
    with console.phases() as advance:

        def work(check: Callable[[], None]) -> IndexReport:
            def progress(done: int, total: int) -> None:
                check()
                advance("Indexing", f"{size_of(done)} of {size_of(total)}", done, total)

            return opened.index(
                paths,
                indexing,
                **_how(reading, walking),
                on_wait=lambda holder: console.note(f"{holder} is writing to {store}; waiting"),
                progress=progress,
            )

        def stop() -> None:
            console.note(f"stopping; {_KEPT}")
            opened.caches.stop()

        return stoppable(work, on_stop=stop)


def _opened(uri: str, chosen: StoreOptions | None = None) -> Store:
    with console.status("Opening the store"):
        from grit_mlx.rag import Store

        return Store(uri, options=chosen)


def _remote(store: str, model: ModelChoice, server: ServerUse) -> RemoteModel | None:
    """A model in a running server's memory for a store; None if there is none, or no such store: that is said here."""
    exists = "://" in store or Path(store).expanduser().exists()
    return remote_model(model, server) if exists else None


def _asked(chosen: RagOptions, caches: StoreOptions, model: ModelChoice) -> dict[str, Any]:
    """What a server is told of a command."""
    return {"named": model.model is not None, "chosen": asdict(chosen), "caches": asdict(caches)}


def _check_filters(results: SearchResults | RemoteResults, opened: Store, chosen: RagOptions) -> None:
    """That nothing was found has another reason where a filter leaves nothing to search."""
    if not results and (chosen.paths or chosen.metadata):
        opened.check_filters(chosen.paths, chosen.metadata)


@contextmanager
def _sharing(opened: Store | None) -> Iterator[None]:
    """Wait in the end until what was read is in the bucket, if documents are shared; Ctrl-C leaves the rest out."""
    if opened is None or opened.caches.sharing is None:
        yield
        return
    try:
        yield
    except BaseException:
        opened.caches.stop()
        raise
    console.flush()
    try:
        with console.status("Sharing cached documents"):
            opened.caches.settle()
    except KeyboardInterrupt:
        console.note("stopping after the document that is being shared")
        opened.caches.stop()


def _rag(opened: Store, chosen: RagOptions, model: ModelChoice) -> Rag:
    grit = _loaded(opened, model, mode="unified")
    from grit_mlx.rag import Rag

    return Rag(grit, opened, chosen)


def _loaded(opened: Store, model: ModelChoice, *, mode: str) -> GritLM:
    """The model that was named, else the one that the store was made with, else the default."""
    own = opened.made_with if model.model is None and model.adapter is None else None
    grit: GritLM
    if own is None or _is_default(own):
        grit = load_model(model, mode=mode)
        return grit
    console.note(f"using {hub.name_of(Path(own.model or ''))}, the model that the store was made with")
    grit = load_model(replace(model, model=own.model, adapter=own.adapter), mode=mode)
    return grit


def _is_default(own: ModelChoice) -> bool:
    """Whether a store's model is the one that is used where none is named."""
    default = hub.default_model()
    with suppress(ModelError):
        return own.adapter is None and default is not None and hub.identify(default) == own.model
    return False


# Showing


def _show_answer(response: Response | RemoteAnswer, opened: Sized, *, in_json: bool = False) -> str:
    """Show an answer as it comes, then its sources; Ctrl-C stops the answer, not the sources. Returns its text."""
    answer = response.answer
    if answer is None:
        _show_results(response.results, opened, in_json=in_json)
        return ""
    if answer.quotes:
        return _show_quotes(response, in_json=in_json)
    pieces: list[str] = []
    with interruptible() as stopped:
        for piece in answer:
            pieces.append(piece)
            if not in_json:
                show_piece(piece)
            if stopped():
                break
    if answer.left_out or answer.forgotten:
        what = [number_of(answer.left_out, "passage")] if answer.left_out else []
        what += [f"the first {number_of(answer.forgotten, 'turn')} of the conversation"] if answer.forgotten else []
        console.note(f"left out, as the model's context has no room for them: {' and '.join(what)}")
    text, first = "".join(pieces), answer.seconds_to_first_token or 0.0
    if in_json:
        counts = ("mode", "cached_tokens", "computed_tokens", "generated_tokens", "finish_reason", "left_out")
        measured = {name: getattr(answer, name) for name in counts}
        seconds = {"seconds_to_first_token": round(first, 4), "seconds": round(answer.seconds, 4)}
        console.write(console.dumps({"answer": text, **_as_json(response.results), **measured, **seconds}))
        return text
    console.write("\n\nSources:")
    _show_sources(response.sources)
    if console.verbose():
        console.note(
            f"--cache {answer.mode}: {answer.cached_tokens:,} tokens from caches, {answer.computed_tokens:,} computed; "
            f"the first token after {first:.2f} s"
        )
    if answer.finish_reason == "length":
        console.note(f"stopped after {answer.generated_tokens} tokens; --max-tokens allows more")
    return text


def _show_quotes(response: Response | RemoteAnswer, *, in_json: bool) -> str:
    """Show an answer of quotes, each with its place. Returns its text."""
    text = response.text or ""
    if in_json:
        quotes = [
            {
                "text": quote.text,
                "source": quote.passage.source,
                quote.passage.unit: quote.passage.line,
                f"end_{quote.passage.unit}": quote.passage.end_line,
                "heading": quote.passage.heading,
                "is_code": quote.is_code,
            }
            for quote in response.quotes
        ]
        console.write(console.dumps({"answer": text, "mode": "quote", "quotes": quotes, **_as_json(response.results)}))
        return text
    for number, quote in enumerate(response.quotes):
        if number:
            console.write("")
        for line in _laid_out(quote):
            console.write(console.visible(line))
    return text


def _laid_out(quote: Quote) -> Iterator[str]:
    """The lines of a quote and its place; on a terminal broken between words."""
    if quote.is_code:
        yield from (f"    {line}" for line in quote.text.expandtabs(4).split("\n"))
    elif console.stdout_is_terminal():
        yield from wrap(f"“{quote.text}”", console.width(), break_long_words=False, break_on_hyphens=False)
    else:
        yield f"“{quote.text}”"
    yield f"  {quote.place}"


def _show_results(results: SearchResults | RemoteResults, opened: Sized, *, in_json: bool, texts: bool = False) -> None:
    """What was found, or that nothing relevant was."""
    if in_json:
        console.write(console.dumps({"answer": None, **_as_json(results)}))
    elif results.relevant:
        _show_sources(results, texts=texts)
    else:
        console.write(f"Nothing relevant was found among {number_of(len(opened), 'passage')}.")
        if results.relevance is not None:
            console.note(
                f"the relevance of the best passages is {results.relevance:.3f}, and {results.needed:.3f} must be "
                "exceeded; --min-score -1 accepts any"
            )


def _as_json(results: SearchResults | RemoteResults) -> dict[str, Any]:
    sources = [
        {
            "source": result.passage.source,
            result.passage.unit: result.passage.line,
            f"end_{result.passage.unit}": result.passage.end_line,
            "heading": result.passage.heading,
            "score": round(result.score, 6),
            "cosine": None if result.cosine is None else round(result.cosine, 6),
            "bm25": None if result.bm25 is None else round(result.bm25, 6),
            "text": result.passage.text,
        }
        for result in results
    ]
    return {"question": results.question, "relevant": results.relevant, "sources": sources if results.relevant else []}


def _show_sources(results: Sequence[SearchResult], *, texts: bool = False) -> None:
    for result in results:
        passage = result.passage
        above = f"  {one_line(passage.heading)}" if passage.heading else ""
        console.write(f"{console.visible(passage.place)}  {result.score:.3f}{above}")
        for line in passage.text.splitlines() if texts else ():
            console.write(f"    {console.visible(line.rstrip(), keep=chr(9))}")
        if texts:
            console.write("")


def _show_estimate(estimate: Estimate, *, in_json: bool) -> None:
    if in_json:
        console.write(console.dumps(vars(estimate)))
        return
    reused = f"; {number_of(estimate.reused, 'more passage')} have vectors already" if estimate.reused else ""
    full, eight, four = map(size_of, estimate.cache_bytes.values())
    console.write(
        f"{number_of(estimate.files, 'file')} to embed, {estimate.unchanged:,} unchanged: "
        f"{number_of(estimate.passages, 'passage')}, {number_of(estimate.tokens, 'token')}{reused}.\n"
        f"As cached documents they take {full}, in 8 bits {eight}, in 4 bits {four}."
    )


def _show_report(report: IndexReport, store: str, *, in_json: bool) -> None:
    if in_json:
        problems = [{"source": name, "reason": reason} for name, reason in report.problems]
        notes = {"warnings": report.notes.warnings, "left_out": report.notes.left_out}
        values = {**vars(report), "problems": problems, "notes": notes, "seconds": round(report.seconds, 3)}
        console.write(console.dumps({"store": store, **values}))
        return
    for name, reason in report.problems:
        console.warn(f"{name}: ", reason)
    for warning in report.notes.warnings:
        console.warn(warning)
    counts = {
        "new": report.added,
        "changed": report.changed,
        "unchanged": report.unchanged,
        "removed": report.removed,
    }
    files = ", ".join(f"{count:,} {name}" for name, count in counts.items() if count) or "none"
    others = {"reused": report.reused, "removed": report.removed_passages}
    did = ", ".join(
        [f"{number_of(report.passages, 'passage')} embedded"]
        + [f"{count:,} {name}" for name, count in others.items() if count]
    )
    console.write(f"Files: {files}. {did} in {report.seconds:.1f} s; {console.visible(store)} holds {report.total:,}.")
    if report.kept:
        console.note(f"what was stored of {number_of(report.kept, 'file')} that cannot be read was kept")
    if any(report.skipped.values()):
        console.note(f"skipped: {', '.join(_skipped(report))}")
    if left_out := ", ".join(f"{count:,} of {kind}" for kind, count in report.notes.left_out.items() if count):
        console.note(f"characters left out as junk: {left_out}")


def _skipped(report: IndexReport) -> Iterator[str]:
    """How many files were skipped and why; of other kinds the most frequent suffixes."""
    from grit_mlx.text.walking import SKIPPED

    for reason, count in report.skipped.items():
        names = ", ".join(f"{name} {number:,}" for name, number in report.kinds.most_common(6))
        more = ", ..." if len(report.kinds) > 6 else ""
        if count:
            yield f"{count:,} {SKIPPED[reason]}" + (f" ({names}{more})" if reason == "kind" and names else "")
