"""Options that several commands share, and how help pages are laid out."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand

__all__ = [
    "INPUT",
    "MODEL",
    "OUTPUT",
    "Adapter",
    "Attn",
    "BatchSize",
    "By",
    "ChunkSize",
    "Command",
    "Encoding",
    "Field",
    "JsonFlag",
    "KvBits",
    "LongTexts",
    "MaxLength",
    "MaxTokens",
    "MinP",
    "Model",
    "ModelDtype",
    "Overlap",
    "Pooling",
    "Quiet",
    "RepetitionPenalty",
    "Revision",
    "Seed",
    "SkipEmpty",
    "Stop",
    "System",
    "Temperature",
    "TopK",
    "TopP",
    "TrustRemoteCode",
    "Verbose",
]

# Headings of help pages.
INPUT = "Input"
MODEL = "Model"
SAMPLING = "Sampling"
OUTPUT = "Output"


class Command(TyperCommand):
    """A command whose help lists its options under headings, as plain text that fits into docs and pipes."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """The usage line as one writes it: ``[OPTIONS] QUERY FILE...``."""
        arguments = [p for p in self.get_params(ctx) if p.param_type_name == "argument"]
        return ["[OPTIONS]", *(str(p.metavar) for p in arguments)]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Arguments first, then each heading with its options, in the order of their first appearance."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            if parameter.param_type_name == "argument":
                row = (str(parameter.metavar), getattr(parameter, "help", None) or "")
                sections.setdefault("Arguments", []).append(row)
            elif (record := parameter.get_help_record(ctx)) is not None:
                heading = getattr(parameter, "rich_help_panel", None) or "Other"
                sections.setdefault(heading, []).append(record)
        for heading in sorted(sections, key=lambda heading: heading == "Other"):
            with formatter.section(heading):
                formatter.write_dl(sections[heading])

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """The examples as they stand, at the left margin like the headings."""
        if self.epilog:
            formatter.write_paragraph()
            for line in self.epilog.strip().splitlines():
                formatter.write(f"{line}\n")


# Input

By = Literal["line", "paragraph", "file", "chunk"]

Field = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        rich_help_panel=INPUT,
        help="Field of .jsonl and .json rows, or column of .csv and .tsv, that holds the text. "
        "Default: 'text', or the only column.",
    ),
]
SkipEmpty = Annotated[
    bool,
    typer.Option("--skip-empty", rich_help_panel=INPUT, help="Skip rows without text, instead of refusing the file."),
]
Encoding = Annotated[str, typer.Option(metavar="NAME", rich_help_panel=INPUT, help="How the files are encoded.")]
ChunkSize = Annotated[
    int, typer.Option(metavar="TOKENS", min=1, rich_help_panel=INPUT, help="With --by chunk: most tokens of a chunk.")
]
Overlap = Annotated[
    int,
    typer.Option(
        metavar="TOKENS",
        min=0,
        rich_help_panel=INPUT,
        help="With --by chunk: most tokens that a chunk repeats of the one before.",
    ),
]

# Model

Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="NAME",
        rich_help_panel=MODEL,
        help="A model folder, a hub id such as GritLM/GritLM-7B, or a short name such as gritlm-7b. "
        "Default: $GRIT_MODEL, else what 'grit models use' chose, else the built-in model.",
    ),
]
Adapter = Annotated[
    str | None,
    typer.Option(metavar="FOLDER", rich_help_panel=MODEL, help="LoRA or DoRA adapter to put on the model."),
]
Revision = Annotated[
    str | None,
    typer.Option(metavar="NAME", rich_help_panel=MODEL, help="Branch, tag or commit of a hub model."),
]
ModelDtype = Annotated[
    Literal["auto", "stored", "float32", "float16", "bfloat16"],
    typer.Option(
        "--model-dtype",
        metavar="TYPE",
        rich_help_panel=MODEL,
        help="Compute in float32, float16 or bfloat16; as 'stored'; or 'auto': as stored on a GPU, float32 on a CPU.",
    ),
]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", rich_help_panel=MODEL, help="Run Python code that comes with the model.")
]

# Embedding

MaxLength = Annotated[
    int | None,
    typer.Option(
        metavar="TOKENS",
        min=1,
        rich_help_panel=MODEL,
        help="Tokens that are read of a text, instruction included. Default: the model's setting, mostly 512.",
    ),
]
LongTexts = Annotated[
    Literal["truncate", "average"],
    typer.Option(
        "--long",
        metavar="truncate|average",
        rich_help_panel=MODEL,
        help="Cut longer texts at --max-length, or embed them in chunks of that length and average these.",
    ),
]
Pooling = Annotated[
    Literal["mean", "weightedmean", "lasttoken", "cls"] | None,
    typer.Option(
        metavar="mean|weightedmean|lasttoken|cls",
        rich_help_panel=MODEL,
        help="How the states of a text's tokens become its vector. Default: the model's setting.",
    ),
]
Attn = Annotated[
    Literal["bbcc", "cccc", "bb", "cc"] | None,
    typer.Option(
        metavar="bbcc|cccc",
        rich_help_panel=MODEL,
        help="Attention when embedding: bidirectional (bbcc) or causal (cccc). Default: the model's setting.",
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        metavar="TEXTS",
        min=1,
        rich_help_panel=MODEL,
        help="Most texts computed at once. Default: what fits into memory.",
    ),
]

# Generating

System = Annotated[
    str | None, typer.Option(metavar="TEXT", rich_help_panel=INPUT, help="Instructions that precede the conversation.")
]
MaxTokens = Annotated[
    int,
    typer.Option(metavar="TOKENS", min=-1, rich_help_panel=SAMPLING, help="Most tokens of an answer; -1 for no limit."),
]
Temperature = Annotated[
    float,
    typer.Option(
        "--temperature",
        "--temp",
        metavar="NUMBER",
        min=0.0,
        rich_help_panel=SAMPLING,
        help="0 always takes the likeliest token; higher is more varied.",
    ),
]
TopP = Annotated[
    float,
    typer.Option(
        metavar="NUMBER",
        min=0.0,
        max=1.0,
        rich_help_panel=SAMPLING,
        help="Draw from the likeliest tokens that together have this probability.",
    ),
]
TopK = Annotated[
    int,
    typer.Option(
        metavar="COUNT", min=0, rich_help_panel=SAMPLING, help="Draw from this many likeliest tokens; 0 for all."
    ),
]
MinP = Annotated[
    float,
    typer.Option(
        metavar="NUMBER",
        min=0.0,
        max=1.0,
        rich_help_panel=SAMPLING,
        help="Leave out tokens less likely than this times the likeliest.",
    ),
]
RepetitionPenalty = Annotated[
    float | None,
    typer.Option(
        metavar="NUMBER",
        rich_help_panel=SAMPLING,
        help="Divide the score of recent tokens by this; 1.1 is a mild penalty.",
    ),
]
Seed = Annotated[
    int | None, typer.Option(metavar="NUMBER", min=0, rich_help_panel=SAMPLING, help="Make what is drawn repeatable.")
]
Stop = Annotated[
    list[str] | None,
    typer.Option(metavar="TEXT", rich_help_panel=SAMPLING, help="Stop at this text; may be given several times."),
]
KvBits = Annotated[
    int | None,
    typer.Option(
        metavar="BITS", rich_help_panel=MODEL, help="Keep keys and values in 2, 3, 4, 6 or 8 bits, to save memory."
    ),
]

# Every command

JsonFlag = Annotated[bool, typer.Option("--json", rich_help_panel=OUTPUT, help="Print JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No notes, no warnings, no progress; errors only.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Details on stderr; with an error, where it came from.")]
