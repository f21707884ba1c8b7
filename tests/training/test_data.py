"""Data files: what rows may look like, what is said about those that do not, caches, batches."""

from __future__ import annotations

import gzip
import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from grit_mlx.datasets.examples import ChatRow, EmbeddingRow, TextRow, row_from
from grit_mlx.errors import ArgumentError, DocumentError, OutputError
from grit_mlx.training.data import EmbeddingData, GenerativeData, check_weights, file_weights, load_files, split_files
from grit_mlx.training.token_files import TokenOptions, tokenize_file
from tests.conftest import GOLDEN
from tests.training.conftest import chat_rows, embedding_rows, write_rows

OPTIONS = TokenOptions(query_max_length=64, passage_max_length=64, max_seq_length=96)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(GOLDEN / "mistral")


def test_formats() -> None:
    row = row_from({"query": ["Find\t: ", "a"], "pos": ["b", ["", "c"]], "neg": []})
    assert row == EmbeddingRow([("Find", "a"), ("", "b"), ("", "c")], 2)
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    for content in ({"text": ["a", "b"]}, {"messages": turns}, {"prompt": "a", "completion": "b"}):
        assert row_from(content) == ChatRow(turns)
    assert row_from({"text": "a"}) == TextRow("a")
    vectors = row_from({"query": "a", "pos": ["b"], "query_vector": [1, 2], "pos_vectors": [[3, 4]]})
    assert isinstance(vectors, EmbeddingRow) and vectors.vectors == [[1, 2], [3, 4]]


HALF = "holds half of a character (a lone surrogate such as \\ud800). Fix the line."
BAD = [
    ("[1]", "the row is an array, not an object."),
    ('{"txt": "a"}', "there is no field 'query', 'messages', 'prompt' or 'text'; the fields are 'txt'."),
    ("{", "column 2 is not JSON (Expecting property name enclosed in double quotes). Fix the line."),
    ('{"query": "a"}', "there is no field 'pos'; the fields are 'query'."),
    ('{"query": "a", "pos": []}', "pos is empty: a query needs at least one passage that answers it."),
    ('{"query": "a", "pos": [["x"]]}', "pos[0] must be a text or [instruction, text], not ['x']"),
    ('{"query": "a", "pos": ["b"], "neg": "c"}', "neg must be a list of passages, not 'c'"),
    ('{"query": " ", "pos": ["b"]}', "query is empty"),
    ('{"query": 3, "pos": ["b"]}', "query must be a text or [instruction, text], not 3"),
    ('{"query": "a", "pos": ["b"], "query_vector": [1]}', "there are 1 vectors for 2 texts: "),
    ('{"query": "a", "pos": ["b"], "query_vector": [1], "pos_vectors": [[1, 2]]}', "all of one length"),
    ('{"query": "a", "pos": ["b"], "query_vector": [NaN], "pos_vectors": [[1]]}', "must be lists of numbers"),
    ('{"query": "a", "pos": ["b"], "query_vector": [1], "pos_vectors": 3}', "pos_vectors must be a list of vectors"),
    ('{"query": "a", "pos": ["b"], "pos_vectors": [[1]]}', "there is pos_vectors, but no query_vector."),
    (
        '{"query": ["\\udc00", "a"], "pos": ["b"]}',
        "the field 'query' " + HALF,
    ),
    (
        '{"query": "a", "pos": ["b \\ud800"]}',
        "the field 'pos' " + HALF,
    ),
    ("null", "the row is null, not an object."),
]
BAD_CHATS = [
    ('{"text": ["a"]}', "a conversation must end with the assistant's turn, which is what is learned"),
    ('{"text": ["a", ""]}', "text[1] is empty"),
    ('{"text": 3}', "text must be a text or a list of turns, not 3"),
    ('{"text": []}', "a conversation must end with the assistant's turn"),
    ('{"messages": "a"}', "messages must be a list, not 'a'"),
    ('{"messages": [{"role": "user"}]}', "messages[0] must have a role and a content"),
    (
        '{"messages": [{"role": "assistant", "content": "a"}]}',
        "turn 1 must be the user's, not the assistant's.",
    ),
    ('{"prompt": "a"}', "there is no field 'completion'; the fields are 'prompt'."),
    ('{"query": "a", "pos": ["b"]}', "this is a row of embedding data in a file of generative data."),
]


