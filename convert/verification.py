"""The proof of a conversion: source and result embed and predict the same texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn

from grit_mlx.convert.plan import Plan
from grit_mlx.convert.streaming import Stream
from grit_mlx.evaluation.drift import Drift, drift_between, outputs_of
from grit_mlx.gritlm import GritLM
from grit_mlx.model import device, loading
from grit_mlx.model.options import ModelChoice

__all__ = ["fits", "verify", "verify_conversion"]

# Part of the free memory that a model may take to be loaded for the proof.
_MEMORY_FRACTION = 0.7

# Called with steps done and steps in all.
Steps = Callable[[int, int], None]


def fits(parameters: int) -> bool:
    """Whether a model of that many parameters can be loaded unquantised, as wide as this device computes."""
    width = 4 if device.compute_dtype("auto") == mx.float32 else 2
    return parameters * width < _MEMORY_FRACTION * device.available_memory()


def verify(
    first: str | Path,
    second: str | Path,
    *,
    texts: Sequence[str] | None = None,
    trust_remote_code: bool = False,
    progress: Steps | None = None,
) -> Drift:
    """Measure how far the second model's outputs are from the first's; one is in memory at a time.

    Args:
        first: a folder, a hub id or a short name; what is compared with.
        second: the same, what is judged.
        texts: None for built-in ones.
        trust_remote_code: run Python code that comes with the models.
        progress: called as the work goes on.

    Raises:
        ModelError: a model cannot be loaded.
        ArgumentError: the models cannot be compared.
    """
    report = progress or (lambda done, total: None)
    outputs = []
    for done, name in enumerate((first, second)):
        report(done, 2)
        outputs.append(outputs_of(GritLM(name, trust_remote_code=trust_remote_code), texts))
        mx.clear_cache()
    report(2, 2)
    return drift_between(*outputs)


def verify_conversion(
    plan: Plan,
    stream: Stream,
    model: nn.Module,
    folder: Path,
    *,
    texts: Sequence[str] | None = None,
    trust: bool = False,
    progress: Steps | None = None,
) -> Drift:
    """Compare a converted folder with what it was made of.

    The source's weights are taken from the conversion itself and not through the loader, which does not know all
    the layouts that can be converted, nor adapters that were fused.

    Args:
        plan: of the source's weights, unquantised.
        stream: yields them.
        model: mlx-lm's model, unquantised; its weights are replaced.
        folder: the result.
        texts: None for built-in ones.
        trust: run Python code that comes with the model.
        progress: called as the work goes on.

    Raises:
        ModelError: the result cannot be loaded.
    """
    report = progress or (lambda done, total: None)
    report(0, 2)
    loaded = loading.load(ModelChoice(folder, trust_remote_code=trust))
    result = outputs_of(GritLM.from_loaded(loaded), texts)
    report(1, 2)
    target = device.compute_dtype("auto")
    loaded = replace(loaded, model=model)  # frees the result
    for weight in plan.weights:
        values = stream.whole(weight)
        if target is not None and mx.issubdtype(values.dtype, mx.floating):
            values = values.astype(target)
        mx.eval(values)  # one at a time, so that a cast never holds more than one tensor twice
        model.load_weights([(weight.name, values)], strict=False)
        mx.clear_cache()
    model.eval()
    source = outputs_of(GritLM.from_loaded(loaded), texts)
    report(2, 2)
    if plan.headless:
        source, result = (replace(outputs, log_probabilities=None) for outputs in (source, result))
    return drift_between(source, result)
