"""Write the bags into a Mistral folder that embeds as they do, and a little more.

    python recipes/grit-tiny/write_model.py [--bags mixed] [--output runs/grit-tiny/start]

- A token's vector consists of its bag vector, a code of its word, and a filling that gives all rows the same length.
  The norms therefore keep the lengths of the bag vectors, which are the weights of the words. The projection before
  pooling, which GRIT models may have, keeps only the bag's dimensions.
- The layer's head attends to other occurrences of the same word, or to the start of the text if there are none.
  From this, two neurons compute a number that grows with the word's count. They write it to a dimension that nothing
  reads, but the last norm divides by it, so repeated words count less, as in BM25. The number is large, so that the
  rest of a row hardly changes what the norm divides by.

- The second head attends to all tokens alike and notes the mean of their codes. Nothing reads it: it is what the check
  at loading sees of attention in both directions, since the first head looks at equal words only.

The other neurons are zero: layers are quantised in groups of 64 weights, so there are 64 of them.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import sources
import words
import yaml
from tokenizers import Tokenizer

HERE = Path(__file__).parent

# Dimensions after the bag's: the code of a token's word, and notes. The notes in use, which the neurons write, are the
# last: a quantisation group of their own, because a token has single large numbers there.
CODE, NOTES = 48, 64
CONSTANT, FILLING, START, ALONE, HELD, COUNTED = range(NOTES - 6, NOTES)
# Lengths, as fractions of a row's length: the code, a number that all tokens have, one that only <s> has, the bag.
LENGTHS = {"code": 0.3, "constant": 0.25, "start": 0.25, "bag": 0.9}
# The rotary pairs of a head's dimensions that rotate fast; the others hardly rotate within a text and identify words.
FAST = 6
SAME = 11.0  # attention logit of the same word
SHARPNESS = 10.0
NEURONS = 2  # of the MLP, which weight words
LOUD = 8.0  # times a row's length: what the last norm divides by
NOTE = 0.1  # length of a number in the notes, as a fraction of a row's length: too small to affect the norms
LAYER = "model.layers.0."


def table(bags: np.ndarray, groups: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """``(V, D)`` to ``(V, D + CODE + NOTES)``, all rows with a root mean square of 1."""
    tokens, size = bags.shape
    length = np.sqrt(size + CODE + NOTES)
    norms = np.linalg.norm(bags, axis=1)
    longest = LENGTHS["bag"] * length
    bags = bags * np.minimum(longest / np.quantile(norms, 0.999), longest / np.maximum(norms, 1e-9))[:, None]
    code = rng.normal(size=(tokens, CODE))[groups]
    code *= LENGTHS["code"] * length / np.linalg.norm(code, axis=1, keepdims=True)
    notes = np.zeros((tokens, NOTES))
    notes[:, CONSTANT] = LENGTHS["constant"] * length
    notes[1, START] = LENGTHS["start"] * length
    rows = np.concatenate([bags, code, notes], axis=1)
    rows[1, size : size + CODE] = 0  # <s> is no word
    rows[:, size + CODE + FILLING] = np.sqrt(np.maximum(0, length**2 - (rows**2).sum(1)))
    return rows


def layer(config: dict[str, int]) -> dict[str, np.ndarray]:
    """The weights of the layer: the head and the neurons that weight words."""
    size, width, inner = config["hidden_size"], config["head_dim"], config["intermediate_size"]
    length = size**0.5
    found = {f"self_attn.{name}_proj": np.zeros((width, size)) for name in "kv"}
    found |= {"self_attn.q_proj": np.zeros((2 * width, size)), "self_attn.o_proj": np.zeros((size, 2 * width))}
    found |= {"mlp.down_proj": np.zeros((size, inner))}
    found |= {f"mlp.{name}_proj": np.zeros((inner, size)) for name in ("gate", "up")}
    found |= {name: np.ones(size) for name in ("input_layernorm", "post_attention_layernorm")}
    notes = size - NOTES
    per_constant, per_start = 1 / (LENGTHS["constant"] * length), 1 / (LENGTHS["start"] * length)
    # Of the head's dimensions, the last pair's first is the sink's; the pairs before it match words.
    sink = width // 2 - 1
    pairs = np.arange(FAST, sink)
    slow = np.concatenate([pairs, pairs + width // 2])[:CODE]
    code = size - NOTES - CODE + np.arange(CODE)
    keys, queries = found["self_attn.k_proj"], found["self_attn.q_proj"]
    keys[slow, code] = 1 / (LENGTHS["code"] * length)
    queries[slow, code] = SAME * width**0.5 / (LENGTHS["code"] * length)
    keys[sink, notes + START] = per_start
    queries[sink, notes + CONSTANT] = (SAME + np.log(words.SINK)) * width**0.5 * per_constant
    found["self_attn.v_proj"][0, notes + START] = per_start
    found["self_attn.v_proj"][1 + np.arange(CODE), code] = 1
    found["self_attn.o_proj"][notes + np.arange(CODE), width + 1 + np.arange(CODE)] = NOTE
    found["self_attn.o_proj"][notes + ALONE, 0] = NOTE * length
    # silu(sharp) times 1, and times 1 - alone.
    for neuron, (dimension, strength, less) in enumerate(((HELD, words.ALONE**0.5, 0), (COUNTED, words.STRENGTH, 1))):
        gate, up = found["mlp.gate_proj"][neuron], found["mlp.up_proj"][neuron]
        gate[notes + CONSTANT] = SHARPNESS * per_constant
        up[notes + CONSTANT] = per_constant
        up[notes + ALONE] = -less / (NOTE * length)
        found["mlp.down_proj"][notes + dimension, neuron] = LOUD * strength * length / SHARPNESS
    return found


def weights(bags: np.ndarray, tokenizer: Tokenizer, config: dict[str, int], seed: int) -> dict[str, mx.array]:
    rng = np.random.default_rng(seed)
    gains = np.zeros(config["hidden_size"])
    gains[: bags.shape[1]] = 1
    gains[-NOTES : CODE - NOTES] = 1  # the means of codes, which the projection leaves out
    found = {
        "model.embed_tokens.weight": table(bags, words.same_words(tokenizer), rng),
        "model.norm.weight": gains,
        **{f"{LAYER}{name}.weight": value for name, value in layer(config).items()},
    }
    return {name: mx.array(value.astype(np.float32)) for name, value in found.items()}


def write(folder: Path, bags: np.ndarray, config: dict[str, Any], tokenizer: Path) -> int:
    """Write the model's folder; returns the number of parameters outside the token table."""
    if (config["vocab_size"], config["hidden_size"]) != (bags.shape[0], bags.shape[1] + CODE + NOTES):
        raise SystemExit(f"config.json does not fit bags of {bags.shape}.")
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tokenizer / name, folder / name)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    settings = yaml.safe_load((HERE / "settings.yaml").read_text(encoding="utf-8"))
    (folder / "grit.json").write_text(json.dumps({"format": 1, **settings}, indent=2) + "\n", encoding="utf-8")
    found = weights(bags, Tokenizer.from_file(str(folder / "tokenizer.json")), config, seed=1)
    mx.save_safetensors(str(folder / "model.safetensors"), found, {"format": "mlx"})
    projection = np.eye(bags.shape[1], config["hidden_size"], dtype=np.float16)
    mx.save_safetensors(str(folder / "projection.safetensors"), {"weight": mx.array(projection)})
    return sum(value.size for name, value in found.items() if "embed_tokens" not in name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bags", default="mixed")
    parser.add_argument("--output", type=Path, default=sources.WORK / "start")
    options = parser.parse_args()
    bags = np.load(sources.WORK / f"{options.bags}.npy")
    config = json.loads((HERE / "config.json").read_text(encoding="utf-8"))
    body = write(options.output, bags, config, sources.WORK / "tokenizer")
    print(f"{options.output}: {body:,} parameters outside the token table")


if __name__ == "__main__":
    main()
