"""What can be chosen when a model is loaded, embeds or generates. One table each; see ``grit_mlx.options``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from grit_mlx.errors import ArgumentError, Option, first_line
from grit_mlx.model.settings import ATTENTION, POOLING, ROLES
from grit_mlx.options import check, check_unicode, option

__all__ = [
    "DTYPES",
    "LONG_TEXTS",
    "MODES",
    "SPLITS",
    "EmbeddingOptions",
    "GenerationOptions",
    "ModelChoice",
    "Sharding",
]

# "embedding" leaves the language-model head out of memory; "generative" skips the proof of both attention modes.
MODES = ("unified", "embedding", "generative")

# "auto": float32 on a CPU, as stored on a GPU.
DTYPES = ("auto", "stored", "float32", "float16", "bfloat16")

# How one model is split among processes: each of its layers, or layer by layer.
SPLITS = ("tensor", "pipeline")

# What to do with a text of more than max_length tokens.
LONG_TEXTS = ("truncate", "average", "refuse")


@dataclass(frozen=True)
class ModelChoice:
    """Which model to load and how to use it: whatever takes a model by name takes one of these.

    ``pooling``, ``attn`` and ``normalized`` override the model's own settings (``grit.json``).

    Raises:
        ArgumentError: an unknown dtype, pooling or attn.
    """

    heading: ClassVar[str] = "Model"

    model: str | Path | None = option(
        None,
        "A model folder, a GGUF file, a hub id such as GritLM/GritLM-7B, or a short name such as gritlm-7b. "
        "Default: $GRIT_MODEL, else what 'grit models use' chose, else the built-in model.",
        flags=("--model", "-m"),
        metavar="NAME",
    )
    adapter: str | Path | None = option(None, "LoRA or DoRA adapter to apply to the model.", metavar="FOLDER")
    revision: str | None = option(None, "Branch, tag or commit of a hub model.", metavar="NAME")
    dtype: str = option(
        "auto",
        "Compute in float32, float16 or bfloat16; 'stored' keeps the weights as they are; 'auto' is float32 on a CPU "
        "and 'stored' on a GPU.",
        choices=DTYPES,
        flags=("--model-dtype",),
        metavar="TYPE",
    )
    trust_remote_code: bool = option(False, "Run Python code that comes with the model.")
    pooling: str | None = option(
        None, "How token states become a vector. Default: the model's setting.", choices=POOLING
    )
    attn: str | None = option(
        None,
        "Attention when embedding: bidirectional (bbcc) or causal (cccc). Default: the model's setting.",
        choices=tuple(ATTENTION),
        metavar="bbcc|cccc",
    )
    normalized: bool | None = option(None, "Whether vectors have length 1. Default: the model's setting.", flags=None)

    def __post_init__(self) -> None:
        for name in ("model", "adapter"):
            if getattr(self, name) == "":  # a path would make the working folder of it
                raise ArgumentError(Option(name), " is empty.")
        check(self)


@dataclass(frozen=True)
class EmbeddingOptions:
    """How texts are embedded; ``GritLM.encode`` documents each field.

    Raises:
        ArgumentError: a value out of range, or two that do not go together.
    """

    heading: ClassVar[str] = "Model"

    max_length: int | None = option(
        None,
        "Maximum number of tokens of a text, instruction included. Default: the model's setting, usually 512.",
        minimum=1,
        metavar="TOKENS",
    )
    long_texts: str = option(
        "truncate",
        "Truncate longer texts at --max-length, average chunks of that length, or refuse them.",
        choices=LONG_TEXTS,
        flags=("--long",),
    )
    batch_size: int | None = option(
        None, "Maximum number of texts per batch. Default: what fits into memory.", minimum=1, metavar="TEXTS"
    )
    batch_tokens: int | None = option(
        None,
        "Maximum number of tokens per batch, padding included, as far as memory allows. Default: what 'grit bench "
        "--tune' found to be fastest here, else what suits most devices of this kind.",
        minimum=1,
        metavar="TOKENS",
    )
    instruction: str | None = option(None, "Text put before each text.", flags=None)
    embed_instruction: bool = option(False, "Include the instruction's tokens in the mean.", flags=None)
    get_cache: bool = option(False, "Also return keys and values.", flags=None)
    add_special_tokens: bool = option(True, "Whether the tokenizer adds its BOS.", flags=None)
    role: str | None = option(None, "What the texts are embedded as.", choices=ROLES, flags=None)
    normalized: bool | None = option(None, "Whether vectors have length 1. None: as the model says.", flags=None)
    truncate_dim: int | None = option(None, "Keep the first numbers of each vector only.", minimum=1, flags=None)

    def __post_init__(self) -> None:
        check(self)
        check_unicode(self.instruction or "", "The instruction")
        if self.get_cache and self.long_texts == "average":
            raise ArgumentError(
                Option("get_cache"), " keeps one pass over a text: use ", Option("long_texts", "truncate"), " with it."
            )


@dataclass(frozen=True, kw_only=True)
class Sharding:
    """How one model is split among processes; see ``sharding``."""

    heading: ClassVar[str] = "Model"

    shard: str | None = option(
        None,
        "Under mlx.launch: split the model among the processes, each layer (tensor) or layer by layer (pipeline). "
        "Default: each process has the whole model and embeds its share.",
        choices=SPLITS,
    )

    def __post_init__(self) -> None:
        check(self)


# Below this the likeliest token is certain, and log-probabilities divided by it overflow. vLLM's limit, too.
_COLDEST = 1e-5


@dataclass(frozen=True)
class GenerationOptions:
    """How text is sampled. The names and meanings are mlx-lm's and llama.cpp's.

    Raises:
        ArgumentError: names the option and its range.
    """

    heading: ClassVar[str] = "Sampling"

    max_tokens: int = option(
        256,
        "Maximum number of tokens to generate; -1 for no limit.",
        minimum=1,
        also={-1: "for no limit"},
        metavar="TOKENS",
    )
    temperature: float = option(
        0.0,
        "Sampling temperature; 0 always takes the most likely token.",
        minimum=0,
        flags=("--temperature", "--temp"),
        metavar="NUMBER",
    )
    top_p: float = option(
        1.0,
        "Sample from the most likely tokens that together have this probability.",
        above=0,
        maximum=1,
        metavar="NUMBER",
    )
    top_k: int = option(0, "Sample from this many of the most likely tokens; 0 for all.", minimum=0, metavar="COUNT")
    min_p: float = option(
        0.0,
        "Leave out tokens less likely than this fraction of the most likely one.",
        minimum=0,
        maximum=1,
        metavar="NUMBER",
    )
    repetition_penalty: float | None = option(
        None, "Divide the logits of recent tokens by this; 1.1 is mild.", above=0, metavar="NUMBER"
    )
    presence_penalty: float = option(
        0.0, "Subtract this from the logits of recent tokens.", minimum=-2, maximum=2, metavar="NUMBER"
    )
    frequency_penalty: float = option(
        0.0, "Subtract this for each time that a token is among them.", minimum=-2, maximum=2, metavar="NUMBER"
    )
    repetition_context_size: int = option(20, "How many recent tokens are penalised.", minimum=1, flags=None)
    logit_bias: dict[int, float] = option(
        {}, "What is added to the logits of tokens, by their ids.", minimum=-100, maximum=100, flags=None
    )
    seed: int | None = option(
        None,
        "Random seed, for reproducible sampling; -1 for a new one each time.",
        minimum=0,
        maximum=2**64 - 1,
        also={-1: "for a new one each time"},
        metavar="NUMBER",
    )
    stop: Sequence[str] = option((), "Stop at this text.", metavar="TEXT")
    kv_bits: int | None = option(
        None,
        "Store keys and values in 2, 3, 4, 6 or 8 bits, to save memory.",
        choices=(2, 3, 4, 6, 8),
        heading="Model",
        metavar="BITS",
    )
    kv_group_size: int = option(64, "Group size of quantised keys and values.", choices=(32, 64, 128), flags=None)
    quantized_kv_start: int = option(0, "Number of tokens after which they are quantised.", minimum=0, flags=None)
    prefill_step_size: int = option(2048, "Tokens of the prompt computed at once.", minimum=1, flags=None)
    schema: Any = option(None, "JSON schema of the answer.", flags=None)
    regex: str | None = option(None, "Regular expression that the answer matches as a whole.", flags=None)
    choice: Sequence[str] = option((), "Texts of which the answer is one.", flags=None)

    def __post_init__(self) -> None:
        check(self)
        if self.temperature < _COLDEST:
            object.__setattr__(self, "temperature", 0.0)
        for name in ("stop", "choice"):
            if not all(texts := getattr(self, name)):
                raise ArgumentError(Option(name), f" must be texts that are not empty, not {texts!r}.")
        object.__setattr__(self, "logit_bias", _by_id(self.logit_bias))
        forms = [name for name in ("schema", "regex", "choice") if getattr(self, name) not in (None, ())]
        if len(forms) > 1:
            raise ArgumentError(Option(forms[0]), " and ", Option(forms[1]), " exclude each other.")
        for text in (self.regex or "", *self.choice):
            check_unicode(text, "The form of the answer")
        if self.schema is not None:
            object.__setattr__(self, "schema", _schema_text(self.schema))


def _by_id(bias: Mapping[Any, float]) -> dict[int, float]:
    """Numbers by the ids of tokens, which JSON writes as texts."""
    try:
        return {int(token): value for token, value in bias.items()}
    except (TypeError, ValueError):
        wrong = next(token for token in bias if not str(token).lstrip("-").isdecimal())
        raise ArgumentError(Option("logit_bias"), f" goes by ids of tokens, not {wrong!r:.80}.") from None


def _schema_text(schema: Any) -> str:
    """A JSON schema as text: of a mapping, of its own text, or of a Pydantic class."""
    if callable(describe := getattr(schema, "model_json_schema", None)):
        schema = describe()
    try:
        read = json.loads(schema) if isinstance(schema, str) else schema
        if isinstance(read, Mapping) or read is True:
            return json.dumps(read, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:  # nested too deeply, or not JSON
        raise ArgumentError(Option("schema"), f" is not JSON: {first_line(error)}") from error
    raise ArgumentError(Option("schema"), f" must be a JSON schema, which is an object, not {schema!r:.80}.")
