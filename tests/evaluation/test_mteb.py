"""The adapter to MTEB: its instructions and vectors. MTEB itself is tested with in tests/integrations."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grit_mlx import GritLM, embedding_prompt
from grit_mlx.evaluation.instructions import instruction_for
from grit_mlx.evaluation.mteb import GritEncoder
from grit_mlx.model.settings import Settings

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


def test_the_revision_is_that_of_the_vectors(tiny_model: Path, tiny_mixtral: Path) -> None:
    model = GritLM(tiny_model, mode="embedding")
    first = GritEncoder(model).revision
    assert GritEncoder(GritLM(tiny_model), name="owner/other").revision == first
    others = [
        GritEncoder(model, instructions={"Mine": "Find boats"}),
        GritEncoder(model, options={"max_length": 64}),
        GritEncoder(GritLM(tiny_model, mode="embedding", pooling_method="cls")),
        GritEncoder(GritLM(tiny_mixtral, mode="embedding")),
    ]
    assert len({first, *(one.revision for one in others)}) == 5
