"""``grit chat``: a conversation in which only what is new is computed."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

from grit_mlx.cli import console, options
from grit_mlx.cli.generate import Answer, show_piece, written
from grit_mlx.cli.loader import load_model, model_name
from grit_mlx.cli.options import Use
from grit_mlx.errors import ArgumentError, GritError
from grit_mlx.model.options import GenerationOptions, ModelChoice
from grit_mlx.text.reading import read_texts
from grit_mlx.text.splitting import STDIN

if TYPE_CHECKING:
    from types import FrameType

    from grit_mlx.gritlm import GritLM

__all__ = ["EXAMPLES", "Conversation", "chat", "interruptible", "piped_lines", "typed_lines"]

EXAMPLES = """
Examples:
  grit chat
  grit chat --model gritlm-7b --system "Answer in one sentence." --temp 0.7
  printf 'My name is Ada.\\nWhat is my name?\\n' | grit chat
"""

_HELP = """/reset      forget the conversation
/save FILE  write it as JSON lines of role and content
/quit       leave (so does Ctrl-D)
/help       this list
Ctrl-C stops an answer."""

# A path such as /usr/bin is no command, and neither is a line that goes on after the slash with a blank.
_COMMAND = re.compile(r"/([A-Za-z]+)(?:\s+(.*))?")


@options.command
def chat(
    *,
    sampling: Annotated[GenerationOptions, Use(defaults={"max_tokens": 1024})],
    model: Annotated[ModelChoice, Use(without=("pooling", "attn"))],
    system: options.System = None,
) -> None:
    """Talk with the model.

    Keys and values of the conversation are kept, so that each turn computes only what is new. In a pipe each
    line of standard input is a turn. Inside: /reset, /save FILE, /quit, /help; Ctrl-C stops an answer, and
    leaves where one would type.
    """
    grit = load_model(model, mode="generative")
    conversation = Conversation(grit, sampling, system=system)
    typed = console.stdin_is_terminal()
    if typed:
        console.note(f"{model_name(model.model)}: /help lists the commands, Ctrl-D leaves")
    for line in typed_lines() if typed else piped_lines():
        try:
            if not _obey(line, conversation):
                break
        except GritError as error:
            # Someone who types can mend it; a script must learn that its turn failed.
            if not typed:
                raise
            console.error(error)


class Conversation:
    """The messages so far, with the keys and values they left behind.

    Args:
        grit: a model that can generate.
        chosen: how it generates.
        system: what precedes the conversation.
    """

    def __init__(self, grit: GritLM, chosen: GenerationOptions, *, system: str | None = None) -> None:
        from grit_mlx.model.generation import PromptCache

        self._grit = grit
        self._options = asdict(chosen)
        self._start = [{"role": "system", "content": system}] if system else []
        self._cache = PromptCache()
        self.messages: list[dict[str, str]] = list(self._start)

    def reset(self) -> None:
        """Forget all messages but the system's."""
        self.messages = list(self._start)
        self._cache.reset()

    def answer(self, text: str, show: Callable[[str], None]) -> tuple[Answer, bool]:
        """Take a turn: the answer is shown as it comes, and remembered as far as it came.

        Returns:
            The answer, and whether Ctrl-C stopped it.

        Raises:
            GritError: the turn is then forgotten, so that the next one starts from what was before.
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

    @property
    def reused(self) -> int:
        """Tokens that the last turn did not have to compute."""
        return self._cache.reused

    def save(self, path: str) -> None:
        """Write the messages as JSON lines.

        Raises:
            OutputError: the file cannot be written.
        """
        from grit_mlx.files.atomic import atomic_write

        with atomic_write(path) as file:
            for message in self.messages:
                file.write(console.dumps(message).encode("utf-8", "replace") + b"\n")


def _obey(line: str, conversation: Conversation) -> bool:
    """Do what a line asks for; returns whether to go on."""
    command = _COMMAND.fullmatch(line)
    if command is None:
        answer, interrupted = conversation.answer(line, show_piece)
        console.write("")
        console.flush()
        if interrupted:
            console.note("stopped")
        if console.verbose():
            console.note(f"{conversation.reused:,} tokens reused; {answer.timings()}")
        return True
    name, argument = command[1].lower(), (command[2] or "").strip()
    if name in {"quit", "exit", "bye"}:
        return False
    if name == "reset":
        conversation.reset()
        console.note("the conversation is forgotten")
    elif name == "save":
        if not argument:
            raise ArgumentError("/save needs the name of a file, such as: /save chat.jsonl")
        conversation.save(argument)
        console.note(f"{len(conversation.messages)} messages -> {argument}")
    elif name == "help":
        console.write(_HELP)
    else:
        raise ArgumentError(f"There is no command /{name}. These are: /reset, /save FILE, /quit and /help.")
    return True


def typed_lines() -> Iterator[str]:
    """Lines of a person at a terminal, with the editing and the history of readline where Python has it."""
    with suppress(ImportError):
        import readline  # noqa: F401 - input() uses it once it is imported
    while True:
        try:
            # input() writes its prompt to stdout, where only answers belong if that is no terminal.
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


def piped_lines() -> Iterator[str]:
    """Lines of standard input that are not blank."""
    return (text.text for text in read_texts(STDIN))


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Lends a question: has Ctrl-C been pressed? The first press only answers it; a second one interrupts.

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
