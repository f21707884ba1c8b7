"""Write the parts of README.md that are made: the first commands with their output, the models, the figures.

    .venv/bin/python scripts/readme.py

The commands run in a fresh folder with a copy of examples/ and the built-in model; docs/first-commands.svg records them
as a terminal shows them. Only the text between ``<!-- NAME -->`` and ``<!-- end -->`` is replaced. A test compares.
"""

from __future__ import annotations

import io
import json
import os
import pty
import re
import shlex
import shutil
import subprocess
import sys
import termios
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.text import Text

from grit_mlx.model.catalogue import CatalogueEntry, catalogue

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "README.md"
RECORDING = ROOT / "docs" / "first-commands.svg"

LINES, COLUMNS = 50, 80

COMMANDS = (
    'grit similarity "a ship at sea" "a boat on the ocean" "a loaf of bread"',
    'grit search "what stops a ship from capsizing?" examples/notes/boat.txt --top 1',
    "grit rag index examples/notes",
    'grit rag ask "When is the boiler serviced?"',
    "grit embed examples/notes/boat.txt",
)

GRIT = (sys.executable, "-c", "from grit_mlx.cli.main import main; main()")

# What differs from run to run.
_SECONDS = re.compile(r"\b\d+\.\d s\b")


@cache
def ran() -> tuple[tuple[str, str], ...]:
    """The first commands, each with what it shows on a terminal."""
    outputs = []
    with TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(ROOT / "examples", folder / "examples")
        own = {key: value for key, value in os.environ.items() if not key.startswith(("GRIT_", "HF_"))}
        environment = {
            **own,
            "GRIT_HOME": str(folder / "home"),
            "HF_HUB_OFFLINE": "1",
            "COLUMNS": str(COLUMNS),
            "TERM": "xterm-256color",
        }
        for command in COMMANDS:
            words = [
                sys.executable,
                "-c",
                "from grit_mlx.cli.main import main; main()",
                *shlex.split(command)[1:],
                "-q",
            ]
            outputs.append((command, _SECONDS.sub("0.1 s", in_terminal(words, folder, environment)).strip("\n")))
    return tuple(outputs)


def in_terminal(words: list[str], folder: Path, environment: dict[str, str]) -> str:
    """What a program shows on a terminal, with its escape sequences.

    Raises:
        RuntimeError: it failed.
    """
    ours, its = pty.openpty()
    if sys.version_info >= (3, 11):  # else COLUMNS says it
        termios.tcsetwinsize(its, (LINES, COLUMNS))
    process = subprocess.Popen(words, cwd=folder, env=environment, stdin=its, stdout=its, stderr=its)
    os.close(its)
    shown = b""
    with suppress(OSError):  # the other end is closed
        while part := os.read(ours, 4096):
            shown += part
    os.close(ours)
    text = shown.decode().replace("\r\n", "\n")
    if process.wait():
        raise RuntimeError(f"{' '.join(words[3:])} failed: {text}")
    return text


def first_commands() -> str:
    """The first commands with their output."""
    shown = [f"$ {command}\n{Text.from_ansi(output).plain.rstrip()}" for command, output in ran()]
    plain = "\n".join(line.rstrip() for line in "\n\n".join(shown).split("\n"))
    return f"```console\n{plain}\n```"


def models() -> str:
    """The table of models, one row for each at so many bits."""
    head = "| model | jobs | parameters | bits | on disk | memory, 512 tokens | memory, 8k tokens | Mac with at least |"
    rows = [head, "|---|---|--:|--:|--:|--:|--:|--:|", *map(_row, catalogue())]
    return "\n".join(rows)


def _row(entry: CatalogueEntry) -> str:
    family = entry.family
    jobs = " and ".join(["embeds"] * family.embeds + ["writes"] * family.writes)
    sizes = [f"{nbytes / 1e9:.1f} GB" for nbytes in (entry.size_bytes, entry.short_bytes, entry.long_bytes)]
    mac = "none" if entry.mac is None else f"{entry.mac} GB"
    cells = [f"`{entry.name}`", jobs, f"{entry.parameters / 1e9:.1f} B", str(entry.bits), *sizes, mac]
    return f"| {' | '.join(cells)} |"


def cached() -> str:
    """Seconds to the first token with and without cached documents, as benchmarks/rag.py measured them."""
    measured = json.loads((ROOT / "benchmarks" / "results" / "rag-cpu.json").read_text(encoding="utf-8"))
    lines = ["| tokens of the document | read again | cached | cached cuts |", "|--:|--:|--:|--:|"]
    for row in measured["rows"]:
        if row["query_tokens"] != 64 or row["documents"] != 1:
            continue
        none, doc = row["seconds"]["none"][0], row["seconds"]["doc"][0]
        lines.append(f"| {row['document_tokens']:,} | {none:.2f} s | {doc:.2f} s | {1 - doc / none:.0%} |")
    machine = measured["machine"]
    return "\n".join(
        [*lines, "", f"*{measured['model']}, on {machine['chip']} ({machine['device']}); {machine['date']}.*"]
    )


def recording() -> str:
    """The first commands as a terminal shows them, as SVG."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, legacy_windows=False)
    for number, (command, output) in enumerate(ran()):
        console.print(Text.assemble("\n" * bool(number), ("$ ", "bold green"), (command, "bold")))
        if output:
            console.print(Text.from_ansi(output))
    return console.export_svg(title="grit", unique_id="grit") + "\n"


PARTS: dict[str, Callable[[], str]] = {"first-commands": first_commands, "models": models, "cached": cached}


def page(text: str) -> str:
    """The text of README.md with its parts made anew."""
    for name, make in PARTS.items():
        begin, end = f"<!-- {name} -->\n", "<!-- end -->"
        before, found, rest = text.partition(begin)
        if not found:
            raise RuntimeError(f"README.md has no {begin.strip()}")
        text = f"{before}{begin}\n{make()}\n\n{rest[rest.index(end) :]}"
    return text


def main() -> None:
    """Write README.md and the recording."""
    RECORDING.write_text(recording(), encoding="utf-8")
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
