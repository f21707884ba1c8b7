"""Generation speed: ``GritLM.stream`` against ``mlx_lm.stream_generate``, with the same model in the same run.

    python benchmarks/generate.py [--model NAME] [--tokens N] [--rounds N]

Both generate the same tokens greedily from the same prompt. They alternate, so that changes in the machine's speed
affect both. The goal is a time ratio within 3 %.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import time
from collections.abc import Iterable
from typing import Any

import grit_mlx  # noqa: F401 - before mlx, to load the fast BLAS

# isort: split
from common import machine, random_model, save
from mlx_lm import stream_generate

from grit_mlx import GritLM, PromptCache
from grit_mlx.model.prompts import chat_tokens


def timed(responses: Iterable[Any]) -> tuple[float, float, list[int]]:
    """Seconds to the first token, seconds for all tokens, and the tokens."""
    start = time.perf_counter()
    first, tokens = 0.0, []
    for response in responses:
        first = first or time.perf_counter() - start
        tokens.append(response.token)
    return first, time.perf_counter() - start, tokens


def measure(model: GritLM, prompt: str, count: int, rounds: int) -> dict[str, Any]:
    ids = chat_tokens(model.tokenizer, [{"role": "user", "content": prompt}])
    engine = model._engine_tokenizer
    # Disable EOS, so that every run generates the same number of tokens.
    ends, engine._eos_token_ids = engine._eos_token_ids, set()
    totals, firsts = [], []
    for i in range(rounds + 1):
        sides = {
            "ours": lambda: timed(model.stream_responses(prompt, max_tokens=count)),
            "theirs": lambda: timed(stream_generate(model.model, engine, ids, max_tokens=count)),
        }
        # Alternate which side goes first.
        runs = {name: sides[name]() for name in (sides if i % 2 else reversed(sides))}
        assert runs["ours"][2] == runs["theirs"][2], "the two sides must generate the same tokens"
        if i:  # the first round warms up
            firsts.append((runs["ours"][0], runs["theirs"][0]))
            totals.append((runs["ours"][1], runs["theirs"][1]))
    engine._eos_token_ids = ends
    row = {
        "prompt_tokens": len(ids),
        "new_tokens": count,
        "tokens_per_second": round(count / statistics.median(ours for ours, _ in totals), 1),
        "mlx_lm_tokens_per_second": round(count / statistics.median(theirs for _, theirs in totals), 1),
        "time_ratio": round(statistics.median(ours / theirs for ours, theirs in totals), 4),
        "first_token_ratio": round(statistics.median(ours / theirs for ours, theirs in firsts), 4),
    }
    print(
        f"{len(ids):5} + {count} tokens  {row['tokens_per_second']:>7}/s  "
        f"mlx_lm {row['mlx_lm_tokens_per_second']:>7}/s  "
        f"time x{row['time_ratio']}  first token x{row['first_token_ratio']}",
        file=sys.stderr,
    )
    return row


def chat(model: GritLM, prompt: str) -> dict[str, Any]:
    """Seconds to the first token of a chat's second turn, with and without the prompt cache."""
    cache = PromptCache()
    messages = [{"role": "user", "content": prompt}]
    messages.append({"role": "assistant", "content": model.generate(messages, max_tokens=16, cache=cache)})
    messages.append({"role": "user", "content": "And then?"})
    reused = timed(model.stream_responses(messages, max_tokens=2, cache=cache))[0]
    anew = timed(model.stream_responses(messages, max_tokens=2))[0]
    row = {"reused_tokens": cache.reused, "first_token_seconds": round(reused, 3), "without_cache": round(anew, 3)}
    print(f"second turn: {row}", file=sys.stderr)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="model to use (default: a random Mistral with 5.9 M parameters)")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = options.model or stack.enter_context(random_model(hidden=512, layers=2, intermediate=1408))
        model = GritLM(folder)
        prompts = [" ".join(["Wind leans on the sails of a ship."] * n) for n in (1, 60)]
        rows = [measure(model, prompt, options.tokens, options.rounds) for prompt in prompts]
        save(
            f"generate-{machine()['device']}",
            {
                "model": options.model or "random Mistral, 2 layers of 512 (5.9 M parameters), vocabulary 32,000",
                "runs": rows,
                "second_turn": chat(model, prompts[1]),
            },
        )


if __name__ == "__main__":
    main()
