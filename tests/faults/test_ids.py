"""Faults, kind 4: ids that native code does not check.

Everything that reaches the embedding table is compared with its rows.
"""

from __future__ import annotations

import array
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from grit_mlx import GritLM, PromptCache
from grit_mlx.errors import ArgumentError, DocumentError, TextError, TokenizerError
from grit_mlx.model.attention import table_rows
from tests.faults.conftest import Program

ROWS = 384


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> GritLM:
    return GritLM(tiny_model)


WRONG = [[1, 10**8], [1, ROWS], [1, -1], [-(10**9)], [2**40], [ROWS], [0, 1, 2, ROWS + 1]]


@pytest.mark.parametrize("ids", WRONG)
def test_ids_beyond_the_table(model: GritLM, ids: list[int]) -> None:
    place = next(i for i, one in enumerate(ids) if not 0 <= one < ROWS)
    message = rf"Token {place} of the prompt has the id {ids[place]}; the model has 384 tokens, from 0 to 383"
    for kind in (list, tuple, np.array, lambda one: np.array([one]), lambda one: mx.array(np.array(one))):
        given = kind(ids)
        with pytest.raises(ArgumentError, match=message):
            model.generate(given, max_tokens=2)
    calls: list[Callable[[], Any]] = [
        lambda: list(model.stream(ids, max_tokens=2)),
        lambda: list(model.stream_responses(ids, max_tokens=2)),
        lambda: model.generate_batch([[1, 2], ids], max_tokens=2),
        lambda: model.generate(ids, max_tokens=2, cache=PromptCache()),
        lambda: model.generate(ids, max_tokens=2, cache=model.encode("x", get_cache=True)[1]),
        lambda: model.generate({"input_ids": np.array([ids])}, max_tokens=2),
        lambda: model.generate(input_ids=np.array([ids, ids]), max_tokens=2),
    ]
    for call in calls:
        with pytest.raises(ArgumentError, match=message):
            call()


def test_every_id_of_the_table_works(model: GritLM) -> None:
    assert len(list(model.stream_responses([0, ROWS - 1], max_tokens=2))) == 2
    everything = model.generate(list(range(ROWS)), max_tokens=1)
    assert everything == model.generate(range(ROWS), max_tokens=1)


@pytest.mark.parametrize(
    "given",
    [
        [np.int64(1), np.int32(5), np.uint8(6)],
        np.array([1, 5, 6]),
        np.array([1, 5, 6], dtype=np.uint16),
        np.array([[1, 5, 6]]),
        (1, 5, 6),
        array.array("i", [1, 5, 6]),
        mx.array([1, 5, 6]),
        mx.array([[1, 5, 6]]),
        {"input_ids": np.array([[1, 5, 6]])},
        {"input_ids": np.array([[0, 0, 1, 5, 6]]), "attention_mask": np.array([[0, 0, 1, 1, 1]])},
        range(1, 4),
    ],
    ids=str,
)
def test_what_holds_ids(model: GritLM, given: Any) -> None:
    responses = list(model.stream_responses(given, max_tokens=3))
    plain = [1, 2, 3] if isinstance(given, range) else [1, 5, 6]
    assert [one.token for one in responses] == [one.token for one in model.stream_responses(plain, max_tokens=3)]


@pytest.mark.parametrize(
    "given", [[True, False], [1.0, 2.0], [1, "a"], np.array([0.5]), [[1, 2]], [None], {1, 2}, b"ab"]
)
def test_what_holds_no_ids(model: GritLM, given: Any) -> None:
    with pytest.raises(ArgumentError, match=r"A prompt is a text, a list of messages or a list of token ids|empty"):
        model.generate(given, max_tokens=2)


# A tokenizer with tokens that the model has no row for.


