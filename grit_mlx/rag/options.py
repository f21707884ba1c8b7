"""What can be chosen when files are indexed, searched and answered from. One table each; see ``grit_mlx.options``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, TypeVar

from grit_mlx.errors import ArgumentError
from grit_mlx.options import bytes_of_size, check, check_unicode, from_mapping, option
from grit_mlx.rag.modes import CACHE_MODES, CHAT_MODES

__all__ = [
    "ANSWERS",
    "METHODS",
    "PRECISIONS",
    "ChatOptions",
    "IndexOptions",
    "RagOptions",
    "SearchOptions",
    "StoreOptions",
    "budget_of",
    "check_question",
    "count_or_all",
    "merged",
]

# Fused by scores, fused by ranks, by meaning, by words.
METHODS: Final = ("hybrid", "rrf", "dense", "bm25")

# In the model's words, or word for word from the passages.
ANSWERS: Final = ("write", "quote")

# Bits of a number on disk; None keeps what the model computed.
PRECISIONS: Final[Mapping[str, int | None]] = {"full": None, "8": 8, "4": 4}

_CACHES: Final = "Cached documents"

Group = TypeVar("Group")


def budget_of(text: str) -> int | None:
    """The bytes of a size such as "500MB"; None for "none"."""
    return None if text.strip().lower() == "none" else bytes_of_size(text)


def count_or_all(value: int | str) -> int | str:
    """A number, also as text, or "all"."""
    if value == "all":
        return "all"
    if not str(value).isdecimal():
        raise ArgumentError(f"{value!r} is neither a number nor 'all'.")
    return int(value)


def check_question(question: str) -> None:
    """Refuse a question without text.

    Raises:
        ArgumentError: it is empty, or not a text that can be read.
    """
    if not question.strip():
        raise ArgumentError("The question is empty.")
    check_unicode(question, "The question")


def merged(group: type[Group], options: Group | None, keywords: Mapping[str, Any]) -> Group:
    """Options as one value, with keywords before its fields.

    Raises:
        ArgumentError: as the group, or for an unknown keyword.
    """
    if options is None:
        return from_mapping(group, keywords)
    return from_mapping(type(options), {**vars(options), **keywords}) if keywords else options


@dataclass(frozen=True, kw_only=True)
class StoreOptions:
    """How a store splits files and what it caches.

    Attributes:
        exact_bytes: size of the vectors up to which search is exact; None for what memory allows, at most 4 GiB.
        cache_folder: where documents are cached; None for ``caches`` in the store.
        cache_budget: in bytes; None for no limit. A cached passage of a 7B model takes tens of megabytes.
    """

    heading: ClassVar[str] = "Store"

    passage_tokens: int | None = option(
        None, "Maximum number of tokens per passage. Default: the store's, or 256.", minimum=1, metavar="TOKENS"
    )
    overlap: int | None = option(
        None,
        "Maximum number of tokens that a passage repeats from the previous one. Default: the store's, or 32.",
        minimum=0,
        metavar="TOKENS",
    )
    exact_bytes: int | None = option(
        None, "Search exactly up to this size.", parse=bytes_of_size, minimum=0, flags=None
    )
    cache_folder: Path | None = option(None, "Folder of cached documents.", flags=None)
    cache_precision: str = option(
        "full",
        "Precision of newly cached documents on disk.",
        choices=tuple(PRECISIONS),
        flags=("--cache-bits",),
        heading=_CACHES,
    )
    cache_budget: int | None = option(
        10_000_000_000,
        "Maximum disk space for cached documents, such as 500MB or 0; 'none' for no limit. The least recently used "
        "are removed.",
        minimum=0,
        parse=budget_of,
        heading=_CACHES,
        metavar="SIZE",
    )

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True)
class IndexOptions:
    """How a store is brought up to date.

    Attributes:
        approximate: None builds the approximate index once exact search does not fit into memory.
        shared_cache: in bytes; None for what is remembered.
    """

    heading: ClassVar[str] = "Store"

    keep_missing: bool = option(False, "Keep the passages of deleted files.")
    approximate: bool | None = option(
        None,
        "Whether to build the approximate index now. Default: if the vectors take more than a quarter of the free "
        "memory.",
    )
    cache_ahead: int | str = option(
        0,
        "Cache this many of the passages that answers used most often, or all passages.",
        parse=count_or_all,
        heading=_CACHES,
        metavar="COUNT|all",
    )
    shared_cache: int | None = option(
        None,
        "Keep cached documents also in the bucket of the store, for all machines that use it, at most this size, such "
        "as 20GB; 0 for none. Remembered. Default: the store's, or 0.",
        minimum=0,
        parse=bytes_of_size,
        heading=_CACHES,
        metavar="SIZE",
    )
    wait: float = option(0.0, "How long to wait for another process that is writing.", minimum=0, metavar="SECONDS")

    def __post_init__(self) -> None:
        check(self)
        object.__setattr__(self, "cache_ahead", count_or_all(self.cache_ahead))


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """How passages are searched.

    Attributes:
        min_score: None to judge by cosine and words; see ``grit_mlx.rag.relevance``.
    """

    heading: ClassVar[str] = "Store"

    top: int = option(10, "Number of passages.", minimum=1, flags=("--top", "-n"), metavar="COUNT")
    method: str = option(
        "hybrid",
        "Search by meaning (dense), by words (bm25), or both, fused by scores (hybrid) or by ranks (rrf).",
        choices=METHODS,
    )
    paths: Sequence[str] = option(
        (),
        "Only this file, folder or pattern such as 'docs/*.md'.",
        flags=("--path",),
        metavar="PATTERN",
    )
    metadata: Sequence[str] = option(
        (),
        "Only rows of .jsonl and .csv files with this field, or files of a kind (kind=markdown); all must match.",
        flags=("--where",),
        metavar="KEY=VALUE",
    )
    min_score: float | None = option(
        None,
        "Cosine above which a passage counts as relevant; -1 for any. Default: judged by the cosine, beside those of "
        "unrelated questions, and by the question's words.",
        metavar="SCORE",
    )

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True)
class RagOptions(SearchOptions):
    """How questions are answered from a store."""

    top: int = option(4, "Number of passages to answer from.", minimum=1, flags=("--top", "-n"), metavar="COUNT")
    answer: str | None = option(
        None,
        "Answer in the model's words (write), or with the sentences of the passages that fit best (quote). Default: "
        "write, or quote if the model only embeds.",
        choices=ANSWERS,
    )
    rerank: bool = option(
        False, "Reorder the best passages by how likely the model finds the question after each. Slower."
    )
    cache: str = option(
        "auto",
        "Keys and values to take from caches: the documents' (doc), the question's (query), or both. 'auto' picks the "
        "fastest of doc, none and query.",
        choices=CACHE_MODES,
        heading=_CACHES,
    )


@dataclass(frozen=True, kw_only=True)
class ChatOptions(RagOptions):
    """How a conversation is answered from a store."""

    cache: str = option(
        "auto", "Whether the documents' keys and values come from caches.", choices=CHAT_MODES, heading=_CACHES
    )
