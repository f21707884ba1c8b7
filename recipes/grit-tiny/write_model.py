"""A Mistral folder that embeds as the bags of tokens do and copies as induction heads do: where `grit train` starts.

    python recipes/grit-tiny/write_model.py [--bags mixed] [--output runs/grit-tiny/start]

Both are written into the weights by hand, because they are what a small model takes longest to find by descent, or
never does:

- A token's vector is the bag's, a code of its own, and a filling that brings all rows to one length, so that the norms
  leave the bag's lengths, which are its weights of words, as they are. The projection before pooling, which GRIT models
  may have, takes the bag's dimensions alone.
- Layer 1 attends to the token before, to the one before that, and to all that was before these, the nearer the more,
  and writes down their codes. Layer 2 looks for a place that follows what the present token and those before it are,
  and writes the code of the token that stands there: the tied head reads it (Olsson et al. 2022, In-context Learning
  and Induction Heads). The two last tokens alone do not tell where in a text one is: "or paddling or caning or" goes on
  in several ways.
- Layer 1 also attends to the same word elsewhere in the text, or to the start of the text where there is none, and to
  the marker <|embed|>. From both the last layer's MLP makes a number that grows with a word's count. It stands in a
  dimension that nothing reads; but the last norm divides by it, so repeated words weigh less, as in BM25. It is made
  large, so that whatever else stands in a row hardly changes what the norm divides by. Without the marker, or after
  <|assistant|>, it is zero: an answer is not concerned, even from cached documents, which have the marker.

All else begins small and random. What training leaves alone is rounded here as `quantize.py` will store it, so that
what is learned fits it.
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

# Dimensions after the bag's: a token's code, in two parts, and what the layers write down. The notes fill a group that
# shares a scale when quantised: a token has single large numbers there.
CODE, NOTES = 48, 64
SHARED = 34  # of the code: the same for all tokens that are the same word; the others tell its forms apart
# Parts of the code, each of one length for all tokens: those by which attention looks for the present token, those by
# which it looks for the one before it, and the rest.
PARTS = np.split(np.arange(SHARED), [11, 16]), np.split(np.arange(SHARED, CODE), [5, 8])
PRESENT, EARLIER = (np.concatenate([shared, own]) for shared, own in zip(*(part[:2] for part in PARTS), strict=True))
NOTED = np.concatenate([PRESENT, EARLIER])  # of the token before
# In the notes, by their first dimension: codes of the tokens before, and single numbers.
BEFORE, BEFORE_THAT, WINDOW, CONSTANT, FILLING, START, ALONE, MARKED, HELD, COUNTED = (0, 24, 32, *range(56, 63))
# Lengths, of a row's whole length: the code, a number that all tokens have, one that only <s> has.
LENGTHS = {"code": 0.3, "constant": 0.25, "start": 0.25, "bag": 0.9}
SHARE = 0.8  # of the code's length: what all tokens of a word share
# Gains of the last norm: they make logits of a size that softmax can begin with. That of the bag's dimensions all but
# keeps the head from reading them, and so writing from disturbing what is searched with.
GAINS = {"bag": 2e-4, "code": 0.2, "notes": 0.0, "filling": 0.008}
CONTROLS = 259  # tokens: <unk>, <s>, </s> and the bytes
# Pairs of a head's dimensions by the speed of their rotation: positions are told by the fast ones, and what a token is
# by those that hardly turn within a text.
FAST, SLOW = 6, 6
# Logits of attention: a token and the one before it; the same word, and what it is weighed against; the marker.
POSITION, SAME, MARKERS = 120.0, 11.0, {"embed": 60.0, "assistant": 80.0}
MATCH, MATCH_EARLIER, MATCH_WINDOW = 32.0, 28.0, 16.0
# How a head attends to the tokens before the last, by cosines and sines of the distance, for each of the fast pairs:
# fitted to 0.7 ** (distance - 2), and to 0 for what comes after, which a cached document's tokens see, too. Weights of
# .05, .18, .26, .17, .09, .06 for distances of 1 to 6.
NEAR = np.array([[-0.4, 2.6, 8.5, 5.6, 6.8, 6.2], [0.5, 1.2, 10.2, 1.9, 0.9, 0.2]])
# What a query adds of the token before, so that a window fits the one that ends a token later; and their product.
NEXT, FITS = 0.05, 0.14
# What is far is copied rather than what is near, which is the question, or was just written: logits for 1 - cos of the
# distance, by the slow ones of the fast pairs (0.03, 0.01 and 0.003 radians a token).
FAR = {3: 1.0, 4: 1.5, 5: 3.0}
# What attention falls back to where nothing matches.
SINK = {"one": 27.0, "both": 40.0}
COPIED = {"one": 0.5, "both": 1.0}
SHARPNESS = 40.0
NEURONS = 2  # of the last layer's MLP, which weigh words
LOUD = 8.0  # of a row's length: what the last norm divides by where a text is embedded
NOTE = 0.1  # length of a number that layers write down, of a row's whole length: the norms must not feel it
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
    code[1] = 0  # <s> is never written, and what attends to it is to copy nothing
    notes = np.zeros((tokens, NOTES))
    notes[:, CONSTANT] = LENGTHS["constant"] * length
    notes[1, START] = LENGTHS["start"] * length
    rows = np.concatenate([bags, code, notes], axis=1)
    rows[:, size + CODE + FILLING] = np.sqrt(np.maximum(0, length**2 - (rows**2).sum(1)))
    return rows


def stored(name: str, value: mx.array) -> mx.array:
    """The weights that training leaves alone as they will be read from the finished model."""
    if "embed_tokens" not in name and "layers.0" not in name and not name.endswith(("k_proj.weight", "v_proj.weight")):
        return value
    if value.ndim < 2:
        return value
    bits = BITS["table" if "embed_tokens" in name else "layers"]
    return mx.dequantize(*mx.quantize(value.astype(mx.float16), bits=bits), bits=bits).astype(mx.float32)


def part_length(part: np.ndarray, length: float) -> float:
    """Of some dimensions of a code, where rows have this length."""
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
        """Let the last layer read no dimensions of the bags, so that what training writes there can be taken back."""
        for name in ("input_layernorm", "post_attention_layernorm"):
            self.layers[-1][name][: self.bag] = 0

    # Parts of a head. Queries and keys are given as if attention did not divide by the root of the width.

    def clear(self, layer: int, name: str, head: int) -> np.ndarray:
        """The rows of a head (columns of o_proj, turned), set to zero."""
        weight = self.layers[layer][f"self_attn.{name}"]
        part = weight.T if name == "o_proj" else weight
        part = part[head * self.width : (head + 1) * self.width]
        part[:] = 0
        return part

    @property
    def constant(self) -> int:
        return self.notes + CONSTANT

    def slow(self, number: int) -> np.ndarray:
        """The first dimensions of a head that turn slowly."""
        pairs = np.arange(SLOW, self.width // 2 - 1)
        return np.concatenate([pairs, pairs + self.width // 2])[:number]

    @property
    def sink(self) -> int:
        """A dimension of a head that does not turn, for what attention falls back to."""
        return self.width // 2 - 1

    def offset_keys(self, layer: int) -> np.ndarray:
        rows = self.clear(layer, "k_proj", 0)
        rows[:FAST, self.constant] = 1 / (LENGTHS["constant"] * self.length)
        return rows

    def distance_query(self, layer: int, head: int, cosines: np.ndarray, sines: np.ndarray) -> np.ndarray:
        """Attend by the distance: a sum of cosines and sines of it, for each of the fast pairs."""
        rows = self.clear(layer, "q_proj", head)
        scale = self.width**0.5 / (LENGTHS["constant"] * self.length)
        rows[:FAST, self.constant] = scale * cosines
        rows[self.width // 2 : self.width // 2 + FAST, self.constant] = -scale * sines
        return rows

    def offset_query(self, layer: int, head: int, offset: int) -> np.ndarray:
        """Attend to the token ``offset`` before this one."""
        angles = offset * self.frequencies[:FAST]
        return self.distance_query(layer, head, *(POSITION / FAST * np.array([np.cos(angles), np.sin(angles)])))

    def code_values(self, layer: int) -> np.ndarray:
        rows = self.clear(layer, "v_proj", 0)
        rows[:, self.code : self.code + CODE] = np.eye(self.width, CODE)
        return rows

    def match(self, rows: np.ndarray, dimensions: np.ndarray, part: np.ndarray, start: int, logit: float) -> None:
        """Let dimensions of a head read a part of a code, so that a query and a key that agree have this logit."""
        rows[dimensions, start + np.arange(len(part))] = logit / part_length(part, self.length)

    # The parts of the model

    def first_layer(self, markers: dict[str, int], rows: np.ndarray) -> None:
        """Its heads share keys and values: where a token stands, which word it is, and whether it is the first."""
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
            # Nothing is before <s>, which looks at itself: where attention goes both ways, it would note what follows.
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
        """The neurons that say how much a word counts."""
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
        """Heads of the last layer find where the text goes on as it does here."""
        root, constant = self.width**0.5, LENGTHS["constant"] * self.length
        # NOTED is PRESENT and EARLIER, so the windows' dimensions begin where these two end.
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
        # What is written next is mostly not what was written last: its code is taken away again.
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
    # The teacher has one vector for all bytes and controls, and a writer must tell them apart.
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
    """Writes the model's folder and returns how many numbers it has beside the token table."""
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
    print(f"{options.output}: {body:,} numbers beside the token table")


if __name__ == "__main__":
    main()
