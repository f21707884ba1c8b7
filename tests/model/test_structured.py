"""Answers in a form that is asked for, from random weights: valid whatever the model would rather say."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from grit_mlx import GritLM
from grit_mlx.errors import ArgumentError, DependencyError, TokenizerError
from grit_mlx.model.options import GenerationOptions
from grit_mlx.model.structured import Constraint, TokenBytes, constraint

pytest.importorskip("llguidance", reason="needs llguidance: pip install 'grit-mlx[structured]'")
jsonschema = pytest.importorskip("jsonschema", reason="needs jsonschema, which checks the answers")


def _object(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


_NAME = {"type": "string", "maxLength": 12}
SCHEMAS: dict[str, dict[str, Any]] = {
    "flat": _object(name=_NAME, alive={"type": "boolean"}, nothing={"type": "null"}),
    "nested": _object(a=_object(b=_object(c=_object(d=_NAME)))),
    "array": {"type": "array", "items": _NAME, "minItems": 2, "maxItems": 4},
    "enum": _object(colour={"enum": ["red", "green", 'a "quoted" one', 3, None, ["x"]]}, kind={"const": "Ä\\n"}),
    "reference": {
        "$defs": {
            "node": _object(value={"type": "integer", "minimum": 0, "maximum": 9}, next={"$ref": "#/$defs/leaf"}),
            "leaf": _object(end={"type": "boolean"}),
        },
        "$ref": "#/$defs/node",
    },
    "unicode": _object(**{"名前": {"enum": ["東京", "Zoë", "👩‍👩‍👧"]}, "é": {"const": "日本"}}),
    "bounds": _object(
        low={"type": "integer", "minimum": -5, "maximum": 17},
        high={"type": "integer", "exclusiveMinimum": 1000, "exclusiveMaximum": 1003},
        part={"type": "number", "enum": [0.5, -1.25]},
    ),
    "choice": {"anyOf": [_object(circle={"type": "integer", "maximum": 9, "minimum": 1}), _object(text=_NAME)]},
    "pattern": _object(
        date={"type": "string", "format": "date"}, code={"type": "string", "pattern": "^[A-Z]{3}-[0-9]{2}$"}
    ),
    "objects": {
        "type": "array",
        "minItems": 1,
        "maxItems": 3,
        "items": _object(id={"type": "integer", "minimum": 1, "maximum": 99}),
    },
    "tuple": {"type": "array", "prefixItems": [{"const": 1}, _NAME], "items": False, "minItems": 2},
}


@pytest.fixture(scope="module")
def grit(tiny_model: Path) -> GritLM:
    return GritLM(tiny_model, mode="generative")


@pytest.mark.parametrize("name", SCHEMAS)
@pytest.mark.parametrize("seed", [None, 1, 2])
def test_random_weights_write_valid_json(grit: GritLM, name: str, seed: int | None) -> None:
    answer = grit.generate(
        "Describe it.", 400, temperature=0.0 if seed is None else 3.0, seed=seed, schema=SCHEMAS[name]
    )
    jsonschema.validate(json.loads(answer), SCHEMAS[name])
    answer.encode("utf-8")


def _tokenizers(tiny_model: Path, shared: Path, tmp_path: Path) -> dict[str, Any]:
    """By kind: ▁ with bytes in several ways, byte-level, without bytes, SentencePiece's own file alone."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    folders = {
        "tiny": tiny_model,
        "golden": shared / "golden" / "mistral" / "checkpoint",
        "golden mixtral": shared / "golden" / "mixtral" / "checkpoint",
        "stories": shared / "models" / "stories260k",
    }
    made = {name: AutoTokenizer.from_pretrained(folder) for name, folder in folders.items()}
    alone = tmp_path / "alone"
    alone.mkdir()
    for name in ("tokenizer.model", "tokenizer_config.json", "config.json"):
        (alone / name).write_bytes((folders["golden"] / name).read_bytes())
    made["tokenizer.model"] = AutoTokenizer.from_pretrained(alone)
    made["unigram"] = PreTrainedTokenizerFast(tokenizer_object=_unigram(), unk_token="<unk>", eos_token="</s>")
    made["byte level"] = PreTrainedTokenizerFast(tokenizer_object=_byte_level(), eos_token="<|end|>")
    return made


