"""What the command line says: results on stdout; notes, warnings, errors and progress on stderr.

Text that comes from files, models or file names is shown with its control characters spelled out: a file must
not be able to move the cursor, recolour the terminal or forge a line of output. rich is imported only where
something is drawn, so that ``grit --help`` and pipes do not pay for it.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from grit_mlx.errors import GritError, Option, OutputError
from grit_mlx.progress import Progress, bar

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

__all__ = [
    "draws",
    "dumps",
    "error",
    "error_console",
    "flush",
    "note",
    "phases",
    "progress",
    "reset",
    "set_up",
    "show",
    "silence_hub",
    "silence_stdout",
    "spelled",
    "status",
    "stderr_is_terminal",
    "stdin_is_terminal",
    "stdout_is_terminal",
    "verbose",
    "visible",
    "warn",
    "width",
    "worded",
    "write",
]

# Control characters of ASCII and Latin-1, separators of lines, overrides of the writing direction, and halves of
# surrogate pairs, which no encoding can write.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@dataclass
class _State:
    quiet: bool = False
    verbose: bool = False
    flags: Mapping[str, str] = field(default_factory=dict)  # of the running command, by Python's names


_state = _State()


def reset() -> None:
    """Forget what the last command of this process arranged; only tests run more than one."""
    _state.quiet = _state.verbose = False
    _state.flags = {}
    _console.cache_clear()
    error_console.cache_clear()


def set_up(*, quiet: bool, verbose: bool, flags: Mapping[str, str] | None = None) -> None:
    """Arrange the streams, the library's log and other libraries' chatter; each command begins with it.

    Args:
        quiet: no notes, no warnings, no progress.
        verbose: details.
        flags: of the command, by Python's names: how messages spell the options that they mention. None leaves
            what was set before.
    """
    _state.quiet, _state.verbose = quiet, verbose
    if flags is not None:
        _state.flags = flags
    for stream in (sys.stdout, sys.stdin):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            # A pipe carries UTF-8 whatever the locale says. A terminal gets what it can show.
            encoding = {} if stream.isatty() else {"encoding": "utf-8"}
            reconfigure(errors="replace", **encoding)
    logger = logging.getLogger("grit_mlx")
    logger.setLevel(logging.DEBUG if verbose else logging.INFO)
    logger.propagate = False
    logger.handlers = [_Notes()]
    if not verbose:
        warnings.simplefilter("ignore")  # other libraries' deprecations
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    if quiet or not stderr_is_terminal():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def silence_hub() -> None:
    """No progress bars of the hub's client, where the command shows its own; not with --verbose."""
    if not _state.verbose:
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"


def verbose() -> bool:
    """Whether details were asked for."""
    return _state.verbose


def stdout_is_terminal() -> bool:
    """Whether someone reads stdout, and no program."""
    return sys.stdout.isatty()


def stdin_is_terminal() -> bool:
    """Whether someone types, and no program."""
    return sys.stdin.isatty()


def stderr_is_terminal() -> bool:
    """Whether someone reads stderr."""
    return sys.stderr.isatty()


def draws() -> bool:
    """Whether bars are shown: someone reads stderr, and wants to."""
    return stderr_is_terminal() and not _state.quiet


def width() -> int:
    """Columns of the terminal."""
    return _console().width


# Text


def visible(text: str, *, keep: str = "") -> str:
    r"""The text with control characters spelled out, such as ``\x1b`` for escape.

    Args:
        text: any text.
        keep: control characters that stay as they are.
    """
    return _UNSAFE.sub(lambda match: match[0] if match[0] in keep else repr(match[0])[1:-1], text)


def dumps(value: object, *, indent: int | None = None) -> str:
    """JSON as this program writes it: readable in any script."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


# Results


def write(text: str, *, end: str = "\n") -> None:
    """Write a result to stdout.

    Raises:
        OutputError: stdout leads to a disk that is full, or the like.
        BrokenPipeError: the reader has gone.
    """
    with _stdout_errors():
        sys.stdout.write(text + end)


def flush() -> None:
    """Hand over what was written.

    Raises:
        As ``write``.
    """
    with _stdout_errors():
        sys.stdout.flush()


def show(result: RenderableType) -> None:
    """Draw something of rich's on stdout; long lines of text are left for the terminal to wrap."""
    from rich.text import Text

    with _stdout_errors():
        _console().print(result, soft_wrap=isinstance(result, Text))


