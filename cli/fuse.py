"""``grit fuse``: an adapter into the weights of its model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from grit_mlx.cli import console, options
from grit_mlx.cli.loader import model_name
from grit_mlx.cli.options import Use
from grit_mlx.model.options import ModelChoice

__all__ = ["EXAMPLES", "fuse"]

EXAMPLES = """
Examples:
  grit fuse adapters --model gritlm-7b --output my-model
  grit fuse adapters --model ./gritlm-7b-4bit --output my-model --dequantize
"""

# Part of an adapter's effect that quantising may take before it is a warning.
_ACCEPTED_LOSS = 0.1


@options.command
def fuse(
    *,
    adapter: Annotated[str, typer.Argument(metavar="ADAPTER", help="Folder of a LoRA or DoRA adapter.")],
    output: Annotated[
        str,
        typer.Option(
            "--output", "-o", metavar="FOLDER", rich_help_panel=options.OUTPUT, help="Where the model is written."
        ),
    ],
    model: Annotated[ModelChoice, Use(only=("model",))],
    dequantize: Annotated[
        bool,
        typer.Option(
            "--dequantize",
            rich_help_panel=options.OUTPUT,
            help="Leave the weights of a quantised model unquantised: larger, and nothing is lost.",
        ),
    ] = False,
) -> None:
    """Fuse an adapter into its model's weights, as a model folder of its own.

    Quantised weights are widened for it and quantised again, which can round a small adapter away. How much is
    measured on sample texts and told.
    """
    with console.status(f"Fusing into {model_name(model.model)}"):
        from grit_mlx.training import fusing

        drift = fusing.fuse(model.model, Path(adapter), Path(output), dequantize=dequantize)
    console.write(f"The fused model is in {output}.")
    console.write(
        f"Cosine of vectors before and after fusing: {drift.fused:.6f} (adapter's own change: {drift.adapter:.6f})."
    )
    lost, whole = 1 - drift.fused, 1 - drift.adapter
    if drift.quantized and lost > _ACCEPTED_LOSS * whole:
        console.warn(
            f"quantising again moved the vectors by {lost:.1e}, and the adapter itself moves them by {whole:.1e}: "
            "keep the adapter beside the weights (--adapter), or fuse with --dequantize."
        )
    console.write(console.visible(f'Next: grit search "your question" FILE --model {output}'))
