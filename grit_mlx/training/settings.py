"""All settings of a training run, with what each means: one table for Python, YAML files and flags.

Names are mlx-lm's where it has one. Nothing here imports mlx, so ``grit train --help`` need not wait for it.
"""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass, fields
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from grit_mlx.errors import ArgumentError, ConfigError, Option, unreadable
from grit_mlx.files.atomic import atomic_path, output_errors
from grit_mlx.model.options import DTYPES, MODES
from grit_mlx.model.settings import ATTENTION, POOLING
from grit_mlx.options import check, nearest, option, spec_of
from grit_mlx.training.mlx_lm_config import from_mlx_lm, is_mlx_lm

__all__ = ["TrainingSettings", "commented_yaml", "read_yaml", "write_yaml", "yaml_values"]

# "mixed": mean over the tokens of the batch; "token": sum over the tokens / rows, so long answers count for more.
GENERATIVE_KINDS = ("mixed", "token")

# Which tokens of a conversation are learned: those of every answer; those the official code learns; those of
# the last answer only, all before it being its prefix.
LABEL_MASKS = ("exact", "official", "prefix")

# See ``optimizers``.
OPTIMIZERS = ("adamw", "adam", "adafactor", "lion", "muon", "sgd")
SCHEDULES = ("linear", "cosine", "constant")

