"""What an answer's prompt takes from caches and what it computes, and which mode costs least. Pure.

The paper's modes. Several documents follow one another wherever a mode says "document"; ``reference`` is the match of
GritLM-7B on Natural Questions with one document (without retrieval: 21.0).

=========== ============================================================ =========
mode        order of the prompt; [] comes from a cache                    reference
=========== ============================================================ =========
none        documents, query                                             30.47
doc         [documents] query                                            33.38
query       [query] documents                                            25.46
doc-query   [documents] [query]                                          18.39
query-doc   [query] [documents]                                          21.63
=========== ============================================================ =========
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

__all__ = [
    "AUTO_MODES",
    "CACHE_MODES",
    "CHAT_MODES",
    "MODES",
    "DocumentCost",
    "Rates",
    "about_tokens",
    "choose_mode",
    "predicted_seconds",
]

MODES: Final = ("none", "doc", "query", "doc-query", "query-doc")
CACHE_MODES: Final = (*MODES, "auto")

# Of a conversation: the prompt ends with the query, so that the next turn can follow.
CHAT_MODES: Final = ("none", "doc", "auto")

# What ``auto`` chooses from: with both sides cached long queries are fastest, but answers are worse than without
# retrieval.
AUTO_MODES: Final = ("doc", "none", "query")

# A mode is preferred to later ones in this list if it is slower by no more than this factor: computing a document for
# the cache takes as long as computing it in the prompt, and helps the next question too.
_TIE: Final = 1.05

_CHARACTERS_PER_TOKEN: Final = 4  # of English


@dataclass(frozen=True)
class DocumentCost:
    """What a document (or the query) costs."""

    tokens: int  # L, with its embedding prompt
    cached: bool  # whether its keys and values are cached
    bytes: int = 0  # to read for them from the disk; 0 if they are in memory
    downloaded: int = 0  # to read for them from a bucket

    def seconds(self, rates: Rates) -> float:
        """To have its keys and values."""
        computed = rates.run(self.tokens, bidirectional=True)
        if not self.cached:
            return computed
        return self.bytes * rates.byte + min(self.downloaded * rates.downloaded_byte, computed)


@dataclass(frozen=True)
class Rates:
    """How fast a machine runs a model, in seconds."""

    token: float  # to compute one token, attention apart
    pair: float  # for one token to attend to one other, in all layers
    byte: float  # to read one byte of a cached document, checksum included
    # Tokens of a causal pass that are computed at once with all of their pairs, masked or not; 1 if masked pairs are
    # skipped.
    step: int = 2048
    downloaded_byte: float = 1e-8  # to read one byte from a bucket

    def run(self, tokens: int, context: int = 0, *, bidirectional: bool = False) -> float:
        """Seconds of a pass over some tokens that follow others."""
        seen = tokens if bidirectional else (tokens + min(self.step, tokens)) / 2
        return tokens * (self.token + self.pair * (context + seen))


def about_tokens(text: str) -> int:
    """Roughly the number of tokens: tokenising a text would cost more than it decides."""
    return 1 + len(text) // _CHARACTERS_PER_TOKEN


def predicted_seconds(
    mode: str,
    documents: Sequence[DocumentCost],
    query: DocumentCost,
    rates: Rates,
    *,
    frame: int = 32,
) -> float:
    """Seconds to the first token.

    Args:
        mode: one of ``MODES``.
        documents: in the order of the prompt.
        query: usually cached by retrieval.
        rates: of this machine with this model.
        frame: tokens of the prompt around them.
    """
    cached = {"none": (), "doc": documents, "query": (query,), "doc-query": (*documents, query),
              "query-doc": (query, *documents)}[mode]  # fmt: skip
    seconds = sum(one.seconds(rates) for one in cached)
    held = sum(one.tokens for one in cached)
    total = sum(one.tokens for one in documents) + query.tokens
    return seconds + rates.run(total - held + frame, held)


def choose_mode(
    documents: Sequence[DocumentCost],
    query: DocumentCost,
    rates: Rates,
    *,
    modes: Sequence[str] = AUTO_MODES,
) -> str:
    """The mode with the shortest predicted time to the first token; of about equal ones the first in ``modes``."""
    seconds = {mode: predicted_seconds(mode, documents, query, rates) for mode in modes}
    limit = _TIE * min(seconds.values())
    return next(mode for mode in modes if seconds[mode] <= limit)
