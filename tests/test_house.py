"""The size of the house: what keeps functions, signatures and rooms small enough to read."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.test_project import ROOT, sources, tree_of

Function = ast.FunctionDef | ast.AsyncFunctionDef

MOST_LINES, MOST_PARAMETERS = 60, 8

# What may be larger, and why: one story that is easier to read in one piece, or the official package's signature.
LONG_FUNCTIONS = 4
LONG_SIGNATURES = 8


def functions() -> Iterator[tuple[str, Function]]:
    for module in sources():
        for node in ast.walk(tree_of(module)):
            if isinstance(node, Function):
                yield f"{module}.{node.name}", node


def lines(function: Function) -> int:
    """Lines of a function without its docstring."""
    assert function.end_lineno is not None
    count = function.end_lineno - function.lineno + 1
    first = function.body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        assert first.end_lineno is not None
        count -= first.end_lineno - first.lineno + 1
    return count


def parameters(function: Function) -> int:
    arguments = function.args
    names = [one.arg for one in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return len([name for name in names if name not in {"self", "cls"}])


def test_functions_are_short() -> None:
    long = {name: lines(one) for name, one in functions() if lines(one) > MOST_LINES}
    assert len(long) <= LONG_FUNCTIONS, long


def test_signatures_are_short() -> None:
    long = {name: parameters(one) for name, one in functions() if parameters(one) > MOST_PARAMETERS}
    assert len(long) <= LONG_SIGNATURES, long


def test_few_modules_stand_outside_a_room() -> None:
    loose = [path.name for path in (ROOT / "grit_mlx").glob("*.py")]
    assert len(loose) <= 6, loose


def test_the_choice_of_a_model_travels_as_one_value() -> None:
    spelled = [
        name
        for name, one in functions()
        if "trust_remote_code" in {argument.arg for argument in (*one.args.args, *one.args.kwonlyargs)}
    ]
    assert len(spelled) <= 6, spelled


def test_every_module_says_what_it_is() -> None:
    silent = [
        module
        for module in sources()
        if not ast.get_docstring(tree_of(module)) and Path(sources()[module]).stat().st_size
    ]
    assert not silent
