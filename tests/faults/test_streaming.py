"""Faults, kind 3: what is streamed is not what is written.

For every tokenizer the joined pieces equal the decoded tokens, and those of ``generate_batch``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from grit_mlx import GritLM
from grit_mlx.model import detokenizing, hub
from grit_mlx.model.detokenizing import Detokenizer

TEXTS = (
    "東京タワー",
    "東京タワーは、とても高い。大阪城も。",
    "서울 타워 높다",
    "ภาษาไทย हिन्दी العربية עברית",
    "👩‍👩‍👧‍👦 and 🏳️‍🌈, ❤️ or 👍🏽: 🇯🇵🇩🇪",
    "e\u0301 a\u0308\u0323 ﷽ \u200b\u200d\ufeff",
    " one leading blank",
    "    four leading blanks, two  inside , and one before this . And 's n't ' '",
    "line\n\n  indented\n\tTab\r\nend \n",
    "\n\n\n",
    "   ",
    "\ufffd is a character too \ufffd\ufffd",
    "<0x41> <s> </s> [UNK] ▁ Ġ ## </w>",
    "a" * 300,
    "\U0001f600" * 80,
    "don't do not I'm we've they're it's.",
    "x = {'a': 1}\nif x:\n    print(f'{x}')\n",
)

CORPUS = [*TEXTS, "The keel keeps a ship upright while the wind leans on its sails.", "Bread rises with yeast."] * 3


def spm(*, strip: bool) -> Any:
    """As Llama's (with ``strip``) and Gemma's: characters that are not in it are spelled in bytes."""
    octets = [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(
        [*([normalizers.Prepend("▁")] if strip else []), normalizers.Replace(" ", "▁")]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=["<unk>", "<s>", "</s>", *octets], limit_alphabet=60, show_progress=False
    )
    tokenizer.train_from_iterator(["The keel keeps a ship upright.", "Bread rises with yeast."] * 3, trainer)
    steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, *([decoders.Strip(" ", 1, 0)] if strip else [])])
    return tokenizer


def byte_level() -> Any:
    """As GPT-2's, Llama 3's and Qwen's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def unigram() -> Any:
    """As T5's."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def word_piece() -> Any:
    """As BERT's, whose decoder cleans up blanks before punctuation."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[UNK]", "<s>", "</s>"], show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def suffixes() -> Any:
    """As CLIP's and the first GPT's: a word's end is marked."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.BPEDecoder()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<unk>", "<s>", "</s>"], end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def words() -> Any:
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(special_tokens=["[UNK]", "<s>", "</s>"], show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def odd() -> Any:
    """One that looks back: every word but the last is written backwards."""
    tokenizer = spm(strip=True)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Replace("ee", "E")]
    )
    return tokenizer


BUILT: dict[str, Callable[[], Any]] = {
    "Llama": lambda: spm(strip=True),
    "Gemma": lambda: spm(strip=False),
    "byte level": byte_level,
    "Unigram": unigram,
    "WordPiece": word_piece,
    "suffixes": suffixes,
    "words": words,
    "odd": odd,
}


def wrapped(tokenizer: Any, **options: Any) -> Any:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", **options)


def pieces(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    text = Detokenizer(tokenizer)
    return [*(text.add(token) for token in ids), text.finish()]


@pytest.fixture(scope="module", params=[*BUILT, "cleaning up", "grit-tiny", "tiny"])
def tokenizer(request: pytest.FixtureRequest, tiny_model: Path) -> Any:
    folders = {"grit-tiny": hub.embedded_model(), "tiny": tiny_model}
    if request.param in folders:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(folders[request.param])
    if request.param == "cleaning up":
        return wrapped(word_piece(), clean_up_tokenization_spaces=True)
    return wrapped(BUILT[request.param]())


@pytest.mark.parametrize("text", TEXTS)
def test_texts(tokenizer: Any, text: str) -> None:
    for prefix in ("", "The keel. "):
        ids = tokenizer.encode(prefix + text, add_special_tokens=False)
        assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids)


def test_random_tokens(tokenizer: Any) -> None:
    """A random model writes broken characters, special tokens and ids that the tokenizer does not have."""
    rng = np.random.default_rng(0)
    octets = list(detokenizing._byte_tokens(tokenizer))
    for trial in range(120):
        pool: Any = [*octets, *range(3, 40)] if octets and trial % 3 == 0 else range(len(tokenizer) + 3)
        ids = [int(one) for one in rng.choice(pool, int(rng.choice([1, 3, 20, 60])))]
        assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids), ids


def test_every_token_alone_and_after_another(tokenizer: Any) -> None:
    for token in range(min(len(tokenizer), 600)):
        for ids in ([token], [5, token], [token, token, 7]):
            assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids), ids


def test_pieces_come_early(tokenizer: Any) -> None:
    """Right would be easy with everything at the end."""
    ids = tokenizer.encode("The keel keeps a ship upright while the wind leans on its sails. " * 3)
    got = pieces(tokenizer, ids)
    assert len("".join(got[: len(ids) // 2])) > 0.3 * len("".join(got))
    assert sum(map(bool, got)) > len(got) / 4


def test_a_row_of_bytes_is_not_held_back_for_ever(tiny_model: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    newline: Any = tokenizer.convert_tokens_to_ids("<0x0A>")
    got = pieces(tokenizer, [newline] * 500)
    assert "".join(got) == "\n" * 500 and len("".join(got[:250])) > 150


def test_windows_are_enough_for_the_usual_tokenizers(tokenizer: Any) -> None:
    """All tokens anew for each piece would take a time that grows with the answer."""
    import time

    ids = tokenizer.encode("The keel keeps a ship upright while the wind leans on its sails. ") * 60
    text = Detokenizer(tokenizer)
    start = time.perf_counter()
    for token in ids:
        text.add(token)
    assert (time.perf_counter() - start) / len(ids) < 1e-3


class Engine:
    """In the place of mlx-lm's: writes the tokens that it is given."""

    def __init__(self, ids: Sequence[int]) -> None:
        self.ids = ids

    def __call__(self, prompt: Any, model: Any, **_: Any) -> Any:
        return ((token, mx.zeros(4)) for token in [*self.ids, 2])


