"""``grit eval``: scores on labelled data, side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from grit_mlx.cli import console, options
from grit_mlx.cli.inputs import cut_texts
from grit_mlx.cli.loader import load_model, model_name
from grit_mlx.errors import ArgumentError
from grit_mlx.model.options import EmbeddingOptions, ModelChoice

if TYPE_CHECKING:
    from grit_mlx.evaluation.scoring import Score
    from grit_mlx.evaluation.sets import LabelledSet
    from grit_mlx.evaluation.systems import System

__all__ = ["EXAMPLES", "evaluate"]

EXAMPLES = """
Examples:
  grit eval beir/scifact beir/nfcorpus stsb.csv
  grit eval beir --compare gritlm-7b --bm25 --hybrid --json scores.json
  grit eval beir/scifact --instruction "Given a claim, retrieve documents"
  grit eval held_out.jsonl --model ./my-model --adapter ./adapters
"""

BASELINES = "What is scored"


@options.command
def evaluate(
    *,
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SET...",
            help="A folder in BEIR's layout; a .csv, .tsv or .jsonl of sentence pairs and scores; a .jsonl of answers "
            "as for training; or a folder of such.",
        ),
    ] = None,
    mteb: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TASK",
            rich_help_panel=options.INPUT,
            help="Also a task of MTEB, which is downloaded, with E5's instruction for it (extra 'mteb'); may be given "
            "several times.",
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            metavar="COUNT",
            min=2,
            rich_help_panel=options.INPUT,
            help="Score the first queries, pairs or answers of each set only; all documents stay.",
        ),
    ] = None,
    model: ModelChoice,
    compare: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            rich_help_panel=BASELINES,
            help="Another model, named as --model is; may be given several times.",
        ),
    ] = None,
    bm25: Annotated[
        bool, typer.Option("--bm25", rich_help_panel=BASELINES, help="Also BM25 (English stemming; extra 'eval').")
    ] = False,
    hybrid: Annotated[
        bool,
        typer.Option(
            "--hybrid",
            rich_help_panel=BASELINES,
            help="Also each model's ranking fused with BM25's, by their scores (extra 'eval').",
        ),
    ] = False,
    sentence_transformers: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            rich_help_panel=BASELINES,
            help="Also a model of sentence-transformers, by folder or hub id (extra 'sentence-transformers'); may be "
            "given several times.",
        ),
    ] = None,
    depth: Annotated[
        int,
        typer.Option(
            "--depth", "-k", metavar="COUNT", min=1, rich_help_panel=BASELINES, help="k of nDCG@k and the like."
        ),
    ] = 10,
    instruction: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[SET=]TEXT",
            rich_help_panel=options.MODEL,
            help="What queries are embedded for; after SET= for that set only (for pairs: both sentences). Default: "
            "the model's settings.",
        ),
    ] = None,
    embedding: EmbeddingOptions,
    json_file: Annotated[
        str | None,
        typer.Option(
            "--json", metavar="FILE", rich_help_panel=options.OUTPUT, help="Write all scores, settings and versions."
        ),
    ] = None,
    plot: Annotated[
        str | None,
        typer.Option(metavar="FILE", rich_help_panel=options.OUTPUT, help="Draw bars as a PNG (extra 'plots')."),
    ] = None,
) -> None:
    """Score a model on labelled data: retrieval (nDCG@10), sentence pairs (Spearman), answers (perplexity).

    What a set is for is seen from its files. With one system the table shows all its scores; with several, the
    main score of each. In a pipe columns are tab-separated.
    """
    started = time.perf_counter()
    begun = datetime.now(timezone.utc)
    for path in (json_file, plot):
        _check_target(path)
    if not paths and not mteb:
        raise typer.BadParameter("Name a set to score, or a task of MTEB with --mteb.", param_hint="SET")
    found = [_expanded(path) for path in paths or []]
    with console.status("Reading the sets"):
        from grit_mlx.evaluation.sets import limited, load_set

        sets = {str(path): limited(load_set(path), limit) for group in found for path in group}
    _check_names(sets)
    if plot is not None:
        from grit_mlx.evaluation.plots import check_plots, plot_scores

        check_plots()
    default, instructions = _instructions(instruction or [], [*(data.name for data in sets.values()), *(mteb or [])])
    encoding = {name: getattr(embedding, name) for name in ("max_length", "long_texts", "batch_size")}

    def grit(choice: ModelChoice) -> Callable[[], System]:
        def make() -> System:
            answers = any(kind_of_set(data) == "answers" for data in sets.values())
            loaded = load_model(choice, mode="unified" if answers else "embedding")
            return GritSystem(
                loaded, name=model_name(choice.model), instruction=default, instructions=instructions, options=encoding
            )

        return make

    with console.status(f"Loading {model_name(model.model)}"):
        from grit_mlx.evaluation.scoring import evaluate as scores_of
        from grit_mlx.evaluation.scoring import kind_of_set
        from grit_mlx.evaluation.systems import BM25System, GritSystem, SentenceTransformerSystem

        others = [replace(model, model=name, adapter=None, revision=None) for name in compare or []]
        systems = [grit(choice) for choice in (model, *others)]
        if bm25:
            lexical = BM25System()  # now: what is missing should not be found out after the model has run
            systems.append(lambda: lexical)
        systems += [_transformer(SentenceTransformerSystem, name) for name in sentence_transformers or []]

        tasks: list[Any] = []
        if mteb:
            from grit_mlx.evaluation.mteb import GritEncoder, find_tasks, score_tasks

            tasks = find_tasks(mteb)

    def on_tasks(system: System) -> Iterator[Score]:
        if tasks and isinstance(system, GritSystem):
            encoder = GritEncoder(system.model, instructions=instructions, options=encoding)
            yield from score_tasks(encoder, tasks, name=system.name)

    table = _Table([*(data.name for data in sets.values()), *(task.metadata.name for task in tasks)])
    settings: dict[str, Any] = {}
    scores = scores_of(
        systems,
        list(sets.values()),
        depth=depth,
        hybrid=hybrid,
        watch=console.progress,
        on_system=lambda system: settings.update({system.name: dict(system.settings())}),
        further=on_tasks,
    )
    try:
        with cut_texts() as cut:
            for score in scores:
                table.scores.append(score)  # one by one: what an interruption leaves is shown
    except KeyboardInterrupt:
        if table.scores:
            table.show()
            console.note("interrupted: the table holds what was done until then, and no file is written")
        raise
    table.show()
    cut.report()
    if json_file is not None:
        record = {
            "begun": begun.isoformat(timespec="seconds"),
            "seconds": round(time.perf_counter() - started, 3),
            "versions": _versions(),
            "arguments": {"depth": depth, "limit": limit, "hybrid": hybrid},
            "systems": settings,
            "sets": [_about(path, data) for path, data in sets.items()],
            "scores": [_rounded(score) for score in table.scores],
            "means": table.means(),
        }
        _write_json(json_file, record)
    if plot is not None:
        plot_scores(Path(plot), table.scores)


def _check_target(path: str | None) -> None:
    """Before minutes of work, not after."""
    if path is None:
        return
    from grit_mlx.files.atomic import output_errors

    with output_errors(path):
        target = Path(path)
        if target.is_dir():
            raise IsADirectoryError(21, "is a directory")
        if not target.absolute().parent.is_dir():
            raise FileNotFoundError(2, "no such folder")


def _expanded(path: str) -> list[Path]:
    from grit_mlx.evaluation.sets import find_sets

    return find_sets(Path(path).expanduser())


def _check_names(sets: Mapping[str, LabelledSet]) -> None:
    names: dict[str, str] = {}
    for path, data in sets.items():
        if data.name in names:
            raise ArgumentError(f"Two sets are called {data.name}: {names[data.name]} and {path}. Rename one of them.")
        names[data.name] = path


def _instructions(given: Sequence[str], names: Sequence[str]) -> tuple[str | None, dict[str, str]]:
    """The instruction for all sets, and those for single ones."""
    default: str | None = None
    single: dict[str, str] = {}
    for text in given:
        name, equals, rest = text.partition("=")
        if equals and name in names:
            single[name] = rest
        elif default is not None:
            known = ", ".join(names)
            raise ArgumentError(
                f"--instruction is given twice for all sets. For one write SET=TEXT, with SET of {known}."
            )
        else:
            default = text
    return default, single


def _transformer(make: Callable[[str], System], name: str) -> Callable[[], System]:
    return lambda: make(name)


def _versions() -> dict[str, str]:
    import platform
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for package in ("grit-mlx", "mlx", "mlx-lm", "numpy", "bm25s", "sentence-transformers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _about(path: str, data: LabelledSet) -> dict[str, Any]:
    from grit_mlx.evaluation.sets import PairSet, RetrievalSet

    if isinstance(data, RetrievalSet):
        counts = {"documents": len(data.documents), "queries": len(data.asked)}
    elif isinstance(data, PairSet):
        counts = {"pairs": len(data.scores)}
    else:
        counts = {"answers": len(data.rows)}
    return {"name": data.name, "path": path, **counts}


def _rounded(score: Score) -> dict[str, Any]:
    values = {name: round(value, 6) for name, value in score.values.items()}
    return {**asdict(score), "values": values, "seconds": round(score.seconds, 3)}


def _write_json(path: str, record: Mapping[str, Any]) -> None:
    from grit_mlx.files.atomic import atomic_write

    with atomic_write(path) as file:
        file.write(f"{console.dumps(record, indent=2)}\n".encode())


@dataclass
class _Table:
    """The scores so far, and how they are shown."""

    sets: Sequence[str]
    scores: list[Score] = field(default_factory=list)

    def means(self) -> dict[str, dict[str, float]]:
        """For each main score that several sets have, its mean by system; those that were scored on all of them."""
        found: dict[str, dict[str, float]] = {}
        for metric in dict.fromkeys(score.main for score in self.scores):
            names = list(dict.fromkeys(score.set for score in self.scores if score.main == metric))
            # A perplexity has no meaning beyond its set.
            if len(names) < 2 or metric == "perplexity":
                continue
            values = {
                system: [one.values[metric] for one in self.scores if one.system == system and one.main == metric]
                for system in self._systems()
            }
            found[metric] = {
                system: sum(column) / len(column) for system, column in values.items() if len(column) == len(names)
            }
        return found

    def show(self) -> None:
        """Print it: drawn on a terminal, tab-separated in a pipe."""
        rows = list(self._rows())
        if not console.stdout_is_terminal():
            for row in rows:
                console.write("\t".join(console.visible(cell) for cell in row))
            return
        from rich import box
        from rich.table import Table

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for number, name in enumerate(rows[0]):
            table.add_column(console.visible(name), justify="left" if number < 2 else "right", overflow="fold")
        for row in rows[1:]:
            style = "bold" if row[0] == "mean" else ""
            table.add_row(*map(console.visible, row), style=style)
        console.show(table)

    def _systems(self) -> list[str]:
        return list(dict.fromkeys(score.system for score in self.scores))

    def _rows(self) -> Iterator[list[str]]:
        systems = self._systems()
        return self._all_scores(systems) if len(systems) == 1 else self._main_scores(systems)

    def _main_scores(self, systems: Sequence[str]) -> Iterator[list[str]]:
        """A row for each set, a column for each system."""
        yield ["set", "score", *systems]
        for data in self.sets:
            here = {score.system: score for score in self.scores if score.set == data}
            if here:
                main = next(iter(here.values())).main
                cells = [_shown(here[name].values[main]) if name in here else "" for name in systems]
                yield [data, main, *cells]
        for metric, means in self.means().items():
            yield ["mean", metric, *(_shown(means[name]) if name in means else "" for name in systems)]

    def _all_scores(self, systems: Sequence[str]) -> Iterator[list[str]]:
        """A row for each set, a column for each kind of score."""
        metrics = list(dict.fromkeys(name for score in self.scores for name in score.values))
        yield ["set", "scored on", *metrics, "seconds"]
        units = {"retrieval": ("query", "queries"), "pairs": ("pair", "pairs"), "answers": ("token", "tokens")}
        for score in self.scores:
            cells = [_shown(score.values[name]) if name in score.values else "" for name in metrics]
            count = f"{score.count:,} {units[score.kind][score.count != 1]}" if score.count else ""
            yield [score.set, count, *cells, f"{score.seconds:.1f}"]
        for metric, means in self.means().items():
            for mean in means.values():
                yield ["mean", "", *(_shown(mean) if name == metric else "" for name in metrics), ""]


def _shown(value: float) -> str:
    return f"{value:.3f}" if value < 100 else f"{value:.1f}"
