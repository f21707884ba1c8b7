"""Answers in a form that is asked for: JSON of a schema, texts of a regular expression, one of several texts.

llguidance says after each token which tokens may follow. For that it has to know which bytes a token stands for. It
reads that from the decoder of a Hugging Face tokenizer, which fails where the decoder is not one that it knows. So the
bytes are worked out here, in the two ways that tokenizers spell them, and compared with what the tokenizer decodes: a
tokenizer for which neither is right is refused instead of writing something else than what was checked.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import mlx.core as mx
import numpy as np

from grit_mlx.errors import ArgumentError, Option, TokenizerError
from grit_mlx.model.options import GenerationOptions
from grit_mlx.optional import optional

__all__ = ["Constraint", "TokenBytes", "constraint", "is_constrained"]

# Between the parts of JSON: nothing, a blank, or a new line with its indentation. Models that may write any number of
# blanks sometimes write nothing else.
_WHITESPACE = r"[ ]|\n[ \t]{0,20}"

# What no JSON can be written without.
_JSON_CHARACTERS = '{}[]":,-.0123456789truefalsn'

# Texts on which the bytes of tokens are compared with the tokenizer's decoding.
_PROBES = (
    '{"name": "Zoë", "tags": ["東京", "👩\u200d👩\u200d👧"], "n": -12.5e3, "ok": true, "none": null}',
    'Two lines:\n    "indented",\n\t"tab"\\n \u00a0 e\u0301 \x02 <x> don\'t , no .',
)
# Tokens that are decoded one by one for the same purpose, spread over the vocabulary.
_SAMPLE = 400

# llguidance's names for "nothing can follow", as in a schema that only refers to itself.
_STUCK = dict.fromkeys(("NoExtension", "NoExtensionBias"), "no text fits it from there on.")

# Where a tokenizer keeps its table.
_KEPT = "_grit_token_bytes"


def is_constrained(options: GenerationOptions) -> bool:
    """Whether the options ask for a form."""
    return options.schema is not None or options.regex is not None or bool(options.choice)


def constraint(options: GenerationOptions, tokenizer: Any, end_tokens: Collection[int]) -> Constraint | None:
    """What the answer to one prompt may be; None where it may be anything.

    A sequence needs one of its own: it follows the tokens that it sees.

    Args:
        options: their ``schema``, ``regex`` or ``choice``.
        tokenizer: a Hugging Face tokenizer.
        end_tokens: those that end an answer.

    Raises:
        DependencyError: llguidance is not installed.
        ArgumentError: the schema or the regular expression cannot be followed.
        TokenizerError: the tokenizer cannot write what is asked for, or not in a way that can be followed.
    """
    if not is_constrained(options):
        return None
    guidance = optional("llguidance", extra="structured", purpose="Structured output")
    table = TokenBytes.of(tokenizer, end_tokens)
    if options.schema is not None and (missing := table.missing(_JSON_CHARACTERS)):
        raise TokenizerError(f"This model cannot write JSON: its tokenizer has no token for {missing!r}.")
    name, grammar = _grammar(guidance.LLMatcher, options)
    problem = guidance.LLMatcher.validate_grammar(grammar, table.engine)
    if problem:
        raise ArgumentError(Option(name), f" cannot be followed: {_problem(problem)}")
    return Constraint(guidance.LLMatcher(table.engine, grammar, log_level=0), table)


class Constraint:
    """What one answer may still be, as a processor of logits for mlx-lm's engines.

    Attributes:
        failure: why the answer had to end before it was complete; empty for none. Nothing is raised inside the engine,
            where it would end the other answers of a batch too.
    """

    def __init__(self, matcher: Any, table: TokenBytes) -> None:
        self._matcher = matcher
        self._table = table
        self._begun = False
        self.failure = ""

    def __call__(self, tokens: mx.array, logits: mx.array) -> mx.array:
        """Logits ``(1, V)`` with minus infinity for the tokens that cannot follow.

        Args:
            tokens: all so far; the first call sees the prompt, each later one a token more.
            logits: of the next one.
        """
        if self._begun:
            self._take(int(tokens[-1].item()))  # type: ignore[arg-type] # tokens are whole numbers
        self._begun = True
        allowed = np.frombuffer(self._matcher.compute_logit_bias(), dtype=np.uint8) != 0
        if self._matcher.is_error() or not allowed.any():
            self._fail()
            allowed = self._table.ends
        mask = np.zeros(logits.shape[-1], dtype=np.bool_)
        mask[: len(allowed)] = allowed[: len(mask)]
        return mx.where(mx.array(mask), logits, mx.array(-mx.inf, dtype=logits.dtype))

    @property
    def complete(self) -> bool:
        """Whether what was written is a whole answer."""
        return not self.failure and bool(self._matcher.is_accepting() or self._matcher.is_stopped())

    def detokenizer(self) -> _BytesDetokenizer:
        """Text of the answer's tokens as they come: exactly what was checked, with blanks that decoders would drop."""
        return _BytesDetokenizer(self._table.pieces)

    def follow(self, tokens: Iterable[int]) -> None:
        """Take tokens that were written already, where an answer is continued."""
        for token in tokens:
            self._take(token)

    def _take(self, token: int) -> None:
        ended = token in self._table.end_tokens
        if not ended and not self._matcher.is_stopped() and not self._matcher.consume_token(token):
            self._fail()

    def _fail(self) -> None:
        if not self.failure:
            problem = _STUCK.get(found := self._matcher.get_error() or "NoExtension") or _problem(found)
            self.failure = f"The answer cannot be completed in the form that was asked for: {problem}"


