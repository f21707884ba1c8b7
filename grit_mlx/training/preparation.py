"""Everything a run needs before its first step: the model with what is trained, the data, the optimizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim

from grit_mlx.datasets.examples import EMBEDDING, GENERATIVE
from grit_mlx.errors import ArgumentError, DocumentError
from grit_mlx.model import device
from grit_mlx.model.loading import LoadedModel, load
from grit_mlx.model.options import ModelChoice
from grit_mlx.text.kinds import stem
from grit_mlx.training import adapters
from grit_mlx.training.adapters import AdapterLayout
from grit_mlx.training.arrays import named_arrays
from grit_mlx.training.data import (
    EmbeddingData,
    Files,
    GenerativeData,
    check_weights,
    file_weights,
    load_files,
    split_files,
)
from grit_mlx.training.distributed import World
from grit_mlx.training.optimizers import Schedule, make_optimizer, make_schedule
from grit_mlx.training.peft import load_any_adapter
from grit_mlx.training.recompute import checkpoint_layers
from grit_mlx.training.router import Routers, find_routers
from grit_mlx.training.scratch import write_random_model
from grit_mlx.training.settings import TrainingSettings
from grit_mlx.training.step import Trainee, TrainingStep
from grit_mlx.training.token_files import TokenOptions, find_data_files

__all__ = ["Data", "Preparation", "is_quantized", "prepare_data", "prepare_model"]


@dataclass(frozen=True)
class Data:
    """The data of a run.

    Attributes:
        embedding: training batches of queries and passages; None where the mode has none.
        generative: training batches of texts; None where the mode has none.
        embedding_valid: held-out batches; None where there are none.
        generative_valid: held-out batches; None where there are none.
        rows: training rows of each kind.
        keys: what the data is, for a resumed run to compare.
    """

    embedding: EmbeddingData | None
    generative: GenerativeData | None
    embedding_valid: EmbeddingData | None
    generative_valid: GenerativeData | None
    rows: Mapping[str, int]
    keys: Mapping[str, str]


@dataclass(frozen=True)
class Preparation:
    """A model that is ready to be trained.

    Attributes:
        loaded: as loading found it, with the settings it will be used with.
        trainee: with its trainable parameters chosen.
        layout: of the adapter; None where all weights are trained.
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
        if self.loaded.projection is not None:
            return self.loaded.projection[0].shape[0]
        return None if self.loaded.shape is None else self.loaded.shape[1]


