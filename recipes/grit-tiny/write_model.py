"""A Mistral folder that computes what the bags of tokens compute, for `grit train` to go on from.

    python recipes/grit-tiny/write_model.py [--bags bags] [--output runs/grit-tiny/start]

A bag's weight of a token is the length of its vector, and Mistral's last norm would take that away. So each row of the
token table is filled up to one length, in dimensions of their own: the projection before pooling, which GRIT models may
have, leaves them out of the embedding, and the tied head has them for words whose vectors weigh nothing in a search.
The layers add next to nothing at first, and find out in training what to add.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import sources
import yaml

FILLING = 64  # dimensions; as many as share one scale when quantised
# Gains of the last norm. The head is tied, so they make logits of a size that softmax can begin with.
GAINS = {"bag": 0.01, "filling": 0.03}
# How much of the filling is the same for all tokens. It is longest where a bag's vector is short, so in frequent
# tokens, and as both sides of the head have it, frequent tokens are the likeliest from the beginning.
COMMON = 0.7
CONTROLS = 259  # tokens: <unk>, <s>, </s> and the bytes
# Not zero: the library proves at load that the layers see both ways, and what adds nothing sees nothing.
SMALL = 1e-3


def filled(bags: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """``(V, D)`` to ``(V, D + FILLING)``, all rows of length ``sqrt(D + FILLING)``, so with a root mean square of 1."""
    length = np.sqrt(bags.shape[1] + FILLING)
    norms = np.linalg.norm(bags, axis=1)
    scale = 0.95 * length / np.quantile(norms, 0.999)
    bags = bags * np.minimum(scale, 0.95 * length / np.maximum(norms, 1e-9))[:, None]
    common = rng.choice([-1.0, 1.0], FILLING) / FILLING**0.5
    own = rng.normal(size=(len(bags), FILLING))
    own -= np.outer(own @ common, common)
    own /= np.linalg.norm(own, axis=1, keepdims=True)
    filling = COMMON * common + (1 - COMMON**2) ** 0.5 * own
    rest = np.sqrt(length**2 - (bags**2).sum(1))
    return np.concatenate([bags, rest[:, None] * filling], axis=1).astype(np.float32)


def weights(bags: np.ndarray, config: dict[str, int], seed: int) -> dict[str, mx.array]:
    rng = np.random.default_rng(seed)
    # The teacher has one vector for all bytes and controls, and a writer must tell them apart.
    spread = 0.1 * np.linalg.norm(bags, axis=1).mean() / bags.shape[1] ** 0.5
    bags = bags.copy()
    bags[:CONTROLS] += rng.normal(0, spread, bags[:CONTROLS].shape)
    table = filled(bags, rng)
    size, inner, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    found = {"model.embed_tokens.weight": table, "model.norm.weight": np.full(size, GAINS["bag"])}
    found["model.norm.weight"][-FILLING:] = GAINS["filling"]

    def random(rows: int) -> np.ndarray:
        return rng.normal(0, size**-0.5, (rows, size))

    for i in range(config["num_hidden_layers"]):
        layer = {
            "self_attn.q_proj": random(queries),
            "self_attn.k_proj": random(keys),
            "self_attn.v_proj": random(keys),
            "self_attn.o_proj": rng.normal(0, SMALL, (size, queries)),
            "mlp.gate_proj": random(inner),
            "mlp.up_proj": random(inner),
            "mlp.down_proj": np.zeros((size, inner)),
            "input_layernorm": np.ones(size),
            "post_attention_layernorm": np.ones(size),
        }
        found |= {f"model.layers.{i}.{name}.weight": value for name, value in layer.items()}
    return {name: mx.array(value.astype(np.float32)) for name, value in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bags", default="bags")
    parser.add_argument("--output", type=Path, default=sources.WORK / "start")
    options = parser.parse_args()
    folder, here = options.output, Path(__file__).parent
    bags = np.load(sources.WORK / f"{options.bags}.npy")
    config = json.loads((here / "config.json").read_text(encoding="utf-8"))
    if (config["vocab_size"], config["hidden_size"]) != (bags.shape[0], bags.shape[1] + FILLING):
        raise SystemExit(f"config.json does not fit bags of {bags.shape}.")
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(sources.WORK / "tokenizer" / name, folder / name)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    settings = yaml.safe_load((here / "settings.yaml").read_text(encoding="utf-8"))
    (folder / "grit.json").write_text(json.dumps({"format": 1, **settings}, indent=2) + "\n", encoding="utf-8")
    found = weights(bags, config, seed=1)
    mx.save_safetensors(str(folder / "model.safetensors"), found, {"format": "mlx"})
    projection = np.eye(bags.shape[1], config["hidden_size"], dtype=np.float16)
    mx.save_safetensors(str(folder / "projection.safetensors"), {"weight": mx.array(projection)})
    body = sum(value.size for name, value in found.items() if "embed_tokens" not in name)
    print(f"{folder}: {found['model.embed_tokens.weight'].size:,} numbers in the token table, {body:,} elsewhere")


if __name__ == "__main__":
    main()
