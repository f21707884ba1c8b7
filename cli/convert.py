"""``grit convert``: checkpoints to MLX folders, and the proof of what that changed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from grit_mlx.cli import console, options
from grit_mlx.cli.options import Use
from grit_mlx.cli.wording import bytes_of_size, number_of, size_of
from grit_mlx.errors import ArgumentError, OutputError
from grit_mlx.model import hub
from grit_mlx.model.options import ModelChoice

if TYPE_CHECKING:
    from grit_mlx.convert import Report, Step
    from grit_mlx.evaluation.drift import Drift

__all__ = ["EXAMPLES", "convert", "converting", "pulled"]

EXAMPLES = """
Examples:
  grit convert gritlm-7b -q
  grit convert ./checkpoint -o ./model -q --q-bits 6
  grit convert gritlm-8x7b --fit 32GB
  grit convert ./checkpoint --adapter ./adapter -q --upload-repo me/my-model
  grit convert --verify-only gritlm-7b ./GritLM-7B-4bit
"""

QUANTIZING = "Quantising"
PROOF = "Proof"

_PHASES = {"measure": "Measuring", "write": "Converting", "verify": "Verifying"}
_DRIFT = {
    "cosine_mean": "mean cosine",
    "cosine_p1": "1st percentile",
    "cosine_worst": "worst",
    "neighbour_overlap": "same 10 nearest neighbours",
    "kl": "KL of next token, nats",
    "top_token": "same likeliest token",
}


@options.command(quiet=("--quiet",))  # -q is --quantize here, as in mlx-lm
def convert(
    *,
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL",
            help="A Hugging Face or MLX folder, a hub id or a short name; with --verify-only two of them.",
        ),
    ],
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            "--mlx-path",
            metavar="FOLDER",
            rich_help_panel=options.OUTPUT,
            help="The folder to make. Default: the model's name with -4bit or the like, in the current folder.",
        ),
    ] = None,
    quantize: Annotated[
        bool,
        typer.Option("--quantize", "-q", rich_help_panel=QUANTIZING, help="Quantise. The options below imply it."),
    ] = False,
    q_bits: Annotated[
        int | None,
        typer.Option("--q-bits", metavar="N", rich_help_panel=QUANTIZING, help="Bits of most weights. Default: 4."),
    ] = None,
    q_group_size: Annotated[
        int | None,
        typer.Option(
            "--q-group-size",
            metavar="N",
            rich_help_panel=QUANTIZING,
            help="Weights that share a scale. Default: 64; 32 for mxfp4 and mxfp8, 16 for nvfp4.",
        ),
    ] = None,
    q_mode: Annotated[
        Literal["affine", "mxfp4", "nvfp4", "mxfp8"] | None,
        typer.Option(
            "--q-mode",
            metavar="affine|mxfp4|nvfp4|mxfp8",
            rich_help_panel=QUANTIZING,
            help="Kind of numbers. Default: affine.",
        ),
    ] = None,
    quant_predicate: Annotated[
        Literal["grit", "uniform", "mixed_2_6", "mixed_3_4", "mixed_3_6", "mixed_4_6"] | None,
        typer.Option(
            "--quant-predicate",
            metavar="RECIPE",
            rich_help_panel=QUANTIZING,
            help="Which weights get more bits: grit (default: token tables, keys and values get more, a router stays "
            "as it is), uniform (as mlx-lm does without a recipe), or mlx-lm's mixed_2_6, mixed_3_4, mixed_3_6, "
            "mixed_4_6.",
        ),
    ] = None,
    q_target_bits: Annotated[
        float | None,
        typer.Option(
            "--q-target-bits",
            metavar="X",
            rich_help_panel=QUANTIZING,
            help="Choose bits module by module, by their measured effect, for so many bits a weight, scales included.",
        ),
    ] = None,
    fit: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            rich_help_panel=QUANTIZING,
            help="The same, for a machine with so much memory, such as 16GB.",
        ),
    ] = None,
    dtype: Annotated[
        Literal["float16", "bfloat16", "float32"] | None,
        typer.Option(
            metavar="float16|bfloat16|float32",
            rich_help_panel=options.OUTPUT,
            help="Precision of what is not quantised. Default: what config.json says.",
        ),
    ] = None,
    dequantize: Annotated[
        bool,
        typer.Option("--dequantize", "-d", rich_help_panel=QUANTIZING, help="Unpack a quantised model instead."),
    ] = False,
    choice: Annotated[ModelChoice, Use(only=("adapter", "revision", "trust_remote_code"))],
    force: Annotated[
        bool, typer.Option("--force", rich_help_panel=options.OUTPUT, help="Replace a model that is there already.")
    ] = False,
    upload_repo: Annotated[
        str | None,
        typer.Option(
            "--upload-repo", metavar="NAME", rich_help_panel=options.OUTPUT, help="Hub repository to upload it to."
        ),
    ] = None,
    verify: Annotated[
        bool | None,
        typer.Option(
            "--verify/--no-verify",
            rich_help_panel=PROOF,
            help="Embed and predict the same texts with source and result. Default: where the model fits into memory.",
        ),
    ] = None,
    verify_only: Annotated[
        bool, typer.Option("--verify-only", rich_help_panel=PROOF, help="Compare two models, convert nothing.")
    ] = False,
    texts: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=PROOF,
            help="Texts to measure and compare with, one a line. Default: 64 built-in ones.",
        ),
    ] = None,
    json_output: options.JsonFlag = False,
) -> None:
    """Make an MLX folder of a model, quantised or not, in a few hundred megabytes of memory.

    Weights stream from the source to the result, so the model's size does not matter; from the hub they are
    converted while they are downloaded. What was interrupted goes on when the same command is run again. The
    result works here, in mlx-lm and in its server, and its card says how far its vectors and predictions are from
    the source's.
    """
    if len(models) != (2 if verify_only else 1):
        raise typer.BadParameter(
            f"Name {'two models' if verify_only else 'one model'}, not {len(models)}.", param_hint="MODEL"
        )
    chosen: dict[str, Any] = {
        "bits": q_bits,
        "group_size": q_group_size,
        "mode": q_mode,
        "recipe": quant_predicate,
        "target_bits": q_target_bits,
        "fit_bytes": None if fit is None else bytes_of_size(fit, option="--fit"),
    }
    chosen = {name: value for name, value in chosen.items() if value is not None}
    wanted = _texts(texts) if texts is not None else None
    if verify_only:
        _compare(models, wanted, trust_remote_code=choice.trust_remote_code, json_output=json_output)
        return
    report = converting(
        models[0],
        output,
        quantize=quantize or bool(chosen),
        **chosen,
        dtype=dtype,
        dequantize=dequantize,
        adapter=choice.adapter,
        revision=choice.revision,
        trust_remote_code=choice.trust_remote_code,
        force=force,
        upload_repo=upload_repo,
        verify=verify,
        texts=wanted,
    )
    if json_output:
        console.write(console.dumps(_facts(report), indent=2))
        return
    _show(_summary(report))
    if upload_repo is not None:
        console.note(f"uploaded to {upload_repo}")


def converting(model: str, output: str | Path | None, **arguments: Any) -> Report:
    """Convert with a bar on the terminal; the arguments are those of ``grit_mlx.convert.convert``.

    Raises:
        GritError: as ``convert``.
    """
    # Its bars and ours would draw over each other.
    console.silence_hub()
    with console.status(f"Reading {model}"):
        from grit_mlx.convert import convert
    with _bars() as progress:
        return convert(model, output, progress=progress, **arguments)


def _compare(models: list[str], texts: tuple[str, ...] | None, *, trust_remote_code: bool, json_output: bool) -> None:
    with console.status(f"Comparing {models[0]} and {models[1]}"):
        from grit_mlx.convert import verify

        drift = verify(models[0], models[1], texts=texts, trust_remote_code=trust_remote_code)
    if json_output:
        console.write(console.dumps(drift.as_dict(), indent=2))
    else:
        _show(_drift_rows(drift))


@contextmanager
def _bars() -> Iterator[Any]:
    """A bar for each phase of a conversion, one after the other."""
    with console.phases() as advance:

        def progress(step: Step) -> None:
            detail = f"{step.done}/{step.total}"
            if step.phase == "write":
                detail = f"{step.tensors}/{step.all_tensors} tensors, {size_of(step.done)} of {size_of(step.total)}"
            advance(_PHASES[step.phase], detail, step.done, step.total)

        yield progress


# Reading options


def _texts(name: str) -> tuple[str, ...]:
    try:
        lines = Path(name).expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ArgumentError(f"Cannot read {name}: {getattr(error, 'strerror', None) or error}.") from error
    texts = tuple(line for line in lines if line.strip())
    if not texts:
        raise ArgumentError(f"{name} holds no text. Write one text a line.")
    return texts


# Showing what was made


def _show(rows: list[tuple[str, str]]) -> None:
    width = max(len(label) for label, _ in rows)
    for label, value in rows:
        console.write(console.visible(f"{label:<{width}}  {value}"))


def _summary(report: Report) -> list[tuple[str, str]]:
    shares = ", ".join(
        f"{100 * count / report.parameters:.0f} % at {bits}" for bits, count in report.bits.items() if count
    )
    rows = [
        ("folder", str(report.folder)),
        ("from", f"{report.source}, {size_of(report.source_bytes)}"),
        ("size", f"{size_of(report.output_bytes)}, {report.bits_per_weight:.2f} bits a weight"),
        ("parameters", f"{report.parameters:,} ({shares})"),
        ("time", f"{report.seconds:.1f} s{', after an interruption' if report.resumed else ''}"),
    ]
    if report.dropped:
        rows.append(("left out", f"{number_of(len(report.dropped), 'tensor')}, such as {report.dropped[0]}"))
    return rows + ([("drift", "not measured")] if report.drift is None else _drift_rows(report.drift))


def _drift_rows(drift: Drift) -> list[tuple[str, str]]:
    values = drift.as_dict()
    return [
        ("texts compared", str(drift.texts)),
        *((label, f"{values[name]:.4f}") for name, label in _DRIFT.items() if values[name] is not None),
    ]


def _facts(report: Report) -> dict[str, Any]:
    facts = asdict(report)
    facts["folder"] = str(report.folder)
    facts["drift"] = None if report.drift is None else report.drift.as_dict()
    facts["seconds"] = round(report.seconds, 3)
    return facts


def pulled(name: str, bits: int, **arguments: Any) -> Path:
    """A model at so many bits: the one that the hub has, or one that is made here while its source is downloaded.

    Args:
        name: a hub id or a short name.
        bits: of most weights.
        **arguments: passed on to ``converting``.

    Raises:
        GritError: as ``converting``.
    """
    place = hub.identify(name)
    if isinstance(place, Path):
        raise ArgumentError(f"{place} is a folder on this machine already. Convert it: grit convert {name}")
    target = hub.models_folder() / f"{place.rpartition('/')[2]}-{bits}bit".lower()
    if (target / "config.json").exists():
        console.note(f"{target.name} is here already")
        return target
    ready = hub.ready_made(place, bits)
    if ready is not None:
        console.note(f"the hub has it as {ready}")
        return hub.download(ready)
    console.note(f"the hub has no {bits}-bit {place}; it is converted while it is downloaded")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"Cannot make {target.parent}: {error.strerror}. Set GRIT_HOME to another folder.") from error
    report = converting(place, target, quantize=True, bits=bits, **arguments)
    console.note(f"to make it the default: grit models use {target.name}")
    return report.folder
