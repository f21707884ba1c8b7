"""Which stored tensors become which parameter of mlx-lm's model.

mlx-lm's own ``Model.sanitize`` knows each architecture's names. It is given placeholders here, so that nothing is
read: a placeholder that comes out under another name was renamed. Stacks of experts are made beforehand, by the
table below, because a stack that ``sanitize`` makes can only be computed at once, and a layer of experts is
gigabytes. What else it computes (some architectures split or transpose weights) is left to it, one tensor at a time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from grit_mlx.convert.reading import DTYPES
from grit_mlx.errors import CheckpointError
from grit_mlx.model.checkpoint import Tensor

__all__ = ["Layout", "Origin", "lay_out", "parameters", "sanitized"]

# Experts that a checkpoint stores one by one: their part of the name, and what mlx-lm calls their stack.
_EXPERTS = re.compile(
    r"(?P<block>.+)\.experts\.(?P<expert>\d+)\.(?P<part>w[123]|gate_proj|up_proj|down_proj)\.(?P<kind>\w+)"
)
_PARTS = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}

# How the names of a checkpoint may differ: Hugging Face's are as they are, the official training code saves the model
# as an attribute of another, and a base model without its head lacks the first part.
_PREFIXES: tuple[Callable[[str], str], ...] = (
    lambda name: name,
    lambda name: name.removeprefix("model."),
    lambda name: name if name.startswith("lm_head.") else f"model.{name}",
)


@dataclass(frozen=True)
class Origin:
    """Where a parameter's values come from.

    Attributes:
        tensors: stored tensors whose rows follow one another; empty if ``sanitize`` computes the values.
        shape: of the parameter.
        dtype: in which it is stored.
    """

    tensors: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: mx.Dtype


@dataclass(frozen=True)
class Layout:
    """The parameters of a model and what they are made of.

    Attributes:
        origins: by the parameter's name.
        renamed: from stored names to the names that ``sanitize`` was given.
        dropped: stored tensors that the architecture does not use.
    """

    origins: dict[str, Origin]
    renamed: dict[str, str]
    dropped: tuple[str, ...]


def lay_out(model: nn.Module, tensors: Mapping[str, Tensor]) -> Layout:
    """Find the layout of a checkpoint, whatever prefix its names have.

    Args:
        model: mlx-lm's model, unquantised; only its names, shapes and ``sanitize`` are used.
        tensors: the checkpoint's headers.

    Raises:
        CheckpointError: experts are missing, or a tensor ends up in two places.
    """
    expected = set(parameters(model))
    failure: CheckpointError | None = None
    best, best_score = None, -1
    for prefix in _PREFIXES:
        renamed = {name: prefix(name) for name in tensors}
        if len(set(renamed.values())) < len(renamed):
            continue
        try:
            layout = _lay_out(model, tensors, renamed, expected)
        except CheckpointError as error:
            failure = failure or error
            continue
        expected = set(parameters(model))  # Gemma 3's sanitize removes a head that the checkpoint does not have
        score = len(expected & layout.origins.keys())
        if score > best_score:
            best, best_score = layout, score
        if score == len(expected):
            break
    if failure is not None and best_score < len(expected):
        raise failure
    assert best is not None
    return best


def parameters(model: nn.Module) -> dict[str, mx.array]:
    """A model's parameters by name, in its own order."""
    return dict(tree_flatten(model.parameters()))


def sanitized(model: nn.Module, layout: Layout, files: list[Any]) -> dict[str, mx.array]:
    """The parameters that only ``sanitize`` can compute, as lazy arrays over the files.

    Args:
        model: mlx-lm's model, unquantised.
        layout: its layout.
        files: paths of all weight files.
    """
    arrays: dict[str, mx.array] = {}
    for path in files:
        loaded: Any = mx.load(str(path))
        arrays.update({layout.renamed[name]: array for name, array in loaded.items() if name in layout.renamed})
    result = model.sanitize(arrays)
    return {name: result[name] for name, origin in layout.origins.items() if not origin.tensors}


def _lay_out(model: nn.Module, tensors: Mapping[str, Tensor], renamed: Mapping[str, str], expected: set[str]) -> Layout:
    stacks = _stacks(renamed, expected)
    try:
        arrays, known = _sanitize(model, tensors, renamed, stacks)
    except KeyError:
        # This architecture's sanitize wants to see the experts one by one.
        try:
            arrays, known = _sanitize(model, tensors, renamed, {})
        except KeyError as error:
            raise CheckpointError(
                f"The checkpoint lacks {error.args[0]}, which {model.model_type} needs. Download the model again."
            ) from error
    origins = {
        name: Origin(known.get(id(array), ((), array))[0], tuple(array.shape), array.dtype)
        for name, array in arrays.items()
    }
    uses: dict[str, str] = {}
    for name, origin in origins.items():
        for tensor in origin.tensors:
            if tensor in uses:
                raise CheckpointError(f"{tensor} would become both {uses[tensor]} and {name}.")
            uses[tensor] = name
    # If sanitize computes anything, what it used cannot be told from what it dropped.
    computes = any(not origin.tensors for origin in origins.values())
    dropped = () if computes else tuple(name for name in tensors if name not in uses)
    return Layout(origins, dict(renamed), dropped)


def _sanitize(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    renamed: Mapping[str, str],
    stacks: Mapping[str, list[str]],
) -> tuple[dict[str, mx.array], dict[int, tuple[tuple[str, ...], mx.array]]]:
    """What ``sanitize`` makes of placeholders, and for each placeholder, by its id, what it stands for."""
    stacked = {name for names in stacks.values() for name in names}
    given: dict[str, mx.array] = {}
    known: dict[int, tuple[tuple[str, ...], mx.array]] = {}
    members = {**{renamed[name]: [name] for name in tensors if name not in stacked}, **stacks}
    for target, names in members.items():
        first = tensors[names[0]]
        shape = (len(names), *first.shape) if target in stacks else first.shape
        placeholder = mx.zeros(shape, DTYPES[first.dtype][1])  # lazy: takes no memory
        given[target] = placeholder
        known[id(placeholder)] = (tuple(names), placeholder)
    if hasattr(model, "sanitize"):
        given = model.sanitize(given)
    return given, known


def _stacks(renamed: Mapping[str, str], expected: set[str]) -> dict[str, list[str]]:
    """Stored experts by the name of their stack, in order, for those stacks that the model has.

    Raises:
        CheckpointError: an expert is missing in the middle.
    """
    stacks: dict[str, dict[int, str]] = {}
    for stored, name in renamed.items():
        match = _EXPERTS.fullmatch(name)
        if match is None:
            continue
        part = _PARTS.get(match["part"], match["part"])
        module = f"{match['block']}.switch_mlp.{part}"
        if f"{module}.weight" in expected:
            stacks.setdefault(f"{module}.{match['kind']}", {})[int(match["expert"])] = stored
    for name, experts in stacks.items():
        for number in range(len(experts)):
            if number not in experts:
                block = name.partition(".switch_mlp.")[0]
                example = experts[min(experts)]
                raise CheckpointError(
                    f"The checkpoint lacks expert {number} of {block}: it has no counterpart of {example}. "
                    "Download the model again."
                )
    return {name: [experts[number] for number in range(len(experts))] for name, experts in stacks.items()}
