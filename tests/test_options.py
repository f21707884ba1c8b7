"""Groups of options: what is accepted, what is refused and how, and that the command line says the same."""

from __future__ import annotations

import dataclasses
import importlib
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grit_mlx.cli import main, options
from grit_mlx.cli.main import COMMANDS
from grit_mlx.errors import ArgumentError
from grit_mlx.options import alternatives, check, default_of, from_mapping, nearest, option, spec_of


@dataclass(frozen=True, kw_only=True)
class Group:
    count: int = option(3, "Count.", minimum=1, also={-1: "for no limit"})
    part: float = option(0.5, "Part.", above=0, maximum=1)
    share: float = option(0.0, "Share.", minimum=0, below=1)
    limit: float | None = option(2.0, "Limit.", minimum=0)
    name: str = option("a", "Name.", choices=("a", "b"))
    on: bool = option(True, "On.")
    folder: Path = option(Path("x"), "Folder.")
    place: str | Path | None = option(None, "Place.")
    stop: Sequence[str] = option((), "Stop.")
    names: list[str] = option([], "Names.", choices=("a", "b"))
    sizes: list[int] = option([], "Sizes.", minimum=1)
    weights: dict[str, float] = option({"x": 1.0}, "Weights.", minimum=0)
    extra: dict[str, Any] = option({}, "Extra.")
    plain: int = 7  # no option: not checked

    def __post_init__(self) -> None:
        check(self)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("count", np.int64(4), 4),
        ("count", -1, -1),
        ("part", "1e-4", 1e-4),  # which YAML reads as text
        ("part", 1, 1.0),
        ("part", np.float32(0.25), 0.25),
        ("on", np.bool_(False), False),
        ("folder", "y", Path("y")),
        ("place", Path("z"), Path("z")),
        ("stop", "one", ("one",)),
        ("stop", ["one", "two"], ("one", "two")),
        ("names", ("a", "b"), ["a", "b"]),
        ("sizes", [np.int32(8)], [8]),
        ("weights", {"x": 2, "y": "1e-1"}, {"x": 2.0, "y": 0.1}),
        ("extra", {"betas": [1, None]}, {"betas": [1, None]}),
        ("limit", None, None),
        ("extra", {"parameters": 7_241_732_096}, {"parameters": 7_241_732_096}),
        ("plain", "anything", "anything"),
    ],
)
def test_values_become_their_types(name: str, value: Any, expected: Any) -> None:
    found = getattr(Group(**{name: value}), name)
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize("name", [one.name for one in dataclasses.fields(Group) if one.name != "plain"])
def test_none_is_the_default_unless_the_type_allows_it(name: str) -> None:
    field = Group.__dataclass_fields__[name]
    expected = None if name in ("limit", "place") else default_of(field)
    values: Any = {name: None}
    assert getattr(Group(**values), name) == expected
    if expected is not None:
        with pytest.raises(ArgumentError, match=f"^{name} must be .*, not None"):
            from_mapping(Group, values)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("count", 0, "count must be at least 1, or -1 for no limit, not 0."),
        ("count", -2, "count must be at least 1, or -1 for no limit, not -2."),
        ("count", 2**31, "count must be at most 2147483647, not 2147483648."),
        ("count", 1.5, "count must be a whole number, not 1.5."),
        ("count", "3", "count must be a whole number, not '3'."),
        ("count", True, "count must be a whole number, not True."),
        ("part", 0, "part must be above 0 and at most 1, not 0.0."),
        ("part", 1.5, "part must be above 0 and at most 1, not 1.5."),
        ("part", "fast", "part must be a number, not 'fast'."),
        ("part", True, "part must be a number, not True."),
        ("part", float("nan"), "part must be a finite number, not nan."),
        ("part", "inf", "part must be a finite number, not inf."),
        ("share", 1, "share must be at least 0 and below 1, not 1.0."),
        ("limit", -1, "limit must be at least 0, not -1.0."),
        ("name", "c", "Unknown name 'c': use one of a, b."),
        ("name", 3, "name must be text, not 3."),
        ("on", 1, "on must be true or false, not 1."),
        ("on", "no", "on must be true or false, not 'no'."),
        ("folder", 3, "folder must be a path, not 3."),
        ("place", 3, "place must be text or a path, not 3."),
        ("stop", [1], "stop must be text, not 1."),
        ("names", "a", "names must be a list, not 'a'."),
        ("names", ["a", "c"], "Unknown names 'c': use one of a, b."),
        ("sizes", [1, 0], "sizes must be at least 1, not 0."),
        ("sizes", ["8"], "sizes must be a whole number, not '8'."),
        ("sizes", [None], "sizes must be a whole number, not None."),
        ("weights", [1], "weights must be a table, not [1]."),
        ("weights", {"x": -1}, "weights must be at least 0, not -1.0 for 'x'."),
        ("weights", {"x": True}, "weights must be a number, not True for 'x'."),
    ],
)
def test_wrong_values(name: str, value: Any, message: str) -> None:
    for make in (Group, lambda **values: from_mapping(Group, values)):
        with pytest.raises(ArgumentError) as caught:
            make(**{name: value})
        assert (str(caught.value), caught.value.option) == (message, name)