def silence_stdout() -> None:
    """Throw away what stdout still holds, so that the interpreter does not stumble over it at its end."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):  # no real file, as in tests
        return


@contextmanager
def _stdout_errors() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or str(error)
        silence_stdout()
        raise OutputError(f"Cannot write to standard output: {reason}.") from error


# Messages


def note(text: str) -> None:
    """Tell something that is good to know; not with --quiet."""
    if not _state.quiet:
        _say("note", "dim", text)


def warn(text: str) -> None:
    """Tell something that is likely wrong; not with --quiet."""
    if not _state.quiet:
        _say("warning", "yellow", text)


def error(failure: GritError) -> None:
    """Tell why the command failed, in one line; with --verbose also where in the code."""
    if _state.verbose:
        sys.stderr.write("".join(traceback.format_exception(failure)))
    _say("error", "bold red", worded(failure))


def worded(failure: GritError) -> str:
    """A message in which options are called by their flags."""
    return "".join(spelled(part) if isinstance(part, Option) else part for part in failure.parts)


def spelled(option: Option) -> str:
    """An option as one types it; as Python spells it where the command has no such flag."""
    flag = _state.flags.get(option.name)
    if flag is None:
        return str(option)
    return flag if option.value in (None, True) else f"{flag} {option.value}"


def _say(label: str, style: str, text: str) -> None:
    text = visible(text)
    if not stderr_is_terminal():
        sys.stderr.write(f"{label}: {text}\n")
        return
    from rich.text import Text

    error_console().print(Text.assemble((f"{label}:", style), " ", text), soft_wrap=True)


class _Notes(logging.Handler):
    """Shows the library's log as notes and warnings."""

    def emit(self, record: logging.LogRecord) -> None:
        if isinstance(record.args, tuple):
            record.args = tuple(spelled(one) if isinstance(one, Option) else one for one in record.args)
        text = record.getMessage()
        if record.levelno >= logging.WARNING:
            warn(text)
        else:
            note(text)


# Work that takes a while


@contextmanager
def status(text: str) -> Iterator[None]:
    """Show what is going on, as long as it does; only where stderr is a terminal."""
    if _state.quiet or not stderr_is_terminal():
        yield
        return
    from rich.text import Text

    with error_console().status(Text(visible(text))):
        yield


@contextmanager
def progress(label: str, total: int | None) -> Iterator[Progress]:
    """Show a bar; only where stderr is a terminal.

    Args:
        label: what is being done.
        total: how much there is to do; None where that is unknown.
    """
    if _state.quiet or not stderr_is_terminal():
        yield lambda _done, _total: None
        return
    with bar(label, total, console=error_console()) as advance:
        yield advance


@contextmanager
def phases() -> Iterator[Callable[[str, str, int, int], None]]:
    """Show work that goes through several phases, a bar for each; only where stderr is a terminal.

    Yields:
        To be called with the phase's label, how far it is in words, and in numbers.
    """
    if _state.quiet or not stderr_is_terminal():
        yield lambda _label, _detail, _done, _total: None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = [TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[detail]}")]
    with Progress(*columns, TimeRemainingColumn(), console=error_console(), transient=True) as bars:
        tasks: dict[str, Any] = {}

        def advance(label: str, detail: str, done: int, total: int) -> None:
            if label not in tasks:
                for task in tasks.values():
                    bars.update(task, visible=False)
                tasks[label] = bars.add_task(label, detail=detail)
            bars.update(tasks[label], completed=done, total=total, detail=detail)

        yield advance


@cache
def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False, markup=False, emoji=False)


@cache
def error_console() -> Console:
    """A console of rich's on stderr, for what this module has no function for."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, markup=False, emoji=False)