@pytest.mark.parametrize(("line", "message"), BAD + BAD_CHATS)
def test_bad_rows_are_named_by_file_and_line(tokenizer: Any, tmp_path: Path, line: str, message: str) -> None:
    good = chat_rows(1)[0] if (line, message) in BAD_CHATS else embedding_rows(1)[0]
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(good) + "\n\n" + line + "\n", encoding="utf-8")
    with pytest.raises(DocumentError) as caught:
        tokenize_file(path, tokenizer, OPTIONS, cache=tmp_path / "cache")
    assert str(caught.value).startswith(f"{path}, line 3: ") and message in str(caught.value)
    assert (caught.value.path, caught.value.line) == (str(path), 3)
    assert not list((tmp_path / "cache").glob("*")), "no half of a cache is left"


def test_bad_files(tokenizer: Any, tmp_path: Path) -> None:
    def refused(name: str, content: bytes) -> str:
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(DocumentError) as caught:
            tokenize_file(path, tokenizer, OPTIONS, cache=tmp_path / "cache")
        return str(caught.value).replace(str(tmp_path), "")

    assert refused("empty.jsonl", b"") == "/empty.jsonl is empty. Remove it, or add rows."
    assert refused("blank.jsonl", b"\n\n").startswith("/blank.jsonl is empty")
    deep = b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    assert refused("deep.jsonl", deep) == "/deep.jsonl, line 1: the JSON value is nested too deeply."
    assert refused("latin.jsonl", b'{"text": "\xe9"}') == (
        "/latin.jsonl, line 1: byte 0xe9 at offset 10 is not UTF-8. Convert the file to UTF-8 "
        "(iconv -f latin-1 -t utf-8)."
    )
    whole = gzip.compress(random.Random(0).randbytes(3000).hex().encode().join([b'{"text": "', b'"}\n']) * 3)
    assert refused("cut.jsonl.gz", whole[: len(whole) // 2]).startswith(
        "/cut.jsonl.gz cannot be read: Compressed file "
    )
    whole = gzip.compress(whole)  # bytes that do not compress again, so that damage hits the data
    broken = whole[:50] + bytes(2000) + whole[2050:]
    assert refused("broken.jsonl.gz", broken).startswith(
        ("/broken.jsonl.gz cannot be read: Error -3 ", "/broken.jsonl.gz, line 1: ")
    )
    assert refused("plain.jsonl.gz", b'{"text": "a"}\n').startswith("/plain.jsonl.gz cannot be read: Not a gzipped")
    instruction = json.dumps({"query": ["long " * 30, "a"], "pos": ["b"]}).encode()
    assert "line 1: its instruction takes all 64 tokens" in refused("long.jsonl", instruction)
    with pytest.raises(DocumentError, match=r"holds no \.jsonl files"):
        load_files(tmp_path / "cache", tokenizer, OPTIONS, cache=tmp_path / "cache")
    with pytest.raises(DocumentError, match="does not exist"):
        load_files(tmp_path / "nowhere", tokenizer, OPTIONS, cache=tmp_path / "cache")
    (tmp_path / "file").write_text("")
    path = write_rows(tmp_path / "good.jsonl", chat_rows(2))
    with pytest.raises(OutputError, match=r"Cannot write .*: a part of its path is a file"):
        tokenize_file(path, tokenizer, OPTIONS, cache=tmp_path / "file" / "cache")


def test_the_cache_is_named_after_its_content(tokenizer: Any, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    path = write_rows(tmp_path / "a.jsonl", embedding_rows(5))
    first = tokenize_file(path, tokenizer, OPTIONS, cache=cache)
    copy = tmp_path / "b.jsonl"
    copy.write_bytes(path.read_bytes())
    os.utime(copy, (0, 0))
    calls: list[int] = []
    assert tokenize_file(copy, tokenizer, OPTIONS, cache=cache, progress=calls.append).key == first.key
    assert not calls, "a copy under another name is not tokenised again"
    write_rows(copy, embedding_rows(6))
    assert tokenize_file(copy, tokenizer, OPTIONS, cache=cache).key != first.key
    assert tokenize_file(path, tokenizer, TokenOptions(query_max_length=65), cache=cache).key != first.key
    other = AutoTokenizer.from_pretrained(GOLDEN / "mistral")
    other.chat_template = "{{ messages }}"
    assert tokenize_file(path, other, OPTIONS, cache=cache).key != first.key


def test_a_byte_order_mark_is_no_part_of_the_data(tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n{"text": "b"}\r\n')
    assert len(tokenize_file(tmp_path / "a.jsonl", tokenizer, OPTIONS, cache=tmp_path / "cache")) == 2


def test_tokens_come_back_as_they_went(tokenizer: Any, tmp_path: Path) -> None:
    rows = embedding_rows(4, negatives=2)
    file = tokenize_file(write_rows(tmp_path / "a.jsonl", rows), tokenizer, OPTIONS, cache=tmp_path / "cache")
    assert (len(file), file.kind, file.passages(2), file.vector_size) == (4, "embedding", (1, 2), 0)
    prompt = "<|user|>\nFind the sentence\n<|embed|>\n"
    assert file.text(3, 0).ids.tolist() == tokenizer.encode(prompt + rows[3]["query"][1])
    assert file.text(3, 0).skipped == len(tokenizer.encode(prompt))
    assert file.text(3, 1).ids.tolist() == tokenizer.encode("<|embed|>\n" + rows[3]["pos"][0][1])
    chats = tokenize_file(write_rows(tmp_path / "b.jsonl", chat_rows(3)), tokenizer, OPTIONS, cache=tmp_path / "cache")
    text = "<s><|user|>\nSay bread.\n<|assistant|>\nbread bread</s>"
    assert chats.chat(1).ids.tolist() == tokenizer.encode(text, add_special_tokens=False)
    assert file.tokens == sum(len(file.text(row, i).ids) for row in range(4) for i in range(4))


def test_rows_with_nothing_to_learn_are_counted(
    tokenizer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [*chat_rows(3), {"text": ["long " * 60, "answer"]}]
    file = tokenize_file(write_rows(tmp_path / "a.jsonl", rows), tokenizer, OPTIONS, cache=tmp_path / "cache")
    assert len(file) == 3
    told = "1 of 4 rows of a.jsonl are left out: their answer lies beyond max_seq_length (96 tokens)."
    assert caplog.text.count(told) == 1
    tokenize_file(tmp_path / "a.jsonl", tokenizer, OPTIONS, cache=tmp_path / "cache")
    assert caplog.text.count(told) == 2, "told again when they come from the cache"


def test_folders(tokenizer: Any, tmp_path: Path) -> None:
    write_rows(tmp_path / "d" / "embedding" / "x.jsonl", embedding_rows(30))
    write_rows(tmp_path / "d" / "generative" / "x.jsonl", chat_rows(30))
    write_rows(tmp_path / "d" / "valid.jsonl", chat_rows(5))
    write_rows(tmp_path / "d" / "test.jsonl", chat_rows(5))
    files = load_files(tmp_path / "d", tokenizer, OPTIONS, cache=tmp_path / "cache")
    assert {kind: [part.file.name for part in parts] for kind, parts in files.items()} == {
        "embedding": ["embedding/x"],
        "generative": ["generative/x"],
    }
    held_out = load_files(tmp_path / "d", tokenizer, OPTIONS, cache=tmp_path / "cache", splits=("valid",))
    assert [part.file.name for part in held_out["generative"]] == ["valid"]
    write_rows(tmp_path / "d" / "run" / "log.jsonl", [{"kind": "train"}])
    again = load_files(tmp_path / "d", tokenizer, OPTIONS, cache=tmp_path / "cache", outside=tmp_path / "d" / "run")
    assert [part.file.name for part in again["embedding"]] == ["embedding/x"], "a run's log is no data"
    train, out = split_files(files["embedding"], 3, seed=0)
    assert len(out[0].rows) == 3 and not set(out[0].rows) & set(train[0].rows) and len(train[0].rows) == 27
    everything = [*files["embedding"], *files["generative"]]
    assert file_weights(everything, {"x": 2.0, "generative/x": 0.5}) == (2.0, 0.5)
    check_weights({"embedding/x": 1.0}, everything)
    with pytest.raises(ArgumentError, match="data_weights names 'y', but the data files are emb"):
        check_weights({"y": 1.0}, everything)


def test_batches(tokenizer: Any, tmp_path: Path) -> None:
    write_rows(tmp_path / "d" / "a.jsonl", embedding_rows(20, negatives=3))
    write_rows(tmp_path / "d" / "b.jsonl", embedding_rows(20, negatives=0))
    files = load_files(tmp_path / "d", tokenizer, OPTIONS, cache=tmp_path / "cache")["embedding"]
    data = EmbeddingData(files, weights=(1, 1), batch_size=8, group_size=3, seed=0)
    for number in (0, 4, 5):
        batch, again = data.batch(number), data.batch(number)
        assert len(batch.queries) == 8 and len(batch.passages) == 24 == len(batch.identities)
        assert [text.ids.tolist() for text in batch.passages] == [text.ids.tolist() for text in again.passages]
        same = [np.array_equal(a.ids, b.ids) for a in batch.passages for b in batch.passages]
        assert same == (batch.identities[:, None] == batch.identities[None, :]).reshape(-1).tolist()
    # Negatives of rows that have none are other rows' passages, never the row's own.
    only = EmbeddingData(files[1:], weights=(1,), batch_size=4, group_size=2, seed=0).batch(0)
    for i in range(4):
        assert not np.array_equal(only.passages[2 * i].ids, only.passages[2 * i + 1].ids)
    write_rows(tmp_path / "g" / "c.jsonl", chat_rows(20))
    chats = load_files(tmp_path / "g", tokenizer, OPTIONS, cache=tmp_path / "cache")["generative"]
    generative = GenerativeData(chats, weights=(1,), batch_size=8, seed=0)
    assert [len(generative.batch(i)) for i in (0, 1, 2)] == [8, 8, 8]


def test_vectors_to_distil_from(tokenizer: Any, tmp_path: Path) -> None:
    rows = [
        {"query": f"q {i}", "pos": [f"p {i}"], "query_vector": [i, 1.0, 0.0], "pos_vectors": [[0.0, i, 1.0]]}
        for i in range(6)
    ]
    files = load_files(write_rows(tmp_path / "v.jsonl", rows), tokenizer, OPTIONS, cache=tmp_path / "cache")
    batch = EmbeddingData(files["embedding"], weights=(1,), batch_size=4, group_size=1, seed=0).batch(0)
    assert batch.query_vectors.shape == batch.passage_vectors.shape == (4, 3)
    assert batch.query_vectors[:, 0].tolist() == batch.passage_vectors[:, 1].tolist()
    rows[3]["query_vector"] = [1.0]
    rows[3]["pos_vectors"] = [[1.0]]
    with pytest.raises(DocumentError, match=r"line 4: the vectors have 1 numbers, those before them 3\."):
        load_files(write_rows(tmp_path / "v.jsonl", rows), tokenizer, OPTIONS, cache=tmp_path / "cache")
