"""Embedding speed and memory: our batching against the official one, with the same model in the same run.

    python benchmarks/embed.py [--model NAME] [--texts-per-corpus N] [--sweep]

Reports for each corpus the useful fraction of the computed tokens, useful tokens per second, and the speed-up over
the official batching (256 texts in the given order, padded to the longest). Then the fraction of the device's matmul
rate that is reached, and peak memory by number of texts. ``--sweep`` times several token budgets instead.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grit_mlx  # noqa: F401 - before mlx, to load the fast BLAS

# isort: split
import mlx.core as mx
import numpy as np
from common import CORPORA, corpus, machine, matmul_rate, median, peak_memory, random_model, save, seconds

from grit_mlx import GritLM, embedding_prompt
from grit_mlx.model.batching import plan_batches
from grit_mlx.model.passes import pad, pooled_tokens, represent
from grit_mlx.model.prompts import tokenize_texts

OFFICIAL_ROWS = 256


def official_encode(model: GritLM, texts: Sequence[str], instruction: str) -> Any:
    """The official loop: batches of 256 in the given order, padded to the longest (gritlm 1.0.2, ``encode``)."""
    vectors = []
    for start in range(0, len(texts), OFFICIAL_ROWS):
        tokens = tokenize_texts(model.tokenizer, texts[start : start + OFFICIAL_ROWS], instruction=instruction)
        ids, real = pad([t.ids for t in tokens])
        pooled = pooled_tokens(real, [t.instruction_tokens for t in tokens])
        arrays = mx.array(ids), mx.array(real), mx.array(pooled)
        vectors.append(np.array(represent(model.model, *arrays, settings=model.settings)[0]))
    joined = np.concatenate(vectors)
    return joined / np.linalg.norm(joined, axis=1, keepdims=True)


def flops_per_token(config: dict[str, Any], length: float) -> float:
    """Floating-point operations per token, without the head, with attention over ``length`` tokens."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    size = config.get("head_dim") or hidden // heads
    kv = config["num_key_value_heads"] * size
    active = config.get("num_experts_per_tok") or 1
    weights = hidden * (2 * heads * size + 2 * kv) + active * 3 * hidden * config["intermediate_size"]
    return float(config["num_hidden_layers"] * (2 * weights + 4 * length * heads * size))


def computed_tokens(lengths: list[int], batches: list[list[int]]) -> int:
    """Tokens of a plan, padding included."""
    return sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)


def compare(model: GritLM, name: str, texts: list[str], repeats: int) -> dict[str, Any]:
    instruction = embedding_prompt()
    lengths = [len(t.ids) for t in tokenize_texts(model.tokenizer, texts, instruction=instruction)]
    budget = model.embedder.token_budget(max(lengths))
    ours_plan = plan_batches(lengths, token_budget=budget)
    official_plan = [list(range(len(texts)))[i : i + OFFICIAL_ROWS] for i in range(0, len(texts), OFFICIAL_ROWS)]
    ours, official = [], []
    for _ in range(repeats):
        ours.append(seconds(lambda: model.encode(texts, instruction=instruction)))
        official.append(seconds(lambda: official_encode(model, texts, instruction)))
    difference = np.abs(
        model.encode(texts[:300], instruction=instruction) - official_encode(model, texts[:300], instruction)
    )
    useful = sum(lengths)
    row = {
        "corpus": name,
        "texts": len(texts),
        "tokens": useful,
        "useful_fraction": round(useful / computed_tokens(lengths, ours_plan), 4),
        "official_useful_fraction": round(useful / computed_tokens(lengths, official_plan), 4),
        "tokens_per_second": round(useful / median(ours)),
        "official_tokens_per_second": round(useful / median(official)),
        "speedup": round(median([o / u for o, u in zip(official, ours, strict=True)]), 2),
        "largest_difference": float(difference.max()),
        "flops": useful * flops_per_token(dict(model.config), float(np.mean(lengths))),
        "seconds": median(ours),
    }
    print(
        f"{name:16} {len(texts):5} texts  useful {row['useful_fraction']:.3f} (official "
        f"{row['official_useful_fraction']:.3f})  {row['tokens_per_second']:>8,} tokens/s  x{row['speedup']}",
        file=sys.stderr,
    )
    return row


