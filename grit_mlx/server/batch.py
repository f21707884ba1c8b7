"""What mlx-lm computes of a model's answers: many at once, and from prompts that it need not read again.

A model that is split among processes has a batch in each of them, which holds the same answers and the same earlier
prompts. The first process decides, and tells the others each call; they make the same one (``Follower``). They take its
tokens, so how tokens are chosen is the first one's business alone. It drops what its memory has no room for, and the
others drop as much.

Everything here is called by the library's thread (``model/threads.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import mlx.core as mx
from mlx_lm.generate import BatchGenerator
from mlx_lm.models.cache import LRUPromptCache, can_trim_prompt_cache, trim_prompt_cache

from grit_mlx.errors import ProcessError
from grit_mlx.model.caches import copy_cache
from grit_mlx.model.numpy_linear import through_numpy

if TYPE_CHECKING:
    from grit_mlx.gritlm import GritLM
    from grit_mlx.model.team import Team

__all__ = ["Batch", "Follower", "batch_of"]

Sampler = Callable[[mx.array], mx.array]

# Tokens of each prompt, and prompts, that are read between two tokens of the answers that are being written.
_PREFILL: Final = 256
_PROMPTS: Final = 4


class Batch:
    """The answers of one model.

    Args:
        model: generates.
        prefixes: keys and values of earlier prompts and answers.
    """

    def __init__(self, model: GritLM, prefixes: LRUPromptCache) -> None:
        self._model = model.model
        self._prefixes = prefixes
        self._ends = sorted(model.engine_tokenizer.eos_token_ids)
        self._names: dict[int, tuple[str, ...]] = {}
        self._generator: BatchGenerator | None = None

    def insert(
        self,
        tokens: Sequence[int],
        limit: int,
        *,
        names: Sequence[str] = (),
        layers: Sequence[Any] = (),
        sampler: Sampler | None = None,
        processors: Sequence[Any] = (),
    ) -> tuple[int, int]:
        """Begin an answer.

        Args:
            tokens: the prompt; behind ``layers`` where there are some.
            limit: tokens of the answer.
            names: of what ``layers`` hold; prompts with the same names share what they have in common.
            layers: keys and values that the prompt continues; they are not changed.
            sampler: chooses its tokens; None for the likeliest one.
            processors: of logits, as mlx-lm takes them.

        Returns:
            The answer's number, and how many of the tokens need not be read again.
        """
        tokens = list(tokens)
        held, rest = self._known(tuple(names), layers, tokens)
        known = len(tokens) - len(rest)
        if self._generator is None:
            self._generator = BatchGenerator(
                self._model,
                stop_tokens=[[token] for token in self._ends],
                sampler=self._chooser(None),
                prefill_step_size=_PREFILL,
                prefill_batch_size=_PROMPTS,
            )
        samplers: Any = [None if sampler is None else self._chooser(sampler)]
        [number] = self._generator.insert(
            [rest],
            max_tokens=[limit],
            caches=None if held is None else [held],
            all_tokens=[tokens[:known]],
            samplers=samplers,
            logits_processors=[list(processors)],
        )
        self._names[number] = tuple(names)
        return number, known

    @through_numpy()
    def next(self) -> list[Any]:
        """mlx-lm's next responses: a token of every answer, or none while prompts are read.

        The keys and values of answers that end are kept for later prompts.
        """
        assert self._generator is not None
        _, responses = self._generator.next()
        for response in responses:
            if response.finish_reason is not None:
                self._keep(response.uid, response.prompt_cache, response.all_tokens)
        return list(responses)

    def remove(self, number: int, *, keep: bool) -> None:
        """End an answer that has not ended; ``keep`` its keys and values for later prompts."""
        if self._generator is None:
            return
        held = self._generator.remove([number], return_prompt_caches=True)
        layers, tokens = held.get(number, (None, None)) if keep else (None, None)
        self._keep(number, layers, tokens)

    def reset(self) -> None:
        """End all answers; earlier prompts are kept."""
        if self._generator is not None:
            self._generator.close()
            self._generator = None
        self._names.clear()
        mx.clear_cache()

    def _known(
        self, names: tuple[str, ...], layers: Sequence[Any], tokens: list[int]
    ) -> tuple[list[Any] | None, list[int]]:
        """Keys and values of a prompt's beginning, None for none, and the tokens after it, at least one."""
        held, rest = self._prefixes.fetch_nearest_cache(self._key(names), tokens)
        if held is not None and not rest:
            trimmed: Any = trim_prompt_cache(held, 1) if can_trim_prompt_cache(held) else None
            if trimmed == 1:
                return held, tokens[-1:]
            held = None
        if held is not None:
            return held, list(rest)
        return (copy_cache(layers) or None), tokens

    def _keep(self, number: int, layers: Any, tokens: Any) -> None:
        names = self._names.pop(number, None)
        if names is not None and layers and tokens:
            self._prefixes.insert_cache(self._key(names), list(tokens), layers)

    def _key(self, names: tuple[str, ...]) -> Any:
        return (id(self._model), *names)

    def _chooser(self, sampler: Sampler | None) -> Sampler | None:
        """A sampler as mlx-lm is to call it; None for its own, which takes the likeliest token."""
        return sampler


