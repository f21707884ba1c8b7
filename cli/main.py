"""The ``grit`` command: its subcommands, and the one place where errors become a line and an exit code.

====  =============================================================
0     done
1     a named error, told in one line
2     wrong usage
130   Ctrl-C; 143 when told to terminate, 129 when the terminal went
141   the reader of the output has gone, as ``head`` does
====  =============================================================
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from grit_mlx.cli import (
    chat,
    console,
    convert,
    doctor,
    embed,
    evaluate,
    fuse,
    generate,
    models,
    options,
    rag,
    search,
    similarity,
    train,
)
from grit_mlx.errors import GritError

__all__ = ["app", "main"]

EXAMPLES = """
Examples:
  grit embed README.md
  grit search "how do I run the tests" README.md
  grit generate "Write a haiku about rain."

grit COMMAND --help tells more about each. NO_COLOR=1 turns colours off.
"""

_CLOSED_PIPE = 128 + signal.SIGPIPE
_INTERRUPTED = 128 + signal.SIGINT


class Commands(TyperGroup):
    """A group of commands in whose middle every error ends."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """No arguments at all ask for help, which is no error."""
        return super().parse_args(ctx, args or ["--help"])

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """The examples as they stand."""
        options.Command.format_epilog(self, ctx, formatter)  # type: ignore[arg-type]

    def invoke(self, ctx: Any) -> Any:
        """Run a command.

        Raises:
            typer.Exit: with the code of the table above, once the reason was told.
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
rag_app = typer.Typer(cls=Commands, rich_markup_mode=None, help="Make files searchable, and answer from them.")
models_app = typer.Typer(cls=Commands, rich_markup_mode=None, help="List, describe, download and choose models.")
app.command(cls=options.Command, epilog=embed.EXAMPLES)(embed.embed)
app.command(cls=options.Command, epilog=search.EXAMPLES)(search.search)
app.command(cls=options.Command, epilog=similarity.EXAMPLES)(similarity.similarity)
app.command(cls=options.Command, epilog=generate.EXAMPLES)(generate.generate)
app.command(cls=options.Command, epilog=chat.EXAMPLES)(chat.chat)
app.command("eval", cls=options.Command, epilog=evaluate.EXAMPLES)(evaluate.evaluate)
app.command(cls=options.Command, epilog=convert.EXAMPLES)(convert.convert)
app.command(cls=options.Command, epilog=train.EXAMPLES)(train.train)
app.command(cls=options.Command, epilog=fuse.EXAMPLES)(fuse.fuse)
app.add_typer(rag_app, name="rag", epilog=rag.EXAMPLES)
app.add_typer(models_app, name="models", epilog=models.EXAMPLES)
app.command(cls=options.Command, epilog=doctor.EXAMPLES)(doctor.doctor)
rag_app.command(cls=options.Command, epilog=rag.INDEX_EXAMPLES)(rag.index)
rag_app.command(cls=options.Command, epilog=rag.ASK_EXAMPLES)(rag.ask)
rag_app.command(cls=options.Command, epilog=rag.CHAT_EXAMPLES)(rag.chat)
rag_app.command(cls=options.Command, epilog=rag.STATS_EXAMPLES)(rag.stats)
rag_app.command(cls=options.Command, epilog=rag.REMOVE_EXAMPLES)(rag.remove)
rag_app.command(cls=options.Command, epilog=rag.VERIFY_EXAMPLES)(rag.verify)
models_app.command("list", cls=options.Command, epilog=models.LIST_EXAMPLES)(models.list_models)
models_app.command(cls=options.Command, epilog=models.INFO_EXAMPLES)(models.info)
models_app.command(cls=options.Command, epilog=models.PULL_EXAMPLES)(models.pull)
models_app.command(cls=options.Command, epilog=models.USE_EXAMPLES)(models.use)


def _show_version(wanted: bool) -> None:
    if wanted:
        from grit_mlx import __version__

        console.write(f"grit-mlx {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version and leave.")
    ] = False,
) -> None:
    """GritLM on Apple silicon: embeddings and text generation from one model, on this machine."""


def main() -> None:
    """Run ``grit`` with the arguments of the process, and leave with its exit code."""
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
