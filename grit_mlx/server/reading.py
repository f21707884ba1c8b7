"""Texts that a model reads a part at a time, for their probabilities: alike in all processes that it is split among."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache

from grit_mlx.errors import ProcessError
from grit_mlx.model import threads
from grit_mlx.model.numpy_linear import through_numpy
from grit_mlx.model.settings import Settings

if TYPE_CHECKING:
    from grit_mlx.gritlm import GritLM

__all__ = ["Reading", "reading_jobs"]

_numbers: Final = itertools.count()


class Reading:
    """One text.

    Args:
        model: reads.
        document: tokens that come first, read as a document is for a cache; None for none.
        settings: how that is read; None for the model's own.
    """

    def __init__(
        self, model: GritLM, document: Sequence[int] | None = None, *, settings: Settings | None = None
    ) -> None:
        self._model = model
        self._number = next(_numbers)
        self._held: dict[int, Any] = {}
        self._begun = {"document": None if document is None else list(document)}
        self._settings = asdict(settings or model.settings)

    def logits(self, tokens: Sequence[int]) -> mx.array:
        """Of what follows each of the next tokens, ``(T, V)`` float32; in the library's thread."""
        how: dict[str, Any] = {
            "number": self._number,
            "tokens": list(tokens),
            "settings": self._settings,
            **self._begun,
        }
        self._begun = {}
        if not self._model.is_split:
            return _read(self._model, self._held, **how)
        assert self._model.team is not None
        with self._model.team.doing("read", **how):
            return _read(self._model, self._held, **how)

    def close(self) -> None:
        """Forget what was read."""
        self._held.clear()
        if self._model.is_split:
            with suppress(ProcessError):  # nobody is left who holds it
                threads.run(self._forgotten)

    def _forgotten(self) -> None:
        assert self._model.team is not None
        with self._model.team.doing("forget", number=self._number):
            pass


def reading_jobs(model: GritLM) -> dict[str, Callable[..., object]]:
    """What a process that follows reads, for ``Team.follow``."""
    held: dict[int, Any] = {}

    def read(**how: Any) -> None:
        _read(model, held, **how)

    return {"read": read, "forget": lambda number: held.pop(number, None)}


@through_numpy()
def _read(
    model: GritLM,
    held: dict[int, Any],
    *,
    number: int,
    tokens: Sequence[int],
    settings: dict[str, Any],
    document: Sequence[int] | None = None,
) -> mx.array:
    if number not in held:
        held[number] = (
            make_prompt_cache(model.model)
            if document is None
            else model.embedder.layers(document, settings=Settings(**settings))
        )
    logits: mx.array = model.model(mx.array([list(tokens)]), cache=held[number])[0].astype(mx.float32)
    mx.eval(logits, [layer.state for layer in held[number]])
    return logits
