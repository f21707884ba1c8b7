"""Which cached documents give way to others: one rule, wherever they are kept."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Held", "giving_way"]


@dataclass(frozen=True)
class Held:
    """A document that counts towards a budget."""

    key: str
    bytes: int
    last: float  # when it was last used, by a clock that all of them share
    is_fixed: bool = False  # it is being written: it counts, and cannot be removed


def giving_way(held: Iterable[Held], *, size: int, budget: int | None) -> list[str] | None:
    """What has to go so that there is room for more: the least recently used first.

    Args:
        held: everything that counts.
        size: of what comes, in bytes.
        budget: in bytes; None for no limit.

    Returns:
        Their keys; None if even that would not be enough.
    """
    if budget is None:
        return []
    ordered = sorted(held, key=lambda one: one.last)
    excess = size + sum(one.bytes for one in ordered) - budget
    going = []
    for one in ordered:
        if excess <= 0:
            break
        if not one.is_fixed:
            going.append(one.key)
            excess -= one.bytes
    return going if excess <= 0 else None