def prepare_model(settings: TrainingSettings, world: World) -> Preparation:
    """Load or make the model, and choose what is trained.

    Raises:
        GritError: the model, the adapter or a setting cannot be used.
    """
    loaded = _load(settings, world)
    mx.random.seed(settings.seed)
    layout = _choose_trained(loaded.model, settings)
    trainee = Trainee(
        loaded.model, projection=loaded.projection, learn_temperature=settings.learn_temperature and settings.embeds
    )
    routers, router_factor = _routers(loaded, settings)
    if settings.grad_checkpoint:
        checkpoint_layers(loaded.model.layers, routers)
    compiled = device.current_device().kind != "cpu" if settings.compile is None else settings.compile
    common: dict[str, Any] = {
        "layers": None if loaded.shape is None else loaded.shape[0],
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
        if not (name / "config.json").exists():  # on a machine of their own: the same seed, the same weights
            write_initial()
    # Full tuning writes the whole model, so there the head stays even where it is not trained.
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
    chosen = loaded.settings.override(**{name: getattr(settings, name) for name in names})
    return replace(loaded, settings=chosen)


def _choose_trained(model: Any, settings: TrainingSettings) -> AdapterLayout | None:
    if settings.from_scratch or settings.fine_tune_type == "full":
        if settings.resume_adapter_file:
            raise ArgumentError("An adapter is no start for full tuning. Fuse it into the model first (grit fuse).")
        adapters.unfreeze_for_full(model, settings.num_layers, settings.frozen)
        return None
    if settings.resume_adapter_file:
        layout, weights = load_any_adapter(Path(settings.resume_adapter_file).expanduser(), len(model.layers))
        adapters.attach_adapter(model, layout)
        adapters.load_weights(model, weights, settings.resume_adapter_file)
        return layout
    keys = settings.lora_parameters.get("keys") or adapters.choose_keys(
        model, experts=settings.adapt_experts, router=settings.adapt_router
    )
    layout = AdapterLayout(
        fine_tune_type=settings.fine_tune_type,
        num_layers=settings.num_layers,
        rank=settings.lora_parameters["rank"],
        scale=float(settings.lora_parameters["scale"]),
        dropout=float(settings.lora_parameters.get("dropout", 0.0)),
        keys=tuple(keys),
    )
    adapters.attach_adapter(model, layout)
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


def prepare_data(
    settings: TrainingSettings,
    tokenizer: Any,
    world: World,
    progress: Callable[[str, int], None] | None = None,
    *,
    vector_size: int | None = None,
) -> Data:
    """Check and tokenise the data, and hold some out.

    Args:
        settings: which data, and how it is batched.
        tokenizer: a Hugging Face tokenizer.
        world: the processes of the run.
        progress: called with a file's name and its number of rows done.
        vector_size: length of the model's vectors, for checks.

    Raises:
        DocumentError: a row cannot be used, or there is no data of a kind that the mode needs.
        ArgumentError: too little data for a batch, or a setting that does not suit it.
    """
    if settings.data is None:
        raise ArgumentError("There is nothing to train on: name a folder of data.")
    cache = (
        Path(settings.cache).expanduser()
        if settings.cache
        else Path(settings.adapter_path).expanduser() / "token-cache"
    )
    options = TokenOptions(
        query_max_length=settings.query_max_length,
        passage_max_length=settings.passage_max_length,
        max_seq_length=settings.max_seq_length,
        label_mask=settings.label_mask,
    )
    kinds = tuple(kind for kind, wanted in ((EMBEDDING, settings.embeds), (GENERATIVE, settings.generates)) if wanted)
    folder = Path(settings.data).expanduser()
    load = partial(
        load_files,
        tokenizer=tokenizer,
        options=options,
        cache=cache,
        kinds=kinds,
        progress=progress,
        outside=Path(settings.adapter_path).expanduser(),
    )
    train = load(folder)
    for kind in kinds:
        if not train[kind]:
            other = EMBEDDING if kind == GENERATIVE else GENERATIVE
            instead = f", or use mode {other}" if settings.mode == "unified" else ""
            raise DocumentError(
                f"{folder} holds no {kind} data, which mode {settings.mode} needs: add some{instead}.", path=folder
            )
    check_weights(settings.data_weights, [part for files in train.values() for part in files])
    if settings.embeds:
        _check_vectors(train[EMBEDDING], settings, vector_size)
    held_out: dict[str, Files] = {}
    if settings.valid:
        held_out = load(Path(settings.valid).expanduser())
    elif folder.is_dir() and any(stem(path) == "valid" for path in find_data_files(folder)):
        held_out = load(folder, held_out=True)
    if not settings.valid:
        for kind in [kind for kind in kinds if not held_out.get(kind)]:
            train[kind], held_out[kind] = split_files(train[kind], settings.val_rows, settings.seed)
    return Data(
        embedding=_embedding(train.get(EMBEDDING, []), settings, settings.batch_size, world),
        generative=_generative(train.get(GENERATIVE, []), settings, settings.generative_batch_size, world),
        embedding_valid=_embedding(
            held_out.get(EMBEDDING, []), settings, _rows(held_out, EMBEDDING, settings.batch_size)
        ),
        generative_valid=_generative(
            held_out.get(GENERATIVE, []), settings, _rows(held_out, GENERATIVE, settings.generative_batch_size)
        ),
        rows={kind: sum(len(part.rows) for part in files) for kind, files in train.items()},
        keys={part.file.name: part.file.key for files in train.values() for part in files},
    )


def _rows(files: Mapping[str, Files], kind: str, batch_size: int) -> int:
    return min(batch_size, sum(len(part.rows) for part in files.get(kind, [])))


def _embedding(
    files: Files, settings: TrainingSettings, batch_size: int, world: World | None = None
) -> EmbeddingData | None:
    if not files or not batch_size:
        return None
    if world is not None:
        world.check_divides(batch_size, "batch_size")
    return EmbeddingData(
        files,
        weights=file_weights(files, settings.data_weights if world else {}),
        batch_size=batch_size,
        group_size=settings.group_size,
        seed=settings.seed,
        # Held-out batches mix files: their number is small.
        same_file=settings.same_file and world is not None,
    )


def _check_vectors(files: Files, settings: TrainingSettings, vector_size: int | None) -> None:
    """Refuse vectors that cannot be compared with the model's, and sizes beyond its own."""
    for size in settings.matryoshka_dims:
        if vector_size is not None and size > vector_size:
            raise ArgumentError(f"matryoshka_dims names {size}, and the model's vectors have {vector_size} numbers.")
    if settings.distillation == "none":
        return
    sizes = {part.file.name: part.file.vector_size for part in files if part.file.vector_size}
    if not sizes:
        raise DocumentError(
            "distillation needs vectors beside the texts (query_vector, pos_vectors), and no data file has them.",
            path=files[0].file.name,
        )
    for name, size in sizes.items():
        if settings.distillation == "cosine" and vector_size is not None and size != vector_size:
            raise ArgumentError(
                f"The vectors of {name} have {size} numbers and the model's {vector_size}: use "
                "distillation = 'similarity', for which sizes may differ."
            )


def _generative(
    files: Files, settings: TrainingSettings, batch_size: int, world: World | None = None
) -> GenerativeData | None:
    if not files or not batch_size:
        return None
    if world is not None:
        world.check_divides(batch_size, "generative_batch_size")
    weights = file_weights(files, settings.data_weights if world else {})
    return GenerativeData(files, weights=weights, batch_size=batch_size, seed=settings.seed)


def is_quantized(model: Any) -> bool:
    """Whether some weights are packed."""
    return any(name.endswith(".scales") for name, _ in named_arrays(model.parameters()))
