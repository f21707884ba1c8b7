"""What a conversion reports: how far it is, what it made, and what the model's card and ``grit.json`` say of it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from grit_mlx.convert.options import RECIPES, ConversionOptions
from grit_mlx.convert.plan import ConversionPlan
from grit_mlx.convert.quantization import base_of
from grit_mlx.convert.reading import Source
from grit_mlx.errors import Option
from grit_mlx.evaluation.drift import Drift

__all__ = ["ConversionReport", "ConversionStep", "Progress", "about_of", "meaning", "report_of"]


@dataclass(frozen=True)
class ConversionStep:
    """How far a conversion is.

    Attributes:
        phase: ``"measure"``, ``"write"`` or ``"verify"``.
        done: bytes that are written, or steps of the other phases.
        total: of them.
        tensors: written so far.
        all_tensors: to be written.
    """

    phase: str
    done: int
    total: int
    tensors: int = 0
    all_tensors: int = 0


Progress = Callable[[ConversionStep], None]

# Least share of the nearest neighbours that stay the same, or least mean cosine where too few texts were compared to
# have neighbours, and what that means for searching.
_CLOSE = (
    (0.95, 0.999, "nearly the same passages"),
    (0.85, 0.98, "mostly the same passages"),
    (-1.0, -1.0, "partly other passages"),
)
_FEW_BITS = 4


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion made.

    Attributes:
        folder: the result.
        source: hub id or folder that it was made of.
        source_bytes: size of the source's weights.
        output_bytes: size of the result's.
        parameters: of the model.
        bits_per_weight: of the result.
        bits: number of parameters by bits, as ``{"4": ..., "6": ..., "16": ...}``.
        seconds: that it took.
        resumed: whether it resumed an interrupted run.
        dropped: stored tensors that the architecture does not use.
        drift: of the result from the source; None if it was not measured.
    """

    folder: Path
    source: str
    source_bytes: int
    output_bytes: int
    parameters: int
    bits_per_weight: float
    bits: Mapping[str, int]
    seconds: float
    resumed: bool
    dropped: tuple[str, ...]
    drift: Drift | None


def report_of(source: Source, target: Path, plan: ConversionPlan, **facts: Any) -> ConversionReport:
    """The report of a plan that was carried out; ``facts`` are the attributes that no plan knows."""
    bits: Counter[str] = Counter()
    for weight in plan.weights:
        stored = 8 * weight.dtype.size if weight.quantization is None else weight.quantization.bits
        bits[str(stored)] += weight.rows * weight.width
    written = (entry for weight in plan.weights for entry in weight.written().values())
    return ConversionReport(
        folder=target,
        source=source.name,
        source_bytes=sum(tensor.nbytes for tensor in source.tensors.values()),
        parameters=plan.parameters,
        bits_per_weight=8 * sum(math.prod(shape) * dtype.size for shape, dtype in written) / plan.parameters,
        bits=dict(sorted(bits.items(), key=lambda item: int(item[0]))),
        dropped=plan.layout.dropped,
        **facts,
    )


def about_of(report: ConversionReport, options: ConversionOptions, adapter: Path | None) -> dict[str, Any]:
    """What ``grit.json`` and the model card say of a conversion."""
    about: dict[str, Any] = {
        "base_model": report.source,
        "parameters": report.parameters,
        "bits_per_weight": round(report.bits_per_weight, 3),
        "parameters_by_bits": dict(report.bits),
        "made_with": f"grit-mlx {version('grit-mlx')}, mlx {version('mlx')}, mlx-lm {version('mlx-lm')}",
    }
    if options.measured:
        about["recipe"] = "measured"
    elif options.quantize:
        name = getattr(options.recipe, "__name__", options.recipe) or RECIPES[0]
        base = base_of(options)
        about["recipe"] = f"{name}, {base.bits} bits, groups of {base.group_size}, {base.mode}"
    if adapter is not None:
        about["adapter"] = adapter.name
    if report.drift is not None:
        about["drift"] = report.drift.as_dict()
    return about


def meaning(drift: Drift, options: ConversionOptions | None = None) -> tuple[str | Option, ...]:
    """What a drift means for searching and answering, and what stays closer to the source: one or two sentences.

    Args:
        drift: of a result from its source.
        options: of the conversion; None if it was another's, and no step can be named.
    """
    overlap = drift.neighbour_overlap
    level, found = next(
        (level, words)
        for level, (share, cosine, words) in enumerate(_CLOSE)
        if (drift.cosine_mean >= cosine if overlap is None else overlap >= share)
    )
    facts = [f"mean cosine {drift.cosine_mean:.4f}" if overlap is None else _changed(overlap)]
    if drift.top_token is not None:
        facts.append(f"{100 * drift.top_token:.0f} % of the next tokens are the same")
    parts: list[str | Option] = [f"Searches will find {found}: {', '.join(facts)}."]
    if options is not None and level > 0 and (more := _more_bits(options)) is not None:
        parts += [" ", more, " stays closer."]
    elif options is not None and overlap is None and options.texts is None:
        parts += [f" Only {drift.texts} texts were compared: ", Option("verify", True), " takes all."]
    return tuple(parts)


def _changed(overlap: float) -> str:
    changed = round(100 * (1 - overlap))
    return f"{changed} % of the nearest neighbours changed" if changed else "all nearest neighbours stayed"


def _more_bits(options: ConversionOptions) -> Option | None:
    """The option that loses less than these; None if nothing was quantised, or no option does."""
    if options.target_bits is not None:
        return Option("target_bits", f"{options.target_bits + 1:g}")
    if options.fit_bytes is not None or not options.quantize:
        return None
    base = base_of(options)
    if base.mode != "affine":
        return None if base.bits > _FEW_BITS else Option("mode", "mxfp8")
    return next((Option("bits", bits) for bits in (6, 8) if bits > base.bits), None)
