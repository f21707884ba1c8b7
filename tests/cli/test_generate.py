"""grit generate and grit chat."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from grit_mlx import GritLM
from grit_mlx.cli import chat as chat_command
from grit_mlx.cli import console
from grit_mlx.errors import MemoryLimitError
from grit_mlx.model.options import GenerationOptions

Grit = Any


@pytest.fixture(scope="session")
def library(tiny_model: Path) -> GritLM:
    return GritLM(tiny_model, mode="generative")


def test_the_answer_is_the_librarys(grit: Grit, library: GritLM) -> None:
    run = grit("generate", "Hello there", "--max-tokens", "12")
    assert run.code == 0
    assert run.out == library.generate("Hello there", max_tokens=12) + "\n"
    assert run.err == "note: stopped after 12 tokens; --max-tokens allows more\n"
    assert grit("generate", "Hello there", "--max-tokens", "12", "-q").err == ""


def test_the_prompt_from_standard_input(grit: Grit) -> None:
    asked = grit("generate", "two\nlines", "--max-tokens", "8")
    assert grit("generate", "-", "--max-tokens", "8", stdin="two\nlines\n") == asked


def test_a_system_message_precedes_and_raw_leaves_the_format_out(grit: Grit, library: GritLM) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    run = grit("generate", "Hello", "--system", "Be brief.", "--max-tokens", "8")
    assert run.out == library.generate(messages, max_tokens=8) + "\n"
    raw = grit("generate", "Hello", "--raw", "--max-tokens", "8")
    assert raw.out == library.generate("Hello", max_tokens=8, raw=True) + "\n"
    assert raw.out != run.out


def test_sampling_options_arrive(grit: Grit, library: GritLM) -> None:
    options = ["--temp", "1.5", "--top-p", "0.9", "--top-k", "50", "--min-p", "0.01", "--repetition-penalty", "1.1"]
    run = grit("generate", "Hello", *options, "--seed", "3", "--max-tokens", "20")
    expected = library.generate("Hello", 20, 1.5, top_p=0.9, top_k=50, min_p=0.01, repetition_penalty=1.1, seed=3)
    assert run.out == expected + "\n"
    assert grit("generate", "Hello", *options, "--seed", "4", "--max-tokens", "20").out != run.out


def test_stop_texts(grit: Grit, library: GritLM) -> None:
    whole = library.generate("Hello there", max_tokens=20)
    stop = whole[4:6]
    run = grit("generate", "Hello there", "--max-tokens", "20", "--stop", stop, "--stop", "never to be found")
    assert run.out == whole[: whole.index(stop)] + "\n"


def test_json_has_the_timings(grit: Grit, tiny_model: Path) -> None:
    run = grit("generate", "Hello there", "--max-tokens", "12", "--json")
    assert run.err == ""
    found = json.loads(run.out)
    assert found["text"] == grit("generate", "Hello there", "--max-tokens", "12").out[:-1]
    assert found["model"] == tiny_model.name
    assert (found["finish_reason"], found["generated_tokens"]) == ("length", 12)
    assert found["prompt_tokens"] > 5
    for name in (
        "seconds_to_first_token",
        "prompt_tokens_per_second",
        "generated_tokens_per_second",
        "peak_memory_bytes",
    ):
        assert found[name] > 0


def test_verbose_shows_the_timings(grit: Grit) -> None:
    run = grit("generate", "Hello there", "--max-tokens", "12", "-v")
    assert "note: " in run.err
    assert "; answer: 12 tokens, " in run.err


def test_pieces_are_shown_as_they_come_and_harmless_on_a_terminal(grit: Grit, monkeypatch: pytest.MonkeyPatch) -> None:
    piped = grit("generate", "Hello there", "--temp", "5", "--seed", "1", "--max-tokens", "200", "-q").out
    monkeypatch.setattr(console, "stdout_is_terminal", lambda: True)
    shown = grit("generate", "Hello there", "--temp", "5", "--seed", "1", "--max-tokens", "200", "-q").out
    assert console.visible(piped, keep="\n\t") == shown
    assert console.visible("a\x1b]0;title\x07\n\tb\u202e", keep="\n\t") == "a\\x1b]0;title\\x07\n\tb\\u202e"


def test_each_piped_line_is_a_turn(grit: Grit, library: GritLM) -> None:
    run = grit("chat", "--temp", "0", "--max-tokens", "8", stdin="Hello there\n\nAnd then\n")
    assert (run.code, run.err) == (0, "note: cut after 8 tokens; --max-tokens allows more\n" * 2)
    first = library.generate("Hello there", max_tokens=8)
    messages = [
        {"role": "user", "content": "Hello there"},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "And then"},
    ]
    assert run.out == f"{first}\n{library.generate(messages, max_tokens=8)}\n"


def test_a_turn_computes_only_what_is_new(grit: Grit) -> None:
    run = grit("chat", "--temp", "0", "--max-tokens", "8", "-v", stdin="Hello there\nAnd then\n/reset\nAnew\n")
    reused = [int(line.split()[1]) for line in run.err.splitlines() if "tokens reused" in line]
    assert reused[0] == 0
    assert reused[1] > 20
    assert reused[2] == 0


def test_commands_of_the_chat(grit: Grit, tmp_path: Path, library: GritLM) -> None:
    path = tmp_path / "chat.jsonl"
    turns = f"/help\nHello\n/save {path}\n/reset\n/usr/bin is a folder\n/save {tmp_path / 'two.jsonl'}\n/quit\nnever\n"
    run = grit("chat", "--temp", "0", "--max-tokens", "8", "--system", "Be brief.", stdin=turns)
    assert run.code == 0
    assert run.out.startswith("/reset ")
    saved = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [message["role"] for message in saved] == ["system", "user", "assistant"]
    assert saved[2]["content"] == library.generate(saved[:2], max_tokens=8)
    assert f"note: 3 messages -> {path}\n" in run.err
    anew = (tmp_path / "two.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["content"] for line in anew][:2] == ["Be brief.", "/usr/bin is a folder"]
    assert "never" not in run.out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/sing", "There is no command /sing. These are: /reset, /save FILE, /quit and /help."),
        ("/save", "/save needs the name of a file, such as: /save chat.jsonl"),
        ("/save missing/chat.jsonl", "Cannot write missing/chat.jsonl: its folder does not exist. Create it first."),
    ],
)
def test_a_command_that_fails_ends_a_piped_chat(grit: Grit, line: str, message: str) -> None:
    run = grit("chat", stdin=line + "\nnever\n")
    assert (run.code, run.out, run.err) == (1, "", f"error: {message}\n")


def typing(monkeypatch: pytest.MonkeyPatch, *lines: str | type[BaseException]) -> None:
    """A person who types these lines; an exception stands for Ctrl-C or Ctrl-D."""
    waiting = list(lines)

    def answer(prompt: str) -> str:
        assert prompt == "> "
        line = waiting.pop(0)
        if isinstance(line, str):
            return line
        raise line

    monkeypatch.setattr("builtins.input", answer)
    monkeypatch.setattr(console, "stdout_is_terminal", lambda: True)
    monkeypatch.setattr(console, "stdin_is_terminal", lambda: True)


def test_a_typed_chat_goes_on_after_an_error(grit: Grit, monkeypatch: pytest.MonkeyPatch) -> None:
    typing(monkeypatch, "/sing", "   ", "Hello", EOFError)
    run = grit("chat", "--temp", "0", "--max-tokens", "8")
    assert run.code == 0
    assert run.err.splitlines()[0] == "note: mistral: /help lists the commands, Ctrl-D exits"
    assert run.err.splitlines()[1].startswith("error: There is no command /sing.")
    assert run.out.count("\n") >= 2  # the answer, and the line after Ctrl-D


def test_ctrl_c_at_the_prompt_leaves(grit: Grit, monkeypatch: pytest.MonkeyPatch) -> None:
    typing(monkeypatch, KeyboardInterrupt)
    assert grit("chat", "-q").code == 130


def test_ctrl_c_stops_an_answer_and_keeps_what_came(
    grit: Grit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, library: GritLM
) -> None:
    pieces: list[str] = []

    def show(text: str) -> None:
        pieces.append(text)
        if len(pieces) == 5:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(chat_command, "show_piece", show)
    typing(monkeypatch, "Hello there", f"/save {tmp_path / 'a.jsonl'}", EOFError)
    run = grit("chat", "--temp", "0", "--max-tokens", "100000")
    assert run.code == 0
    assert "note: stopped\n" in run.err
    saved = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()]
    assert saved[1]["content"] == "".join(pieces)
    assert len(pieces) < 10
    assert library.generate("Hello there", max_tokens=40).startswith(saved[1]["content"])


def test_a_second_ctrl_c_interrupts(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt), chat_command.interruptible() as stopped:
        os.kill(os.getpid(), signal.SIGINT)
        assert stopped()
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_turn_that_failed_is_forgotten(library: GritLM, monkeypatch: pytest.MonkeyPatch) -> None:
    conversation = chat_command.Conversation(library, GenerationOptions(max_tokens=8))
    expected, _ = chat_command.Conversation(library, GenerationOptions(max_tokens=8)).answer("Hello", lambda _: None)
    real = library.stream_responses

    def failing(*_: object, **__: object) -> Any:
        raise MemoryLimitError("no room")

    monkeypatch.setattr(library, "stream_responses", failing)
    with pytest.raises(MemoryLimitError):
        conversation.answer("Too much", lambda _: None)
    monkeypatch.setattr(library, "stream_responses", real)
    answer, interrupted = conversation.answer("Hello", lambda _: None)
    assert (answer.text, interrupted) == (expected.text, False)
    assert [message["content"] for message in conversation.messages] == ["Hello", answer.text]


def test_a_schema_is_a_file_or_itself(grit: Grit, tmp_path: Path) -> None:
    pytest.importorskip("llguidance", reason="needs llguidance: pip install 'grit-mlx[structured]'")
    schema = {"enum": ["Zoë", 7]}
    (tmp_path / "schema.json").write_text(json.dumps(schema), encoding="utf-8-sig")
    by_file = grit("generate", "Who?", "--schema", str(tmp_path / "schema.json"))
    assert (by_file.code, by_file.err) == (0, "")
    assert json.loads(by_file.out) in schema["enum"]
    assert grit("generate", "Who?", "--schema", json.dumps(schema)).out == by_file.out
    cut = grit("generate", "Who?", "--schema", '{"type": "object"}', "--max-tokens", "1")
    assert "warning: The answer was cut at --max-tokens before it was complete." in cut.err


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ("missing.json", "missing.json does not exist. Check the name."),
        ('{"type": "objec"}', "--schema cannot be followed: Invalid type: objec."),
        ('{"type":', "--schema is not JSON: "),
    ],
)
def test_a_wrong_schema_is_an_error(grit: Grit, schema: str, said: str) -> None:
    run = grit("generate", "Who?", "--schema", schema)
    assert (run.code, run.out) == (1, "")
    assert run.err.startswith("error: ")
    assert said in run.err
