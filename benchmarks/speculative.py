"""Speculative decoding as mlx-lm offers it, on a real model: does a draft pay?

    python benchmarks/speculative.py --model SmolLM2-135M-Instruct

A draft has to share the model's tokenizer, and no smaller model does; so the drafts are the model itself in 4 bits and
its first ten blocks, the most that a draft may agree and the least that it may cost. Greedy answers, which must be
the same; both sides alternate.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from common import machine, save  # before mlx, to load the fast BLAS

# isort: split
import mlx.core as mx
from mlx_lm import load, stream_generate
from mlx_lm.utils import quantize_model

PROMPTS = (
    "What keeps a ship upright? Explain it to a child.",
    "Repeat this sentence five times: The keel is a heavy fin under the hull.",
    "Write a list of ten animals that live in the sea.",
)
NEW_TOKENS = 96
DRAFTED = (2, 4)
FEWER_BLOCKS = 10


def written(model: Any, tokenizer: Any, prompt: list[int], **options: Any) -> tuple[list[int], float, float]:
    """Tokens, seconds for each after the prompt, and the share that came from the draft."""
    tokens, drafted, begun = [], 0, 0.0
    for response in stream_generate(model, tokenizer, prompt, max_tokens=NEW_TOKENS, **options):
        begun = begun or time.perf_counter()
        tokens.append(response.token)
        drafted += response.from_draft
    return tokens, (time.perf_counter() - begun) / max(1, len(tokens) - 1), drafted / len(tokens)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    options = parser.parse_args()

    def loaded() -> Any:
        model = load(str(options.model))[0]
        model.set_dtype(mx.float32)
        return model

    model, tokenizer = load(str(options.model))[:2]
    model.set_dtype(mx.float32)
    fewer = loaded()
    fewer.model.layers = fewer.model.layers[:FEWER_BLOCKS]
    drafts = {"4 bits": quantize_model(loaded(), {}, group_size=64, bits=4)[0], f"{FEWER_BLOCKS} blocks": fewer}
    rows = []
    for name, draft in drafts.items():
        for count in DRAFTED:
            ratios, shares, same = [], [], 0
            for text in PROMPTS:
                prompt = tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True)
                plain, seconds, _ = written(model, tokenizer, prompt)
                told, speculative, share = written(model, tokenizer, prompt, draft_model=draft, num_draft_tokens=count)
                ratios.append(seconds / speculative)
                shares.append(share)
                same += plain == told
            row = {"draft": name, "tokens": count, "speedup": statistics.median(ratios)}
            rows.append({**row, "from_draft": statistics.mean(shares), "same": same, "prompts": len(PROMPTS)})
            print(rows[-1], file=sys.stderr, flush=True)
    save(
        f"speculative-{machine()['device']}", {"model": "SmolLM2-135M-Instruct", "new_tokens": NEW_TOKENS, "rows": rows}
    )


if __name__ == "__main__":
    main()
