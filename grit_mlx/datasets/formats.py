"""Rows as other tools write them, in the formats of ``examples``; and fields that no format has (pure functions).

==================  ================================================================  ========================
                    fields                                                            becomes
==================  ================================================================  ========================
ShareGPT            conversations: [{from: human | gpt | ..., value}], system, tools   messages
Alpaca              instruction, input, output, system, history                       messages
Dolly               instruction, context, response                                    messages
TRL                 prompt and completion as lists of messages                        messages
OpenAI              messages whose content is a list of parts                         messages
triplets            anchor, positive, negative, negative_1, ...                       query, pos, neg
==================  ================================================================  ========================

What is not used is never dropped without a word: a field that says where a row comes from is ignored, any other that
is not of the format is refused with the nearest name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from grit_mlx.errors import ArgumentError
from grit_mlx.options import nearest

__all__ = ["FIELDS", "check_fields", "native"]

Row = Mapping[str, Any]

# The fields of each format of ``examples``, by the one that tells it.
FIELDS: dict[str, tuple[str, ...]] = {
    "query": ("query", "pos", "neg", "query_vector", "pos_vectors", "neg_vectors"),
    "messages": ("messages", "tools"),
    "prompt": ("prompt", "completion"),
    "text": ("text",),
}

# Where a row comes from and how good it is: what people keep beside the texts, and nothing learns from.
_ABOUT = {
    *("id", "_id", "idx", "index", "row_id", "uid", "uuid", "hash", "source", "sources", "dataset"),
    *("dataset_name", "data_source", "subset", "split", "origin", "task", "task_id", "task_name", "task_type"),
    *("category", "categories", "type", "lang", "language", "languages", "score", "scores", "rating"),
    *("quality", "difficulty", "license", "url", "link", "meta", "metadata", "extra", "tags", "topic"),
    *("domain", "model", "version", "created", "created_at", "timestamp", "date", "author", "length"),
    *("num_tokens", "token_count", "word_count", "turns", "num_turns", "conversation_id", "session_id"),
    *("conversation_hash", "toxic", "redacted", "pos_scores", "neg_scores", "pos_id", "neg_id", "query_id"),
    *("query-id", "corpus-id", "doc_id", "qid", "pid", "avg_rating", "__index_level_0__"),
}

# ShareGPT's names of roles, and ours.
_ROLES = {
    **dict.fromkeys(("human", "user", "prompter"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bing", "bard", "model", "ai", "bot"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("tool", "observation", "function_response", "ipython"), "tool"),
}
_NUMBERED = re.compile(r"(?:hard_)?negatives?(?:_\d+)?$|neg_\d+$")


def native(content: Row) -> Row:
    """A row of another tool's format as one of ours; others as they are.

    Raises:
        ArgumentError: it is damaged.
    """
    for telling, convert in _FORMATS:
        if telling <= content.keys():
            return convert(content)
    return content


def check_fields(content: Row, format_name: str) -> None:
    """Refuse fields that the format of a row does not have.

    Raises:
        ArgumentError: names the field, and the nearest that the format has.
    """
    known = FIELDS[format_name]
    for name, value in content.items():
        if name in known or str(name).lower() in _ABOUT or value is None:
            continue
        contained = next((one for one in known if one in str(name)), None)  # hard_negatives
        near = f"did you mean {contained!r}?" if contained else nearest(str(name), known)
        raise ArgumentError(
            f"the field {str(name)!r} is not one of a row with {format_name!r}: {near.rstrip('.')}. Rename or remove it"
        )


def _sharegpt(content: Row) -> Row:
    rest = {name: value for name, value in content.items() if name not in ("conversations", "conversation", "system")}
    turns = content.get("conversations", content.get("conversation"))
    if not isinstance(turns, list):
        raise ArgumentError(f"conversations must be a list of turns, not {turns!r:.60}")
    messages = [_turn(turn, i) for i, turn in enumerate(turns)]
    return {**rest, "messages": [*_system(content), *messages]}


def _turn(turn: Any, number: int) -> dict[str, Any]:
    if isinstance(turn, Mapping) and "from" in turn and "value" in turn:
        role = _ROLES.get(str(turn["from"]).lower())
        if role is None:
            raise ArgumentError(
                f"conversations[{number}] is from {turn['from']!r}, which is not one of {', '.join(_ROLES)}"
            )
        rest = {name: value for name, value in turn.items() if name not in ("from", "value") and value is not None}
        return {"role": role, "content": turn["value"], **rest}
    if isinstance(turn, Mapping) and "role" in turn:
        return {**turn, "role": _ROLES.get(str(turn["role"]).lower(), turn["role"])}
    raise ArgumentError(f"conversations[{number}] must have 'from' and 'value', not {turn!r:.60}")


def _alpaca(content: Row) -> Row:
    answer = next(name for name in ("output", "response") if name in content)
    extra = next((content[name] for name in ("input", "context") if content.get(name)), "")
    question = "\n\n".join(part for part in (_text(content["instruction"]), _text(extra)) if part)
    before = [
        {"role": role, "content": _text(text)}
        for pair in content.get("history") or ()
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    used = {"instruction", "input", "context", "system", "history", answer}
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": content[answer]}]
    rest = {name: value for name, value in content.items() if name not in used}
    return {**rest, "messages": [*_system(content), *before, *turns]}


def _system(content: Row) -> list[dict[str, Any]]:
    return [{"role": "system", "content": content["system"]}] if content.get("system") else []


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ArgumentError(f"instruction and input must be texts, not {value!r:.60}")
    return value.strip()


def _trl(content: Row) -> Row:
    if not (isinstance(content["prompt"], list) or isinstance(content["completion"], list)):
        return content
    turns = [
        {"role": role, "content": part} if isinstance(part, str) else part
        for name, role in (("prompt", "user"), ("completion", "assistant"))
        for part in (content[name] if isinstance(content[name], list) else [content[name]])
    ]
    rest = {name: value for name, value in content.items() if name not in ("prompt", "completion")}
    return {**rest, "messages": turns}


def _triplet(content: Row) -> Row:
    query = next(name for name in ("anchor", "query") if name in content)
    negatives = [name for name in content if _NUMBERED.match(name)]
    rest = {name: value for name, value in content.items() if name not in (query, "positive", *negatives)}
    neg = [text for name in negatives for text in _listed(content[name])]
    return {**rest, "query": content[query], "pos": _listed(content["positive"]), "neg": neg}


def _listed(value: Any) -> Iterable[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _parts(content: Row) -> Row:
    """Contents that are lists of parts as texts; calls whose arguments are JSON as tables."""
    messages = content["messages"]
    if not isinstance(messages, list):
        return content
    return {**content, "messages": [_message(one, i) for i, one in enumerate(messages)], **_tools(content)}


def _message(message: Any, number: int) -> Any:
    if not isinstance(message, Mapping):
        return message
    parts = message.get("content")
    if isinstance(parts, list):
        for part in parts:
            if not isinstance(part, Mapping) or part.get("type", "text") != "text" or "text" not in part:
                kind = part.get("type") if isinstance(part, Mapping) else part
                raise ArgumentError(f"messages[{number}].content holds a part that is not text: {kind!r:.40}")
        message = {**message, "content": "".join(str(part["text"]) for part in parts)}
    if calls := message.get("tool_calls"):
        message = {**message, "tool_calls": [_call(call, number) for call in calls]}
    return message


def _call(call: Any, number: int) -> Any:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or "name" not in function:
        raise ArgumentError(f"messages[{number}].tool_calls must have functions with a name, not {call!r:.60}")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except ValueError as error:
            raise ArgumentError(f"messages[{number}].tool_calls has arguments that are not JSON: {error}") from error
    rest = {name: value for name, value in call.items() if name not in ("function", "name", "arguments")}
    return {"type": "function", **rest, "function": {"name": function["name"], "arguments": arguments}}


def _tools(content: Row) -> dict[str, Any]:
    tools = content.get("tools")
    if isinstance(tools, str):
        try:
            tools = json.loads(tools or "[]")
        except ValueError as error:
            raise ArgumentError(f"tools is not JSON: {error}") from error
    return {"tools": tools} if tools else {}


def _then_parts(convert: Callable[[Row], Row]) -> Callable[[Row], Row]:
    def both(content: Row) -> Row:
        converted = convert(content)
        return _parts(converted) if "messages" in converted else converted

    return both


# Fields that tell a format, and how it becomes one of ours; the first that fits is taken.
_FORMATS: tuple[tuple[frozenset[str], Callable[[Row], Row]], ...] = (
    (frozenset({"messages"}), _parts),
    (frozenset({"conversations"}), _then_parts(_sharegpt)),
    (frozenset({"conversation"}), _then_parts(_sharegpt)),
    (frozenset({"instruction", "output"}), _alpaca),
    (frozenset({"instruction", "response"}), _alpaca),
    (frozenset({"prompt", "completion"}), _then_parts(_trl)),
    (frozenset({"anchor", "positive"}), _triplet),
    (frozenset({"query", "positive"}), _triplet),
)
