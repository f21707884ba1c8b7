"""What a run needs before its first step: the model with its trained weights, the data, the optimizer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim

from grit_mlx.datasets.examples import EMBEDDING, GENERATIVE
from grit_mlx.errors import AdapterError, ArgumentError, DocumentError, Option
from grit_mlx.model import device
from grit_mlx.model.adapters import attach, check_base, complete, keys_of, read_adapter
from grit_mlx.model.loading import LoadedModel, load
from grit_mlx.model.options import ModelChoice
from grit_mlx.model.widening import is_widened
from grit_mlx.model.world import World
from grit_mlx.training import adapters
from grit_mlx.training.adapters import AdapterLayout
from grit_mlx.training.data import (
    EmbeddingData,
    Files,
    GenerativeData,
    check_weights,
    file_weights,
    load_files,
    split_files,
)
from grit_mlx.training.optimizers import Schedule, make_optimizer, make_schedule
from grit_mlx.training.recompute import checkpoint_layers, should_recompute
from grit_mlx.training.router import Routers, find_routers
from grit_mlx.training.scratch import write_random_model
from grit_mlx.training.settings import TrainingSettings
from grit_mlx.training.step import Trainee, TrainingStep
from grit_mlx.training.token_files import TEST, TRAIN, VALID, TokenOptions, find_data_files, split_of

__all__ = ["Data", "Preparation", "data_folder", "prepare_data", "prepare_model"]

logger = logging.getLogger("grit_mlx")


@dataclass(frozen=True)
class Data:
    """The data of a run.

    Attributes:
        train: the batches of each kind that the mode trains: ``EmbeddingData``, ``GenerativeData``.
        held_out: the same, of the kinds that there is held-out data of.
        rows: training rows of each kind.
        keys: hashes of the data, by file name, for a resumed run to compare.
    """

    train: Mapping[str, Any]
    held_out: Mapping[str, Any]
    rows: Mapping[str, int]
    keys: Mapping[str, str]


@dataclass(frozen=True)
class Preparation:
    """A model that is ready to be trained.

    Attributes:
        loaded: the model, with the settings that it will be used with.
        trainee: the model with its trainable parameters chosen.
        layout: of the adapter; None if all weights are trained.
        step: computes losses and gradients.
        validation_step: the same in this process alone, never compiled.
        schedule: the learning rate of each step.
        optimizer: one of mlx's.
    """

    loaded: LoadedModel
    trainee: Trainee
    layout: AdapterLayout | None
    step: TrainingStep
    validation_step: TrainingStep
    schedule: Schedule
    optimizer: optim.Optimizer

    @property
    def vector_size(self) -> int | None:
        """Length of the vectors; None where nothing is embedded."""
        return self.loaded.embedding_size


def prepare_model(settings: TrainingSettings, world: World) -> Preparation:
    """Load or create the model, and choose what is trained.

    Raises:
        GritError: the model, the adapter or a setting cannot be used.
    """
    loaded = _load(settings, world)
    mx.random.seed(settings.seed)
    layout = _choose_trained(loaded.model, loaded.config, settings)
    trainee = Trainee(
        loaded.model, projection=loaded.projection, learn_temperature=settings.learn_temperature and settings.embeds
    )
    routers, router_factor = _routers(loaded, settings)
    if should_recompute(loaded.model, settings):
        checkpoint_layers(loaded.model.layers, routers)
    compiled = _should_compile(loaded.model, settings)
    common: dict[str, Any] = {
        "routers": routers,
        "router_factor": router_factor,
    }
    schedule = make_schedule(
        settings.lr_schedule,
        learning_rate=settings.learning_rate,
        steps=settings.iters,
        warmup_steps=round(settings.warmup * settings.iters),
    )
    return Preparation(
        loaded=loaded,
        trainee=trainee,
        layout=layout,
        step=TrainingStep(trainee, settings, loaded.settings, world=world, compiled=compiled, **common),
        validation_step=TrainingStep(trainee, settings, loaded.settings, world=World(alone=True), **common),
        schedule=schedule,
        optimizer=make_optimizer(
            settings.optimizer, schedule, weight_decay=settings.weight_decay, options=settings.optimizer_config
        ),
    )


def _should_compile(model: nn.Module, settings: TrainingSettings) -> bool:
    """Whether steps are compiled: as the settings say, or else on Metal."""
    if settings.compile and is_widened(model):
        logger.warning("Steps are not compiled: layers that widen their weights as they compute cannot be.")
        return False
    return device.current_device().kind == "metal" if settings.compile is None else settings.compile


def _load(settings: TrainingSettings, world: World) -> LoadedModel:
    name: str | Path | None = settings.model
    if settings.from_scratch:
        name = Path(settings.adapter_path).expanduser() / "initial"
        write_initial = partial(
            write_random_model,
            name,
            config_path=Path(settings.from_scratch).expanduser(),
            tokenizer=Path(settings.tokenizer or "").expanduser(),
            seed=settings.seed,
        )
        if world.is_first and not (name / "config.json").exists():
            write_initial()
        world.agree(True)  # the others wait for the file
        if not (name / "config.json").exists():  # on another machine: the same seed, the same weights
            write_initial()
    # Full tuning writes the complete model, with the head even if it is not trained.
    embedding_only = settings.mode == "embedding" and settings.fine_tune_type != "full"
    mode = "generative" if not settings.embeds else "embedding" if embedding_only else "unified"
    choice = ModelChoice(
        model=name,
        dtype=settings.dtype,
        trust_remote_code=settings.trust_remote_code,
        pooling=settings.pooling,
        attn=settings.attn,
    )
    loaded = load(choice, mode=mode)
    names = ("max_length", "query_instruction")
    # A model that only embedded learns to write.
    writes = loaded.settings.generates or settings.generates
    chosen = loaded.settings.override(generates=writes, **{name: getattr(settings, name) for name in names})
    return replace(loaded, settings=chosen)


def _choose_trained(model: Any, config: Mapping[str, Any], settings: TrainingSettings) -> AdapterLayout | None:
    if settings.from_scratch or settings.fine_tune_type == "full":
        if settings.resume_adapter_file:
            adapter = Option("resume_adapter_file")
            raise ArgumentError(adapter, " is not for full tuning. Fuse the adapter into the model first (grit fuse).")
        adapters.unfreeze_for_full(model, settings.num_layers, settings.frozen)
        return None
    if settings.resume_adapter_file:
        return _resumed_adapter(model, config, Path(settings.resume_adapter_file).expanduser())
    layout = adapters.layout_from(settings.fine_tune_type, settings.num_layers, settings.lora_parameters)
    if not layout.keys:
        keys = adapters.choose_keys(model, experts=settings.adapt_experts, router=settings.adapt_router)
        layout = replace(layout, keys=keys)
    adapters.attach_adapter(model, layout)
    return layout


def _resumed_adapter(model: Any, config: Mapping[str, Any], folder: Path) -> AdapterLayout:
    adapter = read_adapter(folder)
    if adapter.layout is None:
        raise AdapterError(f"{folder} holds fully tuned weights, not an adapter. Fuse it first (grit fuse).")
    check_base(adapter, model, config)
    adapter = complete(adapter, model)
    assert adapter.layout is not None
    # What mlx-lm's default adapts is spelled out, so that the run's own adapter says it.
    layout = replace(adapter.layout, keys=adapter.layout.keys or keys_of(model, adapter))
    model.freeze()
    attach(model, adapter)
    return layout


def _routers(loaded: LoadedModel, settings: TrainingSettings) -> tuple[Routers | None, float]:
    factor = settings.router_factor
    if factor is None:
        # Hugging Face's default for Mixtral; its checkpoints carry it.
        factor = float(loaded.config.get("router_aux_loss_coef") or 0.0)
    experts = loaded.config.get("num_experts_per_tok")
    if not factor or not experts or not settings.generates or not find_routers(loaded.model):
        return None, 0.0
    return Routers(loaded.model, int(experts)), factor


def data_folder(settings: TrainingSettings) -> Path:
    """Where the data is.

    Raises:
        ArgumentError: no data is named.
    """
    if settings.data is None:
        raise ArgumentError("There is nothing to train on: name a folder with ", Option("data"), ".")
    return Path(settings.data).expanduser()


def prepare_data(
    settings: TrainingSettings,
    tokenizer: Any,
    world: World,
    progress: Callable[[str, int], None] | None = None,
    *,
    vector_size: int | None = None,
    prompt_format: str = "grit",
) -> Data:
    """Check and tokenise the data, and hold some out.

    Args:
        settings: which data, and how it is batched.
        tokenizer: a Hugging Face tokenizer.
        world: the processes of the run.
        progress: called with a file's name and its number of rows done.
        vector_size: length of the model's vectors, for checks.
        prompt_format: how the model's instructions precede texts.

    Raises:
        DocumentError: a row cannot be used, or there is no data of a kind that the mode needs.
        ArgumentError: the data does not fill a batch, or a setting does not suit it.
    """
    chosen = {one.name: getattr(settings, one.name) for one in fields(TokenOptions) if one.name != "prompt_format"}
    options = TokenOptions(**chosen, prompt_format=prompt_format)
    kinds = tuple(kind for kind, wanted in ((EMBEDDING, settings.embeds), (GENERATIVE, settings.generates)) if wanted)
    folder, output = data_folder(settings), Path(settings.adapter_path).expanduser()
    load = partial(
        load_files,
        tokenizer=tokenizer,
        options=options,
        cache=Path(settings.cache).expanduser() if settings.cache else output / "token-cache",
        kinds=kinds,
        progress=progress,
        outside=output,
    )
    train = load(folder)
    _check_kinds(train, settings, folder)
    check_weights(settings.data_weights, [part for files in train.values() for part in files])
    if settings.embeds:
        _check_vectors(train[EMBEDDING], settings, vector_size)
    held_out: dict[str, Files] = {}
    if settings.valid:
        held_out = load(Path(settings.valid).expanduser(), splits=(TRAIN, VALID, TEST))
    else:
        if folder.is_dir() and any(split_of(path, folder) == VALID for path in find_data_files(folder)):
            held_out = load(folder, splits=(VALID,))
        for kind in [kind for kind in kinds if not held_out.get(kind)]:
            train[kind], held_out[kind] = split_files(train[kind], settings.val_rows, settings.seed)
    return Data(
        train={kind: _batches(files, kind, settings, world) for kind, files in train.items()},
        held_out={kind: _batches(files, kind, settings) for kind, files in held_out.items() if files},
        rows={kind: _count(files) for kind, files in train.items()},
        keys={part.file.name: part.file.key for files in train.values() for part in files},
    )


def _count(files: Files) -> int:
    return sum(len(part.rows) for part in files)


def _batches(files: Files, kind: str, settings: TrainingSettings, world: World | None = None) -> Any:
    """Batches of one kind: of training data, which the processes of ``world`` share, or of held-out data.

    Held-out files have no weights and are mixed, and a batch may be smaller: their rows are few.
    """
    name = "batch_size" if kind == EMBEDDING else "generative_batch_size"
    batch_size = getattr(settings, name)
    if world is None:
        batch_size = min(batch_size, _count(files))
    else:
        world.check_divides(batch_size, name)
    weights = file_weights(files, settings.data_weights if world else {})
    if kind == GENERATIVE:
        return GenerativeData(files, weights=weights, batch_size=batch_size, seed=settings.seed)
    return EmbeddingData(
        files,
        weights=weights,
        batch_size=batch_size,
        group_size=settings.group_size,
        seed=settings.seed,
        same_file=settings.same_file and world is not None,
    )


def _check_kinds(train: Mapping[str, Files], settings: TrainingSettings, folder: Path) -> None:
    """Refuse data that lacks a kind of rows that the mode needs."""
    for kind, files in train.items():
        if not files:
            other = EMBEDDING if kind == GENERATIVE else GENERATIVE
            instead = (", or use ", Option("mode", other)) if settings.mode == "unified" else ()
            mode = Option("mode", settings.mode)
            raise DocumentError(
                f"{folder} holds no {kind} data, which ", mode, " needs: add some", *instead, ".", path=folder
            )


def _check_vectors(files: Files, settings: TrainingSettings, vector_size: int | None) -> None:
    """Refuse vectors that cannot be compared with the model's, and sizes beyond its own."""
    for size in settings.matryoshka_dims:
        if vector_size is not None and size > vector_size:
            raise ArgumentError(
                Option("matryoshka_dims", size), f" exceeds the model's vectors of {vector_size} numbers."
            )
    if settings.distillation == "none":
        return
    sizes = {part.file.name: part.file.vector_size for part in files if part.file.vector_size}
    if not sizes:
        raise DocumentError(
            Option("distillation", settings.distillation),
            " needs vectors beside the texts (query_vector, pos_vectors), and no data file has them.",
            path=files[0].file.name,
        )
    for name, size in sizes.items():
        if settings.distillation == "cosine" and vector_size is not None and size != vector_size:
            raise ArgumentError(
                f"The vectors of {name} have {size} numbers and the model's {vector_size}: use ",
                *(Option("distillation", "similarity"), ", for which sizes may differ."),
            )
