"""What the command line says: results on stdout; notes, warnings, errors and progress on stderr.

Text that comes from files, models or file names is shown with its control characters escaped: a file must
not be able to move the cursor, recolour the terminal or forge a line of output. rich is imported only where
something is drawn, so that ``grit --help`` and pipes do not pay for it.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import stat
import sys
import termios
import textwrap
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

import typer

from grit_mlx.errors import GritError, Option, OutputError, Sentence, unwritable
from grit_mlx.progress import Progress, bar

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

__all__ = [
    "UsageError",
    "afterwards",
    "draws",
    "dumps",
    "error",
    "error_console",
    "failed",
    "finish",
    "flush",
    "for_a_person",
    "note",
    "phases",
    "progress",
    "progress_in_lines",
    "reset",
    "set_up",
    "show",
    "silence_hub",
    "silence_stdout",
    "status",
    "stderr_is_terminal",
    "stdin_holds_text",
    "stdin_is_terminal",
    "stdout_is_terminal",
    "usage_error",
    "verbose",
    "visible",
    "warn",
    "width",
    "worded",
    "write",
    "write_rows",
]

_NOTED_SECONDS = 60.0  # between two lines of progress

# Control characters of ASCII and Latin-1, separators of lines, overrides of the writing direction, and halves of
# surrogate pairs, which no encoding can write.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


# Wrong usage, of the click that this version of typer brings.
UsageError: Any = typer.BadParameter.__bases__[0]


@dataclass
class _State:
    quiet: bool = False
    verbose: bool = False
    json: bool = False
    failed: bool = False
    in_lines: bool = False
    afterwards: list[Callable[[], None]] = field(default_factory=list)
    flags: Mapping[str, str] = field(default_factory=dict)  # of the running command, by Python's names


_state = _State()


def reset() -> None:
    """Undo ``set_up``; only tests run more than one command in a process."""
    _state.quiet = _state.verbose = _state.json = _state.failed = _state.in_lines = False
    _state.flags, _state.afterwards = {}, []
    _console.cache_clear()
    error_console.cache_clear()


def set_up(*, quiet: bool, verbose: bool, json: bool = False, flags: Mapping[str, str] | None = None) -> None:
    """Set up the streams, the library's log and other libraries' output; each command begins with it.

    Args:
        quiet: no notes, no warnings, no progress.
        verbose: details.
        json: whether results are for programs.
        flags: the command's, by Python's names, for messages; None keeps them as they are.
    """
    _state.quiet, _state.verbose, _state.json = quiet, verbose, json
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
    if not draws():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def silence_hub() -> None:
    """No progress bars of the hub's client, where the command shows its own; not with --verbose."""
    if not _state.verbose:
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"


def verbose() -> bool:
    """Whether details were asked for."""
    return _state.verbose


def progress_in_lines() -> None:
    """Say every minute how far work is, where stderr is not a terminal but somebody may be waiting at one."""
    _state.in_lines = True


def for_a_person() -> bool:
    """Whether notes on the side are welcome: not with --quiet, nor where JSON was asked for."""
    return not (_state.quiet or _state.json)


def stdout_is_terminal() -> bool:
    """Whether stdout is shown to a person."""
    return sys.stdout.isatty()


def stdin_holds_text() -> bool:
    """Whether something was piped in that nobody has read."""
    try:
        number = sys.stdin.fileno()
        if stat.S_ISREG(os.fstat(number).st_mode):
            return os.fstat(number).st_size > os.lseek(number, 0, os.SEEK_CUR)
        if not stat.S_ISFIFO(os.fstat(number).st_mode):
            return False
        return int.from_bytes(fcntl.ioctl(number, termios.FIONREAD, bytes(4)), sys.byteorder) > 0
    except (OSError, ValueError):  # no real file, as in tests
        return False


def stdin_is_terminal() -> bool:
    """Whether a person types stdin."""
    return sys.stdin.isatty()


def stderr_is_terminal() -> bool:
    """Whether stderr is shown to a person."""
    return sys.stderr.isatty()


def draws() -> bool:
    """Whether bars are shown: on a terminal, without --quiet."""
    return stderr_is_terminal() and not _state.quiet


def width() -> int:
    """Columns of the terminal."""
    return _console().width


# Text


def visible(text: str, *, keep: str = "") -> str:
    r"""The text with control characters escaped, such as ``\x1b``.

    Args:
        text: any text.
        keep: control characters that are kept.
    """
    return _UNSAFE.sub(lambda match: match[0] if match[0] in keep else repr(match[0])[1:-1], text)


