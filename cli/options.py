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
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import partial, wraps
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from grit_mlx.cli import console, peers
from grit_mlx.errors import ArgumentError
from grit_mlx.options import Spec, alternatives, default_of, spec_of

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

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments, flags of other tools included."""
        if ctx.resilient_parsing:  # a shell completes them
            return super().parse_args(ctx, args)
        try:
            args = peers.flags(args, self.get_params(ctx))
        except peers.FlagError as error:
            ctx.fail(str(error))
        return super().parse_args(ctx, args)

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
        given: the group of a parameter that is a mapping: of those of its options that were given. They override
            what a settings file says, which the others do not.
    """

    only: Sequence[str] = ()
    without: Sequence[str] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    helps: Mapping[str, str] = field(default_factory=dict)
    given: type | None = None


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
    annotations: dict[str, tuple[Any, Any]] = {}  # with the default, by the name that Typer knows
    groups: dict[str, tuple[Any, Use, dict[str, Any]]] = {}  # with the types of the fields taken
    flags: dict[str, str] = {}  # by the option's name, for messages
    for parameter in inspect.signature(function).parameters.values():
        hint = hints[parameter.name]
        group, use = _group_of(hint)
        if group is None:
            annotations[parameter.name] = hint, parameter.default
            flags.setdefault(parameter.name, _flag_of(parameter.name, hint))
            continue
        types = typing.get_type_hints(group)
        taken = [one for one in fields(group) if _is_taken(one, use)]
        groups[parameter.name] = group, use, {one.name: types[one.name] for one in taken}
        for one in taken:
            annotations[f"{parameter.name}__{one.name}"] = _annotation(group, one, types[one.name], use)
            flags[one.name] = _flags(one.name, spec_of(one))[0]
    annotations |= {
        "quiet": (Annotated[bool, typer.Option(*quiet, help="Print errors only.")], False),
        "verbose": (Annotated[bool, typer.Option("--verbose", "-v", help=_VERBOSE)], False),
        "context": (typer.Context, inspect.Parameter.empty),
    }

    @wraps(function)
    def run(*, context: typer.Context, quiet: bool, verbose: bool, **arguments: Any) -> None:
        json = any(context.params.get(name) is True for name in _JSON)
        console.set_up(quiet=quiet, verbose=verbose, json=json, flags=flags)
        for name, (group, use, types) in groups.items():
            values = {one: arguments.pop(f"{name}__{one}") for one in types}
            values |= {one: dict(values[one] or ()) for one, hint in types.items() if _is_table(hint)}
            if use.given is None:
                arguments[name] = group(**values)
            else:
                arguments[name] = {one: values[one] for one in types if _was_given(context, f"{name}__{one}")}
        function(**arguments)

    run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
            for name, (annotation, default) in annotations.items()
        ]
    )
    run.__annotations__ = {name: annotation for name, (annotation, _) in annotations.items()}
    return run


# Parameters that ask for JSON on stdout.
_JSON = ("json_output", "output__json")
_VERBOSE = "Print details, and tracebacks of errors, to stderr."


def _was_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _group_of(hint: Any) -> tuple[Any, Use]:
    """The group that a parameter stands for, and how it is used; None where it is an option of its own."""
    plain, use = hint, Use()
    if typing.get_origin(hint) is Annotated:
        plain, *extras = typing.get_args(hint)
        use = next((one for one in extras if isinstance(one, Use)), use)
    group = use.given or plain
    return (group, use) if is_dataclass(group) else (None, use)


def _is_taken(one: dataclasses.Field[Any], use: Use) -> bool:
    return (
        "spec" in one.metadata
        and spec_of(one).flags is not None
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


def _annotation(group: Any, one: dataclasses.Field[Any], hint: Any, use: Use) -> tuple[Any, Any]:
    """The annotation from which Typer makes one flag, and its default."""
    spec = spec_of(one)
    kinds = alternatives(hint)
    kind = kinds[0] if len(kinds) == 1 else str  # such as str | Path
    origin = typing.get_origin(kind)
    plain = kind if origin is None else str if origin is dict else typing.get_args(kind)[0]
    default = use.defaults.get(one.name, default_of(one))
    if isinstance(default, dict):
        default = [f"{name}={value}" for name, value in default.items()]
    default = None if default in ((), []) else default
    extra: dict[str, Any] = {}
    if parse := _pair if origin is dict else spec.parse:
        plain, extra["parser"] = str, partial(_parsed, parse)
    elif plain in (int, float):
        extra["min"] = None if spec.minimum is None else min([spec.minimum, *spec.also])
        extra["max"] = spec.maximum
    choices = spec.choices if plain is str else ()
    if plain is not bool:
        extra["metavar"] = spec.metavar or "|".join(choices) or ("NAME=VALUE" if origin is dict else _METAVARS[plain])
    typed: Any = Literal[choices] if choices else plain
    if origin is not None:  # Typer knows no lists of choices: the group checks them
        typed = list[plain]  # type: ignore[valid-type]
    if default is None:
        typed = typed | None
    declared = _flags(one.name, spec)
    if plain is bool and (use.given or default is not False):
        declared = (f"{declared[0]}/--no-{declared[0][2:]}",)
        extra["show_default"] = bool(default)
    heading = spec.heading or getattr(group, "heading", "")
    help_ = use.helps.get(one.name, spec.help) + (" Can be given several times." if origin else "")
    return Annotated[typed, typer.Option(*declared, rich_help_panel=heading, help=help_, **extra)], default


def _is_table(hint: Any) -> bool:
    return typing.get_origin(alternatives(hint)[0]) is dict


def _pair(text: str) -> tuple[str, Any]:
    """An entry of a table, from ``NAME=VALUE``; the value is read as YAML reads it."""
    import yaml

    name, equals, value = text.partition("=")
    if not equals:
        raise ArgumentError(f"{text!r} is not NAME=VALUE.")
    try:
        return name, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ArgumentError(f"{text!r} is not NAME=VALUE: the value is not YAML.") from error


def _parsed(parse: Callable[[str], Any], text: str) -> Any:
    try:
        return parse(text)
    except ArgumentError as error:
        raise typer.BadParameter(str(error)) from error


# What several commands have.

Files = Annotated[
    list[str],
    typer.Argument(
        metavar="FILE...",
        help="Text, Markdown, HTML, PDF, DOCX, .jsonl, .json, .csv or .tsv, optionally gzipped; - reads stdin; a text "
        "in quotes is embedded itself.",
    ),
]

System = Annotated[str | None, typer.Option(metavar="TEXT", rich_help_panel=INPUT, help="System message.")]

JsonFlag = Annotated[bool, typer.Option("--json", rich_help_panel=OUTPUT, help="Print JSON.")]
