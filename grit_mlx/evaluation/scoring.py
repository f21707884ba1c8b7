"""Scores of systems on sets, one after the other.

The main score is the first of each kind:

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
from numpy.typing import ArrayLike

from grit_mlx.evaluation.answers import AnswerLoss
from grit_mlx.evaluation.metrics import ndcg, pearson, ranked, recall, reciprocal_rank, spearman
from grit_mlx.evaluation.sets import LabelledSet, PairSet, RetrievalSet
from grit_mlx.evaluation.systems import BM25System, DenseSystem, Rankings, System, Watch, unwatched
from grit_mlx.vectors.fusion import fuse_shares

__all__ = ["Score", "evaluate", "fuse_rankings", "kind_of_set", "score_answers", "score_pairs", "score_rankings"]

# How far down rankings are fused.
_FUSED_DEPTH = 100


@dataclass(frozen=True)
class Score:
    """What one system reached on one set.

    Attributes:
        set: the set's name.
        kind: ``"retrieval"``, ``"pairs"``, ``"answers"`` or ``"mteb"``.
        system: its name.
        values: each score by its name, the main one first.
        count: queries, pairs or tokens of answers that it is over; 0 where that is not known.
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


def kind_of_set(data: LabelledSet) -> str:
    """``"retrieval"``, ``"pairs"`` or ``"answers"``."""
    if isinstance(data, RetrievalSet):
        return "retrieval"
    return "pairs" if isinstance(data, PairSet) else "answers"


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
    retrieval = [data for data in sets if isinstance(data, RetrievalSet)]
    lexical: list[Rankings] = []
    if hybrid and retrieval:
        bm25 = BM25System()
        lexical = [bm25.rankings(data, reach, watch) for data in retrieval]
    names: dict[str, int] = {}
    for make in systems:
        system = make()
        names[system.name] = names.get(system.name, 0) + 1
        if names[system.name] > 1:  # two folders of one name
            system.name = f"{system.name} ({names[system.name]})"
        if on_system is not None:
            on_system(system)
        for data in sets:
            started = perf_counter()
            if isinstance(data, RetrievalSet):
                rankings = system.rankings(data, reach, watch)
                values = score_rankings(rankings, data, depth)
                yield Score(data.name, "retrieval", system.name, values, len(rankings), perf_counter() - started)
                if hybrid and isinstance(system, DenseSystem):
                    started = perf_counter()
                    other = lexical[next(i for i, one in enumerate(retrieval) if one is data)]
                    both = fuse_rankings([rankings, other], depth)
                    values, name = score_rankings(both, data, depth), f"{system.name}+{BM25System.name}"
                    yield Score(data.name, "retrieval", name, values, len(both), perf_counter() - started)
            elif isinstance(data, PairSet):
                similarities = system.similarities(data, watch)
                if similarities is not None:
                    values = score_pairs(similarities, data.scores)
                    yield Score(data.name, "pairs", system.name, values, len(data.scores), perf_counter() - started)
            else:
                loss = system.losses(data, watch)
                if loss is not None:
                    values = score_answers(loss)
                    yield Score(data.name, "answers", system.name, values, loss.tokens, perf_counter() - started)
        yield from further(system)
        del system


def score_rankings(rankings: Rankings, data: RetrievalSet, depth: int) -> dict[str, float]:
    """Mean nDCG, MRR and recall over the queries that have a relevant document."""
    metrics = {"nDCG": ndcg, "MRR": reciprocal_rank, "recall": recall}
    return {
        f"{name}@{depth}": float(
            np.mean([metric(list(rankings[query]), data.relevant[query], depth=depth) for query in data.asked])
        )
        for name, metric in metrics.items()
    }


def score_pairs(similarities: ArrayLike, scores: ArrayLike) -> dict[str, float]:
    """Correlations of what a system found with what people said."""
    return {"Spearman": spearman(similarities, scores), "Pearson": pearson(similarities, scores)}


def score_answers(loss: AnswerLoss) -> dict[str, float]:
    """Perplexity and bits per byte."""
    return {"perplexity": loss.perplexity, "bits/byte": loss.bits_per_byte}


def fuse_rankings(rankings: Sequence[Rankings], depth: int) -> Rankings:
    """Rankings of the same queries as one, by their scores; the first 100 documents of each count."""
    fused: Rankings = {}
    for query in rankings[0]:
        scores = fuse_shares([dict(islice(one[query].items(), _FUSED_DEPTH)) for one in rankings])
        fused[query] = {document: scores[document] for document in ranked(scores)[:depth]}
    return fused
