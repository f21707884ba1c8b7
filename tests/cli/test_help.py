"""Help pages, usage errors, and the page of docs/ that is made from them."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

from grit_mlx import __version__
from grit_mlx.cli import console
from grit_mlx.cli.main import COMMANDS, SECTIONS, Command
from grit_mlx.errors import ArgumentError, DocumentError, Option

Grit = Any

ROOT = Path(__file__).parents[2]


def docs_script() -> Any:
    spec = importlib.util.spec_from_file_location("cli_docs", ROOT / "scripts" / "cli_docs.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_docs_hold_the_help_of_every_command() -> None:
    script = docs_script()
    page = script.page()
    assert script.PAGE.read_text(encoding="utf-8") == page, "run: python scripts/cli_docs.py"
    overview = page.split("Options:\n")[1].split("\nExamples:")[0]
    sections = {
        section.partition(":\n")[0]: re.findall(r"^  (\w+)  +\S", section, re.M)
        for section in overview.split("\n\n")[1:]
        if section.strip()
    }
    ours = {name for name in COMMANDS if " " not in name}
    wanted = {heading: [name for name in names if name in ours] for heading, names in SECTIONS.items()}
    assert sections == wanted and {name for names in wanted.values() for name in names} == ours
    assert re.findall(r"^## grit (.+)", page, re.M) == list(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_overview_says_what_the_command_says(grit: Grit, command: str) -> None:
    help_ = Command(command).loaded().help
    assert COMMANDS[command] == " ".join(help_.split("\n\n")[0].split())


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_page_has_an_example_and_fits(grit: Grit, command: str) -> None:
    run = grit(*command.split(), "--help")
    assert (run.code, run.err) == (0, "")
    assert re.search(rf"^Examples:\n(  .*\n)*.*\bgrit {command}", run.out, re.M)
    assert max(map(len, run.out.splitlines())) <= 80
    assert grit(*command.split(), "-h") == run


def test_no_arguments_ask_for_help(grit: Grit) -> None:
    assert grit() == grit("--help")
    assert grit("models") == grit("models", "--help")


def test_version(grit: Grit) -> None:
    assert grit("--version").out == f"grit-mlx {__version__}\n"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["sing"], "No such command 'sing'"),
        (["embedd", "x"], "Did you mean 'embed'?"),
        (["rag", "aks", "x"], "Did you mean 'ask'?"),
        (["embed"], "Missing argument"),
        (["embed", "x", "--topp"], "No such option: --topp"),
        (["embed", "x", "--by", "word"], "'word' is not one of 'line', 'paragraph', 'file', 'chunk'"),
        (["embed", "x", "--pooling", "max"], "'max' is not one of 'mean', 'weightedmean', 'lasttoken', 'cls'"),
        (["embed", "x", "--attn", "cb"], "'cb' is not one of 'bbcc', 'bb', 'cccc', 'cc'"),
        (["embed", "x", "--dtype", "int4"], "'int4' is not one of 'float32', 'float16', 'int8', 'binary'"),
        (["embed", "x", "--model-dtype", "int8"], "'int8' is not one of 'auto', 'stored'"),
        (["embed", "x", "--long", "cut"], "'cut' is not one of 'truncate', 'average'"),
        (["embed", "x", "--max-length", "0"], "--max-length"),
        (["embed", "x", "--batch-size", "-1"], "--batch-size"),
        (["embed", "x", "--chunk-size", "0"], "--chunk-size"),
        (["embed", "x", "--query", "--instruction", "y"], "--query brings its own instruction"),
        (["search", "x"], "Missing argument"),
        (["search", "x", "y", "--top", "0"], "--top"),
        (["search", "x", "y", "--min-score", "2"], "--min-score"),
        (["similarity", "x"], "Give at least two texts to compare."),
        (["generate", "x", "--temperature", "-1"], "--temperature"),
        (["generate", "x", "--top-p", "1.5"], "--top-p"),
        (["generate", "x", "--top-k", "-3"], "--top-k"),
        (["generate", "x", "--max-tokens", "many"], "--max-tokens"),
        (["generate", "x", "--raw", "--system", "y"], "A raw prompt has no system message"),
        (["chat", "hello"], "unexpected extra argument"),
        (["models", "use"], "Give either a name or --unset."),
        (["models", "use", "x", "--unset"], "Give either a name or --unset."),
        (["models", "burn"], "No such command 'burn'"),
    ],
)
def test_wrong_usage(grit: Grit, args: list[str], message: str) -> None:
    run = grit(*args)
    assert (run.code, run.out) == (2, "")
    assert message in " ".join(run.err.split())
    assert run.err.startswith("Usage: grit")


def test_messages_spell_options_as_flags(capsys: pytest.CaptureFixture[str]) -> None:
    console.set_up(quiet=False, verbose=False, flags={"max_length": "--max-length", "dtype": "--model-dtype"})
    error = ArgumentError("Raise ", Option("max_length"), ", or load it with ", Option("dtype", "float32"), ".")
    assert str(error) == "Raise max_length, or load it with dtype='float32'." and error.option == "max_length"
    console.error(error)
    console.error(DocumentError("a.jsonl, line 1: there is no field 'max_length'.", path="a.jsonl", line=1))
    console.error(ArgumentError("Cannot read /data/max_length/config.json.\nReally.\x1b[0m"))
    # What the running command has no flag for is spelled as Python does.
    console.error(ArgumentError(Option("top_p"), " must be at most 1."))
    console.warn("use ", Option("dtype", "float32"), " or ", Option("seed"))
    assert capsys.readouterr().err.splitlines() == [
        "error: Raise --max-length, or load it with --model-dtype float32.",
        "error: a.jsonl, line 1: there is no field 'max_length'.",
        "error: Cannot read /data/max_length/config.json.\\nReally.\\x1b[0m",
        "error: top_p must be at most 1.",
        "warning: use --model-dtype float32 or seed",
    ]
