"""How far one model's vectors and next-token distributions are from another's, on the same texts.

Shows what quantising changes. ``drift_between`` compares arrays; ``outputs_of`` computes them with a model.

Shapes: N texts, E embedding size, M predicted positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from grit_mlx.errors import ArgumentError
from grit_mlx.gritlm import GritLM
from grit_mlx.model.numpy_linear import through_numpy
from grit_mlx.progress import Progress

__all__ = [
    "TEXTS",
    "Drift",
    "Outputs",
    "drift_between",
    "kept_positions",
    "kl_divergence",
    "neighbour_overlap",
    "outputs_of",
]

# Log-probabilities that are kept of one model while the other is computed, in bytes.
_KEPT_BYTES = 32 << 20
_NEIGHBOURS = 10


@dataclass(frozen=True)
class Outputs:
    """A model's outputs for some texts.

    Attributes:
        vectors: ``(N, E)``, of length 1.
        log_probabilities: ``(M, V)`` of the next token; None if the model does not generate.
    """

    vectors: NDArray[np.float32]
    log_probabilities: NDArray[np.float32] | None


@dataclass(frozen=True)
class Drift:
    """How far a model's outputs are from another's.

    Attributes:
        texts: N.
        cosine_mean: of the two vectors of a text; 1 is no drift.
        cosine_p1: its 1st percentile.
        cosine_worst: its minimum.
        neighbour_overlap: share of a text's 10 nearest among the others that is the same, mean over the texts;
            None with fewer than 12 texts.
        kl: mean Kullback-Leibler divergence of the next token's distribution from the first model's, in nats;
            None if one of them does not generate.
        top_token: share of positions at which both have the same most likely token; None as for ``kl``.
    """

    texts: int
    cosine_mean: float
    cosine_p1: float
    cosine_worst: float
    neighbour_overlap: float | None
    kl: float | None
    top_token: float | None

    def rows(self) -> list[tuple[str, str]]:
        """Labels and values for people to read; what was not measured is left out."""
        labels = {
            "cosine_mean": "mean cosine",
            "cosine_p1": "1st percentile",
            "cosine_worst": "worst",
            "neighbour_overlap": f"same {_NEIGHBOURS} nearest neighbours",
            "kl": "KL of next token, nats",
            "top_token": "same most likely token",
        }
        values = asdict(self)
        return [(label, f"{values[name]:.4f}") for name, label in labels.items() if values[name] is not None]

    def as_dict(self) -> dict[str, Any]:
        """For JSON, rounded to what is meaningful."""
        return {key: round(value, 6) if isinstance(value, float) else value for key, value in asdict(self).items()}


def drift_between(first: Outputs, second: Outputs) -> Drift:
    """Compare two models' outputs for the same texts.

    Raises:
        ArgumentError: they are for different texts, or the vectors or vocabularies have different sizes.
    """
    if first.vectors.shape != second.vectors.shape:
        raise ArgumentError(
            f"The two models' vectors cannot be compared: {first.vectors.shape} and {second.vectors.shape} numbers."
        )
    a, b = _unit(first.vectors), _unit(second.vectors)
    cosines = np.sum(a * b, axis=1)
    kl = top_token = None
    if first.log_probabilities is not None and second.log_probabilities is not None:
        if first.log_probabilities.shape != second.log_probabilities.shape:
            raise ArgumentError("The two models have different vocabularies, so their predictions cannot be compared.")
        kl = float(np.mean(kl_divergence(first.log_probabilities, second.log_probabilities)))
        same = first.log_probabilities.argmax(axis=1) == second.log_probabilities.argmax(axis=1)
        top_token = float(np.mean(same))
    return Drift(
        texts=len(cosines),
        cosine_mean=float(cosines.mean()),
        cosine_p1=float(np.percentile(cosines, 1)),
        cosine_worst=float(cosines.min()),
        neighbour_overlap=neighbour_overlap(a, b, _NEIGHBOURS) if len(a) > _NEIGHBOURS + 1 else None,
        kl=kl,
        top_token=top_token,
    )


def neighbour_overlap(a: NDArray[np.float32], b: NDArray[np.float32], k: int) -> float:
    """Mean share of the k nearest neighbours, by cosine and without the text itself, that two sets have in common.

    Args:
        a: ``(N, E)`` unit vectors.
        b: the same texts' other vectors; their size may differ.
        k: number of neighbours, less than N.
    """

    def nearest(vectors: NDArray[np.float32]) -> NDArray[np.intp]:
        scores = vectors @ vectors.T  # (N, N)
        np.fill_diagonal(scores, -np.inf)
        return np.argsort(-scores, axis=1, kind="stable")[:, :k]

    pairs = zip(nearest(a), nearest(b), strict=True)
    return float(np.mean([len(set(x.tolist()) & set(y.tolist())) / k for x, y in pairs]))


def kl_divergence(p: NDArray[np.float32], q: NDArray[np.float32]) -> NDArray[np.float32]:
    """KL(p || q) of each row of log-probabilities ``(M, V)``, in nats, at least 0."""
    # Row by row: the temporary arrays would be larger than what they are made of.
    divergence = [np.sum(np.exp(a) * (a - b)) for a, b in zip(p, q, strict=True)]
    return np.maximum(np.array(divergence, np.float32), 0)


def outputs_of(model: GritLM, texts: Sequence[str] | None = None, progress: Progress | None = None) -> Outputs:
    """Embed and continue texts.

    Args:
        model: loaded in mode ``"unified"``.
        texts: None for ``TEXTS``.
        progress: called with passes done and passes in all: each text is embedded and continued.
    """
    texts = TEXTS if texts is None else texts
    report = progress or (lambda done, total: None)
    total = 2 * len(texts)
    vectors = model.encode(list(texts), role="document", progress=lambda done, _: report(done, total))
    predicted = _log_probabilities(model, texts, lambda done: report(len(texts) + done, total))
    return Outputs(np.asarray(vectors, np.float32), predicted)


def kept_positions(vocabulary: int, texts: int) -> int:
    """Number of each text's last positions whose log-probabilities are kept."""
    return max(1, _KEPT_BYTES // (4 * vocabulary * texts))


@through_numpy()
def _log_probabilities(model: GritLM, texts: Sequence[str], report: Callable[[int], None]) -> NDArray[np.float32]:
    """Of the token that follows each of the last few tokens of each text, ``(M, V)``."""
    kept: list[NDArray[np.float32]] = []
    positions = 0
    for done, text in enumerate(texts, start=1):
        ids = model.tokenizer.encode(text)[: model.settings.max_length]
        logits = model.model(mx.array([ids]))[0]  # (L, V)
        positions = positions or kept_positions(logits.shape[-1], len(texts))
        logits = logits[-positions:].astype(mx.float32)
        kept.append(np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True)))
        report(done)
    return np.concatenate(kept)


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    unit: NDArray[np.float32] = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return unit


