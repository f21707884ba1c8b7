"""The proof of a conversion: source and result embed and predict the same texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import mlx.core as mx

from grit_mlx.convert.streaming import Stream
from grit_mlx.evaluation.drift import Drift, Outputs, drift_between, outputs_of
from grit_mlx.gritlm import GritLM
from grit_mlx.model import device, loading
from grit_mlx.model.options import ModelChoice

__all__ = ["adapter_drift", "fits", "verify", "verify_conversion"]

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
    bare, apart, result = _outputs((replace(choice, adapter=None), choice, fused))
    return drift_between(bare, apart), drift_between(apart, result)


def verify_conversion(
    stream: Stream, result: ModelChoice, *, texts: Sequence[str] | None = None, progress: Steps | None = None
) -> Drift:
    """Compare a converted folder with what it was made of.

    The source's weights are taken from the conversion itself and not through the loader, which does not know all
    the layouts that can be converted, nor adapters that were fused.

    Args:
        stream: the source's weights, unquantised; those of its model are replaced.
        result: the folder that was made.
        texts: None for built-in ones.
        progress: called as the work goes on.

    Raises:
        ModelError: the result cannot be loaded.
    """
    report = progress or (lambda done, total: None)
    report(0, 2)
    loaded = loading.load(result)
    outputs = [outputs_of(GritLM.from_loaded(loaded), texts)]
    report(1, 2)
    target = device.compute_dtype("auto")
    loaded = replace(loaded, model=stream.model)  # frees the result
    for weight in stream.plan.weights:
        values = stream.values(weight)
        if target is not None and mx.issubdtype(values.dtype, mx.floating):
            values = values.astype(target)
        mx.eval(values)  # one at a time, so that a cast never holds more than one tensor twice
        stream.model.load_weights([(weight.name, values)], strict=False)
        mx.clear_cache()
    stream.model.eval()
    outputs.insert(0, outputs_of(GritLM.from_loaded(loaded), texts))
    report(2, 2)
    if stream.plan.headless:
        outputs = [replace(one, log_probabilities=None) for one in outputs]
    return drift_between(*outputs)


def _outputs(
    models: Sequence[str | Path | ModelChoice], texts: Sequence[str] | None = None, progress: Steps | None = None
) -> list[Outputs]:
    report = progress or (lambda done, total: None)
    outputs = []
    for done, model in enumerate(models):
        report(done, len(models))
        choice = model if isinstance(model, ModelChoice) else ModelChoice(model)
        outputs.append(outputs_of(GritLM.from_choice(choice), texts))
        mx.clear_cache()
    report(len(models), len(models))
    return outputs