class _BytesDetokenizer:
    """Joins the bytes of tokens, and gives out whole characters."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._pieces = pieces
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token: int) -> str:
        """The text that a token completes."""
        return self._decoder.decode(self._pieces[token] if token < len(self._pieces) else b"")

    def finish(self) -> str:
        """What was held back: a replacement for a character that was cut in two."""
        return self._decoder.decode(b"", final=True)


@dataclass(frozen=True)
class TokenBytes:
    """The bytes that the tokens of a tokenizer stand for.

    Attributes:
        tokenizer: a Hugging Face tokenizer.
        pieces: bytes by token; empty for special tokens, which are never generated, and for ids without a token.
        end_tokens: those that end an answer.
    """

    tokenizer: Any
    pieces: tuple[bytes, ...]
    end_tokens: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: Any, end_tokens: Collection[int]) -> TokenBytes:
        """Those of a Hugging Face tokenizer, worked out once.

        Raises:
            TokenizerError: they cannot be told.
        """
        ends = tuple(sorted(end_tokens))
        if not ends:
            raise TokenizerError("Structured output needs a token that ends an answer, and this tokenizer has none.")
        kept: dict[tuple[int, ...], TokenBytes | TokenizerError] = tokenizer.__dict__.setdefault(_KEPT, {})
        if ends not in kept:
            try:
                kept[ends] = cls(tokenizer, _pieces(tokenizer, ends), ends)
            except TokenizerError as error:
                kept[ends] = error  # it takes as long to find out
        if isinstance(found := kept[ends], TokenizerError):
            raise TokenizerError(*found.args)
        return found

    @cached_property
    def engine(self) -> Any:
        """The tokenizer as llguidance knows it."""
        guidance = optional("llguidance", extra="structured", purpose="Structured output")
        names = [piece or f"<[{token}]>".encode() for token, piece in enumerate(self.pieces)]
        view = _TokenizerView(self.tokenize, names, self.end_tokens, [i for i, p in enumerate(self.pieces) if not p])
        return guidance.LLTokenizer(
            guidance.TokenizerWrapper(view), n_vocab=len(names), eos_token=list(self.end_tokens)
        )

    @cached_property
    def ends(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which tokens end an answer."""
        mask = np.zeros(len(self.pieces), dtype=np.bool_)
        mask[list(self.end_tokens)] = True
        return mask

    @cached_property
    def _by_bytes(self) -> dict[bytes, int]:
        return {piece: token for token, piece in enumerate(self.pieces) if piece}

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self._by_bytes), default=0)

    def missing(self, characters: str) -> str:
        """The characters that no tokens spell."""
        return "".join(c for c in characters if any(bytes([byte]) not in self._by_bytes for byte in c.encode()))

    def joined(self, tokens: Iterable[int]) -> bytes:
        """The bytes of a text's tokens."""
        return b"".join(self.pieces[token] for token in tokens)

    def tokenize(self, text: str) -> list[int]:
        """Tokens of exactly this text, as the tokenizer would choose them in the middle of one."""
        # SentencePiece puts a blank before a text; what it does after the first character is what models have seen.
        for before in ("", "\x02", "\n"):
            tokens = self.tokenizer.encode(before + text, add_special_tokens=False)
            start = 0
            while start < len(tokens) and self.joined(tokens[:start]).lstrip(b" ") != before.encode():
                start += 1
            if self.joined(tokens[start:]) == text.encode():
                return list(tokens[start:])
        return self._longest_first(text.encode())

    def _longest_first(self, text: bytes) -> list[int]:
        tokens: list[int] = []
        while text:
            ends = range(min(self._longest, len(text)), 0, -1)
            token = next((self._by_bytes[text[:end]] for end in ends if text[:end] in self._by_bytes), None)
            if token is None:
                break  # no token begins like this, which the matcher reports
            tokens.append(token)
            text = text[len(self.pieces[token]) :]
        return tokens


