"""``grit train``: tune a model for embedding, for generating, or for both.

Its flags are the fields of ``training.TrainingSettings``: what a setting means stands there and nowhere else.
"""

from __future__ import annotations

import inspect
import math
import shlex
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import Field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from grit_mlx.cli import console, options
from grit_mlx.cli.wording import number_of, size_of
from grit_mlx.errors import ArgumentError, DependencyError, OutputError
from grit_mlx.files.atomic import atomic_path
from grit_mlx.training.settings import TrainingSettings, commented_yaml, groups, read_yaml, settings_from

if TYPE_CHECKING:
    from grit_mlx.training.callbacks import Plan, StepReport, ValidationReport
    from grit_mlx.training.trainer import TrainingResult

__all__ = ["EXAMPLES", "train"]

EXAMPLES = """
Examples:
  grit train --model gritlm-7b --data data
  grit train --init
  grit train --config train.yaml --iters 500
  grit train --adapter-path adapters --resume
  grit train --model gritlm-7b --adapter-path adapters --export-peft peft
  mlx.launch -n 2 grit train --config train.yaml
"""

_NEW_CONFIG = "train.yaml"

# Steps after which the time of a step is known: the first ones also allocate and compile.
_STEPS_TO_MEASURE = 4


def _train(
    *,
    config: str | None,
    init: bool,
    export_peft: str | None,
    import_peft: str | None,
    **flags: Any,
) -> None:
    """Tune a model for embedding, for generating, or for both.

    Flags go before the settings of --config, and these before the defaults. Data is JSON lines: rows with query,
    pos and neg are for embedding; rows with text, messages, or prompt and completion are for generating.
    """
    given = {name: value for name, value in flags.items() if value not in (None, [])}
    if init:
        _write_new_config(Path(config or _NEW_CONFIG), given)
        return
    settings = settings_from(_resolved(config, given))
    if export_peft and import_peft:
        raise ArgumentError("Give either --export-peft or --import-peft: one reads what the other writes.")
    if export_peft or import_peft:
        _convert_adapter(settings, export_peft, import_peft)
        return
    # Here, because they bring mlx and transformers.
    from grit_mlx.training.distributed import World
    from grit_mlx.training.trainer import train as run

    if not World().is_first:
        console.set_up(quiet=True, verbose=console.verbose())  # one process tells
    display: Any = _Display(settings)  # a Callback, whose module brings mlx
    try:
        with display.shown():
            result = run(settings, [display])
    except (KeyboardInterrupt, SystemExit):
        display.tell_interrupted()
        raise
    if World().is_first:
        _tell_result(settings, result)


def _resolved(config: str | None, flags: Mapping[str, Any]) -> dict[str, Any]:
    """Flags over the settings file; a run that is resumed brings its own."""
    values: dict[str, Any] = {}
    if config is not None:
        values = read_yaml(Path(config))
    elif flags.get("resume"):
        saved = Path(flags.get("adapter_path", _default("adapter_path"))) / "settings.yaml"
        values = read_yaml(saved) if saved.exists() else {}
    for name, value in flags.items():
        if isinstance(_default(name), dict):
            values[name] = {**_default(name), **values.get(name, {}), **_pairs(name, value)}
        else:
            values[name] = value
    return values


def _pairs(name: str, texts: Sequence[str]) -> dict[str, Any]:
    """``NAME=VALUE`` texts as a table; values are read as YAML reads them."""
    import yaml

    result = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise ArgumentError(f"{name} takes NAME=VALUE, not {text!r}.")
        result[key] = yaml.safe_load(value)
    return result


def _default(name: str) -> Any:
    return getattr(TrainingSettings(), name)


def _write_new_config(path: Path, given: Mapping[str, Any]) -> None:
    text = commented_yaml(**{"model": "gritlm-7b", "data": "data", **_resolved(None, given)})
    if path.exists():
        raise OutputError(f"{path} exists already. Name another file with --config, or remove it.")
    with atomic_path(path, overwrite=False) as unfinished:
        unfinished.write_text(text, encoding="utf-8")
    console.write(f"{path} holds all settings. Change them, then: grit train --config {shlex.quote(str(path))}")


def _convert_adapter(settings: TrainingSettings, export: str | None, imported: str | None) -> None:
    from grit_mlx.model import hub
    from grit_mlx.model.checkpoint import read_config
    from grit_mlx.model.options import ModelChoice
    from grit_mlx.training.peft import export_peft, import_peft

    config = read_config(hub.resolve(ModelChoice(settings.model, trust_remote_code=settings.trust_remote_code)))
    layers = int((config.get("text_config") or config)["num_hidden_layers"])
    adapter = Path(settings.adapter_path)
    if export:
        export_peft(adapter, Path(export), base=settings.model or "", layers=layers)
        console.write(f"{export} holds the adapter in PEFT's layout.")
    else:
        import_peft(Path(imported or ""), adapter, layers=layers)
        console.write(f"{adapter} holds the adapter in mlx-lm's layout.")


