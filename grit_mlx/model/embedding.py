"""Embedding texts in batches that fit: what ``GritLM.encode`` stands on.

A window of texts is tokenised, cut into pieces of at most ``max_length`` tokens, sorted by length and computed
batch by batch within a budget of tokens. Memory that runs out halves the budget and goes on.

Shapes: N texts, B batch, L length, E embedding size.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.cache import KVCache
from numpy.typing import NDArray

from grit_mlx.errors import MemoryLimitError, NonFiniteError, Option, TextError
from grit_mlx.model import device
from grit_mlx.model.attention import backbone, document_caches, embedding_caches, split_document_caches
from grit_mlx.model.batching import halve, plan_batches
from grit_mlx.model.numpy_linear import through_numpy
from grit_mlx.model.options import EmbeddingOptions
from grit_mlx.model.pooling import AVERAGING, pool
from grit_mlx.model.prompts import tokenize_texts
from grit_mlx.model.settings import ATTENTION, Settings

__all__ = ["Embedder", "Projection", "TextCaches"]

logger = logging.getLogger("grit_mlx")

# Weight (P, E) and bias (P,) or None of the optional linear map before pooling.
Projection = tuple[mx.array, mx.array | None]

# The keys and values of one text: a cache for each layer.
TextCaches = list[KVCache]


@dataclass(frozen=True)
class _Piece:
    """A sequence to compute: a text, or one chunk of a long one."""

    text: int  # position in the window
    ids: list[int]
    skipped: int  # tokens at its start that are left out of the pool

    @property
    def pooled(self) -> int:
        return len(self.ids) - self.skipped


class Embedder:
    """A loaded model, as something that embeds.

    Args:
        model: mlx-lm's model.
        shape: number of caches of one pass, and the hidden size (``attention.check_both_modes``).
        tokenizer: a Hugging Face tokenizer.
        settings: pooling, attention and normalisation.
        config: the model's ``config.json``.
        projection: the optional linear map before pooling.
    """

    def __init__(
        self,
        model: nn.Module,
        shape: tuple[int, int],
        *,
        tokenizer: Any,
        settings: Settings,
        config: Mapping[str, Any],
        projection: Projection | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.settings = settings
        self._states = backbone(model)
        self._layers, self._hidden = shape
        self._config = {**config, **(config.get("text_config") or {})}
        self._projection = projection

    @property
    def size(self) -> int:
        """E, the length of a vector."""
        return self._hidden if self._projection is None else int(self._projection[0].shape[0])

    def embed(
        self,
        texts: Sequence[str],
        options: EmbeddingOptions,
        *,
        first_index: int = 0,
        progress: Callable[[int], None] | None = None,
    ) -> tuple[NDArray[np.float32], list[TextCaches]]:
        """Vectors of texts that fit into memory together.

        Args:
            texts: at least one.
            options: how.
            first_index: index of the first text among all of the caller's, for messages.
            progress: called with the number of texts done, after each batch.

        Returns:
            ``(N, E)``, and the caches of each text where ``options`` ask for them.

        Raises:
            TextError: a text is empty or has no room beside the instruction.
            NonFiniteError: the model computed NaN or infinity.
            MemoryLimitError: one text alone does not fit into memory.
        """
        if options.max_length is None:
            options = replace(options, max_length=self.settings.max_length)
        pieces = self._pieces(texts, options, first_index)
        lengths = [len(piece.ids) for piece in pieces]
        budget = self._token_budget(max(lengths))
        plan = plan_batches(lengths, token_budget=budget, max_rows=options.batch_size)
        plan.reverse()  # taken from the end

        # A long text is the mean of its chunks, each counting for its tokens: for mean pooling that is the mean
        # over all tokens.
        shares = np.zeros(len(texts))
        for piece in pieces:
            shares[piece.text] += piece.pooled
        vectors = np.zeros((len(texts), self.size), dtype=np.float32)
        caches: list[TextCaches] = [[] for _ in texts] if options.get_cache else []
        done = 0
        with device.wired(), through_numpy():
            while plan:
                batch = [pieces[i] for i in plan[-1]]
                try:
                    computed, kept = self._compute(batch, keep=options.get_cache)
                except (RuntimeError, MemoryError) as error:
                    if not device.is_out_of_memory(error):
                        raise
                    plan = _smaller(plan, lengths)
                    continue
                for row, piece in enumerate(batch):
                    if not np.isfinite(computed[row]).all():
                        raise _not_finite(first_index + piece.text)
                    vectors[piece.text] += computed[row] * (piece.pooled / shares[piece.text])
                    if kept:
                        caches[piece.text] = kept[row]
                done += len(plan.pop())
                device.free_cached_memory()
                if progress is not None:
                    progress(done * len(texts) // len(pieces))
        if self.settings.normalized:
            # The eps of 1e-12 is PyTorch's.
            vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return vectors, caches

    def _pieces(self, texts: Sequence[str], options: EmbeddingOptions, first_index: int) -> list[_Piece]:
        """The sequences to compute: one for each text, or several for long ones that are averaged."""
        assert options.max_length is not None
        average = options.long_texts == "average"
        tokenized = tokenize_texts(
            self.tokenizer,
            texts,
            instruction=options.instruction,
            max_length=None if average else options.max_length,
            add_special_tokens=options.add_special_tokens,
        )
        masked = not options.embed_instruction and self.settings.pooling in AVERAGING
        pieces = []
        for i, (text, tokens) in enumerate(zip(texts, tokenized, strict=True)):
            head, body = tokens.ids[: tokens.instruction_tokens], tokens.ids[tokens.instruction_tokens :]
            room = options.max_length - len(head)
            if not text.strip() or (room > 0 and not body):
                raise TextError(
                    f"Text {first_index + i} is empty. Leave it out, or give it some text.", index=first_index + i
                )
            if room <= 0:
                raise TextError(
                    f"Text {first_index + i} has no room: the instruction takes all {options.max_length} tokens of ",
                    *(Option("max_length"), ". Shorten the instruction or raise ", Option("max_length"), "."),
                    index=first_index + i,
                )
            skipped = len(head) if masked else 0
            pieces += [_Piece(i, head + body[at : at + room], skipped) for at in range(0, len(body), room)]
        if cut := sum(tokens.truncated for tokens in tokenized):
            logger.warning(
                "%d of %d texts were truncated at %d tokens. Raise %s, or average chunks (%s).",
                cut,
                len(texts),
                options.max_length,
                Option("max_length"),
                Option("long_texts", "average"),
                extra={"cut_texts": cut, "cut_at": options.max_length},  # for handlers that add up windows
            )
        return pieces

    def _compute(self, batch: Sequence[_Piece], *, keep: bool) -> tuple[NDArray[np.float32], list[TextCaches]]:
        """Pooled vectors (B, E) of one batch, and the caches of its rows."""
        lengths = np.array([len(piece.ids) for piece in batch])
        positions = np.arange(lengths.max())
        real = positions < lengths[:, None]  # (B, L)
        ids = np.zeros(real.shape, dtype=np.int32)
        ids[real] = np.concatenate([piece.ids for piece in batch])
        pooled = real & (positions >= np.array([piece.skipped for piece in batch])[:, None])

        make_caches = document_caches if keep else embedding_caches
        padding = None if real.all() else mx.array(real)
        causal = ATTENTION[self.settings.attn] == "causal"
        caches: Any = make_caches(self._layers, padding, causal=causal)
        states = self._states(mx.array(ids), cache=caches)  # (B, L, E)
        vectors = pool(states, mx.array(pooled), self.settings.pooling)
        if self._projection is not None:
            # Every pooling is a weighted mean, so this is the official map of each state, at a fraction of the work.
            weight, bias = self._projection
            vectors = vectors @ weight.T
            vectors = vectors if bias is None else vectors + bias
        mx.eval(vectors)
        return np.array(vectors), split_document_caches(caches, lengths.tolist()) if keep else []

    def _token_budget(self, length: int) -> int:
        width = int(self._config.get("intermediate_size") or 4 * self._hidden)
        return device.token_budget(
            hidden=self._hidden,
            intermediate=width * int(self._config.get("num_experts_per_tok") or 1),
            heads=int(self._config.get("num_attention_heads") or 1),
            length=length,
        )


def _smaller(plan: list[list[int]], lengths: Sequence[int]) -> list[list[int]]:
    """What is left to do in batches of half the size, after the last one of ``plan`` did not fit into memory.

    Raises:
        MemoryLimitError: that was one text alone.
    """
    mx.clear_cache()
    failed = plan[-1]
    if len(failed) == 1:
        raise MemoryLimitError(
            f"A text of {lengths[failed[0]]} tokens does not fit into memory. Lower ",
            Option("max_length"),
            ", average chunks (",
            Option("long_texts", "average"),
            "), or use a model with fewer bits.",
        )
    logger.warning("Memory ran out at %d texts at once; going on with half as many.", len(failed))

    def tokens(batch: Sequence[int]) -> int:
        return len(batch) * max(lengths[i] for i in batch)

    limit = tokens(failed) // 2
    return [part for batch in plan for part in (halve(batch) if tokens(batch) > limit else [batch])]


def _not_finite(index: int) -> NonFiniteError:
    return NonFiniteError(
        f"The vector of text {index} holds NaN or infinity: the model's weights are damaged, or overflow their dtype. "
        "Download or convert the model again, or load it with ",
        Option("dtype", "float32"),
        ".",
    )
