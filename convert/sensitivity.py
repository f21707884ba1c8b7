"""Bits where they matter: how much each module's quantisation changes the outputs, and a budget spent on that.

One pass over the model, one layer in memory at a time. When the pass comes to a layer, it computes it once as it is
and once for each of its modules with that module alone quantised. What each of these trials puts out travels on
through the remaining layers as further rows of the batch. At the end every trial has its own vectors and its own
next-token distributions: the effect of one module on the model's outputs, measured and not modelled.

Trials are made at few bits, where effects stand out of the noise. A quantiser of b bits has 2^b - 1 steps, and both
measures of drift grow with the variance of its error, the square of the step; so a cost at other bits follows from
the measured one by ``noise``. docs/convert.md shows how well that holds.

Shapes: B texts, L length, E hidden size, V vocabulary, T trials.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from grit_mlx.convert.options import MODES
from grit_mlx.convert.plan import ConversionPlan, Weight
from grit_mlx.convert.quantization import ROUTERS, Quantization, quantizable
from grit_mlx.convert.streaming import Stream
from grit_mlx.convert.walking import Values, Wrapper, path_of
from grit_mlx.errors import ArchitectureError, ArgumentError
from grit_mlx.evaluation.drift import TEXTS
from grit_mlx.model.attention import decoder_of, embedding_caches
from grit_mlx.model.checkpoint import decoder_config

__all__ = ["Budget", "Costs", "allocate", "measure", "spend"]

# What a module may get, fewest first.
BITS = tuple(sorted(MODES["affine"][0]))
# Bits of the trials.
TRIAL_BITS = 3
# Maximum number of tokens of a trial; fewer if the trials' states would not fit.
_TRIAL_TOKENS = 512
_STATE_BYTES = 1 << 30
_LENGTH = 32
# Fraction of the memory that the weights may take: the rest is for keys, values and the system.
_WEIGHTS_FRACTION = 0.75


@dataclass(frozen=True)
class Budget:
    """How large the weights may be.

    Attributes:
        bits_per_weight: mean over the model, including scales; None for as many as fit into ``memory``.
        memory: of the machine that the model is to run on, in bytes.
        group_size: of every quantised module.
    """

    bits_per_weight: float | None
    memory: int | None
    group_size: int

    def nbytes(self, parameters: int) -> int:
        """Maximum number of bytes of all weights."""
        if self.bits_per_weight is not None:
            return int(self.bits_per_weight * parameters / 8)
        assert self.memory is not None
        return int(_WEIGHTS_FRACTION * self.memory)


@dataclass(frozen=True)
class Costs:
    """What quantising one module alone to ``TRIAL_BITS`` does.

    Attributes:
        cosine: mean of 1 - cosine between its vectors and the unquantised model's.
        kl: mean divergence of the next token's distribution, in nats.
    """

    cosine: float
    kl: float


def allocate(
    stream: Stream,
    budget: Budget,
    tokenize: Callable[[str], list[int]],
    *,
    texts: Sequence[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Quantization]:
    """Measure a model and spend a budget on it.

    Args:
        stream: the weights, unquantised; the values of its model's weights are lost.
        budget: how large the weights may be.
        tokenize: the model's tokenizer.
        texts: to measure with; None for built-in ones.
        progress: called with layers done and layers in all.

    Raises:
        ArgumentError: the budget is too small even for the fewest bits everywhere.
        ArchitectureError: the model's parts are not where those of a decoder are.
    """
    trial = Quantization(TRIAL_BITS, budget.group_size)
    modules = _modules(stream, trial)
    costs = measure(stream, modules, tokenize, trial, texts=texts, progress=progress)
    return spend(stream.plan, modules, costs, budget)


# Spending


def spend(
    plan: ConversionPlan, modules: Mapping[str, Weight], costs: Mapping[str, Costs], budget: Budget
) -> dict[str, Quantization]:
    """Give every module the fewest bits, then more to whichever gains most for its bytes, as long as they last.

    Both measures count equally, each as a share of its sum over the modules.

    Raises:
        ArgumentError: the fewest bits everywhere are too many already.
    """
    share = _shares(costs)
    options = [Quantization(bits, budget.group_size) for bits in BITS]
    level = dict.fromkeys(modules, 0)

    def size(name: str, step: int) -> float:
        weight = modules[name]
        return weight.rows * weight.width * options[step].bits_per_weight(weight.dtype) / 8

    packed = {weight.name for weight in modules.values()}
    rest = sum(w.rows * w.width * w.dtype.size for w in plan.weights if w.name not in packed)
    left = budget.nbytes(plan.parameters) - rest - sum(size(name, 0) for name in modules)
    if left < 0:
        least = budget.nbytes(plan.parameters) - left
        raise ArgumentError(
            f"The model takes {least / 1e9:.3g} GB ({8 * least / plan.parameters:.2f} bits a weight) at the fewest "
            f"bits and the budget is {budget.nbytes(plan.parameters) / 1e9:.3g} GB. Allow more."
        )

    def gain(name: str) -> float:
        """Drift saved by the next step, for each byte that it costs."""
        now, then = options[level[name]].bits, options[level[name] + 1].bits
        saved = share[name] * (noise(now) - noise(then))
        return saved / (size(name, level[name] + 1) - size(name, level[name]))

    queue = [(-gain(name), name) for name in modules]
    heapq.heapify(queue)
    while queue:
        _, name = heapq.heappop(queue)
        step = size(name, level[name] + 1) - size(name, level[name])
        if step > left:
            continue  # a smaller module may still fit
        left -= step
        level[name] += 1
        if level[name] + 1 < len(options):
            heapq.heappush(queue, (-gain(name), name))
    return {name: options[step] for name, step in level.items()}


def noise(bits: int) -> float:
    """Variance of the error of an affine quantiser, with that of ``TRIAL_BITS`` as 1."""
    step: float = (2**TRIAL_BITS - 1) / (2**bits - 1)
    return step * step


def _shares(costs: Mapping[str, Costs]) -> dict[str, float]:
    cosine = sum(cost.cosine for cost in costs.values()) or 1.0
    kl = sum(cost.kl for cost in costs.values()) or 1.0
    return {name: cost.cosine / cosine + cost.kl / kl for name, cost in costs.items()}


def _modules(stream: Stream, trial: Quantization) -> dict[str, Weight]:
    """The weights that get bits, by their module's path: all that can be quantised but routers."""
    weights = {weight.module: weight for weight in stream.plan.weights if weight.name.endswith(".weight")}
    return {
        path: weights[path]
        for path, module in stream.model.named_modules()
        if path in weights and path.rpartition(".")[2] not in ROUTERS and quantizable(module, trial)
    }


