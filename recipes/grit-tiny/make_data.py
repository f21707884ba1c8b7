"""The data of `grit train`: a sample of each source, hard negatives that the bags find, the teacher's vectors.

    python recipes/grit-tiny/make_data.py [--bags bags]

Writes runs/grit-tiny/data: embedding/ (no vectors), taught/ (shorter, with the teacher's vectors), generative/.
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
from tokenizers import Tokenizer

ROWS = 2_500  # of each source
CUT = 900  # characters of a passage
# Where in the ranking a negative is taken from: above it is often as good an answer as the positive.
NEAREST, FARTHEST = 5, 40


def with_negatives(tokenizer: Tokenizer, table: torch.Tensor, name: str) -> list[dict[str, Any]]:
    sample = list(sources.pairs(name, ROWS))
    rng = np.random.default_rng(len(sample))
    sides = [bag_model.Bags(tokenizer, [one[i] for one in sample], bag_model.LENGTH) for i in (1, 2)]
    everything = np.arange(len(sample))
    q, p = (bag_model.vectors(table, side.take(everything, rng, 0)) for side in sides)
    texts = sides[1].texts
    rows = []
    for at in range(0, len(sample), 1024):
        similar = (q[at : at + 1024] @ p.T).numpy()
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


def write(folder: str, name: str, rows: list[dict[str, Any]]) -> None:
    path = sources.WORK / "data" / folder / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bags", default="bags")
    options = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(sources.WORK / "tokenizer" / "tokenizer.json"))
    table = torch.from_numpy(np.load(sources.WORK / f"{options.bags}.npy"))
    for name in sources.EMBEDDING:
        write("embedding", name, with_negatives(tokenizer, table, name))
    for path in sorted((sources.WORK / "targets").glob("*.npz")):
        write("taught", path.stem, taught(path))
    for name, most in sources.GENERATIVE.items():
        write("generative", name, sources.rows("generative", name, most))


if __name__ == "__main__":
    main()
