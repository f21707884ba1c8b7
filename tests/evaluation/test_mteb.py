"""The adapter to MTEB: its instructions and vectors, and, where mteb is installed, a task of local data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grit_mlx import GritLM, embedding_prompt
from grit_mlx.errors import ArgumentError
from grit_mlx.evaluation.instructions import instruction_for
from grit_mlx.evaluation.mteb import GritEncoder, find_tasks, score_tasks
from grit_mlx.evaluation.scoring import evaluate_set
from grit_mlx.evaluation.sets import load_set
from grit_mlx.model.settings import Settings
from tests.evaluation.conftest import DOCUMENTS, GAINS, QUERIES

SETTINGS = Settings(
    query_instruction="own query", document_instruction="own document", similarity_instruction="own text"
)


@dataclass(frozen=True)
class Metadata:
    """What the adapter reads of MTEB's TaskMetadata."""

    name: str
    type: str
    prompt: Any = None


@pytest.mark.parametrize(
    ("task", "kind", "document", "expected"),
    [
        ("NFCorpus", "Retrieval", False, "Given a question, retrieve relevant documents that best answer the question"),
        ("NFCorpus", "Retrieval", True, "own document"),
        (
            "FEVERHardNegatives.v2",
            "Retrieval",
            False,
            "Given a claim, retrieve documents that support or refute the claim",
        ),
        (
            "QuoraRetrieval",
            "Retrieval",
            False,
            "Given a question, retrieve questions that are semantically equivalent to ",
        ),
        (
            "CQADupstackAndroidRetrieval",
            "Retrieval",
            False,
            "Given a question, retrieve detailed question descriptions",
        ),
        ("Touche2020Retrieval.v3", "Retrieval", False, "Given a question, retrieve detailed and persuasive arguments"),
        ("Banking77Classification.v2", "Classification", False, "Given a online banking query, find the corresponding"),
        ("SciDocsRR", "Reranking", True, "Given a title of a scientific paper, retrieve the titles of other relevant"),
        ("STS12", "STS", False, "own text"),
        ("Unheard", "Retrieval", False, "own query"),
        ("Unheard", "Retrieval", True, "own document"),
        ("Unheard", "Clustering", False, "own text"),
    ],
)
def test_instructions(task: str, kind: str, document: bool, expected: str) -> None:
    assert instruction_for(task, kind, document=document, settings=SETTINGS).startswith(expected)


def test_what_a_task_proposes_comes_after_the_table() -> None:
    def of(task: str, kind: str, document: bool = False) -> str:
        return instruction_for(task, kind, document=document, settings=SETTINGS, prompt="Proposed")

    assert of("NQ", "Retrieval") == "Given a question, retrieve Wikipedia passages that answer the question"
    assert (of("Unheard", "Retrieval"), of("Unheard", "Retrieval", True)) == ("Proposed", "own document")
    assert of("Unheard", "Clustering") == "Proposed"


def test_vectors(tiny_model: Path) -> None:
    model = GritLM(tiny_model, mode="embedding")
    encoder = GritEncoder(model, instructions={"Mine": "Find boats"})
    batches = [{"text": ["A keel.", ""]}, {"text": ["Bread."]}]
    found = encoder.encode(batches, task_metadata=Metadata("Mine", "Retrieval"), hf_split="test", hf_subset="default")
    expected = model.encode(["A keel.", "Bread."], instruction=embedding_prompt("Find boats"))
    np.testing.assert_allclose(found[[0, 2]], expected, atol=1e-6)
    assert not found[1].any()
    assert encoder.instruction(Metadata("Mine", "Retrieval"), "document") == model.settings.document_instruction
    assert encoder.instruction(Metadata("Other", "Retrieval", {"query": "Seek"}), "query") == "Seek"
    cosines = encoder.similarity(3 * found, found)
    assert cosines.shape == (3, 3) and cosines[0, 0] == pytest.approx(1)
    np.testing.assert_allclose(np.diag(cosines), encoder.similarity_pairwise(found, found), atol=1e-6)


def test_a_task_of_local_data(tiny_model: Path, beir: Path) -> None:
    mteb = pytest.importorskip("mteb", reason="needs the extra mteb")
    from datasets import Dataset
    from mteb.abstasks import AbsTaskRetrieval

    class Boats(AbsTaskRetrieval):  # type: ignore[misc]
        metadata = mteb.TaskMetadata(
            **{"name": "BoatsRetrieval", "description": "boats", "reference": None, "type": "Retrieval"},
            **{"dataset": {"path": "local", "revision": "1"}, "category": "t2t", "modalities": ["text"]},
            **{"eval_splits": ["test"], "eval_langs": ["eng-Latn"], "main_score": "ndcg_at_10", "bibtex_citation": ""},
            **dict.fromkeys(("date", "domains", "task_subtypes", "license", "annotations_creators", "dialect")),
            sample_creation=None,
        )

        def load_data(self, num_proc: int | None = None, **options: Any) -> None:
            split = {
                "corpus": Dataset.from_list([{"id": i, "title": "", "text": text} for i, text in DOCUMENTS.items()]),
                "queries": Dataset.from_list([{"id": i, "text": QUERIES[i]} for i in GAINS]),
                "relevant_docs": GAINS,
                "top_ranked": None,
            }
            self.dataset = {"default": {"test": split}}
            self.data_loaded = True

    model = GritLM(tiny_model, mode="embedding")
    encoder = GritEncoder(model)
    from mteb.models import EncoderProtocol

    assert isinstance(encoder, EncoderProtocol)
    (score,) = score_tasks(encoder, [Boats()], name="tiny")
    assert (score.set, score.system, score.main) == ("BoatsRetrieval", "tiny", "ndcg_at_10")
    assert score.values["ndcg_at_10"] == pytest.approx(evaluate_set(model, load_set(beir)), abs=1e-4)
    with pytest.raises(ArgumentError, match="MTEB has no task 'NFCorpis': did you mean 'NFCorpus'"):
        find_tasks(["NFCorpis"])