def sweep(model: GritLM, texts: list[str]) -> None:
    for budget in (512, 1024, 2048, 4096, 8192, 16384):
        took = seconds(lambda budget=budget: model.encode(texts, instruction=embedding_prompt(), batch_tokens=budget))
        print(f"budget {budget:6} tokens  {took:6.2f} s")


def memory_of(folder: str, count: int) -> dict[str, Any]:
    """Peak memory of embedding a stream of ``count`` short texts; call it in a new process."""
    model = GritLM(folder)
    words = ["wind", "and", "sails", "lean", "on", "the", "keel", "of", "a", "ship", "while", "bread", "rises"]
    rng = np.random.default_rng(0)
    texts = (" ".join(rng.choice(words, rng.integers(3, 24))) for _ in range(count))
    taken = seconds(lambda: [None for _ in model.encode_iter(texts)])
    return {"texts": count, "peak_resident_mb": round(peak_memory() / 1e6), "texts_per_second": round(count / taken)}


def measured_memory(folder: str) -> list[dict[str, Any]]:
    rows = []
    for count in (1_000, 10_000, 100_000):
        command = [sys.executable, str(Path(__file__)), "--memory", folder, str(count)]
        rows.append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="model to use (default: a random Mistral with 1.5 M parameters)")
    parser.add_argument("--texts-per-corpus", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--memory", nargs=2, metavar=("FOLDER", "TEXTS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        print(json.dumps(memory_of(options.memory[0], int(options.memory[1]))))
        return
    logging.getLogger("grit_mlx").setLevel(logging.ERROR)  # no warnings about texts truncated at 512 tokens
    with contextlib.ExitStack() as stack:
        folder = options.model or stack.enter_context(
            random_model(hidden=256, layers=2, intermediate=704, heads=4, kv_heads=2)
        )
        model = GritLM(folder, mode="embedding")
        if options.sweep:
            sweep(model, [t for name in CORPORA for t in corpus(name, 100)])
            return
        rate = matmul_rate()
        rows = [compare(model, n, corpus(n, options.texts_per_corpus), options.repeats) for n in CORPORA]
        mixed = [t for name in CORPORA for t in corpus(name, options.texts_per_corpus)]
        order = np.random.default_rng(0).permutation(len(mixed))
        # Two official batches are enough to show the effect of mixing.
        rows.append(compare(model, "all, mixed", [mixed[i] for i in order[: 2 * OFFICIAL_ROWS]], options.repeats))
        fraction = sum(r["flops"] for r in rows) / sum(r["seconds"] for r in rows) / rate
        print(f"{fraction:.0%} of the measured matmul rate of {rate / 1e9:.0f} GFLOP/s", file=sys.stderr)
        memory = []
        if not options.model:
            # A smaller model, because 100,000 texts take a while and its size does not matter here.
            memory = measured_memory(str(stack.enter_context(random_model(hidden=64, layers=1, intermediate=128))))
        for row in memory:
            print(f"{row['texts']:7,} texts  peak {row['peak_resident_mb']} MB", file=sys.stderr)
        save(
            f"embed-{machine()['device']}",
            {
                "model": options.model or "random Mistral, 2 layers of 256 (1.5 M parameters), vocabulary 32,000",
                "matmul_gflops": round(rate / 1e9, 1),
                "fraction_of_matmul_rate": round(fraction, 3),
                "corpora": [{k: v for k, v in row.items() if k not in ("flops", "seconds")} for row in rows],
                "memory": memory,
            },
        )


if __name__ == "__main__":
    main()
