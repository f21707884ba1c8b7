"""Where in a rendered chat the assistant's words stand, for any template (pure functions on strings).

A template is a program: it strips, splits thoughts off, drops those of earlier turns, and ends the last turn otherwise
than the others. So an answer is not looked for by its words. It begins where the chat stops being what generation
would be prompted with, and it ends with what stays the same if the answer is another one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from grit_mlx.errors import ArgumentError

__all__ = ["answer_spans"]

# What marks turns in templates: <|end|>, the same with DeepSeek's wide bars, </s>, <end_of_turn>, [INST], <turn|>.
_WIDE = "\uff5c"
_MARKER = re.compile(
    rf"<[|{_WIDE}][^<>\n]{{1,40}}?[|{_WIDE}]>|</?s>|<eos>|<(?:start|end)_of_turn>|<turn\|>|<\|turn>|\[/?[A-Z_]{{2,20}}\]"
)
# Stands for another answer: characters that no text has, and a word, which no template strips.
_OTHER = "\ue002another\ue003"

Render = Callable[..., str]
Messages = Sequence[Mapping[str, Any]]


def answer_spans(
    render: Render, messages: Messages, *, text: str | None = None, special: re.Pattern[str] | None = None
) -> list[tuple[int, int]]:
    """Spans of characters, one for each turn of the assistant that the template keeps.

    Args:
        render: ``render(messages, add_generation_prompt=False)`` gives a chat as a string.
        messages: the chat.
        text: ``render(messages)``, if the caller has it.
        special: finds the tokenizer's special tokens.

    Raises:
        ArgumentError: an answer cannot be found, because the template writes something else.
    """
    text = render(messages) if text is None else text
    spans = []
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt = render(messages[:i], add_generation_prompt=True)
        start = _start(text, prompt)
        changed = render([*messages[:i], _other(message), *messages[i + 1 :]])
        end = len(text) - _common_suffix(text[start:], changed[start:])
        alone = start
        if message.get("tool_calls"):  # their names may come again with the tools' answers
            alone = _common_prefix(text, render(messages[: i + 1]))
            name = (message["tool_calls"][-1].get("function") or {}).get("name", "")
            alone = alone if name and name in text[start:alone] else start
        if changed == text:
            if message.get("content") or message.get("tool_calls"):
                raise ArgumentError(f"the chat template leaves out turn {i + 1}")
            continue
        follows = next((one.get("content") for one in messages[i + 1 :] if isinstance(one.get("content"), str)), None)
        last = i == len(messages) - 1
        if last or start < alone <= end:
            end = len((text if last else text[:alone]).rstrip())
        else:
            end = _end(text, end, prompt[start:], follows, special)
        spans.append((start, end))
    for (_, end), (start, _) in pairwise(spans):
        if end > start:
            raise ArgumentError("the answers cannot be found in what the chat template writes")
    return spans


def _start(text: str, prompt: str) -> int:
    """Where an answer begins: after what generation is prompted with, as far as the chat has it.

    A template may prompt with more than it keeps, such as an open <think>; then an answer that begins with the same
    character is not cut.
    """
    start = _common_prefix(text, prompt)
    if start < len(prompt):
        while start and text[start - 1] not in f"\n>]{_WIDE}":
            start -= 1
    return start


def _end(text: str, end: int, prompted: str, follows: str | None, special: re.Pattern[str] | None) -> int:
    """Where an answer ends: with the marker that closes its turn.

    Of a template without one, with the marker of who speaks next, by which such a model stops; but not with one that
    opens the assistant's own turns as well.
    """
    stop = text.find(follows.strip(), end) if follows and follows.strip() else -1
    between = text[end : stop if stop >= 0 else end + 200]
    markers = [
        match
        for pattern in (_MARKER, special)
        if pattern is not None
        for match in pattern.finditer(between)
        if match[0].strip()
    ]
    markers.sort(key=lambda match: match.start())
    if not markers:
        return end
    last = markers[0]
    if last[0] in prompted:
        return end + len(between[: last.start()].rstrip())
    for match in markers[1:]:
        if match.start() == last.end() and "end" in match[0].lower():  # <|END_RESPONSE|><|END_OF_TURN_TOKEN|>
            last = match
    return end + last.end()


def _other(message: Mapping[str, Any]) -> dict[str, Any]:
    """The same turn with other words."""
    calls = message.get("tool_calls")
    if message.get("content") or not calls:
        return {**message, "content": _OTHER}
    function = {"name": _OTHER, "arguments": {}}
    return {**message, "tool_calls": [{**calls[-1], "function": function}]}


def _common_suffix(first: str, second: str) -> int:
    return _common_prefix(first[::-1], second[::-1])


def _common_prefix(first: str, second: str) -> int:
    """By halving: texts are long, and this is done several times for each."""
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
