"""Embedding texts in batches that fit into memory.

A window of texts is tokenised, cut into pieces of at most ``max_length`` tokens, sorted by length and computed
batch by batch within a budget of tokens. If memory runs out the budget is halved.

Shapes: N texts, B batch, L length, E embedding size.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from grit_mlx.errors import ArgumentError, MemoryLimitError, Option, TextError
from grit_mlx.model import device, threads, tuning, widening
from grit_mlx.model.attention import decoder_of, not_finite, table_rows
from grit_mlx.model.batching import halve, plan_batches
from grit_mlx.model.caches import TextCache, split_rows
from grit_mlx.model.checkpoint import decoder_config
from grit_mlx.model.loading import LoadedModel
from grit_mlx.model.numpy_linear import through_numpy
from grit_mlx.model.options import EmbeddingOptions
from grit_mlx.model.passes import pad, pooled_tokens, represent
from grit_mlx.model.pooling import AVERAGING
from grit_mlx.model.prompts import tokenize_texts, unknown_token
from grit_mlx.model.settings import Settings
from grit_mlx.model.team import Team
from grit_mlx.model.widening import watched

__all__ = ["Embedder", "Piece", "Step"]

logger = logging.getLogger("grit_mlx")

# Vectors (B, E) of a batch, and the caches of its rows if they are kept.
_Computed = tuple[NDArray[np.float32], list[TextCache]]


@dataclass(frozen=True)
class Piece:
    """A sequence to compute: a text, or one chunk of a long one."""

    text: int  # position in the window
    ids: list[int]
    skipped: int  # tokens at its start that are left out of the pool

    @property
    def pooled(self) -> int:
        """How many of its tokens the vector is made of."""
        return len(self.ids) - self.skipped


@dataclass(frozen=True)
class Step:
    """A batch that was computed.

    Attributes:
        pieces: how many sequences.
        tokens: how many tokens, padding included.
    """

    pieces: int
    tokens: int


class Embedder:
    """A model that was loaded for embedding, as something that embeds."""

    def __init__(self, loaded: LoadedModel) -> None:
        assert loaded.hidden_size is not None and loaded.embedding_size is not None
        self.size = loaded.embedding_size
        self._hidden = loaded.hidden_size
        self.settings = loaded.settings
        self._loaded = loaded
        self._team = loaded.team
        self._tokenizer = loaded.tokenizer._tokenizer
        self._rows = table_rows(loaded.model)
        self.fastest = tuning.kept(loaded.config)
        decoder: Any = decoder_of(loaded.model)
        self._widened = widening.size(decoder)

    def embed(
        self,
        texts: Sequence[str],
        options: EmbeddingOptions,
        *,
        first_index: int = 0,
        progress: Callable[[float], None] | None = None,
    ) -> tuple[NDArray[np.float32], list[TextCache]]:
        """Vectors of texts that fit into memory together.

        Args:
            texts: at least one.
            options: how; ``max_length`` must be set.
            first_index: index of the first text among all of the caller's, for messages.
            progress: called with the number of texts done, after each batch; where layers take long, with a part of the
                batch as well.

        Returns:
            ``(N, E)``, or as many columns as ``options`` keep, and the cache of each text if they ask for them.

        Raises:
            TextError: a text is empty or has no room beside the instruction.
            NonFiniteError: the model computed NaN or infinity.
            MemoryLimitError: one text alone does not fit into memory.
        """
        pieces = self.pieces(texts, options, first_index)
        done = 0

        def report(within: float) -> None:
            if progress is not None:
                progress((done + within) * len(texts) / len(pieces))

        steps = self.steps(pieces, len(texts), options, first_index=first_index, within=report)
        with device.wired():
            while True:
                try:
                    step = next(steps)
                except StopIteration as end:
                    return end.value  # type: ignore[no-any-return]
                done += step.pieces
                if progress is not None:
                    progress(done * len(texts) // len(pieces))

    def steps(
        self,
        pieces: Sequence[Piece],
        count: int,
        options: EmbeddingOptions,
        *,
        first_index: int = 0,
        limit: Callable[[], int | None] | None = None,
        within: Callable[[float], None] | None = None,
    ) -> Generator[Step, None, tuple[NDArray[np.float32], list[TextCache]]]:
        """As ``embed``, a batch at a time, for programs that do something else between two batches.

        Args:
            pieces: from ``pieces``, of any number of calls.
            count: N, the number of texts that they belong to.
            options: how; only whether caches are kept, and the rows of a batch.
            first_index: see ``embed``.
            limit: asked before each batch for the most tokens that it may have, None for what fits into memory. A piece
                that is longer is a batch of its own.
            within: called within batches that take long, with how many of the batch's pieces the work done stands for.
        """
        lengths = [len(piece.ids) for piece in pieces]
        budget = self.token_budget(max(lengths), options.batch_tokens)
        plan = plan_batches(lengths, token_budget=budget, max_rows=options.batch_size)
        plan.reverse()  # taken from the end

        # A long text is the mean of its chunks, each counting for its tokens: for mean pooling that is the mean
        # over all tokens.
        shares = np.zeros(count)
        for piece in pieces:
            shares[piece.text] += piece.pooled
        vectors = np.zeros((count, self.size), dtype=np.float32)
        caches: list[TextCache] = [[] for _ in range(count)] if options.get_cache else []
        while plan:
            if limit is not None:
                plan[-1:] = _limited(plan[-1], lengths, limit())
            abreast = 1 if self._team is None or options.get_cache else self._team.abreast
            batches = [[pieces[i] for i in batch] for batch in plan[: -1 - abreast : -1]]
            try:
                with self._watched(len(batches[0]), within):
                    results = threads.run(partial(self._computed, batches, keep=options.get_cache))
            except (RuntimeError, MemoryError) as error:
                if not device.is_out_of_memory(error):
                    raise
                plan = _smaller(plan, lengths)
                continue
            for batch, (computed, kept) in zip(batches, results, strict=True):
                for row, piece in enumerate(batch):
                    if not np.isfinite(computed[row]).all():
                        raise not_finite(f"The vector of text {first_index + piece.text} holds NaN or infinity")
                    vectors[piece.text] += computed[row] * (piece.pooled / shares[piece.text])
                    if kept:
                        caches[piece.text] = kept[row]
                plan.pop()
                yield Step(len(batch), len(batch) * max(len(piece.ids) for piece in batch))
            device.free_cached_memory()
        vectors = vectors[:, : options.truncate_dim]
        if self.settings.normalized if options.normalized is None else options.normalized:
            # The eps of 1e-12 is PyTorch's.
            vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return vectors, caches

    @contextmanager
    def _watched(self, pieces: int, within: Callable[[float], None] | None) -> Iterator[None]:
        """Report how far a batch is, where its weights are widened layer by layer."""
        if within is None or not self._widened:
            yield
            return
        done = 0

        def advance(size: int) -> None:
            nonlocal done
            done += size
            within(pieces * min(1.0, done / self._widened))

        with watched(advance):
            yield

    def pieces(self, texts: Sequence[str], options: EmbeddingOptions, first_index: int = 0) -> list[Piece]:
        """The sequences to compute: one for each text, or several for long ones that are averaged.

        Raises:
            TextError: as ``embed``.
        """
        assert options.max_length is not None
        average = options.long_texts == "average"
        tokenized = tokenize_texts(
            self._tokenizer,
            texts,
            instruction=options.instruction or "",
            max_length=None if average else options.max_length,
            add_special_tokens=options.add_special_tokens,
            joint=self.settings.prompt_format == "plain",
        )
        masked = not (options.embed_instruction or self.settings.pool_prompt) and self.settings.pooling in AVERAGING
        pieces = []
        for i, (text, tokens) in enumerate(zip(texts, tokenized, strict=True)):
            head, body = tokens.ids[: tokens.instruction_tokens], tokens.ids[tokens.instruction_tokens :]
            room = options.max_length - len(head)
            skipped = len(head) if masked else 0
            # Blanks are embedded as in the official code: they have tokens. Without any its mean is 0/0.
            if room > 0 and (not text or skipped == len(tokens.ids)):
                what = "has no tokens" if text else "is empty"
                raise TextError(
                    f"Text {first_index + i} {what}. Leave it out, or give it some text.", index=first_index + i
                )
            if unknown := unknown_token(self._tokenizer, tokens.ids):
                raise TextError(f"Text {first_index + i} {unknown}.", index=first_index + i)
            if room <= 0:
                raise TextError(
                    f"Text {first_index + i} has no room: the instruction takes all {options.max_length} tokens of ",
                    *(Option("max_length"), ". Shorten the instruction or raise ", Option("max_length"), "."),
                    index=first_index + i,
                )
            pieces += [Piece(i, head + body[at : at + room], skipped) for at in range(0, max(len(body), 1), room)]
        if cut := sum(tokens.truncated for tokens in tokenized):
            if options.long_texts == "refuse":
                first = first_index + next(i for i, tokens in enumerate(tokenized) if tokens.truncated)
                raise TextError(
                    f"Text {first} is longer than the {options.max_length} tokens that are read of one. Shorten it.",
                    index=first,
                )
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

    def _computed(self, batches: Sequence[Sequence[Piece]], *, keep: bool) -> list[_Computed]:
        """What ``_compute`` gives for each batch; a team computes them at the same time."""
        team = self._team
        if team is not None and team.split is not None and keep:
            raise ArgumentError("A model that is split among processes keeps no caches of texts.")
        if team is None or keep:
            return [self._compute(batch, keep=keep) for batch in batches]
        sent = [[(piece.ids, piece.skipped) for piece in batch] for batch in batches]
        with team.doing("embed", batches=sent, settings=asdict(self.settings)):
            return self._with_others(batches, team)

    def follow(self, batches: Sequence[Sequence[tuple[list[int], int]]], settings: Mapping[str, Any]) -> None:
        """Compute what this process's leader computes, or another part of it.

        Args:
            batches: of each sequence its tokens, and how many of them are left out of the pool.
            settings: the leader's.
        """
        assert self._team is not None
        self.settings = Settings(**settings)
        try:
            self._with_others([[Piece(0, ids, skipped) for ids, skipped in batch] for batch in batches], self._team)
        except MemoryError:
            if self._team.split is not None:
                raise
            # The leader knows as well, and tells smaller batches.

    def layers(self, ids: Sequence[int], *, settings: Settings) -> TextCache:
        """Keys and values of one text, or of this process's part of the model."""
        [kept] = self._compute([Piece(0, list(ids), 0)], keep=True, settings=settings)[1]
        return kept

    def _with_others(self, batches: Sequence[Sequence[Piece]], team: Team) -> list[_Computed]:
        if team.split is not None:
            return [self._compute(batch, keep=False) for batch in batches]
        rank, rows = team.world.rank, max(map(len, batches))
        own = np.zeros((rows + 1, self.size), dtype=np.float32)  # the last row says whether memory ran out
        if rank < len(batches):
            try:
                own[: len(batches[rank])], _ = self._compute(batches[rank], keep=False)
            except (RuntimeError, MemoryError) as error:
                if not device.is_out_of_memory(error):
                    raise
                own[rows] = 1
        parts = team.world.arrays_from_all(own)
        if parts[:, rows].any():
            raise MemoryError
        return [(part[: len(batch)], []) for part, batch in zip(parts, batches, strict=False)]

    def _compute(self, batch: Sequence[Piece], *, keep: bool, settings: Settings | None = None) -> _Computed:
        """Pooled vectors ``(B, E)`` of one batch, and the caches of its rows; with the own settings if not given."""
        with device.wired(), through_numpy():
            return self._pass(batch, settings or self.settings, keep=keep)

    def _pass(self, batch: Sequence[Piece], settings: Settings, *, keep: bool) -> _Computed:
        ids, real = pad([piece.ids for piece in batch], rows=self._rows)
        vectors, caches = represent(
            self._loaded.model,
            mx.array(ids),
            None if real.all() else mx.array(real),
            mx.array(pooled_tokens(real, [piece.skipped for piece in batch])),
            settings=settings,
            projection=self._loaded.projection,
            keep=keep,
        )
        mx.eval(vectors)
        return np.array(vectors), split_rows(caches, [len(piece.ids) for piece in batch]) if keep else []

    def token_budget(self, length: int, fastest: int | None = None) -> int:
        """Maximum number of tokens of a batch, padding included.

        Args:
            length: tokens of the longest text.
            fastest: beyond how many tokens nothing gets faster; None for what was measured here, else what is usual.
        """
        config = decoder_config(self._loaded.config)
        width = int(config.get("intermediate_size") or 4 * self._hidden)
        return device.token_budget(
            hidden=self._hidden,
            intermediate=width * int(config.get("num_experts_per_tok") or 1),
            heads=int(config.get("num_attention_heads") or 1),
            length=length,
            fastest=fastest or self.fastest,
        )


def _limited(batch: list[int], lengths: Sequence[int], limit: int | None) -> list[list[int]]:
    """A batch as two, of which the last one is within a limit of tokens; or as it is."""
    rows = len(batch) if limit is None else max(1, limit // max(lengths[i] for i in batch))
    return [part for part in (batch[rows:], batch[:rows]) if part]


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
    logger.warning("Memory ran out at %d texts per batch; continuing with half as many.", len(failed))

    def tokens(batch: Sequence[int]) -> int:
        return len(batch) * max(lengths[i] for i in batch)

    limit = tokens(failed) // 2
    return [part for batch in plan for part in (halve(batch) if tokens(batch) > limit else [batch])]
