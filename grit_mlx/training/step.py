"""One step's losses and gradients: embedding rows through GradCache, generative rows added up chunk by chunk.

Neither depends on how the batch is cut into chunks or shared out among processes; tests hold both to that.

Shapes: B rows of a chunk, L length, E embedding size, V vocabulary, X experts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from grit_mlx.datasets.tokens import TokenizedChat, TokenizedText
from grit_mlx.errors import ArchitectureError
from grit_mlx.model.attention import decoder_of, table_rows
from grit_mlx.model.batching import plan_batches
from grit_mlx.model.passes import pad, pooled_tokens, represent
from grit_mlx.model.pooling import AVERAGING
from grit_mlx.model.settings import Settings
from grit_mlx.model.world import World
from grit_mlx.training import losses
from grit_mlx.training.arrays import number
from grit_mlx.training.data import EmbeddingBatch
from grit_mlx.training.gradcache import Gradients, add_gradients, cached_gradients, vector_jacobian
from grit_mlx.training.router import Routers, expert_sums
from grit_mlx.training.settings import TrainingSettings

__all__ = ["StepResult", "Trainee", "TrainingStep", "plain_head"]

# With mx.compile lengths are rounded up to this: each new shape is compiled anew.
_COMPILED_LENGTHS = 64


class Trainee(nn.Module):
    """A model with what is trained beside its own weights.

    Args:
        model: mlx-lm's model.
        projection: the optional linear map that vectors go through.
        learn_temperature: whether the temperature is a parameter, as the logarithm of its change.
    """

    def __init__(
        self, model: nn.Module, *, projection: nn.Linear | None = None, learn_temperature: bool = False
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.model = model
        if projection is not None:
            self.projection = projection
            self.projection.freeze()
        if learn_temperature:
            self.temperature_change = mx.array(0.0)

    def beside(self) -> dict[str, mx.array]:
        """What is trained beside the model's own weights, by name."""
        return {name: self[name] for name in ("temperature_change",) if name in self}

    def temperature(self, start: float) -> mx.array | float:
        """What similarities are divided by now."""
        return start * mx.exp(self.temperature_change) if "temperature_change" in self else start


@dataclass(frozen=True)
class StepResult:
    """Losses of a step, over the batch of all processes.

    Attributes:
        losses: ``embedding``, ``generative``, ``router``, ``distillation``, before their factors; and ``total``.
        gradients: of the total, summed over all processes.
        tokens: computed for this step, without padding, in all processes.
    """

    losses: dict[str, float]
    gradients: Gradients
    tokens: int


@dataclass(frozen=True)
class _Chunk:
    """Rows that go through the model together.

    Attributes:
        rows: their positions in the batch of this process.
        ids: ``(B, L)``.
        real: ``(B, L)`` boolean, false on padding.
        marked: ``(B, L)``: tokens to be pooled (boolean), or labels.
        before: ``(N,)``: positions in the flat batch whose next token is learned; None for rows that are embedded.
        seed: of the dropout, so that it is the same in both passes of GradCache.
    """

    rows: list[int]
    ids: mx.array
    real: mx.array
    marked: mx.array
    seed: int
    before: mx.array | None = None


