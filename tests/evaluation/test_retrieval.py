"""Scores against small cases computed by hand, and sets that cannot be read."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grit_mlx import GritLM
from grit_mlx.errors import DocumentError
from grit_mlx.evaluation.metrics import ndcg, ranks, spearman
from grit_mlx.evaluation.retrieval import PairSet, RetrievalSet, evaluate_set, load_set


def test_ndcg() -> None:
    assert ndcg(["a", "b"], {"a": 1}) == 1
    assert ndcg(["b", "a"], {"a": 1}) == pytest.approx(1 / np.log2(3))
    assert ndcg(["b"], {"a": 1}) == 0 and ndcg(["a"], {}) == 0
    graded = (1 / np.log2(2) + 2 / np.log2(3)) / (2 / np.log2(2) + 1 / np.log2(3))
    assert ndcg(["a", "b"], {"a": 1, "b": 2}) == pytest.approx(graded)
    assert ndcg([*"cdefghijkl", "a"], {"a": 1}) == 0, "beyond the tenth"


def test_spearman() -> None:
    assert ranks([3, 1, 2, 2]).tolist() == [4, 1, 2.5, 2.5]
    assert spearman([1, 2, 3], [10, 20, 25]) == pytest.approx(1)
    assert spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert spearman([1, 1], [1, 2]) == 0
    # scipy.stats.spearmanr([1, 2, 2, 4, 5], [2, 1, 3, 5, 4])
    assert spearman([1, 2, 2, 4, 5], [2, 1, 3, 5, 4]) == pytest.approx(0.7181848464596079)


def lines(path: Path, rows: list[dict[str, Any]]) -> None:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    folder = tmp_path / "beir"
    folder.mkdir()
    lines(folder / "corpus.jsonl.gz", [{"_id": "1", "title": "T", "text": "a"}, {"_id": "2", "title": "", "text": "b"}])
    lines(folder / "queries.jsonl", [{"_id": "q", "text": "a"}, {"_id": "r", "text": "c"}])
    (folder / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\nq\t1\t1\n")
    return folder


def test_a_retrieval_set(beir: Path, tiny_model: Path) -> None:
    found = load_set(beir)
    assert found == RetrievalSet("beir", {"1": "T a", "2": "b"}, {"q": "a", "r": "c"}, {"q": {"1": 1.0}})
    model = GritLM(tiny_model)
    scores = model.encode_corpus(["T a", "b"]) @ model.encode_queries("a")
    expected = 1.0 if scores[0] > scores[1] else 1 / np.log2(3)
    assert evaluate_set(model, found) == pytest.approx(expected)


def test_pairs(tmp_path: Path, tiny_model: Path) -> None:
    path = tmp_path / "sts" / "dev.csv"
    path.parent.mkdir()
    path.write_text('first,second,score\n"A keel, long","A keel, long",5\nA keel,Bread,1.5\n')
    found = load_set(path.parent)
    assert found == PairSet("sts", ["A keel, long", "A keel"], ["A keel, long", "Bread"], [5, 1.5])
    assert load_set(path) == PairSet("dev", *[getattr(found, name) for name in ("first", "second", "scores")])
    assert evaluate_set(GritLM(tiny_model), found) == pytest.approx(1)


def test_sets_that_cannot_be_read(beir: Path, tmp_path: Path) -> None:
    def refused(path: Path) -> str:
        with pytest.raises(DocumentError) as caught:
            load_set(path)
        return str(caught.value).replace(str(tmp_path), "")

    assert "/none is no set to score" in refused(tmp_path / "none")
    (beir / "qrels.tsv").write_text("q\t1\n")
    assert refused(beir) == "/beir/qrels.tsv, line 1: needs a query, a document and a score."
    (beir / "qrels.tsv").unlink()
    assert "/beir has no qrels.tsv" in refused(beir)
    lines(beir / "queries.jsonl", [{"_id": "q"}])
    assert refused(beir) == "/beir/queries.jsonl, line 1: it needs _id and text."
    (tmp_path / "bad.csv").write_text("a,b,1\na,b\n")
    assert refused(tmp_path / "bad.csv") == "/bad.csv, line 2: needs two sentences and a score."
