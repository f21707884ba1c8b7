"""Answers from cached documents: seconds to the first token and for 16 tokens, in every cache mode.

    python benchmarks/rag.py [--model NAME] [--queries N ...] [--documents N ...] [--rounds N]

Rows are the lengths of a query and of its documents, in tokens. Columns are:

- the modes of ``grit rag``: the documents' keys and values are read from files (including the checksum), the query's
  are in memory, as retrieval leaves them;
- ``prompt file``: mlx-lm's own prompt cache, with the document before the query, loaded from its file;
- ``floor``: only the new tokens of ``doc`` are computed, with all keys and values in memory.

Every side generates 16 tokens greedily, once per round; sides that take seconds run in the first rounds only. The best
round is reported, to exclude other load on a shared machine.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grit_mlx  # noqa: F401 - before mlx, to load the fast BLAS

# isort: split
import mlx.core as mx
import numpy as np
from common import corpus, machine, random_model, save
from mlx_lm import stream_generate
from mlx_lm.models.cache import load_prompt_cache, make_prompt_cache, save_prompt_cache

from grit_mlx import GritLM
from grit_mlx.model.caches import copy_cache
from grit_mlx.model.prompts import literal_tokens, rag_prompt
from grit_mlx.rag import Answerer, Document, DocumentCaches
from grit_mlx.rag.caches.kvfiles import bytes_of, rounded
from grit_mlx.rag.modes import AUTO_MODES, MODES
from grit_mlx.rag.options import PRECISIONS

NEW_TOKENS = 16
ENOUGH_SECONDS = 3.0  # sides that took longer are not repeated
Times = tuple[float, float]  # seconds to the first token and to the last

# Bytes per token of GritLM-7B: keys and values, 32 layers, 8 heads of 128, 2 bytes (4.5 or 8.5 bits if quantised).
GRITLM_7B = 2 * 32 * 8 * 128 * 2


class Texts:
    """Provides texts with a given number of tokens, a different one at each call."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = literal_tokens(tokenizer, "\n".join(corpus("clapnq_dev")))
        self._at = 0

    def next(self, tokens: int) -> str:
        if self._at + tokens > len(self._ids):
            self._at = 0
        self._at += tokens
        # Tokenised again, the text may have one token more or less.
        return str(self._tokenizer.decode(self._ids[self._at - tokens : self._at]))


def timed(responses: Iterable[Any], start: float) -> Times:
    first = 0.0
    for _ in responses:
        first = first or time.perf_counter() - start
    return first, time.perf_counter() - start


class Case:
    """A query and its documents, with the caches of all sides."""

    def __init__(self, model: GritLM, query: str, documents: list[str], folder: Path) -> None:
        self.model = model
        self.query = query
        self.documents = [Document(text, str(number)) for number, text in enumerate(documents)]
        self.caches = DocumentCaches(folder / "caches")
        self.answerer = Answerer(model, self.caches)
        _, self.query_cache = self.answerer.encoder.query(query)
        self.layers, self.new = self.answerer.prompt(query, self.documents, cache="doc")
        self.uncached = Answerer(model)
        # mlx-lm's file holds the part of the uncached prompt before the query.
        whole = rag_prompt("none-document-first", query="\0", document="\n\n".join(documents))
        before, after = whole.split("\0")
        self.rest = literal_tokens(model.tokenizer, query + after)
        cache = make_prompt_cache(model.model)
        tokens = mx.array([model.tokenizer.encode(before)])
        for start in range(0, tokens.shape[1], 2048):
            model.model(tokens[:, start : start + 2048], cache=cache)
            mx.eval([layer.state for layer in cache])
        self.file = str(folder / "prompt.safetensors")
        save_prompt_cache(self.file, cache)

    def sides(self) -> dict[str, Callable[[], Times]]:
        sides = {mode: (lambda mode=mode: self.answered(self.answerer, mode)) for mode in (*MODES, "auto")}
        sides["doc, in memory"] = lambda: self.answered(self.answerer, "doc", from_disk=False)
        if len(self.query) < 1000:  # once per document length
            sides["doc, first use"] = lambda: self.answered(self.uncached, "doc")
        sides["prompt file"] = self.from_prompt_file
        sides["floor"] = self.floor
        return sides

    def answered(self, answerer: Answerer, mode: str, *, from_disk: bool = True) -> Times:
        answerer.reset()
        if from_disk:
            self.caches.forget_loaded()
        answer = answerer.answer(
            self.query, self.documents, cache=mode, query_cache=self.query_cache, max_tokens=NEW_TOKENS
        )
        assert answer.text is not None and answer.generated_tokens == NEW_TOKENS
        self.mode = answer.mode
        assert answer.seconds_to_first_token is not None
        return answer.seconds_to_first_token, answer.seconds

    def from_prompt_file(self) -> Times:
        start = time.perf_counter()
        cache = load_prompt_cache(self.file)
        return self.generated(self.rest, cache, start)

    def floor(self) -> Times:
        cache = copy_cache(self.layers)
        mx.eval([(layer.keys, layer.values) for layer in cache])
        return self.generated(self.new, cache, time.perf_counter())

    def generated(self, tokens: list[int], cache: Any, start: float) -> Times:
        return timed(
            stream_generate(
                self.model.model, self.model._engine_tokenizer, tokens, max_tokens=NEW_TOKENS, prompt_cache=cache
            ),
            start,
        )


