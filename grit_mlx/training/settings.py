"""All settings of a training run, with what each means: one table for Python, YAML files and flags.

Names are mlx-lm's where it has one. Nothing here imports mlx, so that ``grit --help`` need not wait for it.
"""

from __future__ import annotations

import difflib
import math
import types
import typing
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

from grit_mlx.errors import ArgumentError, ConfigError
from grit_mlx.files.atomic import atomic_path, output_errors
from grit_mlx.model.settings import ATTENTION, POOLING

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
    frozen: list[str] = _is(
        [], "Model", "Weights that full tuning leaves as they are: names or patterns, such as model.norm."
    )
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
        """Bring values to their types, and refuse those that cannot work alone or together."""
        kinds = _kinds()
        for one in fields(self):
            value = _converted(one.name, getattr(self, one.name), kinds[one.name])
            _check(one.name, value, one.metadata)
            object.__setattr__(self, one.name, value)
        _check_lora(self.lora_parameters)
        for name, weight in self.data_weights.items():
            if not _is_number(weight) or weight < 0:
                raise ArgumentError(f"data_weights must be numbers of 0 or more, not {weight!r} for {name!r}.")
        for size in self.matryoshka_dims:
            if not isinstance(size, int) or size < 1:
                raise ArgumentError(f"matryoshka_dims must be whole numbers of 1 or more, not {size!r}.")
        for is_so, problem in self._contradictions():
            if is_so:
                raise ArgumentError(problem)

    def _contradictions(self) -> list[tuple[bool, str]]:
        """Settings that do not go together: whether it is so, and what to say then."""
        distils = self.distillation != "none"
        factors = (
            self.embedding_factor if self.embeds else 0,
            self.generative_factor if self.generates else 0,
            self.distillation_factor if distils else 0,
        )
        return [
            (self.warmup >= 1, f"warmup is a part of the steps and must be below 1, not {self.warmup}."),
            (
                bool(self.from_scratch and (self.model or not self.tokenizer)),
                "from_scratch takes the place of model, and needs a tokenizer.",
            ),
            (
                bool(self.tokenizer and not self.from_scratch),
                "tokenizer goes with from_scratch: a model brings its own.",
            ),
            (not any(factors), "All losses have a factor of 0, so there is nothing to learn."),
            (
                self.embeds and self.batch_size * self.group_size == 1,
                "One query with one passage has nothing to be told apart from: raise batch_size or group_size.",
            ),
            (
                distils and not self.embeds,
                f"distillation = {self.distillation!r} teaches embedding, which mode generative leaves out.",
            ),
            (
                bool(self.evaluate) and not self.embeds,
                "Sets are scored by embedding, which mode generative does not train: leave evaluate out.",
            ),
            (
                bool(self.frozen) and self.fine_tune_type != "full" and self.from_scratch is None,
                "frozen is for full tuning: an adapter trains nothing but itself.",
            ),
            (
                self.best == "score" and not self.evaluate,
                "best = 'score' needs sets to score: name some with evaluate.",
            ),
            (
                not self.steps_per_eval and bool(self.evaluate or self.early_stopping),
                "evaluate and early_stopping need validations: set steps_per_eval above 0.",
            ),
        ]

    @property
    def embeds(self) -> bool:
        """Whether the embedding loss takes part."""
        return self.mode != "generative"

    @property
    def generates(self) -> bool:
        """Whether the generative loss takes part."""
        return self.mode != "embedding"


_LORA = ("rank", "scale", "dropout", "keys")

# mlx counts steps and rows in 32 bits.
_MOST = 2**31 - 1


def settings_from(values: Mapping[str, Any]) -> TrainingSettings:
    """Settings from a parsed YAML file or from flags.

    Raises:
        ArgumentError: an unknown name, with the nearest known one; or a value that cannot work.
    """
    for name in values:
        if name not in _kinds():
            raise ArgumentError(f"There is no setting {name!r}: {_nearest(name, _kinds())}")
    return TrainingSettings(**values)


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
            raise ConfigError(f"{path} has an unknown setting {str(name)!r}: {_nearest(str(name), known)}")
    return values


def write_yaml(path: Path, settings: TrainingSettings) -> None:
    """Write settings as a YAML file that ``read_yaml`` takes.

    Raises:
        OutputError: the file cannot be written.
    """
    import yaml

    with output_errors(str(path.parent)):
        path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as unfinished:
        unfinished.write_text(yaml.safe_dump(asdict(settings), sort_keys=False, allow_unicode=True), encoding="utf-8")


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


@cache
def _kinds() -> dict[str, Any]:
    return typing.get_type_hints(TrainingSettings)


def _check(name: str, value: Any, metadata: Mapping[str, Any]) -> None:
    choices, least = metadata["choices"], metadata["least"]
    for one in value if isinstance(value, list) else [value]:
        if choices and one is not None and one not in choices:
            raise ArgumentError(f"Unknown {name} {one!r}: use one of {', '.join(choices)}.")
    if isinstance(value, float) and not math.isfinite(value):
        raise ArgumentError(f"{name} must be a finite number, not {value}.")
    if least is not None and value is not None and value < least:
        raise ArgumentError(f"{name} must be at least {least:g}, not {value}.")
    if isinstance(value, int) and value > _MOST:
        raise ArgumentError(f"{name} must be at most {_MOST}, not {value}.")


def _check_lora(parameters: Mapping[str, Any]) -> None:
    for name in parameters:
        if name not in _LORA:
            raise ArgumentError(f"lora_parameters has an unknown setting {name!r}: {_nearest(name, _LORA)}")
    rank, scale, dropout, keys = (parameters.get(name) for name in _LORA)
    if type(rank) is not int or rank < 1:
        raise ArgumentError("lora_parameters needs a rank of 1 or more.")
    if not _is_number(scale):
        raise ArgumentError("lora_parameters needs a scale, which is alpha / rank, as a number.")
    if dropout is not None and not (_is_number(dropout) and 0 <= dropout < 1):
        raise ArgumentError(f"lora_parameters needs a dropout from 0 to below 1, not {dropout!r}.")
    if keys is not None and not (isinstance(keys, list) and keys and all(isinstance(key, str) for key in keys)):
        raise ArgumentError(f"lora_parameters needs keys as a list, such as [self_attn.q_proj], not {keys!r}.")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _nearest(name: str, known: Collection[str]) -> str:
    if near := difflib.get_close_matches(name, list(known), 1):
        return f"did you mean {near[0]!r}?"
    return f"known are {', '.join(known)}." if len(known) < 10 else "`grit train --init` writes a file of all."


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
    if plain is list and any(not isinstance(one, typing.get_args(kind)[0]) for one in value):
        raise ArgumentError(f"{name} must be a list of {_NAMES_OF_MANY[typing.get_args(kind)[0]]}, not {value!r}.")
    return value


_NAMES = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    dict: "a table",
    list: "a list",
}
_NAMES_OF_MANY = {str: "texts", int: "whole numbers"}
