"""The sources of the recipe's texts in ../shared/data/train, and how often each is drawn."""

from __future__ import annotations

import gzip
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TRAIN = ROOT.parent / "shared" / "data" / "train"
DEV = ROOT.parent / "shared" / "data" / "dev"
WORK = ROOT / "runs" / "grit-tiny"

# Weighted by source, not by size, because there are few real questions and the model is made for them.
# (maximum number of rows, how often an epoch uses each)
EMBEDDING: dict[str, tuple[int, float]] = {
    "medquad": (16_359, 1.0),
    "fairytaleqa_train": (8_538, 3.0),
    "boolq_train2k": (1_619, 3.0),
    "clapnq_train": (1_852, 3.0),
    "selqa_dev": (609, 3.0),
    "scitldr_train": (1_980, 3.0),
    "opentriviaqa": (25_000, 0.4),
    "arxiv": (30_000, 1.0),
    "openstax_para": (51_656, 0.4),
    "openstax_biology2014": (4_323, 1.0),
    "openstax_glossary": (11_618, 1.0),
    "dbpedia7.6k": (7_595, 1.0),
    "wiki_movies": (20_000, 0.5),
    "wiki_split": (9_984, 1.0),
    "onestop": (4_736, 1.0),
    "esnli_dev": (3_307, 2.0),
    "esnli_test": (3_349, 2.0),
    "oewn": (60_000, 0.3),
    "aws_docs": (25_000, 0.3),
    "fcc_guide": (6_378, 0.5),
    "factbook": (15_000, 0.2),
    "tldr": (15_000, 0.3),
}
# Also used to train the tokenizer.
GENERATIVE = (
    "fairytaleqa_train",
    "p3_open",
    "flan_cot",
    "medquad",
    "openstax_qa",
    "strategyqa",
    "boolq_train2k",
    "clapnq_train",
    "opentriviaqa",
    "tldr",
    "sgd_turns",
    "selfinstruct_human",
    "gsm8k_train",
)
# A model of this size has no knowledge. It should say so instead of making something up.
UNKNOWN = "I answer from a passage only: put one before the question."
_ENDS = re.compile(r"(?<=[.!?])\s+(?=[\"'(]?[A-Z0-9])")


def rows(kind: str, name: str, most: int | None = None) -> list[dict[str, Any]]:
    """Rows of one source; always the same sample."""
    with gzip.open(TRAIN / kind / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
        found = [json.loads(line) for line in file]
    return found if most is None or most >= len(found) else random.Random(name).sample(found, most)


def pairs(name: str, most: int | None = None) -> Iterator[tuple[str, str, str, list[str]]]:
    """Instruction, query, positive and negatives of each row of an embedding source."""
    for row in rows("embedding", name, most):
        yield row["query"][0], row["query"][1], row["pos"][0][1], [text for _, text in row.get("neg") or []]


def sentences(text: str) -> list[str]:
    return [part.strip() for part in _ENDS.split(" ".join(text.split())) if part.strip()]