class _TokenizerView:
    """A tokenizer as ``llguidance.TokenizerWrapper`` reads it."""

    bos_token_id: int | None = None

    def __init__(self, tokenize: Any, tokens: list[bytes], ends: Sequence[int], special: list[int]) -> None:
        self._tokenize = tokenize
        self.tokens = tokens
        self.eos_token_id = ends[0]
        self.special_token_ids = special

    def __call__(self, text: str | bytes) -> list[int]:
        if isinstance(text, bytes):
            raise TypeError("Only text is tokenised.")  # llguidance tries both
        return self._tokenize(text)  # type: ignore[no-any-return]


def _pieces(tokenizer: Any, ends: tuple[int, ...]) -> tuple[bytes, ...]:
    """The bytes of all tokens, in the one way that agrees with the tokenizer's decoding."""
    size = max(len(tokenizer), ends[-1] + 1)
    names: list[str | None] = [*tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))]
    names += [None] * (size - len(names))
    hidden = {*tokenizer.all_special_ids, *ends}
    added = getattr(tokenizer, "added_tokens_decoder", {})
    hidden |= {int(token) for token, settings in added.items() if getattr(settings, "special", False)}
    for spelled in (_byte_level(names), _marked(names)):
        pieces = tuple(b"" if token in hidden else piece for token, piece in enumerate(spelled))
        if _agrees(tokenizer, pieces):
            return pieces
    raise TokenizerError(
        "Structured output does not work with this model's tokenizer: which text a token stands for cannot be told."
    )


def _byte_level(names: Sequence[str | None]) -> list[bytes]:
    """Each byte is a character (GPT-2, Llama 3, Qwen); a token with any other character is taken literally."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    byte_of = {chr(byte): byte for byte in printable}
    byte_of |= {chr(256 + n): byte for n, byte in enumerate(byte for byte in range(256) if byte not in printable)}

    def spelled(name: str) -> bytes:
        return bytes(byte_of[c] for c in name) if all(c in byte_of for c in name) else name.encode()

    return [spelled(name or "") for name in names]


def _marked(names: Sequence[str | None]) -> list[bytes]:
    """A blank is ``▁``, and characters without a token are written as ``<0xE2>`` (SentencePiece, Llama 2, Gemma)."""
    byte_of = {f"<0x{byte:02X}>": bytes([byte]) for byte in range(256)}
    if not byte_of.keys() <= set(names):
        byte_of = {}
    return [byte_of.get(name) or name.replace("▁", " ").encode() for name in (name or "" for name in names)]


def _agrees(tokenizer: Any, pieces: tuple[bytes, ...]) -> bool:
    """Whether joined bytes are what the tokenizer decodes, but for a blank at the start of a line, which some drop."""

    def same(tokens: list[int]) -> bool:
        decoded = tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        joined = b"".join(pieces[token] for token in tokens).decode("utf-8", "replace")
        return [line.lstrip(" ") for line in decoded.split("\n")] == [line.lstrip(" ") for line in joined.split("\n")]

    texts = [tokenizer.encode(text, add_special_tokens=False) for text in _PROBES]
    first = next((token for token in texts[1] if pieces[token].strip()), None)
    if first is None:
        return False
    whole = [token for token, piece in enumerate(pieces) if piece and _is_text(piece)]
    return all(map(same, texts)) and all(same([first, token]) for token in whole[:: len(whole) // _SAMPLE + 1])


def _is_text(piece: bytes) -> bool:
    """Whether bytes are whole characters."""
    try:
        piece.decode()
    except UnicodeDecodeError:
        return False
    return True


def _grammar(matcher: Any, options: GenerationOptions) -> tuple[str, str]:
    """The option that asks for a form, and the form as llguidance reads it."""
    if options.schema is not None:
        try:
            grammar = matcher.grammar_from_json_schema(
                options.schema, overrides={"whitespace_pattern": _WHITESPACE, "whitespace_flexible": True}
            )
        except ValueError as error:
            raise ArgumentError(Option("schema"), f" cannot be followed: {_problem(str(error))}") from error
        return "schema", grammar
    if options.regex is not None:
        return "regex", matcher.grammar_from_regex(options.regex)
    texts = "|".join("".join(c if c.isalnum() else f"\\x{{{ord(c):x}}}" for c in text) for text in options.choice)
    return "choice", matcher.grammar_from_regex(f"({texts})")


def _problem(message: str) -> str:
    """The line of llguidance's report that says what is wrong."""
    if unsupported := re.search(r"Unimplemented keys: \[(.*?)\]", message):
        return f"llguidance does not know {unsupported[1]}. Leave it out."
    lines = [line.strip() for line in message.strip().splitlines() if line.strip()]
    line = next((line[len("error: ") :] for line in lines if line.startswith("error: ")), lines[0])
    return line if line.endswith((".", "!", "?")) else line + "."