class TrainingStep:
    """Computes gradients of batches for one run.

    Args:
        trainee: what is trained.
        training: losses and chunks.
        settings: pooling, attention, normalisation.
        world: the processes of the run.
        routers: what notes router logits, if there is a load-balancing loss.
        router_factor: the weight of that loss.
        compiled: use ``mx.compile``.
    """

    def __init__(
        self,
        trainee: Trainee,
        training: TrainingSettings,
        settings: Settings,
        *,
        world: World,
        routers: Routers | None = None,
        router_factor: float = 0.0,
        compiled: bool = False,
    ) -> None:
        self.trainee = trainee
        self.training = training
        self.settings = settings
        self._world = world
        self._routers = routers
        self._router_factor = router_factor
        self._rows = table_rows(trainee.model)
        self._length_step = _COMPILED_LENGTHS if compiled else 1
        # Their number differs from chunk to chunk, and mx.compile would compile each anew.
        self._head = None if compiled or not training.generates else plain_head(trainee.model)
        state = [trainee.state, mx.random.state]
        wrap: Callable[..., Any] = partial(mx.compile, inputs=state, outputs=state) if compiled else _same
        self._represent = wrap(self._representations)
        self._pull_back = wrap(vector_jacobian(trainee, lambda arrays: self._representations(*arrays)))
        self._next_tokens = wrap(nn.value_and_grad(trainee, self._generative_chunk))

    # Embedding

    def embedding(self, batch: EmbeddingBatch, *, seed: int) -> StepResult:
        """The embedding losses, and their gradient."""
        chunks = self._embedding_chunks(batch, seed)
        loss = self._differentiated(partial(self._embedding_losses, batch), chunks)
        (values, change), gradients = cached_gradients(chunks, self._forward, self._backward, loss)
        if change is not None:
            # Every process computes the whole loss, so each has this gradient once.
            gradients["temperature_change"] = change / self._world.size
        return StepResult(_numbers(values), gradients, _tokens([*batch.queries, *batch.passages]))

    def embedding_loss(self, batch: EmbeddingBatch) -> dict[str, float]:
        """The embedding losses alone."""
        chunks = self._embedding_chunks(batch, seed=0)
        representations = []
        for chunk in chunks:
            representations.append(self._forward(chunk))
            mx.eval(representations[-1])
        rows = self._assembled(representations, chunks)
        return _numbers(self._embedding_losses(batch, self.trainee.beside(), rows)[1])

    def _embedding_chunks(self, batch: EmbeddingBatch, seed: int) -> list[_Chunk]:
        # Queries and passages are all the same to the model: sorted together they leave the least padding.
        texts = [*self._world.share(batch.queries), *self._world.share(batch.passages)]
        averaging = self.settings.pooling in AVERAGING and not self.settings.pool_prompt
        chunks = []
        for rows in self._plan(texts):
            ids, real = pad([texts[i].ids for i in rows], multiple=self._length_step, rows=self._rows)
            pooled = pooled_tokens(real, [texts[i].skipped if averaging else 0 for i in rows])
            chunks.append(_Chunk(rows, mx.array(ids), mx.array(real), mx.array(pooled), self._seed(seed, rows)))
        return chunks

    def _forward(self, chunk: _Chunk) -> mx.array:
        mx.random.seed(chunk.seed)
        return self._represent(chunk.ids, chunk.real, chunk.marked)  # type: ignore[no-any-return]

    def _backward(self, chunk: _Chunk, cotangent: mx.array) -> Gradients:
        mx.random.seed(chunk.seed)
        return self._pull_back((chunk.ids, chunk.real, chunk.marked), cotangent)  # type: ignore[no-any-return]

    def _representations(self, ids: mx.array, real: mx.array, pooled: mx.array) -> mx.array:
        """``(B, E)``, of length 1 where the model is used so."""
        trainee = self.trainee
        vectors, _ = represent(
            trainee.model, ids, real, pooled, settings=self.settings, projection=trainee.get("projection")
        )
        return losses.normalize(vectors) if self.settings.normalized else vectors

    def _differentiated(self, loss: Callable[..., Any], chunks: Sequence[_Chunk]) -> Callable[..., Any]:
        """``loss`` for ``cached_gradients``: its values, and its gradient for each chunk of this process."""

        def compute(representations: list[mx.array]) -> Any:
            parameters = self.trainee.beside()
            everything = self._assembled(representations, chunks)
            function = mx.value_and_grad(loss, argnums=(0, 1))
            (_, values), (for_parameters, for_rows) = function(parameters, everything)
            mx.eval(values, for_parameters, for_rows)
            own: mx.array = mx.concatenate([self._world.share(for_rows[key]) for key in ("query", "passage")])
            cotangents = [own[mx.array(chunk.rows)] for chunk in chunks]
            return (values, for_parameters.get("temperature_change")), cotangents

        return compute

    def _assembled(self, representations: Sequence[mx.array], chunks: Sequence[_Chunk]) -> dict[str, mx.array]:
        """Chunks of this process as queries ``(Q, E)`` and passages ``(Q*G, E)`` of all processes."""
        order = np.argsort(np.concatenate([chunk.rows for chunk in chunks]))
        rows = mx.concatenate(list(representations))[mx.array(order)]
        queries = len(order) // (1 + self.training.group_size)
        return {"query": self._world.gather(rows[:queries]), "passage": self._world.gather(rows[queries:])}

    def _embedding_losses(
        self, batch: EmbeddingBatch, parameters: Mapping[str, mx.array], rows: Mapping[str, mx.array]
    ) -> tuple[mx.array, dict[str, mx.array]]:
        training = self.training
        temperature: Any = training.temperature
        if "temperature_change" in parameters:
            temperature = temperature * mx.exp(parameters["temperature_change"])
        options: dict[str, Any] = {
            "temperature": temperature,
            "symmetric": training.symmetric,
            "identities": mx.array(batch.identities) if training.drop_duplicates else None,
            "answered": _answered(batch) if training.drop_duplicates else None,
            "false_negative_margin": training.false_negative_margin,
        }
        query, passage = rows["query"], rows["passage"]
        values = {"embedding": losses.contrastive_loss(query, passage, **options)}
        if training.matryoshka_dims:
            values["matryoshka"] = losses.matryoshka_loss(query, passage, training.matryoshka_dims, **options)
        if training.distillation != "none" and batch.query_vectors.size:
            student = mx.concatenate([query, passage])
            teacher = mx.array(np.concatenate([batch.query_vectors, batch.passage_vectors]))
            values["distillation"] = _DISTILLATION[training.distillation](student, teacher)
        factors = {"distillation": training.distillation_factor}
        weighted = (value * factors.get(name, training.embedding_factor) for name, value in values.items())
        total = sum(weighted, mx.array(0.0))
        return total, {**values, "total": total}

    # Generating

    def generative(self, batch: Sequence[TokenizedChat], *, seed: int) -> StepResult:
        """The generative loss with the router's, and its gradient."""
        values, gradients = self._accumulated(self._next_tokens, batch, seed)
        assert gradients is not None
        return StepResult(values, gradients, _tokens(batch))

    def generative_loss(self, batch: Sequence[TokenizedChat]) -> dict[str, float]:
        """The generative losses alone."""
        return self._accumulated(lambda *arrays: (self._generative_chunk(*arrays), None), batch, seed=0)[0]

    def _accumulated(
        self, compute: Callable[..., Any], batch: Sequence[TokenizedChat], seed: int
    ) -> tuple[dict[str, float], Gradients | None]:
        """The sum over all chunks of what ``compute`` returns: losses, and perhaps gradients."""
        shares, scale = self._expert_shares(batch, seed), self._scale(batch)
        gradients: Gradients | None = None
        values: dict[str, mx.array] = {}
        for chunk in self._generative_chunks(batch, seed):
            mx.random.seed(chunk.seed)
            (_, parts), part = compute(chunk.ids, chunk.real, chunk.marked, chunk.before, scale, shares)
            gradients = gradients if part is None else add_gradients(gradients, part)
            values = {name: values.get(name, mx.array(0.0)) + value for name, value in parts.items()}
            mx.eval(values)
        return _numbers(self._world.sum(values)), gradients

    def _generative_chunks(self, batch: Sequence[TokenizedChat], seed: int) -> list[_Chunk]:
        chats = self._world.share(batch)
        chunks = []
        for rows in self._plan(chats):
            ids, real = pad([chats[i].ids for i in rows], multiple=self._length_step, rows=self._rows)
            learned, _ = pad([chats[i].learned for i in rows], multiple=self._length_step)
            labels = np.where(learned, ids, losses.IGNORED)
            before = np.flatnonzero(np.pad(labels[:, 1:] != losses.IGNORED, ((0, 0), (0, 1))))
            arrays = mx.array(ids), mx.array(real), mx.array(labels)
            chunks.append(_Chunk(rows, *arrays, self._seed(seed + 1, rows), mx.array(before)))
        return chunks

    def _scale(self, batch: Sequence[TokenizedChat]) -> mx.array:
        """What the sum over tokens is multiplied by to become the loss of the whole batch."""
        learned = sum(int(chat.learned[1:].sum()) for chat in batch)
        return mx.array(1.0 / (len(batch) if self.training.generative_loss == "token" else learned))

    def _expert_shares(self, batch: Sequence[TokenizedChat], seed: int) -> dict[str, mx.array]:
        """How often each expert is chosen in the whole batch, which the balance loss of every part needs.

        One more pass without gradient, only for mixtures of experts.
        """
        if self._routers is None:
            return {}
        counts = mx.array(0.0)
        for chunk in self._generative_chunks(batch, seed):
            mx.random.seed(chunk.seed)  # the dropout of the pass that learns
            with self._routers.noting() as logits:
                mx.eval(self.trainee.model(chunk.ids))
            counts = counts + expert_sums(logits, chunk.real, self._routers.experts_per_token)[1]
            mx.eval(counts)
        tokens = mx.array(float(_tokens(batch) * len(logits)))
        return {"share": self._world.sum({"counts": counts})["counts"] / tokens, "tokens": tokens}

    def _generative_chunk(
        self,
        ids: mx.array,
        real: mx.array,
        labels: mx.array,
        before: mx.array | None,
        scale: mx.array,
        shares: Mapping[str, mx.array],
    ) -> tuple[mx.array, dict[str, mx.array]]:
        factors = {"generative": self.training.generative_factor, "router": self._router_factor}
        noting: Any = nullcontext() if self._routers is None else self._routers.noting()
        with noting as logits:
            values = {"generative": self._next_token_sum(ids, labels, before) * scale}
        if self._routers is not None:
            probability = expert_sums(logits, real, self._routers.experts_per_token)[0] / shares["tokens"]
            values["router"] = losses.balance_loss(probability, shares["share"])
        total = sum((value * factors[name] for name, value in values.items()), mx.array(0.0))
        return total, {**values, "total": total}

    def _next_token_sum(self, ids: mx.array, labels: mx.array, before: mx.array | None) -> mx.array:
        """Sum of the cross entropy of the learned tokens.

        The head is most of a small model's work, and most tokens of a prompt are not learned: where the head is
        known, it is computed for the others only.
        """
        if self._head is None or before is None:
            return losses.next_token_sum(self.trainee.model(ids), labels)
        states = decoder_of(self.trainee.model)(ids).reshape(ids.size, -1)[before]  # (N, E)
        logits = self._head(states).astype(mx.float32)
        return nn.losses.cross_entropy(logits, labels.reshape(-1)[before + 1], reduction="sum")

    # Chunks

    def _plan(self, sequences: Sequence[TokenizedText | TokenizedChat]) -> list[list[int]]:
        rounded = [-(-len(one.ids) // self._length_step) * self._length_step for one in sequences]
        return plan_batches(rounded, token_budget=self.training.chunk_tokens, max_rows=self.training.chunk_size)

    def _seed(self, seed: int, rows: Sequence[int]) -> int:
        return int(np.random.default_rng([seed, self._world.rank, rows[0]]).integers(1 << 62))


def plain_head(model: Any) -> Callable[[mx.array], mx.array] | None:
    """The map from normed hidden states to logits, if it is one matrix and nothing else; proven on a few tokens.

    Some architectures scale or cap what the matrix gives, and have no name for the whole.
    """
    try:
        body: Any = decoder_of(model)
    except ArchitectureError:
        return None
    head = getattr(model, "lm_head", None) or getattr(getattr(body, "embed_tokens", None), "as_linear", None)
    if head is None:
        return None
    ids = mx.array([[0, 1, 2]])
    same = mx.allclose(head(body(ids)), model(ids), rtol=1e-4, atol=1e-4)
    return head if same.item() else None


_DISTILLATION = {"cosine": losses.cosine_distillation, "similarity": losses.similarity_distillation}


def _same(function: Any) -> Any:
    return function


def _tokens(sequences: Sequence[TokenizedText | TokenizedChat]) -> int:
    return sum(len(sequence.ids) for sequence in sequences)


def _numbers(values: Mapping[str, mx.array]) -> dict[str, float]:
    return {name: number(value) for name, value in values.items()}


def merged(parts: Sequence[StepResult]) -> StepResult:
    """The results of both kinds of loss as one."""
    gradients: Gradients | None = None
    values: dict[str, float] = {}
    for part in parts:
        gradients = add_gradients(gradients, part.gradients)
        values |= {**part.losses, "total": values.get("total", 0.0) + part.losses["total"]}
    return StepResult(values, gradients or {}, sum(part.tokens for part in parts))


def _answered(batch: EmbeddingBatch) -> tuple[mx.array, mx.array] | None:
    return (mx.array(batch.asked), mx.array(batch.answered)) if len(batch.asked) else None
