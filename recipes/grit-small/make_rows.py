"""Training rows from ../shared/data/train, sampled by source: runs/grit-small/data/{embedding,generative}/*.jsonl.

    python make_rows.py

Answers from passages are asked for as ``grit rag`` asks models with a chat of their own, some of them with another
passage beside the right one, some with none that answers.
"""

from __future__ import annotations

import gzip
import json
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from grit_mlx.model.prompts import PLAIN_RAG_PROMPTS

ROOT = Path(__file__).resolve().parents[2]
TRAIN = ROOT.parent / "shared" / "data" / "train"
DATA = ROOT / "runs" / "grit-small" / "data"

# Maximum number of rows. By source, not by size: there are few real questions, and the model is made for them.
EMBEDDING = {
    **{"clapnq_train": 1_852, "selqa_dev": 609, "boolq_train2k": 1_619, "fairytaleqa_train": 8_538, "medquad": 8_000},
    **{"opentriviaqa": 3_000, "scitldr_train": 1_980, "arxiv": 8_000, "openstax_para": 8_000, "dbpedia7.6k": 4_000},
    **{"openstax_biology2014": 3_000, "openstax_glossary": 3_000, "wiki_movies": 3_000, "wiki_split": 3_000},
    **{"onestop": 2_000, "esnli_dev": 3_307, "esnli_test": 3_349, "oewn": 3_000, "aws_docs": 2_000},
    **{"fcc_guide": 2_000, "factbook": 1_500, "tldr": 2_000},
}
GENERATIVE = {
    **{"p3_open": 3_000, "flan_cot": 2_500, "gsm8k_train": 2_000, "openstax_qa": 1_500, "medquad": 1_500},
    **{"strategyqa": 1_000, "opentriviaqa": 1_000, "selfinstruct_human": 426, "tldr": 500, "sgd_turns": 500},
}
PLAIN_TEXTS = 2_000  # of openstax_para: the model should not forget how to write prose

# The instruction that the model is used with; half of the rows have it, the others their source's own.
INSTRUCTION = "Given a question, retrieve passages that answer it"
# Pairs that are alike, not question and answer: half of them are embedded without an instruction.
ALIKE = {"esnli_dev", "esnli_test", "onestop", "wiki_split"}

BESIDE, UNANSWERED = 0.4, 0.06  # shares of questions with another passage beside the right one, or only with another
NO_ANSWER = "The text does not say."
# How p3_open asks about a text; the groups are the question and the text.
_QUOREF = [
    re.compile(r"(?P<question>[^\n]{10,300})\n\nAnswer the above question based on the context below:\n\n(?P<text>.+)"),
    re.compile(r"A friend asked me to answer this question: (?P<question>.{10,300}?), using the article: (?P<text>.+?),"
               r" what would be the answer \?"),
]  # fmt: skip
_LONGEST = 2_400  # characters of a passage


def rows(kind: str, name: str, most: int | None = None) -> list[dict[str, Any]]:
    """Rows of one source; always the same sample."""
    with gzip.open(TRAIN / kind / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
        found = [json.loads(line) for line in file]
    return found if most is None or most >= len(found) else random.Random(name).sample(found, most)


def embedding_rows(name: str, most: int) -> Iterator[dict[str, Any]]:
    chance = random.Random(name)
    for row in rows("embedding", name, most):
        own, text = row["query"]
        other = "" if name in ALIKE else INSTRUCTION
        yield {**row, "query": [chance.choice([own, other]), text]}


def asked_of_passages() -> dict[str, list[tuple[str, str, str]]]:
    """Passage, question and answer, by source."""
    found: dict[str, list[tuple[str, str, str]]] = {}
    for name in ("fairytaleqa_train", "boolq_train2k"):
        found[name] = []
        for row in rows("generative", name, 6_000):
            passage, _, question = row["text"][0].rpartition("\n\n")
            found[name].append((passage, question, row["text"][1]))
    passages = {row["query"][1]: row["pos"][0][1] for row in rows("embedding", "clapnq_train")}
    answered = (row["text"] for row in rows("generative", "clapnq_train"))
    found["clapnq_train"] = [
        (passages[question], question, answer) for question, answer in answered if question in passages
    ]
    found["quoref"] = []
    for row in rows("generative", "p3_open"):
        prompt, answer = row["text"]
        for form in _QUOREF:
            if match := form.fullmatch(prompt):
                found["quoref"].append((match["text"], match["question"], answer))
    return {
        name: [row for row in triples if row[0] and len(row[0]) <= _LONGEST and row[1] and row[2]]
        for name, triples in found.items()
    }


def passage_rows(name: str, triples: Sequence[tuple[str, str, str]]) -> Iterator[dict[str, Any]]:
    chance = random.Random(name)
    for passage, question, answer in triples:
        document, drawn = passage, chance.random()
        if drawn < BESIDE + UNANSWERED:
            other = chance.choice(triples)[0]
            if other != passage and drawn < UNANSWERED:
                document, answer = other, NO_ANSWER
            elif other != passage:
                document = "\n\n".join(chance.sample([passage, other], 2))
        yield {"text": [PLAIN_RAG_PROMPTS["none"].format(document=document, query=question), answer]}


def write(kind: str, name: str, found: Iterator[dict[str, Any]]) -> None:
    path = DATA / kind / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in found]
    path.write_text("".join(lines), encoding="utf-8")
    print(f"{path.relative_to(ROOT)}: {len(lines):,} rows")


def main() -> None:
    for name, most in EMBEDDING.items():
        write("embedding", name, embedding_rows(name, most))
    for name, triples in asked_of_passages().items():
        write("generative", f"passages_{name}", passage_rows(name, triples))
    for name, most in GENERATIVE.items():
        write("generative", name, iter(rows("generative", name, most)))
    texts = (row["pos"][0][1] for row in rows("embedding", "openstax_para", PLAIN_TEXTS))
    write("generative", "texts", ({"text": text} for text in texts))


if __name__ == "__main__":
    main()
