"""Text of tokens as they come: joined, the pieces are what the tokenizer makes of all the tokens at once.

mlx-lm has three classes for this and chooses by the tokenizer's decoder. What it does not know falls to one that
repeats characters of several byte tokens (ml-explore/mlx-lm#309), and the others drop a leading blank that the
tokenizer keeps (ml-explore/mlx-lm#1754) and fail on ids that it does not have. So the tokenizer itself decodes here, a
window of the last tokens at a time.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

__all__ = ["Detokenizer"]

# Tokens that a window begins with: they are decoded for what they do to the tokens after them.
_CONTEXT = 8
# Tokens after which a window moves on.
_WINDOW = 24
# Byte tokens in a row that are held back until another token follows: one wrong byte turns all of them into
# replacements. Not more, or a model that writes line after line would never be seen to reach a stop text.
_BYTES = 64

# Decoders whose text stays as it is when tokens follow, but for what ``_settled`` knows; Replace only of one character.
_STEADY = {"BPEDecoder", "ByteFallback", "ByteLevel", "Fuse", "Metaspace", "Strip", "WordPiece"}
# Tokens for which the text of any other decoder must not have changed.
_LAG = 4

# What the pieces of a tokenizer are compared with its decoding of: characters of several tokens, emoji that are joined
# or followed by a selector, blanks at the start, in rows and before punctuation, lines.
_PROBES = (
    " two  blanks , one before the comma . And   three",
    "東京タワーは高い。서울타워도 높다.",
    "👩‍👩‍👧‍👦 ❤️ 🏳️‍🌈 e\u0301",
    "a\n\n    b\t'c' don't \u00a0 <x>",
)
# Where a tokenizer keeps what is known of it.
_TRAITS = "_grit_traits"


@dataclass(frozen=True)
class _Traits:
    """What decoding depends on.

    Attributes:
        size: of the vocabulary.
        byte_tokens: ids of ``<0x00>`` to ``<0xFF>``, if the tokenizer has them.
        cleans_up: whether blanks before punctuation go.
        lag: tokens for which text must not have changed before it is given out.
        windows: whether a window of the last tokens is enough.
    """

    size: int
    byte_tokens: frozenset[int]
    cleans_up: bool
    lag: int
    windows: bool = True

    @classmethod
    def of(cls, tokenizer: Any) -> _Traits:
        """Those of a Hugging Face tokenizer; probed once."""
        traits = tokenizer.__dict__.get(_TRAITS)
        if traits is None:
            cleans_up = bool(getattr(tokenizer, "clean_up_tokenization_spaces", False))
            lag = 1 if _is_steady(tokenizer) else _LAG
            traits = cls(len(tokenizer), _byte_tokens(tokenizer), cleans_up, lag)
            traits = replace(traits, windows=all(_agrees(tokenizer, traits, probe) for probe in _PROBES))
            tokenizer.__dict__[_TRAITS] = traits
        return traits  # type: ignore[no-any-return]


class Detokenizer:
    """Decodes one answer of a Hugging Face tokenizer's tokens."""

    def __init__(self, tokenizer: Any, traits: _Traits | None = None) -> None:
        self._tokenizer = tokenizer
        self._traits = traits or _Traits.of(tokenizer)
        self._tokens: list[int] = []
        self._bytes = 0  # byte tokens in a row, up to the last
        self._pieces: list[str] = []
        self._start = 0  # of the window, in tokens
        self._shown = ""  # the part of the window's text that was given out
        self._recent: list[str] = []  # the window's last texts

    def add(self, token: int) -> str:
        """The text that a token completes; empty while it can still change."""
        self._tokens.append(token)
        if token < self._traits.size:  # others are decoded to nothing, so they end no row
            self._bytes = self._bytes + 1 if token in self._traits.byte_tokens else 0
        if 0 < self._bytes < _BYTES:
            return ""
        text: str = self._tokenizer.decode(self._tokens[self._start :])
        self._recent = [*self._recent, text[: self._settled(text)]][-self._traits.lag :]
        settled = _common(self._recent) if len(self._recent) == self._traits.lag else ""
        piece = settled[len(self._shown) :]
        if not settled.startswith(self._shown) or (self._bytes and "\ufffd" in piece):
            return ""
        self._shown = settled
        self._pieces.append(piece)
        if piece and self._traits.windows and len(self._tokens) - self._start >= _WINDOW:
            self._move(text)
        return piece

    def finish(self) -> str:
        """What was held back."""
        shown = "".join(self._pieces)
        text: str = self._tokenizer.decode(self._tokens) if self._tokens else ""
        return text[len(shown) :] if text.startswith(shown) else ""

    def _settled(self, text: str) -> int:
        """Up to where a text stays as it is, whatever follows."""
        # The last character may be incomplete; of several replacements only the last can become one.
        end = len(text) - 1 if text.endswith("\ufffd") else len(text)
        # Decoders drop a blank at the start of a line, once they see what it stands before ...
        blanks = len(text[:end].rstrip(" "))
        # ... and some before punctuation, around "'" and before "n't", which may be three words by then.
        for _ in range(3 if self._traits.cleans_up else 0):
            blanks = max(text.rfind(" ", 0, blanks), 0)
        return blanks

    def _move(self, text: str) -> None:
        """Let the window begin later, if what it has shown so far can be told from its new beginning."""
        start = len(self._tokens) - _CONTEXT
        context: str = self._tokenizer.decode(self._tokens[start:])
        kept = len(self._shown) - (len(text) - len(context))
        if text.endswith(context) and kept >= 0 and not text.endswith("\ufffd"):
            self._start, self._shown, self._recent = start, context[:kept], []


def _agrees(tokenizer: Any, traits: _Traits, text: str) -> bool:
    """Whether a text in pieces is the text at once."""
    tokens = 3 * tokenizer.encode(text, add_special_tokens=False)
    pieces = Detokenizer(tokenizer, traits)
    return bool("".join([*map(pieces.add, tokens), pieces.finish()]) == tokenizer.decode(tokens))


def _common(texts: Sequence[str]) -> str:
    """What all texts begin with."""
    first, last = min(texts), max(texts)
    return first[: next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))]


def _is_steady(tokenizer: Any) -> bool:
    """Whether a tokenizer's decoder consists of ``_STEADY`` ones."""
    try:
        waiting = [json.loads(tokenizer.backend_tokenizer.decoder.__getstate__())]
    except (AttributeError, TypeError, ValueError):  # written in Python, or without a decoder
        return False
    while waiting:
        decoder = waiting.pop()
        waiting += decoder.get("decoders", ())
        kind = decoder.get("type", "Sequence")
        plain = kind == "Replace" and len(decoder["pattern"].get("String", "  ")) == 1
        if kind != "Sequence" and kind not in _STEADY and not plain:
            return False
    return True


def _byte_tokens(tokenizer: Any) -> frozenset[int]:
    """The ids of ``<0x00>`` to ``<0xFF>``, where a tokenizer has them."""
    names = [f"<0x{byte:02X}>" for byte in range(256)]
    ids: Sequence[int | None] = tokenizer.convert_tokens_to_ids(names)
    unknown = tokenizer.unk_token_id
    return frozenset(number for number in ids if number is not None and number != unknown)
