"""``grit chat``: a conversation in which only what is new is computed."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

from grit_mlx.cli import console, options
from grit_mlx.cli.generate import Generated, show_piece, written
from grit_mlx.cli.loader import load_model, model_name
from grit_mlx.cli.options import Use
from grit_mlx.cli.warm import RemoteCache, RemoteModel, ServerUse
from grit_mlx.errors import ArgumentError, GritError
from grit_mlx.model.options import GenerationOptions, ModelChoice
from grit_mlx.text.reading import read_lines
from grit_mlx.text.splitting import STDIN, split_lines

if TYPE_CHECKING:
    from types import FrameType

    from grit_mlx.gritlm import GritLM

__all__ = ["EXAMPLES", "Commands", "Conversation", "chat", "converse", "interruptible"]

EXAMPLES = """
Examples:
  grit chat
  grit chat --model gritlm-7b --system "Answer in one sentence." --temp 0.7
  printf 'My name is Ada.\\nWhat is my name?\\n' | grit chat
"""

# A path such as /usr/bin is not a command.
_COMMAND = re.compile(r"/([A-Za-z]+)(?:\s+(.*))?")

# What is typed, such as "/save FILE" -> its help, and what it does with FILE.
Commands = Mapping[str, tuple[str, Callable[[str], None]]]


@options.command
def chat(
    *,
    sampling: Annotated[GenerationOptions, Use(defaults={"max_tokens": 1024})],
    model: Annotated[ModelChoice, Use(without=("pooling", "attn"))],
    server: ServerUse,
    system: options.System = None,
) -> None:
    """Talk with the model.

    Keys and values of the conversation are kept, so that each turn computes only what is new. In a pipe each
    line of stdin is a turn. Commands: /reset, /save FILE, /quit, /help. Ctrl-C stops an answer, and exits at the
    prompt.
    """
    conversation = Conversation(load_model(model, mode="generative", server=server), sampling, system=system)
    commands: Commands = {
        "/reset": ("forget the conversation", conversation.reset),
        "/save FILE": ("write it as JSON lines of role and content", conversation.save),
    }
    converse(conversation.turn, commands, greeting=model_name(model.model))


class Conversation:
    """The messages so far, with their keys and values.

    Args:
        grit: a model that can generate.
        chosen: how it generates.
        system: the system message, if any.
    """

    def __init__(self, grit: GritLM | RemoteModel, chosen: GenerationOptions, *, system: str | None = None) -> None:
        self._grit = grit
        self._options = asdict(chosen)
        self._start = [{"role": "system", "content": system}] if system else []
        self._cache = _cache_for(grit)
        self.messages: list[dict[str, str]] = list(self._start)

    def turn(self, text: str) -> None:
        """Answer a text on stdout."""
        answer, interrupted = self.answer(text, show_piece)
        console.write("")
        console.flush()
        if interrupted:
            console.note("stopped")
        if console.verbose():
            console.note(f"{self._cache.reused:,} tokens reused; {answer.timings()}")

    def reset(self, _: str = "") -> None:
        """Forget all messages but the system's."""
        self.messages = list(self._start)
        self._cache.reset()
        console.note("the conversation is forgotten")

    def answer(self, text: str, show: Callable[[str], None]) -> tuple[Generated, bool]:
        """Take a turn: the answer is shown as it is generated, and remembered even if it was stopped.

        Returns:
            The answer, and whether Ctrl-C stopped it.

        Raises:
            GritError: the turn is then forgotten.
        """
        turn = {"role": "user", "content": text}
        try:
            with interruptible() as stopped:
                responses = self._grit.stream_responses([*self.messages, turn], cache=self._cache, **self._options)
                answer = written(responses, show, stopped=stopped)
                interrupted = stopped()
        except BaseException:
            self._cache.reset()  # layers may disagree on how far they came
            raise
        if answer.text or not interrupted:
            self.messages += [turn, {"role": "assistant", "content": answer.text}]
        return answer, interrupted

    def save(self, path: str) -> None:
        """Write the messages as JSON lines.

        Raises:
            ArgumentError: ``path`` is empty.
            OutputError: the file cannot be written.
        """
        from grit_mlx.files.atomic import atomic_write

        if not path:
            raise ArgumentError("/save needs the name of a file, such as: /save chat.jsonl")
        with atomic_write(path) as file:
            for message in self.messages:
                file.write(console.dumps(message).encode("utf-8", "replace") + b"\n")
        console.note(f"{len(self.messages)} messages -> {path}")


def _cache_for(grit: GritLM | RemoteModel) -> Any:
    """What keeps keys and values between turns."""
    if isinstance(grit, RemoteModel):
        return RemoteCache()
    from grit_mlx.model.generation import PromptCache

    return PromptCache()


def converse(turn: Callable[[str], None], commands: Commands, *, greeting: str) -> None:
    """Take lines until there are no more, or one says /quit.

    Args:
        turn: answers a line that is not a command.
        commands: beside /quit and /help.
        greeting: shown first to a person who types.

    Raises:
        GritError: a line failed, unless a person typed it, who can correct it.
    """
    typed = console.stdin_is_terminal()
    if typed:
        console.note(f"{greeting}: /help lists the commands, Ctrl-D exits")
    for line in _typed_lines() if typed else _piped_lines():
        try:
            command = _COMMAND.fullmatch(line)
            if command is None:
                turn(line)
            elif command[1].lower() in {"quit", "exit", "bye"}:
                return
            else:
                _obey(command[1].lower(), (command[2] or "").strip(), commands)
        except GritError as error:
            if not typed:
                raise
            console.error(error)


def _obey(name: str, argument: str, commands: Commands) -> None:
    if name == "help":
        helps = {usage: help for usage, (help, _) in commands.items()}
        for usage, help in {**helps, "/quit": "exit (so does Ctrl-D)", "/help": "show this list"}.items():
            console.write(f"{usage:<11} {help}")
        console.write("Ctrl-C stops an answer.")
        return
    actions = {usage.split()[0]: action for usage, (_, action) in commands.items()}
    if f"/{name}" not in actions:
        raise ArgumentError(f"There is no command /{name}. These are: {', '.join(commands)}, /quit and /help.")
    actions[f"/{name}"](argument)


def _typed_lines() -> Iterator[str]:
    """Lines that a person types, with the editing and the history of readline if Python has it."""
    with suppress(ImportError):
        import readline  # noqa: F401 - input() uses it once it is imported
    while True:
        try:
            # input() writes its prompt to stdout, where only answers belong if it is not a terminal.
            if console.stdout_is_terminal():
                line = input("> ")
            else:
                line = sys.stdin.readline()
                if not line:
                    return
        except EOFError:
            console.write("")  # the shell's prompt goes below
            return
        if line.strip():
            yield line.strip()


def _piped_lines() -> Iterator[str]:
    """Lines of stdin that are not blank."""
    return (text.text for text in split_lines(read_lines(STDIN)))


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """A function that returns whether Ctrl-C was pressed; a second press raises KeyboardInterrupt.

    An exception in the middle of a step would leave some layers of the cache ahead of others.
    """
    pressed = False

    def on_press(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        if pressed:
            signal.default_int_handler(number, frame)
        pressed = True

    before: Any = signal.signal(signal.SIGINT, on_press)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)
