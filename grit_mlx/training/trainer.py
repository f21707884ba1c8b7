"""``train``: a run from its settings to its result."""

from __future__ import annotations

import itertools
import json
import logging
import math
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_unflatten

from grit_mlx.datasets.examples import EMBEDDING, GENERATIVE
from grit_mlx.errors import (
    ArgumentError,
    MemoryLimitError,
    ModelError,
    NonFiniteError,
    Option,
    lost_process,
    unwritable,
)
from grit_mlx.evaluation.sets import AnswerSet, load_set
from grit_mlx.model import device
from grit_mlx.model.adapters import check_base, fingerprint, read_adapter
from grit_mlx.model.settings import write_settings
from grit_mlx.model.world import World
from grit_mlx.training import adapters
from grit_mlx.training.arrays import named_arrays, number
from grit_mlx.training.callbacks import Callback, JsonLog, StepReport, TrainingPlan, ValidationReport, make_reporters
from grit_mlx.training.memory import advice, estimate
from grit_mlx.training.preparation import Data, Preparation, data_folder, prepare_data, prepare_model
from grit_mlx.training.run_folder import Position, RunFolder
from grit_mlx.training.scratch import QUANTIZATION_KEYS, copy_tokenizer
from grit_mlx.training.settings import TrainingSettings, write_yaml
from grit_mlx.training.step import StepResult, Trainee, merged
from grit_mlx.training.token_files import find_data_files
from grit_mlx.training.validation import held_out_batches, held_out_losses, set_scores

__all__ = ["TrainingResult", "train"]

logger = logging.getLogger("grit_mlx")

# Settings that do not change what is computed: a resumed run may have others.
_FREE = {
    *("adapter_path", "best", "cache", "compile", "data", "early_stopping", "evaluate", "keep_last", "model"),
    *("project_name", "report_to", "resume", "save_every", "steps_per_eval", "steps_per_report", "val_batches"),
}

# Those that a resumed run may change: how long it lasts, and what helps if it failed. The rest decides which rows
# come when, or what the weights mean.
_CHANGEABLE = {
    *("chunk_size", "chunk_tokens", "dtype", "grad_checkpoint", "iters", "learning_rate", "lr_schedule"),
    *("max_grad_norm", "warmup", "weight_decay"),
}


@dataclass(frozen=True)
class TrainingResult:
    """The result of a run.

    Attributes:
        folder: the adapter, or the complete model after full tuning.
        is_adapter: whether it is an adapter.
        steps: steps done.
        best_step: the step whose weights were kept; the last one without validation.
        losses: of the last step.
        validation: the last one, if any.
        stopped_early: whether validations stopped improving.
    """

    folder: Path
    is_adapter: bool
    steps: int
    best_step: int
    losses: dict[str, float]
    validation: ValidationReport | None
    stopped_early: bool


def train(settings: TrainingSettings, callbacks: Sequence[Callback] = ()) -> TrainingResult:
    """Tune a model.

    Under ``mlx.launch`` every process calls this with the same settings; the first one writes and reports.

    Args:
        settings: model, data and optimisation.
        callbacks: called as the run proceeds.

    Raises:
        ArgumentError: settings that do not go together or do not suit the data.
        DocumentError: a row of the data cannot be used; before the first step.
        ModelError: the model or adapter cannot be used.
        NonFiniteError: a loss or gradient was NaN or infinite; the step is named and its batch saved.
        MemoryLimitError: a chunk does not fit into memory.
        OutputError: the disk is full or cannot be written.
    """
    # Before the model is loaded, which may take a while.
    find_data_files(data_folder(settings), outside=Path(settings.adapter_path).expanduser())
    world = World()
    sets = [load_set(Path(path).expanduser()) for path in settings.evaluate]
    for one in sets:
        if isinstance(one, AnswerSet):
            raise ArgumentError(
                Option("evaluate"), f" names answers, {one.path}: put them into the data as valid.jsonl."
            )
    try:
        return _begun(settings, world, sets, list(callbacks) if world.is_first else []).run()
    except RuntimeError as error:
        if lost := lost_process(error):
            raise lost from error
        raise


