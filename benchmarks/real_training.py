"""A real model before and after tuning: retrieval, answers from a passage, and text without one.

    python benchmarks/real_training.py --model runs/grit-small/SmolLM2-135M-Instruct --runs runs/grit-small
        --xquad xquad.en.json

``--runs`` holds adapters named unified, embedding and generative (recipes/grit-small/tune.py); those that are there are
measured. With ``--add`` what is measured joins the stored results of the same runs.

Retrieval: nDCG@10 on ../shared/data/dev, of vectors and of vectors fused with BM25. Answers: questions of xquad_en
whose answer people marked in XQuAD (github.com/google-deepmind/xquad, CC BY-SA 4.0), asked as ``grit rag`` asks, from
the passage that holds it. "match": the normalised answer stands in what is generated; "exact": it is all that is
generated. Perplexity: of the passages of xquad_en and clapnq_dev as plain texts. With ``--data`` (the recipe's rows)
also both losses on rows that are kept out of training.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from common import CORPORA, RESULTS, SHARED, machine, save  # before mlx, to load the fast BLAS

# isort: split
import mlx.core as mx
from rag_quality import normalised

from grit_mlx import GritLM
from grit_mlx.datasets.examples import TextRow
from grit_mlx.evaluation.answers import answer_loss
from grit_mlx.evaluation.scoring import evaluate
from grit_mlx.evaluation.sets import AnswerSet, LabelledSet, RetrievalSet, limited, load_set
from grit_mlx.evaluation.systems import GritSystem
from grit_mlx.model.world import World
from grit_mlx.options import from_mapping
from grit_mlx.rag import Answerer, Document
from grit_mlx.training import TrainingSettings
from grit_mlx.training.callbacks import read_log
from grit_mlx.training.preparation import prepare_data, prepare_model
from grit_mlx.training.settings import read_yaml
from grit_mlx.training.validation import held_out_losses

INSTRUCTION = "Given a question, retrieve passages that answer it"
RUNS = ("unified", "embedding", "generative")
SETS = (*CORPORA, "stsb")
TEXTS = ("xquad_en", "clapnq_dev")
MOST_WORDS = 5  # of an answer
PARTS = ("retrieval", "answers", "perplexity", "held_out")
RECIPE = Path(__file__).parents[1] / "recipes" / "grit-small" / "settings.yaml"
# Chunks for a laptop.
CHUNKS = {"chunk_size": 64, "chunk_tokens": 4096}


def questions(path: Path, count: int) -> list[tuple[str, str, str]]:
    """Passage, question and short answer, of questions of the development set."""
    asked = load_set(SHARED / "data" / "dev" / "xquad_en")
    assert isinstance(asked, RetrievalSet)
    known = set(asked.queries.values())
    found = [
        (paragraph["context"], one["question"], one["answers"][0]["text"])
        for article in json.loads(path.read_text(encoding="utf-8"))["data"]
        for paragraph in article["paragraphs"]
        for one in paragraph["qas"]
        if one["question"] in known and len(one["answers"][0]["text"].split()) <= MOST_WORDS
    ]
    return random.Random(0).sample(found, min(count, len(found)))


def answers(model: GritLM, asked: Sequence[tuple[str, str, str]], tokens: int, cached: bool) -> dict[str, Any]:
    answerer = Answerer(model)
    prompts = [answerer.prompt(question, [Document(passage)], cache="none")[1] for passage, question, _ in asked]
    written = model.generate_batch(prompts, max_tokens=tokens)
    pairs = [
        (normalised(answer), normalised(text.split("\n")[0]), normalised(text))
        for (*_, answer), text in zip(asked, written, strict=True)
    ]
    found = {"match_cached": _match_cached(model, answerer, asked, tokens)} if cached else {}
    return {
        "questions": len(asked),
        "match": sum(answer in text for answer, _, text in pairs) / len(asked),
        "exact": sum(answer == first for answer, first, _ in pairs) / len(asked),
        **found,
        "words": sum(len(text.split()) for *_, text in pairs) / len(asked),
        "written": [{"answer": answer, "text": text} for (*_, answer), text in zip(asked[:20], written, strict=False)],
    }


def _match_cached(model: GritLM, answerer: Answerer, asked: Sequence[tuple[str, str, str]], tokens: int) -> float:
    """The same with keys and values of the embedded passage, one question after the other."""
    right = 0
    for passage, question, answer in asked:
        layers, prompt = answerer.prompt(question, [Document(passage)], cache="doc")
        right += normalised(answer) in normalised(model.generate(prompt, max_tokens=tokens, cache=layers))
    return right / len(asked)


def sliced(data: LabelledSet, documents: int | None, queries: int) -> LabelledSet:
    """The first documents of a retrieval set and queries that one of them answers."""
    if documents is None or not isinstance(data, RetrievalSet):
        return data
    kept = dict(islice(data.documents.items(), documents))
    relevant = {
        query: {document: gain for document, gain in gains.items() if document in kept}
        for query, gains in data.relevant.items()
    }
    fewer = replace(data, documents=kept, relevant=relevant)
    return limited(fewer, queries)


def retrieval(model: GritLM, sets: Sequence[LabelledSet], batch_tokens: int | None) -> dict[str, dict[str, float]]:
    options = {"batch_tokens": batch_tokens} if batch_tokens else {}
    system = GritSystem(model, name="dense", instruction=INSTRUCTION, options=options)
    found: dict[str, dict[str, float]] = {}
    for score in evaluate([lambda: system], sets, hybrid=True):
        found.setdefault(score.set, {})["hybrid" if "+" in score.system else "dense"] = score.values[score.main]
    means = [found[name] for name in CORPORA if name in found]
    if means:
        found["mean"] = {way: sum(one[way] for one in means) / len(means) for way in ("dense", "hybrid")}
    return found


def perplexity(model: GritLM, count: int | None) -> dict[str, float]:
    found = {}
    for name in TEXTS:
        data = load_set(SHARED / "data" / "dev" / name)
        assert isinstance(data, RetrievalSet)
        rows = [TextRow(text) for text in list(data.documents.values())[:count]]
        found[name] = answer_loss(model, AnswerSet(name, list(rows), name, list(range(len(rows)))), max_tokens=512)
    return {name: loss.perplexity for name, loss in found.items()}


def held_out(adapter: Path | None, options: argparse.Namespace) -> dict[str, Any]:
    """The losses on rows that the recipe keeps out of training, in batches as large as those it trains on."""
    own = {"data": str(options.data), "cache": str(options.runs / "tokens"), "val_batches": options.batches}
    chosen = {"model": str(options.model), "resume_adapter_file": adapter and str(adapter), "dtype": options.dtype}
    settings = from_mapping(TrainingSettings, {**read_yaml(RECIPE), **own, **chosen, **CHUNKS})
    prepared = prepare_model(settings, World(alone=True))
    data = prepare_data(
        settings,
        prepared.loaded.tokenizer._tokenizer,
        World(alone=True),
        vector_size=prepared.vector_size,
        prompt_format=prepared.loaded.settings.prompt_format,
    )
    losses = held_out_losses(prepared, data, max_batches=options.batches)
    rows = {"pairs": settings.batch_size, "answers": settings.generative_batch_size}
    return {"losses": losses, **{name: size * options.batches for name, size in rows.items()}}


def log_of(folder: Path) -> dict[str, Any]:
    """What was trained, how fast, and the losses on held-out rows."""
    log = read_log(folder / "log.jsonl")
    reports = [record for record in log if record["kind"] == "train"]
    every = [now["step"] - before for now, before in zip(reports, [0, *(r["step"] for r in reports)], strict=False)]
    seconds = sum(one["seconds"] * steps for one, steps in zip(reports, every, strict=True))
    tokens = sum(one["tokens_per_second"] * one["seconds"] * steps for one, steps in zip(reports, every, strict=True))
    return {
        "steps": reports[-1]["step"],
        "tokens": tokens,
        "seconds": seconds,
        "peak_gigabytes": max(record["peak_memory"] for record in reports) / 1e9,
        "curve": [{"step": r["step"], **r["losses"]} for r in reports],
        "held_out": [{"step": r["step"], **r["losses"]} for r in log if r["kind"] == "validation"],
    }


def measure(adapter: Path | None, options: argparse.Namespace) -> dict[str, Any]:
    began = time.monotonic()
    found: dict[str, Any] = {}
    model = GritLM(options.model, adapter_path=adapter, dtype=options.dtype)
    model.settings = model.settings.override(max_length=options.max_length)
    if "retrieval" in options.parts:
        sets = [
            sliced(load_set(SHARED / "data" / "dev" / name), options.documents, options.queries)
            for name in options.sets
        ]
        found["retrieval"] = retrieval(model, sets, options.batch_tokens)
        print(found["retrieval"], file=sys.stderr, flush=True)
    if "perplexity" in options.parts:
        found["perplexity"] = perplexity(model, options.texts)
        print(found["perplexity"], file=sys.stderr, flush=True)
    if "answers" in options.parts and options.xquad:
        found["answers"] = answers(model, questions(options.xquad, options.questions), options.tokens, options.cached)
        print({**found["answers"], "written": None}, file=sys.stderr, flush=True)
    if "held_out" in options.parts and options.data:
        found["held_out"] = held_out(adapter, options)
        print(found["held_out"], file=sys.stderr, flush=True)
    if adapter is not None:
        found["training"] = log_of(adapter)
    return {**found, "seconds": round(time.monotonic() - began)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=["untuned", *RUNS], default=["untuned", *RUNS])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--documents", type=int, help="only so many of each set, and as many queries as --queries says")
    parser.add_argument("--queries", type=int, default=100, help="of each set, with --documents")
    parser.add_argument("--xquad", type=Path, help="XQuAD's file; without it no questions are answered")
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=48, help="of an answer, at most")
    parser.add_argument("--cached", action="store_true", help="also answer from cached passages")
    parser.add_argument("--texts", type=int, help="only so many texts of each set for the perplexity")
    parser.add_argument("--data", type=Path, help="the recipe's rows; without it no losses are measured")
    parser.add_argument("--batches", type=int, default=2, help="of held-out rows")
    parser.add_argument("--add", action="store_true", help="to the stored results, instead of replacing them")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--batch-tokens", type=int)
    options = parser.parse_args()
    name = f"real_training-{machine()['device']}"
    stored = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")) if options.add else {"runs": {}}
    results: dict[str, Any] = stored["runs"]
    for run in options.only:
        adapter = None if run == "untuned" else options.runs / run
        if adapter is None or (adapter / "adapters.safetensors").exists():
            print(run, file=sys.stderr, flush=True)
            results[run] = {**results.get(run, {}), **measure(adapter, options)}
            mx.clear_cache()
            (options.runs / "evaluation.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    sizes = {one: getattr(options, one) for one in ("documents", "queries", "questions", "texts", "max_length")}
    save(name, {"model": stored.get("model", options.model.name), "sizes": stored.get("sizes", sizes), "runs": results})


if __name__ == "__main__":
    main()
