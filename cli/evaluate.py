"""``grit eval``: scores on labelled data, side by side."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from grit_mlx.cli import console, options
from grit_mlx.cli.inputs import CutTexts, encode_options
from grit_mlx.cli.loader import load_model, model_name
from grit_mlx.errors import ArgumentError, Option, OutputError, unwritable
from grit_mlx.model.options import EmbeddingOptions, ModelChoice
from grit_mlx.options import check, option

if TYPE_CHECKING:
    from grit_mlx.evaluation.scoring import Score
    from grit_mlx.evaluation.sets import LabelledSet
    from grit_mlx.evaluation.systems import System

__all__ = ["EXAMPLES", "EvaluationOptions", "evaluate"]

EXAMPLES = """
Examples:
  grit eval beir/scifact beir/nfcorpus stsb.csv
  grit eval beir --compare gritlm-7b --bm25 --hybrid --json scores.json
  grit eval beir/scifact --instruction "Given a claim, retrieve documents"
  grit eval held_out.jsonl --model ./my-model --adapter ./adapters
"""

_SYSTEMS = "What is scored"

# Whose published scores stand beside others.
_PUBLISHED = "GritLM-7B"


@dataclass(frozen=True)
class EvaluationOptions:
    """What is scored, beside a model, and what becomes of the scores."""

    mteb: Sequence[str] = option(
        (),
        "Also score a task of MTEB, which is downloaded, with E5's instruction for it (extra 'mteb'). Repeatable.",
        metavar="TASK",
        heading=options.INPUT,
    )
    mteb_results: str | None = option(
        None,
        "Keep MTEB's results in a folder of its own format, and resume from what is there.",
        metavar="FOLDER",
        heading=options.OUTPUT,
    )
    lm_eval: Sequence[str] = option(
        (),
        "Also score tasks of lm-evaluation-harness, separated by commas, or a .yaml of one (extra 'lm-eval'); 'grit' "
        "for MMLU, GSM8K, BBH, TyDi QA and HumanEval. Repeatable.",
        metavar="TASKS",
        heading=options.INPUT,
    )
    chat: bool = option(False, "Put these tasks' questions into the chat format.", heading=options.INPUT)
    shots: int | None = option(
        None,
        "Number of examples before these tasks' questions. Default: the task's.",
        minimum=0,
        metavar="COUNT",
        heading=options.INPUT,
    )
    run_code: bool = option(
        False, "Allow tasks that run the code that the model writes, such as HumanEval.", heading=options.INPUT
    )
    limit: int | None = option(
        None,
        "Score only the first queries, pairs or answers of each set; all documents stay.",
        minimum=2,
        metavar="COUNT",
        heading=options.INPUT,
    )
    compare: Sequence[str] = option(
        (), "Also score another model, named as for --model. Repeatable.", metavar="NAME", heading=_SYSTEMS
    )
    bm25: bool = option(False, "Also score BM25 (English stemming; extra 'eval').", heading=_SYSTEMS)
    hybrid: bool = option(
        False, "Also score each model's ranking fused with BM25's, by their scores (extra 'eval').", heading=_SYSTEMS
    )
    sentence_transformers: Sequence[str] = option(
        (),
        "Also score a model of sentence-transformers, by folder or hub id (extra 'sentence-transformers'). Repeatable.",
        metavar="NAME",
        heading=_SYSTEMS,
    )
    depth: int = option(
        10, "k of nDCG@k and the like.", minimum=1, flags=("--depth", "-k"), metavar="COUNT", heading=_SYSTEMS
    )
    published: bool = option(
        False,
        "Also show the scores of GritLM-7B in its paper, where there are any; alone, all of them.",
        heading=_SYSTEMS,
    )
    instruction: Sequence[str] = option(
        (),
        "Instruction to embed queries with; SET=TEXT for that set only (for pairs: for both sentences). Repeatable. "
        "Default: the model's.",
        metavar="[SET=]TEXT",
        heading=options.MODEL,
    )
    json: str | None = option(
        None, "Write all scores, settings and versions to a file.", metavar="FILE", heading=options.OUTPUT
    )
    plot: str | None = option(
        None, "Draw the scores as bars in a PNG (extra 'plots').", metavar="FILE", heading=options.OUTPUT
    )

    def __post_init__(self) -> None:
        check(self)


@options.command
def evaluate(
    *,
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SET...",
            help="A folder in BEIR's layout; a .csv, .tsv or .jsonl of sentence pairs and scores; a .jsonl of answers "
            "as for training; or a folder of these.",
        ),
    ] = None,
    scored: EvaluationOptions,
    model: ModelChoice,
    embedding: EmbeddingOptions,
) -> None:
    """Score a model on labelled data: retrieval (nDCG@10), sentence pairs (Spearman), answers (perplexity).

    The files of a set show what it is for. With one system the table shows all its scores; with several, the
    main score of each. In a pipe columns are tab-separated.
    """
    begun = datetime.now(timezone.utc)
    _check_output(scored)
    if not paths and not scored.mteb and not scored.lm_eval:
        if scored.published:
            _show(list(_published_rows()))
            return
        message = "Name a set to score, a task of MTEB with --mteb, or one of lm-evaluation-harness with --lm-eval."
        raise typer.BadParameter(message, param_hint="SET")
    sets = _load_sets(paths or [], scored.limit)
    names = [data.name for data in sets.values()]
    default, instructions = _instructions(scored.instruction, [*names, *scored.mteb])
    with console.status(f"Loading {model_name(model.model)}"):
        from grit_mlx.evaluation import scoring

        used = {"instructions": instructions, "options": encode_options(embedding)}
        writes = scored.lm_eval or any(data.kind == "answers" for data in sets.values())
        mode = "unified" if writes else "embedding"
        systems = _systems(scored, model, mode, {"instruction": default, **used})
        further = [*_mteb(scored, used), *_harness(scored)]
    report = _Report(begun, sets, published=scored.published)
    scores = scoring.evaluate(
        systems,
        list(sets.values()),
        depth=scored.depth,
        hybrid=scored.hybrid,
        watch=console.progress,
        on_system=lambda system: report.settings.update({system.name: dict(system.settings())}),
        further=lambda system: chain.from_iterable(score(system) for score in further),
    )
    try:
        with CutTexts() as cut:
            for score in scores:
                report.scores.append(score)  # one by one, for an interruption to show
    except KeyboardInterrupt:
        if report.scores:
            report.show()
            console.note("interrupted: the table holds the scores so far, and no file is written")
        raise
    report.show()
    cut.report()
    if scored.json is not None:
        report.write(scored.json, {name: getattr(scored, name) for name in ("depth", "limit", "hybrid")})
    if scored.plot is not None:
        from grit_mlx.evaluation.plots import plot_scores

        plot_scores(Path(scored.plot), report.scores)


def _check_output(scored: EvaluationOptions) -> None:
    """Refuse before minutes of work what could not be written after them."""
    if scored.mteb_results is not None:
        if not scored.mteb:
            raise ArgumentError(Option("mteb_results"), " needs a task: ", Option("mteb", "NAME"), ".")
        if Path(scored.mteb_results).expanduser().is_file():
            raise OutputError(unwritable(scored.mteb_results, OSError(errno.ENOTDIR, "")))
    for path in filter(None, (scored.json, scored.plot)):
        folder = Path(path).is_dir()
        if folder or not Path(path).absolute().parent.is_dir():
            raise OutputError(unwritable(path, OSError(errno.EISDIR if folder else errno.ENOENT, "")))
    if scored.plot is not None:
        from grit_mlx.evaluation.plots import check_plots

        check_plots()


def _load_sets(paths: Sequence[str], limit: int | None) -> dict[str, LabelledSet]:
    """The sets by their paths."""
    from grit_mlx.evaluation.sets import find_sets, limited, load_set

    found = [one for path in paths for one in find_sets(Path(path).expanduser())]
    with console.status("Reading the sets"):
        sets = {str(path): limited(load_set(path), limit) for path in found}
    names: dict[str, str] = {}
    for path, data in sets.items():
        if data.name in names:
            raise ArgumentError(f"Two sets are called {data.name}: {names[data.name]} and {path}. Rename one of them.")
        names[data.name] = path
    return sets


def _instructions(given: Sequence[str], names: Sequence[str]) -> tuple[str | None, dict[str, str]]:
    """The instruction for all sets, and those for single ones."""
    default: str | None = None
    single: dict[str, str] = {}
    for text in given:
        name, equals, rest = text.partition("=")
        if equals and name in names:
            single[name] = rest
        elif default is not None:
            problem = f" is given twice for all sets. For one write SET=TEXT, with SET of {', '.join(names)}."
            raise ArgumentError(Option("instruction"), problem)
        else:
            default = text
    return default, single


def _systems(
    scored: EvaluationOptions, first: ModelChoice, mode: str, used: Mapping[str, Any]
) -> list[Callable[[], System]]:
    """What makes each system."""
    from grit_mlx.evaluation.systems import BM25System, GritSystem, SentenceTransformerSystem

    def grit(choice: ModelChoice) -> System:
        return GritSystem(load_model(choice, mode=mode), name=model_name(choice.model), **used)

    choices = [first, *(replace(first, model=name, adapter=None, revision=None) for name in scored.compare)]
    systems: list[Callable[[], System]] = [partial(grit, choice) for choice in choices]
    if scored.bm25:
        lexical = BM25System()  # now: a missing package should not show after the model has run
        systems.append(lambda: lexical)
    return systems + [partial(SentenceTransformerSystem, name) for name in scored.sentence_transformers]


def _mteb(scored: EvaluationOptions, used: Mapping[str, Any]) -> list[Callable[[System], Iterator[Score]]]:
    """What scores a system on tasks of MTEB, if there are any."""
    from grit_mlx.evaluation.systems import GritSystem

    if not scored.mteb:
        return []
    from grit_mlx.evaluation.mteb import GritEncoder, find_tasks, score_tasks

    tasks = find_tasks(scored.mteb)
    kept = {} if scored.mteb_results is None else {"results": Path(scored.mteb_results).expanduser()}

    def score(system: System) -> Iterator[Score]:
        if isinstance(system, GritSystem):
            yield from score_tasks(GritEncoder(system.model, **used), tasks, name=system.name, **kept)

    return [score]


def _harness(scored: EvaluationOptions) -> list[Callable[[System], Iterator[Score]]]:
    """What scores a system on tasks of lm-evaluation-harness, if there are any."""
    from grit_mlx.evaluation.systems import GritSystem

    names = [name for given in scored.lm_eval for name in given.split(",") if name]
    if not names:
        return []
    from grit_mlx.evaluation.harness import HarnessTasks, score_tasks

    tasks = HarnessTasks(names)
    chosen: dict[str, Any] = {
        "chat": scored.chat,
        "shots": scored.shots,
        "limit": scored.limit,
        "run_code": scored.run_code,
    }

    def score(system: System) -> Iterator[Score]:
        if isinstance(system, GritSystem):
            yield from score_tasks(system.model, tasks, name=system.name, **chosen)

    return [score]


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


@dataclass
class _Report:
    """The scores so far, and how they are shown."""

    begun: datetime
    sets: Mapping[str, LabelledSet]
    published: bool = False
    scores: list[Score] = field(default_factory=list)
    settings: dict[str, Mapping[str, Any]] = field(default_factory=dict)

    def means(self) -> dict[str, dict[str, float]]:
        """The mean of each main score that several sets share, by system; only of systems scored on all of them."""
        found: dict[str, dict[str, float]] = {}
        for metric in dict.fromkeys(score.main for score in self.scores):
            here = [score for score in self.scores if score.main == metric]
            count = len({score.set for score in here})
            if count > 1 and metric != "perplexity":  # perplexities of different sets cannot be compared
                own: dict[str, list[float]] = {}
                for score in here:
                    own.setdefault(score.system, []).append(score.values[metric])
                found[metric] = {name: sum(values) / count for name, values in own.items() if len(values) == count}
        return found

    def show(self) -> None:
        """Print it: drawn on a terminal, tab-separated in a pipe."""
        systems = list(dict.fromkeys(score.system for score in self.scores))
        single = len(systems) == 1 and not self.published
        _show(list(self._all_scores() if single else self._main_scores(systems)))

    def write(self, path: str, arguments: Mapping[str, Any]) -> None:
        """Write everything as JSON."""
        from grit_mlx.files.atomic import atomic_write

        record = {
            "begun": self.begun.isoformat(timespec="seconds"),
            "seconds": round((datetime.now(timezone.utc) - self.begun).total_seconds(), 3),
            "versions": _versions(),
            "arguments": arguments,
            "systems": self.settings,
            "sets": [_about(path, data) for path, data in self.sets.items()],
            "scores": [
                {**asdict(one), "seconds": round(one.seconds, 3)}
                | {"values": {name: round(value, 6) for name, value in one.values.items()}}
                for one in self.scores
            ],
            "means": self.means(),
            **({"published": {_PUBLISHED: self.targets()}} if self.published else {}),
        }
        with atomic_write(path) as file:
            file.write(f"{console.dumps(record, indent=2)}\n".encode())

    def _main_scores(self, systems: Sequence[str]) -> Iterator[list[str]]:
        """A row for each set, a column for each system."""
        target = self.targets() if self.published else None
        more = [] if target is None else [f"{_PUBLISHED}, published"]
        yield ["set", "score", *systems, *more]
        for data in dict.fromkeys(score.set for score in self.scores):
            here = {score.system: score for score in self.scores if score.set == data}
            main = next(iter(here.values())).main
            cells = [_shown(here[name].values[main]) if name in here else "" for name in systems]
            yield [data, main, *cells, *(_shown(target[data]) if target and data in target else "" for _ in more)]
        for metric, means in self.means().items():
            cells = [_shown(means[name]) if name in means else "" for name in systems]
            yield ["mean", metric, *cells, *("" for _ in more)]

    def targets(self) -> dict[str, float]:
        """The published scores of the sets that have one."""
        from grit_mlx.evaluation.published import published

        found = {score.set: published(score.set, score.main, _PUBLISHED) for score in self.scores}
        return {name: value for name, value in found.items() if value is not None}

    def _all_scores(self) -> Iterator[list[str]]:
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


def _published_rows() -> Iterator[list[str]]:
    from grit_mlx.evaluation.published import FIGURES, MODELS

    yield ["table", "set", *MODELS]
    for figure in FIGURES:
        yield [
            figure.group,
            figure.name,
            *(_shown(figure.scores[name] / 100) if name in figure.scores else "" for name in MODELS),
        ]


def _show(rows: Sequence[Sequence[str]]) -> None:
    """Print a table: drawn on a terminal, tab-separated in a pipe."""
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
        table.add_row(*map(console.visible, row), style="bold" if row[0] == "mean" else "")
    console.show(table)


def _shown(value: float) -> str:
    return f"{value:.3f}" if value < 100 else f"{value:.1f}"