def _begun(settings: TrainingSettings, world: World, sets: Sequence[Any], callbacks: list[Callback]) -> _Run:
    """Everything before the first step."""
    folder = RunFolder(Path(settings.adapter_path).expanduser())
    if world.is_first:
        _check_folder(folder, settings)
    prepared = prepare_model(settings, world)
    tokenizer, on_rows = prepared.loaded.tokenizer._tokenizer, partial(_notify, callbacks, "on_rows")
    form = prepared.loaded.settings.prompt_format
    data = prepare_data(settings, tokenizer, world, on_rows, vector_size=prepared.vector_size, prompt_format=form)
    if world.is_first:
        reporters = make_reporters(settings.report_to, folder.path, settings.project_name)
        callbacks = [*callbacks, JsonLog(folder.path / "log.jsonl"), *reporters]
    return _Run(settings, world, folder, prepared, data, sets, callbacks)


def _check_folder(folder: RunFolder, settings: TrainingSettings) -> None:
    found = folder.checkpoints()
    if settings.resume and not found:
        raise ArgumentError(
            f"{folder.path} has no checkpoint to resume from. Leave out ", Option("resume", True), " to start a run."
        )
    if found and not settings.resume:
        step = int(found[-1].name.removeprefix("step-"))
        resume, path = Option("resume", True), Option("adapter_path")
        raise ArgumentError(
            f"{folder.path} holds a run at step {step}. Resume it with ", resume, ", or name another ", path, "."
        )
    folder.make()


