"""Tokenizers of GGUF files against those that they were made of, on texts in many scripts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from grit_mlx.errors import TokenizerError
from grit_mlx.model.gguf.vocabulary import eos_tokens, tokenizer_config, tokenizer_of
from tests.gguf_files import tokenizer_settings

TEXTS = [
    "Hello world",
    "  leading and trailing  ",
    "a\n\n\nb\t\tc \n d\r\n\r\n",
    "1234567 3.14159 ½ ²³ ١٢٣ १२३ 12,345.67",
    "don't I'LL we've SHE'D it’s",
    "日本語のテキスト、中文文本。한국어",
    "Привет мир, как дела? ΑΒΓ αβγ ß İ \u0131 ǅ",
    "مرحبا بالعالم كيف حالك שלום עולם",
    "नमस्ते दुनिया ภาษาไทย ไม่มีช่องว่าง",
    "🎉👩‍👩‍👧‍👦🏳️‍🌈 emoji \U0001d518\U0001d52b 𐍈 𠜎",
    "e\u0301 é ﬁ Å \u212b Ñandú São",
    "def f(x):\n    return x**2  # sq\n\tif y:\n\t\tpass",
    "CamelCaseWords and snake_case_words, http://a.b/c?d=e&f=g#h",
    "\x01\x7f\u200b\u00a0zero",
    "x" * 50,
    "ab   cd    ef     gh",
    "<0x41> ▁ ▁▁x",
    "",
    " ",
]
# What the tokenizers below learn: some of every script.
CORPUS = TEXTS * 3 + [
    "The quick brown fox jumps over the lazy dog. " * 3,
    "Она сказала, что не придёт. Мир и война.",
    "それは本当に良い考えだと思います。",
    "هذا كتاب جيد جدا",
    "don't won't I'll you've THEY'RE",
    "for i in range(10):\n        print(i)\n",
]

# Splits of the original tokenizer.json files, by the names that llama.cpp gives them.
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _split(expression: str) -> list[Any]:
    return [
        pre_tokenizers.Split(Regex(expression), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]


SPLITS: dict[str, list[Any]] = {
    "gpt-2": [pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "smollm": [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "llama-bpe": _split(_LLAMA3),
    "dbrx": _split(_LLAMA3),
    "qwen2": _split(_LLAMA3.replace("{1,3}", "")),
    "tekken": _split(_TEKKEN),
}
WHOLE_WORDS = ("llama-bpe", "tekken")
SPECIAL = ["<|begin|>", "<|end|>", "<|im_start|>"]


def byte_level(pre: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(ignore_merges=pre in WHOLE_WORDS))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(SPLITS[pre])
    tokenizer.decoder = decoders.ByteLevel()
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([AddedToken("<think>", special=False, normalized=False), "<tool call>"])
    return tokenizer


def of(tokenizer: Tokenizer, **given: Any) -> Tokenizer:
    return tokenizer_of({"general.architecture": "llama", **tokenizer_settings(tokenizer, **given)}, "x.gguf")


@pytest.mark.parametrize("pre", SPLITS)
def test_byte_level_tokenizers(pre: str) -> None:
    original = byte_level(pre)
    found = of(original, pre=pre, bos_token_id=0, eos_token_id=1, add_bos_token=False)
    texts = [*TEXTS, *("".join(pair) for pair in zip(TEXTS, SPECIAL * 9, strict=False)), "a<think>b <tool call> c"]
    for text in texts:
        assert found.encode(text).ids == original.encode(text).ids, text
        assert found.decode(original.encode(text).ids) == original.decode(original.encode(text).ids), text
    assert found.get_vocab() == original.get_vocab()


def test_splits_differ() -> None:
    """Each of these names means something: a text is split in another way by the others."""
    original = byte_level("qwen2")
    for other in SPLITS:
        if other != "qwen2":
            found = of(original, pre=other, add_bos_token=False)
            assert any(found.encode(text).ids != original.encode(text).ids for text in TEXTS), other


def test_what_texts_begin_and_end_with() -> None:
    original = byte_level("gpt-2")
    ids = {"bos_token_id": 0, "eos_token_id": 1}
    cases: list[tuple[dict[str, Any], str, tuple[bool, bool]]] = [
        ({}, "gpt-2", (False, False)),
        ({"add_bos_token": True}, "gpt-2", (True, False)),
        ({"add_bos_token": True, "add_eos_token": True}, "gpt-2", (True, True)),
        ({}, "llama-bpe", (True, False)),
        ({"add_bos_token": False}, "llama-bpe", (False, False)),
    ]
    for given, pre, (begins, ends) in cases:
        found = of(original, pre=pre, **ids, **given)
        words = found.encode("x", add_special_tokens=False).ids
        assert found.encode("x").ids == [0] * begins + words + [1] * ends
        both = found.encode("x", "x")
        assert both.ids == ([0] * begins + words + [1] * ends) * 2
        assert both.type_ids[-1] == 1
    assert of(original, pre="llama-bpe").encode("x").ids == of(original, pre="dbrx").encode("x").ids  # without a name


def test_tokens_that_fill_the_table() -> None:
    original = byte_level("qwen2")
    settings = tokenizer_settings(original, pre="qwen2")
    settings["tokenizer.ggml.tokens"] += [f"[PAD{number}]" for number in range(9)]
    settings["tokenizer.ggml.token_type"] += [5] * 9
    found = tokenizer_of({"general.architecture": "qwen2", **settings}, "x.gguf")
    assert found.get_vocab_size() == original.get_vocab_size()
    assert found.encode("[PAD3]").ids == original.encode("[PAD3]").ids


def test_files_from_before_the_split_was_named() -> None:
    original = byte_level("qwen2")
    settings = tokenizer_settings(original)
    found = tokenizer_of({"general.architecture": "qwen2", **settings}, "x.gguf")
    assert found.encode(TEXTS[3]).ids == original.encode(TEXTS[3]).ids
    with pytest.raises(TokenizerError, match="does not say how texts are split"):
        tokenizer_of({"general.architecture": "llama", **settings}, "x.gguf")


def sentencepiece(*, prefix: bool = True) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    normal = [normalizers.Replace(" ", "▁")]
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), *normal] if prefix else normal)
    byte = [f"<0x{number:02X}>" for number in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=["<unk>", "<s>", "</s>", *byte], limit_alphabet=120, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    # Bytes are pieces of the model and not found in a text; what has been learned stays.
    settings = tokenizer_settings(tokenizer)
    table = {token: number for number, token in enumerate(settings["tokenizer.ggml.tokens"])}
    learned = _ordered(tokenizer, table)
    rebuilt = Tokenizer(models.BPE(vocab=table, merges=learned, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    rebuilt.normalizer = tokenizer.normalizer
    rebuilt.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in ("<unk>", "<s>", "</s>")]
    )
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    rebuilt.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    rebuilt.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return rebuilt


def _ordered(tokenizer: Tokenizer, table: dict[str, int]) -> list[tuple[str, str]]:
    """All pairs that make a learned token, in its order: what a SentencePiece model merges, which stores none."""
    pairs = [
        (table[token], -place, token[:place], token[place:])
        for token in table
        if token not in ("<unk>", "<s>", "</s>") and not (token.startswith("<0x") and len(token) == 6)
        for place in range(1, len(token))
        if token[:place] in table and token[place:] in table
    ]
    return [(first, second) for *_, first, second in sorted(pairs)]


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_tokenizers(prefix: bool) -> None:
    original = sentencepiece(prefix=prefix)
    given = {} if prefix else {"add_space_prefix": False}
    found = of(original, bos_token_id=1, eos_token_id=2, **given)
    for text in [*TEXTS, "<s>a</s> b", "x<unk>y"]:
        assert found.encode(text).tokens == original.encode(text).tokens, text
        assert found.encode(text).ids == original.encode(text).ids, text
        ids = original.encode(text).ids
        assert found.decode(ids) == original.decode(ids), text
    if prefix:
        assert "<0xF0>" in found.encode(TEXTS[9]).tokens  # bytes of what has no token


def test_gemmas_spaces() -> None:
    """Its runs of spaces are tokens, written as spaces, and found before a text is split."""
    original = sentencepiece(prefix=False)
    settings = tokenizer_settings(original, bos_token_id=1, eos_token_id=2, add_space_prefix=False)
    start = len(settings["tokenizer.ggml.tokens"])
    settings["tokenizer.ggml.tokens"] += ["   ", "    ", "\n\n", "<start_of_turn>"]
    settings["tokenizer.ggml.token_type"] += [4, 4, 4, 3]
    settings["tokenizer.ggml.scores"] += [-1000.0] * 4
    found = tokenizer_of({"general.architecture": "gemma2", **settings}, "x.gguf")
    assert start in found.encode("a   b").ids and start + 1 in found.encode("a    b").ids
    assert found.encode("a\n\nb").ids.count(start + 2) == 1
    assert found.encode("<start_of_turn>a").ids[1] == start + 3
    assert found.decode(found.encode("a   b\n\nc").ids) == "a   b\n\nc"


def test_names_of_tokens_and_ends_of_answers() -> None:
    settings = tokenizer_settings(byte_level("gpt-2"), pre="gpt-2", bos_token_id=0, eos_token_id=1, eot_token_id=2)
    settings["tokenizer.ggml.tokens"] += ["<|im_end|>", "<|endoftext|>"]
    settings["tokenizer.ggml.token_type"] += [3, 1]
    settings |= {"tokenizer.chat_template": "{{ x }}", "tokenizer.ggml.padding_token_id": 999999}
    config = tokenizer_config(settings, "x.gguf")
    assert (config["bos_token"], config["eos_token"], config["chat_template"]) == ("<|begin|>", "<|end|>", "{{ x }}")
    assert "pad_token" not in config and "unk_token" not in config
    end = len(settings["tokenizer.ggml.tokens"]) - 2
    assert eos_tokens(settings, "x.gguf") == [1, 2, end]  # a token that is text ends nothing


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"token_type": [1]}, "tokens and the kinds of 1"),
        ({"merges": ["ab"]}, "'ab' is not a merge of two tokens"),
        ({"merges": ["zzz qqq"]}, "its tokenizer cannot be built"),
        ({"model": "llama", "merges": None, "scores": [1.0]}, "tokens and the scores of 1"),
    ],
)
def test_damaged_tokenizers(change: dict[str, Any], match: str) -> None:
    settings = tokenizer_settings(byte_level("gpt-2"), pre="gpt-2", **change)
    with pytest.raises(TokenizerError, match=rf"x.gguf is damaged: .*{match}"):
        tokenizer_of({"general.architecture": "llama", **settings}, "x.gguf")


def test_the_golden_tokenizer(tiny_model: Path) -> None:
    original = Tokenizer.from_file(str(tiny_model / "tokenizer.json"))
    found = of(original, bos_token_id=1, eos_token_id=2)
    for text in TEXTS:
        assert found.encode(text).ids == original.encode(text).ids, text