_model, _data, _optimisation, _losses, _output = (
    partial(option, heading=heading) for heading in ("Model", "Data", "Optimisation", "Losses", "Output")
)


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """A run of ``training.train``. Each field's ``help`` says what it means.

    Raises:
        ArgumentError: names the setting that cannot work and what it may be.
    """

    model: str | None = _model(None, "Model folder, hub id or short name to tune.", flags=("--model", "-m"))
    mode: str = _model("unified", "Train embedding, generation or both.", choices=MODES)
    fine_tune_type: str = _model(
        "lora", "Train a LoRA or DoRA adapter, or all weights.", choices=("lora", "dora", "full")
    )
    num_layers: int = _model(-1, "Tune only this many of the last blocks; -1 for all.", minimum=-1)
    frozen: list[str] = _model([], "With full tuning: modules to freeze, by name or pattern, such as model.norm.")
    lora_parameters: dict[str, Any] = _model(
        {"rank": 16, "scale": 4.0, "dropout": 0.0},
        "rank, scale (alpha / rank), dropout, and keys: names of the adapted layers (default: all linear ones).",
    )
    adapt_experts: bool = _model(False, "Also adapt the experts of a mixture.")
    adapt_router: bool = _model(False, "Also adapt the routers of a mixture.")
    resume_adapter_file: str | None = _model(None, "Start from this adapter folder, in mlx-lm's layout or PEFT's.")
    from_scratch: str | None = _model(None, "Start from random weights, with this config.json.")
    tokenizer: str | None = _model(None, "Tokenizer folder, for a model trained from scratch.")
    dtype: str = _model(
        "auto",
        "Data type of the weights; 'stored' keeps it; 'auto' is float32 on a CPU and 'stored' on a GPU.",
        choices=DTYPES,
        metavar="TYPE",
    )
    pooling: str | None = _model(
        None, "How token states become a vector. Default: the model's setting, else mean.", choices=POOLING
    )
    attn: str | None = _model(
        None,
        "Attention when embedding: bidirectional (bbcc) or causal (cccc). Default: the model's setting, else bbcc.",
        choices=tuple(ATTENTION),
        metavar="bbcc|cccc",
    )
    max_length: int | None = _model(
        None, "Maximum number of tokens that the tuned model embeds of a text. Default: the model's setting.", minimum=2
    )
    query_instruction: str | None = _model(None, "Instruction for embedding queries. Default: the model's setting.")
    trust_remote_code: bool = _model(False, "Run Python code that comes with the model.")

    data: str | None = _data(None, "Folder of .jsonl or .jsonl.gz files, or one such file.")
    valid: str | None = _data(None, "Held-out data. Default: valid.jsonl files in the data, else rows split off it.")
    val_rows: int = _data(64, "Rows of each kind to split off if there is no held-out data.", minimum=0)
    val_batches: int = _data(25, "Maximum number of held-out batches per validation.", minimum=1)
    data_weights: dict[str, float] = _data({}, "How often an epoch takes each row, by file; 1 if not given.", minimum=0)
    same_file: bool = _data(True, "Take the rows of an embedding batch from one file if possible.")
    label_mask: str = _data("exact", "Which tokens of a chat to learn.", choices=LABEL_MASKS)
    query_max_length: int = _data(256, "Maximum number of tokens per query, instruction included.", minimum=2)
    passage_max_length: int = _data(512, "Maximum number of tokens per passage.", minimum=2)
    max_seq_length: int = _data(1024, "Maximum number of tokens per generative row.", minimum=2)
    cache: str | None = _data(None, "Folder for tokenised data. Default: token-cache in the output folder.")

    iters: int = _optimisation(1000, "Number of steps.", minimum=1)
    batch_size: int = _optimisation(32, "Queries per step; all their passages serve as negatives.", minimum=1)
    group_size: int = _optimisation(2, "Passages per query: one positive, the rest negatives.", minimum=1)
    generative_batch_size: int = _optimisation(8, "Generative rows per step.", minimum=1)
    chunk_size: int = _optimisation(32, "Maximum number of rows computed at once (GradCache).", minimum=1)
    chunk_tokens: int = _optimisation(4096, "Maximum number of tokens computed at once.", minimum=1)
    learning_rate: float = _optimisation(1e-4, "Peak learning rate.", minimum=0)
    lr_schedule: str = _optimisation("linear", "Decay after warm-up.", choices=SCHEDULES)
    warmup: float = _optimisation(0.03, "Fraction of the steps used for warm-up.", minimum=0, below=1)
    optimizer: str = _optimisation("adamw", "Optimizer, one of mlx's.", choices=OPTIMIZERS)
    optimizer_config: dict[str, Any] = _optimisation({}, "Further arguments of the optimizer.")
    weight_decay: float = _optimisation(0.0, "Weight decay, for optimizers that have one.", minimum=0)
    max_grad_norm: float | None = _optimisation(1.0, "Clip gradients to this norm; 0 for no clipping.", minimum=0)
    seed: int = _optimisation(0, "Random seed.", minimum=0)
    grad_checkpoint: bool = _optimisation(False, "Recompute layers in the backward pass: less memory, more time.")
    compile: bool | None = _optimisation(None, "Use mx.compile. Default: on Metal; CUDA compiles for each shape.")

    temperature: float = _losses(0.02, "Temperature, by which similarities are divided.", minimum=1e-6)
    learn_temperature: bool = _losses(False, "Learn the temperature, starting from that value.")
    embedding_factor: float = _losses(1.0, "Weight of the embedding loss.", minimum=0)
    generative_factor: float = _losses(1.0, "Weight of the generative loss.", minimum=0)
    generative_loss: str = _losses(
        "mixed", "Mean over tokens (mixed), or sum over tokens / rows (token).", choices=GENERATIVE_KINDS
    )
    router_factor: float | None = _losses(
        None, "Weight of a mixture's load-balancing loss. Default: router_aux_loss_coef of its config.", minimum=0
    )
    symmetric: bool = _losses(False, "Also rank the queries for each positive.")
    drop_duplicates: bool = _losses(True, "Ignore negatives that equal the query's positive.")
    false_negative_margin: float | None = _losses(
        None, "Ignore negatives whose similarity exceeds the positive's by more than this."
    )
    matryoshka_dims: list[int] = _losses([], "Also train the vectors truncated to these sizes.", minimum=1)
    distillation: str = _losses(
        "none", "Learn from vectors given with the data.", choices=("none", "cosine", "similarity")
    )
    distillation_factor: float = _losses(1.0, "Weight of the distillation loss.", minimum=0)

    adapter_path: str = _output("adapters", "Folder for the adapter or model, checkpoints and log.")
    steps_per_report: int = _output(10, "Steps between log lines.", minimum=1)
    steps_per_eval: int = _output(200, "Steps between validations; 0 for none.", minimum=0)
    save_every: int = _output(200, "Steps between checkpoints.", minimum=1)
    keep_last: int = _output(2, "Number of checkpoints to keep, besides the best.", minimum=1)
    evaluate: list[str] = _output([], "Sets to score at each validation: BEIR folders, or STS files (.csv).")
    best: str = _output("loss", "What the best checkpoint is chosen by.", choices=("loss", "score"))
    early_stopping: int = _output(0, "Stop after this many validations without improvement; 0: never.", minimum=0)
    resume: bool = _output(False, "Resume from the last checkpoint in the output folder.")
    report_to: list[str] = _output([], "Also log to these.", choices=("tensorboard", "wandb"))
    project_name: str = _output("grit-mlx", "Project name in Weights & Biases.")

    def __post_init__(self) -> None:
        check(self)
        self._check_together()
        self._check_lora()

    def _check_together(self) -> None:
        """Refuse settings that do not go together."""
        distils = self.distillation != "none"
        adapts = self.fine_tune_type != "full" and not self.from_scratch
        factors = (
            self.embedding_factor if self.embeds else 0,
            self.generative_factor if self.generates else 0,
            self.distillation_factor if distils else 0,
        )
        mode, evaluate, scratch = Option("mode", self.mode), Option("evaluate"), Option("from_scratch")
        model, tokenizer, distillation = Option("model"), Option("tokenizer"), Option("distillation", self.distillation)
        validations, score, size = Option("steps_per_eval"), Option("best", "score"), Option("batch_size")
        _refuse(self.from_scratch and self.model, scratch, " takes the place of ", model, ": leave out one of them.")
        _refuse(self.from_scratch and not self.tokenizer, scratch, " needs a ", tokenizer, ".")
        _refuse(self.tokenizer and not self.from_scratch, tokenizer, " needs ", scratch, ": a model brings its own.")
        _refuse(self.frozen and adapts, Option("frozen"), " is for full tuning: an adapter trains nothing but itself.")
        _refuse(not any(factors), "All losses have a factor of 0, so there is nothing to learn.")
        _refuse(
            self.embeds and self.batch_size * self.group_size == 1,
            *("One query with one passage has no negatives: raise ", size, " or ", Option("group_size"), "."),
        )
        _refuse(distils and not self.embeds, distillation, " trains embedding, which ", mode, " leaves out.")
        _refuse(self.evaluate and not self.embeds, evaluate, " scores embeddings, which ", mode, " does not train.")
        _refuse(
            self.best == "score" and not self.evaluate, score, " needs sets to score: name some with ", evaluate, "."
        )
        _refuse(
            not self.steps_per_eval and (self.evaluate or self.early_stopping),
            *(evaluate, " and ", Option("early_stopping"), " need validations: set ", validations, " above 0."),
        )

    def _check_lora(self) -> None:
        """Refuse entries of ``lora_parameters`` that mlx-lm does not know or that cannot work."""
        table, known = Option("lora_parameters"), ("rank", "scale", "dropout", "keys")
        for name in self.lora_parameters:
            _refuse(name not in known, table, f" has no entry {name!r}: {nearest(str(name), known)}")
        rank, scale, dropout, keys = map(self.lora_parameters.get, known)
        part = dropout is None or (_is_number(dropout) and 0 <= dropout < 1)
        names = keys is None or (isinstance(keys, list) and keys and all(isinstance(key, str) for key in keys))
        _refuse(type(rank) is not int or rank < 1, table, " needs a rank of 1 or more.")
        _refuse(not _is_number(scale), table, " needs a scale, which is alpha / rank, as a number.")
        _refuse(not part, table, f" needs a dropout from 0 to below 1, not {dropout!r}.")
        _refuse(not names, table, f" needs keys as a list, such as [self_attn.q_proj], not {keys!r}.")

    @property
    def embeds(self) -> bool:
        """Whether the embedding loss takes part."""
        return self.mode != "generative"

    @property
    def generates(self) -> bool:
        """Whether the generative loss takes part."""
        return self.mode != "embedding"


