"""Scores of systems on sets, one after the other.

The main score is the first of each kind of set:

=========  ===========================================
retrieval  nDCG, MRR and recall, all at one depth
pairs      Spearman's and Pearson's correlation
answers    perplexity, bits per byte
=========  ===========================================
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from time import perf_counter

import numpy as np

from grit_mlx.evaluation.metrics import ndcg, pearson, ranked, recall, reciprocal_rank, spearman
from grit_mlx.evaluation.sets import LabelledSet, PairSet, RetrievalSet
from grit_mlx.evaluation.systems import BM25System, DenseSystem, GritSystem, Rankings, System, Watch, unwatched
from grit_mlx.gritlm import GritLM
from grit_mlx.vectors.fusion import fuse_shares

__all__ = ["Score", "evaluate", "evaluate_set"]

# How far down rankings are fused.
_FUSED_DEPTH = 100


@dataclass(frozen=True)
class Score:
    """What one system reached on one set.

    Attributes:
        set: the set's name.
        kind: ``"retrieval"``, ``"pairs"``, ``"answers"``, ``"mteb"`` or ``"lm-eval"``.
        system: its name.
        values: each score by its name, the main one first.
        count: number of queries, pairs or tokens of answers; 0 if it is not known.
        seconds: that it took; of a fused ranking only the fusing.
    """

    set: str
    kind: str
    system: str
    values: Mapping[str, float]
    count: int
    seconds: float

    @property
    def main(self) -> str:
        """Name of the main score."""
        return next(iter(self.values))


def evaluate(
    systems: Sequence[Callable[[], System]],
    sets: Sequence[LabelledSet],
    *,
    depth: int = 10,
    hybrid: bool = False,
    watch: Watch = unwatched,
    on_system: Callable[[System], None] | None = None,
    further: Callable[[System], Iterable[Score]] = lambda system: (),
) -> Iterator[Score]:
    """Score systems on sets, and yield each score as it is known.

    A system is made, scored on all sets and let go before the next one is made, so that two models need not fit
    into memory together.

    Args:
        systems: functions that make (load) a system.
        sets: the labelled data.
        depth: k of the scores of rankings.
        hybrid: after each dense system also score its rankings fused with BM25's, as ``NAME+BM25``. BM25 is run for
            it even if it is not among ``systems``.
        watch: shows the work; see ``systems``.
        on_system: called with each system that was made.
        further: other scores of a system, which come after those on the sets.
    """
    reach = max(depth, _FUSED_DEPTH) if hybrid else depth
    lexical: dict[int, Rankings] = {}  # by position among the sets
    if hybrid and any(isinstance(data, RetrievalSet) for data in sets):
        bm25 = BM25System()
        found = ((i, data) for i, data in enumerate(sets) if isinstance(data, RetrievalSet))
        lexical = {i: bm25.rankings(data, reach, watch) for i, data in found}
    names: dict[str, int] = {}
    for make in systems:
        system = make()
        names[system.name] = names.get(system.name, 0) + 1
        if names[system.name] > 1:  # two folders of one name
            system.name = f"{system.name} ({names[system.name]})"
        if on_system is not None:
            on_system(system)
        for position, data in enumerate(sets):
            yield from _scores(system, data, lexical.get(position), depth=depth, reach=reach, watch=watch)
        yield from further(system)
        del system


def evaluate_set(model: GritLM, data: LabelledSet) -> float:
    """A set's main score: nDCG@10, Spearman's correlation, or the perplexity of answers (the lower the better).

    Args:
        model: loaded in a mode that does what the set asks for.
        data: from ``load_set``.
    """
    (score,) = evaluate([lambda: GritSystem(model)], [data])
    return score.values[score.main]


def _scores(
    system: System, data: LabelledSet, lexical: Rankings | None, *, depth: int, reach: int, watch: Watch
) -> Iterator[Score]:
    started = perf_counter()

    def score(values: Mapping[str, float], count: int, name: str = system.name) -> Score:
        return Score(data.name, data.kind, name, values, count, perf_counter() - started)

    if isinstance(data, RetrievalSet):
        rankings = system.rankings(data, reach, watch)
        yield score(_of_rankings(rankings, data, depth), len(rankings))
        if lexical is not None and isinstance(system, DenseSystem):
            started = perf_counter()
            both = _fused([rankings, lexical], depth)
            yield score(_of_rankings(both, data, depth), len(both), f"{system.name}+{BM25System.name}")
    elif isinstance(data, PairSet):
        found = system.similarities(data, watch)
        if found is not None:
            values = {"Spearman": spearman(found, data.scores), "Pearson": pearson(found, data.scores)}
            yield score(values, len(data.scores))
    else:
        loss = system.losses(data, watch)
        if loss is not None:
            yield score({"perplexity": loss.perplexity, "bits/byte": loss.bits_per_byte}, loss.tokens)


def _of_rankings(rankings: Rankings, data: RetrievalSet, depth: int) -> dict[str, float]:
    """Mean nDCG, MRR and recall over the queries that have a relevant document."""
    metrics = {"nDCG": ndcg, "MRR": reciprocal_rank, "recall": recall}
    return {
        f"{name}@{depth}": float(
            np.mean([metric(list(rankings[query]), data.relevant[query], depth=depth) for query in data.asked])
        )
        for name, metric in metrics.items()
    }


def _fused(rankings: Sequence[Rankings], depth: int) -> Rankings:
    """Fuse rankings of the same queries by their scores; the first 100 documents of each count."""
    fused: Rankings = {}
    for query in rankings[0]:
        scores = fuse_shares([dict(islice(one[query].items(), _FUSED_DEPTH)) for one in rankings])
        fused[query] = {document: scores[document] for document in ranked(scores)[:depth]}
    return fused
