"""Questions whose answer is a sentence of a given passage: what a model of this size can learn to write.

The sentence is the one that is nearest to the question by the bags of tokens, if it shares a word with it.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import sources
from bags import Encode
from sources import sentences

# Source: rows, and how its query becomes a question; None where it is one.
HEADINGS = ("What is {}?", "what is {}", "Tell me about {}.", "What does the text say about {}?", "Explain {}.")
NAMES = ("What is {}?", "Who or what is {}?", "what do you know about {}", "Tell me about {}.")
SOURCES: dict[str, tuple[int, tuple[str, ...] | None]] = {
    "clapnq_train": (1_852, None),
    "selqa_dev": (609, None),
    "boolq_train2k": (1_619, None),
    "fairytaleqa_train": (7_000, None),
    "medquad": (6_000, None),
    "openstax_para": (6_000, HEADINGS),
    "openstax_biology2014": (2_500, HEADINGS),
    "arxiv": (2_000, HEADINGS),
    "aws_docs": (1_500, HEADINGS),
    "dbpedia7.6k": (3_500, NAMES),
    "wiki_movies": (2_500, NAMES),
}
_AFTER = "Answer the prior query while optionally using the context prior to it"
_BEFORE = "Optionally using the prior context answer the query prior to it"
# Prompts, what stands between passages, and shares. Those of `grit rag`, as far as a chat has the markers of cached
# documents and questions; and as one writes them by hand.
PROMPTS: tuple[tuple[str, str, float], ...] = (
    ("{passages}\n\n{question}\n\n" + _AFTER, "\n\n", 0.22),
    ("{question}\n\n{passages}\n\n" + _BEFORE, "\n\n", 0.08),
    ("{passages}\n<|user|>\n{question}\n\n" + _AFTER, "<|embed|>\n", 0.3),
    (
        "Given a question, retrieve passages that answer it\n<|embed|>\n{question}\n<|user|>\n{passages}\n\n" + _BEFORE,
        "\n\n",
        0.1,
    ),
    ("{passages}\n\n{question}", "\n\n", 0.22),
    ("{question}\n\n{passages}", "\n\n", 0.08),
)
WORDS = (4, 45)  # of an answer
LONGEST = 100  # words of all passages of a prompt
# How often the passage begins with the answer where it does not of itself, and comes before the others, as what was
# found best does. Choosing among sentences freely is too much for so few layers: they learn to begin anywhere.
BEGINS, COMES_FIRST = 0.5, 0.85
_WORD = re.compile(r"[a-z0-9]{3,}")


def asked(query: str, forms: tuple[str, ...] | None, rng: np.random.Generator) -> str:
    if forms is None:
        return query
    topic = query.rpartition(":")[2].strip() or query
    return forms[int(rng.integers(len(forms)))].format(topic)


def extracts(encode: Encode, seed: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    rows = []
    for name, (most, forms) in SOURCES.items():
        found = [(query, passage) for _, query, passage, _ in sources.pairs(name, most)]
        # Some passages stand after their answer, or after their title.
        passages = [sentences(re.split("::| -- ", passage)[-1])[:12] for _, passage in found]
        flat = [sentence for passage in passages for sentence in passage]
        vectors, questions = encode(flat), encode([query for query, _ in found])
        end = 0
        for i, (query, _) in enumerate(found):
            start, end = end, end + len(passages[i])
            row = _row(query, passages[i], vectors[start:end] @ questions[i], forms, rng)
            if row is None:
                continue
            question, answer, passage = row
            given = [passage]
            # More passages to choose from, as far as there is room.
            for j in rng.integers(len(passages), size=int(rng.choice([0, 1, 2], p=[0.45, 0.35, 0.2]))):
                other = _cut(passages[int(j)], LONGEST // 3)
                if j != i and other and sum(len(text.split()) for text in [*given, other]) <= LONGEST:
                    given.insert(len(given) if rng.random() < COMES_FIRST else 0, other)
            form, between, _ = PROMPTS[int(rng.choice(len(PROMPTS), p=[share for *_, share in PROMPTS]))]
            prompt = form.replace("{question}", question).replace("{passages}", between.join(given))
            rows.append({"text": [prompt, answer]})
    return [rows[i] for i in rng.permutation(len(rows))]


def _row(
    query: str, passage: list[str], nearness: np.ndarray, forms: tuple[str, ...] | None, rng: np.random.Generator
) -> tuple[str, str, str] | None:
    """Question, answer and the part of the passage around the answer."""
    if not passage:
        return None
    best = int(nearness.argmax())
    answer = passage[best]
    said = set(_WORD.findall(answer.lower()))
    fits = WORDS[0] <= len(answer.split()) <= WORDS[1] and not answer.endswith("?")
    if not fits or not said & set(_WORD.findall(query.lower())):
        return None
    first = last = best
    lowest = best if rng.random() < BEGINS else 0
    while True:
        wider = [at for at in (first - 1, last + 1) if lowest <= at < len(passage)]
        wider = [at for at in wider if _words(passage[min(first, at) : max(last, at) + 1]) <= LONGEST * 3 // 4]
        if not wider:
            break
        at = wider[int(rng.integers(len(wider)))]
        first, last = min(first, at), max(last, at)
    return asked(query, forms, rng), answer, " ".join(passage[first : last + 1])


def _words(parts: list[str]) -> int:
    return sum(len(part.split()) for part in parts)


def _cut(passage: list[str], most: int) -> str:
    kept: list[str] = []
    for sentence in passage:
        if _words([*kept, sentence]) > most:
            break
        kept.append(sentence)
    return " ".join(kept)
