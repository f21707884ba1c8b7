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
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from grit_mlx.errors import ArgumentError, Option

__all__ = ["Spec", "bytes_of_size", "check", "from_mapping", "nearest", "option", "spec_of"]

T = TypeVar("T")

# mlx counts steps, rows and tokens in 32 bits.
_LARGEST_INT = 2**31 - 1


@dataclass(frozen=True)
class Spec:
    """What is known of an option beside its name, its type and its default.

    Attributes:
        help: what it does, for help pages; the default is added where ``check`` knows it.
        choices: the values it may have; empty for any.
        minimum: the least number.
        maximum: the greatest number.
        above: a number that it must exceed.
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


def check(group: Any) -> None:
    """Bring a group's values to their types and refuse those out of range; for ``__post_init__``.

    None stands for the default. Whole numbers may be NumPy's; numbers may be text such as ``"1e-4"``, which is how
    YAML reads it; a single text may stand for a sequence of one.

    Raises:
        ArgumentError: names the option and what it may be.
    """
    kind: Any = type(group)
    hints = _hints(kind)
    for field in dataclasses.fields(group):
        if "spec" not in field.metadata:
            continue
        value = getattr(group, field.name)
        if value is None:
            value = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if value is not None:
            value = _converted(field.name, value, hints[field.name])
            _check_choices(field.name, value, spec_of(field).choices)
            _check_range(field.name, value, spec_of(field))
        object.__setattr__(group, field.name, value)


def from_mapping(group: type[T], values: Mapping[str, Any]) -> T:
    """A group from names and values.

    Raises:
        ArgumentError: an unknown name, with the nearest known one; or as ``check``.
    """
    known = _hints(group)  # type: ignore[arg-type] # a class is hashable
    for name in values:
        if name not in known:
            raise ArgumentError(f"There is no option {str(name)!r}: {nearest(str(name), known)}")
    return group(**values)


def bytes_of_size(text: str) -> int:
    """``"16GB"``, ``"1.5 gb"``, ``"0"`` in bytes, by powers of 1000; ``"16GiB"`` by powers of 1024.

    Raises:
        ArgumentError: it is not a size.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", text.strip().lower())
    if match is None or (match[3] and not match[2]):
        raise ArgumentError(f"{text!r} is not a size. Write it like 16GB or 500MB.")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** " kmgt".index(match[2] or " "))


def nearest(name: str, known: Collection[str]) -> str:
    """A hint after an unknown name: the nearest known one, or all where there are few."""
    if near := difflib.get_close_matches(name, list(known), 1):
        return f"did you mean {near[0]!r}?"
    return f"known are {', '.join(sorted(known))}." if len(known) <= 12 else "see the documentation for the known ones."


@cache
def _hints(group: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(group)
    return {field.name: hints[field.name] for field in dataclasses.fields(group)}


def _converted(name: str, value: Any, hint: Any) -> Any:
    """A value as its type."""
    union = isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
    kinds = [kind for kind in (typing.get_args(hint) if union else (hint,)) if kind is not type(None)]
    if len(kinds) > 1:  # such as str | Path
        if isinstance(value, tuple(typing.get_origin(kind) or kind for kind in kinds)):
            return value
        raise _wrong_type(name, value, " or ".join(_NAMES.get(kind, kind.__name__) for kind in kinds))
    kind = kinds[0]
    plain = typing.get_origin(kind) or kind
    if plain is Any:
        return value
    arguments = typing.get_args(kind)
    if plain in (list, tuple, Sequence) or getattr(plain, "__name__", "") == "Sequence":
        if isinstance(value, str) and arguments[0] is str:
            value = [value]
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise _wrong_type(name, value, "a list")
        made = [_converted(name, one, arguments[0]) for one in value]
        return made if plain is list else tuple(made)
    if plain is int and not isinstance(value, bool):
        try:
            return operator.index(value)
        except TypeError:
            pass
    if plain is float and not isinstance(value, bool):
        try:
            return float(value)
        except (TypeError, ValueError):
            pass
    if plain is bool and type(value).__module__ == "numpy":
        value = value.item()
    if plain is Path and isinstance(value, str):
        return Path(value)
    if not isinstance(value, plain) or (plain is not bool and isinstance(value, bool)):
        raise _wrong_type(name, value, _NAMES.get(plain, plain.__name__))
    return value


def _wrong_type(name: str, value: Any, wanted: str) -> ArgumentError:
    return ArgumentError(Option(name), f" must be {wanted}, not {value!r:.80}.")


_NAMES: dict[Any, str] = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    dict: "a table",
    list: "a list",
    Path: "a path",
}


def _check_choices(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    for one in value if isinstance(value, list | tuple) else [value]:
        if choices and one not in choices and not callable(one):
            raise ArgumentError("Unknown ", Option(name), f" {one!r}: use one of {', '.join(map(str, choices))}.")


def _check_range(name: str, value: Any, spec: Spec) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or value in spec.also:
        return
    if not math.isfinite(value):
        raise ArgumentError(Option(name), f" must be a finite number, not {value}.")
    outside = (
        (spec.minimum is not None and value < spec.minimum)
        or (spec.maximum is not None and value > spec.maximum)
        or (spec.above is not None and value <= spec.above)
    )
    if outside:
        raise ArgumentError(Option(name), f" must be {_range(spec)}, not {value}.")
    if isinstance(value, int) and value > _LARGEST_INT and spec.maximum is None and spec.parse is None:
        raise ArgumentError(Option(name), f" must be at most {_LARGEST_INT}, not {value}.")


def _range(spec: Spec) -> str:
    if spec.minimum is not None and spec.maximum is not None:
        said = f"from {spec.minimum:g} to {spec.maximum:g}"
    else:
        parts = [
            None if spec.minimum is None else f"at least {spec.minimum:g}",
            None if spec.above is None else f"above {spec.above:g}",
            None if spec.maximum is None else f"at most {spec.maximum:g}",
        ]
        said = " and ".join(part for part in parts if part is not None)
    return said + "".join(f", or {number:g} {meaning}" for number, meaning in spec.also.items())
