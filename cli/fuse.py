"""``grit fuse``: an adapter into the weights of its model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from grit_mlx.cli import console, options
from grit_mlx.cli.convert import converting
from grit_mlx.cli.options import Use
from grit_mlx.convert.options import ConversionOptions
from grit_mlx.errors import ArgumentError
from grit_mlx.model.options import ModelChoice

__all__ = ["EXAMPLES", "fuse"]

EXAMPLES = """
Examples:
  grit fuse adapters --model gritlm-7b --output my-model
  grit fuse adapters --model ./gritlm-7b-4bit --output my-model --dequantize
"""

# Fraction of an adapter's effect that quantising may take without a warning.
_ACCEPTED_LOSS = 0.1
_UNQUANTIZED_BITS = 16


@options.command
def fuse(
    *,
    adapter: Annotated[str, typer.Argument(metavar="ADAPTER", help="Folder of a LoRA or DoRA adapter.")],
    model: Annotated[ModelChoice, Use(only=("model",))],
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FOLDER", rich_help_panel=options.OUTPUT, help="Folder to make.")
    ],
    dequantize: Annotated[
        bool,
        typer.Option(
            "--dequantize",
            rich_help_panel=options.OUTPUT,
            help="Do not quantise the weights of a quantised model again: larger, and nothing is lost.",
        ),
    ] = False,
) -> None:
    """Fuse an adapter into its model's weights, as a model folder of its own.

    The same as ``grit convert --adapter``, and the loss is measured on sample texts and reported: quantised weights
    are dequantised for the adapter and quantised again, which can round a small one away.
    """
    if (Path(output).expanduser() / "config.json").exists():
        raise ArgumentError(f"{output} holds a model already. Name another folder, or remove it.")
    choice = replace(model, adapter=adapter)
    report = converting(choice, ConversionOptions(output=output, dequantize=dequantize, dtype="stored", verify=False))
    console.write(f"The fused model is in {output}.")
    with console.status("Measuring the loss"):
        from grit_mlx.convert.verification import adapter_drift

        own, fused = adapter_drift(choice, report.folder)
    console.write(
        f"Cosine of vectors before and after fusing: {fused.cosine_mean:.6f} (adapter's own change: "
        f"{own.cosine_mean:.6f})."
    )
    lost, gained = 1 - fused.cosine_mean, 1 - own.cosine_mean
    if min(map(int, report.bits)) < _UNQUANTIZED_BITS and lost > _ACCEPTED_LOSS * gained:
        console.warn(
            f"quantising again moved the vectors by {lost:.1e}, and the adapter itself moves them by {gained:.1e}: "
            "keep the adapter beside the weights (--adapter), or fuse with --dequantize."
        )
    console.write(console.visible(f'Next: grit search "your question" FILE --model {output}'))
