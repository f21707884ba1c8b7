"""How a model is meant to be used: ``grit.json`` in its folder.

Everything in this project that makes a model folder writes the file; loading reads it; arguments override it.
A folder without one is used with the defaults, which are GritLM-7B's.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from grit_mlx.errors import ArgumentError, ConfigError, unreadable
from grit_mlx.model.prompts import embedding_prompt
from grit_mlx.model.sentence_transformers import read_modules, settings_of
from grit_mlx.options import check, from_mapping, option

__all__ = [
    "ATTENTION",
    "FILE_NAME",
    "POOLING",
    "ROLES",
    "Settings",
    "read_settings",
    "says_trained",
    "settings_from",
    "write_settings",
]

FILE_NAME = "grit.json"
FORMAT = 1
_ADVICE = "Fix the file, or remove it to use the defaults."

POOLING = ("mean", "weightedmean", "lasttoken", "cls")

# The official option: two letters for embedding (instruction, text), two for generating. Only the embedding
# pair has an effect; a mixed pair ("cb") was never trained and is refused.
ATTENTION = {"bbcc": "bidirectional", "bb": "bidirectional", "cccc": "causal", "cc": "causal"}

PROMPT_FORMATS = ("grit", "plain")

# What a text is embedded as; each role has an instruction among the settings.
ROLES = ("query", "document", "similarity")


@dataclass(frozen=True)
class Settings:
    """Settings of a model, as its maker meant them.

    Raises:
        ArgumentError: a value that cannot work; names the setting and what it may be.
    """

    pooling: str = option("mean", "How token states become a vector.", choices=POOLING)
    attn: str = option("bbcc", "Attention when embedding.", choices=tuple(ATTENTION))
    normalized: bool = option(True, "Whether vectors have length 1.")
    max_length: int = option(512, "Maximum number of tokens of a text to embed, instruction included.", minimum=1)
    # The E5 instructions that GritLM was trained and evaluated with (reference: the authors' MTEB runs).
    query_instruction: str = option(
        "Given a web search query, retrieve relevant passages that answer the query",
        "Instruction to embed search queries with, without GRIT's markers.",
    )
    document_instruction: str = option("", "Instruction to embed documents with; GRIT models have none.")
    similarity_instruction: str = option(
        "Retrieve semantically similar text.", "Instruction to embed both sides of a comparison with."
    )
    prompt_format: str = option(
        "grit", "How instructions precede texts: between GRIT's markers, or as they are.", choices=PROMPT_FORMATS
    )
    pool_prompt: bool = option(False, "Whether the tokens of an instruction take part in the pooling.")
    generates: bool = option(True, "Whether the model writes text; False for one that only embeds.")
    about: dict[str, Any] = option({}, "Where the model comes from; not used for computing.")

    def __post_init__(self) -> None:
        check(self)

    @property
    def causal(self) -> bool:
        """Whether texts are embedded with causal attention."""
        return ATTENTION[self.attn] == "causal"

    def instruction(self, role: str) -> str:
        """The instruction of one of ``ROLES``."""
        return str(getattr(self, f"{role}_instruction"))

    def prompt(self, instruction: str) -> str:
        """What precedes a text that is embedded with an instruction."""
        return embedding_prompt(instruction) if self.prompt_format == "grit" else instruction

    def override(self, **values: object) -> Settings:
        """These settings with every value that is not None in place of the old one."""
        return replace(self, **{name: value for name, value in values.items() if value is not None})  # type: ignore[arg-type]


def settings_from(values: Any) -> Settings:
    """Settings from the parsed contents of a ``grit.json``.

    Raises:
        ConfigError: an unknown name (with the nearest known one) or a value that cannot work.
    """
    if not isinstance(values, dict):
        raise ConfigError("It must hold a JSON object.")
    values = dict(values)
    form = values.pop("format", FORMAT)
    if form != FORMAT:
        raise ConfigError(f"It has format {form!r} and this version reads format {FORMAT}: update grit-mlx.")
    try:
        return from_mapping(Settings, values)
    except ArgumentError as error:
        raise ConfigError(str(error)) from error


def read_settings(folder: Path) -> Settings:
    """Settings of the model in ``folder``: its ``grit.json``, else what sentence-transformers saved, else defaults.

    Raises:
        ConfigError: the file is not a JSON object or holds something unknown.
    """
    path = folder / FILE_NAME
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return settings_from(values)
    except FileNotFoundError:
        modules = read_modules(folder)
        return Settings() if modules is None else settings_from(settings_of(modules))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{unreadable(path, error)} {_ADVICE}") from error
    except ConfigError as error:
        raise ConfigError(f"Cannot use {path}. {error} {_ADVICE}") from error


def says_trained(folder: Path, settings: Settings) -> bool:
    """Whether a folder's files say that the model was trained to embed.

    A conversion gives every model a ``grit.json``; one with nothing but the defaults says nothing.

    Args:
        folder: of the model.
        settings: as they were read from it.
    """
    if (folder / FILE_NAME).exists():
        about = settings.about
        return "made_with" not in about or "tuned_from" in about or replace(settings, about={}) != Settings()
    return read_modules(folder) is not None


def write_settings(folder: Path, settings: Settings) -> Path:
    """Write ``grit.json`` into ``folder`` and return its path."""
    path = folder / FILE_NAME
    text = json.dumps({"format": FORMAT, **asdict(settings)}, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
    return path
