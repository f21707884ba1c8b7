"""The proof of a conversion: source and result embed and predict the same texts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from numpy.typing import NDArray

from grit_mlx.convert.plan import ConversionPlan, make_plan
from grit_mlx.convert.reading import Folder
from grit_mlx.convert.streaming import Stream
from grit_mlx.convert.walking import Values, Walk
from grit_mlx.errors import ArchitectureError
from grit_mlx.evaluation.drift import TEXTS, Drift, Outputs, drift_between, kept_positions, outputs_of
from grit_mlx.gritlm import GritLM
from grit_mlx.model import device, hub, loading
from grit_mlx.model.adapters import read_adapter
from grit_mlx.model.attention import not_finite
from grit_mlx.model.batching import plan_batches
from grit_mlx.model.options import ModelChoice
from grit_mlx.model.pooling import AVERAGING, pool
from grit_mlx.model.prompts import TokenizedText, embedding_prompt, tokenize_texts
from grit_mlx.model.settings import Settings, read_settings
from grit_mlx.progress import Progress

__all__ = ["adapter_drift", "fits", "verify", "verify_conversion"]

logger = logging.getLogger("grit_mlx")

# On a CPU: tokens of a comparison that is to take no longer than the conversion, and the least work (tokens times
# parameters) for which fewer are worth it. All 64 texts of a model of a few million parameters take a second.
_CPU_TOKENS = 96
_CPU_WORK = 16 * 10**9
# Tokens of a text that was cut to stay within the limit, without its instruction.
_SHORT = 8
# Tokens of a batch: its activations stay within some 30 MB for a model of 7 billion parameters.
_BATCH_TOKENS = 1024

# Fraction of the free memory that a model may take to be loaded for the proof.
_MEMORY_FRACTION = 0.7

# Called with steps done and steps in all.
Steps = Callable[[int, int], None]


def fits(parameters: int) -> bool:
    """Whether a model with this many parameters can be loaded unquantised, as wide as this device computes."""
    width = 4 if device.compute_dtype("auto") == mx.float32 else 2
    return parameters * width < _MEMORY_FRACTION * device.available_memory()


def verify(
    first: str | Path | ModelChoice,
    second: str | Path | ModelChoice,
    *,
    texts: Sequence[str] | None = None,
    progress: Steps | None = None,
) -> Drift:
    """Measure how far the second model's outputs are from the first's; one is in memory at a time.

    Args:
        first: a folder, a hub id, a short name or a choice: the reference.
        second: the same: what is judged.
        texts: None for built-in ones.
        progress: called as the work goes on.

    Raises:
        ModelError: a model cannot be loaded.
        ArgumentError: the models cannot be compared.
    """
    return drift_between(*_outputs((first, second), texts, progress))


def adapter_drift(choice: ModelChoice, fused: Path) -> tuple[Drift, Drift]:
    """How far an adapter moves a model's outputs, and how far they move when it is fused into the weights.

    Args:
        choice: the model and its adapter.
        fused: the folder of the model with the adapter in its weights.

    Raises:
        ModelError: a model cannot be loaded.
    """
    if choice.adapter is not None:  # which may know its model
        choice = loading.with_base(choice, read_adapter(Path(choice.adapter).expanduser()))
    bare, apart, result = _outputs((replace(choice, adapter=None), choice, fused))
    return drift_between(bare, apart), drift_between(apart, result)


def verify_conversion(
    stream: Stream,
    result: ModelChoice,
    *,
    texts: Sequence[str] | None = None,
    complete: bool = True,
    progress: Steps | None = None,
) -> Drift:
    """Compare a converted folder with what it was made of, block by block, neither being in memory.

    The source's weights are taken from the conversion itself and not through the loader, which does not know all
    the layouts that can be converted, nor adapters that were fused.

    Args:
        stream: the source's weights, unquantised.
        result: the folder that was made.
        texts: None for built-in ones.
        complete: whether all of the built-in texts are compared, however long that takes on a CPU.
        progress: called with weights done and weights in all.

    Raises:
        ModelError: the result cannot be loaded, or cannot embed.
    """
    folder = hub.resolve(result)
    loading.load_lazily(result)  # reads no weight; proves that mlx-lm can
    source = Folder(folder)
    plan, model = make_plan(source, dequantize=True, trust=result.trust_remote_code)
    tokenizer = loading.load_tokenizer(folder, plan.config, trust=result.trust_remote_code)._tokenizer
    settings = read_settings(folder)
    limit = None if complete or texts is not None else _affordable(plan)
    rows = _rows(tokenizer, settings, TEXTS if texts is None else texts, limit)
    try:
        walks = (stream, stream.model), (Stream(plan, source, model), model)
        outputs = list(_walked(walks, rows, settings, loading.load_projection(folder), progress, stream.plan.headless))
    except (AttributeError, IndexError, KeyError, NotImplementedError, TypeError, ValueError) as error:
        kind = plan.config["model_type"]
        if not fits(plan.parameters):
            raise ArchitectureError(f"{kind} can only be verified in memory, and does not fit into it.") from error
        logger.warning("%s cannot be computed block by block: it is verified in memory (%s).", kind, error)
        outputs = _in_memory(stream, result, texts, progress)
    return drift_between(*outputs)


@dataclass(frozen=True)
class _Rows:
    """What goes through both models.

    Attributes:
        embedded: texts with their instruction, for their vectors.
        continued: ids of texts, for the token that follows each of the last few.
    """

    embedded: list[TokenizedText]
    continued: list[list[int]]


def _affordable(plan: ConversionPlan) -> int | None:
    """Maximum number of tokens of a comparison that takes about as long as the conversion; None for no limit.

    Both grow with the number of weights, so on a CPU the number of tokens is what remains to be chosen.
    """
    if device.compute_dtype("auto") != mx.float32:
        return None
    return max(_CPU_TOKENS, _CPU_WORK // plan.parameters)


def _rows(tokenizer: Any, settings: Settings, texts: Sequence[str], limit: int | None) -> _Rows:
    """All texts, or from all over them as many as stay within a limit of tokens."""
    instruction = embedding_prompt(settings.instruction("document"))
    embedded = tokenize_texts(tokenizer, texts, instruction=instruction, max_length=settings.max_length)
    continued = [tokenizer.encode(text)[: settings.max_length] for text in texts]
    if limit is None or sum(len(one.ids) for one in embedded) + sum(map(len, continued)) <= limit:
        return _Rows(embedded, continued)
    length = _SHORT + max(one.instruction_tokens for one in embedded)
    long = [i for i, ids in enumerate(continued) if len(ids) >= _SHORT] or list(range(len(texts)))
    count = max(2, limit // length - 1)  # one more is continued: each of its tokens is a measurement
    chosen = [long[i * len(long) // count] for i in range(min(count, len(long)))]
    short = [replace(embedded[i], ids=embedded[i].ids[:length]) for i in chosen]
    return _Rows(short, [continued[chosen[0]][:length]])


def _walked(
    walks: Sequence[tuple[Stream, nn.Module]],
    rows: _Rows,
    settings: Settings,
    projection: nn.Linear | None,
    progress: Steps | None,
    headless: bool,
) -> Iterator[Outputs]:
    """The outputs of each model for the same rows."""
    all_rows = [*(one.ids for one in rows.embedded), *rows.continued[: 0 if headless else None]]
    lengths = list(map(len, all_rows))
    batches = plan_batches(lengths, token_budget=_BATCH_TOKENS)
    report = progress or (lambda done, total: None)
    report(0, 1)
    for number, (stream, model) in enumerate(walks):
        steps = count(1)

        def done(number: int = number, steps: Iterator[int] = steps) -> None:
            each = walk.count * len(batches) + 1  # the head passes by once or twice
            report(number * each + min(next(steps), each), len(walks) * each)

        with Walk(stream, model, done) as walk:
            states: dict[int, NDArray[np.float32]] = {}
            for batch in batches:
                causal = [settings.causal or i >= len(rows.embedded) for i in batch]
                computed = walk.states([all_rows[i] for i in batch], causal)
                states |= {i: one[: lengths[i]].copy() for i, one in zip(batch, computed, strict=True)}
                mx.clear_cache()
            vectors = [
                _vector(states.pop(i), one.instruction_tokens, settings, projection)
                for i, one in enumerate(rows.embedded)
            ]
            if not np.isfinite(vectors).all():
                raise not_finite(f"{stream.plan.config['model_type']} computes NaN or infinity")
            yield Outputs(np.stack(vectors), None if headless else _predicted(walk, list(states.values())))
        mx.clear_cache()


def _vector(
    states: NDArray[np.float32], instruction_tokens: int, settings: Settings, projection: nn.Linear | None
) -> NDArray[np.float32]:
    """Of one text's states ``(L, E)``."""
    skipped = instruction_tokens if settings.pooling in AVERAGING else 0
    mask = np.arange(len(states)) >= skipped
    pooled = pool(mx.array(states)[None], mx.array(mask)[None], settings.pooling)
    return np.array((pooled if projection is None else projection(pooled))[0])