@pytest.mark.parametrize("source", ["tiny_model", "stories"])
@pytest.mark.parametrize("text", TEXTS)
def test_through_the_model(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, models_by_name: Any, source: str, text: str
) -> None:
    model = models_by_name(source)
    ids = model.tokenizer.encode(text, add_special_tokens=False)
    ids = [token for token in ids if token not in model._engine_tokenizer.eos_token_ids]
    monkeypatch.setattr("grit_mlx.model.generation.generate_step", Engine(ids))
    monkeypatch.setattr(model._engine_tokenizer, "_eos_token_ids", {2})
    assert "".join(model.stream("Say it.", max_tokens=len(ids) + 5)) == model.tokenizer.decode(ids)
    # Cut by the length instead of the end token.
    assert model.generate("Say it.", max_tokens=max(1, len(ids))) == model.tokenizer.decode(ids)
    if len(text) > 6 and (stop := model.tokenizer.decode(ids)[3:5]).strip("\ufffd"):
        whole = model.tokenizer.decode(ids)
        assert model.generate("Say it.", max_tokens=len(ids) + 5, stop=[stop]) == whole[: whole.index(stop)]


@pytest.fixture(scope="module")
def models_by_name(tiny_model: Path, request: pytest.FixtureRequest) -> Any:
    return cache(lambda name: GritLM(tiny_model if name == "tiny_model" else request.getfixturevalue(name)))


@pytest.mark.parametrize("source", ["tiny_model", "stories"])
@pytest.mark.parametrize("temperature", [0.0, 1.0, 3.0])
def test_streams_and_batches_write_the_same(models_by_name: Any, source: str, temperature: float) -> None:
    model = models_by_name(source)
    for seed in range(4):
        options: dict[str, Any] = {"max_tokens": 40, "temperature": temperature, "seed": seed}
        responses = list(model.stream_responses("東京タワー 👩‍👩‍👧‍👦?", **options))
        ids = [response.token for response in responses]
        ids = ids[:-1] if responses[-1].finish_reason == "stop" else ids
        assert "".join(response.text for response in responses) == model.tokenizer.decode(ids)
        if not temperature:
            assert model.generate_batch(["東京タワー 👩‍👩‍👧‍👦?"], **options) == [model.tokenizer.decode(ids)]