class _SharedBatch(Batch):
    """The same in each of several processes: tokens are the first one's."""

    def __init__(self, model: GritLM, prefixes: LRUPromptCache, team: Team) -> None:
        super().__init__(model, prefixes)
        self._team = team
        self._failed = False
        self._chosen: mx.array | None = None  # by the last sampler

    def _chooser(self, sampler: Sampler | None) -> Sampler:
        def choose(logprobs: mx.array) -> mx.array:
            number = mx.argmax(logprobs, axis=-1) if sampler is None else sampler(logprobs)
            self._chosen = self._team.world.number_from_first(number, after=self._chosen)
            return self._chosen

        return choose


class _Leader(_SharedBatch):
    """Tells the others each call."""

    def insert(self, tokens: Sequence[int], limit: int, **how: Any) -> tuple[int, int]:
        if how.pop("layers", ()):
            raise ProcessError("A model that is split among processes continues no cached texts.")
        number, known = super().insert(tokens, limit, **how)
        # Once that has succeeded: what is wrong with it concerns this process alone.
        names, drawn = list(how.get("names", ())), how.get("sampler") is not None
        with self._telling("insert", tokens=list(tokens), limit=limit, names=names, drawn=drawn, found=[number, known]):
            return number, known

    def next(self) -> list[Any]:
        with self._telling("next"):
            return super().next()

    def remove(self, number: int, *, keep: bool) -> None:
        with self._telling("remove", number=number, keep=keep):
            super().remove(number, keep=keep)

    def reset(self) -> None:
        if self._team.lost is not None:  # nobody is left to tell, and mlx's last step may never end
            return
        with self._telling("reset"):
            super().reset()

    @contextmanager
    def _telling(self, job: str, **body: Any) -> Iterator[None]:
        with self._team.doing(job, held=len(self._prefixes), failed=self._failed, **body):
            self._failed = True
            yield
            self._failed = False


class Follower(_SharedBatch):
    """Makes the calls that the leader tells, with its own part of the model.

    Args:
        model: of which this process has a part.
        team: the processes.
    """

    def __init__(self, model: GritLM, team: Team) -> None:
        super().__init__(model, LRUPromptCache(max_size=1 << 62), team)  # the leader says what is dropped

    @property
    def jobs(self) -> dict[str, Callable[..., None]]:
        """For ``Team.follow``."""
        calls: dict[str, Callable[..., Any]] = {
            "insert": self._inserted,
            "next": self.next,
            "remove": self.remove,
            "reset": self.reset,
        }
        return {name: self._following(call) for name, call in calls.items()}

    def _inserted(self, tokens: Sequence[int], limit: int, names: Sequence[str], drawn: bool, found: list[int]) -> None:
        own = super().insert(tokens, limit, names=names, sampler=_likeliest if drawn else None)
        if list(own) != found:
            raise self._apart()

    def _following(self, call: Callable[..., Any]) -> Callable[..., None]:
        def follow(*, held: int, failed: bool, **body: Any) -> None:
            if failed != self._failed:
                raise self._apart()
            # Prompts leave in the order in which they came, so as many are the same ones.
            self._prefixes.trim_to(n_sequences=held)
            self._failed = True
            try:
                call(**body)
            except (RuntimeError, MemoryError, ProcessError):
                raise
            except Exception:  # the leader's call failed alike: it says so with its next one, or they are apart
                return
            self._failed = False

        return follow

    def _apart(self) -> ProcessError:
        world = self._team.world
        return ProcessError(f"Process {world.rank} of {world.size} does not compute what the first one does any more.")


def batch_of(model: GritLM, prefixes: LRUPromptCache) -> Batch:
    """The answers of a model, split among processes or not; the arguments are ``Batch``'s."""
    team = model.team
    return Batch(model, prefixes) if team is None or team.split is None else _Leader(model, prefixes, team)


def _likeliest(logprobs: mx.array) -> mx.array:
    return mx.argmax(logprobs, axis=-1)
