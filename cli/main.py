"""The ``grit`` command: its subcommands, and the one place where errors become a line and an exit code.

====  =============================================================
0     done
1     a named error, reported in one line
2     wrong usage
130   Ctrl-C; 143 after SIGTERM, 129 when the terminal is closed
141   the reader of the output has closed it, as ``head`` does
====  =============================================================
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from grit_mlx.cli import console, launch, options, peers
from grit_mlx.errors import GritError, full_disk, impossible_path, lost_process, lost_working_folder

__all__ = ["COMMANDS", "app", "main"]


# Each command with the first sentence of its help (a test compares), in the order of the help page.
COMMANDS = {
    "embed": "Turn texts into vectors.",
    "search": "Rank the texts of files by meaning, as grep finds words.",
    "similarity": "Compare the meaning of two texts or more.",
    "generate": "Answer a prompt.",
    "chat": "Talk with the model.",
    "eval": "Score a model on labelled data: retrieval (nDCG@10), sentence pairs (Spearman), answers (perplexity).",
    "convert": "Convert a model to an MLX folder, quantised or not, in a few hundred megabytes of memory.",
    "train": "Tune a model for embedding, for generating, or for both.",
    "fuse": "Fuse an adapter into its model's weights, as a model folder of its own.",
    "rag": "Make files searchable, and answer from them.",
    "rag index": "Make files searchable, or bring a store up to date with them.",
    "rag watch": "Keep a store up to date with files until Ctrl-C.",
    "rag ask": "Answer a question from a store, as it comes, and name the sources.",
    "rag chat": "Chat about what a store holds.",
    "rag stats": "Show what a store holds, and how much disk space it takes.",
    "rag remove": "Remove files from a store; the files themselves stay.",
    "rag verify": "Check a store for changed files and damaged rows and caches.",
    "serve": "Serve models and stores to other programs, over HTTP.",
    "mcp": "Give programs that speak MCP tools to search, read and ask what is indexed.",
    "models": "List, describe, download, choose and remove models.",
    "models list": "List the models on this machine, with the default marked.",
    "models info": "Show a model's architecture, size, precision and settings.",
    "models pull": "Download a model and print its folder.",
    "models use": "Choose the model that commands use by default.",
    "models remove": "Delete a model that was pulled or converted.",
    "doctor": "Check this machine, and say what to do about problems.",
    "bench": "Measure how fast this machine runs a model.",
}

# The headings of grit's own help page, in their order.
SECTIONS = {
    "Use": ("embed", "search", "similarity", "generate", "chat", "serve", "mcp"),
    "Files": ("rag",),
    "Models": ("models", "convert"),
    "Training": ("train", "fuse", "eval"),
    "Machine": ("doctor", "bench"),
}

# Functions and modules that are not named after their command.
_NAMES = {"eval": "evaluate", "list": "list_models"}

EXAMPLES = """
Examples:
  grit embed README.md
  grit search "how do I run the tests" README.md
  grit generate "Write a haiku about rain."

See grit COMMAND --help for details. NO_COLOR=1 turns colours off.
"""

WELCOME = """
One model that finds text by meaning and writes.
Find in files, make a folder searchable, ask it:

  grit search "how do I run the tests" README.md
  grit rag index ~/notes
  grit rag ask "When is the boiler serviced?"

All commands:             grit --help
Models for this machine:  grit models list --available
"""

_CLOSED_PIPE = 128 + signal.SIGPIPE
_INTERRUPTED = 128 + signal.SIGINT


class Command(TyperCommand):
    """A command or group of commands, imported only when it runs or shows its own help.

    Args:
        path: a key of ``COMMANDS``. The command is a function of the module named after its first word.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        super().__init__(path.rpartition(" ")[2], help=COMMANDS[path])

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """The context of the real command, in which it parses its arguments and runs."""
        if not _commands(self.path):
            launch.enter(self.path)
        return self.loaded().make_context(info_name, args, parent, **extra)

    def loaded(self) -> Any:
        """The real command."""
        name = str(self.name)
        group = self.path.partition(" ")[0]
        module = importlib.import_module(f"grit_mlx.cli.{_NAMES.get(group, group)}")
        if commands := _commands(self.path):
            help_, examples = COMMANDS[self.path], module.EXAMPLES
            return Commands(name=name, commands=commands, help=help_, epilog=examples, rich_markup_mode=None)
        examples = getattr(module, f"{name.upper()}_EXAMPLES", module.EXAMPLES)
        single = typer.Typer(rich_markup_mode=None, add_completion=False)
        single.command(name, cls=options.Command, epilog=examples)(getattr(module, _NAMES.get(name, name)))
        return typer.main.get_command(single)


