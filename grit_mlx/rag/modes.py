"""What an answer's prompt computes and what it takes from caches, and which way costs least. Pure.

The paper's modes, by what is cached. With several documents they stand one after the other wherever a mode says
"document"; ``reference`` is the match on Natural Questions of GritLM-7B with one document (no retrieval: 21.0).

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

from grit_mlx.errors import ArgumentError

__all__ = [
    "AUTO_MODES",
    "CACHE_MODES",
    "MODES",
    "DocumentCost",
    "Rates",
    "check_mode",
    "choose_mode",
    "predicted_seconds",
]

MODES: Final = ("none", "doc", "query", "doc-query", "query-doc")
CACHE_MODES: Final = (*MODES, "auto")

# What ``auto`` chooses from: the modes with both sides cached are the fastest for long queries, but answer worse
# than no retrieval at all. Ask for them by name.
AUTO_MODES: Final = ("doc", "none", "query")

# A mode this little slower than the fastest is taken if it stands before it in the list: computing a document for
# the cache costs what the prompt would, and serves the next question too.
_TIE: Final = 1.05


@dataclass(frozen=True)
class DocumentCost:
    """One document, as far as its cost goes.

    Attributes:
        tokens: L, with what precedes it in its cache.
        cached: whether its keys and values are at hand.
        bytes: that have to be read for them; 0 where they are in memory.
    """

    tokens: int
    cached: bool
    bytes: int = 0


@dataclass(frozen=True)
class Rates:
    """How fast a machine runs a model, in seconds.

    Attributes:
        token: to compute one token, attention apart.
        pair: for one token to attend to one other, in all layers.
        byte: to read one byte of a cached document, check included.
        step: tokens of a causal pass that are computed at once with all of their pairs, masked or not; 1 where the
            kernel leaves out what is masked.
    """

    token: float
    pair: float
    byte: float
    step: int = 2048

    def run(self, tokens: int, context: int = 0, *, bidirectional: bool = False) -> float:
        """Seconds of a pass over some tokens that follow others."""
        seen = tokens if bidirectional else (tokens + min(self.step, tokens)) / 2
        return tokens * (self.token + self.pair * (context + seen))


def check_mode(mode: str) -> None:
    """Refuse what is no mode.

    Raises:
        ArgumentError: names the modes.
    """
    if mode not in CACHE_MODES:
        raise ArgumentError(f"Unknown cache mode {mode!r}: use one of {', '.join(CACHE_MODES)}.")


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
        query: likewise; retrieval has mostly cached it.
        rates: of this machine with this model.
        frame: tokens of the prompt that are neither.
    """
    cached = {"none": (), "doc": documents, "query": (query,), "doc-query": (*documents, query),
              "query-doc": (query, *documents)}[mode]  # fmt: skip
    seconds = sum(one.bytes * rates.byte if one.cached else rates.run(one.tokens, bidirectional=True) for one in cached)
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
    """The mode with the least predicted time to the first token; of equals the one that comes first in ``modes``."""
    seconds = {mode: predicted_seconds(mode, documents, query, rates) for mode in modes}
    limit = _TIE * min(seconds.values())
    return next(mode for mode in modes if seconds[mode] <= limit)
