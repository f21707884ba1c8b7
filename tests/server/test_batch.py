"""A batch of answers in two processes that share a model: here both are in one, and hand each other their messages."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models.cache import LRUPromptCache

from grit_mlx import GritLM
from grit_mlx.errors import ProcessError
from grit_mlx.server.batch import Follower, batch_of

PROMPTS = [[1, 7, 90, 33, 12, 5], [1, 7, 90, 33, 12, 5, 200, 17], [1, 8, 8], [1, 7, 90, 33, 60, 61, 62]]


class Team:
    """Two processes; what the leader tells, the follower does afterwards, with the tokens that it chose."""

    split = "tensor"
    lost = None

    def __init__(self, model: GritLM) -> None:
        self.model, self.calls = model, 0
        self.chosen: list[mx.array] = []
        self.told: list[str] = []
        self.leads = True
        self.world = SimpleNamespace(rank=1, size=2, number_from_first=self.exchanged)
        whole: Any = SimpleNamespace(model=self.called, engine_tokenizer=model.engine_tokenizer, team=self)
        self.whole = whole
        self.fails: set[bool] = set()  # in which of both the model does: as the leader, as the follower
        self.follower = Follower(whole, self)  # type: ignore[arg-type]

    def called(self, *arguments: Any, **options: Any) -> mx.array:
        if self.leads in self.fails:
            raise ValueError("of a kind that cannot be merged")
        logits: mx.array = self.model.model(*arguments, **options)
        return logits

    def exchanged(self, number: mx.array, *, after: mx.array | None) -> mx.array:
        if not self.leads:
            return self.chosen.pop(0)
        self.chosen.append(number)
        return number

    @contextmanager
    def doing(self, job: str, **body: Any) -> Iterator[None]:
        try:
            yield
        finally:
            self.told.append(job)
            self.leads = False
            try:
                self.follower.jobs[job](**json.loads(json.dumps(body)))
            finally:
                self.leads = True


@pytest.fixture
def team(tiny_model: Path) -> Team:
    team = Team(GritLM(tiny_model))
    team.called.__func__.layers = team.model.model.layers  # type: ignore[attr-defined] # mlx-lm makes caches for them
    return team


def kept(prefixes: LRUPromptCache) -> list[Any]:
    return [tokens for queue in prefixes._lru._lrus.values() for _, tokens in queue]


def test_both_hold_the_same(team: Team) -> None:
    prefixes = LRUPromptCache(max_size=64, max_bytes=20_000)  # of a few prompts
    leader = batch_of(team.whole, prefixes)
    drawn = lambda logprobs: mx.random.categorical(logprobs)  # noqa: E731
    for turn in range(3):
        for number, prompt in enumerate(PROMPTS):
            leader.insert([*prompt, *range(70, 70 + 3 * turn)], 3 + 2 * number, sampler=drawn if number % 2 else None)
        written: dict[int, list[int]] = {}
        for step in range(20):
            for response in leader.next():
                written.setdefault(response.uid, []).append(response.token)
            if step == 4:
                leader.remove(max(written), keep=turn % 2 == 0)
        assert not team.chosen
        assert kept(prefixes) == kept(team.follower._prefixes)
    assert 0 < len(prefixes) < 9 and prefixes.nbytes <= 20_000


def test_what_fails_alike_is_begun_anew_by_both(team: Team) -> None:
    leader = batch_of(team.whole, LRUPromptCache())
    leader.insert(PROMPTS[0], 4)
    team.fails = {True, False}
    with pytest.raises(ValueError, match="merged"):
        leader.next()
    team.fails = set()
    leader.reset()
    number, _ = leader.insert(PROMPTS[0], 4)
    tokens = [response.token for _ in range(8) for response in leader.next() if response.uid == number]
    assert len(tokens) == 4 and team.told.count("reset") == 1


@pytest.mark.parametrize("leads", [True, False])
def test_what_fails_in_one_of_them_ends_both(team: Team, leads: bool) -> None:
    leader = batch_of(team.whole, LRUPromptCache())
    leader.insert(PROMPTS[0], 4)
    team.fails = {leads}
    if leads:
        with pytest.raises(ValueError, match="merged"):
            leader.next()
    else:
        leader.next()
    team.fails = set()
    with pytest.raises(ProcessError, match="Process 1 of 2 does not compute what the first one does any more"):
        leader.reset()
