"""A file means the same to every command, and what is wrong with a row is said in the same words."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from grit_mlx.errors import DocumentError
from grit_mlx.rag import passages_of
from grit_mlx.text.packing import count_words

Grit = Any

GOOD = '{"text": "A keel keeps a ship upright."}\n'
LINE_2 = {
    "broken": ('{"text": b}', r", line 2: column 10 is not JSON \(Expecting value\)\. Fix the line\."),
    "two": ('{"text": "a"} 1', r", line 2: the JSON value ends before column 14\. Put one value on each line\."),
    "no object": ("1", r", line 2: the row is a number, not an object\."),
    "nul": ('{"text": "a\0"}', r" looks like a binary file \(it holds NUL bytes\)\. Name a text file\."),
    "surrogate": (
        '{"text": "\\ud800"}',
        r", line 2: the field 'text' holds half of a character \(a lone .*\)\. Fix the",
    ),
    "missing": ('{"txt": 1}', r", line 2: there is no field (.* or )?'text'; the fields are 'txt'\."),
    "deep": ('{"text": ' + "[" * 100_000, r", line 2: the JSON value is nested too deeply\."),
}
HEADER = "text,sentence1,sentence2,score\na,b,c,1\n"
FILES: dict[str, tuple[str | bytes, str]] = {
    **{f"{name}.jsonl": (GOOD + row + "\n", message) for name, (row, message) in LINE_2.items()},
    "wide.csv": (HEADER + "a,b,c,1,2\n", r", line 3: the row has 5 columns, but the first row has 4\. Put texts that"),
    "nul.csv": (
        HEADER + "a" * 9000 + "\0,b,c,1\n",
        r", line 3: there is a NUL byte\. Remove it, or name another file\.",
    ),
    "quote.csv": (
        HEADER + '"a,b,c,1\n',
        r", line 3: cannot be read as CSV \(unexpected end of data\)\. Check the quotes",
    ),
    "latin.jsonl": (GOOD.encode() + b'{"text": "\xe9"}\n', r", line 2: byte 0xe9 at offset 51 is not UTF-8\."),
}


# An index is not to lose a file for a row: what it says instead, or None where the row can be read after all.
INDEXED = {
    **{
        f"{name}.jsonl": LINE_2[name][1] + ".* The row is left out" for name in LINE_2 if name not in ("nul", "missing")
    },
    "missing.jsonl": None,
    "wide.csv": r", line 3: the row has 5 columns, but the first row has 4\.",
    "nul.csv": r", line 3: there is a NUL byte, which is left out\.",
    "quote.csv": r", line 3: a quotation mark is not closed; the line is read without it\.",
}
GUESSED = " is not UTF-8; it is read as cp1252, which is a guess"


def commands(path: Path) -> Iterator[tuple[object, ...]]:
    """Every command that reads a file and ends at a damaged row."""
    yield "embed", path
    yield "search", "ship", path
    yield "eval", path
    yield "train", "--data", path, "--adapter-path", path.parent / "adapters"


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_row_says_the_same_everywhere(grit: Grit, tmp_path: Path, name: str) -> None:
    content, message = FILES[name]
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    for command in commands(path):
        if command[0] == "train":  # whose rows have no sentences to compare
            path.write_bytes(path.read_bytes().replace(b"text,sentence1,sentence2,", b"text,source,category,"))
        told = grit(*command).err.replace(f"{path}: line", f"{path}, line").replace(f"{path}: ", f"{path} ")
        guessed = name == "latin.jsonl" and command[0] in ("embed", "search")
        assert re.search(re.escape(str(path)) + (GUESSED if guessed else message), told), command
    run = grit("rag", "index", path, "--store", tmp_path / "store")
    expected = GUESSED if name == "latin.jsonl" else INDEXED.get(name, message)
    told = run.err.replace(f"{path}: ", f"{path} ")
    if expected is None:
        assert "warning" not in told
    else:
        assert re.search(re.escape(str(path)) + expected, told), told
    assert run.code == (name == "nul.jsonl")  # the one that is not text
    assert (" holds 0." in run.out) == (name == "nul.jsonl")


def test_a_table_of_text_is_text_everywhere(grit: Grit, tmp_path: Path) -> None:
    path = tmp_path / "a.mdx"
    path.write_text("# Ships\n\n```sh\nmake keel\n\nmake mast\n```\n")
    texts = ["# Ships", "```sh\nmake keel\n\nmake mast\n```"]
    embedded = grit("embed", path, "--by", "paragraph").out.splitlines()
    assert [json.loads(line)["text"] for line in embedded] == texts
    found = grit("search", "mast", path, "--json", "--by", "paragraph").out.splitlines()
    assert {json.loads(line)["text"] for line in found} == set(texts)
    passages = list(passages_of(path, size=6, overlap=0, measure=count_words))
    assert [(one.text, one.heading, one.metadata) for one in passages] == [(texts[1], "Ships", ("kind=markdown",))]
    assert "a.mdx is not a set to score." in grit("eval", path).err
    for command in (("embed", path, "--field", "text"), ("train", "--data", path, "--adapter-path", tmp_path / "x")):
        assert "a.mdx holds text, not rows. Name a .jsonl, .json, .csv or .tsv file" in grit(*command).err


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", '{"source": "a?", "text": "b."}\n'),
        ("a.ndjson", '{"source": "a?", "text": "b."}\n'),
        ("a.json", '[{"source": "a?",\n"text": "b."}]\n'),
        ("a.csv", "id;source;text\n1;a?;b.\n"),
        ("a.tsv", "id\tsource\tlang\ttext\n1\ta?\ten\tb.\n"),
    ],
)
def test_rows_are_rows_everywhere(
    grit: Grit, tmp_path: Path, name: str, content: str, tokenize: Callable[[Path], int]
) -> None:
    path = tmp_path / name
    path.write_text(content)
    assert [json.loads(line)["text"] for line in grit("embed", path).out.splitlines()] == ["b."]
    (passage,) = passages_of(path, size=9, overlap=0, measure=count_words)
    assert passage.text == "b." and "source=a?" in passage.metadata
    assert tokenize(path) == 1
    told = grit("eval", path)
    if path.suffix in (".csv", ".tsv"):
        assert "line 1: there is no column 'sentence1'" in told.err  # tables are pairs of sentences there
    else:
        assert told.out.splitlines()[1].startswith("a\t")


@pytest.fixture
def tokenize(tiny_model: Path, tmp_path: Path) -> Callable[[Path], int]:
    """The number of rows that training makes of a file."""
    from transformers import AutoTokenizer

    from grit_mlx.training.token_files import TokenOptions, tokenize_file

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    return lambda path: len(tokenize_file(path, tokenizer, TokenOptions(), cache=tmp_path / "cache"))


def test_documents_are_prose_everywhere(grit: Grit, tmp_path: Path) -> None:
    path = tmp_path / "a.html"
    path.write_text("<head><title>no</title></head>\n<h1>Ships</h1>\n<p>A keel keeps\na ship upright.</p>")
    paragraphs = grit("search", "keel", path, "--json", "--by", "paragraph").out.splitlines()
    places = sorted((row["line"], row["end_line"], row["text"]) for row in map(json.loads, paragraphs))
    assert places == [(2, 2, "Ships"), (3, 4, "A keel keeps a ship upright.")]
    (passage,) = passages_of(path, size=20, overlap=0, measure=count_words)
    whole = json.loads(grit("embed", path, "--by", "file").out)
    assert json.loads(grit("search", "keel", path, "--json").out)["text"] == passage.text
    assert passage.text == whole["text"] == "Ships\n\nA keel keeps a ship upright."
    with pytest.raises(DocumentError, match="is not a set to score"):
        from grit_mlx.evaluation.sets import load_set

        load_set(path)