# Measuring


def measure(
    stream: Stream,
    modules: Mapping[str, Weight],
    tokenize: Callable[[str], list[int]],
    trial: Quantization,
    *,
    texts: Sequence[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Costs]:
    """The effect of each module on the model's outputs; see the module's docstring.

    Raises:
        ArchitectureError: the model's parts are not where those of a decoder are.
    """
    model, values = stream.model, Values(stream)
    body: Any = decoder_of(model)
    if not all(hasattr(body, part) for part in ("embed_tokens", "layers")):
        kind = stream.plan.config["model_type"]
        raise ArchitectureError(f"The architecture {kind!r} cannot be measured layer by layer. Use a recipe instead.")
    table, layers = body.embed_tokens, list(body.layers)
    table_path, *paths = (path_of(model, part) for part in (table, *layers))
    own = [[name for name in modules if name.startswith(path + ".")] for path in paths]
    trials = [name for name in (table_path,) if name in modules] + [name for names in own for name in names]
    tokens = _token_rows(
        tokenize, TEXTS if texts is None else texts, _affordable(stream.plan, len(trials), values.dtype)
    )
    for norm in (name for name in values.weights if not _belongs(name, [table_path, "lm_head", *paths])):
        model.load_weights([(norm, values(norm))], strict=False)
    steps = count(1)

    def done() -> None:
        if progress is not None:
            progress(next(steps), 2 * len(layers))

    def states(causal: bool) -> list[mx.array]:
        """Of the unquantised model and of each trial, each ``(B, L, E)``."""
        body.embed_tokens = _TrialTable(table, table_path, values, trial if table_path in modules else None)
        body.layers = [
            _TrialLayer(layer, path, names, values, trial, len(tokens), done)
            for layer, path, names in zip(layers, paths, own, strict=True)
        ]
        batch = body(tokens, cache=embedding_caches(len(layers), causal=causal))  # ((1 + T) * B, L, E)
        mx.eval(batch)
        return list(mx.split(batch, len(trials) + 1))

    reference, *others = (_unit(part.astype(mx.float32).mean(axis=1)) for part in states(causal=False))  # each (B, E)
    cosines = [float(mx.mean(1 - (reference * part).sum(axis=1)).item()) for part in others]  # type: ignore[arg-type]
    plain, *others = states(causal=True)
    body.embed_tokens, body.layers = table, layers
    predict = _Head(values, table_path, trial)
    predicted = predict(plain)
    costs = {
        name: Costs(max(0.0, cosine), _divergence(predicted, predict(part)))
        for name, cosine, part in zip(trials, cosines, others, strict=True)
    }
    head = "lm_head" if "lm_head" in modules else table_path  # a tied table is quantised in both its uses
    if head in modules:
        before = costs.get(head, Costs(0.0, 0.0))
        costs[head] = Costs(before.cosine, before.kl + _divergence(predicted, predict(plain, quantized=True)))
    return costs


class _TrialLayer(Wrapper):
    """A layer that holds its weights only while it is computed, and adds a trial for each of its modules."""

    def __init__(
        self,
        layer: nn.Module,
        path: str,
        modules: Sequence[str],
        values: Values,
        trial: Quantization,
        texts: int,
        done: Callable[[], None],
    ) -> None:
        super().__init__(layer)
        self._arguments = (path, modules, values, trial, texts, done)

    def __call__(self, states: mx.array, *args: Any, **kwargs: Any) -> mx.array:
        layer, (path, modules, values, trial, texts, done) = self._part, self._arguments
        start = len(path) + 1
        loaded = {name[start:]: values(name) for name in values.weights if name.startswith(path + ".")}
        layer.load_weights(list(loaded.items()), strict=False)
        # All states so far with the layer as it is, in batches no larger than a plain pass, ...
        outputs = [layer(part, *args, **kwargs) for part in mx.split(states, states.shape[0] // texts)]
        mx.eval(outputs)
        # ... and the unquantised rows once more for each of its modules, that one quantised.
        for module in modules:
            weight = f"{module}.weight"[start:]
            layer.load_weights([(weight, rounded(loaded[weight], trial))], strict=False)
            outputs.append(layer(states[:texts], *args, **kwargs))
            mx.eval(outputs[-1])
            layer.load_weights([(weight, loaded[weight])], strict=False)
        layer.load_weights([(name, mx.zeros((1,))) for name in loaded], strict=False)
        mx.clear_cache()
        done()
        return mx.concatenate(outputs)


class _TrialTable(Wrapper):
    """The token embeddings, and behind them those of the table quantised for a trial, if there is one."""

    def __init__(self, table: nn.Module, path: str, values: Values, trial: Quantization | None) -> None:
        super().__init__(table)
        self._arguments = (path, values, trial)

    def __call__(self, ids: mx.array) -> mx.array:
        path, values, trial = self._arguments
        table = values(f"{path}.weight")
        rows = [table[ids], *([] if trial is None else [rounded(table, trial)[ids]])]
        states = mx.concatenate(rows)
        mx.eval(states)
        return states


class _Head:
    """Log-probabilities of the next token, from hidden states."""

    def __init__(self, values: Values, table_path: str, trial: Quantization) -> None:
        name = "lm_head.weight" if "lm_head.weight" in values.weights else f"{table_path}.weight"
        self._weight = values(name)
        self._trial = trial

    def __call__(self, states: mx.array, *, quantized: bool = False) -> mx.array:
        weight = rounded(self._weight, self._trial) if quantized else self._weight
        logits = (states @ weight.T).astype(mx.float32)  # (B, L, V)
        return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def rounded(weight: mx.array, quantization: Quantization) -> mx.array:
    """A weight after quantising and unpacking it again."""
    return quantization.dequantize(quantization.quantize(weight)).astype(weight.dtype)


def _divergence(p: mx.array, q: mx.array) -> float:
    return max(0.0, float(mx.mean((mx.exp(p) * (p - q)).sum(axis=-1)).item()))  # type: ignore[arg-type]


def _unit(vectors: mx.array) -> mx.array:
    return vectors / mx.linalg.norm(vectors, axis=-1, keepdims=True)


def _affordable(plan: ConversionPlan, trials: int, dtype: mx.Dtype | None) -> int:
    """Tokens for each trial such that all trials' states together stay within bounds."""
    hidden = int(decoder_config(plan.config)["hidden_size"])
    width = 2 if dtype is None else dtype.size
    return max(_LENGTH, min(_TRIAL_TOKENS, _STATE_BYTES // ((trials + 1) * hidden * width)))


def _token_rows(tokenize: Callable[[str], list[int]], texts: Sequence[str], tokens: int) -> mx.array:
    """The texts one after the other, cut into rows of equal length: no padding, so no mask grows with the batch."""
    ids = [token for text in texts for token in tokenize(text)]
    length = min(_LENGTH, len(ids))
    rows = max(1, min(tokens // length, len(ids) // length))
    # From all over the texts, not from the first ones.
    step = max(1, len(ids) // length // rows)
    return mx.array([ids[i * step * length : i * step * length + length] for i in range(rows)])


def _belongs(name: str, paths: Sequence[str]) -> bool:
    return any(name.startswith(path + ".") for path in paths)
