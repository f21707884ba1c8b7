"""Quality of retrieval and of answers: nDCG@10 by search method, match by cache mode.

    python benchmarks/rag_quality.py [--model NAME] [--answers N]

Retrieval: each set of ../shared/data/dev gets its own store, which is searched with BM25, with vectors (dense) and with
both, fused by ranks (rrf) and by scores (hybrid). The rank of a document is that of its best passage.

Answers: "match" as in the paper: whether the gold answer, normalised as in SQuAD, appears in the 16 tokens generated
after the prompt and "The answer is". The development sets have no answers, so questions with a short answer are taken
from ../shared/data/train/generative/fairytaleqa_train. Models may have been trained on these, so compare only the modes
of one model.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
import string
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grit_mlx  # noqa: F401 - before mlx, to load the fast BLAS

# isort: split
import numpy as np
from common import CORPORA, SHARED, machine, save

from grit_mlx import GritLM
from grit_mlx.evaluation.metrics import ndcg
from grit_mlx.evaluation.sets import load_set
from grit_mlx.model.prompts import literal_tokens
from grit_mlx.rag import Answerer, Document, Store
from grit_mlx.rag.modes import MODES

DEPTH = 10
METHODS = ("bm25", "dense", "rrf", "hybrid")
ANSWERS = SHARED / "data" / "train" / "generative" / "fairytaleqa_train.jsonl.gz"


def retrieval(model: GritLM, name: str, folder: Path) -> dict[str, Any]:
    data: Any = load_set(SHARED / "data" / "dev" / name)
    path = folder / f"{name}.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for key, text in data.documents.items():
            file.write(json.dumps({"text": text, "id": key}) + "\n")
    store = Store(folder / name, model)
    store.index([path])
    asked = [query for query in data.queries if data.relevant.get(query)]
    vectors = model.encode_queries([data.queries[query] for query in asked])
    scores: dict[str, float] = {}
    for method in METHODS:
        found = []
        for query, vector in zip(asked, vectors, strict=True):
            hits = store.search(data.queries[query], top=4 * DEPTH, method=method, vector=vector)
            keys = [one.removeprefix("id=") for hit in hits for one in hit.passage.metadata if one[:3] == "id="]
            found.append(ndcg(list(dict.fromkeys(keys)), data.relevant[query], depth=DEPTH))
        scores[method] = round(float(np.mean(found)), 4)
    row = {"set": name, "documents": len(data.documents), "passages": len(store), "queries": len(asked), **scores}
    print(row, file=sys.stderr)
    return row


def normalised(text: str) -> str:
    """Normalise as in SQuAD: lower case, no punctuation, no articles, single spaces."""
    text = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def questions(count: int) -> list[tuple[str, str, str]]:
    """Triples of document, question and answer, where the answer is short and appears in the document."""
    kept = []
    with gzip.open(ANSWERS, "rt", encoding="utf-8") as lines:
        for line in lines:
            asked, answer = json.loads(line)["text"]
            document, _, question = asked.rpartition("\n\n")
            if (
                document
                and len(answer.split()) <= 4
                and normalised(answer)
                and normalised(answer) in normalised(document)
            ):
                kept.append((document, question, answer))
    return random.Random(0).sample(kept, count)


def answers(model: GritLM, count: int) -> dict[str, Any]:
    answerer = Answerer(model)
    ending = literal_tokens(model.tokenizer, "The answer is")
    asked = questions(count)
    match: dict[str, float] = {}
    for mode in MODES:
        right = 0
        for document, question, answer in asked:
            layers, tokens = answerer.prompt(question, [Document(document)], cache=mode)
            text = model.generate([*tokens, *ending], max_tokens=16, cache=layers or None)
            right += normalised(answer) in normalised(text)
        match[mode] = round(100 * right / count, 2)
        print(f"{mode}: match {match[mode]}", file=sys.stderr)
    return {"questions": count, "match": match}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="model to use (default: the built-in model)")
    parser.add_argument("--answers", type=int, default=100, help="number of questions to answer; 0 for none")
    options = parser.parse_args()
    model = GritLM(options.model)
    with TemporaryDirectory() as name:
        rows = [retrieval(model, corpus, Path(name)) for corpus in CORPORA]
    results = {"model": model.folder.name, "sets": rows}
    if options.answers and model.settings.generates:
        results["answers"] = answers(model, options.answers)
    save(f"rag_quality-{machine()['device']}", results)


if __name__ == "__main__":
    main()