def _byte_level() -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    texts = ['{"name": "value", "größe": 12, "tags": ["東京", true, null]}', "the quick brown fox   jumps"] * 50
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=400, special_tokens=["<|end|>"], initial_alphabet=alphabet)
    )
    tokenizer.add_tokens([AddedToken("\n    ", normalized=False), AddedToken("<tool_call>", normalized=False)])
    return tokenizer


def _unigram() -> Any:
    """With Metaspace, as T5 and XLM-R, and no bytes: characters outside its texts cannot be written."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    printable = [chr(c) for c in range(33, 127)] + list("\n\té\\Ä東京日本名前größeZoëé\u200d👩👧名\u0301\x02\u00a0")
    trainer = trainers.UnigramTrainer(
        vocab_size=400, special_tokens=["<unk>", "</s>"], unk_token="<unk>", initial_alphabet=printable
    )
    texts = ['{"name": "value", "tags": [12, true, null]}', "the quick brown fox jumps", *printable] * 20
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _walk(form: Constraint, table: TokenBytes, vocabulary: int, generator: np.random.Generator) -> str:
    """An answer of random tokens, each of those that may follow."""
    tokens, text = [5, 6, 7], form.detokenizer()
    answer = ""
    for _ in range(600):
        logits = np.array(form(mx.array(tokens), mx.zeros((1, vocabulary))))[0]
        token = int(generator.choice(np.flatnonzero(np.isfinite(logits))))
        if token in table.end_tokens:
            return answer + text.finish()
        answer += text.add(token)
        tokens.append(token)
    raise AssertionError(f"no end: {answer}")


def test_every_kind_of_tokenizer(tiny_model: Path, shared: Path, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for kind, tokenizer in _tokenizers(tiny_model, shared, tmp_path).items():
        table = TokenBytes.of(tokenizer, [tokenizer.eos_token_id])
        for text in ('{"größe": ["東京", " 👩‍👩‍👧", "</s>"]}', " a  b\n c", "x"):
            assert table.joined(table.tokenize(text)).decode() == text, kind
        for name, schema in SCHEMAS.items():
            for _ in range(3):
                form = constraint(GenerationOptions(schema=schema), tokenizer, [tokenizer.eos_token_id])
                assert form is not None
                answer = _walk(form, table, len(table.pieces) + 7, generator)
                assert form.complete, (kind, name, form.failure)
                jsonschema.validate(json.loads(answer), schema)
        for token in tokenizer.all_special_ids:
            assert table.pieces[token] == b""


def test_bytes_of_tokens_are_what_the_tokenizer_decodes(shared: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shared / "golden" / "mistral" / "checkpoint")
    table = TokenBytes.of(tokenizer, [2])
    ids: list[Any] = [tokenizer.convert_tokens_to_ids(name) for name in ("▁the", "<0xE2>", "▁▁▁▁", "<s>", "in")]
    assert [table.pieces[i] for i in ids] == [b" the", b"\xe2", b"    ", b"", b"in"]


@pytest.mark.parametrize(
    ("asked", "matches"),
    [
        ({"regex": r"[a-c]{3}-(0|1)"}, r"[a-c]{3}-(0|1)"),
        ({"regex": r" two  blanks"}, r" two  blanks"),
        ({"choice": ["yes", "no / maybe", "(?)", "東京"]}, r"yes|no / maybe|\(\?\)|東京"),
        ({"choice": "only"}, "only"),
    ],
)
def test_regular_expressions_and_choices(grit: GritLM, asked: dict[str, Any], matches: str) -> None:
    for seed in range(3):
        answer = grit.generate("Say something.", 64, temperature=2.0, seed=seed, **asked)
        assert re.fullmatch(matches, answer)


def test_pieces_join_to_the_answer_and_a_document_may_go_before(grit: GritLM) -> None:
    schema = SCHEMAS["unicode"]
    assert "".join(grit.stream("Describe it.", 400, schema=schema)) == grit.generate("Describe it.", 400, schema=schema)
    assert json.loads(grit.generate([1, 5, 9], 400, schema=json.dumps(schema))).keys() == {"名前", "é"}


def test_a_pydantic_class_is_a_schema(grit: GritLM) -> None:
    pydantic = pytest.importorskip("pydantic", reason="needs pydantic")
    city = pydantic.create_model("City", size=(int, pydantic.Field(ge=1, le=99)), capital=(bool, ...))
    assert city.model_validate_json(grit.generate("A city.", 200, schema=city))


def test_a_cut_answer_says_so(grit: GritLM, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING", logger="grit_mlx"):
        grit.generate("Describe it.", 3, schema=SCHEMAS["nested"])
    assert "The answer was cut at max_tokens before it was complete." in caplog.messages
    caplog.clear()
    with caplog.at_level("WARNING", logger="grit_mlx"):
        grit.generate("Describe it.", 400, schema=SCHEMAS["flat"])
    assert not caplog.messages


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"schema": "{"}, "schema is not JSON"),
        ({"schema": "[" * 100_000}, "schema is not JSON"),
        ({"schema": 3}, "schema must be a JSON schema"),
        ({"schema": False}, "schema must be a JSON schema"),
        ({"schema": {"a": object()}}, "schema is not JSON"),
        ({"schema": {"type": "objec"}}, "schema cannot be followed: Invalid type: objec."),
        ({"schema": {"type": "array", "uniqueItems": True}}, 'llguidance does not know "uniqueItems". Leave it out.'),
        ({"schema": {"$ref": "#/$defs/missing"}}, "schema cannot be followed: .*/\\$defs/missing"),
        ({"schema": {"$ref": "https://example.org/schema"}}, "schema cannot be followed"),
        ({"schema": {"type": "integer", "minimum": 3, "maximum": 2}}, "schema cannot be followed: Unsatisfiable"),
        ({"schema": {"type": "string", "pattern": "(?=a)"}}, "schema cannot be followed: look-around"),
        ({"regex": "(a"}, "regex cannot be followed: unclosed group."),
        ({"choice": ["a", ""]}, "choice must be texts that are not empty"),
        ({"choice": ["\ud800"]}, "half a surrogate"),
        ({"schema": {}, "regex": "a"}, "schema and regex exclude each other."),
    ],
)
def test_what_cannot_be_followed_is_refused_at_once(grit: GritLM, asked: dict[str, Any], said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        grit.stream_responses("Describe it.", **asked)


def test_batches_refuse_a_form(grit: GritLM) -> None:
    with pytest.raises(ArgumentError, match="one by one"):
        grit.generate_batch(["a", "b"], regex="a")


def _made(vocabulary: dict[str, int], **parts: Any) -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", eos_token="[SEP]")


def test_a_tokenizer_that_cannot_is_refused(shared: Path) -> None:
    from tokenizers import decoders, pre_tokenizers
    from transformers import AutoTokenizer

    words = _made(
        {name: i for i, name in enumerate(["[UNK]", "[SEP]", *'{}[]":,abcdefghijklmnopqrstuvwxyz', "##a", "two"])},
        decoder=decoders.WordPiece(),
        pre_tokenizer=pre_tokenizers.BertPreTokenizer(),
    )
    with pytest.raises(TokenizerError, match="which text a token stands for cannot be told"):
        constraint(GenerationOptions(regex="a+"), words, [1])
    stories = AutoTokenizer.from_pretrained(shared / "models" / "stories260k")
    with pytest.raises(TokenizerError, match="needs a token that ends an answer"):
        constraint(GenerationOptions(regex="a+"), stories, [])


def test_a_text_that_no_tokens_spell_ends_the_answer_with_a_sentence(
    grit: GritLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = TokenBytes.of(grit.tokenizer, grit.engine_tokenizer.eos_token_ids)
    without = tuple(b"" if b"\xe6" in piece else piece for piece in table.pieces)
    poor = TokenBytes(grit.tokenizer, without, table.end_tokens)
    monkeypatch.setattr(TokenBytes, "of", lambda *_: poor)
    with pytest.raises(ArgumentError, match="cannot be completed in the form"):
        grit.generate("Where?", 50, choice=["東京"])
    narrow = TokenBytes(grit.tokenizer, tuple(b"" if piece == b"{" else piece for piece in without), table.end_tokens)
    monkeypatch.setattr(TokenBytes, "of", lambda *_: narrow)
    with pytest.raises(TokenizerError, match=r"has no token for '\{'"):
        grit.generate("Where?", 50, schema={"type": "object"})


def test_without_llguidance_the_extra_is_named(grit: GritLM, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(DependencyError, match=r"pip install 'grit-mlx\[structured\]'"):
        grit.generate("Where?", schema={})
