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
from types import FrameType
from typing import Annotated, Any, NamedTuple, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from grit_mlx.cli import console, options
from grit_mlx.errors import GritError

__all__ = ["COMMANDS", "app", "main"]


class Entry(NamedTuple):
    """Where a command is defined, and the first sentence of its help.

    Attributes:
        module: imported only when the command runs.
        function: in it; empty for a group of commands.
        summary: what ``grit --help`` says of it.
    """

    module: str
    function: str
    summary: str


# In the order of the help page.
COMMANDS = {
    "embed": Entry("grit_mlx.cli.embed", "embed", "Turn texts into vectors."),
    "search": Entry("grit_mlx.cli.search", "search", "Rank the texts of files by meaning, as grep finds words."),
    "similarity": Entry("grit_mlx.cli.similarity", "similarity", "Compare the meaning of two texts or more."),
    "generate": Entry("grit_mlx.cli.generate", "generate", "Write an answer to a prompt, as it comes."),
    "chat": Entry("grit_mlx.cli.chat", "chat", "Talk with the model."),
    "eval": Entry(
        "grit_mlx.cli.evaluate",
        "evaluate",
        "Score a model on labelled data: retrieval (nDCG@10), sentence pairs (Spearman), answers (perplexity).",
    ),
    "convert": Entry(
        "grit_mlx.cli.convert",
        "convert",
        "Make an MLX folder of a model, quantised or not, in a few hundred megabytes of memory.",
    ),
    "train": Entry("grit_mlx.cli.train", "train", "Tune a model for embedding, for generating, or for both."),
    "fuse": Entry(
        "grit_mlx.cli.fuse", "fuse", "Fuse an adapter into its model's weights, as a model folder of its own."
    ),
    "rag": Entry("grit_mlx.cli.rag", "", "Make files searchable, and answer from them."),
    "rag index": Entry("grit_mlx.cli.rag", "index", "Make files searchable, or bring a store up to date with them."),
    "rag ask": Entry("grit_mlx.cli.rag", "ask", "Answer a question from a store, as it comes, and say where from."),
    "rag chat": Entry("grit_mlx.cli.rag", "chat", "Talk about what a store holds."),
    "rag stats": Entry("grit_mlx.cli.rag", "stats", "Tell what a store holds, and how much disk it takes."),
    "rag remove": Entry("grit_mlx.cli.rag", "remove", "Take files out of a store; the files themselves stay."),
    "rag verify": Entry(
        "grit_mlx.cli.rag",
        "verify",
        "Look for what is wrong in a store: files that changed, damaged rows and caches.",
    ),
    "models": Entry("grit_mlx.cli.models", "", "List, describe, download and choose models."),
    "models list": Entry(
        "grit_mlx.cli.models", "list_models", "List the models on this machine, with the default marked."
    ),
    "models info": Entry("grit_mlx.cli.models", "info", "Show what a model is."),
    "models pull": Entry("grit_mlx.cli.models", "pull", "Download a model and print its folder."),
    "models use": Entry("grit_mlx.cli.models", "use", "Choose the model that commands use where none is named."),
    "doctor": Entry("grit_mlx.cli.doctor", "doctor", "Check this machine, and say what to do about problems."),
}

EXAMPLES = """
Examples:
  grit embed README.md
  grit search "how do I run the tests" README.md
  grit generate "Write a haiku about rain."

See grit COMMAND --help for details. NO_COLOR=1 turns colours off.
"""

_CLOSED_PIPE = 128 + signal.SIGPIPE
_INTERRUPTED = 128 + signal.SIGINT


class Command(TyperCommand):
    """A command whose module is imported when it runs, or shows its own help: ``grit --help`` waits for none."""

    def __init__(self, path: str) -> None:
        self.path, self.entry = path, COMMANDS[path]
        super().__init__(path.rpartition(" ")[2], help=self.entry.summary)

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """The context of the command itself, in which it parses its arguments and runs."""
        return self._loaded().make_context(info_name, args, parent, **extra)

    def _loaded(self) -> Any:
        module = importlib.import_module(self.entry.module)
        if not self.entry.function:
            return Commands(
                name=self.name,
                commands=_commands(self.path),
                help=self.entry.summary,
                epilog=module.EXAMPLES,
                rich_markup_mode=None,
            )
        examples = getattr(module, f"{str(self.name).upper()}_EXAMPLES", module.EXAMPLES)
        single = typer.Typer(rich_markup_mode=None, add_completion=False)
        single.command(self.name, cls=options.Command, epilog=examples)(getattr(module, self.entry.function))
        return typer.main.get_command(single)


def _commands(group: str) -> dict[str, Any]:
    """The commands of a group, by their names in it; ``""`` is grit itself."""
    paths = [path for path in COMMANDS if path.rpartition(" ")[0] == group]
    return {path.rpartition(" ")[2]: Command(path) for path in paths}


class Commands(TyperGroup):
    """A group of commands, grit itself if none are given. Every error ends here."""

    def __init__(self, *, commands: Any = None, **settings: Any) -> None:
        super().__init__(commands=commands or _commands(""), **settings)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """No arguments at all ask for help, which is not an error."""
        return super().parse_args(ctx, args or ["--help"])

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
            result = super().invoke(ctx)
            console.flush()
        except GritError as error:
            console.error(error)
            raise typer.Exit(1) from error
        except BrokenPipeError as error:
            console.silence_stdout()
            raise typer.Exit(_CLOSED_PIPE) from error
        except KeyboardInterrupt as error:
            if console.stderr_is_terminal():
                sys.stderr.write("\n")  # below the ^C
            raise typer.Exit(_INTERRUPTED) from error
        return result


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
    raise SystemExit(128 + number)
