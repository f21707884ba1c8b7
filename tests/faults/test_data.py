"""Training data: nothing is taken or dropped without a word, and common formats are read."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from grit_mlx.datasets.examples import ChatRow, EmbeddingRow, row_from
from grit_mlx.datasets.tokens import RowError, tokenize_chats
from grit_mlx.errors import ArgumentError, DocumentError
from grit_mlx.training import TrainingSettings, train
from grit_mlx.training.data import EmbeddingData, load_files
from grit_mlx.training.losses import contrastive_loss
from grit_mlx.training.token_files import TokenOptions, find_data_files, split_of

OPTIONS = TokenOptions(64, 64, 128)


@pytest.fixture
def tokenizer(tiny_model: Path) -> Any:
    return AutoTokenizer.from_pretrained(str(tiny_model))


def rows(path: Path, *content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    return path


PAIR = {"query": "what is a keel", "pos": ["a beam"], "neg": ["bread"]}
CHAT = {"messages": [{"role": "user", "content": "Say keel."}, {"role": "assistant", "content": "keel"}]}


# Formats of other tools


def messages(*texts: str, system: str | None = None) -> list[dict[str, str]]:
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    return ([{"role": "system", "content": system}] if system else []) + turns


def sharegpt(*turns: tuple[str, str], **fields: Any) -> dict[str, Any]:
    return {"conversations": [{"from": role, "value": text} for role, text in turns], **fields}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (sharegpt(("human", "a"), ("gpt", "b")), messages("a", "b")),
        (sharegpt(("system", "s"), ("user", "a"), ("assistant", "b"), id="1"), messages("a", "b", system="s")),
        (sharegpt(("human", "a"), ("gpt", "b"), system="s"), messages("a", "b", system="s")),
        ({"conversations": messages("a", "b")}, messages("a", "b")),
        ({"conversation": messages("a", "b")}, messages("a", "b")),
        ({"instruction": "a", "input": "", "output": "b"}, messages("a", "b")),
        ({"instruction": "a", "input": "i", "output": "b"}, messages("a\n\ni", "b")),
        ({"instruction": "a", "output": "b", "system": "s", "history": [["x", "y"]]}, messages(
            "x", "y", "a", "b", system="s")),
        ({"instruction": "a", "context": "c", "response": "b", "category": "qa"}, messages("a\n\nc", "b")),
        ({"prompt": messages("a"), "completion": [{"role": "assistant", "content": "b"}]}, messages("a", "b")),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}, messages("a", "b")[1]]}, messages(
            "a", "b")),
    ],
)  # fmt: skip
def test_chats_of_other_tools(content: dict[str, Any], expected: list[dict[str, str]]) -> None:
    assert row_from(content) == ChatRow(expected)


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        ({"anchor": "q", "positive": "p"}, ["q", "p"]),
        ({"anchor": "q", "positive": "p", "negative": "n"}, ["q", "p", "n"]),
        ({"anchor": "q", "positive": ["p", "r"], "negative": ["n", "m"]}, ["q", "p", "r", "n", "m"]),
        ({"anchor": "q", "positive": "p", "negative_1": "n", "negative_2": "m"}, ["q", "p", "n", "m"]),
        ({"query": "q", "positive": "p", "negative": "n", "id": 3}, ["q", "p", "n"]),
    ],
)
def test_triplets(content: dict[str, Any], texts: list[str]) -> None:
    row = row_from(content)
    assert isinstance(row, EmbeddingRow) and [text for _, text in row.texts] == texts


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({**PAIR, "negs": ["x"]}, "the field 'negs' is not one of a row with 'query': did you mean 'neg'"),
        ({**PAIR, "hard_neg": ["x"]}, "the field 'hard_neg' .*did you mean 'neg'"),
        ({**PAIR, "prompt": "Find it"}, "the field 'prompt' is not one"),
        ({**PAIR, "instruction": "Find it"}, "the field 'instruction' is not one"),
        ({**CHAT, "reasoning": "x"}, "the field 'reasoning' is not one of a row with 'messages'"),
        ({"prompt": "a", "completion": "b", "rejected": "c"}, "the field 'rejected' is not one"),
        ({"text": "a", "label": 1}, "the field 'label' is not one"),
        (sharegpt(("alien", "a"), ("gpt", "b")), "is from 'alien'"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "a part that is not text: 'image'"),
    ],
)
def test_what_is_not_used_is_refused(content: dict[str, Any], problem: str) -> None:
    with pytest.raises(ArgumentError, match=problem):
        row_from(content)


def test_null_is_no_field() -> None:
    """As tables have it that hold rows of several kinds."""
    pair = row_from({**PAIR, "neg": None, "messages": None, "text": None, "task": None})
    assert isinstance(pair, EmbeddingRow) and len(pair.texts) == 2
    assert row_from({**CHAT, "query": None, "pos": None, "tools": None}) == row_from(CHAT)
    with pytest.raises(ArgumentError, match="text must be a text or a list of turns, not null"):
        row_from({"text": None})


@pytest.mark.parametrize("name", ["id", "_id", "source", "task_name", "score", "metadata", "dataset", "Language"])
def test_where_a_row_comes_from_may_stand_beside_it(name: str) -> None:
    assert row_from({**PAIR, name: "x"}) == row_from(PAIR) and row_from({**CHAT, name: 1}) == row_from(CHAT)


# Files and folders


def test_parquet_and_datasets_folders(tokenizer: Any, tmp_path: Path) -> None:
    folder = tmp_path / "d"
    (folder / "train").mkdir(parents=True)
    nested = [{"query": ["find", "a keel"], "pos": [["", "a beam"]], "neg": [["", "bread"], ["", "wind"]]}] * 3
    pq.write_table(pa.Table.from_pylist(nested), folder / "medi-00000-of-00001.parquet")
    pq.write_table(pa.Table.from_pylist([PAIR]), folder / "validation-00000-of-00001.parquet")
    table = pa.Table.from_pylist([CHAT, {**CHAT, "source": "x"}])
    place = str(folder / "train" / "data-00000-of-00001.arrow")
    with pa.OSFile(place, "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    (folder / "train" / "dataset_info.json").write_text("{}")
    (folder / "more.json").write_text(json.dumps([PAIR, PAIR]))
    files = load_files(folder, tokenizer, OPTIONS, cache=tmp_path / "cache")
    counts = {part.file.name: len(part.file) for parts in files.values() for part in parts}
    assert counts == {"medi-00000-of-00001": 3, "train/data-00000-of-00001": 2, "more": 2}
    lines = load_files(rows(tmp_path / "l.jsonl", *nested), tokenizer, OPTIONS, cache=tmp_path / "cache")
    [parquet], [plain] = files["embedding"][:1], lines["embedding"]
    for position in range(4):
        np.testing.assert_array_equal(parquet.file.text(0, position).ids, plain.file.text(0, position).ids)


def test_damaged_parquet_is_named(tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DocumentError, match=r"x\.parquet cannot be read as Parquet"):
        load_files(tmp_path / "x.parquet", tokenizer, OPTIONS, cache=tmp_path / "cache")


@pytest.mark.parametrize(
    ("name", "split"),
    [
        *[(name, "valid") for name in ("valid.jsonl", "validation.jsonl", "val.jsonl", "dev.jsonl.gz", "eval.jsonl")],
        *[(name, "test") for name in ("test.jsonl", "a/test.jsonl", "Test.jsonl", "test/a.jsonl")],
        *[(name, "valid") for name in ("validation/a.jsonl", "a/dev.jsonl", "validation-00000-of-00002.parquet")],
        *[
            (name, "train")
            for name in ("train.jsonl", "development.jsonl", "tests.jsonl", "validated.jsonl", "a.jsonl")
        ],
    ],
)
def test_what_is_held_out(name: str, split: str) -> None:
    assert split_of(Path("/data") / name, Path("/data")) == split


def test_a_folder_that_is_itself_called_so_is_data() -> None:
    assert split_of(Path("/dev/x/a.jsonl"), Path("/dev/x")) == "train"


def test_what_editors_and_macs_leave_is_not_data(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    wanted = rows(folder / "a.jsonl", PAIR)
    rows(folder / ".ipynb_checkpoints" / "a-checkpoint.jsonl", PAIR)
    (folder / "._a.jsonl").write_bytes(b"\x00\x05\x16\x07")
    rows(folder / ".hidden" / "b.jsonl", PAIR)
    elsewhere = rows(tmp_path / "elsewhere" / "c.jsonl", PAIR).parent
    (folder / "linked").symlink_to(elsewhere)
    (folder / "circle").symlink_to(folder)
    assert find_data_files(folder) == [wanted, folder / "linked" / "c.jsonl"]


# Rows that are each other's answers


def test_two_rows_with_one_query_are_not_each_others_negatives(tokenizer: Any, tmp_path: Path) -> None:
    path = rows(tmp_path / "a.jsonl", {**PAIR, "pos": ["one"]}, {**PAIR, "pos": ["two"]}, {**PAIR, "query": "other"})
    files = load_files(path, tokenizer, OPTIONS, cache=tmp_path / "cache")["embedding"]
    batch = EmbeddingData(files, weights=(1.0,), batch_size=3, group_size=2, seed=0).batch(0)
    assert len(set(batch.asked.tolist())) == 2 and (batch.answered[1::2] == 0).all()
    assert (batch.answered[0::2] == batch.asked).all()


def test_the_loss_leaves_right_answers_out() -> None:
    query, passage = mx.array([[1.0, 0.0], [1.0, 0.0]]), mx.array([[1.0, 0.0], [1.0, 0.0]])
    plain = contrastive_loss(query, passage, temperature=0.1)
    same = (mx.array([7, 7]), mx.array([7, 7]))
    other = (mx.array([7, 8]), mx.array([7, 8]))
    assert plain.item() == pytest.approx(np.log(2))
    assert contrastive_loss(query, passage, temperature=0.1, answered=same).item() == 0
    assert contrastive_loss(query, passage, temperature=0.1, answered=other).item() == plain.item()


def test_nothing_to_learn_is_said(tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows(tmp_path / "d" / "a.jsonl", *[{"query": f"q {i}", "pos": ["the same"]} for i in range(8)])
    settings = TrainingSettings(
        model=str(tiny_model),
        data=str(tmp_path / "d"),
        adapter_path=str(tmp_path / "run"),
        mode="embedding",
        iters=1,
        batch_size=4,
        group_size=1,
        val_rows=0,
    )
    with caplog.at_level(logging.WARNING, "grit_mlx"):
        train(settings)
    assert "The embedding loss is 0 from the start" in caplog.text


# Chats in real templates: what is learned is what the template keeps

QWEN3 = """{%- for message in messages %}{%- set content = message.content %}{%- set last = namespace(i=-1) %}
{%- for m in messages %}{%- if m.role == 'user' %}{%- set last.i = loop.index0 %}{%- endif %}{%- endfor %}
{%- if message.role == 'assistant' %}{%- set thoughts = '' %}
{%- if message.reasoning_content is string %}{%- set thoughts = message.reasoning_content %}
{%- elif '</think>' in content %}{%- set thoughts = content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
{%- set content = content.split('</think>')[-1].lstrip('\\n') %}{%- endif %}
{{- '<|im_start|>assistant\\n' }}
{%- if loop.index0 > last.i %}{{- '<think>\\n' + thoughts + '\\n</think>\\n\\n' }}{%- endif %}{{- content }}
{%- for call in message.tool_calls or [] %}{{- '\\n<tool_call>\\n' + (call.function | tojson) + '\\n</tool_call>' }}
{%- endfor %}{{- '<|im_end|>\\n' }}
{%- else %}{{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
R1 = """{%- for message in messages %}{%- if message.role == 'user' %}{{- '<\uff5cUser\uff5c>' + message.content }}
{%- else %}{{- '<\uff5cAssistant\uff5c>' + message.content.split('</think>')[-1] + '<\uff5cend\uff5c>' }}{%- endif %}
{%- endfor %}{%- if add_generation_prompt %}{{- '<\uff5cAssistant\uff5c><think>\\n' }}{%- endif %}"""
PHI3 = """{%- for message in messages %}
{{- '<|' + message.role + '|>\\n' + message.content + '<|end|>\\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>\\n' }}{%- else %}{{- eos_token }}{%- endif %}"""
GPT_OSS = """{%- for message in messages %}{%- if message.role == 'assistant' %}
{{- '<|start|>assistant<|channel|>final<|message|>' + message.content }}
{{- '<|return|>' if loop.last else '<|end|>' }}{%- else %}
{{- '<|start|>' + message.role + '<|message|>' + message.content + '<|end|>' }}{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant' }}{%- endif %}"""
GLM = """{{- '[gMASK]' }}{%- for message in messages %}
{{- '<|' + message.role + '|>\\n' + message.content }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>\\n' }}{%- endif %}"""

THOUGHT = "<think>\nhm\n</think>\n\n"


def learned(tokenizer: Any, template: str | None, *texts: str, **last: Any) -> list[str]:
    """The texts of runs of learned tokens."""
    tokenizer.chat_template = template
    markers = {"<|user|>", *re.findall(r"<[|\uff5c][^<>]*[|\uff5c]>", template or "")}
    tokenizer.add_tokens(sorted(markers), special_tokens=True)
    turns: list[dict[str, Any]] = [*messages(*texts)]
    turns[-1] = {**turns[-1], **last}
    [chat] = tokenize_chats(tokenizer, [ChatRow(turns)], max_length=500)
    assert chat is not None
    cuts = np.flatnonzero(np.diff(chat.learned.astype(int))) + 1
    runs = [run for run in np.split(np.arange(len(chat.ids)), cuts) if chat.learned[run[0]]]
    return [tokenizer.decode(chat.ids[run]).strip().replace(" ", "") for run in runs]


@pytest.mark.parametrize(
    ("template", "texts", "expected"),
    [
        (QWEN3, ("a", "b", "c", "d"), ["b<|im_end|>", "<think>\n\n</think>\n\nd<|im_end|>"]),
        (QWEN3, ("a", THOUGHT + "b", "c", THOUGHT + "d"), ["b<|im_end|>", THOUGHT + "d<|im_end|>"]),
        (R1, ("a", THOUGHT + "b", "c", "d"), ["b<\uff5cend\uff5c>", "d<\uff5cend\uff5c>"]),
        (PHI3, ("a", "b", "c", "d"), ["b<|end|>", "d<|end|>\n</s>"]),
        (GPT_OSS, ("a", "b", "c", "d"), [
            "<|channel|>final<|message|>b<|end|>", "<|channel|>final<|message|>d<|return|>"]),
        (GLM, ("a", "b", "c", "d"), ["b<|user|>", "d"]),
    ],
)  # fmt: skip
def test_what_templates_keep_is_learned(
    tokenizer: Any, template: str, texts: tuple[str, ...], expected: list[str]
) -> None:
    assert learned(tokenizer, template, *texts) == expected


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_thoughts_are_handed_to_the_template(tokenizer: Any, name: str) -> None:
    assert learned(tokenizer, QWEN3, "a", "b", **{name: "hm"}) == [THOUGHT + "b<|im_end|>"]


@pytest.mark.parametrize(("template", "what"), [(PHI3, "the model's chat template"), (None, "GRIT's chat format")])
@pytest.mark.parametrize("name", ["reasoning_content", "tool_calls", "name"])
def test_fields_that_nothing_uses_are_refused(tokenizer: Any, template: str | None, what: str, name: str) -> None:
    value: Any = [{"function": {"name": "f", "arguments": {}}}] if name == "tool_calls" else "x"
    with pytest.raises(RowError, match=f"has a field '{name}', which {what} does not use"):
        learned(tokenizer, template, "a", "b", **{name: value})


def test_calls_of_tools_are_learned(tokenizer: Any) -> None:
    call = {"type": "function", "function": {"name": "look", "arguments": '{"at": "keel"}'}}
    content = {
        "messages": [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "a beam"},
            {"role": "assistant", "content": "b"},
        ]
    }
    row = row_from(content)
    assert isinstance(row, ChatRow)
    tokenizer.chat_template = QWEN3
    [chat] = tokenize_chats(tokenizer, [row], max_length=500)
    assert chat is not None
    text = tokenizer.decode(chat.ids[chat.learned])
    assert '<tool_call>\n{"name": "look", "arguments": {"at": "keel"}}\n</tool_call><|im_end|>' in text
    assert "a beam" not in text and text.rstrip().endswith("b<|im_end|>")


def test_answers_with_a_weight_of_0_are_not_learned(tokenizer: Any) -> None:
    tokenizer.chat_template = PHI3
    turns: list[dict[str, Any]] = [*messages("a", "b", "c", "d")]
    turns[1]["weight"] = 0
    [chat] = tokenize_chats(tokenizer, [ChatRow(turns)], max_length=100)
    assert chat is not None and "b" not in tokenizer.decode(chat.ids[chat.learned])
