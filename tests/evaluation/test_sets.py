"""What a path holds, and every way in which it can be damaged."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest

from grit_mlx.errors import DocumentError
from grit_mlx.evaluation.sets import AnswerSet, PairSet, RetrievalSet, find_sets, limited, load_set
from tests.evaluation.conftest import DOCUMENTS, GAINS, QUERIES, write_beir, write_lines

BEIR = {"corpus.jsonl": {"_id": "d", "text": "a"}, "queries.jsonl": {"_id": "q", "text": "b"}}


def test_a_retrieval_set(beir: Path) -> None:
    found = load_set(beir)
    assert found == RetrievalSet("boats", DOCUMENTS, QUERIES, GAINS)
    assert found.asked == ["q1", "q2"]
    once = limited(found, 1)
    assert isinstance(once, RetrievalSet) and once.asked == ["q1"] and once.documents == DOCUMENTS


def test_gzip_titles_numbers_and_trec_columns(tmp_path: Path) -> None:
    write_lines(tmp_path / "corpus.jsonl.gz", [{"_id": 1, "title": "T", "text": "a"}, {"_id": 2, "title": "U"}])
    write_lines(tmp_path / "queries.jsonl.gz", [{"_id": "q", "text": "a"}])
    (tmp_path / "qrels").mkdir()
    write_lines(tmp_path / "qrels" / "test.tsv", ["q 0 1 1", "q 0 2 0"])
    name = tmp_path.name
    assert load_set(tmp_path) == RetrievalSet(name, {"1": "T a", "2": "U "}, {"q": "a"}, {"q": {"1": 1, "2": 0}})


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("a.csv", ["sentence1,sentence2,score", '"x, y",z,5', "u,v,1.5"]),
        ("a.csv", ['"x, y",z,5', "u,v,1.5"]),
        ("a.tsv", ["genre\tscore\tsentence1\tsentence2", "news\t5\tx, y\tz", "news\t1.5\tu\tv"]),
        ("a.csv.gz", ["a,b,c", '"x, y",z,5', "", "u,v,1.5"]),
        (
            "a.jsonl",
            [
                '{"sentence1": "x, y", "sentence2": "z", "score": 5}',
                '{"Sentence1": "u", "sentence2": "v", "score": "1.5"}',
            ],
        ),
    ],
)
def test_pairs(tmp_path: Path, name: str, lines: list[str]) -> None:
    path = write_lines(tmp_path / name, lines)
    assert load_set(path) == PairSet("a", ["x, y", "u"], ["z", "v"], [5, 1.5])
    assert load_set(tmp_path) == PairSet(tmp_path.name, ["x, y", "u"], ["z", "v"], [5, 1.5])


def test_answers(answers: Path) -> None:
    found = load_set(answers)
    assert isinstance(found, AnswerSet)
    assert (found.name, len(found.rows), found.lines) == ("answers", 3, [1, 2, 3])
    assert len(limited(found, 2).rows) == 2  # type: ignore[union-attr]


def test_a_folder_of_sets(tmp_path: Path, pairs: Path, answers: Path) -> None:
    write_beir(tmp_path / "boats")
    (tmp_path / "README.md").write_text("no set")
    assert find_sets(tmp_path) == [answers, tmp_path / "boats", pairs]
    assert find_sets(pairs) == [pairs] and find_sets(tmp_path / "boats") == [tmp_path / "boats"]
    (tmp_path / "one").mkdir()
    pairs.rename(tmp_path / "one" / "dev.csv")
    assert find_sets(tmp_path / "one") == [tmp_path / "one"]
    assert find_sets(tmp_path) == [answers, tmp_path / "boats", tmp_path / "one"]


Damage = Callable[[Path], Path]


def damaged(**files: list[str] | None) -> Damage:
    """A retrieval set in which files (by their names' first part) have other lines, or are not there."""

    def make(folder: Path) -> Path:
        write_beir(folder / "boats")
        for name, lines in files.items():
            path = next((folder / "boats").glob(f"{name}*"))
            path.unlink() if lines is None else write_lines(path, lines)
        return folder / "boats"

    return make


def single(name: str, *lines: str) -> Damage:
    return lambda folder: write_lines(folder / name, lines)


def broken_gzip(folder: Path) -> Path:
    path = folder / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "a"}\n' * 999)[:40])
    return path


