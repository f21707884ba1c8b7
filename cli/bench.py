"""``grit bench``: how fast this machine runs a model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from grit_mlx.cli import console, options
from grit_mlx.cli.loader import load_model
from grit_mlx.cli.options import Use
from grit_mlx.cli.wording import size_of
from grit_mlx.errors import ArgumentError, Option
from grit_mlx.model.options import ModelChoice
from grit_mlx.options import check, option

if TYPE_CHECKING:
    from grit_mlx.benchmarking.report import Report

__all__ = ["EXAMPLES", "BenchOptions", "bench"]

EXAMPLES = """
Examples:
  grit bench
  grit bench --model gritlm-7b --tune
  grit bench --json > bench.json
"""

# What is being measured, as the bar says it.
_PARTS = {
    "matrix": "Matrix products",
    "tuning": "Batch sizes",
    "embedding": "Embedding",
    "generation": "Generating",
    "document": "Cached document",
}


@dataclass(frozen=True)
class BenchOptions:
    """How long is measured, and what becomes of it."""

    heading: ClassVar[str] = "Measuring"

    seconds: float = option(
        60.0, "About how long to measure, once the model is loaded.", minimum=1, maximum=86400, metavar="SECONDS"
    )
    tune: bool = option(
        False,
        "First find the batch size that embeds fastest on this device, and keep it: embed, search and rag use it "
        "from then on for models of this shape, unless --batch-tokens says otherwise.",
    )
    forget: bool = option(False, "Forget what --tune kept for this device, and exit.")

    def __post_init__(self) -> None:
        check(self)
        if self.tune and self.forget:
            raise ArgumentError(Option("tune"), " and ", Option("forget"), " exclude each other.")


@options.command
def bench(
    *,
    measuring: BenchOptions,
    model: Annotated[ModelChoice, Use(without=("pooling", "attn"))],
    json_output: options.JsonFlag = False,
) -> None:
    """Measure how fast this machine runs a model.

    Embedding by length of the texts, reading prompts and generating beside mlx_lm in the same run, answers from a
    document with its cache and without, memory, and the rate of matrix products. Takes about a minute.
    """
    if measuring.forget:
        from grit_mlx.model import tuning

        path = tuning.forget()
        console.note(f"forgot the batch sizes kept for this device in {path}")
        return
    grit = load_model(model, mode="unified")
    from grit_mlx.benchmarking.report import measure

    with ExitStack() as stack:
        phases = stack.enter_context(console.phases())

        def watch(part: str, done: float, total: float) -> None:
            phases(_PARTS[part], f"{done:.0f} of {total:.0f} s", round(done), round(total))

        report = measure(grit, seconds=measuring.seconds, tune=measuring.tune, watch=watch)
    if measuring.tune:
        report = _kept(grit, report)
    if json_output:
        console.write(console.dumps(report.as_dict(), indent=2))
        return
    _show(report)


def _kept(grit: Any, report: Report) -> Report:
    """Remember the fastest size of batches."""
    from grit_mlx.model import tuning

    tokens = grit.embedder.fastest
    path = tuning.keep(grit.config, tokens)
    console.note(f"batches of {tokens:,} tokens are the fastest here; kept in {path}")
    return replace(report, batch_tokens={**report.batch_tokens, "kept_in": str(path)})


def _show(report: Report) -> None:
    here, model = report.machine, report.model
    blas = f" with {here['blas']} BLAS" if here["blas"] else ""
    widened = ", widened while it computes" if model["widened"] else ""
    process = report.memory["process_bytes"]
    budget = "measured here" if report.batch_tokens["measured"] else "usual for such a device"
    rows = {
        "device": f"{here['name']} ({here['kind']}), {size_of(here['memory_bytes'])}",
        "versions": f"grit-mlx {here['grit_mlx']}, mlx {here['mlx']}, mlx-lm {here['mlx_lm']}, Python {here['python']}",
        "model": f"{model['name']}, {model['parameters'] / 1e6:,.1f} M parameters, {model['types']}{widened}",
        "matrix products": f"{report.matrix_flops / 1e9:,.0f} GFLOP/s in {report.matrix_type}{blas}",
        "batches": f"at most {report.batch_tokens['used']:,} tokens ({budget})",
        "peak memory": size_of(report.memory["array_bytes"])
        + " of arrays"
        + (f", {size_of(process)} of the process" if process is not None else ""),
    }
    console.write_rows(rows)
    for head, lines in _tables(report):
        console.write("")
        _write_table(head, lines)
    console.write(f"\nTo paste into a report:\n{console.visible(report.line())}")
    if report.left_out:
        console.note(f"there was no time for {', '.join(report.left_out)}: raise ", Option("seconds"))


def _tables(report: Report) -> Iterable[tuple[Sequence[str], list[Sequence[str]]]]:
    from grit_mlx.benchmarking.report import rates

    if report.trials:
        yield (
            ("batches of at most", "tokens/s"),
            [(f"{trial.batch_tokens:,} tokens", f"{trial.tokens_per_second:,.0f}") for trial in report.trials],
        )
    yield (
        ("embedding texts of", "texts", "tokens/s", "padding"),
        [
            (
                f"{row.length} tokens" if row.length else "mixed lengths",
                f"{row.texts:,}",
                f"{row.tokens_per_second:,.0f}",
                f"{row.padding:.1%}",
            )
            for row in report.embedding
        ],
    )
    found = [(row, rates(row)) for row in report.generation]
    if found:
        yield (
            ("generating", "tokens", "tokens/s", "mlx_lm", "ratio"),
            [
                line
                for row, rate in found
                for line in (
                    (
                        "prompt",
                        f"{row.prompt_tokens:,}",
                        f"{rate['prompt_tokens_per_second']:,.1f}",
                        f"{rate['mlx_lm_prompt_tokens_per_second']:,.1f}",
                        f"{rate['prompt_ratio']:.2f}",
                    ),
                    (
                        "answer",
                        f"{row.new_tokens:,}",
                        f"{rate['tokens_per_second']:,.1f}",
                        f"{rate['mlx_lm_tokens_per_second']:,.1f}",
                        f"{rate['ratio']:.2f}",
                    ),
                )
            ],
        )
    if report.document is not None:
        one = report.document
        yield (
            ("first token after a document of", "read", "cached", "ratio"),
            [
                (
                    f"{one.tokens:,} tokens",
                    f"{one.read_seconds:.2f} s",
                    f"{one.cached_seconds:.2f} s",
                    f"{one.read_seconds / one.cached_seconds:.1f}",
                )
            ],
        )


def _write_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns of text, all but the first aligned on the right."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    for row in (head, *rows):
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        console.write("  ".join([row[0].ljust(widths[0]), *cells[1:]]))
