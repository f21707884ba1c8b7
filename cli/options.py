"""From tables of options to flags: what a command takes, and how its help page is laid out.

A command is a function whose parameters are arguments and options of its own, or whole groups of options
(``ModelChoice``, ``GenerationOptions``, ...: see ``grit_mlx.options``)::

    @options.command
    def generate(
        prompt: Annotated[str, typer.Argument(metavar="PROMPT")],
        sampling: GenerationOptions,
        model: Annotated[ModelChoice, Use(without=("pooling", "attn"))],
    ) -> None:

Every command also gets ``--quiet`` and ``--verbose``, and has its streams set up before it runs.
"""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import partial, wraps
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from grit_mlx.cli import console
from grit_mlx.options import Spec, spec_of

__all__ = [
    "INPUT",
    "MODEL",
    "OUTPUT",
    "Command",
    "Files",
    "JsonFlag",
    "System",
    "Use",
    "command",
]

# Headings of help pages.
INPUT = "Input"
MODEL = "Model"
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


@dataclass(frozen=True)
class Use:
    """How a command uses a group of options.

    Attributes:
        only: the fields that it takes; empty for all.
        without: those that it does not take.
        defaults: other defaults than the group's.
        helps: other texts of help than the group's.
    """

    only: Sequence[str] = ()
    without: Sequence[str] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    helps: Mapping[str, str] = field(default_factory=dict)


def command(
    function: Callable[..., None] | None = None, *, quiet: Sequence[str] = ("--quiet", "-q")
) -> Callable[..., Any]:
    """The function as Typer takes it: groups of options as one flag for each of their fields.

    Args:
        function: the command.
        quiet: the flags of ``--quiet``.
    """
    if function is None:
        return partial(command, quiet=quiet)
    hints = typing.get_type_hints(function, include_extras=True)
    parameters: list[inspect.Parameter] = []
    groups: dict[str, tuple[type, list[str]]] = {}
    flags: dict[str, str] = {}  # by Python's name, for messages
    for parameter in inspect.signature(function).parameters.values():
        group, use = _group_of(hints[parameter.name])
        if group is None:
            parameters.append(parameter.replace(annotation=hints[parameter.name]))
            flags.setdefault(parameter.name, _flag_of(parameter.name, hints[parameter.name]))
            continue
        chosen = [one for one in fields(group) if _is_taken(one, use)]
        groups[parameter.name] = group, [one.name for one in chosen]
        types_of = typing.get_type_hints(group)
        for one in chosen:
            name = f"{parameter.name}__{one.name}"
            flag = _flags(one.name, spec_of(one))[0]
            flags[one.name] = flag
            default = use.defaults.get(one.name, one.default)
            annotation = _annotation(one, types_of[one.name], default, use=use, heading=getattr(group, "heading", ""))
            default = None if default in ((), [], {}) else default
            parameters.append(
                inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
            )
    shared = {
        "quiet": Annotated[bool, typer.Option(*quiet, help="Print errors only.")],
        "verbose": Annotated[
            bool, typer.Option("--verbose", "-v", help="Print details, and tracebacks of errors, to stderr.")
        ],
    }
    for name, annotation in shared.items():
        parameters.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=annotation))

    @wraps(function)
    def run(*, quiet: bool, verbose: bool, **arguments: Any) -> None:
        console.set_up(quiet=quiet, verbose=verbose, flags=flags)
        for name, (group, members) in groups.items():
            arguments[name] = group(**{member: arguments.pop(f"{name}__{member}") for member in members})
        function(**arguments)

    parameters = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in parameters]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    return run


def _group_of(hint: Any) -> tuple[Any, Use]:
    """The group that a parameter is annotated with, and how it is used; None where it is an option of its own."""
    plain, use = hint, Use()
    if typing.get_origin(hint) is Annotated:
        plain, *extras = typing.get_args(hint)
        use = next((one for one in extras if isinstance(one, Use)), use)
    return (plain, use) if is_dataclass(plain) else (None, use)


def _is_taken(one: dataclasses.Field[Any], use: Use) -> bool:
    spec = one.metadata.get("spec")
    return (
        spec is not None
        and spec.flags is not None
        and (not use.only or one.name in use.only)
        and (one.name not in use.without)
    )


def _flags(name: str, spec: Spec) -> tuple[str, ...]:
    return spec.flags or ("--" + name.replace("_", "-"),)


def _flag_of(name: str, hint: Any) -> str:
    """The flag of a command's own option."""
    for one in typing.get_args(hint)[1:]:
        if declared := [flag for flag in getattr(one, "param_decls", None) or () if flag.startswith("--")]:
            return str(declared[0]).partition("/")[0]
    return "--" + name.replace("_", "-")


_METAVARS = {int: "N", float: "X", str: "TEXT"}


def _annotation(one: dataclasses.Field[Any], hint: Any, default: Any, *, use: Use, heading: str) -> Any:
    """The annotation from which Typer makes one flag."""
    spec = spec_of(one)
    kinds = [kind for kind in _alternatives(hint) if kind is not type(None)]
    kind = kinds[0] if len(kinds) == 1 else str  # such as str | Path
    repeated = typing.get_origin(kind) is not None
    plain = typing.get_args(kind)[0] if repeated else kind
    extra: dict[str, Any] = {}
    if spec.parse is not None:
        plain, extra["parser"] = str, spec.parse
    elif plain in (int, float):
        extra["min"] = min([spec.minimum, *spec.also]) if spec.minimum is not None else None
        extra["max"] = spec.maximum
        if plain is int:
            extra = {name: None if bound is None else int(bound) for name, bound in extra.items()}
    choices = spec.choices if plain is str else ()
    if plain is not bool:
        extra["metavar"] = spec.metavar or "|".join(choices) or _METAVARS[plain]
    typed: Any = Literal[choices] if choices else plain
    if repeated:
        typed = list[typed]
    if default is None or repeated:
        typed = typed | None
    declared = _flags(one.name, spec)
    if plain is bool and default is not False:
        declared = (f"{declared[0]}/--no-{declared[0][2:]}",)
    option = typer.Option(
        *declared, rich_help_panel=spec.heading or heading, help=use.helps.get(one.name, spec.help), **extra
    )
    return Annotated[typed, option]


def _alternatives(hint: Any) -> tuple[Any, ...]:
    union = isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
    return typing.get_args(hint) if union else (hint,)


# Input

Files = Annotated[
    list[str],
    typer.Argument(
        metavar="FILE...",
        help="Text, Markdown, HTML, PDF, DOCX, .jsonl, .json, .csv or .tsv, optionally gzipped; - reads stdin.",
    ),
]

# Generating

System = Annotated[str | None, typer.Option(metavar="TEXT", rich_help_panel=INPUT, help="System message.")]
# Every command

JsonFlag = Annotated[bool, typer.Option("--json", rich_help_panel=OUTPUT, help="Print JSON.")]
