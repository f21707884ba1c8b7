"""How a model is meant to be used: ``grit.json`` in its folder.

Everything in this project that makes a model folder writes the file; loading reads it; arguments override it.
A folder without one is used with the defaults, which are GritLM-7B's.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from grit_mlx.errors import ArgumentError, ConfigError

__all__ = [
    "ATTENTION",
    "FILE_NAME",
    "POOLING",
    "Settings",
    "read_settings",
    "settings_from",
    "write_settings",
]

FILE_NAME = "grit.json"
FORMAT = 1

POOLING = ("mean", "weightedmean", "lasttoken", "cls")

# The official option: two letters for embedding (instruction, text), two for generating. Only the embedding
# pair has an effect; a mixed pair ("cb") was never trained and is refused.
ATTENTION = {"bbcc": "bidirectional", "bb": "bidirectional", "cccc": "causal", "cc": "causal"}


@dataclass(frozen=True)
class Settings:
    """Settings of a model, as its maker meant them.

    Attributes:
        pooling: one of ``POOLING``.
        attn: one of ``ATTENTION``; ``"bbcc"`` embeds bidirectionally.
        normalized: whether vectors have length 1.
        max_length: tokens of a text that are read when embedding, instruction included.
        query_instruction: what a search query is embedded with, without GRIT's markers.
        document_instruction: what a document is embedded with; empty for GRIT models.
        similarity_instruction: what both sides of a comparison are embedded with.
        about: where the model comes from (base model, quantisation, drift); not used for computing.
    """

    pooling: str = "mean"
    attn: str = "bbcc"
    normalized: bool = True
    max_length: int = 512
    # The E5 instructions that GritLM was trained and evaluated with (reference: the authors' MTEB runs).
    query_instruction: str = "Given a web search query, retrieve relevant passages that answer the query"
    document_instruction: str = ""
    similarity_instruction: str = "Retrieve semantically similar text."
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse values that cannot work.

        Raises:
            ArgumentError: names the setting and what it may be.
        """
        for name, kind in _KINDS.items():
            value = getattr(self, name)
            if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
                raise ArgumentError(f"{name} must be a {_NAMES[kind]}, not {value!r}.")
        if self.pooling not in POOLING:
            raise ArgumentError(f"Unknown pooling {self.pooling!r}: use one of {', '.join(POOLING)}.")
        if self.attn not in ATTENTION:
            raise ArgumentError(f"Unknown attn {self.attn!r}: use one of {', '.join(ATTENTION)}.")
        if self.max_length < 1:
            raise ArgumentError(f"max_length must be at least 1 token, not {self.max_length}.")

    def override(self, **values: object) -> Settings:
        """These settings with every value that is not None put in place of the old one."""
        return replace(self, **{name: value for name, value in values.items() if value is not None})  # type: ignore[arg-type]


_KINDS: dict[str, type] = {
    "pooling": str,
    "attn": str,
    "normalized": bool,
    "max_length": int,
    "query_instruction": str,
    "document_instruction": str,
    "similarity_instruction": str,
    "about": Mapping,
}
_NAMES: dict[type, str] = {str: "text", bool: "true or false value", int: "whole number", Mapping: "table"}


def settings_from(values: Mapping[str, Any]) -> Settings:
    """Settings from the parsed contents of a ``grit.json``.

    Raises:
        ConfigError: an unknown name (with the nearest known one) or a value that cannot work.
    """
    known = {f.name for f in fields(Settings)}
    values = dict(values)
    form = values.pop("format", FORMAT)
    if form != FORMAT:
        raise ConfigError(f"It has format {form!r} and this version reads format {FORMAT}: update grit-mlx.")
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(known))}."
            raise ConfigError(f"It has an unknown setting {name!r}: {hint}")
    try:
        return Settings(**values)
    except ArgumentError as error:
        raise ConfigError(str(error)) from error


def read_settings(folder: Path) -> Settings:
    """Settings of the model in ``folder``; the defaults where it has no ``grit.json``.

    Raises:
        ConfigError: the file is no JSON object or holds something unknown.
    """
    path = folder / FILE_NAME
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Settings()
    except (OSError, ValueError) as error:
        raise ConfigError(f"Cannot read {path}: {error}. Mend the file, or remove it to use the defaults.") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold a JSON object. Mend the file, or remove it to use the defaults.")
    try:
        return settings_from(values)
    except ConfigError as error:
        raise ConfigError(f"Cannot use {path}. {error}") from error


def write_settings(folder: Path, settings: Settings) -> Path:
    """Write ``grit.json`` into ``folder`` and return its path."""
    path = folder / FILE_NAME
    text = json.dumps({"format": FORMAT, **asdict(settings)}, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
    return path
