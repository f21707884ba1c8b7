"""Writes docs/cli.md: the help of every command, as `grit --help` and its like print it.

Run it after a change to the command line: `.venv/bin/python scripts/cli_docs.py`. A test compares.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from typer.testing import CliRunner

from grit_mlx.cli.main import app

PAGE = Path(__file__).parents[1] / "docs" / "cli.md"

HEAD = """# The command line

Made by `scripts/cli_docs.py` from what each command prints with `--help`; change it there.

Results go to stdout, everything else (notes, warnings, errors, progress) to stderr. Progress bars, tables and colours
appear only on a terminal; `NO_COLOR=1` leaves the colours out. A file that is written takes its name only once it is
whole.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | an error, told in one line that begins with `error:` |
| 2 | wrong usage: an unknown command or option, or a value out of range |
| 130 | stopped with Ctrl-C (143 by SIGTERM, 129 because the terminal was closed) |
| 141 | the program that read the output has gone, as `head` does |

| variable | meaning |
|---|---|
| `GRIT_MODEL` | the model to use where none is named; comes before the choice of `grit models use` |
| `GRIT_STORE` | the store that `grit rag` uses where none is named |
| `GRIT_HOME` | the folder in which that choice is kept |
| `GRIT_BLAS` | on Linux: `bundled` for mlx's own BLAS, or the name of a library to load instead |
| `HF_HOME`, `HF_TOKEN`, `HF_HUB_OFFLINE` | the hub's cache, its login, and `1` for never asking the network |
| `NO_COLOR`, `COLUMNS` | no colours; the width of tables |
"""

COMMANDS = (
    "",
    "embed",
    "search",
    "similarity",
    "generate",
    "chat",
    "eval",
    "convert",
    "train",
    "fuse",
    "rag",
    "rag index",
    "rag ask",
    "rag chat",
    "rag stats",
    "rag remove",
    "rag verify",
    "models",
    "models list",
    "models info",
    "models pull",
    "models use",
    "doctor",
)


def page() -> str:
    """The whole of docs/cli.md."""
    return HEAD + "".join(_sections())


def _sections() -> Iterator[str]:
    for command in COMMANDS:
        name = f"grit {command}".strip()
        # A fixed width, whatever terminal this runs in.
        result = CliRunner().invoke(app, [*command.split(), "--help"], prog_name="grit", env={"COLUMNS": "80"})
        if result.exit_code:
            raise RuntimeError(f"{name} --help failed: {result.output}")
        yield f"\n## {name}\n\n```text\n{result.stdout.strip()}\n```\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
