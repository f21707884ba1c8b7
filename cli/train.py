"""``grit train``: tune a model for embedding, for generating, or for both.

Its flags are the fields of ``training.TrainingSettings``, where each is explained.
"""

from __future__ import annotations

import math
import shlex
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from grit_mlx.cli import console, options
from grit_mlx.cli.options import Use
from grit_mlx.cli.wording import number_of, size_of
from grit_mlx.errors import ArgumentError, DependencyError, Option, OutputError
from grit_mlx.files.atomic import atomic_path
from grit_mlx.model import hub
from grit_mlx.options import from_mapping
from grit_mlx.training.callbacks import Callback, StepReport, TrainingPlan, ValidationReport, read_log
from grit_mlx.training.settings import TrainingSettings, commented_yaml, read_yaml

if TYPE_CHECKING:
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


@options.command
def train(
    *,
    config: Annotated[
        str | None,
        typer.Option("--config", "-c", metavar="FILE", rich_help_panel="Settings", help="YAML file of settings."),
    ] = None,
    init: Annotated[
        bool,
        typer.Option(
            "--init",
            rich_help_panel="Settings",
            help=f"Write a commented settings file, {_NEW_CONFIG} or --config, and exit.",
        ),
    ] = False,
    given: Annotated[Mapping[str, Any], Use(given=TrainingSettings)],
    export_peft: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            rich_help_panel="Adapters",
            help="Write the adapter in --adapter-path to FOLDER in PEFT's layout, and exit.",
        ),
    ] = None,
    import_peft: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            rich_help_panel="Adapters",
            help="Write the PEFT adapter in FOLDER to --adapter-path in mlx-lm's layout, and exit.",
        ),
    ] = None,
) -> None:
    """Tune a model for embedding, for generating, or for both.

    Flags override --config, which overrides the defaults. Data is JSON lines: rows with query, pos and neg are for
    embedding; rows with text, messages, or prompt and completion are for generating.
    """
    if init:
        _write_new_config(Path(config or _NEW_CONFIG), given)
        return
    settings = from_mapping(TrainingSettings, _resolved(config, given))
    if export_peft and import_peft:
        raise ArgumentError(
            Option("export_peft"), " and ", Option("import_peft"), " are each other's opposite: leave out one of them."
        )
    if export_peft or import_peft:
        _convert_adapter(settings, export_peft, import_peft)
        return
    # Here, because they bring mlx and transformers.
    from grit_mlx.model.world import World
    from grit_mlx.training.trainer import train as run

    if not World().is_first:
        console.set_up(quiet=True, verbose=console.verbose())  # the first process reports
    display = _Display(settings)
    try:
        with display.shown(), display.stopping():
            result = run(settings, [display])
    except (KeyboardInterrupt, SystemExit):
        display.report_interruption()
        raise
    if World().is_first:
        _report(settings, result)