def measure(model: GritLM, texts: Texts, asked: int, lengths: list[int], rounds: int) -> dict[str, Any]:
    query, documents = texts.next(asked), [texts.next(length) for length in lengths]
    with TemporaryDirectory() as name:
        case = Case(model, query, documents, Path(name))
        runs: dict[str, list[Times]] = {}
        chosen = ""
        for number in range(rounds):
            sides = list(case.sides().items())
            for side, run in sides if number % 2 else reversed(sides):
                if sum(total for _, total in runs.get(side, [])) > ENOUGH_SECONDS:
                    continue
                mx.synchronize()
                mx.clear_cache()  # no side profits from buffers of the previous one
                runs.setdefault(side, []).append(run())
                chosen = case.mode if side == "auto" else chosen
    seconds = {side: [round(min(times), 4) for times in zip(*runs[side], strict=True)] for side in runs}
    row = {
        "query_tokens": asked,
        "document_tokens": sum(lengths),
        "documents": len(documents),
        "auto_took": chosen,
        "seconds": seconds,  # to the first token and to the last
    }
    print(
        f"{row['query_tokens']:5} + {row['document_tokens']:5} in {len(documents)}: "
        + ", ".join(f"{side} {first:.3f} {total:.3f}" for side, (first, total) in seconds.items())
        + f" (auto: {chosen})",
        file=sys.stderr,
    )
    return row


def storage(model: GritLM) -> dict[str, Any]:
    _, layers = model.encode("word " * 256, get_cache=True, max_length=256)
    each = {name: bytes_of(layers, precision=name) / layers[0].offset for name in PRECISIONS}
    seven = {"full": GRITLM_7B, "8": GRITLM_7B / 2 * 8.5 / 8, "4": GRITLM_7B / 4 * 4.5 / 4}
    return {
        name: {
            "bytes_per_1000_tokens": round(1000 * each[name]),
            "gritlm_7b_bytes_per_1000_tokens": round(1000 * seven[name]),
        }
        for name in PRECISIONS
    }


def drift(model: GritLM, texts: Texts, count: int = 24) -> dict[str, Any]:
    """How much the next token's distribution changes if a document's cache is stored in fewer bits."""
    answerer = Answerer(model)
    kept: dict[str, list[tuple[float, float, bool]]] = {name: [] for name in PRECISIONS if name != "full"}
    for _ in range(count):
        layers, tokens = answerer.prompt(texts.next(16), [Document(texts.next(256))], cache="doc")
        expected = log_probabilities(model, layers, tokens)
        for name, rows in kept.items():
            found = log_probabilities(model, rounded(layers, precision=name), tokens)
            divergence = float((np.exp(expected) * (expected - found)).sum())
            rows.append((divergence, float(np.abs(expected - found).max()), bool(expected.argmax() == found.argmax())))
    return {
        name: {
            "kl_mean": float(np.mean([kl for kl, _, _ in rows])),
            "largest_difference": float(np.max([difference for _, difference, _ in rows])),
            "same_token": float(np.mean([same for _, _, same in rows])),
        }
        for name, rows in kept.items()
    }


def log_probabilities(model: GritLM, layers: Any, tokens: list[int]) -> Any:
    logits = model.model(mx.array([tokens]), cache=copy_cache(layers))[0, -1].astype(mx.float32)
    return np.array(logits - mx.logsumexp(logits)).astype(np.float64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="model to use (default: a random Mistral with 23 M parameters)")
    parser.add_argument("--queries", type=int, nargs="+", default=[1, 64, 4000])
    parser.add_argument("--documents", type=int, nargs="+", default=[256, 1000, 4000])
    parser.add_argument("--rounds", type=int, default=6)
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = options.model or stack.enter_context(
            random_model(hidden=1024, layers=2, intermediate=2816, kv_heads=2)
        )
        model = GritLM(folder)
        model._engine_tokenizer._eos_token_ids = set()  # no EOS: every run generates all tokens
        texts = Texts(model.tokenizer)
        measure(model, texts, 16, [64], 1)  # warm-up
        rows = []
        for length in options.documents:
            for asked in options.queries:
                rows.append(measure(model, texts, asked, [length], options.rounds))
        for length in options.documents[1:]:
            rows.append(measure(model, texts, 64, [length // 4] * 4, options.rounds))
        save(
            f"rag-{machine()['device']}",
            {
                "model": options.model
                or "random Mistral, 2 layers of 1024 (23 M parameters), 8 heads on 2 of keys, vocabulary 32,000",
                "rounds": options.rounds,
                "new_tokens": NEW_TOKENS,
                "auto_modes": list(AUTO_MODES),
                "rows": rows,
                "storage": storage(model),
                "drift": drift(model, texts),
            },
        )


if __name__ == "__main__":
    main()
