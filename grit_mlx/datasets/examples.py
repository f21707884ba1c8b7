"""A line of training data: what it may look like, and what is wrong with one that does not (pure functions).

Three kinds of row, told apart by their keys:

    embedding    {"query": T, "pos": [T, ...], "neg": [T, ...]}       T is a text or [instruction, text]
    chat         {"text": [user, assistant, user, ...]}, {"messages": [{"role": ..., "content": ...}, ...]},
                 {"prompt": text, "completion": text}
    text         {"text": text}

The first and both kinds of "text" are the official formats, the others mlx-lm's. Vectors to distil from stand
beside the texts: "query_vector", "pos_vectors" and "neg_vectors".
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from grit_mlx.errors import ArgumentError

__all__ = [
    "EMBEDDING",
    "GENERATIVE",
    "ChatRow",
    "EmbeddingRow",
    "InstructedText",
    "Row",
    "TextRow",
    "kind_of",
    "row_from",
]

EMBEDDING, GENERATIVE = "embedding", "generative"

# What the official code strips off instructions: some data sets end them in a colon.
_STRIPPED = "\t\n :"

# An instruction without markers, and a text.
InstructedText = tuple[str, str]


@dataclass(frozen=True)
class EmbeddingRow:
    """A query, passages that answer it and passages that do not.

    Attributes:
        texts: the query, then the positives, then the negatives.
        positives: how many.
        vectors: one for each text, or empty.
    """

    texts: list[InstructedText]
    positives: int
    vectors: list[list[float]] = field(default_factory=list)


@dataclass(frozen=True)
class ChatRow:
    """A conversation; the loss is on the assistant's turns."""

    messages: list[dict[str, str]]


@dataclass(frozen=True)
class TextRow:
    """Plain text; the loss is on all of it."""

    text: str


Row = EmbeddingRow | ChatRow | TextRow


def kind_of(content: object) -> str:
    """``EMBEDDING`` or ``GENERATIVE``.

    Raises:
        ArgumentError: the keys fit no known format.
    """
    if not isinstance(content, Mapping):
        raise ArgumentError(f"a row must be a JSON object, not {json.dumps(content):.60}")
    for key, kind in _KINDS.items():
        if key in content:
            return kind
    raise ArgumentError(
        f"its keys ({', '.join(map(str, content)) or 'none'}) fit no format: "
        "use query and pos, text, messages, or prompt and completion"
    )


def row_from(content: Mapping[str, Any]) -> Row:
    """A parsed line of JSON as a row.

    Raises:
        ArgumentError: says what is wrong with it, as the second half of a sentence.
    """
    kind_of(content)
    if "query" in content:
        return _embedding(content)
    if "messages" in content:
        return ChatRow(_conversation(_messages(content["messages"])))
    if "prompt" in content:
        turns = [content["prompt"], content.get("completion")]
        return ChatRow(_conversation(_alternating(turns, ("prompt", "completion"))))
    if isinstance(content["text"], str):
        return TextRow(_filled(content["text"], "text"))
    if not isinstance(content["text"], list):
        raise ArgumentError(f"text must be a text or a list of turns, not {_shown(content['text'])}")
    return ChatRow(_conversation(_alternating(content["text"])))


_KINDS = {"query": EMBEDDING, "messages": GENERATIVE, "prompt": GENERATIVE, "text": GENERATIVE}


def _embedding(content: Mapping[str, Any]) -> EmbeddingRow:
    sides = {}
    for key in ("pos", "neg"):
        value = content.get(key, [] if key == "neg" else None)
        if not isinstance(value, list):
            raise ArgumentError(f"{key} must be a list of passages, not {_shown(value)}")
        sides[key] = [_instructed(item, f"{key}[{i}]") for i, item in enumerate(value)]
    if not sides["pos"]:
        raise ArgumentError("pos is empty: a query needs one passage at least that answers it")
    texts = [_instructed(content["query"], "query"), *sides["pos"], *sides["neg"]]
    return EmbeddingRow(texts, len(sides["pos"]), _vectors(content, len(sides["pos"]), len(sides["neg"])))


def _instructed(value: object, where: str) -> InstructedText:
    if isinstance(value, str):
        return "", _filled(value, where)
    if isinstance(value, list) and len(value) == 2 and all(isinstance(part, str) for part in value):
        return _readable(value[0].strip(_STRIPPED), where), _filled(value[1], where)
    raise ArgumentError(f"{where} must be a text or [instruction, text], not {_shown(value)}")


def _vectors(content: Mapping[str, Any], positives: int, negatives: int) -> list[list[float]]:
    lists = {key: content[key] for key in ("pos_vectors", "neg_vectors") if key in content}
    for key, value in lists.items():
        if not isinstance(value, list):
            raise ArgumentError(f"{key} must be a list of vectors, not {_shown(value)}")
        if "query_vector" not in content:
            raise ArgumentError(f"it has {key} and no query_vector")
    if "query_vector" not in content:
        return []
    vectors = [content["query_vector"], *lists.get("pos_vectors", ()), *lists.get("neg_vectors", ())]
    if len(vectors) != 1 + positives + negatives:
        raise ArgumentError(
            f"it has vectors for {len(vectors)} texts and {1 + positives + negatives} texts: "
            "give pos_vectors and neg_vectors one vector for each passage"
        )
    for vector in vectors:
        numbers = isinstance(vector, list) and vector and all(map(_is_number, vector))
        if not numbers or len(vector) != len(vectors[0]):
            raise ArgumentError("its vectors must be lists of numbers, all of one length")
    return vectors


def _messages(value: object) -> list[dict[str, str]]:
    if not isinstance(value, list):
        raise ArgumentError(f"messages must be a list, not {_shown(value)}")
    messages = []
    for i, message in enumerate(value):
        if not isinstance(message, dict) or not {"role", "content"} <= set(message):
            raise ArgumentError(f"messages[{i}] must have a role and a content, not {_shown(message)}")
        content = _filled(message["content"], f"messages[{i}].content")
        messages.append({"role": str(message["role"]), "content": content})
    return messages


def _alternating(turns: list[Any], names: tuple[str, ...] = ()) -> list[dict[str, str]]:
    labels = names or [f"text[{i}]" for i in range(len(turns))]
    return [{"role": ("user", "assistant")[i % 2], "content": _filled(turn, labels[i])} for i, turn in enumerate(turns)]


def _conversation(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    spoken = messages[1:] if messages and messages[0]["role"] == "system" else messages
    for i, message in enumerate(spoken):
        expected = ("user", "assistant")[i % 2]
        if message["role"] != expected:
            raise ArgumentError(f"turn {i + 1} is the {message['role']}'s where the {expected}'s belongs")
    if not spoken or spoken[-1]["role"] != "assistant":
        raise ArgumentError("a conversation must end with the assistant's turn, which is what is learned")
    return messages


def _filled(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise ArgumentError(f"{where} must be a text, not {_shown(value)}")
    if not value.strip():
        raise ArgumentError(f"{where} is empty")
    return _readable(value, where)


def _readable(value: str, where: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ArgumentError(f"{where} holds half a character ({value[error.start]!a})") from error
    return value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _shown(value: object) -> str:
    return "missing" if value is None else f"{value!r:.60}"
