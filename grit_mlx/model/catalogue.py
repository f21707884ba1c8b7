"""Models by machine: how large each is at so many bits, how much memory its work takes, and which Mac has that.

Nothing is downloaded to know it, and nothing is guessed: sizes follow from a model's config, as the shapes of its
weights do, and memory from these, from its keys and values and from the states of one layer. A test compares with
folders that ``grit convert`` made and with the caches of loaded models. Nothing here imports mlx.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

__all__ = [
    "CATALOGUE",
    "LONG_WORK",
    "SHORT_WORK",
    "CatalogueEntry",
    "Family",
    "catalogue",
    "converted_name",
    "kv_bytes",
    "layer_numbers",
    "mac_for",
    "named",
    "parameter_count",
    "recommended",
    "usable_memory",
    "weight_bytes",
    "weight_shapes",
    "work_bytes",
    "writers",
]

GIB: Final = 1 << 30

# Tokens of a short text or question, and of a chat or a question about several passages.
SHORT_WORK: Final = 512
LONG_WORK: Final = 8192

# mlx-lm reads a prompt in steps of so many tokens.
_PREFILL_TOKENS: Final = 2048
_HALF: Final = 2  # bytes of a number that is not quantised

# As `grit convert` quantises by default (convert/quantization.py): groups of weights share a scale and a bias, a
# mixture's routers stay as they are, and some matrices have more bits than the others.
_GROUP: Final = 64
_TABLES: Final = ("embed_tokens", "lm_head")
_SENSITIVE: Final = ("k_proj", "v_proj")
_ROUTERS: Final = ("gate",)

# Part of a Mac's memory that Metal gives to programs (max_recommended_working_set_size): 2/3, from 36 GiB on 3/4.
_LARGE_MAC: Final = 36
# Unified memory that Macs with Apple silicon are sold with, in GiB.
_MACS: Final = (8, 16, 18, 24, 32, 36, 48, 64, 96, 128, 192, 256, 512)

# Part of the usable memory that a recommended model may take, so that other programs have some, too.
_COMFORTABLE: Final = 0.75
# More bits than these take memory and time and change next to nothing (docs/convert.md).
_ENOUGH_BITS: Final = 8


@dataclass(frozen=True)
class Family:
    """A model on the hub, at whatever bits.

    Attributes:
        name: the short name.
        repository: its hub id.
        config: what its ``config.json`` says of its shape.
        embeds: whether it was trained to embed.
        writes: whether it was trained to write.
        bits: that it is offered with, the most first; 16 is as it was published.
    """

    name: str
    repository: str
    config: Mapping[str, int | bool]
    embeds: bool
    writes: bool
    bits: tuple[int, ...] = (16, 8, 6, 4)


_MISTRAL: Final = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 32000, "tie_word_embeddings": False,
}  # fmt: skip
_SMOL: Final = {"vocab_size": 49152, "tie_word_embeddings": True}

_QUANTISED: Final = re.compile(r"(.+)-([2-8])bit")

# Models that have a short name, in the order in which they are recommended.
CATALOGUE: Final = (
    Family("gritlm-7b", "GritLM/GritLM-7B", _MISTRAL, embeds=True, writes=True),
    Family(
        "gritlm-8x7b",
        "GritLM/GritLM-8x7B",
        {**_MISTRAL, "num_local_experts": 8, "num_experts_per_tok": 2},
        embeds=True,
        writes=True,
    ),
    Family(
        "smollm2-1.7b",
        "HuggingFaceTB/SmolLM2-1.7B-Instruct",
        {
            **_SMOL, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24,
            "num_attention_heads": 32, "num_key_value_heads": 32,
        },
        embeds=False,
        writes=True,
        bits=(16, 8, 4),
    ),
    Family(
        "smollm2-360m",
        "HuggingFaceTB/SmolLM2-360M-Instruct",
        {
            **_SMOL, "hidden_size": 960, "intermediate_size": 2560, "num_hidden_layers": 32,
            "num_attention_heads": 15, "num_key_value_heads": 5,
        },
        embeds=False,
        writes=True,
        bits=(16, 8),
    ),
)  # fmt: skip


@dataclass(frozen=True)
class CatalogueEntry:
    """A model at so many bits.

    Attributes:
        family: what it is.
        bits: of most weights; 16 is as it was published.
        parameters: numbers in it.
        download_bytes: what is fetched: the published weights, quantised as they arrive.
        size_bytes: of its weights on disk and in memory.
        short_bytes: memory for work on ``SHORT_WORK`` tokens, weights included.
        long_bytes: memory for work on ``LONG_WORK`` tokens.
        mac: GiB of the smallest Mac that has that; None if none has.
    """

    family: Family
    bits: int
    parameters: int
    download_bytes: int
    size_bytes: int
    short_bytes: int
    long_bytes: int
    mac: int | None

    @property
    def name(self) -> str:
        """What it is called once it is here, such as ``"gritlm-7b-4bit"``."""
        return self.family.name if self.bits == 16 else converted_name(self.family.repository, self.bits)

    @property
    def command(self) -> str:
        """The command that gets it."""
        return f"grit models pull {self.family.name}" + ("" if self.bits == 16 else f" --bits {self.bits}")

    def verdict(self, memory: int) -> str:
        """What a machine with so many bytes of memory can do with it: "fits", "short texts" or "too large"."""
        usable = usable_memory(memory)
        if self.long_bytes <= usable:
            return "fits"
        return "short texts" if self.short_bytes <= usable else "too large"


@cache
def catalogue() -> tuple[CatalogueEntry, ...]:
    """All models with a short name at all their bits, in the order of ``CATALOGUE``."""
    return tuple(_entry(family, bits) for family in CATALOGUE for bits in family.bits)


def writers(memory: int) -> list[CatalogueEntry]:
    """The models that can write on a machine with so many bytes of memory, in the order of ``CATALOGUE``."""
    return [one for one in catalogue() if one.family.writes and one.long_bytes <= usable_memory(memory)]


def recommended(memory: int) -> CatalogueEntry | None:
    """The model for a machine: if possible for both jobs, with the most bits that leave room for other programs.

    Args:
        memory: of the machine, in bytes.

    Returns:
        None if the machine has too little memory for any model.
    """
    roomy = _COMFORTABLE * usable_memory(memory)

    def rank(one: CatalogueEntry) -> tuple[bool, int, bool, int]:
        tight = one.long_bytes > roomy
        return not one.family.embeds, CATALOGUE.index(one.family), tight, one.bits if tight else -one.bits

    return min((one for one in writers(memory) if one.bits <= _ENOUGH_BITS), key=rank, default=None)


def converted_name(repository: str, bits: int) -> str:
    """The name of a model of the hub that ``grit models pull --bits`` quantised."""
    return f"{repository.rpartition('/')[2]}-{bits}bit".lower()


def named(name: str) -> tuple[Family, int] | None:
    """The model and the bits that a name such as ``"gritlm-7b-4bit"`` stands for; None if it is not of the catalogue.

    Args:
        name: with the short name or the hub's, in any letter case.
    """
    match = _QUANTISED.fullmatch(name.lower())
    if match is None:
        return None
    for family in CATALOGUE:
        if match[1] in (family.name, family.repository.rpartition("/")[2].lower()):
            return family, int(match[2])
    return None


def usable_memory(memory: int) -> int:
    """The bytes of a machine's memory that a model may use, as Metal counts; a sound limit elsewhere, too."""
    return memory * 2 // 3 if memory < _LARGE_MAC * GIB else memory * 3 // 4