def _refuse(is_wrong: object, *message: str | Option) -> None:
    if is_wrong:
        raise ArgumentError(*message)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def read_yaml(path: Path) -> dict[str, Any]:
    """The contents of a settings file, names checked.

    Raises:
        ConfigError: it cannot be read, or holds an unknown name.
    """
    values = yaml_values(path, example="iters: 100")
    if is_mlx_lm(values):
        values = from_mlx_lm(values, path)
    known = [one.name for one in fields(TrainingSettings)]
    for name in values:
        if name not in known:
            raise ConfigError(f"{path} has an unknown setting {str(name)!r}: {nearest(str(name), known)}")
    return values


def yaml_values(path: Path, *, example: str) -> dict[str, Any]:
    """The names and values of a YAML file.

    Args:
        path: the file.
        example: of a line, for messages.

    Raises:
        ConfigError: it cannot be read, or holds something else.
    """
    import yaml

    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _loader()) or {}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(unreadable(path, error)) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold names and values, such as '{example}'.")
    return values


def _loader() -> Any:
    """A safe loader for which 1e-5 is a number, as it is for people and for mlx-lm."""
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc] # yaml has no types
        pass

    exponent = re.compile(r"[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", exponent, list("-+0123456789"))
    return Loader


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


def commented_yaml(**values: Any) -> str:
    """A settings file to start from: each setting with its meaning; those not in ``values`` are commented out."""
    import yaml

    defaults = asdict(TrainingSettings())
    lines = ["# Settings of `grit train --config FILE`. Flags override them; the values shown are the defaults."]
    for heading, members in groupby(fields(TrainingSettings), key=lambda one: spec_of(one).heading):
        lines += ["", f"# {heading}"]
        for one in members:
            choices = ", ".join(spec_of(one).choices)
            lines.append(f"# {spec_of(one).help}" + (f" ({choices})" if choices else ""))
            value = values.get(one.name, defaults[one.name])
            shown = yaml.safe_dump(value, default_flow_style=True, width=1000).split("\n")[0]
            lines.append(f"{'' if one.name in values else '# '}{one.name}: {shown}")
    return "\n".join(lines) + "\n"
