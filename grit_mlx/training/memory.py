"""An estimate of the memory that a run needs, before its first step, and what to do if that is too much."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from grit_mlx.errors import Option
from grit_mlx.model.checkpoint import decoder_config
from grit_mlx.model.widening import is_widened
from grit_mlx.training.arrays import named_arrays
from grit_mlx.training.recompute import should_recompute
from grit_mlx.training.settings import TrainingSettings

__all__ = ["MemoryEstimate", "advice", "estimate"]

# Numbers that the optimizer keeps for each trained one.
_OPTIMIZER_STATES = {"adamw": 2, "adam": 2, "adafactor": 0.05, "lion": 1, "muon": 1, "sgd": 0}


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of a run at its peak.

    Attributes:
        weights: the model.
        training: gradients (a chunk's, and the sum of each kind of loss) and the optimizer's state.
        activations: what one chunk keeps for its gradient.
        available: on the device.
    """

    weights: int
    training: int
    activations: int
    available: int

    @property
    def peak(self) -> int:
        """Their sum."""
        return self.weights + self.training + self.activations

    @property
    def fits(self) -> bool:
        """Whether that is available."""
        return self.peak <= self.available


def estimate(
    model: nn.Module,
    config: Mapping[str, Any],
    settings: TrainingSettings,
    *,
    available: int,
    fused_attention: bool,
) -> MemoryEstimate:
    """The memory that a run will need at its peak.

    A layer keeps for each token about 8 rows of the hidden size and 3 of the feed-forward width, and where
    attention is not fused two rows of scores for each head; LoRA adds its low-rank rows, which are small beside
    those. The layer whose gradient is computed takes twice as much again, and ten times as much where it widens its
    weights as it computes. With recomputation a layer keeps 4 rows of the hidden size, and one layer at a time the
    rest. The head takes 5 rows of the vocabulary. Each number was found by measuring; benchmarks/training_memory.py
    compares.

    Args:
        model: with its trainable parameters chosen.
        config: its ``config.json``.
        settings: chunks, lengths, optimizer.
        available: bytes that the process can take.
        fused_attention: whether attention scores are never in memory as a whole.
    """
    config = decoder_config(config)
    trained = named_arrays(model.trainable_parameters())
    trained_bytes = sum(value.nbytes for _, value in trained)
    weights = sum(value.nbytes for _, value in named_arrays(model.parameters()))
    hidden = int(config["hidden_size"])
    width = int(config.get("intermediate_size") or 4 * hidden) * int(config.get("num_experts_per_tok") or 1)
    heads, layers = int(config.get("num_attention_heads") or 1), int(config.get("num_hidden_layers") or 1)
    size = max((value.itemsize for _, value in trained if mx.issubdtype(value.dtype, mx.floating)), default=4)

    length = max(
        settings.query_max_length if settings.embeds else 0,
        settings.passage_max_length if settings.embeds else 0,
        settings.max_seq_length if settings.generates else 0,
    )
    tokens = max(length, min(settings.chunk_tokens, settings.chunk_size * length))
    states = 8 * hidden + 3 * width
    layer = states + (0 if fused_attention else 2 * heads * length)
    kept = layers * 4 * hidden + layer if should_recompute(model, settings) else layers * layer
    computing = (10 if is_widened(model) else 2) * states
    head = 5 * int(config.get("vocab_size") or 0) if settings.generates else 0
    trees = 2 + (settings.mode == "unified") + _OPTIMIZER_STATES[settings.optimizer]
    return MemoryEstimate(
        weights=weights,
        training=int(trained_bytes * trees),
        activations=int(tokens * (kept + computing + head) * size),
        available=available,
    )


def advice(found: MemoryEstimate, settings: TrainingSettings, *, quantized: bool) -> list[str | Option]:
    """What would make a run fit that does not, the cheapest in quality and time first."""
    if found.fits:
        return []
    options: list[str | Option] = []
    if found.activations > found.peak / 4:
        if not settings.grad_checkpoint:
            options.append(Option("grad_checkpoint", True))
        if settings.chunk_tokens > settings.max_seq_length or settings.chunk_size > 1:
            options.append(Option("chunk_tokens", max(256, settings.chunk_tokens // 4)))
        options.append(Option("max_seq_length", max(128, settings.max_seq_length // 2)))
    if settings.fine_tune_type == "full":
        options.append(Option("fine_tune_type", "lora"))
    elif not quantized:
        options.append("a quantised model (grit convert)")
    return options
