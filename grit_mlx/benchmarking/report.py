"""Everything that ``grit bench`` found out, as JSON, as tables and as a line."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from grit_mlx.benchmarking.machine import matrix_rate, peak_resident_memory, this_machine
from grit_mlx.benchmarking.measuring import (
    DocumentRow,
    EmbeddingRow,
    GenerationRow,
    Trial,
    document_row,
    embedded_lengths,
    embedding_rows,
    fastest,
    generation_rows,
    trials,
)
from grit_mlx.gritlm import GritLM
from grit_mlx.model import hub, tuning, widening

__all__ = ["Report", "measure"]

# Called with what is being measured, and the seconds done and in all.
Watch = Callable[[str, float, float], None]

# Shares of the time.
SHARES = {"matrix": 0.02, "tuning": 0.4, "embedding": 0.4, "generation": 0.38, "document": 0.2}
LONGEST = 512  # tokens of a prompt, to judge how fast one is read


@dataclass(frozen=True)
class Report:
    """What was measured.

    Attributes:
        machine: the device and the versions.
        model: what the model is called, how many parameters it has, in which types and bytes.
        matrix_flops: operations per second of products.
        matrix_type: of their numbers, which is what the model computes in.
        batch_tokens: the most tokens of a batch, padding included, and whether that was measured here.
        embedding: by length.
        generation: by prompt; empty for a model that only embeds.
        document: None if there was no time, or for a model that only embeds.
        trials: of batches, if they were tuned.
        memory: peak bytes of mlx's arrays, and of the process.
        left_out: what there was no time for.
        seconds: that all of it took.
        date: of the measurement.
    """

    machine: dict[str, Any]
    model: dict[str, Any]
    matrix_flops: float
    matrix_type: str
    batch_tokens: dict[str, Any]
    embedding: list[EmbeddingRow]
    generation: list[GenerationRow]
    document: DocumentRow | None
    trials: list[Trial]
    memory: dict[str, Any]
    left_out: list[str]
    seconds: float
    date: str = field(default_factory=lambda: date.today().isoformat())

    def as_dict(self) -> dict[str, Any]:
        """For JSON, with the rates and ratios that the tables have."""
        found = asdict(self)
        for row, source in zip(found["embedding"], self.embedding, strict=True):
            row["tokens_per_second"] = source.tokens_per_second
        for row, written in zip(found["generation"], self.generation, strict=True):
            row |= rates(written)
        if self.document is not None:
            found["document"]["speedup"] = self.document.read_seconds / self.document.cached_seconds
        return {**_rounded(found), "line": self.line()}

    def line(self) -> str:
        """All of it in a line, to be pasted into a report."""
        here = self.machine
        where = f"{here['name']} ({here['kind']}{', ' + here['blas'] if here['blas'] else ''}), "
        parts = [
            where + f"{here['memory_bytes'] / 1e9:.0f} GB, {here['system']}",
            f"grit-mlx {here['grit_mlx']}, mlx {here['mlx']}, mlx-lm {here['mlx_lm']}",
            f"{self.model['name']} {self.model['types']}",
            f"matrix {self.matrix_flops / 1e9:.0f} GFLOP/s in {self.matrix_type}",
            "embed "
            + ", ".join(f"{row.length or 'mixed'}: {row.tokens_per_second:,.0f} tok/s" for row in self.embedding),
        ]
        for row in self.generation:
            found = rates(row)
            parts.append(
                f"prompt {row.prompt_tokens}: {found['prompt_tokens_per_second']:,.0f} tok/s "
                f"({found['prompt_ratio']:.2f}x mlx_lm), +{row.new_tokens}: {found['tokens_per_second']:,.1f} tok/s "
                f"({found['ratio']:.2f}x)"
            )
        if self.document is not None:
            one = self.document
            parts.append(f"document {one.tokens}: {one.read_seconds:.2f} s, cached {one.cached_seconds:.2f} s")
        parts.append(f"peak {self.memory['array_bytes'] / 1e9:.1f} GB")
        return " | ".join([*parts, self.date])


def rates(row: GenerationRow) -> dict[str, float]:
    """Tokens a second of both sides, and how many times as fast as mlx-lm ours is."""
    following = max(1, row.new_tokens - 1)
    return {
        "prompt_tokens_per_second": row.prompt_tokens / row.prompt_seconds,
        "tokens_per_second": following / row.new_seconds,
        "mlx_lm_prompt_tokens_per_second": row.prompt_tokens / row.mlx_lm_prompt_seconds,
        "mlx_lm_tokens_per_second": following / row.mlx_lm_new_seconds,
        "prompt_ratio": row.mlx_lm_prompt_seconds / row.prompt_seconds,
        "ratio": row.mlx_lm_new_seconds / row.new_seconds,
    }


def measure(model: GritLM, *, seconds: float, tune: bool = False, watch: Watch | None = None) -> Report:
    """Measure a model for about so many seconds.

    Args:
        model: loaded with ``mode="unified"``.
        seconds: that there are.
        tune: first find out how large batches should be, and use that.
        watch: called as the work goes on.
    """
    began = time.perf_counter()
    clock = _Clock(seconds, _parts(model, tune), watch or (lambda _what, _done, _total: None))
    computed = _computed(model)
    flops = matrix_rate(seconds=max(0.1, min(2.0, clock.seconds("matrix"))), dtype=computed)
    mx.clear_cache()
    mx.reset_peak_memory()
    clock.advance("matrix")(clock.seconds("matrix"))
    tried = _tuned(model, clock) if tune else []
    embedded = []
    for row in embedding_rows(model, seconds=clock.seconds("embedding"), advance=clock.advance("embedding")):
        embedded.append(row)
    rate = embedded[-1].tokens_per_second
    written: list[GenerationRow] = []
    document = None
    measured = {row.length for row in embedded}
    left_out = [
        f"texts of {length} tokens" if length else "texts of mixed lengths"
        for length in embedded_lengths(model)
        if length not in measured
    ]
    if model.settings.generates:
        written += generation_rows(
            model, rate=rate, seconds=clock.seconds("generation"), advance=clock.advance("generation")
        )
        longest = max(written, key=lambda row: row.prompt_tokens)
        document = document_row(
            model,
            rate=min(rate, longest.prompt_tokens / longest.prompt_seconds),
            seconds=clock.seconds("document"),
            advance=clock.advance("document"),
        )
        left_out += ["a long prompt"] * (len(written) < 2) + ["a cached document"] * (document is None)
    return Report(
        machine=this_machine(),
        model=_described(model),
        matrix_flops=flops,
        matrix_type=_name(computed),
        batch_tokens={"used": model.embedder.token_budget(LONGEST), "measured": model.embedder.fastest is not None},
        embedding=embedded,
        generation=written,
        document=document,
        trials=tried,
        memory={"array_bytes": mx.get_peak_memory(), "process_bytes": peak_resident_memory()},
        left_out=left_out,
        seconds=time.perf_counter() - began,
    )


def _parts(model: GritLM, tune: bool) -> Sequence[str]:
    return [
        part
        for part in SHARES
        if (part != "tuning" or tune) and (model.settings.generates or part in ("matrix", "tuning", "embedding"))
    ]


def _tuned(model: GritLM, clock: _Clock) -> list[Trial]:
    """Tries of several sizes of batches, of which the model uses the fastest from now on."""
    first = next(iter(embedding_rows(model, seconds=clock.seconds("tuning") / 8, advance=lambda _done: None)))
    found = trials(
        model, rate=first.tokens_per_second, seconds=0.875 * clock.seconds("tuning"), advance=clock.advance("tuning")
    )
    model.embedder.fastest = fastest(found).batch_tokens
    return found


class _Clock:
    """Divides the time, and says how much of it is over."""

    def __init__(self, seconds: float, parts: Sequence[str], watch: Watch) -> None:
        whole = sum(SHARES[part] for part in parts)
        self._seconds = {part: seconds * SHARES[part] / whole for part in parts}
        self._total, self._watch = seconds, watch

    def seconds(self, part: str) -> float:
        """The seconds of a part."""
        return self._seconds[part]

    def advance(self, part: str) -> Callable[[float], None]:
        """What a part is to call with the seconds that it has spent."""
        names = list(self._seconds)
        before = sum(self._seconds[name] for name in names[: names.index(part)])
        return lambda done: self._watch(part, before + min(done, self._seconds[part]), self._total)


def _described(model: GritLM) -> dict[str, Any]:
    arrays: Any = tree_flatten(model.model.parameters())
    types = {_name(value.dtype) for _, value in arrays}
    quantization = model.config.get("quantization")
    bits = {quantization["bits"]} if isinstance(quantization, dict) and "uint32" in types else set()
    return {
        "name": hub.name_of(model.folder),
        "shape": tuning.shape_of(model.config),
        "parameters": _parameters(model),
        "bytes": sum(value.nbytes for _, value in arrays),
        "types": "+".join([*(f"{number}-bit" for number in bits), *sorted(types - {"uint32"})]),
        "widened": widening.is_widened(model.model),
        "generates": model.settings.generates,
    }


def _computed(model: GritLM) -> mx.Dtype:
    """What the model computes in: of several types that of most weights, or of most scales of packed ones."""
    if widening.is_widened(model.model):
        return mx.float32
    arrays: Any = tree_flatten(model.model.parameters())
    sizes: dict[mx.Dtype, int] = {}
    for _, value in arrays:
        if mx.issubdtype(value.dtype, mx.floating):
            sizes[value.dtype] = sizes.get(value.dtype, 0) + value.size
    return max(sizes, key=lambda dtype: sizes[dtype], default=mx.float32)


def _name(dtype: mx.Dtype) -> str:
    return str(dtype).rpartition(".")[2]


def _parameters(model: GritLM) -> int:
    from mlx_lm.utils import get_total_parameters

    return int(get_total_parameters(model.model))


def _rounded(value: Any) -> Any:
    """Floats with the five digits that mean something."""
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(one) for one in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value
