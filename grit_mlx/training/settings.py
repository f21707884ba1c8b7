"""All settings of a training run, with what each means: one table for Python, YAML files and flags.

Names are mlx-lm's where it has one. Nothing here imports mlx, so that ``grit --help`` need not wait for it.
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from grit_mlx.errors import ArgumentError, ConfigError, OutputError
from grit_mlx.settings import ATTENTION, POOLING

__all__ = ["MODES", "TrainingSettings", "commented_yaml", "groups", "read_yaml", "settings_from", "write_yaml"]

MODES = ("unified", "embedding", "generative")

# mlx-lm's.
FINE_TUNE_TYPES = ("lora", "dora", "full")

# "mixed": mean over the tokens of the batch; "token": sum over the tokens / rows, so long answers count for more.
GENERATIVE_KINDS = ("mixed", "token")

# Which tokens of a conversation are learned: those of every answer; those the official code learns; those of
# the last answer only, all before it being its prefix.
LABEL_MASKS = ("exact", "official", "prefix")

# See ``optimizers``.
OPTIMIZERS = ("adamw", "adam", "adafactor", "lion", "muon", "sgd")
SCHEDULES = ("linear", "cosine", "constant")
DISTILLATIONS = ("none", "cosine", "similarity")
REPORTERS = ("tensorboard", "wandb")


def _is(default: Any, group: str, text: str, *, choices: tuple[str, ...] = (), least: float | None = None) -> Any:
    metadata = {"group": group, "help": text, "choices": choices, "least": least}
    if isinstance(default, dict | list):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """A run of ``training.train``. Each field's ``help`` says what it means.

    Raises:
        ArgumentError: names the setting that cannot work and what it may be.
    """

    model: str | None = _is(None, "Model", "Folder, hub id or short name of the model to tune.")
    data: str | None = _is(None, "Data", "Folder of .jsonl or .jsonl.gz files, or one such file.")
    adapter_path: str = _is("adapters", "Output", "Folder that the run writes: adapter or model, checkpoints, log.")
    mode: str = _is("unified", "Model", "What to tune for.", choices=MODES)

    fine_tune_type: str = _is("lora", "Model", "LoRA, DoRA or all weights.", choices=FINE_TUNE_TYPES)
    num_layers: int = _is(-1, "Model", "Tune only the last so many blocks; -1 for all.", least=-1)
    lora_parameters: dict[str, Any] = _is(
        {"rank": 16, "scale": 4.0, "dropout": 0.0},
        "Model",
        "rank, scale (alpha / rank), dropout, and keys: names of the adapted layers (default: all linear ones).",
    )
    adapt_experts: bool = _is(False, "Model", "LoRA on the experts of a mixture as well.")
    adapt_router: bool = _is(False, "Model", "LoRA on the routers of a mixture as well.")
    resume_adapter_file: str | None = _is(
        None, "Model", "Start from this adapter: a folder, mlx-lm's layout or PEFT's."
    )
    from_scratch: str | None = _is(None, "Model", "Start from random weights: a config.json.")
    tokenizer: str | None = _is(None, "Model", "Folder of the tokenizer, with from_scratch.")
    dtype: str = _is(
        "auto", "Model", "auto, stored, float32, float16 or bfloat16. On a CPU auto widens quantised weights."
    )
    pooling: str | None = _is(None, "Model", "Default: the model's own, else mean.", choices=POOLING)
    attn: str | None = _is(None, "Model", "Default: the model's own, else bbcc.", choices=tuple(ATTENTION))
    max_length: int | None = _is(
        None, "Model", "Tokens that the tuned model reads of a text when it embeds. Default: as before.", least=2
    )
    query_instruction: str | None = _is(
        None, "Model", "What the tuned model embeds search queries with. Default: as before."
    )
    trust_remote_code: bool = _is(False, "Model", "Run Python code that comes with the model.")

    valid: str | None = _is(None, "Data", "Folder of held-out data; default: valid.jsonl files in data, or val_rows.")
    val_rows: int = _is(64, "Data", "Rows of each kind to hold out where there is no other held-out data.", least=0)
    val_batches: int = _is(25, "Data", "Most batches of held-out data of a validation.", least=1)
    data_weights: dict[str, float] = _is({}, "Data", "How often an epoch takes each row, by file name. Default 1.")
    same_file: bool = _is(True, "Data", "Embedding batches of one file each, as far as possible.")
    label_mask: str = _is("exact", "Data", "Which tokens of a chat are learned.", choices=LABEL_MASKS)
    query_max_length: int = _is(256, "Data", "Tokens of a query, instruction included.", least=2)
    passage_max_length: int = _is(512, "Data", "Tokens of a passage.", least=2)
    max_seq_length: int = _is(1024, "Data", "Tokens of a generative row.", least=2)
    cache: str | None = _is(None, "Data", "Where tokens are kept. Default: token-cache beside adapter_path.")

    iters: int = _is(1000, "Optimisation", "Steps.", least=1)
    batch_size: int = _is(32, "Optimisation", "Queries of a step, all of whose passages are negatives.", least=1)
    group_size: int = _is(2, "Optimisation", "Passages of each query: a positive and negatives.", least=1)
    generative_batch_size: int = _is(8, "Optimisation", "Generative rows of a step.", least=1)
    chunk_size: int = _is(32, "Optimisation", "Most rows that are computed at once (GradCache).", least=1)
    chunk_tokens: int = _is(4096, "Optimisation", "Most tokens that are computed at once.", least=1)
    learning_rate: float = _is(1e-4, "Optimisation", "Highest learning rate.", least=0)
    lr_schedule: str = _is("linear", "Optimisation", "How it falls.", choices=SCHEDULES)
    warmup: float = _is(0.03, "Optimisation", "Part of the steps in which it rises.", least=0)
    optimizer: str = _is("adamw", "Optimisation", "One of mlx's.", choices=OPTIMIZERS)
    optimizer_config: dict[str, Any] = _is({}, "Optimisation", "Further arguments of mlx's optimizer.")
    weight_decay: float = _is(0.0, "Optimisation", "For optimizers that have one.", least=0)
    max_grad_norm: float | None = _is(1.0, "Optimisation", "Clip gradients to this norm; null for no limit.", least=0)
    seed: int = _is(0, "Optimisation", "Where all randomness comes from.", least=0)
    grad_checkpoint: bool = _is(False, "Optimisation", "Recompute layers for the gradient: less memory, more time.")
    compile: bool | None = _is(None, "Optimisation", "mx.compile; default: on GPUs, where it helps.")

    temperature: float = _is(0.02, "Losses", "What similarities are divided by.", least=1e-6)
    learn_temperature: bool = _is(False, "Losses", "Let it be learned, from that value on.")
    embedding_factor: float = _is(1.0, "Losses", "Weight of the embedding loss.", least=0)
    generative_factor: float = _is(1.0, "Losses", "Weight of the generative loss.", least=0)
    generative_loss: str = _is(
        "mixed", "Losses", "Mean over tokens, or sum over tokens / rows.", choices=GENERATIVE_KINDS
    )
    router_factor: float | None = _is(
        None,
        "Losses",
        "Weight of a mixture's load-balancing loss; default: router_aux_loss_coef of its config.",
        least=0,
    )
    symmetric: bool = _is(False, "Losses", "Positives find their queries as well.")
    drop_duplicates: bool = _is(True, "Losses", "A passage equal to the query's positive is no negative.")
    false_negative_margin: float | None = _is(
        None, "Losses", "Leave out negatives whose similarity is above the positive's plus this."
    )
    matryoshka_dims: list[int] = _is([], "Losses", "Also train the vectors cut to these sizes.")
    distillation: str = _is("none", "Losses", "Learn from vectors given with the data.", choices=DISTILLATIONS)
    distillation_factor: float = _is(1.0, "Losses", "Weight of that loss.", least=0)

    steps_per_report: int = _is(10, "Output", "Steps between two lines of the log.", least=1)
    steps_per_eval: int = _is(200, "Output", "Steps between two validations; 0 for none.", least=0)
    save_every: int = _is(200, "Output", "Steps between two checkpoints.", least=1)
    keep_last: int = _is(2, "Output", "Checkpoints that are kept, beside the best.", least=1)
    evaluate: list[str] = _is([], "Output", "Sets to score at each validation: BEIR folders, or STS files (.csv).")
    best: str = _is("loss", "Output", "What the best checkpoint is chosen by.", choices=("loss", "score"))
    early_stopping: int = _is(0, "Output", "Stop after so many validations without a better one; 0 never.", least=0)
    resume: bool = _is(False, "Output", "Go on from the last checkpoint in adapter_path.")
    report_to: list[str] = _is([], "Output", "tensorboard, wandb.", choices=REPORTERS)
    project_name: str = _is("grit-mlx", "Output", "Name for wandb.")

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        for one in fields(self):
            _check(one.name, getattr(self, one.name), one.metadata)
        if not isinstance(self.lora_parameters.get("rank"), int) or self.lora_parameters["rank"] < 1:
            raise ArgumentError("lora_parameters needs a rank of 1 or more.")
        for name in self.lora_parameters:
            if name not in _LORA:
                raise ArgumentError(_unknown("lora_parameters", name, _LORA))
        if "scale" not in self.lora_parameters:
            raise ArgumentError("lora_parameters needs a scale, which is alpha / rank.")
        if self.warmup >= 1:
            raise ArgumentError(f"warmup is a part of the steps and must be below 1, not {self.warmup}.")
        if self.from_scratch and (self.model or not self.tokenizer):
            raise ArgumentError("from_scratch takes the place of model, and needs a tokenizer.")

    @property
    def embeds(self) -> bool:
        """Whether the embedding loss takes part."""
        return self.mode != "generative"

    @property
    def generates(self) -> bool:
        """Whether the generative loss takes part."""
        return self.mode != "embedding"


_LORA = ("rank", "scale", "dropout", "keys")


def settings_from(values: Mapping[str, Any]) -> TrainingSettings:
    """Settings from a parsed YAML file or from flags.

    Raises:
        ArgumentError: an unknown name, with the nearest known one; or a value that cannot work.
    """
    kinds = typing.get_type_hints(TrainingSettings)
    for name in values:
        if name not in kinds:
            raise ArgumentError(_unknown("It", name, tuple(kinds)))
    return TrainingSettings(**{name: _converted(name, value, kinds[name]) for name, value in values.items()})


def read_yaml(path: Path) -> dict[str, Any]:
    """The contents of a settings file, names checked.

    Raises:
        ConfigError: it cannot be read, or holds an unknown name.
    """
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"Cannot read {path}: {getattr(error, 'strerror', None) or error}.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold names and values, such as 'iters: 100'.")
    known = [one.name for one in fields(TrainingSettings)]
    for name in values:
        if name not in known:
            raise ConfigError(_unknown(str(path), str(name), known))
    return values


def write_yaml(path: Path, settings: TrainingSettings) -> None:
    """Write settings as a YAML file that ``read_yaml`` takes.

    Raises:
        OutputError: the file cannot be written.
    """
    import yaml

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(asdict(settings), sort_keys=False, allow_unicode=True), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"Cannot write {path}: {error.strerror}.") from error


def groups() -> dict[str, list[Any]]:
    """The fields of ``TrainingSettings``, by what they are about."""
    result: dict[str, list[Any]] = {}
    for one in fields(TrainingSettings):
        result.setdefault(one.metadata["group"], []).append(one)
    return result


def commented_yaml(**values: Any) -> str:
    """A settings file to start from: each setting with its meaning; those not in ``values`` are commented out."""
    import yaml

    defaults = asdict(TrainingSettings())
    lines = ["# Settings of `grit train --config FILE`. Flags go before these, and these before the defaults shown."]
    for group, members in groups().items():
        lines += ["", f"# {group}"]
        for one in members:
            choices = one.metadata["choices"]
            lines.append(f"# {one.metadata['help']}" + (f" ({', '.join(choices)})" if choices else ""))
            value = values.get(one.name, defaults[one.name])
            shown = yaml.safe_dump(value, default_flow_style=True, width=1000).split("\n")[0]
            text = f"{one.name}: {shown}"
            lines.append(text if one.name in values else f"# {text}")
    return "\n".join(lines) + "\n"


def _check(name: str, value: Any, metadata: Mapping[str, Any]) -> None:
    choices, least = metadata["choices"], metadata["least"]
    for one in value if isinstance(value, list) else [value]:
        if choices and one is not None and one not in choices:
            raise ArgumentError(f"Unknown {name} {one!r}: use one of {', '.join(choices)}.")
    if least is not None and value is not None and value < least:
        raise ArgumentError(f"{name} must be at least {least:g}, not {value}.")


def _unknown(where: str, name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, list(known), 1)
    hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(known))}."
    return f"{where} has an unknown setting {name!r}: {hint}"


def _converted(name: str, value: Any, kind: Any) -> Any:
    """A value as its type; YAML reads 1e-4 as text, and 1 where 1.0 is meant."""
    options = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if value is None and type(None) in options:
        return None
    plain = next(option for option in options if option is not type(None))
    plain = typing.get_origin(plain) or plain
    if plain is float and isinstance(value, str | int) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            pass
    if not isinstance(value, plain) or (plain is not bool and isinstance(value, bool)):
        raise ArgumentError(f"{name} must be {_NAMES[plain]}, not {value!r}.")
    return value


_NAMES = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    dict: "a table",
    list: "a list",
}
