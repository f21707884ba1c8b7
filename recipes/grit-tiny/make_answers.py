"""The data of `grit train`: extracts, what to say where there is no passage, and answers that are short.

    python recipes/grit-tiny/make_answers.py [--bags mixed]

Writes runs/grit-tiny/data/generative.
"""

from __future__ import annotations

import argparse
import json
import shutil
from typing import Any

import bags
import numpy as np
import sources
import torch
import words
from extracts import NAMES, asked, extracts
from sources import UNKNOWN, sentences
from tokenizers import Tokenizer

OUTPUT = sources.WORK / "data" / "generative"
# Words of a prompt, and of an answer, which ends with a sentence.
PROMPT, ANSWER = 100, 45
DEFINED = {"openstax_glossary": 3_000, "dbpedia7.6k": 2_000}
# (rows that are used at most, of those that are short)
SHORT: dict[str, int] = {
    "fairytaleqa_train": 5_000,
    "p3_open": 1_500,
    "flan_cot": 500,
    "medquad": 1_500,
    "openstax_qa": 1_000,
    "strategyqa": 500,
    "boolq_train2k": 300,
    "clapnq_train": 1_852,
    "opentriviaqa": 500,
    "tldr": 200,
    "sgd_turns": 1_000,
    "selfinstruct_human": 426,
}
# Rows whose prompt has no passage; none of those above.
ASKED = {"medquad": 2_500, "openstax_qa": 1_500, "strategyqa": 1_500, "opentriviaqa": 2_500, "sgd_turns": 1_000}
OPENINGS = ("Hello", "Hi", "hello there", "Good morning", "Thanks", "Who are you?", "What can you do?", "Help", "test")
ORDERS = ("Write a poem about {}.", "Write a story about {}.", "Explain {}", "Translate {} into French.", "{}", "{}?")


def short(row: dict[str, Any]) -> dict[str, Any] | None:
    """The row with its answer's first sentences; None where the prompt, or a sentence, is long."""
    prompt, answer = row["text"][0], row["text"][-1].partition("::")[0]
    if len(answer.split()) > ANSWER:
        kept: list[str] = []
        for sentence in sentences(answer):
            if len(" ".join([*kept, sentence]).split()) > ANSWER:
                break
            kept.append(sentence)
        answer = " ".join(kept)
    fits = answer.strip() and len(prompt.split()) <= PROMPT and len(prompt) < 8 * PROMPT
    return {"text": [prompt, answer]} if fits else None


def unknown() -> list[dict[str, Any]]:
    rng = np.random.default_rng(6)
    prompts = list(OPENINGS) * 20
    for name, most in ASKED.items():
        rest = [row["text"][0] for row in sources.rows("generative", name)]
        fitting = [text for text in rest[::-1] if len(text.split()) <= PROMPT // 3]
        prompts += fitting[:most]
    for name, most in DEFINED.items():
        for _, term, *_ in list(sources.pairs(name))[-most:]:
            form = ORDERS[int(rng.integers(len(ORDERS)))]
            prompts.append(form.format(term) if rng.random() < 0.4 else asked(term, NAMES, rng))
    return [{"text": [prompts[i], UNKNOWN]} for i in rng.permutation(len(prompts))]


def definitions() -> list[dict[str, Any]]:
    rng = np.random.default_rng(5)
    found = []
    for name, most in DEFINED.items():
        for _, term, text, _ in list(sources.pairs(name))[:most]:
            first = sentences(text)[:1]
            if first and len(first[0].split()) <= ANSWER:
                answer = first[0][0].upper() + first[0][1:].rstrip(".") + "."
                found.append({"text": [asked(term, NAMES, rng), answer]})
    return found


def write(name: str, rows: list[dict[str, Any]]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (OUTPUT / f"{name}.jsonl").write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bags", default="mixed")
    options = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(sources.WORK / "tokenizer" / "tokenizer.json"))
    table = torch.from_numpy(np.load(sources.WORK / f"{options.bags}.npy"))
    encode = bags.encoder(tokenizer, table, words.same_words(tokenizer))
    shutil.rmtree(OUTPUT, ignore_errors=True)
    OUTPUT.mkdir(parents=True)
    write("extracts", extracts(encode, seed=3))
    write("definitions", definitions())
    write("unknown", unknown())
    for name, most in SHORT.items():
        fitting = [row for row in map(short, sources.rows("generative", name)) if row is not None]
        write(name, fitting[:most])


if __name__ == "__main__":
    main()