def _commands(group: str) -> dict[str, Any]:
    """The commands of a group, by their names in it; ``""`` is grit itself."""
    paths = [path for path in COMMANDS if path.rpartition(" ")[0] == group]
    return {path.rpartition(" ")[2]: Command(path) for path in paths}


class Commands(TyperGroup):
    """A group of commands, grit itself if none are given. Every error ends here."""

    def __init__(self, *, commands: Any = None, **settings: Any) -> None:
        super().__init__(commands=commands or _commands(""), **settings)

    @property
    def group(self) -> str:
        """The word that its commands follow: ``"rag"``, ``"models"``, or ``""`` for grit itself."""
        return "" if self.name in (None, app.info.name) else str(self.name)

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """The context of the group; wrong usage is reported here, and that help could not be written."""
        with _reported():
            return super().make_context(info_name, args, parent, **extra)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """No arguments at all ask for help, which is not an error."""
        if not args and not self.group and console.stdout_is_terminal():
            console.write(WELCOME.strip())
            raise typer.Exit
        return super().parse_args(ctx, args or ["--help"])

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """The command of that name, or of the name that another tool has for it."""
        if ctx.resilient_parsing:  # a shell completes it
            return super().resolve_command(ctx, args)
        named = peers.translated(self.group, args, self.commands)
        if named[0] in ctx.help_option_names:
            console.write(ctx.get_help())
            raise typer.Exit
        if named[0] == "--version":
            _show_version(True)
        if named[0] not in self.commands and (hint := peers.hint(self.group, named[0])):
            ctx.fail(f"No such command {args[0]!r}. {hint}")
        return super().resolve_command(ctx, named)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """The commands; of grit itself under headings."""
        if self.group:
            super().format_commands(ctx, formatter)
            return
        placed = {name for names in SECTIONS.values() for name in names}
        others = tuple(name for name in self.commands if name not in placed)
        width = max(map(len, self.commands))
        for heading, names in {**SECTIONS, "Other": others}.items():
            rows = [
                (f"{name:<{width}}", self.commands[name].get_short_help_str(formatter.width - 6 - width))
                for name in names
                if name in self.commands
            ]
            if rows:
                with formatter.section(heading):
                    formatter.write_dl(rows)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """The examples as they stand."""
        options.Command.format_epilog(self, ctx, formatter)  # type: ignore[arg-type]

    def invoke(self, ctx: Any) -> Any:
        """Run a command.

        Raises:
            typer.Exit: with the code of the table above, once the reason has been shown.
        """
        console.reset()
        try:
            with _reported():
                result = super().invoke(ctx)
                console.finish()
        finally:
            launch.leave()
        return result


@contextmanager
def _reported() -> Iterator[None]:
    """Errors become a line on stderr and an exit code."""
    try:
        with _reported_usage():
            try:
                yield
            except typer.Exit:
                console.flush()  # help or a version, before Python finds at its end that it could not be written
                raise
    except GritError as error:
        console.error(error)
        raise typer.Exit(1) from error
    except BrokenPipeError as error:
        console.silence_stdout()
        raise typer.Exit(_CLOSED_PIPE) from error
    except KeyboardInterrupt as error:
        launch.interrupted()
        if console.stderr_is_terminal():
            sys.stderr.write("\n")  # below the ^C
        raise typer.Exit(_INTERRUPTED) from error
    except (OSError, RuntimeError) as error:
        lost = lost_working_folder() if isinstance(error, FileNotFoundError) else lost_process(error)
        if full := full_disk(error):
            console.silence_stdout()  # which may hold what could not be written
        if (cause := lost or impossible_path(error) or full) is None:
            raise
        console.error(cause)
        raise typer.Exit(1) from error


@contextmanager
def _reported_usage() -> Iterator[None]:
    try:
        yield
    except console.UsageError as error:
        console.usage_error(error)
        raise typer.Exit(error.exit_code) from error


app = typer.Typer(
    name="grit",
    cls=Commands,
    epilog=EXAMPLES,
    # Plain help: it reads the same in a terminal, a pipe and docs/cli.md, and rich need not be imported for it.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from grit_mlx import __version__

        console.write(f"grit-mlx {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version and exit.")
    ] = False,
) -> None:
    """GritLM on Apple silicon: embeddings and text generation from one model, on this machine."""


def main() -> None:
    """Run ``grit`` with the arguments of the process, and exit with its code."""
    # A stream that the caller closed is None; everything below takes streams for granted.
    sys.stdin = sys.stdin or open(os.devnull, encoding="utf-8")  # noqa: PTH123, SIM115
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
    # As an exception it passes the blocks that remove temporary files.
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) is signal.SIG_DFL:
            signal.signal(getattr(signal, name), _terminate)
    app(prog_name="grit")


def _terminate(number: int, _frame: FrameType | None) -> NoReturn:
    launch.stopped()
    raise SystemExit(128 + number)
