"""``grit convert``: checkpoints to MLX folders, and how much that changes their outputs."""

from __future__ import annotations

import shlex
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from grit_mlx.cli import console, options
from grit_mlx.cli.options import Use
from grit_mlx.cli.wording import number_of, size_of
from grit_mlx.convert.options import ConversionOptions
from grit_mlx.errors import ArgumentError
from grit_mlx.model.options import ModelChoice
from grit_mlx.text.options import ReadingOptions

if TYPE_CHECKING:
    from grit_mlx.convert import ConversionReport, ConversionStep
    from grit_mlx.evaluation.drift import Drift

__all__ = ["EXAMPLES", "convert", "converting"]

EXAMPLES = """
Examples:
  grit convert gritlm-7b -q
  grit convert ./checkpoint -o ./model -q --q-bits 6
  grit convert model.Q4_0.gguf
  grit convert gritlm-8x7b --fit 32GB
  grit convert ./checkpoint --adapter ./adapter -q --upload-repo me/my-model
  grit convert --verify-only gritlm-7b ./GritLM-7B-4bit
"""

PROOF = "Proof"

_PHASES = {"measure": "Measuring", "write": "Converting", "verify": "Verifying"}

_HELPS = {"adapter": "LoRA or DoRA adapter to fuse into the weights."}


@options.command(quiet=("--quiet",))  # -q is --quantize here, as in mlx-lm
def convert(
    *,
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL",
            help="A Hugging Face or MLX folder, a GGUF file, a hub id or a short name; with --verify-only two of them.",
        ),
    ],
    conversion: ConversionOptions,
    choice: Annotated[ModelChoice, Use(only=("adapter", "revision", "trust_remote_code"), helps=_HELPS)],
    verify_only: Annotated[
        bool, typer.Option("--verify-only", rich_help_panel=PROOF, help="Compare two models; convert nothing.")
    ] = False,
    texts: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=PROOF,
            help="Texts to measure and compare with, one per line. Default: 64 built-in ones.",
        ),
    ] = None,
    json_output: options.JsonFlag = False,
) -> None:
    """Convert a model to an MLX folder, quantised or not, in a few hundred megabytes of memory.

    Weights are streamed from the source to the result, so the size of the model does not matter; a model on the hub is
    converted while it is downloaded. The same command resumes an interrupted conversion. The result works here, in
    mlx-lm and in its server, and its card says how far its vectors and predictions are from the source's.
    """
    if len(models) != (2 if verify_only else 1):
        raise typer.BadParameter(
            f"Name {'two models' if verify_only else 'one model'}, not {len(models)}.", param_hint="MODEL"
        )
    conversion = replace(conversion, texts=None if texts is None else _texts(texts))
    if verify_only:
        trust = choice.trust_remote_code
        compared = [ModelChoice(model, trust_remote_code=trust) for model in models]
        _compare(compared, conversion.texts, json_output=json_output)
        return
    report = converting(replace(choice, model=models[0]), conversion)
    if json_output:
        console.write(console.dumps(_facts(report), indent=2))
        return
    console.write_rows(_summary(report))
    if report.drift is not None:
        from grit_mlx.convert.report import meaning

        console.write("".join(map(console.worded, meaning(report.drift, conversion))))
    console.write(console.visible(f'Next: grit search "your question" FILE --model {shlex.quote(str(report.folder))}'))
    if conversion.upload_repo is not None:
        console.note(f"uploaded to {conversion.upload_repo}")


def converting(choice: ModelChoice, conversion: ConversionOptions) -> ConversionReport:
    """Convert with a bar on the terminal.

    Raises:
        GritError: as ``grit_mlx.convert.convert``.
    """
    # Its bars and ours would draw over each other.
    console.silence_hub()
    with console.status(f"Reading {choice.model or 'the default model'}"):
        from grit_mlx.convert import convert
    with console.phases() as advance:

        def progress(step: ConversionStep) -> None:
            detail = f"{100 * step.done // max(1, step.total)} %"
            if step.phase == "write":
                detail = f"{step.tensors}/{step.all_tensors} tensors, {size_of(step.done)} of {size_of(step.total)}"
            advance(_PHASES[step.phase], detail, step.done, step.total)

        return convert(choice, progress=progress, **vars(conversion))


def _compare(choices: list[ModelChoice], texts: tuple[str, ...] | None, *, json_output: bool) -> None:
    with console.status(f"Reading {choices[0].model}"):
        from grit_mlx.convert import verify
        from grit_mlx.convert.report import meaning
    with console.progress(f"Comparing {choices[0].model} and {choices[1].model}", None) as advance:
        drift = verify(choices[0], choices[1], texts=texts, progress=advance)
    if json_output:
        console.write(console.dumps(drift.as_dict(), indent=2))
        return
    console.write_rows(_drift_rows(drift))
    console.write("".join(map(console.worded, meaning(drift))))


def _texts(name: str) -> tuple[str, ...]:
    from grit_mlx.text.reading import read_texts

    texts = tuple(text.text for text in read_texts(name, ReadingOptions(by="line")))
    if not texts:
        raise ArgumentError(f"{name} is empty. Write one text per line.")
    return texts


# Showing what was made


def _summary(report: ConversionReport) -> dict[str, str]:
    shares = ", ".join(
        f"{100 * count / report.parameters:.0f} % at {bits}" for bits, count in report.bits.items() if count
    )
    rows = {
        "folder": str(report.folder),
        "from": f"{report.source}, {size_of(report.source_bytes)}",
        "size": f"{size_of(report.output_bytes)}, {report.bits_per_weight:.2f} bits per weight",
        "parameters": f"{report.parameters:,} ({shares})",
        "time": f"{report.seconds:.1f} s{', after an interruption' if report.resumed else ''}",
    }
    if report.dropped:
        rows["not used"] = f"{number_of(len(report.dropped), 'tensor')}, such as {report.dropped[0]}"
    return rows | ({"drift": "not measured"} if report.drift is None else _drift_rows(report.drift))


def _drift_rows(drift: Drift) -> dict[str, str]:
    return {"texts compared": str(drift.texts), **dict(drift.rows())}


def _facts(report: ConversionReport) -> dict[str, Any]:
    facts = asdict(report)
    facts["folder"] = str(report.folder)
    facts["drift"] = None if report.drift is None else report.drift.as_dict()
    facts["seconds"] = round(report.seconds, 3)
    return facts
