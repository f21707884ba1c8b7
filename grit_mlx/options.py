"""Groups of options as tables: one place for defaults, types, ranges, help and flags.

A group (choosing a model, reading texts, sampling) is a frozen dataclass whose fields are made by `option` and whose
``__post_init__`` calls `check`. From this one table come the library's checks, the flags and the help of the command
line (``cli/options.py``) and, for training, the settings file. A group travels as one value::

    @dataclass(frozen=True, kw_only=True)
    class Sampling:
        heading: ClassVar[str] = "Sampling"
        top_p: float = option(1.0, "Sample from the most likely tokens that together have this probability.",
                              above=0, maximum=1)

        def __post_init__(self) -> None:
            check(self)

Nothing here imports mlx: ``grit --help`` reads these tables.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import operator
import re
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from grit_mlx.errors import ArgumentError, Option

__all__ = [
    "Spec",
    "alternatives",
    "bad_unicode",
    "bytes_of_size",
    "check",
    "check_unicode",
    "default_of",
    "from_mapping",
    "nearest",
    "option",
    "spec_of",
]

T = TypeVar("T")

# mlx counts steps, rows and tokens in 32 bits.
_LARGEST_INT = 2**31 - 1


@dataclass(frozen=True)
class Spec:
    """What is known of an option besides its name, its type and its default.

    Ranges and choices hold for each value of a list or table.

    Attributes:
        help: what it does, for help pages.
        choices: the values it may have; empty for any.
        minimum: the smallest number.
        maximum: the largest number.
        above: a number that it must exceed.
        below: a number that it must stay under.
        also: numbers outside the range that mean something, such as ``{-1: "for no limit"}``.
        flags: on the command line; empty for ``--name-with-dashes``; None for no flag.
        metavar: what help pages show in place of a value; None for what suits the type.
        heading: of the help page; empty for the group's.
        parse: makes the value of the flag's text, such as bytes of "10GB".
    """

    help: str
    choices: tuple[Any, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    below: float | None = None
    also: Mapping[float, str] = dataclasses.field(default_factory=dict)
    flags: tuple[str, ...] | None = ()
    metavar: str | None = None
    heading: str = ""
    parse: Callable[[str], Any] | None = None


def option(default: Any, help: str, **spec: Any) -> Any:
    """A field of a group; ``spec`` are the attributes of `Spec`."""
    metadata = {"spec": Spec(help, **spec)}
    if isinstance(default, dict | list):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def spec_of(field: dataclasses.Field[Any]) -> Spec:
    """The spec of a group's field."""
    spec: Spec = field.metadata["spec"]
    return spec


def bytes_of_size(text: str) -> int:
    """``"16GB"``, ``"1.5 gb"``, ``"0"`` in bytes, by powers of 1000; ``"16GiB"`` by powers of 1024.

    Raises:
        ArgumentError: it is not a size.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", text.strip().lower())
    if match is None or (match[3] and not match[2]):
        raise ArgumentError(f"{text!r} is not a size. Write it like 16GB or 500MB.")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** " kmgt".index(match[2] or " "))


def default_of(field: dataclasses.Field[Any]) -> Any:
    """The default of a group's field."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def check(group: Any) -> None:
    """Bring a group's values to their types and refuse those out of range; for ``__post_init__``.

    None stands for the default where the type does not allow it. Whole numbers may be NumPy's; numbers may be text
    such as ``"1e-4"``, which is how YAML reads it; one text may stand for a sequence (not a list) of texts.

    Raises:
        ArgumentError: names the option and what it may be.
    """
    kind: Any = type(group)
    hints = _hints(kind)
    for field in dataclasses.fields(group):
        if "spec" not in field.metadata:
            continue
        value = getattr(group, field.name)
        if value is None and not _allows_none(hints[field.name]):
            value = default_of(field)
        if value is not None:
            value = _converted(field.name, value, hints[field.name])
            for one, where in _each(value):
                _check_choices(field.name, one, spec_of(field).choices)
                _check_range(field.name, one, spec_of(field), where)
                if not _holds_anything(hints[field.name]):
                    _check_count(field.name, one, spec_of(field), where)
        object.__setattr__(group, field.name, value)


def from_mapping(group: type[T], values: Mapping[str, Any]) -> T:
    """A group from names and values, as a settings file holds them: None is not a default here.

    Raises:
        ArgumentError: an unknown name, with the nearest known one; or as ``check``.
    """
    known = _hints(group)  # type: ignore[arg-type] # a class is hashable
    for name, value in values.items():
        if name not in known:
            raise ArgumentError(f"There is no option {str(name)!r}: {nearest(str(name), known)}")
        if value is None and not _allows_none(known[name]):
            raise _wrong_type(name, value, known[name])
    return group(**values)