def _resolved(config: str | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """Flags over the settings file; a run that is resumed brings its own. Tables are merged."""
    defaults = asdict(TrainingSettings())
    values: dict[str, Any] = {}
    if config is not None:
        values = read_yaml(Path(config))
    elif given.get("resume"):
        saved = Path(given.get("adapter_path", defaults["adapter_path"])) / "settings.yaml"
        values = read_yaml(saved) if saved.exists() else {}
    for name, value in given.items():
        if isinstance(value, dict):
            old = values.get(name)
            value = {**defaults[name], **(old if isinstance(old, dict) else {}), **value}
        values[name] = value
    return values


def _write_new_config(path: Path, given: Mapping[str, Any]) -> None:
    text = commented_yaml(**{"model": _default_model(), "data": "data", **_resolved(None, given)})
    if path.exists():
        raise OutputError(f"{path} exists already. Name another file with ", Option("config"), ", or remove it.")
    with atomic_path(path, overwrite=False) as unfinished:
        unfinished.write_text(text, encoding="utf-8")
    console.write(f"{path} holds all settings. Change them, then: grit train --config {shlex.quote(str(path))}")


def _default_model() -> str:
    """What commands use by default, by its name if it has one."""
    name = hub.default_model() or "gritlm-7b"
    embedded = hub.embedded_model()
    return embedded.name if embedded is not None and name == str(embedded) else name


def _convert_adapter(settings: TrainingSettings, export: str | None, imported: str | None) -> None:
    from grit_mlx.model.loading import load_lazily
    from grit_mlx.model.options import ModelChoice
    from grit_mlx.training.peft import export_peft, import_peft

    adapter = Path(settings.adapter_path)
    source = adapter if export else Path(imported or "")
    choice = ModelChoice(settings.model, adapter=source, trust_remote_code=settings.trust_remote_code)
    model = load_lazily(choice)
    if export:
        export_peft(adapter, Path(export), model=model, base=settings.model or "")
        console.write(f"{export} holds the adapter in PEFT's layout.")
    else:
        import_peft(source, adapter, model=model)
        console.write(f"{adapter} holds the adapter in mlx-lm's layout.")


def _report(settings: TrainingSettings, result: TrainingResult) -> None:
    from grit_mlx.evaluation.plots import plot_curves

    folder = result.folder
    if result.stopped_early:
        console.note(f"validations stopped improving; the best was after step {result.best_step}")
    try:
        plot_curves(folder / "curves.png", {"": read_log(folder / "log.jsonl")})
        console.note(f"the curves are in {folder / 'curves.png'}")
    except (DependencyError, OutputError) as error:  # the run itself went well
        console.note(*error.parts)
    kind = "adapter" if result.is_adapter else "model"
    console.write(f"The tuned {kind} is in {folder} (step {result.best_step}).")
    named = f"--model {shlex.quote(str(folder))}"
    if result.is_adapter:
        base = f"--model {shlex.quote(settings.model)} " if settings.model else ""
        named = f"{base}--adapter {shlex.quote(str(folder))}"
    verb = 'generate "Hello"' if settings.mode == "generative" else 'search "your question" FILE'
    console.write(console.visible(f"Next: grit {verb} {named}"))


class _Display(Callback):
    """Shows a run on stderr: a bar on a terminal, a line for each report elsewhere."""

    def __init__(self, settings: TrainingSettings) -> None:
        self._settings = settings
        self._bars: Any = None
        self._task: Any = None
        self._step: int | None = None
        self._saved = 0
        self._seconds: list[float] = []
        self._computes = False  # a step, which is done before a run stops
        self._alone = True  # other processes would wait for this one
        self._stops = False
        self._validation: Any = None

    @contextmanager
    def stopping(self) -> Iterator[None]:
        """In this block Ctrl-C lets a step end, so that it can be saved; a second one stops at once."""

        def on_press(number: int, frame: FrameType | None) -> None:
            if self._stops or not self._computes:
                signal.default_int_handler(number, frame)
            self._stops = True
            with suppress(RuntimeError):  # it came while something was written
                console.note("stopping after this step, which is saved then; Ctrl-C again stops at once")

        before = signal.getsignal(signal.SIGINT)
        if before is not signal.SIG_IGN:  # as in a shell's background
            signal.signal(signal.SIGINT, on_press)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Draw bars in this block, if they are wanted."""
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

    def report_interruption(self) -> None:
        """What is left of a run that was stopped, and how to resume it."""
        if self._step is None:
            return
        stopped = f"stopped after step {self._step}"
        if self._saved:
            folder = shlex.quote(self._settings.adapter_path)
            console.note(f"{stopped}; step {self._saved} is saved. Resume: grit train --adapter-path {folder} --resume")
        else:
            every = Option("save_every", self._settings.save_every)
            console.note(f"{stopped}, before the first checkpoint (", every, "), so nothing was saved")

    def on_rows(self, file: str, rows: int) -> None:
        """Data is being tokenised."""
        if self._bars is None:
            return
        if self._task is None:
            self._task = self._bars.add_task("", total=None)
        self._bars.update(self._task, completed=rows, description=f"rows of {console.visible(file)}")

    def on_start(self, plan: TrainingPlan) -> None:
        """What will be trained, and whether it fits."""
        self._step = self._saved = plan.start
        self._computes = self._alone = plan.processes == 1
        percent = 100 * plan.trained / plan.parameters
        console.note(f"training {plan.trained:,} of {plan.parameters:,} parameters ({percent:.3g} %) in {plan.run}")
        rows = [
            f"{number_of(count, f'{kind} row')}, seen {plan.epochs.get(kind, 0):.2g} times"
            for kind, count in plan.rows.items()
        ]
        console.note(f"{number_of(plan.steps - plan.start, 'step')} to do; {'; '.join(rows)}")
        if plan.processes > 1:
            console.note(f"distributed over {plan.processes} processes")
        peak, available = size_of(plan.memory.peak), size_of(plan.memory.available)
        if plan.memory.fits:
            console.note(f"estimated peak memory: {peak} of {available} available")
        else:
            advice = f" Try {', '.join(map(console.worded, plan.advice))}." if plan.advice else ""
            console.warn(f"the estimated peak memory is {peak} and only {available} are available.{advice}")
        if self._bars is not None:
            if self._task is not None:
                self._bars.remove_task(self._task)
            self._task = self._bars.add_task("", total=plan.steps, completed=plan.start)

    def on_step(self, report: StepReport) -> None:
        """Advance the bar."""
        self._step = report.step
        self._seconds.append(report.seconds)
        if len(self._seconds) == _STEPS_TO_MEASURE and report.step < self._settings.iters:
            seconds = min(self._seconds)
            minutes = math.ceil(seconds * (self._settings.iters - report.step) / 60)
            console.note(f"a step takes {seconds:.2g} s: about {number_of(minutes, 'minute')} to go")
        if self._bars is not None:
            self._bars.figures = _line(report)
            self._bars.update(self._task, completed=report.step)
        if self._stops:
            raise KeyboardInterrupt

    def on_report(self, report: StepReport) -> None:
        """A line, if there is no bar."""
        if self._bars is None:
            console.note(f"step {report.step}: {_line(report)}")

    def on_validating(self, step: int, done: int, total: int) -> None:
        """A bar of its own; where there is none, a line before the first step, which would look like nothing."""
        self._computes = False  # nothing is lost if a validation is
        if self._stops:
            raise KeyboardInterrupt
        if self._bars is None:
            if not step and not done:
                console.note("validating before the first step")
            return
        if self._validation is None:
            self._validation = self._bars.add_task(f"validating, step {step}", total=total)
        self._bars.update(self._validation, completed=done)

    def on_validation(self, report: ValidationReport) -> None:
        """A line in any case."""
        self._computes = self._alone
        if self._validation is not None:
            self._bars.remove_task(self._validation)
            self._validation = None
        found = [f"{name} {value:.3f}" for name, value in {**report.losses, **report.scores}.items()]
        best = ", the best so far" if report.is_best else ""
        console.note(f"step {report.step}: held out {'  '.join(found)}{best}")

    def on_checkpoint(self, folder: Path) -> None:
        """A line, with --verbose."""
        self._saved = self._step or 0
        if console.verbose():
            console.note(f"wrote {folder}")


def _line(report: StepReport) -> str:
    losses = "  ".join(f"{name} {value:.3f}" for name, value in report.losses.items() if name != "total")
    speed = f"{report.tokens_per_second:,.0f} tokens/s"
    return f"{losses}  lr {report.learning_rate:.2g}  {speed}  {size_of(report.peak_memory)}"
