"""Write the Mistral folder that `grit train` starts from: it embeds like the bags and copies with induction heads.

    python recipes/grit-tiny/write_model.py [--bags mixed] [--output runs/grit-tiny/start]

Both abilities are written into the weights by hand, because a small model takes very long to learn them by gradient
descent, or never does:

- A token's vector consists of its bag vector, a code of its own, and a filling that gives all rows the same length.
  The norms therefore keep the lengths of the bag vectors, which are the weights of the words. The projection before
  pooling, which GRIT models may have, keeps only the bag's dimensions.
- Layer 1 attends to the previous token, to the one before it, and to all earlier ones with weights that decrease with
  distance, and writes down their codes. Layer 2 looks for a position preceded by the current token and those before
  it, and writes the code of the token at that position, which the tied head reads (Olsson et al. 2022, In-context
  Learning and Induction Heads). The last two tokens alone do not determine the position in a text: "or paddling or
  caning or" has several continuations.
- Layer 1 also attends to other occurrences of the same word, or to the start of the text if there are none, and to the
  marker <|embed|>. From both, the last layer's MLP computes a number that grows with the word's count. It is written to
  a dimension that nothing reads, but the last norm divides by it, so repeated words count less, as in BM25. The number
  is large, so that the rest of a row hardly changes what the norm divides by. Without the marker, or after
  <|assistant|>, it is zero, so answers are not affected, even from cached documents, which contain the marker.

All other weights start small and random. Weights that stay frozen in training are rounded here as `quantize.py` will
store them, so that training adapts to them.
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

# Dimensions after the bag's: a token's code, in two parts, and notes, which the layers write. The notes fill a
# quantisation group of their own, because a token has single large numbers there.
CODE, NOTES = 48, 64
SHARED = 34  # of the code: equal for all tokens of the same word; the others distinguish its forms
# Parts of the code, each with the same length for all tokens: the dimensions that attention uses to look for the
# current token, those for the previous token, and the rest.
PARTS = np.split(np.arange(SHARED), [11, 16]), np.split(np.arange(SHARED, CODE), [5, 8])
PRESENT, EARLIER = (np.concatenate([shared, own]) for shared, own in zip(*(part[:2] for part in PARTS), strict=True))
NOTED = np.concatenate([PRESENT, EARLIER])  # noted of the previous token
# Offsets in the notes: codes of preceding tokens, then single numbers.
BEFORE, BEFORE_THAT, WINDOW, CONSTANT, FILLING, START, ALONE, MARKED, HELD, COUNTED = (0, 24, 32, *range(56, 63))
# Lengths, as fractions of a row's length: the code, a number that all tokens have, one that only <s> has, the bag.
LENGTHS = {"code": 0.3, "constant": 0.25, "start": 0.25, "bag": 0.9}
SHARE = 0.8  # fraction of the code's length that all tokens of a word share
# Gains of the last norm, chosen so that the logits have a suitable scale for softmax. The bag's gain is so small that
# the head almost ignores its dimensions, which keeps generation and embedding apart.
GAINS = {"bag": 2e-4, "code": 0.2, "notes": 0.0, "filling": 0.008}
CONTROLS = 259  # tokens: <unk>, <s>, </s> and the bytes
# Rotary pairs of a head's dimensions: the fast ones encode positions; the slow ones, which hardly rotate within a text,
# identify tokens.
FAST, SLOW = 6, 6
# Attention logits: for an offset; for the same word (and its sink); for the markers.
POSITION, SAME, MARKERS = 120.0, 11.0, {"embed": 60.0, "assistant": 80.0}
MATCH, MATCH_EARLIER, MATCH_WINDOW = 32.0, 28.0, 16.0
# How a head attends to preceding tokens: coefficients of the cosines and sines of the distance, for each fast pair.
# Fitted to 0.7 ** (distance - 2), and to 0 for later tokens, which the tokens of a cached document can see. The weights
# for distances of 1 to 6 are .05, .18, .26, .17, .09, .06.
NEAR = np.array([[-0.4, 2.6, 8.5, 5.6, 6.8, 6.2], [0.5, 1.2, 10.2, 1.9, 0.9, 0.2]])
# How much of the previous token a query adds, so that its window matches the one that ends a token later; and the
# product of two such windows.
NEXT, FITS = 0.05, 0.14
# Distant text is preferred to near text, which is the question or was just generated: logits for 1 - cos of the
# distance, with the slowest of the fast pairs (0.03, 0.01 and 0.003 radians per token).
FAR = {3: 1.0, 4: 1.5, 5: 3.0}
# Logits of the sink, which gets the attention if nothing matches.
SINK = {"one": 27.0, "both": 40.0}
COPIED = {"one": 0.5, "both": 1.0}
SHARPNESS = 40.0
NEURONS = 2  # of the last layer's MLP, which weight words
LOUD = 8.0  # times a row's length: what the last norm divides by when a text is embedded
NOTE = 0.1  # length of a number in the notes, as a fraction of a row's length: too small to affect the norms
SMALL = 0.02
BITS = {"table": 6, "layers": 8}  # of the finished model


def table(bags: np.ndarray, groups: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """``(V, D)`` to ``(V, D + CODE + NOTES)``, all rows with a root mean square of 1."""
    tokens, size = bags.shape
    length = np.sqrt(size + CODE + NOTES)
    norms = np.linalg.norm(bags, axis=1)
    longest = LENGTHS["bag"] * length
    bags = bags * np.minimum(longest / np.quantile(norms, 0.999), longest / np.maximum(norms, 1e-9))[:, None]
    code = rng.normal(size=(tokens, CODE))
    code[:, :SHARED] = code[groups, :SHARED]
    for part in (*PARTS[0], *PARTS[1]):
        code[:, part] *= part_length(part, length) / np.linalg.norm(code[:, part], axis=1, keepdims=True)
    code[1] = 0  # <s> is never generated, and heads that attend to it must copy nothing
    notes = np.zeros((tokens, NOTES))
    notes[:, CONSTANT] = LENGTHS["constant"] * length
    notes[1, START] = LENGTHS["start"] * length
    rows = np.concatenate([bags, code, notes], axis=1)
    rows[:, size + CODE + FILLING] = np.sqrt(np.maximum(0, length**2 - (rows**2).sum(1)))
    return rows


def stored(name: str, value: mx.array) -> mx.array:
    """Frozen weights rounded to the values that they have in the finished model; others unchanged."""
    if "embed_tokens" not in name and "layers.0" not in name and not name.endswith(("k_proj.weight", "v_proj.weight")):
        return value
    if value.ndim < 2:
        return value
    bits = BITS["table" if "embed_tokens" in name else "layers"]
    return mx.dequantize(*mx.quantize(value.astype(mx.float16), bits=bits), bits=bits).astype(mx.float32)


def part_length(part: np.ndarray, length: float) -> float:
    """Length of a part of a code, if rows have the given length."""
    shared = int((part < SHARED).sum())
    share = SHARE**2 * shared / SHARED + (1 - SHARE**2) * (len(part) - shared) / (CODE - SHARED)
    return float(LENGTHS["code"] * length * share**0.5)


class Writer:
    """Writes attention heads and an MLP into the weights of a Mistral model."""

    def __init__(self, config: dict[str, int], rng: np.random.Generator) -> None:
        self.config, self.rng = config, rng
        self.size, self.width = config["hidden_size"], config["head_dim"]
        self.length = np.sqrt(self.size)
        self.bag = self.size - CODE - NOTES
        self.code, self.notes = self.bag, self.bag + CODE
        self.frequencies = config["rope_theta"] ** (-np.arange(self.width // 2) / (self.width // 2))
        self.layers = [self._layer() for _ in range(config["num_hidden_layers"])]

    def _layer(self) -> dict[str, np.ndarray]:
        size, inner = self.size, self.config["intermediate_size"]
        queries, keys = (self.config[name] * self.width for name in ("num_attention_heads", "num_key_value_heads"))

        def random(rows: int) -> np.ndarray:
            return self.rng.normal(0, size**-0.5, (rows, size))

        return {
            "self_attn.q_proj": random(queries),
            "self_attn.k_proj": random(keys),
            "self_attn.v_proj": random(keys),
            "self_attn.o_proj": self.rng.normal(0, SMALL * size**-0.5, (size, queries)),
            "mlp.gate_proj": random(inner),
            "mlp.up_proj": random(inner),
            "mlp.down_proj": self.rng.normal(0, SMALL * size**-0.5, (size, inner)),
            "input_layernorm": np.ones(size),
            "post_attention_layernorm": np.ones(size),
        }

    def hide_bags(self) -> None:
        """Keep the last layer from reading the bags' dimensions, so that finish.py can restore them after training."""
        for name in ("input_layernorm", "post_attention_layernorm"):
            self.layers[-1][name][: self.bag] = 0

    # Parts of a head. Queries are scaled by the root of the width, by which attention divides.

    def clear(self, layer: int, name: str, head: int) -> np.ndarray:
        """The rows of a head (for o_proj its columns, transposed), set to zero."""
        weight = self.layers[layer][f"self_attn.{name}"]
        part = weight.T if name == "o_proj" else weight
        part = part[head * self.width : (head + 1) * self.width]
        part[:] = 0
        return part

    @property
    def constant(self) -> int:
        return self.notes + CONSTANT

    def slow(self, number: int) -> np.ndarray:
        """The first slowly rotating dimensions of a head."""
        pairs = np.arange(SLOW, self.width // 2 - 1)
        return np.concatenate([pairs, pairs + self.width // 2])[:number]

    @property
    def sink(self) -> int:
        """A dimension of a head that does not rotate, for the sink."""
        return self.width // 2 - 1

    def offset_keys(self, layer: int) -> np.ndarray:
        rows = self.clear(layer, "k_proj", 0)
        rows[:FAST, self.constant] = 1 / (LENGTHS["constant"] * self.length)
        return rows

    def distance_query(self, layer: int, head: int, cosines: np.ndarray, sines: np.ndarray) -> np.ndarray:
        """Attend by distance: a sum of its cosines and sines, for each fast pair."""
        rows = self.clear(layer, "q_proj", head)
        scale = self.width**0.5 / (LENGTHS["constant"] * self.length)
        rows[:FAST, self.constant] = scale * cosines
        rows[self.width // 2 : self.width // 2 + FAST, self.constant] = -scale * sines
        return rows

    def offset_query(self, layer: int, head: int, offset: int) -> np.ndarray:
        """Attend to the token ``offset`` positions before the current one."""
        angles = offset * self.frequencies[:FAST]
        return self.distance_query(layer, head, *(POSITION / FAST * np.array([np.cos(angles), np.sin(angles)])))

    def code_values(self, layer: int) -> np.ndarray:
        rows = self.clear(layer, "v_proj", 0)
        rows[:, self.code : self.code + CODE] = np.eye(self.width, CODE)
        return rows

    def match(self, rows: np.ndarray, dimensions: np.ndarray, part: np.ndarray, start: int, logit: float) -> None:
        """Let dimensions of a head read a part of a code, so that matching queries and keys have this logit."""
        rows[dimensions, start + np.arange(len(part))] = logit / part_length(part, self.length)

    # The parts of the model

    def first_layer(self, markers: dict[str, int], rows: np.ndarray) -> None:
        """Heads with shared keys and values: a token's position, its word, and whether it is <s>."""
        root, note = self.width**0.5, NOTE * self.length
        constant, start = LENGTHS["constant"] * self.length, LENGTHS["start"] * self.length
        keys = self.offset_keys(0)
        slow = self.slow(SHARED)
        self.match(keys, slow, np.arange(SHARED), self.code, 1.0)
        keys[self.sink, self.notes + START] = 1 / start
        self.code_values(0)[-1, self.notes + START] = 1 / start

        queries = (self.offset_query(0, 0, 1), self.offset_query(0, 1, 2), self.distance_query(0, 2, *NEAR))
        notes = ((BEFORE, NOTED), (BEFORE_THAT, EARLIER), (WINDOW, NOTED))
        for head, (query, (first, noted)) in enumerate(zip(queries, notes, strict=True)):
            # Nothing precedes <s>, so it attends to itself. With bidirectional attention it would note later tokens.
            query[self.sink, self.notes + START] = POSITION * root / start
            self.clear(0, "o_proj", head)[noted, self.notes + first + np.arange(len(noted))] = 1

        same = self.clear(0, "q_proj", 3)
        self.match(same, slow, np.arange(SHARED), self.code, SAME * root)
        same[self.sink, self.constant] = (SAME + np.log(words.SINK)) * root / constant
        self.clear(0, "o_proj", 3)[-1, self.notes + ALONE] = note
        looking = self.clear(0, "q_proj", 4)
        found = np.stack([(keys @ rows[markers[name]])[slow] for name in MARKERS])
        read = np.linalg.lstsq(found, np.array(list(MARKERS.values())), rcond=None)[0]
        looking[slow, self.constant] = read * root / constant
        code = rows[markers["embed"], self.code : self.code + CODE]
        others = rows[markers["assistant"], self.code : self.code + CODE]
        code = code - (code @ others) / (others @ others) * others
        self.clear(0, "o_proj", 4)[:CODE, self.notes + MARKED] = note * code / (code @ code)

    def weighing(self) -> None:
        """The neurons that compute the weight of a word."""
        note = NOTE * self.length
        # silu(sharp * (marked - 0.75)), times 1 and times (1 - alone), in the last layer.
        last = self.layers[-1]
        neurons = ((HELD, words.ALONE**0.5, 0.0), (COUNTED, words.STRENGTH, 1.0))
        for neuron, (dimension, strength, less) in enumerate(neurons):
            for name in ("mlp.gate_proj", "mlp.up_proj"):
                last[name][neuron] = 0
            last["mlp.gate_proj"][neuron, self.notes + MARKED] = SHARPNESS / note
            last["mlp.gate_proj"][neuron, self.constant] = -0.75 * SHARPNESS / (LENGTHS["constant"] * self.length)
            last["mlp.up_proj"][neuron, self.constant] = 1 / (LENGTHS["constant"] * self.length)
            last["mlp.up_proj"][neuron, self.notes + ALONE] = -less / note
            last["mlp.down_proj"][:, neuron] = 0
            last["mlp.down_proj"][self.notes + dimension, neuron] = LOUD * strength * self.length / (0.25 * SHARPNESS)

    def induction(self) -> None:
        """Heads of the last layer that find positions with the same preceding text."""
        root, constant = self.width**0.5, LENGTHS["constant"] * self.length
        # NOTED is PRESENT and EARLIER, so the window's dimensions start after these two.
        dimensions = self.slow(2 * len(NOTED))
        present, earlier, window = np.split(dimensions, [len(PRESENT), len(NOTED)])
        far, strength = np.array(list(FAR)), np.array(list(FAR.values()))
        keys = self.offset_keys(1)
        self.match(keys, present, PRESENT, self.notes + BEFORE, 1.0)
        self.match(keys, earlier, EARLIER, self.notes + BEFORE_THAT, 1.0)
        self.match(keys, window, NOTED, self.notes + WINDOW, 1.0)
        keys[self.sink, self.notes + START] = 1 / (LENGTHS["start"] * self.length)
        self.code_values(1)
        for head, name in enumerate(COPIED):
            query = self.clear(1, "q_proj", head)
            self.match(query, present, PRESENT, self.code, MATCH * root)
            if name == "both":
                self.match(query, earlier, EARLIER, self.notes + BEFORE + len(PRESENT), MATCH_EARLIER * root)
                self.match(query, window, NOTED, self.notes + WINDOW, MATCH_WINDOW / FITS * root)
                self.match(query, window, NOTED, self.notes + BEFORE, NEXT * MATCH_WINDOW / FITS * root)
            query[self.sink, self.constant] = SINK[name] * root / constant
            query[far, self.constant] = -strength * root / constant
            self.clear(1, "o_proj", head)[np.arange(CODE), self.code + np.arange(CODE)] = COPIED[name]
        # The next token is rarely the same as the current one, so its code is subtracted.
        self.offset_query(1, 2, 0)
        self.clear(1, "o_proj", 2)[np.arange(CODE), self.code + np.arange(CODE)] = -1

    def arrays(self, rows: np.ndarray) -> dict[str, mx.array]:
        gains = np.full(self.size, GAINS["bag"])
        gains[self.code : self.notes] = GAINS["code"]
        gains[self.notes :] = GAINS["notes"]
        gains[self.notes + FILLING] = GAINS["filling"]
        found = {"model.embed_tokens.weight": rows, "model.norm.weight": gains}
        for i, layer in enumerate(self.layers):
            found |= {f"model.layers.{i}.{name}.weight": value for name, value in layer.items()}
        return {name: stored(name, mx.array(value.astype(np.float32))) for name, value in found.items()}


def weights(bags: np.ndarray, tokenizer: Tokenizer, config: dict[str, int], seed: int) -> dict[str, mx.array]:
    rng = np.random.default_rng(seed)
    # The teacher has one vector for all byte and control tokens, but generation must distinguish them.
    spread = 0.1 * np.linalg.norm(bags, axis=1).mean() / bags.shape[1] ** 0.5
    bags = bags.copy()
    bags[:CONTROLS] += rng.normal(0, spread, bags[:CONTROLS].shape)
    rows = table(bags, words.same_words(tokenizer), rng)
    writer = Writer(config, rng)
    writer.first_layer({name: tokenizer.token_to_id(name) for name in MARKERS}, rows)
    writer.weighing()
    writer.induction()
    writer.hide_bags()
    return writer.arrays(rows)


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
