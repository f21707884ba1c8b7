"""``grit eval``: tables, files, and what each wrong input says."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from grit_mlx import GritLM
from grit_mlx.cli import console
from grit_mlx.evaluation import scoring
from grit_mlx.evaluation.scoring import evaluate_set
from grit_mlx.evaluation.sets import load_set
from tests.evaluation.conftest import answers, beir, pairs, write_beir

__all__ = ["answers", "beir", "pairs"]  # fixtures

Grit = Any


def cells(text: str) -> list[list[str]]:
    return [line.split("\t") for line in text.splitlines()]


def test_one_model(grit: Grit, beir: Path, pairs: Path, answers: Path, tiny_model: Path, tmp_path: Path) -> None:
    record = tmp_path / "scores.json"
    run = grit("eval", beir, pairs, answers, "--json", record)
    assert (run.code, run.err) == (0, "")
    head, *rows = cells(run.out)
    metrics = ["nDCG@10", "MRR@10", "recall@10", "Spearman", "Pearson", "perplexity", "bits/byte"]
    assert head == ["set", "scored on", *metrics, "seconds"]
    assert [row[:2] for row in rows] == [["boats", "2 queries"], ["pairs", "4 pairs"], ["answers", rows[2][1]]]
    found = json.loads(record.read_text())
    model = GritLM(tiny_model)
    for name, score, row in zip((beir, pairs, answers), found["scores"], rows, strict=True):
        main = next(iter(score["values"]))
        assert score["values"][main] == pytest.approx(evaluate_set(model, load_set(name)), abs=1e-5)
        assert float(row[head.index(main)]) == pytest.approx(score["values"][main], abs=0.06)
    assert found["sets"][0] == {"name": "boats", "path": str(beir), "documents": 4, "queries": 2}
    assert found["systems"]["mistral"]["query_instruction"] == model.settings.query_instruction
    assert found["versions"]["grit-mlx"] and found["seconds"] > 0 and found["means"] == {}


def test_several_systems(grit: Grit, beir: Path, pairs: Path, tiny_mixtral: Path, tmp_path: Path) -> None:
    pytest.importorskip("bm25s", reason="needs bm25s, of the extra eval")
    other = write_beir(tmp_path / "others", gains={"q2": {"yeast": 1}})
    run = grit("eval", beir, other, pairs, "--compare", tiny_mixtral, "--bm25", "--hybrid", "-k", 3)
    assert (run.code, run.err) == (0, "")
    head, *rows = cells(run.out)
    assert head == ["set", "score", "mistral", "mistral+BM25", "mixtral", "mixtral+BM25", "BM25"]
    assert [row[:2] for row in rows] == [
        ["boats", "nDCG@3"],
        ["others", "nDCG@3"],
        ["pairs", "Spearman"],
        ["mean", "nDCG@3"],
    ]
    assert [row[6] for row in rows] == ["1.000", "1.000", "", "1.000"], "BM25 says nothing of pairs"
    for column in range(2, 7):
        both = [float(row[column]) for row in rows[:2]]
        assert float(rows[3][column]) == pytest.approx(sum(both) / 2, abs=1e-3)


def test_a_folder_of_sets_on_a_terminal(
    grit: Grit, tmp_path: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_beir(tmp_path / "boats")
    monkeypatch.setattr(console, "stdout_is_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", "100")
    run = grit("eval", tmp_path, "--limit", 2)
    assert run.code == 0
    assert "boats" in run.out and "2 pairs" in run.out and "\t" not in run.out


def test_two_models_of_one_name(grit: Grit, pairs: Path, tiny_model: Path) -> None:
    head, row = cells(grit("eval", pairs, "--compare", tiny_model).out)
    assert head == ["set", "score", "mistral", "mistral (2)"]
    assert row[2] == row[3]


def test_instructions(grit: Grit, beir: Path, pairs: Path, tmp_path: Path) -> None:
    record = tmp_path / "scores.json"
    run = grit("eval", beir, pairs, "--instruction", "a=b", "--instruction", "boats=Find", "--json", record)
    assert run.code == 0
    used = json.loads(record.read_text())["systems"]["mistral"]
    assert (used["query_instruction"], used["instructions"]) == ("a=b", {"boats": "Find"})


def test_an_interruption_shows_what_is_done_and_writes_nothing(
    grit: Grit, beir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = scoring.evaluate

    def interrupted(*args: Any, **options: Any) -> Iterator[scoring.Score]:
        yield next(whole(*args, **options))
        raise KeyboardInterrupt

    monkeypatch.setattr(scoring, "evaluate", interrupted)
    run = grit("eval", beir, "--json", tmp_path / "scores.json")
    assert run.code == 130
    assert run.out.splitlines()[1].startswith("boats\t2 queries\t")
    assert run.err == "note: interrupted: the table holds the scores so far, and no file is written\n"
    assert not (tmp_path / "scores.json").exists()


def test_long_texts_are_told_once(grit: Grit, beir: Path, tmp_path: Path) -> None:
    write_beir(tmp_path / "others")
    run = grit("eval", beir, tmp_path / "others", "--max-length", 24, "--instruction", "Find")
    assert run.code == 0
    assert run.err.startswith("warning: ") and run.err.count("truncated at 24 tokens") == 1


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        ([], 2, "Name a set to score, a task of MTEB with --mteb, or one of lm-evaluation-harness"),
        (["{}/none"], 1, "error: {}/none does not exist. Check the name.\n"),
        (["{}/bad.csv"], 1, "error: {}/bad.csv, line 2: the score 'x' is not a number.\n"),
        (
            ["{}/boats", "{}/other/boats"],
            1,
            "error: Two sets are called boats: {}/boats and {}/other/boats. Rename one",
        ),
        (["{}/boats", "--json", "{}/no/x"], 1, "error: Cannot write {}/no/x: its folder does not exist."),
        (["{}/boats", "--plot", "{}"], 1, "error: Cannot write {}: it is a folder."),
        (
            ["{}/boats", "--instruction", "a", "--instruction", "b"],
            1,
            "error: --instruction is given twice for all sets.",
        ),
        (["{}/boats", "--compare", "{}/no-model"], 1, "error: "),
        (["{}/boats", "--bm25"], 1, "error: BM25 needs bm25s: pip install 'grit-mlx[eval]'.\n"),
        (["{}/boats", "--hybrid"], 1, "error: BM25 needs bm25s: pip install 'grit-mlx[eval]'.\n"),
        (
            ["{}/boats", "--plot", "{}/x.png"],
            1,
            "error: A chart needs matplotlib: pip install 'grit-mlx[plots]'.\n",
        ),
        (["--mteb-results", "kept"], 1, "error: --mteb-results needs a task: --mteb NAME.\n"),
        (["--mteb", "NFCorpus"], 1, "error: A task of MTEB needs mteb: pip install 'grit-mlx[mteb]'.\n"),
        (["{}/boats", "--sentence-transformers", "x"], 1, "error: A sentence-transformers model needs sentence_transf"),
    ],
)
def test_what_cannot_work(
    grit: Grit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], code: int, message: str
) -> None:
    for name in ("bm25s", "matplotlib", "mteb", "sentence_transformers"):
        monkeypatch.setitem(sys.modules, name, None)
    write_beir(tmp_path / "boats")
    write_beir(tmp_path / "other" / "boats")
    (tmp_path / "bad.csv").write_text("a,b,1\nc,d,x\n")
    run = grit("eval", *(arg.replace("{}", str(tmp_path)) for arg in args))
    assert run.code == code
    assert message.replace("{}", str(tmp_path)) in run.err
    assert run.err.count("\n") == 1 or code == 2


def test_published_scores_stand_beside_ours(grit: Grit, beir: Path, pairs: Path, tmp_path: Path) -> None:
    beir.rename(tmp_path / "scifact")
    run = grit("eval", tmp_path / "scifact", pairs, "--published", "--json", tmp_path / "scores.json")
    assert (run.code, run.err) == (0, "")
    head, *rows = cells(run.out)
    assert head == ["set", "score", "mistral", "GritLM-7B, published"]
    assert [(row[0], row[3]) for row in rows] == [("scifact", "0.792"), ("pairs", "")]
    assert json.loads((tmp_path / "scores.json").read_text())["published"] == {"GritLM-7B": {"scifact": 0.792}}
    other = grit("eval", tmp_path / "scifact", "--published", "-k", 3)
    assert cells(other.out)[1][3] == "", "nDCG@3 is another score"


def test_all_published_scores(grit: Grit) -> None:
    run = grit("eval", "--published")
    assert (run.code, run.err) == (0, "")
    head, *rows = cells(run.out)
    assert head == ["table", "set", "GritLM-7B", "GritLM-8x7B"]
    assert ["generation", "HumanEval", "0.328", ""] in rows and ["MTEB, means", "all 56 sets", "0.668", "0.657"] in rows