# Short texts of many kinds, so that a comparison needs no data: statements, questions, a recipe, code, numbers,
# other languages. Several share a subject, so that neighbourhoods mean something.
TEXTS: tuple[str, ...] = (
    "The keel keeps a sailing boat upright when the wind leans on its sails.",
    "A yacht with a heavy fin below the hull rights itself after a gust.",
    "Tacking means turning the bow through the wind; gybing means turning the stern through it.",
    "What stops a dinghy from drifting sideways?",
    "Yeast eats sugar and breathes out carbon dioxide, which makes dough rise.",
    "Knead the dough for ten minutes, cover it, and let it rest for an hour in a warm place.",
    "Why did my sourdough come out flat and dense?",
    "Add a pinch of salt to the flour; too much of it slows the fermentation down.",
    "Photosynthesis turns carbon dioxide and water into glucose and oxygen with the energy of light.",
    "Chlorophyll absorbs red and blue light and reflects green, which is why leaves look green.",
    "How do plants store the energy they get from the sun?",
    "The Calvin cycle fixes carbon in the stroma of the chloroplast.",
    "The central bank raised its key interest rate by a quarter of a percentage point.",
    "Inflation slowed to 2.4 percent in March, mostly because energy became cheaper.",
    "Higher rates make mortgages more expensive and cool the housing market.",
    "Should I fix the rate of my loan for ten years or for twenty?",
    "def mean(values):\n    return sum(values) / len(values)",
    "for line in open(path, encoding='utf-8'):\n    name, _, number = line.partition('=')",
    "How do I sort a list of dictionaries by a key in Python?",
    "IndexError: list index out of range means that the position is beyond the end of the list.",
    "A hash table finds an entry in constant time on average, at the price of some empty space.",
    "Binary search halves the interval at every step, so a million entries take twenty comparisons.",
    "The patient was given 500 mg of amoxicillin three times a day for a week.",
    "Antibiotics act on bacteria and not on viruses, so they do not help against a cold.",
    "What are the early signs of a heart attack in women?",
    "Vaccination trains the immune system to recognise a pathogen before it meets the real one.",
    "Blood pressure is written as systolic over diastolic, for example 120/80 mmHg.",
    "In 1969 two people walked on the Moon for the first time.",
    "A total solar eclipse happens when the Moon covers the whole disc of the Sun.",
    "Neptune needs 165 years for one orbit around the Sun.",
    "Light from the nearest star takes more than four years to reach us.",
    "How far away is the Andromeda galaxy?",
    "Once upon a time a fox met a crow with a piece of cheese in its beak.",
    "The old woman looked out of the window, sighed, and put the letter back into the drawer.",
    "She had promised never to return to the island, and yet here she was, on the ferry, in the rain.",
    "The moral of the story is that flatterers live at the expense of those who listen to them.",
    "The tenant may end the contract with three months' notice to the end of a month.",
    "The court held that the clause was void because it put the buyer at an unreasonable disadvantage.",
    "Can my landlord raise the rent twice in one year?",
    "This agreement is governed by the law of the country in which the seller has its seat.",
    "Die Katze schläft auf dem warmen Fensterbrett und träumt von Mäusen.",
    "Le chat dort sur le rebord de la fenêtre et rêve de souris.",
    "El gato duerme junto a la ventana y sueña con ratones.",
    "The cat sleeps on the warm window sill and dreams of mice.",
    "Cats sleep up to sixteen hours a day and are most active at dawn and at dusk.",
    "7 times 8 is 56, and 56 divided by 4 is 14.",
    "The sum of the angles of a triangle in the plane is 180 degrees.",
    "A prime number has exactly two divisors: one and itself.",
    "How many prime numbers are there below one hundred?",
    "The train to the coast leaves at 7:42 from platform 3 and arrives at 9:15.",
    "All flights were cancelled because of the fog, so we took the night bus.",
    "What is the cheapest way to get from the airport to the city centre?",
    "The goalkeeper saved a penalty in the last minute, and the match ended one all.",
    "Marathon runners drink little and often, because thirst comes late.",
    "How should a beginner train for a ten-kilometre race?",
    "The cello sounds an octave below the viola and is tuned in fifths.",
    "A fugue begins with one voice that states the subject; the others answer it in turn.",
    "The painter mixed linseed oil into the pigment to make it dry more slowly.",
    "Glaciers carve valleys with steep walls and a flat floor, in the shape of a U.",
    "Earthquakes are frequent where one plate of the crust slides below another.",
    "Why is the sea salty while rivers are not?",
    "Bees tell each other where flowers are by the angle and the length of a dance.",
    "Salmon return from the sea to the river in which they hatched.",
    "Yes.",
)