def _predicted(walk: Walk, states: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Log-probabilities ``(M, V)`` after the last few of each text's states ``(L, E)``; see ``outputs_of``."""
    vocabulary = walk.logits(states[0][:1]).shape[1] if len(states) > 1 else 0
    kept = kept_positions(vocabulary, len(states)) if vocabulary else None
    logits = walk.logits(np.concatenate([one if kept is None else one[-kept:] for one in states]))
    logits -= np.logaddexp.reduce(logits, axis=1, keepdims=True)
    return logits


def _in_memory(
    stream: Stream, result: ModelChoice, texts: Sequence[str] | None, progress: Steps | None
) -> list[Outputs]:
    """The outputs of source and result, one complete model after the other."""
    loaded = loading.load(result)
    outputs = [outputs_of(GritLM.from_loaded(loaded), texts, _part(progress, 0, 2))]
    loaded = replace(loaded, model=stream.model)  # frees the result
    values = Values(stream)
    for name in values.weights:
        stream.model.load_weights([(name, values(name))], strict=False)
        mx.clear_cache()
    stream.model.eval()
    outputs.insert(0, outputs_of(GritLM.from_loaded(loaded), texts, _part(progress, 1, 2)))
    return [replace(one, log_probabilities=None) for one in outputs] if stream.plan.headless else outputs


def _outputs(
    models: Sequence[str | Path | ModelChoice], texts: Sequence[str] | None = None, progress: Steps | None = None
) -> list[Outputs]:
    outputs = []
    for number, model in enumerate(models):
        choice = model if isinstance(model, ModelChoice) else ModelChoice(model)
        part = _part(progress, number, len(models))
        outputs.append(outputs_of(GritLM.from_choice(choice), texts, part))
        mx.clear_cache()
    return outputs


def _part(progress: Steps | None, number: int, parts: int) -> Progress:
    """What tells the progress of one of several equal parts as that of all."""

    def report(done: float, total: int | None) -> None:
        if progress is not None and total:
            progress(number * total + int(done), parts * total)

    return report
