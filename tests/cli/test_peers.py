"""Words of other tools: understood where they can mean one thing, answered with the right command elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from grit_mlx.cli import main, peers

Grit = Any


def parameters(command: str) -> list[Any]:
    """The parameters of one of our commands, as click holds them."""
    loaded = main.Command(command).loaded()
    return list(loaded.get_params(loaded.context_class(loaded)))


def known(group: str) -> dict[str, Any]:
    return main._commands(group)


@pytest.mark.parametrize(
    ("group", "typed", "meant"),
    [
        ("", "pull gritlm-7b --bits 4", "models pull gritlm-7b --bits 4"),
        ("", "list", "models list"),
        ("", "ls --json", "models list --json"),
        ("", "show x", "models info x"),
        ("", "run", "chat"),
        ("", "run gritlm-7b", "chat --model gritlm-7b"),
        ("", "run gritlm-7b Why?", "generate Why? --model gritlm-7b"),
        ("", "run gritlm-7b --temp 0", "chat --temp 0 --model gritlm-7b"),
        ("", "run --model x", "chat --model x"),
        ("", "encode a.txt", "embed a.txt"),
        ("", "embed_multi a.txt", "embed a.txt"),
        ("", "lora --train", "train --train"),
        ("", "fine-tune", "train"),
        ("", "index docs", "rag index docs"),
        ("", "ASK Why?", "rag ask Why?"),
        ("", "evaluate x", "eval x"),
        ("", "quantize x", "convert -q x"),
        ("", "help rag ask", "rag ask --help"),
        ("", "help", "--help"),
        ("", "embed x", "embed x"),
        ("", "nonsense x", "nonsense x"),
        ("models", "show x", "info x"),
        ("models", "ls", "list"),
        ("models", "download x", "pull x"),
        ("rag", "search x", "ask --sources-only x"),
        ("rag", "query x", "ask x"),
        ("rag", "add x", "index x"),
        ("rag", "list", "stats"),
        ("rag", "rm x", "remove x"),
        ("rag", "ask x", "ask x"),
    ],
)
def test_commands(group: str, typed: str, meant: str) -> None:
    assert peers.translated(group, typed.split(), known(group)) == meant.split()


def test_each_word_leads_to_a_command_that_there_is_or_to_a_hint() -> None:
    for group, words in peers.COMMANDS.items():
        for word, ours in words.items():
            assert word not in known(group), f"{word} is a command of ours"
            path = [part for part in f"{group} {ours}".split() if not part.startswith("-")]
            *above, last = path or ["", ""]
            inner = " ".join(above)
            assert not path or last in known(inner) or peers.hint(inner, last), word


@pytest.mark.parametrize(
    ("command", "typed", "meant"),
    [
        ("generate", ["--prompt", "Hi there"], ["--", "Hi there"]),
        ("generate", ["-p", "- a list", "a.txt"], ["--", "- a list", "a.txt"]),
        ("generate", ["--prompt=Hi", "--max-new-tokens=9"], ["--max-tokens=9", "--", "Hi"]),
        ("generate", ["Hi", "--max_tokens", "9"], ["--max-tokens", "9", "--", "Hi"]),
        ("generate", ["Hi", "-n", "9", "-k", "5"], ["--max-tokens", "9", "--top-k", "5", "--", "Hi"]),
        ("generate", ["Hi", "-k5"], ["--top-k", "5", "--", "Hi"]),
        ("generate", ["Hi", "--adapter-path", "a"], ["--adapter", "a", "--", "Hi"]),
        ("generate", ["Hi", "--stop", "--prompt"], ["Hi", "--stop", "--prompt"]),
        ("generate", ["Hi", "--system-prompt", "x"], ["--system", "x", "--", "Hi"]),
        ("generate", ["--", "--prompt", "x"], ["--", "--prompt", "x"]),
        ("generate", ["Hi", "--ignore-chat-template"], ["--raw", "--", "Hi"]),
        ("chat", ["--hf-path", "x", "-cnv"], ["--model", "x", "--"]),
        ("convert", ["--hf-path", "x", "-q", "--mlx-path", "y"], ["-q", "--mlx-path", "y", "--", "x"]),
        ("convert", ["--model", "x", "--bits", "4"], ["--q-bits", "4", "--", "x"]),
        ("convert", ["x", "-q", "4"], ["--q-bits", "4", "--", "x"]),
        ("convert", ["x", "-q8"], ["--q-bits", "8", "--", "x"]),
        ("convert", ["x", "--quantize", "q4_K_M"], ["--q-bits", "4", "--", "x"]),
        ("convert", ["x", "-q"], ["x", "-q"]),
        ("models pull", ["x", "--q-bits", "4"], ["--bits", "4", "--", "x"]),
        ("models pull", ["x", "-q", "4"], ["--bits", "4", "--", "x"]),
        ("train", ["--train", "--lora-layers", "8"], ["--num-layers", "8", "--"]),
        ("train", ["--lora-rank", "4"], ["--lora-parameters", "rank=4", "--"]),
        ("train", ["--lora-rank=4", "--lr", "1e-4"], ["--lora-parameters=rank=4", "--learning-rate", "1e-4", "--"]),
        ("train", ["--adapter", "a"], ["--adapter-path", "a", "--"]),
        ("search", ["x", "docs", "-k", "3"], ["--top", "3", "--", "x", "docs"]),
        ("search", ["--query", "x", "docs"], ["--", "x", "docs"]),
        ("rag ask", ["--question", "x", "--db", "s"], ["--store", "s", "--", "x"]),
        ("rag ask", ["x", "--top-k", "3"], ["--top", "3", "--", "x"]),
        ("embed", ["-i", "a.txt"], ["--", "a.txt"]),
        ("eval", ["x", "-k", "5"], ["x", "-k", "5"]),
    ],
)
def test_flags(command: str, typed: list[str], meant: list[str]) -> None:
    assert peers.flags(typed, parameters(command)) == meant


def test_a_folder_called_4_is_no_number_of_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "4").mkdir()
    assert peers.flags(["-q", "4"], parameters("convert")) == ["-q", "4"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["ps"], "No such command 'ps'. Models are in memory while grit serve or a command runs"),
        (["query", "x"], "To search files: grit search QUERY FOLDER"),
        (["rag", "serve"], "grit rag chat"),
        (["generate", "x", "-ngl", "99"], "There is no -ngl here. All layers are on the GPU"),
        (["generate", "x", "--ctx_size=99"], "A model's context is as long as its config says"),
        (["train", "--epochs", "3"], "Training counts steps: --iters."),
    ],
)
def test_what_could_mean_several_things_gets_a_hint(grit: Grit, args: list[str], message: str) -> None:
    run = grit(*args)
    assert (run.code, run.out) == (2, "")
    assert message in " ".join(run.err.split())
    assert "\nerror: " in run.err and "Error" not in run.err


def test_they_run(grit: Grit, notes: Path, tiny_model: Path) -> None:
    assert grit("encode", notes).out == grit("embed", notes).out
    assert grit("list").out == grit("models", "list").out
    assert grit("models", "show", tiny_model).out == grit("models", "info", tiny_model).out
    assert grit("search", "boats", notes, "-k", 1).out == grit("search", "boats", notes, "--top", 1).out
    expected = grit("generate", "Hi", "--max-tokens", 4, "--temperature", 0).out
    assert grit("generate", "--prompt", "Hi", "--max-new-tokens", 4, "--temp", 0).out == expected
    assert grit("run", tiny_model, "Hi", "--max_tokens", 4).out == expected
    assert grit("version").out == grit("--version").out
    assert grit("help", "rag", "ask").out == grit("rag", "ask", "--help").out
    assert grit("help").out == grit("--help").out


def test_texts_in_quotes_are_embedded(grit: Grit, notes: Path) -> None:
    text = "The keel keeps a ship upright."
    [line] = grit("embed", text).out.splitlines()
    found = json.loads(line)
    assert (found["text"], found["source"]) == (text, "argument")
    first = json.loads(grit("embed", notes).out.splitlines()[0])
    assert found["embedding"] == pytest.approx(first["embedding"], abs=1e-5)
    mixed = [json.loads(line) for line in grit("embed", "one two", notes, "three four").out.splitlines()]
    assert [one["text"] for one in mixed][::4] == ["one two", "three four"]
    long = grit("embed", "many words " * 400)
    assert long.code == 0, long.err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hello", "There is no file hello. To embed it as a text: echo hello | grit embed -"),
        ("my notes.txt", "my notes.txt does not exist."),
        ("./my notes", "./my notes does not exist."),
        ("missing.md", "missing.md does not exist."),
    ],
)
def test_names_of_files_are_no_texts(grit: Grit, name: str, message: str) -> None:
    run = grit("embed", name)
    assert run.code == 1 and message in run.err


def test_files_follow_a_prompt(grit: Grit, notes: Path, tmp_path: Path) -> None:
    other = tmp_path / "b.txt"
    other.write_text("And more.")
    whole = f"Summarise\n\n{notes.read_text().strip()}\n\nAnd more."
    options = ("--max-tokens", 6, "--temperature", 0)
    assert grit("generate", "Summarise", notes, other, *options).out == grit("generate", whole, *options).out
    piped = grit("generate", "Summarise", notes, "-", *options, stdin="And more.")
    assert piped.out == grit("generate", whole, *options).out
    assert grit("generate", "-", "-", stdin="x").code == 1
    assert "missing.txt does not exist" in grit("generate", "x", tmp_path / "missing.txt").err


@pytest.mark.parametrize("word", ["/clear", "/new", "/RESET"])
def test_words_of_a_chat(grit: Grit, word: str) -> None:
    run = grit("chat", "--temp", 0, "--max-tokens", 3, stdin=f"Hi\n{word}\n/?\n/bye\nHi\n")
    assert run.code == 0
    assert "the conversation is forgotten" in run.err and "/reset" in run.out
    assert run.err.count("cut after 3 tokens; --max-tokens allows more") == 1
