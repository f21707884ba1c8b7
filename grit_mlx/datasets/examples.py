"""Rows of training data: the formats, and what is wrong with a row of none (pure functions).

Three kinds of row, which differ in their fields:

    embedding    {"query": T, "pos": [T, ...], "neg": [T, ...]}       T is a text or [instruction, text]
    chat         {"text": [user, assistant, user, ...]}, {"messages": [{"role": ..., "content": ...}, ...]},
                 {"prompt": text, "completion": text}
    text         {"text": text}

The first and both kinds of "text" are the official formats, the others mlx-lm's. Vectors to distil from come beside
the texts, as "query_vector", "pos_vectors" and "neg_vectors".
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, ClassVar

from grit_mlx.datasets.formats import check_fields, native
from grit_mlx.errors import ArgumentError
from grit_mlx.text.rows import Row, Source, failure, missing

__all__ = [
    "EMBEDDING",
    "GENERATIVE",
    "ChatRow",
    "EmbeddingRow",
    "Example",
    "InstructedText",
    "TextRow",
    "examples",
    "row_from",
]

EMBEDDING, GENERATIVE = "embedding", "generative"

# What the official code strips from instructions: some data sets end them with a colon.
_STRIPPED = "\t\n :"

# An instruction without markers, and a text.
InstructedText = tuple[str, str]


@dataclass(frozen=True)
class EmbeddingRow:
    """A query, passages that answer it and passages that do not.

    Attributes:
        texts: the query, then the positives, then the negatives.
        positives: their number.
        vectors: one for each text, or empty.
    """

    kind: ClassVar[str] = EMBEDDING

    texts: list[InstructedText]
    positives: int
    vectors: list[list[float]] = field(default_factory=list)


@dataclass(frozen=True)
class ChatRow:
    """A conversation; the loss is on the assistant's turns."""

    kind: ClassVar[str] = GENERATIVE

    messages: list[dict[str, Any]]
    tools: list[Any] | None = None


@dataclass(frozen=True)
class TextRow:
    """Plain text; the loss is on all of it."""

    kind: ClassVar[str] = GENERATIVE

    text: str


Example = EmbeddingRow | ChatRow | TextRow

# Each format has one of these.
_FIELDS = ("query", "messages", "prompt", "text")


def examples(rows: Iterable[Row], source: Source) -> Iterator[tuple[int, Example]]:
    """The rows of a file as examples, with their line.

    Raises:
        DocumentError: the first row that cannot be used.
    """
    for content, line, _ in rows:
        try:
            yield line, row_from(content)
        except ArgumentError as error:
            raise failure(source, line, str(error)) from error


def row_from(content: Mapping[str, Any]) -> Example:
    """A row of a file as an example.

    Raises:
        ArgumentError: says what is wrong with it, as a sentence without its full stop.
    """
    present = {name: value for name, value in content.items() if value is not None}
    # Tables hold null where other rows have a field.
    content = native(present or content)
    format_name = next((name for name in _FIELDS if name in content), None)
    if format_name is not None:
        check_fields(content, format_name)
    if "query" in content:
        return _embedding(content)
    if "messages" in content:
        return ChatRow(_conversation(_messages(content["messages"])), content.get("tools") or None)
    if "prompt" in content:
        turns = [content["prompt"], _required(content, "completion")]
        return ChatRow(_conversation(_alternating(turns, ("prompt", "completion"))))
    text = _required(content, *_FIELDS)
    if isinstance(text, str):
        return TextRow(_filled(text, "text"))
    return ChatRow(_conversation(_alternating(_list(text, "text", "a text or a list of turns"))))


def _required(content: Mapping[str, Any], *names: str) -> Any:
    """The field of the last of some names."""
    if names[-1] not in content:
        raise ArgumentError(missing(names, content))
    return content[names[-1]]


def _embedding(content: Mapping[str, Any]) -> EmbeddingRow:
    values = {"pos": _required(content, "pos"), "neg": content.get("neg", [])}
    sides = {
        key: [_instructed(item, f"{key}[{i}]") for i, item in enumerate(_list(value, key, "a list of passages"))]
        for key, value in values.items()
    }
    if not sides["pos"]:
        raise ArgumentError("pos is empty: a query needs at least one passage that answers it")
    texts = [_instructed(content["query"], "query"), *sides["pos"], *sides["neg"]]
    return EmbeddingRow(texts, len(sides["pos"]), _vectors(content, len(texts)))


def _instructed(value: object, where: str) -> InstructedText:
    if isinstance(value, str):
        return "", _filled(value, where)
    if isinstance(value, list) and len(value) == 2 and all(isinstance(part, str) for part in value):
        return value[0].strip(_STRIPPED), _filled(value[1], where)
    raise ArgumentError(f"{where} must be a text or [instruction, text], not {_shown(value)}")


def _vectors(content: Mapping[str, Any], count: int) -> list[list[float]]:
    given = [key for key in ("pos_vectors", "neg_vectors") if key in content]
    lists = [_list(content[key], key, "a list of vectors") for key in given]
    if "query_vector" not in content:
        if given:
            raise ArgumentError(f"there is {given[0]}, but no query_vector")
        return []
    vectors = [content["query_vector"], *chain.from_iterable(lists)]
    if len(vectors) != count:
        advice = "give pos_vectors and neg_vectors one vector for each passage"
        raise ArgumentError(f"there are {len(vectors)} vectors for {count} texts: {advice}")
    for vector in vectors:
        numbers = isinstance(vector, list) and vector and all(map(_is_number, vector))
        if not numbers or len(vector) != len(vectors[0]):
            raise ArgumentError("the vectors must be lists of numbers, all of one length")
    return vectors


def _messages(value: object) -> list[dict[str, Any]]:
    messages = []
    for i, message in enumerate(_list(value, "messages", "a list")):
        if not isinstance(message, dict) or "role" not in message or not {"content", "tool_calls"} & set(message):
            raise ArgumentError(f"messages[{i}] must have a role and a content, not {_shown(message)}")
        empty = message.get("tool_calls") and not message.get("content")
        content = "" if empty else _filled(message.get("content"), f"messages[{i}].content")
        others = {name: one for name, one in message.items() if one not in (None, "", [])}
        messages.append({**others, "role": str(message["role"]), "content": content})
    return messages


def _alternating(turns: list[Any], names: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    labels = names or [f"text[{i}]" for i in range(len(turns))]
    return [{"role": ("user", "assistant")[i % 2], "content": _filled(turn, labels[i])} for i, turn in enumerate(turns)]


def _conversation(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    spoken = messages[1:] if messages and messages[0]["role"] in ("system", "developer") else messages
    uses_tools = any(message["role"] == "tool" or "tool_calls" in message for message in spoken)
    for i, message in enumerate([] if uses_tools else spoken):
        expected = ("user", "assistant")[i % 2]
        if message["role"] != expected:
            raise ArgumentError(f"turn {i + 1} must be the {expected}'s, not the {message['role']}'s")
    if not spoken or spoken[-1]["role"] != "assistant":
        raise ArgumentError("a conversation must end with the assistant's turn, which is what is learned")
    return messages


def _list(value: object, where: str, wanted: str) -> list[Any]:
    if not isinstance(value, list):
        raise ArgumentError(f"{where} must be {wanted}, not {_shown(value)}")
    return value


def _filled(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise ArgumentError(f"{where} must be a text, not {_shown(value)}")
    if not value.strip():
        raise ArgumentError(f"{where} is empty")
    return value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _shown(value: object) -> str:
    return "null" if value is None else f"{value!r:.60}"
