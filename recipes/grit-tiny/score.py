"""The development scores of a model folder: python recipes/grit-tiny/score.py [--hybrid] [FOLDER...]

--hybrid also ranks by BM25 (bm25s with an English stemmer) and by both: reciprocal rank fusion, 1 / (60 + rank).
"""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
import sources

from grit_mlx.evaluation.metrics import ndcg
from grit_mlx.evaluation.retrieval import evaluate_set, load_set
from grit_mlx.gritlm import GritLM

SETS = ("clapnq_dev", "fairytaleqa_val", "pubmedqa", "scitldr_test", "xquad_en", "stsb")
DEPTH, CONSTANT = 100, 60


def line(name: str, found: dict[str, float], started: float) -> None:
    retrieval = [value for one, value in found.items() if one != "stsb"]
    parts = " ".join(f"{one} {value:.3f}" for one, value in found.items())
    print(f"{name}: mean {np.mean(retrieval):.4f} | {parts} ({time.perf_counter() - started:.0f} s)", flush=True)


def hybrid(model: GritLM, data: Any) -> tuple[float, float]:
    """nDCG@10 of BM25 and of the fusion."""
    import bm25s
    import Stemmer

    stemmer = Stemmer.Stemmer("english")
    ids, asked = list(data.documents), [query for query in data.queries if data.relevant.get(query)]
    texts = [data.queries[query] for query in asked]
    index = bm25s.BM25()
    index.index(
        bm25s.tokenize(list(data.documents.values()), stemmer=stemmer, show_progress=False), show_progress=False
    )
    depth = min(DEPTH, len(ids))
    tokens = bm25s.tokenize(texts, stemmer=stemmer, show_progress=False)
    words = index.retrieve(tokens, k=depth, show_progress=False).documents
    similar = model.encode_queries(texts) @ model.encode_corpus(list(data.documents.values())).T
    vectors = np.argsort(-similar, axis=1, kind="stable")[:, :depth]
    alone, both = [], []
    for row, query in enumerate(asked):
        points: dict[int, float] = {}
        for ranking in (words[row], vectors[row]):
            for rank, document in enumerate(ranking, start=1):
                points[int(document)] = points.get(int(document), 0.0) + 1 / (CONSTANT + rank)
        fused = sorted(points, key=points.__getitem__, reverse=True)[:10]
        alone.append(ndcg([ids[i] for i in words[row][:10]], data.relevant[query]))
        both.append(ndcg([ids[i] for i in fused], data.relevant[query]))
    return float(np.mean(alone)), float(np.mean(both))


def main() -> None:
    folders = [one for one in sys.argv[1:] if one != "--hybrid"]
    for folder in folders or ["grit-tiny"]:
        started = time.perf_counter()
        model = GritLM(folder)
        sets = {name: load_set(sources.DEV / name) for name in SETS}
        line(folder, {name: evaluate_set(model, data) for name, data in sets.items()}, started)
        if "--hybrid" in sys.argv:
            pairs = {name: hybrid(model, data) for name, data in sets.items() if name != "stsb"}
            line("BM25", {name: pair[0] for name, pair in pairs.items()}, started)
            line("both", {name: pair[1] for name, pair in pairs.items()}, started)


if __name__ == "__main__":
    main()
