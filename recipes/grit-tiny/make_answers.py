"""The data for `grit train`: passages with their first sentence as the answer, and prompts without a passage.

    python recipes/grit-tiny/make_answers.py

Writes runs/grit-tiny/data/generative. The answer does not depend on the question, because finding the sentence that
answers it takes more layers than this model has (LOG.md).
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from typing import Any

import numpy as np
import sources
from sources import UNKNOWN, sentences

OUTPUT = sources.WORK / "data" / "generative"
HEADINGS = ("What is {}?", "what is {}", "Tell me about {}.", "What does the text say about {}?", "Explain {}.")
NAMES = ("What is {}?", "Who or what is {}?", "what do you know about {}", "Tell me about {}.")
# Per source: maximum number of rows, and templates that turn its query into a question (None if it is one already).
SOURCES: dict[str, tuple[int, tuple[str, ...] | None]] = {
    "clapnq_train": (1_852, None),
    "selqa_dev": (609, None),
    "boolq_train2k": (1_619, None),
    "fairytaleqa_train": (5_000, None),
    "medquad": (5_000, None),
    "openstax_para": (6_000, HEADINGS),
    "openstax_biology2014": (2_500, HEADINGS),
    "arxiv": (3_000, HEADINGS),
    "aws_docs": (1_500, HEADINGS),
    "dbpedia7.6k": (3_500, NAMES),
    "wiki_movies": (3_500, NAMES),
    "factbook": (2_000, HEADINGS),
}
TASKS = ("Summarize this.", "Summarize the text.", "What does the text say?", "What is this about?", "tl;dr")
TASK = 0.1  # fraction of the rows
_AFTER = "Answer the prior query while optionally using the context prior to it"
_BEFORE = "Optionally using the prior context answer the query prior to it"
# Prompts, separators between passages, and shares: first the prompts of `grit rag`, with the markers of cached
# documents and questions as far as a chat can have them, then hand-written ones.
PROMPTS: tuple[tuple[str, str, float], ...] = (
    ("{passages}\n\n{question}\n\n" + _AFTER, "\n\n", 0.2),
    ("{question}\n\n{passages}\n\n" + _BEFORE, "\n\n", 0.1),
    ("<|embed|>\n{passages}\n<|user|>\n{question}\n\n" + _AFTER, "\n<|embed|>\n", 0.25),
    (
        "Given a question, retrieve passages that answer it\n<|embed|>\n{question}\n<|user|>\n{passages}\n\n" + _BEFORE,
        "\n\n",
        0.1,
    ),
    ("{passages}\n\n{question}", "\n\n", 0.25),
    ("{question}\n\n{passages}", "\n\n", 0.1),
)
WORDS = (3, 45)  # minimum and maximum per answer
PASSAGES = (1, 1, 1, 1, 2, 2, 3, 4, 5)  # per prompt, each equally likely
SPACED = 0.15  # fraction of the rows with a space before punctuation, as in many data sets
LENGTHS = (15, 160)  # total words of the passages of a prompt
# Rows whose prompt has no passage. SOURCES uses the first rows of each source, these the last ones.
ASKED = {"medquad": 2_500, "openstax_qa": 1_500, "strategyqa": 1_500, "opentriviaqa": 2_500, "sgd_turns": 1_000}
DEFINED = {"openstax_glossary": 3_000, "dbpedia7.6k": 2_000, "wiki_movies": 1_000}
QUESTION = 33  # maximum words
OPENINGS = ("Hello", "Hi", "hello there", "Good morning", "Thanks", "Who are you?", "What can you do?", "Help", "test")
ORDERS = ("Write a poem about {}.", "Write a story about {}.", "Explain {}", "Translate {} into French.", "{}", "{}?")
_SIGN = re.compile(r"(?<=\w)([.,;:?!)](?=\s|$)|'s\b)")
# Abbreviations, which do not end a sentence.
_SHORTENED = re.compile(
    r"(?:\b(?:[A-Z]|[Dd]r|Mr|Mrs|Ms|St|Jr|Sr|Inc|No|vs|etc|e\.g|i\.e|cf|al|ca|approx)|\.[A-Za-z])\.$"
)


def asked(query: str, forms: Sequence[str] | None, rng: np.random.Generator) -> str:
    if forms is None:
        return query
    topic = query.rpartition(":")[2].strip() or query
    return forms[int(rng.integers(len(forms)))].format(topic)


def passages(name: str, most: int) -> list[tuple[str, list[str]]]:
    """Queries with the sentences of their passages, if the first sentence is suitable as an answer."""
    found = []
    for _, query, passage, _ in sources.pairs(name, most):
        # Some passages are preceded by their answer or title.
        parts = sentences(re.split("::| -- ", passage)[-1])
        if parts and WORDS[0] <= len(parts[0].split()) <= WORDS[1] and not _SHORTENED.search(parts[0]):
            found.append((query, parts))
    return found


def cut(parts: Sequence[str], words: int) -> list[str]:
    """The first sentences with at most ``words`` words, but at least one sentence."""
    kept = [parts[0]]
    for part in parts[1:]:
        if len(" ".join([*kept, part]).split()) > words:
            break
        kept.append(part)
    return kept


def answers(seed: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    rows = []
    for name, (most, forms) in SOURCES.items():
        found = passages(name, most)
        for i, (query, parts) in enumerate(found):
            others = rng.integers(len(found), size=PASSAGES[int(rng.integers(len(PASSAGES)))] - 1)
            words = int(rng.integers(*LENGTHS)) // (1 + len(others))
            given = [" ".join(cut(one, words)) for one in (parts, *(found[int(j)][1] for j in others if j != i))]
            question = TASKS[int(rng.integers(len(TASKS)))] if rng.random() < TASK else asked(query, forms, rng)
            form, between, _ = PROMPTS[int(rng.choice(len(PROMPTS), p=[share for *_, share in PROMPTS]))]
            prompt = form.replace("{question}", question).replace("{passages}", between.join(given))
            row = [prompt, parts[0]]
            rows.append({"text": [_SIGN.sub(r" \1", text) for text in row] if rng.random() < SPACED else row})
    return [rows[i] for i in rng.permutation(len(rows))]


def unknown(seed: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    prompts = list(OPENINGS) * 20
    for name, most in ASKED.items():
        rest = [row["text"][0] for row in sources.rows("generative", name)]
        prompts += [text for text in rest[::-1] if len(text.split()) <= QUESTION][:most]
    for name, most in DEFINED.items():
        for _, term, *_ in list(sources.pairs(name))[-most:]:
            form = ORDERS[int(rng.integers(len(ORDERS)))]
            prompts.append(form.format(term) if rng.random() < 0.4 else asked(term, NAMES, rng))
    for name, (most, forms) in SOURCES.items():
        if forms is None:
            prompts += [query for _, query, *_ in list(sources.pairs(name))[: min(most, 1_200)]]
    return [{"text": [prompts[i], UNKNOWN]} for i in rng.permutation(len(prompts))]


def write(name: str, rows: list[dict[str, Any]]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (OUTPUT / f"{name}.jsonl").write_text(text, encoding="utf-8")
    print(f"{OUTPUT / name}.jsonl: {len(rows):,} rows")


def main() -> None:
    shutil.rmtree(OUTPUT, ignore_errors=True)
    OUTPUT.mkdir(parents=True)
    write("answers", answers(seed=3))
    write("unknown", unknown(seed=6))


if __name__ == "__main__":
    main()
