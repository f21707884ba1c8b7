"""The memory estimate of `grit train` compared with the measured peak, on models of several shapes.

    python benchmarks/training_memory.py

Prints the table of docs/training.md. Each case trains two steps in its own process, with every text at the maximum
length, as the estimate assumes. The models are random Llama models.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from typing import Any

import grit_mlx  # noqa: F401 - before mlx, to load the fast BLAS

import mlx.core as mx  # isort: skip
import numpy as np
from mlx_lm.utils import quantize_model

from grit_mlx.datasets.tokens import TokenizedChat, TokenizedText
from grit_mlx.model import device, widening
from grit_mlx.model.settings import Settings
from grit_mlx.model.world import World
from grit_mlx.training import TrainingSettings
from grit_mlx.training.adapters import AdapterLayout, attach_adapter, choose_keys, unfreeze_for_full
from grit_mlx.training.data import EmbeddingBatch
from grit_mlx.training.memory import estimate
from grit_mlx.training.optimizers import make_optimizer, make_schedule
from grit_mlx.training.recompute import checkpoint_layers, should_recompute
from grit_mlx.training.scratch import random_model
from grit_mlx.training.step import Trainee, TrainingStep, merged


@dataclass(frozen=True, kw_only=True)
class Case:
    """One model and one way to train it."""

    mode: str = "unified"
    kind: str = "lora"
    hidden: int = 128
    layers: int = 4
    vocabulary: int = 1024
    length: int = 64
    rows: int = 8
    recompute: bool = False
    quantized: bool = False
    widened: bool = False


CASES = [
    Case(),
    Case(recompute=True),
    Case(layers=12),
    Case(layers=12, recompute=True),
    Case(mode="embedding"),
    Case(mode="generative"),
    Case(mode="generative", vocabulary=16_000),
    Case(length=256, rows=4),
    Case(length=256, rows=4, recompute=True),
    Case(hidden=256, length=128),
    Case(hidden=256, quantized=True),
    Case(hidden=512, quantized=True, widened=True),
    Case(hidden=512, layers=12, quantized=True, widened=True),
    Case(mode="embedding", hidden=1024, length=128, rows=4, quantized=True, widened=True),
    Case(kind="full"),
    Case(kind="full", hidden=256, recompute=True),
]


def measure(case: Case) -> dict[str, float]:
    """Estimated and measured peak memory of two steps, in bytes."""
    config: dict[str, Any] = {
        "model_type": "llama",
        "hidden_size": case.hidden,
        "intermediate_size": case.hidden * 8 // 3 // 64 * 64,
        "num_hidden_layers": case.layers,
        "num_attention_heads": case.hidden // 32,
        "num_key_value_heads": case.hidden // 64,
        "vocab_size": case.vocabulary,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    }
    model: Any = random_model(config, seed=0)
    if case.quantized:
        model, _ = quantize_model(model, config, group_size=64, bits=4)
    if case.widened:
        widening.prepare(model)
    settings = TrainingSettings(
        mode=case.mode,
        group_size=1,
        batch_size=2 * case.rows,
        generative_batch_size=2 * case.rows,
        query_max_length=case.length,
        passage_max_length=case.length,
        max_seq_length=case.length,
        chunk_size=case.rows,
        chunk_tokens=case.rows * case.length,
        grad_checkpoint=case.recompute,
    )
    if case.kind == "full":
        unfreeze_for_full(model, -1)
    else:
        attach_adapter(model, AdapterLayout("lora", -1, 16, 4.0, 0.0, choose_keys(model)))
    if should_recompute(model, settings):
        checkpoint_layers(model.layers)
    trainee = Trainee(model)
    step = TrainingStep(trainee, settings, Settings(), world=World())
    optimizer = make_optimizer("adamw", make_schedule("constant", learning_rate=1e-4, steps=2, warmup_steps=0))
    optimizer.init(trainee.trainable_parameters())  # type: ignore[no-untyped-call]
    fused = device.current_device().kind != "cpu"
    estimated = estimate(trainee, config, settings, available=0, fused_attention=fused).peak

    rng = np.random.default_rng(0)
    ids = [rng.integers(0, case.vocabulary, case.length).astype(np.int32) for _ in range(4 * case.rows)]
    texts = [TokenizedText(one, 0) for one in ids]
    half = 2 * case.rows
    batch = EmbeddingBatch(texts[:half], texts[half:], np.arange(half, dtype=np.int32))
    chats = [TokenizedChat(one, np.ones(case.length, dtype=bool)) for one in ids[:half]]
    mx.eval(trainee.parameters(), optimizer.state)
    mx.clear_cache()
    mx.reset_peak_memory()
    for _ in range(2):
        parts = []
        if settings.embeds:
            parts.append(step.embedding(batch, seed=0))
        if settings.generates:
            parts.append(step.generative(chats, seed=0))
        optimizer.update(trainee, merged(parts).gradients)
        mx.eval(trainee.parameters(), optimizer.state)
        parts.clear()
    return {"estimated": estimated, "measured": mx.get_peak_memory()}


def in_a_process(case: Case) -> dict[str, float]:
    command = [sys.executable, __file__, "--one", json.dumps(asdict(case))]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found: dict[str, float] = json.loads(output.splitlines()[-1])  # mlx-lm prints a line when it quantises
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    one = parser.parse_args().one
    if one:
        print(json.dumps(measure(Case(**json.loads(one)))))
        return
    print("| model | tuned | chunk | estimated: MB | measured: MB | ratio |\n|---|---|---|---|---|---|", flush=True)
    for case in CASES:
        found = in_a_process(case)
        shape = f"{case.layers} layers of {case.hidden}, vocabulary {case.vocabulary}"
        extras = (
            ", 4-bit" * case.quantized + ", widened as it computes" * case.widened + ", recomputed" * case.recompute
        )
        megabytes = [found[name] / 1e6 for name in ("estimated", "measured")]
        print(
            f"| {shape} | {case.mode}, {case.kind}{extras} | {case.rows} x {case.length} "
            f"| {megabytes[0]:.0f} | {megabytes[1]:.0f} | {megabytes[0] / megabytes[1]:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
