"""The data of `grit train`: a sample of each source, hard negatives that the bags find, the teacher's vectors.

    python recipes/grit-tiny-next/make_data.py [--bags mixed]

Writes runs/grit-tiny-next/data: embedding/ (no vectors), taught/ (shorter, with the teacher's vectors), and
generative/: extracts, definitions, and answers of each source that are short.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import bags as bag_model
import numpy as np
import sources
import torch
import words
from extracts import NAMES, Encode, asked, extracts, sentences
from tokenizers import Tokenizer

ROWS = 2_500  # of each source
CUT = 900  # characters of a passage
# Where in the ranking a negative is taken from: above it is often as good an answer as the positive.
NEAREST, FARTHEST = 5, 40
# Words of a prompt, and of an answer, which ends with a sentence.
PROMPT, ANSWER = 100, 45
DEFINED = {"openstax_glossary": 6_000, "dbpedia7.6k": 2_500}


def with_negatives(encode: Encode, name: str) -> list[dict[str, Any]]:
    sample = list(sources.pairs(name, ROWS))
    rng = np.random.default_rng(len(sample))
    q, p = (encode([one[i] for one in sample]) for i in (1, 2))
    texts = np.array([hash(one[2]) for one in sample])
    rows = []
    for at in range(0, len(sample), 1024):
        similar = q[at : at + 1024] @ p.T
        own = similar[np.arange(len(similar)), at + np.arange(len(similar))]
        similar[texts[at : at + 1024, None] == texts[None]] = -1
        # What is nearer than the positive itself is more likely an answer as well than a mistake.
        similar[similar > own[:, None] + 0.05] = -1
        nearest = np.argsort(-similar, axis=1)[:, NEAREST:FARTHEST]
        for i, candidates in enumerate(nearest):
            instruction, query, positive, negatives = sample[at + i]
            if not negatives and len(candidates):
                negatives = [sample[int(j)][2] for j in rng.choice(candidates, min(2, len(candidates)), replace=False)]
            row = {
                "query": [instruction, query],
                "pos": [["", positive[:CUT]]],
                "neg": [["", text[:CUT]] for text in negatives],
            }
            rows.append(row)
    return rows


def taught(path: Path) -> list[dict[str, Any]]:
    content = np.load(path)
    rows = []
    vectors = zip(content["query_vector"], content["passage_vector"], strict=True)
    texts = zip(content["instruction"].tolist(), content["query"].tolist(), content["passage"].tolist(), strict=True)
    for (instruction, query, passage), (of_query, of_passage) in zip(texts, vectors, strict=True):
        if query.strip() and passage.strip():
            row = {"query": [instruction, query], "pos": [["", passage]]}
            row |= {"query_vector": np.round(of_query.astype(float), 4).tolist()}
            rows.append(row | {"pos_vectors": [np.round(of_passage.astype(float), 4).tolist()]})
    return rows


def short(row: dict[str, Any]) -> dict[str, Any] | None:
    """The row with its answer's first sentences; None where the prompt, or a sentence, is long."""
    prompt, answer = row["text"][0], row["text"][-1].partition("::")[0]
    if len(answer.split()) > ANSWER:
        kept: list[str] = []
        for sentence in sentences(answer):
            if len(" ".join([*kept, sentence]).split()) > ANSWER:
                break
            kept.append(sentence)
        answer = " ".join(kept)
    fits = answer.strip() and len(prompt.split()) <= PROMPT and len(prompt) < 8 * PROMPT
    return {"text": [prompt, answer]} if fits else None


def definitions() -> list[dict[str, Any]]:
    rng = np.random.default_rng(5)
    found = []
    for name, most in DEFINED.items():
        for _, term, text, _ in sources.pairs(name, most):
            first = sentences(text)[:1]
            if first and len(first[0].split()) <= ANSWER:
                answer = first[0][0].upper() + first[0][1:].rstrip(".") + "."
                found.append({"text": [asked(term, NAMES, rng), answer]})
    return found


def write(folder: str, name: str, rows: list[dict[str, Any]]) -> None:
    path = sources.WORK / "data" / folder / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bags", default="mixed")
    options = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(sources.WORK / "tokenizer" / "tokenizer.json"))
    table = torch.from_numpy(np.load(sources.WORK / f"{options.bags}.npy"))
    same = words.same_words(tokenizer)

    def encode(texts: list[str]) -> np.ndarray:
        bags = bag_model.Bags(tokenizer, texts, bag_model.LENGTH, same)
        everything = bags.take(np.arange(len(texts)), np.random.default_rng(0), 0)
        return bag_model.vectors(table, everything).numpy()

    for name in sources.EMBEDDING:
        write("embedding", name, with_negatives(encode, name))
    for path in sorted((sources.WORK / "targets").glob("*.npz")):
        write("taught", path.stem, taught(path))
    write("generative", "extracts", extracts(encode, seed=3))
    write("generative", "definitions", definitions())
    for name, most in sources.GENERATIVE.items():
        fitting = [row for row in map(short, sources.rows("generative", name)) if row is not None]
        write("generative", name, fitting[:most])


if __name__ == "__main__":
    main()
