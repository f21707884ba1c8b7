"""The tokenizer of a GGUF file as ``tokenizer.json`` and ``tokenizer_config.json``.

A file has the tokens, their scores or merges, and names for the rest. What a name means is llama.cpp's
src/llama-vocab.cpp; the expressions are those of the original tokenizers, which it names beside its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from grit_mlx.errors import TokenizerError

__all__ = ["eos_tokens", "tokenizer_config", "tokenizer_of"]

# Kinds of tokens, by their number in the file.
_UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 2, 3, 4, 5, 6

_SPACE = "▁"

# Words with what precedes them, digits, and what the tokenizers that follow have in common.
_ENGLISH = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_ENGLISH}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_REST}"
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"


def _cased(digits: str, after: str = "") -> str:
    """Words begin with capitals or have none."""
    before = r"[^\r\n\p{L}\p{N}]?"
    words = f"{before}{_UPPER}*{_LOWER}+{after}|{before}{_UPPER}+{_LOWER}*{after}"
    return rf"{words}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_REST}"


@dataclass(frozen=True)
class Splitting:
    """How a byte-level tokenizer splits a text before it merges.

    Attributes:
        expressions: each splits further what those before it have left; what none matches stays together.
        gpt2: whether GPT-2's own expression comes last.
        whole_words: whether a word that is a token is not put together by merges.
        begins: whether texts begin with the first token unless the file says otherwise.
        composed: whether characters are composed (NFC).
    """

    expressions: tuple[str, ...] = ()
    gpt2: bool = False
    whole_words: bool = False
    begins: bool = False
    composed: bool = False


_GPT2 = Splitting(gpt2=True)
_DIGITS = Splitting((r"\p{N}",), gpt2=True)
_LLAMA = Splitting((_LLAMA3,), whole_words=True, begins=True)
_CL100K = Splitting((_LLAMA3,))
_QWEN = Splitting((_QWEN2,), composed=True)
_GPT4O = Splitting((_cased(r"\p{N}{1,3}", f"{_ENGLISH}?"),))

_SPLITTINGS = {
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo", "jais", "a.x-4.0", "mellum", "exaone4", "trillion"), _GPT2),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), _DIGITS),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "midm-2.0"), _LLAMA),
    **dict.fromkeys(("dbrx", "smaug-bpe"), _CL100K),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez"), _QWEN),
    "stablelm2": Splitting((_QWEN2,)),
    "tekken": Splitting((_cased(r"\p{N}"),), whole_words=True, begins=True),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2"), _GPT4O),
}
# Of files from before the name was written, whose architecture leaves no choice.
_BY_ARCHITECTURE = {"qwen2": "qwen2", "qwen3": "qwen2", "qwen3moe": "qwen2"}


@dataclass(frozen=True)
class Vocabulary:
    """The metadata of a tokenizer.

    Attributes:
        metadata: all of the file's.
        place: what messages call it.
    """

    metadata: Mapping[str, Any]
    place: str

    def get(self, key: str, default: Any = None) -> Any:
        """A value of the tokenizer."""
        return self.metadata.get(f"tokenizer.ggml.{key}", default)

    @property
    def tokens(self) -> list[str]:
        """By their ids."""
        return list(self.get("tokens", ()))

    @property
    def kinds(self) -> list[int]:
        """What each token is."""
        tokens = self.tokens
        kinds = self.get("token_type") or [1] * len(tokens)
        if len(kinds) != len(tokens):
            raise _damaged(self.place, f"it has {len(tokens)} tokens and the kinds of {len(kinds)}")
        return list(kinds)

    def token(self, name: str) -> str | None:
        """The token whose id has a name, such as ``"bos"``; None if there is none."""
        number = self.get(f"{name}_token_id")
        return self.tokens[number] if isinstance(number, int) and 0 <= number < len(self.tokens) else None


def tokenizer_of(metadata: Mapping[str, Any], place: str) -> Tokenizer:
    """The tokenizer that a file describes.

    Args:
        metadata: the file's.
        place: what messages call it.

    Raises:
        TokenizerError: a kind that is not known, or one that cannot be.
    """
    vocabulary = Vocabulary(metadata, place)
    if not vocabulary.tokens:
        raise TokenizerError(f"{place} has no tokenizer. Use another file of the model.")
    kind = vocabulary.get("model")
    try:
        if kind == "gpt2":
            tokenizer, begins = _byte_level(vocabulary)
        elif kind == "llama":
            tokenizer, begins = _sentencepiece(vocabulary), True
        else:
            raise TokenizerError(
                f"{place} has a tokenizer of the kind {kind!r}, which cannot be read from GGUF here: gpt2 (byte-level "
                "BPE) and llama (SentencePiece) can. Use the model's Hugging Face checkpoint, or an MLX one."
            )
        _add_tokens(tokenizer, vocabulary)
        _add_ends(tokenizer, vocabulary, begins)
    except TokenizerError:
        raise
    except Exception as error:  # from Rust, of no class of its own
        raise _damaged(place, f"its tokenizer cannot be built ({error})") from error
    return tokenizer


def tokenizer_config(metadata: Mapping[str, Any], place: str) -> dict[str, Any]:
    """The contents of ``tokenizer_config.json``."""
    vocabulary = Vocabulary(metadata, place)
    named = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        **{name: token for name, key in named.items() if (token := vocabulary.token(key)) is not None},
    }
    if template := metadata.get("tokenizer.chat_template"):
        config["chat_template"] = template
    return config


# Tokens that end a turn, whose ids a file need not name.
_ENDS = (
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|eom_id|>",
    "<EOT>",
    "<|end_of_text|>",
)


def eos_tokens(metadata: Mapping[str, Any], place: str) -> list[int]:
    """Ids at which an answer ends: the named ones, and tokens that end a turn in every model that has them."""
    vocabulary = Vocabulary(metadata, place)
    named = [vocabulary.get(f"{name}_token_id") for name in ("eos", "eot", "eom")]
    known = {
        token: number
        for number, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.kinds, strict=True))
        if kind in (_CONTROL, _USER_DEFINED)
    }
    found = [*named, *(known.get(token) for token in _ENDS)]
    return list(dict.fromkeys(number for number in found if number is not None))


def _damaged(place: str, problem: str) -> TokenizerError:
    return TokenizerError(f"{place} is damaged: {problem}. Download the model again.")


# Byte-level BPE


def _byte_level(vocabulary: Vocabulary) -> tuple[Tokenizer, bool]:
    """The tokenizer, and whether its texts begin with the first token."""
    architecture = str(vocabulary.metadata.get("general.architecture"))
    name = vocabulary.get("pre") or _BY_ARCHITECTURE.get(architecture)
    if name not in _SPLITTINGS:
        said = f"splits texts by {name!r}, which is not known here" if name else "does not say how texts are split"
        raise TokenizerError(
            f"{vocabulary.place} {said} (tokenizer.ggml.pre). Use the model's Hugging Face checkpoint, or a newer file."
        )
    splitting = _SPLITTINGS[name]
    # Tokens that fill the table up to a round number are in no text.
    kinds = vocabulary.kinds
    table = {token: number for number, token in enumerate(vocabulary.tokens) if kinds[number] != _UNUSED}
    merges = [_pair(merge, vocabulary.place) for merge in vocabulary.get("merges", ())]
    tokenizer = Tokenizer(models.BPE(vocab=table, merges=merges, ignore_merges=splitting.whole_words))
    if splitting.composed:
        tokenizer.normalizer = normalizers.NFC()
    split = [pre_tokenizers.Split(Regex(one), behavior="isolated") for one in splitting.expressions]
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=splitting.gpt2)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*split, last])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, splitting.begins


def _pair(merge: str, place: str) -> tuple[str, str]:
    first, space, second = merge[:1], *merge[1:].partition(" ")[1:]
    first += merge[1:].partition(" ")[0]
    if not space or not second:
        raise _damaged(place, f"{merge!r} is not a merge of two tokens")
    return first, second


# SentencePiece


def _sentencepiece(vocabulary: Vocabulary) -> Tokenizer:
    """Pairs are merged by their score, characters without a token become bytes."""
    architecture = str(vocabulary.metadata.get("general.architecture"))
    tokens, kinds = vocabulary.tokens, vocabulary.kinds
    gemma = architecture.startswith("gemma")
    # Gemma's runs of spaces are tokens of their own, written as spaces.
    if gemma:
        tokens = [_SPACE * len(token) if token and not token.strip(" ") else token for token in tokens]
    table = {token: number for number, token in enumerate(tokens)}
    if listed := vocabulary.get("merges"):
        merges = [_pair(merge, vocabulary.place) for merge in listed]
    else:
        scores = vocabulary.get("scores") or ()
        if len(scores) != len(tokens):
            raise _damaged(vocabulary.place, f"it has {len(tokens)} tokens and the scores of {len(scores)}")
        # Gemma's scores do not rise with the order of its merges; the order of its tokens does.
        ranks: Sequence[float] = range(len(tokens)) if gemma else [-score for score in scores]
        merges = _merges(table, [number for number, kind in enumerate(kinds) if kind == 1], ranks, tokens)
    unknown = next((tokens[number] for number, kind in enumerate(kinds) if kind == _UNKNOWN), None)
    unknown = unknown or vocabulary.token("unknown")
    bytes_known = sum(kind == _BYTE for kind in kinds) == 256
    tokenizer = Tokenizer(
        models.BPE(vocab=table, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=bytes_known)
    )
    prefixed = bool(vocabulary.get("add_space_prefix", True))
    prefix = [normalizers.Prepend(_SPACE)] if prefixed else []
    tokenizer.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", _SPACE)])
    strip = [decoders.Strip(" ", 1, 0)] if prefixed else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return tokenizer


def _merges(
    table: Mapping[str, int], numbers: Sequence[int], ranks: Sequence[float], tokens: Sequence[str]
) -> list[tuple[str, str]]:
    """All pairs of tokens that make a token, in the order in which they are merged.

    Of the pairs that make the same token those with the longest first part go first, as transformers has it: that is
    nearest to SentencePiece, which takes the leftmost of equal ones in the text.
    """
    found = []
    for number in numbers:
        token = tokens[number]
        for place in range(1, len(token)):
            first, second = token[:place], token[place:]
            if first in table and second in table:
                found.append((ranks[number], -len(first), -len(second), first, second))
    found.sort(key=lambda one: one[:3])
    return [(first, second) for *_, first, second in found]


# Both


def _add_tokens(tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
    """Tokens that are found in a text before it is split."""
    table = tokenizer.get_vocab(with_added_tokens=False)
    control, own = [], []
    for token, kind in zip(vocabulary.tokens, vocabulary.kinds, strict=True):
        spelled = token if token in table else _SPACE * len(token)
        if kind in (_CONTROL, _UNKNOWN) and token:
            control.append(AddedToken(token, special=True, normalized=False))
        elif kind == _USER_DEFINED and spelled in table:
            own.append(AddedToken(spelled, special=False, normalized=spelled != token))
    tokenizer.add_special_tokens(control)
    tokenizer.add_tokens(own)


def _add_ends(tokenizer: Tokenizer, vocabulary: Vocabulary, begins: bool) -> None:
    """What texts begin and end with."""
    bos, eos = vocabulary.token("bos"), vocabulary.token("eos")
    first = [bos] if bos is not None and vocabulary.get("add_bos_token", begins) else []
    last = [eos] if eos is not None and vocabulary.get("add_eos_token", False) else []
    if first or last:
        special = [(token, vocabulary.get(f"{name}_token_id")) for token, name in ((bos, "bos"), (eos, "eos"))]
        pair = [*first, "$A", *last, *(f"{token}:1" for token in first), "$B:1", *(f"{token}:1" for token in last)]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[*first, "$A", *last],
            pair=pair,
            special_tokens=[one for one in special if one[0] in {*first, *last}],
        )
