"""MTEB itself: a task of local data, and the folder of results that its own cache reads back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.integrations.tools import tool

mteb = tool("mteb")

from grit_mlx import GritLM
from grit_mlx.cli.main import main
from grit_mlx.errors import ArgumentError, OutputError
from grit_mlx.evaluation import mteb as adapter
from grit_mlx.evaluation.mteb import GritEncoder, find_tasks, score_tasks
from grit_mlx.evaluation.scoring import evaluate_set
from grit_mlx.evaluation.sets import load_set
from tests.evaluation.conftest import DOCUMENTS, GAINS, QUERIES, beir

__all__ = ["beir"]  # a fixture


@pytest.fixture(scope="module")
def boats() -> Any:
    """A class of tasks; ``loads`` counts how often its data was asked for."""
    from datasets import Dataset
    from mteb.abstasks import AbsTaskRetrieval

    class Boats(AbsTaskRetrieval):
        loads = 0
        metadata = mteb.TaskMetadata(
            **{"name": "BoatsRetrieval", "description": "boats", "reference": None, "type": "Retrieval"},
            **{"dataset": {"path": "local", "revision": "1"}, "category": "t2t", "modalities": ["text"]},
            **{"eval_splits": ["test"], "eval_langs": ["eng-Latn"], "main_score": "ndcg_at_10", "bibtex_citation": ""},
            **dict.fromkeys(("date", "domains", "task_subtypes", "license", "annotations_creators", "dialect")),
            sample_creation=None,
        )

        def load_data(self, num_proc: int | None = None, **options: Any) -> None:
            type(self).loads += 1
            split = {
                "corpus": Dataset.from_list([{"id": i, "title": "", "text": text} for i, text in DOCUMENTS.items()]),
                "queries": Dataset.from_list([{"id": i, "text": QUERIES[i]} for i in GAINS]),
                "relevant_docs": GAINS,
                "top_ranked": None,
            }
            self.dataset = {"default": {"test": split}}
            self.data_loaded = True

    return Boats


def test_a_task_of_local_data(boats: Any, tiny_model: Path, beir: Path) -> None:
    model = GritLM(tiny_model, mode="embedding")
    encoder = GritEncoder(model)
    from mteb.models import EncoderProtocol

    assert isinstance(encoder, EncoderProtocol)
    (score,) = score_tasks(encoder, [boats()], name="tiny")
    assert (score.set, score.system, score.main) == ("BoatsRetrieval", "tiny", "ndcg_at_10")
    assert score.values["ndcg_at_10"] == pytest.approx(evaluate_set(model, load_set(beir)), abs=1e-4)
    with pytest.raises(ArgumentError, match="MTEB has no task 'NFCorpis': did you mean 'NFCorpus'"):
        find_tasks(["NFCorpis"])


def test_results_are_read_back_by_mteb(
    boats: Any, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter, "find_tasks", lambda names: [boats()])
    folder, record = tmp_path / "kept", tmp_path / "scores.json"
    arguments = ["eval", "--mteb", "BoatsRetrieval", "--model", str(tiny_model), "--mteb-results", str(folder)]
    monkeypatch.setattr("sys.argv", ["grit", *arguments, "--json", str(record), "--published"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    (score,) = json.loads(record.read_text())["scores"]
    cache = mteb.ResultCache(folder)
    (model,) = cache.load_results().model_results
    encoder = GritEncoder(GritLM(tiny_model, mode="embedding"))
    assert (model.model_name, model.model_revision) == ("local/mistral", encoder.revision)
    (kept,) = model.task_results
    assert kept.task_name == "BoatsRetrieval"
    assert kept.get_score() == pytest.approx(score["values"]["ndcg_at_10"], abs=1e-6)
    assert (folder / "results" / "local__mistral" / encoder.revision / "BoatsRetrieval.json").is_file()
    assert (folder / "results" / "local__mistral" / encoder.revision / "model_meta.json").is_file()


def test_what_is_there_is_not_computed_again(boats: Any, tiny_model: Path, tmp_path: Path) -> None:
    encoder = GritEncoder(GritLM(tiny_model, mode="embedding"))
    (first,) = score_tasks(encoder, [boats()], results=tmp_path)
    before = boats.loads
    (second,) = score_tasks(encoder, [boats()], results=tmp_path)
    assert second.values == first.values and boats.loads == before
    other = GritEncoder(encoder.model, instructions={"BoatsRetrieval": "Find sails"})
    list(score_tasks(other, [boats()], results=tmp_path))
    assert boats.loads > before, "other vectors are another revision"
    assert len(list((tmp_path / "results").glob("*/*/BoatsRetrieval.json"))) == 2
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file"):
        list(score_tasks(encoder, [boats()], results=tmp_path / "file" / "kept"))