def _tell_result(settings: TrainingSettings, result: TrainingResult) -> None:
    from grit_mlx.evaluation.plots import plot_curves
    from grit_mlx.training.callbacks import read_log

    folder = result.folder
    if result.stopped_early:
        console.note(f"validations stopped getting better; the best was after step {result.best_step}")
    try:
        plot_curves(folder / "curves.png", {"": read_log(folder / "log.jsonl")})
        console.note(f"the curves are in {folder / 'curves.png'}")
    except (DependencyError, OutputError) as error:  # the run itself went well
        console.note(str(error))
    kind = "adapter" if result.is_adapter else "model"
    console.write(f"The tuned {kind} is in {folder} (step {result.best_step}).")
    named = f"--model {shlex.quote(str(folder))}"
    if result.is_adapter:
        base = f"--model {shlex.quote(settings.model)} " if settings.model else ""
        named = f"{base}--adapter {shlex.quote(str(folder))}"
    verb = 'generate "Hello"' if settings.mode == "generative" else 'search "your question" FILE'
    console.write(console.visible(f"Next: grit {verb} {named}"))


class _Display:
    """Tells what happens on stderr: a bar on a terminal, a line for each report elsewhere."""

    def __init__(self, settings: TrainingSettings) -> None:
        self._settings = settings
        self._bars: Any = None
        self._task: Any = None
        self._step: int | None = None
        self._saved = 0
        self._seconds: list[float] = []

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Bars for as long as this lasts, where they are wanted."""
        if not console.draws():
            yield
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.text import Text

        class TwoLines(Progress):
            """The bar, and below it the figures, for which a terminal of 80 columns has no room beside it."""

            figures = ""

            def get_renderables(self) -> Iterator[Any]:
                yield from super().get_renderables()
                if self.figures:
                    yield Text(self.figures, no_wrap=True, overflow="ellipsis")

        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
        with TwoLines(*columns, console=console.error_console(), transient=True) as bars:
            self._bars = bars
            try:
                yield
            finally:
                self._bars = None

    def tell_interrupted(self) -> None:
        """What is left of a run that somebody stopped, and how it goes on."""
        if self._step is None:
            return
        if self._saved:
            folder = shlex.quote(self._settings.adapter_path)
            console.note(
                f"stopped after step {self._step}; step {self._saved} is saved. "
                f"Go on with: grit train --adapter-path {folder} --resume"
            )
        else:
            console.note(
                f"stopped after step {self._step}, before the first checkpoint (save_every = "
                f"{self._settings.save_every}), so nothing is kept"
            )

    def on_rows(self, file: str, rows: int) -> None:
        """Data is being tokenised."""
        if self._bars is None:
            return
        if self._task is None:
            self._task = self._bars.add_task("", total=None)
        self._bars.update(self._task, completed=rows, description=f"rows of {console.visible(file)}")

    def on_start(self, plan: Plan) -> None:
        """What will be trained, and whether it fits."""
        self._step = self._saved = plan.start
        percent = 100 * plan.trained / plan.parameters
        console.note(f"training {plan.trained:,} of {plan.parameters:,} parameters ({percent:.3g} %) in {plan.run}")
        rows = [
            f"{number_of(count, f'{kind} row')}, seen {plan.epochs.get(kind, 0):.2g} times"
            for kind, count in plan.rows.items()
        ]
        console.note(f"{number_of(plan.steps - plan.start, 'step')} to do; {'; '.join(rows)}")
        if plan.processes > 1:
            console.note(f"shared out among {plan.processes} processes")
        peak, available = size_of(plan.memory.peak), size_of(plan.memory.available)
        if plan.memory.fits:
            console.note(f"estimated peak memory {peak}; {available} are there")
        else:
            help_ = f" What helps: {', '.join(plan.advice)}." if plan.advice else ""
            console.warn(f"the estimated peak memory is {peak}, and only {available} are there.{help_}")
        if self._bars is not None:
            if self._task is not None:
                self._bars.remove_task(self._task)
            self._task = self._bars.add_task("", total=plan.steps, completed=plan.start)

    def on_step(self, report: StepReport) -> None:
        """The bar moves on."""
        self._step = report.step
        self._seconds.append(report.seconds)
        if len(self._seconds) == _STEPS_TO_MEASURE and report.step < self._settings.iters:
            seconds = min(self._seconds)
            minutes = math.ceil(seconds * (self._settings.iters - report.step) / 60)
            console.note(f"a step takes {seconds:.2g} s: about {number_of(minutes, 'minute')} to go")
        if self._bars is not None:
            self._bars.figures = _line(report)
            self._bars.update(self._task, completed=report.step)

    def on_report(self, report: StepReport) -> None:
        """A line, where there is no bar."""
        if self._bars is None:
            console.note(f"step {report.step}: {_line(report)}")

    def on_validation(self, report: ValidationReport) -> None:
        """A line in any case."""
        found = [f"{name} {value:.3f}" for name, value in {**report.losses, **report.scores}.items()]
        best = ", the best so far" if report.is_best else ""
        console.note(f"step {report.step}: held out {'  '.join(found)}{best}")

    def on_checkpoint(self, folder: Path) -> None:
        """Told only with --verbose."""
        self._saved = self._step or 0
        if console.verbose():
            console.note(f"wrote {folder}")

    def on_end(self) -> None:
        """Nothing more to show."""


def _line(report: StepReport) -> str:
    losses = "  ".join(f"{name} {value:.3f}" for name, value in report.losses.items() if name != "total")
    speed = f"{report.tokens_per_second:,.0f} tokens/s"
    return f"{losses}  lr {report.learning_rate:.2g}  {speed}  {size_of(report.peak_memory)}"


# The flags


def _signature() -> inspect.Signature:
    """The parameters of ``grit train``: its own, and one for each setting."""
    own = {
        "config": (
            str | None,
            typer.Option("--config", "-c", metavar="FILE", rich_help_panel="Settings", help="YAML file of settings."),
            None,
        ),
        "init": (
            bool,
            typer.Option(
                "--init",
                rich_help_panel="Settings",
                help=f"Write a commented settings file, {_NEW_CONFIG} or --config, and leave.",
            ),
            False,
        ),
    }
    adapter = {
        "export_peft": (
            str | None,
            typer.Option(
                metavar="FOLDER",
                rich_help_panel="Adapters",
                help="Write the adapter in --adapter-path to FOLDER in PEFT's layout, and leave.",
            ),
            None,
        ),
        "import_peft": (
            str | None,
            typer.Option(
                metavar="FOLDER",
                rich_help_panel="Adapters",
                help="Write the PEFT adapter in FOLDER to --adapter-path in mlx-lm's layout, and leave.",
            ),
            None,
        ),
    }
    hints = typing.get_type_hints(TrainingSettings)
    settings = {
        one.name: (_flag_type(one, hints[one.name]), _flag(one, group), None)
        for group, members in groups().items()
        for one in members
    }
    everything = {**own, **settings, **adapter}
    parameters = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option])
        for name, (kind, option, default) in everything.items()
    ]
    return inspect.Signature(parameters)


def _flag_type(one: Field[Any], hint: Any) -> Any:
    """A setting's type on the command line, where None means that it was not given."""
    plain = next((kind for kind in typing.get_args(hint) if kind is not type(None)), hint)
    plain = plain if isinstance(hint, types.UnionType) else hint
    origin = typing.get_origin(plain) or plain
    if origin is dict:
        return list[str] | None
    if origin is list:
        return list[typing.get_args(plain)[0]] | None  # type: ignore[misc]
    choices = one.metadata["choices"]
    return (Literal[choices] if choices else plain) | None


_METAVARS = {"str": "TEXT", "int": "N", "float": "X"}


def _flag(one: Field[Any], group: str) -> Any:
    default = _default(one.name)
    text = one.metadata["help"]
    choices = one.metadata["choices"]
    kind = str(one.type)
    if isinstance(default, dict):
        metavar: str | None = "NAME=VALUE"
        text += " Can be given several times."
    elif "bool" in kind:
        metavar = None
    else:
        metavar = "|".join(choices) or next((shown for name, shown in _METAVARS.items() if name in kind), "TEXT")
    if default not in (None, "", False, [], {}):
        shown = ", ".join(f"{k}={v}" for k, v in default.items()) if isinstance(default, dict) else default
        text += f" Default: {shown if default is not True else 'yes'}."
    return typer.Option(metavar=metavar, rich_help_panel=group, help=text)


def _made() -> Any:
    def train(**arguments: Any) -> None:
        _train(**arguments)

    signature = _signature()
    train.__doc__ = _train.__doc__
    train.__signature__ = signature  # type: ignore[attr-defined]
    train.__annotations__ = {name: one.annotation for name, one in signature.parameters.items()}
    return options.command(train)


train = _made()