def dumps(value: object, *, indent: int | None = None) -> str:
    """JSON with characters of any script as they are."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


# Results


def write(text: str, *, end: str = "\n") -> None:
    """Write a result to stdout.

    Raises:
        OutputError: the disk behind stdout is full, or the like.
        BrokenPipeError: the reader has closed the pipe.
    """
    with _stdout_errors():
        sys.stdout.write(text + end)


def write_rows(rows: Mapping[str, object]) -> None:
    """Write labels and values in two columns."""
    width = max(map(len, rows))
    for label, value in rows.items():
        write(visible(f"{label:<{width}}  {value}"))


def flush() -> None:
    """Flush stdout.

    Raises:
        As ``write``.
    """
    with _stdout_errors():
        sys.stdout.flush()


def afterwards(act: Callable[[], None]) -> None:
    """Do something once the command has succeeded."""
    _state.afterwards.append(act)


def finish() -> None:
    """End a command that succeeded.

    Raises:
        As ``write``.
    """
    flush()
    for act in _state.afterwards:
        act()


def show(result: RenderableType) -> None:
    """Draw one of rich's objects on stdout; the terminal wraps long lines of text."""
    from rich.text import Text

    with _stdout_errors():
        _console().print(result, soft_wrap=isinstance(result, Text))


def silence_stdout() -> None:
    """Discard what stdout has buffered, which the interpreter would fail to write when it exits."""
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
        silence_stdout()
        raise OutputError(unwritable("standard output", error)) from error


# Messages


def note(*parts: str | Option) -> None:
    """Say something that is good to know; not with --quiet."""
    if not _state.quiet:
        _say("note", "dim", *parts)


def warn(*parts: str | Option) -> None:
    """Say something that is likely wrong; not with --quiet."""
    if not _state.quiet:
        _say("warning", "yellow", *parts)


def error(failure: GritError) -> None:
    """Say why the command failed, in one line; with --verbose also where in the code."""
    if _state.verbose:
        sys.stderr.write("".join(traceback.format_exception(failure)))
    _state.failed = True
    _say("error", "bold red", *failure.parts)


def failed() -> bool:
    """Whether an error was shown."""
    return _state.failed


def usage_error(failure: Any) -> None:
    """Say what is wrong with the way a command was called, below how it is called."""
    if failure.ctx is not None:
        sys.stderr.write(f"{failure.ctx.get_usage()}\nTry '{failure.ctx.command_path} --help' for help.\n")
    about = getattr(getattr(failure, "param", None), "help", None) or ""
    hint = " To read standard input, name it: -" if "stdin" in about and stdin_holds_text() else ""
    _say("error", "bold red", failure.format_message() + hint)


def worded(part: str | Option) -> str:
    """A part of a message: an option as its flag, or as Python spells it if the command has no such flag."""
    if isinstance(part, Sentence):
        return "".join(map(worded, part.parts))
    if isinstance(part, str):
        return part
    flag = _state.flags.get(part.name)
    if flag is None:
        return str(part)
    return flag if part.value in (None, True) else f"{flag} {part.value}"


def _say(label: str, style: str, *parts: str | Option) -> None:
    text = visible("".join(map(worded, parts)))
    if not stderr_is_terminal():
        sys.stderr.write(f"{label}: {text}\n")
        return
    from rich.text import Text

    # Lines break between words. What is longer than a line, such as a path, stays in one piece.
    whole = f"{label}: {text}"
    broken = textwrap.wrap(whole, width=error_console().width, break_long_words=False, break_on_hyphens=False)
    rest = "\n".join(broken).removeprefix(f"{label}:")
    error_console().print(Text.assemble((f"{label}:", style), rest), soft_wrap=True)


class _Notes(logging.Handler):
    """Shows the library's log as notes and warnings."""

    def emit(self, record: logging.LogRecord) -> None:
        if isinstance(record.args, tuple):
            record.args = tuple(worded(one) if isinstance(one, Option | Sentence) else one for one in record.args)
        text = record.getMessage()
        if record.levelno >= logging.WARNING:
            warn(text)
        else:
            note(text)


# Work that takes a while


@contextmanager
def status(text: str) -> Iterator[None]:
    """Show what is going on during this block; only on a terminal."""
    if not draws():
        yield
        return
    from rich.text import Text

    with error_console().status(Text(visible(text))):
        yield


@contextmanager
def progress(label: str, total: int | None) -> Iterator[Progress]:
    """Show a bar; only on a terminal.

    Args:
        label: what is being done.
        total: how much there is to do; None if unknown.
    """
    if not draws():
        yield _noted(label, total) if _state.in_lines else lambda _done, _total: None
        return
    with bar(label, total, console=error_console()) as advance:
        yield advance


def _noted(label: str, total: int | None) -> Progress:
    last = time.monotonic()

    def advance(done: float, known: int | None) -> None:
        nonlocal last
        if time.monotonic() - last > _NOTED_SECONDS:
            last, whole = time.monotonic(), total if known is None else known
            note(f"{label}: {int(done):,}" + ("" if whole is None else f" of {whole:,}"))

    return advance


@contextmanager
def phases() -> Iterator[Callable[[str, str, int, int], None]]:
    """Show a bar for each phase of some work; only on a terminal.

    Yields:
        To be called with the phase's label, how far it is in words, and in numbers.
    """
    if not draws():
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