@pytest.fixture
def larger(model_copy: Callable[..., Path]) -> Path:
    """The tiny model with three tokens that somebody added to its tokenizer alone."""
    folder = model_copy()
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    for i, token in enumerate(("<extra>", "<|tool|>", "plain")):
        content["added_tokens"].append(
            {"id": ROWS + i, "content": token, "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False, "special": token.startswith("<")}
        )  # fmt: skip
    path.unlink()
    path.write_text(json.dumps(content), encoding="utf-8")
    return folder


def test_a_model_whose_extra_tokens_are_not_used_works(larger: Path, model: GritLM) -> None:
    same = GritLM(larger)
    np.testing.assert_array_equal(same.encode(["a text", "b"]), model.encode(["a text", "b"]))
    assert same.generate("Why?", max_tokens=5) == model.generate("Why?", max_tokens=5)
    assert same.generate_batch(["Why?"], max_tokens=5) == model.generate_batch(["Why?"], max_tokens=5)


@pytest.mark.parametrize("token", ["<extra>", "<|tool|>", "plain"])
def test_a_text_with_an_extra_token_is_named(larger: Path, token: str) -> None:
    model = GritLM(larger)
    for call in (
        lambda: model.encode(["a", f"x {token} y", "b"]),
        lambda: list(model.encode_iter(["a", f"{token}"])),
        lambda: model.encode_corpus(["a", {"title": token, "text": "b"}]),
        lambda: model.encode_queries(["a", token]),
        lambda: model.encode(["a", token], get_cache=True),
        lambda: model.encode(["a", "b " * 30 + token], long_texts="average", max_length=16),
    ):
        with pytest.raises(
            TextError, match=rf"Text 1 holds the token '{token.replace('|', '.')}', which the tokenizer has"
        ):
            call()
    # What is cut off does no harm.
    assert model.encode("b " * 50 + token, max_length=16).shape == (32,)


@pytest.mark.parametrize("options", [{}, {"raw": True}, {"cache": PromptCache()}])
def test_a_prompt_with_an_extra_token(larger: Path, options: dict[str, Any]) -> None:
    model = GritLM(larger)
    # A special token that a message spells is written in plain tokens; in a raw prompt it is obeyed.
    for prompt in ["plain", *(["<extra>"] if options.get("raw") else [])]:
        with pytest.raises(ArgumentError, match="The prompt holds the token"):
            model.generate(prompt, max_tokens=2, **options)
    if not options.get("raw"):
        assert model.generate("<extra>", max_tokens=2, **options) is not None


def test_an_instruction_with_an_extra_token(larger: Path) -> None:
    with pytest.raises(TextError, match="Text 0 holds the token 'plain'"):
        GritLM(larger).encode("a", instruction="plain\n")


def test_the_command_line_names_the_text(larger: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("good\n<extra> here\n", encoding="utf-8")
    code = "import sys; from grit_mlx.cli.main import main; sys.argv[0] = 'grit'; main()"
    for arguments in (["embed", str(tmp_path / "texts.txt"), "-o", str(tmp_path / "v.npy")], ["generate", "plain x"]):
        command = [sys.executable, "-c", code, *arguments, "--model", str(larger)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert result.returncode == 1 and "which the tokenizer has" in result.stderr, result.stderr
        assert "Traceback" not in result.stderr
        if arguments[0] == "embed":
            assert "texts.txt, line 2" in result.stderr and not (tmp_path / "v.npy").exists()


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("embedding", {"query": "a", "pos": ["b"], "neg": ["c"]}, {"query": "a", "pos": ["<extra> b"], "neg": ["c"]}),
        (
            "embedding",
            {"query": "a", "pos": ["b"], "neg": ["c"]},
            {"query": ["plain", "a"], "pos": ["b"], "neg": ["c"]},
        ),
        ("generative", {"text": ["a", "b"]}, {"text": ["a", "b plain"]}),
        ("generative", {"text": "a b c"}, {"text": "a plain c"}),
    ],
)
def test_training_names_the_row(
    larger: Path, tmp_path: Path, name: str, good: dict[str, Any], bad: dict[str, Any]
) -> None:
    from grit_mlx.training.settings import TrainingSettings
    from grit_mlx.training.trainer import train

    data = tmp_path / "data"
    data.mkdir()
    path = data / f"{name}.jsonl"
    options: dict[str, Any] = {"model": str(larger), "data": str(data), "output": str(tmp_path / "out"), "iters": 2,
                               "batch_size": 2, "generative_batch_size": 2, "mode": name}  # fmt: skip
    known = TrainingSettings.__dataclass_fields__
    options = {key: value for key, value in options.items() if key in known}
    path.write_text("".join(json.dumps(row) + "\n" for row in [good] * 3 + [bad] + [good] * 4), encoding="utf-8")
    with pytest.raises(DocumentError, match=rf"{name}.jsonl, line 4: .*which the tokenizer has"):
        train(TrainingSettings(**options))


def test_a_batch_of_training_never_reads_other_memory(tiny_model: Path) -> None:
    """Below all names of rows: what reaches the table is compared with it once more."""
    from grit_mlx.model.passes import pad

    for wrong in ([[1, ROWS]], [[-1, 3]], [[1], [2, 10**6]]):
        with pytest.raises(TokenizerError, match="the model has 384"):
            pad(wrong, rows=ROWS)
    assert pad([[0], [ROWS - 1, 1]], rows=ROWS)[0].shape == (2, 2)


def test_the_rows_of_a_table_are_those_of_its_weights(tiny_model: Path, tiny_mixtral: Path, tmp_path: Path) -> None:
    from mlx_lm import convert

    convert(str(tiny_model), str(tmp_path / "q"), quantize=True, q_group_size=32)
    for folder in (tiny_model, tiny_mixtral, tmp_path / "q"):
        for dtype in ("auto", "stored") if folder != tiny_mixtral else ("auto",):
            assert table_rows(GritLM(folder, dtype=dtype).model) == ROWS


def test_nothing_ends_in_a_signal(program: Program, larger: Path) -> None:
    """In a process of its own: a fault of memory would take the tests along."""
    result = program(
        f"""
        from grit_mlx import GritLM, GritError
        model = GritLM({str(larger)!r})
        for call in (
            lambda: model.generate([1, 10**8]),
            lambda: model.generate([1, -10**8]),
            lambda: model.encode("<extra>"),
            lambda: model.encode(["a"] * 50 + ["<extra> " * 200]),
            lambda: model.generate_batch([[10**8]]),
        ):
            try:
                call()
            except GritError:
                print("refused")
        """
    )
    assert result.stdout.split() == ["refused"] * 5


def test_tokens_that_a_program_adds_after_loading(tiny_model: Path) -> None:
    model = GritLM(tiny_model)
    expected = model.encode(["short", "a much longer text than that"])
    model.tokenizer.add_tokens(["<foo>"])
    model.tokenizer.add_special_tokens({"pad_token": "<pad>"})
    np.testing.assert_array_equal(model.encode(["short", "a much longer text than that"]), expected)
    with pytest.raises(TextError, match="Text 1 holds the token '<foo>'"):
        model.encode(["a", "x <foo>"])
    for prompt in ("x <foo>", "x <pad>"):
        with pytest.raises(ArgumentError, match="The prompt holds the token"):
            model.generate(prompt, raw=True, max_tokens=2)
    with pytest.raises(TextError, match="Text 0 holds the token '<foo>'"):
        model.encode("a", instruction="<foo>\n")