def bad_unicode(text: str) -> str:
    """What to say of a text that tokenizers cannot read; empty if they can."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return f"holds half a surrogate pair at character {error.start}"
    return ""


def check_unicode(text: str, what: str) -> None:
    """Refuse a text that tokenizers cannot read.

    Raises:
        ArgumentError: it holds half a surrogate pair.
    """
    if problem := bad_unicode(text):
        raise ArgumentError(f"{what} {problem}.")


def nearest(name: str, known: Collection[str]) -> str:
    """A hint after an unknown name: the nearest known one, or all where there are few."""
    if near := difflib.get_close_matches(name, list(known), 1):
        return f"did you mean {near[0]!r}?"
    return f"known are {', '.join(sorted(known))}." if len(known) <= 12 else "see the documentation for the known ones."


@cache
def _hints(group: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(group)
    return {field.name: hints[field.name] for field in dataclasses.fields(group)}


def alternatives(hint: Any) -> list[Any]:
    """The types of a union, without None; of any other hint itself."""
    union = isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
    return [kind for kind in typing.get_args(hint) if kind is not type(None)] if union else [hint]


def _holds_anything(hint: Any) -> bool:
    """Whether a table's values are not this library's: what they count need not fit into 32 bits."""
    return Any in typing.get_args(alternatives(hint)[0])


def _allows_none(hint: Any) -> bool:
    return type(None) in typing.get_args(hint)


def _converted(name: str, value: Any, hint: Any, where: str = "") -> Any:
    """A value as its type.

    Args:
        name: of the option.
        value: any but None.
        hint: its type.
        where: what a message says after the value, such as its key in a table.
    """
    kinds = alternatives(hint)
    if len(kinds) > 1:  # such as str | Path
        if isinstance(value, tuple(typing.get_origin(kind) or kind for kind in kinds)):
            return value
        raise _wrong_type(name, value, hint, where)
    kind = typing.get_origin(kinds[0]) or kinds[0]
    arguments = typing.get_args(kinds[0])
    if kind is Any:
        return value
    if kind is dict and isinstance(value, Mapping):
        return {key: _converted(name, one, arguments[1], f" for {key!r}") for key, one in value.items()}
    if kind in (list, tuple, Sequence):
        if isinstance(value, str) and arguments[0] is str and kind is not list:
            value = [value]
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise _wrong_type(name, value, hint)
        made = [_converted(name, one, arguments[0]) for one in value]
        return made if kind is list else tuple(made)
    value = _plain(value, kind)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise _wrong_type(name, value, hint, where)
    return value


def _plain(value: Any, kind: Any) -> Any:
    """A value that means one of this type, as this type; any other as it is."""
    with suppress(TypeError, ValueError):
        if isinstance(value, bool):  # to Python a whole number
            return value
        if kind is bool and type(value).__module__ == "numpy":
            return value.item()
        if kind in (int, float):
            return operator.index(value) if kind is int else float(value)
        if kind is Path and isinstance(value, str):
            return Path(value)
    return value


def _wrong_type(name: str, value: Any, hint: Any, where: str = "") -> ArgumentError:
    kinds = [typing.get_origin(kind) or kind for kind in alternatives(hint)]
    wanted = " or ".join(_NAMES.get(kind, kind.__name__) for kind in kinds)
    return ArgumentError(Option(name), f" must be {wanted}, not {value!r:.80}{where}.")


_NAMES: dict[Any, str] = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    dict: "a table",
    list: "a list",
    tuple: "a list",
    Sequence: "a list",
    Path: "a path",
}


def _each(value: Any) -> Iterator[tuple[Any, str]]:
    """The values of a list or table, or a single one, each with what a message says after it."""
    if isinstance(value, dict):
        yield from ((one, f" for {key!r}") for key, one in value.items())
    else:
        yield from ((one, "") for one in (value if isinstance(value, list | tuple) else [value]))


def _check_choices(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    if choices and value not in choices and not callable(value):
        raise ArgumentError("Unknown ", Option(name), f" {value!r}: use one of {', '.join(map(str, choices))}.")


def _spelled(number: float) -> str:
    return str(number) if isinstance(number, int) else f"{number:g}"


def _check_range(name: str, value: Any, spec: Spec, where: str) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or value in spec.also:
        return
    if not math.isfinite(value):
        raise ArgumentError(Option(name), f" must be a finite number, not {value}{where}.")
    bounds = (
        (spec.minimum, operator.lt, "at least"),
        (spec.above, operator.le, "above"),
        (spec.maximum, operator.gt, "at most"),
        (spec.below, operator.ge, "below"),
    )
    if any(bound is not None and outside(value, bound) for bound, outside, _ in bounds):
        said = " and ".join(f"{word} {_spelled(bound)}" for bound, _, word in bounds if bound is not None)
        if spec.minimum is not None and spec.maximum is not None:
            said = f"from {_spelled(spec.minimum)} to {_spelled(spec.maximum)}"
        said += "".join(f", or {_spelled(number)} {meaning}" for number, meaning in spec.also.items())
        raise ArgumentError(Option(name), f" must be {said}, not {value}{where}.")


def _check_count(name: str, value: Any, spec: Spec, where: str) -> None:
    if isinstance(value, int) and value > _LARGEST_INT and spec.maximum is None and spec.parse is None:
        raise ArgumentError(Option(name), f" must be at most {_LARGEST_INT}, not {value}{where}.")