def mac_for(needed: int) -> int | None:
    """GiB of the smallest Mac on which a model may use so many bytes; None if none is large enough."""
    return next((size for size in _MACS if usable_memory(size * GIB) >= needed), None)


# Formulas


def weight_shapes(config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of each weight of a model of the families Mistral, Llama and Mixtral.

    Source: mlx-lm's models/llama.py and models/mixtral.py.
    """
    hidden, width = int(config["hidden_size"]), int(config["intermediate_size"])
    heads, experts = int(config["num_attention_heads"]), int(config.get("num_local_experts") or 0)
    size = int(config.get("head_dim") or hidden // heads)
    values = int(config["num_key_value_heads"]) * size
    attention = {
        "q_proj": (heads * size, hidden),
        "k_proj": (values, hidden),
        "v_proj": (values, hidden),
        "o_proj": (hidden, heads * size),
    }
    feed_forward = {"gate_proj": (width, hidden), "up_proj": (width, hidden), "down_proj": (hidden, width)}
    yield "embed_tokens", (int(config["vocab_size"]), hidden)
    for _ in range(int(config["num_hidden_layers"])):
        yield from attention.items()
        if experts:
            yield "gate", (experts, hidden)
        for name, shape in feed_forward.items():
            yield name, (experts, *shape) if experts else shape
        yield from (("norm", (hidden,)), ("norm", (hidden,)))
    yield "norm", (hidden,)
    if not config.get("tie_word_embeddings"):
        yield "lm_head", (int(config["vocab_size"]), hidden)


def parameter_count(config: Mapping[str, Any]) -> int:
    """Numbers in a model."""
    return sum(math.prod(shape) for _, shape in weight_shapes(config))


def weight_bytes(config: Mapping[str, Any], bits: int) -> int:
    """Bytes of a model's weights at so many bits; 16 for unquantised ones, in half precision."""
    return sum(_matrix_bytes(name, shape, bits) for name, shape in weight_shapes(config))


def kv_bytes(config: Mapping[str, Any], tokens: int) -> int:
    """Bytes of the keys and values of so many tokens, in half precision."""
    size = int(config.get("head_dim") or int(config["hidden_size"]) // int(config["num_attention_heads"]))
    return 2 * int(config["num_hidden_layers"]) * int(config["num_key_value_heads"]) * size * tokens * _HALF


def layer_numbers(hidden: int, width: int) -> int:
    """Numbers that one layer holds at its peak for a token, without attention's scores.

    Eight rows of the hidden size (residual, norm, queries, keys, values, outputs, with their copies) and three of the
    feed-forward width; of a mixture, of all experts of a token.
    """
    return 8 * hidden + 3 * width


def work_bytes(config: Mapping[str, Any], tokens: int) -> int:
    """Bytes that embedding a text or answering a prompt of so many tokens takes beside the weights: the larger."""
    width = int(config["intermediate_size"]) * int(config.get("num_experts_per_tok") or 1)
    states = layer_numbers(int(config["hidden_size"]), width) * _HALF
    return max(states * tokens, states * min(tokens, _PREFILL_TOKENS) + kv_bytes(config, tokens))


def _matrix_bytes(name: str, shape: tuple[int, ...], bits: int) -> int:
    numbers = math.prod(shape)
    if bits >= 16 or len(shape) == 1 or name in _ROUTERS or shape[-1] % _GROUP:
        return numbers * _HALF
    if name in _SENSITIVE:
        bits = 8 if bits >= 6 else 6
    elif name in _TABLES:
        bits = max(bits, 6)
    return numbers * bits // 8 + numbers // _GROUP * 2 * _HALF


def _entry(family: Family, bits: int) -> CatalogueEntry:
    config, size = family.config, weight_bytes(family.config, bits)
    long = size + work_bytes(config, LONG_WORK)
    return CatalogueEntry(
        family=family,
        bits=bits,
        parameters=parameter_count(config),
        download_bytes=weight_bytes(config, 16),
        size_bytes=size,
        short_bytes=size + work_bytes(config, SHORT_WORK),
        long_bytes=long,
        mac=mac_for(long),
    )
