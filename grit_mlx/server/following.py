"""What a process computes for the server that another one runs, where a model is split among both."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from grit_mlx.server.batch import Follower
from grit_mlx.server.reading import reading_jobs

if TYPE_CHECKING:
    from grit_mlx.gritlm import GritLM

__all__ = ["served_jobs"]


def served_jobs(model: GritLM) -> dict[str, Callable[..., object]]:
    """For ``Team.follow``, beside the model's own."""
    assert model.team is not None
    return {**Follower(model, model.team).jobs, **reading_jobs(model)}