def empty_folder(folder: Path) -> Path:
    (folder / "none").mkdir()
    return folder / "none"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "nowhere", "/nowhere does not exist. Check the name."),
        (lambda folder: folder / "no.csv", "/no.csv does not exist. Check the name."),
        (
            single("a.txt", "a"),
            "/a.txt is not a set to score. A set is a folder with corpus.jsonl",
        ),
        (empty_folder, "/none is not a set to score. A set is a folder"),
        (damaged(qrels=None), "/boats has no qrels.tsv or qrels/test.tsv: a retrieval set needs"),
        (damaged(corpus=None), "/boats has no corpus.jsonl: a retrieval set needs"),
        (damaged(queries=None), "/boats has no queries.jsonl"),
        (damaged(corpus=[]), "/boats/corpus.jsonl is empty: a set needs at least one row."),
        (damaged(corpus=['{"_id": "keel", "text": "a"}', "{"]), "/boats/corpus.jsonl, line 2: column 2 is not JSON ("),
        (damaged(corpus=["[1]"]), "/boats/corpus.jsonl, line 1: the row is an array, not an object."),
        (
            damaged(corpus=['{"text": "a"}']),
            "/boats/corpus.jsonl, line 1: there is no field '_id'; the fields are",
        ),
        (
            damaged(corpus=['{"_id": "a"}']),
            "/boats/corpus.jsonl, line 1: there is no field 'text'; the fields are",
        ),
        (
            damaged(corpus=['{"_id": "a", "text": "b"}'] * 2),
            "/boats/corpus.jsonl, line 2: an earlier row has the _id 'a', too.",
        ),
        (
            damaged(corpus=['{"_id": "a", "text": "\\ud800"}']),
            "/boats/corpus.jsonl, line 1: the field 'text' holds half of a character",
        ),
        (
            damaged(queries=['{"_id": "q", "text": " "}']),
            "/boats/queries.jsonl, line 1: the text of this row is",
        ),
        (damaged(qrels=["q1\tkeel"]), "/boats/qrels.tsv, line 1: the line needs a query, a document and"),
        (
            damaged(qrels=["q1\tkeel\tgood"]),
            "/boats/qrels.tsv, line 1: the line needs a query, a document and",
        ),
        (
            damaged(qrels=["q1\tkeel\t1", "q9\tkeel\t1"]),
            "/boats/qrels.tsv, line 2: there is no query 'q9' in queries.jsonl.",
        ),
        (damaged(qrels=["q1\tfin\t1"]), "/boats/qrels.tsv, line 1: there is no document 'fin' in corpus.jsonl."),
        (damaged(qrels=["q1\tkeel\t0"]), "/boats/qrels.tsv names no relevant document"),
        (
            single("a.csv", "sentence1,sentence2", "a,b"),
            "/a.csv, line 1: there is no column 'score'; the columns are 'sentence1', 'sentence2'. Name them ",
        ),
        (
            single("a.csv", "a,b,c,d", "a,b,1,2"),
            "/a.csv, line 1: there is no column 'sentence1'; the columns are 'a', 'b', 'c', 'd'. Name them sentence1, ",
        ),
        (single("a.csv", "a,b,1", "a,b"), "/a.csv, line 2: the row has 2 columns, but the first row has 3."),
        (
            single("a.csv", "a,b,1", "a,b,c,2"),
            "/a.csv, line 2: the row has 4 columns, but the first row has 3. Put",
        ),
        (single("a.csv", "a,b,1", "c,d,nan"), "/a.csv, line 2: the score 'nan' is not a number."),
        (single("a.csv", "a,b,1", " ,d,2"), "/a.csv, line 2: a sentence is empty."),
        (single("a.csv", "a,b,1"), "/a.csv is too short: a correlation needs at least two pairs"),
        (single("a.csv", 'a,b,1\n"a,b,2'), "/a.csv, line 2: cannot be read as CSV ("),
        (
            single("a.jsonl", '{"sentence1": "a", "sentence2": "b"}'),
            "/a.jsonl, line 1: there is no field 'score'; the fields are 'sentence1', 'sentence2'.",
        ),
        (single("a.jsonl"), "/a.jsonl is empty: there is nothing to score."),
        (
            single("a.jsonl", '{"text": "a"}', '{"no": 1}'),
            "/a.jsonl, line 2: there is no field 'query', 'messages', 'prompt' or 'text'; the fields are 'no'.",
        ),
        (
            single("a.jsonl", '{"query": "a", "pos": ["b"]}'),
            "/a.jsonl, line 1: this row trains embeddings; to score retrieval make corpus.jsonl",
        ),
        (broken_gzip, "/a.jsonl.gz cannot be read: Compressed file ended before the end-of-stream marker was"),
    ],
)
def test_damage(tmp_path: Path, make: Damage, message: str) -> None:
    with pytest.raises(DocumentError) as caught:
        load_set(make(tmp_path))
    assert str(caught.value).replace(str(tmp_path), "").startswith(message)


def test_a_folder_without_sets(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("no set")
    with pytest.raises(DocumentError, match="holds nothing to score"):
        find_sets(tmp_path)
