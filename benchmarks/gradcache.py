"""GradCache: peak memory and time for 64 to 2048 rows with a fixed chunk size, against the full batch at once.

    python benchmarks/gradcache.py [--rows 2048] [--length 64]

Each measurement runs in its own process, on a random Llama model.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from typing import Any

from common import machine, save  # before mlx, to load the fast BLAS

# isort: split
import mlx.core as mx
import mlx.nn as nn
import numpy as np

from grit_mlx.datasets.tokens import TokenizedText
from grit_mlx.model.settings import Settings
from grit_mlx.model.world import World
from grit_mlx.training import TrainingSettings
from grit_mlx.training.data import EmbeddingBatch
from grit_mlx.training.scratch import random_model
from grit_mlx.training.step import Trainee, TrainingStep

CHUNK = 32
CONFIG = {
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 344,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1024,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}


def measure(rows: int, length: int, chunk: int) -> dict[str, float]:
    """One step with ``rows`` sequences, half of them queries. Best of three, because the first step also allocates."""
    trainee = Trainee(random_model(CONFIG, seed=0))
    training = TrainingSettings(group_size=1, chunk_size=chunk, chunk_tokens=1 << 30)
    layers = CONFIG["num_hidden_layers"]
    assert isinstance(layers, int)
    step = TrainingStep(trainee, training, Settings(), world=World())
    rng = np.random.default_rng(0)
    texts = [TokenizedText(rng.integers(0, 1024, length).astype(np.int32), 0) for _ in range(rows)]
    half = rows // 2
    batch = EmbeddingBatch(texts[:half], texts[half:], np.arange(half, dtype=np.int32))
    seconds = []
    for _ in range(3):
        mx.clear_cache()
        mx.reset_peak_memory()
        started = time.perf_counter()
        if chunk >= rows:
            whole(step, batch)
        else:
            mx.eval(step.embedding(batch, seed=0).gradients)
        seconds.append(time.perf_counter() - started)
    return {"seconds": round(min(seconds), 3), "megabytes": round(mx.get_peak_memory() / 1e6)}


def whole(step: TrainingStep, batch: EmbeddingBatch) -> None:
    """The gradient of the full batch at once, without GradCache."""
    [chunk] = step._embedding_chunks(batch, 0)
    order = mx.array(np.argsort(chunk.rows))

    def loss() -> mx.array:
        rows = step._representations(chunk.ids, chunk.real, chunk.marked)[order]
        half = rows.shape[0] // 2
        return step._embedding_losses(batch, [chunk], {}, {"query": rows[:half], "passage": rows[half:]})[0]

    mx.eval(nn.value_and_grad(step.trainee, loss)())


def in_a_process(rows: int, length: int, chunk: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--one", f"{rows},{length},{chunk}"]
    found: dict[str, float] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2048, help="largest batch")
    parser.add_argument("--whole", type=int, default=512, help="largest batch that is also computed at once")
    parser.add_argument("--length", type=int, default=64, help="tokens per row")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(*map(int, arguments.one.split(",")))))
        return
    found: list[dict[str, Any]] = []
    rows = 64
    while rows <= arguments.rows:
        found.append({"rows": rows, "gradcache": in_a_process(rows, arguments.length, CHUNK)})
        if rows <= arguments.whole:
            found[-1]["whole"] = in_a_process(rows, arguments.length, rows)
        print(json.dumps(found[-1]), file=sys.stderr, flush=True)
        rows *= 2
    save(f"gradcache-{machine()['device']}", {"chunk": CHUNK, "length": arguments.length, "rows": found})


if __name__ == "__main__":
    main()