class _Run:
    """A run: what changes from step to step, and the loop that changes it."""

    def __init__(
        self,
        settings: TrainingSettings,
        world: World,
        folder: RunFolder,
        prepared: Preparation,
        data: Data,
        sets: Sequence[Any],
        callbacks: Sequence[Callback],
    ) -> None:
        self.settings = settings
        self.world = world
        self.folder = folder
        self.prepared = prepared
        self.data = data
        self.sets = sets
        self.callbacks = callbacks
        self.position = Position(data=dict(data.keys), settings=_compared(settings))
        self.validation: ValidationReport | None = None
        self.losses: dict[str, float] = {}
        self.reports: list[StepReport] = []  # since the last line of the log
        self._published: Path | None = None
        self._saved = 0  # the step of the last checkpoint
        self._computing = False  # in the middle of a step, where weights and optimizer may disagree
        # Sized now, so that a resumed optimizer finds its state in place.
        prepared.optimizer.init(prepared.trainee.trainable_parameters())  # type: ignore[no-untyped-call]

    def run(self) -> TrainingResult:
        """Do the remaining steps."""
        try:
            if self.settings.resume:
                self._resume()
            if self.world.is_first:
                write_yaml(self.folder.path / "settings.yaml", replace(self.settings, resume=False))
            _notify(self.callbacks, "on_start", self._plan())
            mx.reset_peak_memory()
            try:
                with device.wired():
                    stopped = self._loop()
            except KeyboardInterrupt:
                self._save_interrupted()
                raise
        finally:
            _notify(self.callbacks, "on_end")
        if self.world.is_first:
            self._publish()
        best = self.position.best_step
        return TrainingResult(
            folder=self.folder.path,
            is_adapter=self.prepared.layout is not None,
            steps=self.position.step,
            best_step=self.position.step if best is None else best,
            losses=self.losses,
            validation=self.validation,
            stopped_early=stopped,
        )

    def _loop(self) -> bool:
        """Steps, validations and checkpoints; whether validations stopped improving."""
        settings = self.settings
        self.reports = [StepReport(**report) for report in self.position.pending]
        validates = bool(settings.steps_per_eval and (self.sets or self.data.held_out))
        if validates and self.position.step == 0:
            self._validate()
        if self._is_over():
            return True
        while self.position.step < settings.iters:
            self._computing = True
            report = self._step_in_memory(self.position.step)
            self._computing = False
            self.position = replace(self.position, step=report.step)
            self.losses = dict(report.losses)
            self.reports.append(report)
            _notify(self.callbacks, "on_step", report)
            last = report.step == settings.iters
            if last or report.step % settings.steps_per_report == 0:
                _notify(self.callbacks, "on_report", _mean(self.reports))
                self.reports = []
            if validates and (last or report.step % settings.steps_per_eval == 0):
                self._validate()
                if self._is_over():
                    self._save()
                    return True
            if last or report.step % settings.save_every == 0 or self._just_improved():
                self._save()
        return False

    # A step

    def _step_in_memory(self, index: int) -> StepReport:
        """``_step``, with an error that says what to do if memory runs out."""
        try:
            return self._step(index)
        except (RuntimeError, MemoryError) as error:
            if not device.is_out_of_memory(error):
                raise
            tokens, rows, recompute = Option("chunk_tokens"), Option("chunk_size"), Option("grad_checkpoint", True)
            lengths = Option("max_seq_length"), " or ", Option("passage_max_length")
            raise MemoryLimitError(
                f"Memory ran out in step {index + 1}. Lower ",
                *(tokens, " or ", rows, ", use ", recompute, ", or truncate texts with a lower ", *lengths, "."),
            ) from error

    def _step(self, index: int) -> StepReport:
        """The losses, gradients and update of step ``index``."""
        started = time.perf_counter()
        trainee, optimizer = self.prepared.trainee, self.prepared.optimizer
        trainee.train()
        result = self._gradients(index)
        gradients = self.world.sum(result.gradients)
        norm = optim.clip_grad_norm(gradients, math.inf)[1]
        if not (math.isfinite(result.losses["total"]) and math.isfinite(number(norm))):
            self._stop(index, result.losses)
        if index == 0:
            _warn_of_nothing_to_learn(result.losses)
        if self.settings.max_grad_norm:
            gradients, _ = optim.clip_grad_norm(gradients, self.settings.max_grad_norm)
        optimizer.update(trainee, gradients)
        mx.eval(trainee.trainable_parameters(), optimizer.state)  # type: ignore[no-untyped-call]
        device.free_cached_memory()
        seconds = time.perf_counter() - started
        temperature = trainee.temperature(self.settings.temperature)
        return StepReport(
            step=index + 1,
            losses=result.losses,
            learning_rate=number(self.prepared.schedule(mx.array(index))),
            gradient_norm=number(norm),
            tokens_per_second=result.tokens / seconds,
            seconds=seconds,
            peak_memory=mx.get_peak_memory(),
            temperature=number(mx.array(temperature)),
        )

    def _gradients(self, index: int) -> StepResult:
        seed = int(np.random.default_rng([self.settings.seed, index]).integers(1 << 62))
        computations: dict[str, Any] = {
            EMBEDDING: self.prepared.step.embedding,
            GENERATIVE: self.prepared.step.generative,
        }
        return merged([computations[kind](data.batch(index), seed=seed) for kind, data in self.data.train.items()])

    def _stop(self, index: int, losses: dict[str, float]) -> None:
        """End the run because of a loss that is not finite; weights and checkpoints stay as they are."""
        step = index + 1
        folder = self.folder.path / "stopped"
        if self.world.is_first:
            rows: dict[str, Any] = {"step": step, "losses": {name: str(value) for name, value in losses.items()}}
            for kind, data in self.data.train.items():
                batch = data.batch(index)
                parts = {"queries": batch.queries, "passages": batch.passages} if kind == EMBEDDING else {kind: batch}
                rows |= {name: [one.ids.tolist() for one in part] for name, part in parts.items()}
            try:
                folder.mkdir(exist_ok=True)
                (folder / f"step-{step:08d}.json").write_text(json.dumps(rows), encoding="utf-8")
            except OSError as error:
                logger.warning("%s", unwritable(folder, error))
        bad = [name for name, value in losses.items() if not math.isfinite(value) and name != "total"] or ["gradient"]
        rate, dtype = Option("learning_rate"), Option("dtype", "float32")
        raise NonFiniteError(
            f"The {bad[0]}{'' if bad == ['gradient'] else ' loss'} of step {step} is not finite: training stopped; the "
            f"weights were not updated. The batch is in {folder}. Use ",
            *(Option("resume", True), " with a lower ", rate, " or ", dtype, "."),
        )

    # Between steps

    def _validate(self) -> None:
        trainee, settings = self.prepared.trainee, self.settings
        trainee.eval()
        advance = self._validating(held_out_batches(self.data, max_batches=settings.val_batches) + len(self.sets))
        losses = held_out_losses(self.prepared, self.data, max_batches=settings.val_batches, advance=advance)
        scores = set_scores(self.prepared, self.sets, advance=advance)
        mx.clear_cache()
        # Lower is better. The factors are those of training, for the sum to mean the same.
        factors = {
            "generative": settings.generative_factor,
            "distillation": settings.distillation_factor,
            "router": 0.0,
        }
        value = sum(loss * factors.get(name, settings.embedding_factor) for name, loss in losses.items())
        if scores and (settings.best == "score" or not losses):
            value = -sum(scores.values()) / len(scores)
        better = math.isfinite(value) and (self.position.best is None or value < self.position.best)
        # The untuned model is only there for comparison.
        if self.position.step == 0:
            better = False
        elif better:
            self.position = replace(self.position, best=float(value), best_step=self.position.step, stale=0)
        else:
            self.position = replace(self.position, stale=self.position.stale + 1)
        self.validation = ValidationReport(self.position.step, losses, dict(scores), is_best=better)
        _notify(self.callbacks, "on_validation", self.validation)

    def _validating(self, total: int) -> Callable[[], None]:
        """Report that a validation begins; what is returned reports that another of its parts is done."""
        done = itertools.count()

        def advance() -> None:
            _notify(self.callbacks, "on_validating", self.position.step, next(done), total)

        advance()
        return advance

    def _is_over(self) -> bool:
        patience = self.settings.early_stopping
        return self.world.agree(bool(patience) and self.position.stale >= patience)

    def _just_improved(self) -> bool:
        return self.position.best_step == self.position.step

    def _save(self) -> None:
        if not self.world.is_first:
            return
        trainee = self.prepared.trainee
        state = _state(trainee, self.prepared.optimizer)
        full = self.prepared.layout is None
        weights = trainee.model.parameters() if full else trainee.model.trainable_parameters()
        folder = self.folder.save(
            replace(self.position, pending=[asdict(report) for report in self.reports]),
            weights=dict(named_arrays(weights)),
            weights_name=self._weights_name,
            optimizer={name: value for name, value in state.items() if not name.startswith("weights.")},
            keep_last=self.settings.keep_last,
            describe=self._describe,
        )
        self._saved = self.position.step
        # The run's folder can be used at any time, not only at its end.
        if self.position.best_step in (None, self.position.step):
            self._publish()
        _notify(self.callbacks, "on_checkpoint", folder)

    def _save_interrupted(self) -> None:
        """Keep what was done since the last checkpoint, if the interruption came between two steps."""
        if not self._computing and self.position.step > self._saved and self.world.size == 1:
            self._save()

    def _resume(self) -> None:
        """Load the last checkpoint. Only the first process reads it: other machines need not have it."""
        trainee, optimizer = self.prepared.trainee, self.prepared.optimizer
        state = found = _state(trainee, optimizer)
        if self.world.is_first:
            checkpoint = self.folder.checkpoints()[-1]
            if self.prepared.layout is not None:
                check_base(read_adapter(checkpoint), trainee.model, self.prepared.loaded.config)
            self.position, found = self.folder.load(checkpoint, self._weights_name)
        self.position = Position(**self.world.from_first(asdict(self.position)))
        self._saved = self.position.step
        self._check_settings()
        self._check_data()
        if missing := state.keys() - found.keys():
            raise ModelError(f"Cannot resume from {checkpoint}: it has no {min(missing)}, which is trained now.")
        # In the dtype of this run, which may be another.
        state = {name: found[name].astype(value.dtype) for name, value in state.items()}
        parts: dict[str, list[tuple[str, mx.array]]] = defaultdict(list)
        for name, value in self.world.arrays_from_first(state).items():
            part, _, rest = name.partition(".")
            parts[part].append((rest, value))
        trainee.model.load_weights(parts["weights"], strict=False)
        trainee.update(dict(parts["trainee"]))
        optimizer.state = tree_unflatten(parts["optimizer"])
        mx.eval(trainee.parameters(), optimizer.state)  # type: ignore[no-untyped-call]
        logger.info("Resuming from step %d.", self.position.step)

    def _check_data(self) -> None:
        if dict(self.position.data) != dict(self.data.keys):
            changed = {*self.position.data.items()} ^ {*self.data.keys.items()}
            names = ", ".join(sorted({name for name, _ in changed}))
            raise ArgumentError(f"The data has changed since the run was started ({names}), so it cannot be resumed.")

    def _check_settings(self) -> None:
        now = _compared(self.settings)
        for name, old in self.position.settings.items():
            if now.get(name) == old:
                continue
            if name not in _CHANGEABLE:
                others = [part for one in sorted(_CHANGEABLE) for part in (", ", Option(one))]
                raise ArgumentError(
                    *("The run was started with ", Option(name, old), f", not {now.get(name)!r}: a resumed run keeps "),
                    *("its settings, except ", *others[1:], "."),
                )
            logger.warning("From here on %s, not %r.", Option(name, now[name]), old)
        self.position = replace(self.position, settings=now)

    # Before and after

    @property
    def _weights_name(self) -> str:
        return adapters.ADAPTER_WEIGHTS if self.prepared.layout else "model.safetensors"

    def _plan(self) -> TrainingPlan:
        loaded, settings = self.prepared.loaded, self.settings
        memory = estimate(
            self.prepared.trainee,
            loaded.config,
            settings,
            available=device.available_memory() + mx.get_active_memory(),
            fused_attention=device.current_device().kind != "cpu",
        )
        trained, parameters = adapters.count_trainable(self.prepared.trainee)
        return TrainingPlan(
            run=self.folder.path,
            steps=settings.iters,
            start=self.position.step,
            trained=trained,
            parameters=parameters,
            memory=memory,
            advice=advice(memory, settings, quantized=adapters.is_quantized(loaded.model)),
            rows=self.data.rows,
            epochs={kind: data.sampler.epoch(settings.iters) for kind, data in self.data.train.items()},
            processes=self.world.size,
        )

    def _describe(self, folder: Path) -> None:
        """Write the files that the weights need to be loaded as an adapter or a model."""
        loaded, step = self.prepared.loaded, self.position.step
        if self.prepared.layout is not None:
            about = {
                "model": str(loaded.folder) if self.settings.model is None else self.settings.model,
                "base_model": fingerprint(loaded.model, loaded.config),
                "grit_mlx": {"step": step, "mode": self.settings.mode},
            }
            adapters.write_layout(folder, self.prepared.layout, about=about)
        else:
            config = dict(loaded.config)
            if not adapters.is_quantized(loaded.model):  # widened when it was loaded
                config = {name: value for name, value in config.items() if name not in QUANTIZATION_KEYS}
            (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
            copy_tokenizer(loaded.folder, folder)
        if loaded.projection is not None and (loaded.folder / "projection.safetensors").exists():
            shutil.copyfile(loaded.folder / "projection.safetensors", folder / "projection.safetensors")
        origin = {"tuned_from": str(self.settings.model or "scratch"), "steps": step}
        write_settings(folder, replace(loaded.settings, about={**loaded.settings.about, **origin}))

    def _publish(self) -> None:
        """Copy the best weights, or without validation the last, to the run's folder."""
        found = self.folder.checkpoints()
        best = self.position.best_step
        source = next((path for path in found if best is not None and path.name == f"step-{best:08d}"), found[-1])
        if source != self._published:
            self.folder.publish(source, self._weights_name)
            self._published = source


def _warn_of_nothing_to_learn(losses: Mapping[str, float]) -> None:
    for name, value in losses.items():
        if value == 0 and name in (EMBEDDING, GENERATIVE):
            logger.warning(
                "The %s loss is 0 from the start, so there is nothing to learn from: all passages of the first batch "
                "are right answers to its queries, or equal.",
                name,
            )


def _mean(reports: Sequence[StepReport]) -> StepReport:
    """The last of several reports, with the means of their losses and speeds."""
    losses: dict[str, list[float]] = defaultdict(list)
    for report in reports:
        for name, value in report.losses.items():
            losses[name].append(value)
    seconds = sum(report.seconds for report in reports)
    tokens = sum(report.tokens_per_second * report.seconds for report in reports)
    return replace(
        reports[-1],
        losses={name: sum(values) / len(values) for name, values in losses.items()},
        tokens_per_second=tokens / seconds,
        seconds=seconds / len(reports),
    )


def _notify(callbacks: Sequence[Callback], event: str, *arguments: Any) -> None:
    for callback in callbacks:
        getattr(callback, event)(*arguments)


def _state(trainee: Trainee, optimizer: optim.Optimizer) -> dict[str, mx.array]:
    """All that changes from step to step: the trained weights, other trained arrays, the optimizer's state."""
    return {
        **{f"weights.{name}": value for name, value in named_arrays(trainee.model.trainable_parameters())},
        **{f"trainee.{name}": value for name, value in trainee.beside().items()},
        **{f"optimizer.{name}": value for name, value in named_arrays(optimizer.state)},
    }


def _compared(settings: TrainingSettings) -> dict[str, Any]:
    """The settings that a resumed run is compared by."""
    return {name: value for name, value in asdict(settings).items() if name not in _FREE}
