"""Bodies of requests, read by tables: types, ranges and unknown fields are checked as those of all options."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, TypeVar

from grit_mlx.errors import ArgumentError, Option, first_line
from grit_mlx.options import check_unicode, from_mapping

__all__ = ["object_of", "read", "text_of", "texts_of"]

T = TypeVar("T")

# Values of a refused field that ask for nothing.
_NOTHING: Final[tuple[Any, ...]] = (False, 0, 1, "", "none", [], {}, ["text"])


def object_of(body: bytes) -> dict[str, Any]:
    """The JSON object that a body holds; a byte order mark before it is skipped.

    Raises:
        ArgumentError: it is not one, or not UTF-8, or too deep.
    """

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is not JSON")

    try:
        value = json.loads(body.decode("utf-8-sig"), parse_constant=refuse)
    except UnicodeDecodeError as error:
        raise ArgumentError(f"The body is not UTF-8 at byte {error.start}.") from error
    except RecursionError as error:
        raise ArgumentError("The body is nested too deeply.") from error
    except ValueError as error:
        if "set_int_max_str_digits" in str(error):  # Python's own advice, which is for programmers
            raise ArgumentError("The body holds a number with thousands of digits.") from error
        raise ArgumentError(f"The body is not JSON: {first_line(error)}") from error
    if not isinstance(value, dict):
        raise ArgumentError(f"The body must be a JSON object, not {type(value).__name__}.")
    return value


def read(
    table: type[T], body: Mapping[str, Any], *, ignored: Collection[str] = (), refused: Mapping[str, str] | None = None
) -> T:
    """A request's fields, null for what is not set.

    Args:
        table: a group of options.
        body: the JSON object.
        ignored: fields without a meaning here, which may be dropped.
        refused: fields that ask for what is not done, each with what to say after its name.

    Raises:
        ArgumentError: names the field.
    """
    values = {name: value for name, value in body.items() if value is not None and name not in ignored}
    for name, sentence in (refused or {}).items():
        if name in values and values.pop(name) not in _NOTHING:
            raise ArgumentError(Option(name), f" {sentence}")
    return from_mapping(table, values)


def text_of(content: Any, where: str) -> str:
    """A message's content: a text, or parts of which all are texts.

    Raises:
        ArgumentError: names what else is in it.
    """
    if content is None:
        return ""
    if isinstance(content, str):
        check_unicode(content, where)
        return content
    if not isinstance(content, Sequence):
        raise ArgumentError(f"{where} must be text or a list of parts, not {content!r:.80}.")
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind not in ("text", "input_text") or not isinstance(part.get("text"), str):
            what = f"a part of type {kind!r}" if isinstance(kind, str) else f"{part!r:.80}"
            raise ArgumentError(f"{where} holds {what}: the model reads text only.")
        check_unicode(part["text"], where)
        texts.append(part["text"])
    return "\n".join(texts)


def texts_of(value: Any, name: str) -> list[str]:
    """A text or a list of texts, each with something in it.

    Raises:
        ArgumentError: names the field, and the index of what is wrong.
    """
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list):
        raise ArgumentError(Option(name), f" must be text or a list of texts, not {value!r:.80}.")
    if not texts:
        raise ArgumentError(Option(name), " is empty.")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise ArgumentError(Option(name), f": item {index} must be text, not {text!r:.80}.")
        if not text:
            raise ArgumentError(Option(name), f": item {index} is empty.")
        check_unicode(text, f"Item {index} of {name}")
    return texts