def test_unknown_names() -> None:
    assert from_mapping(Group, {"count": 5}) == Group(count=5)
    with pytest.raises(ArgumentError, match=r"There is no option 'cuont': did you mean 'count'\?"):
        from_mapping(Group, {"cuont": 5})
    assert nearest("zzz", ["b", "a"]) == "known are a, b."


def test_a_group_shares_nothing_with_the_values_it_was_given() -> None:
    given = {"x": 1.0}
    group = Group(weights=given)
    given["x"] = -1
    assert group.weights == {"x": 1.0} and Group().weights is not Group().weights


# The groups of the product, and the flags made of them


def command_of(path: str) -> Any:
    """The function; a group has none."""
    words = [main._NAMES.get(word, word) for word in path.split()]
    return getattr(importlib.import_module(f"grit_mlx.cli.{words[0]}"), words[-1], None)


def groups_of(path: str) -> Iterator[tuple[str, Any, options.Use]]:
    """A command's parameters that stand for groups."""
    for name, hint in typing.get_type_hints(command_of(path).__wrapped__, include_extras=True).items():
        group, use = options._group_of(hint)
        if group is not None:
            yield name, group, use


USES = [(path, *found) for path in COMMANDS if command_of(path) for found in groups_of(path)]
GROUPS = {group.__name__: group for _, _, group, _ in USES}


def test_every_group_is_used_by_a_command() -> None:
    assert set(GROUPS) >= {"ModelChoice", "EmbeddingOptions", "GenerationOptions", "ReadingOptions", "TrainingSettings"}


@pytest.mark.parametrize(
    ("path", "name", "group", "use"), USES, ids=lambda value: value if isinstance(value, str) else ""
)
def test_flags_are_the_tables(path: str, name: str, group: Any, use: options.Use) -> None:
    command = main.Command(path).loaded()
    annotations = command_of(path).__annotations__
    flags = {one.name: one for one in command.params}
    context = command.make_context(path, [], resilient_parsing=True)
    hints = typing.get_type_hints(group)
    taken = [one for one in dataclasses.fields(group) if f"{name}__{one.name}" in flags]
    assert [one.name for one in taken] == [
        one.name
        for one in dataclasses.fields(group)
        if spec_of(one).flags is not None and (not use.only or one.name in use.only) and one.name not in use.without
    ]
    assert {*use.only, *use.without, *use.defaults, *use.helps} <= {one.name for one in dataclasses.fields(group)}
    for one in taken:
        spec, flag = spec_of(one), flags[f"{name}__{one.name}"]
        assert flag.opts == list(spec.flags or ["--" + one.name.replace("_", "-")])
        help_ = use.helps.get(one.name, spec.help)
        assert help_.endswith(".") and flag.help.startswith(help_)
        kind = typing.get_args(annotations[flag.name])[0]
        choices = [typing.get_args(part) for part in alternatives(kind) if typing.get_origin(part) is typing.Literal]
        assert choices == ([spec.choices] if spec.choices and str in alternatives(hints[one.name]) else [])
        both = bool in alternatives(hints[one.name]) and (use.given or default_of(one) is not False)
        assert flag.secondary_opts == (["--no-" + flag.opts[0][2:]] if both else [])
    values = {one.name: context.params[f"{name}__{one.name}"] for one in taken}
    defaults = dict(use.defaults)
    for one in taken:  # a flag's default may be text, such as 10GB
        for given in (values, defaults):
            if (parse := spec_of(one).parse) is not None and isinstance(given.get(one.name), str):
                given[one.name] = parse(given[one.name])
    values |= {one: dict(value or ()) for one, value in values.items() if options._is_table(hints[one])}
    assert group(**values) == group(**defaults), "what is not given is the default"


@pytest.mark.parametrize("name", GROUPS)
def test_defaults_pass_their_own_checks(name: str) -> None:
    made = GROUPS[name]()
    for one in dataclasses.fields(GROUPS[name]):
        default = default_of(one)
        # None may stand for a default that the group works out.
        assert default is None or getattr(made, one.name) == default
