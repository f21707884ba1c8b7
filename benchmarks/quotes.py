"""How often a quote answers the question: the right sentence of the right passage.

    python benchmarks/quotes.py --xquad xquad.en.json --clapnq clapnq_dev_answerable.jsonl

The answers that people marked are in two public files, both CC BY-SA 4.0. XQuAD (github.com/google-deepmind/xquad)
marks a few words of a paragraph, CLAP NQ (github.com/primeqa/clapnq, annotated_data/dev) the sentences that answer. A
quote is right if it holds the marked words, or is one of the marked sentences.

Three systems in one run: "quotes" as ``grit rag ask`` gives them; "vectors", which chooses by the vectors alone; and
"first", the first sentence of the best passage. Each answers twice: from the right passage, and from what a search
among all passages of the set finds. Weights were chosen on the questions of every other paragraph; the figures are of
the others.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grit_mlx  # noqa: F401 - before mlx, to load the fast BLAS

# isort: split
import numpy as np
from common import save
from numpy.typing import NDArray

from grit_mlx import GritLM
from grit_mlx.rag import SearchResult, Store
from grit_mlx.rag.encoding import Encoder
from grit_mlx.rag.quotes import Weights, quotes_of
from grit_mlx.text.sentences import sentences

SYSTEMS = ("quotes", "vectors", "first")
ONLY_VECTORS = Weights(words=0, heading=0, rank=0, early=0, lead=0, answer=0)
TOP = 4


@dataclass(frozen=True)
class Marked:
    """A question, the passage that answers it, and where in the folded passage the answers stand."""

    question: str
    passage: str
    spans: tuple[tuple[int, int], ...]

    def is_answered(self, quote: str, passage: str) -> bool:
        """Whether a quote of a passage holds one of the answers."""
        start = folded(self.passage).find(folded(quote))
        if folded(passage) != folded(self.passage) or start < 0:
            return False
        return any(start <= first and last <= start + len(folded(quote)) for first, last in self.spans)


class Remembering(Encoder):
    """Embeds each text once: many questions are asked of the same sentences."""

    def __init__(self, model: GritLM) -> None:
        super().__init__(model)
        self.known: dict[str, NDArray[np.float32]] = {}

    def vectors(self, contents: Sequence[str]) -> NDArray[np.float32]:
        """Vectors of texts, ``(N, E)``."""
        if new := [text for text in dict.fromkeys(contents) if text not in self.known]:
            self.known.update(zip(new, super().vectors(new), strict=True))
        return np.stack([self.known[text] for text in contents])


def folded(text: str) -> str:
    """A text with single spaces."""
    return " ".join(text.split())


def xquad(path: Path) -> Iterator[Marked]:
    """Each with the span that answers it."""
    for article in json.loads(path.read_text(encoding="utf-8"))["data"]:
        for paragraph in article["paragraphs"]:
            for one in paragraph["qas"]:
                answer = one["answers"][0]
                before = paragraph["context"][: answer["answer_start"]]
                start = len(folded(before)) + bool(before[-1:].isspace())
                yield Marked(one["question"], paragraph["context"], ((start, start + len(folded(answer["text"]))),))


def clapnq(path: Path) -> Iterator[Marked]:
    """Each with the sentences that answer it."""
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        text = row["passages"][0]["text"]
        chosen = [folded(one) for answer in row["output"] for one in answer["selected_sentences"]]
        starts = [(folded(text).find(one), len(one)) for one in chosen]
        if spans := tuple((start, start + length) for start, length in starts if start >= 0):
            yield Marked(row["input"], text, spans)


def quoted(system: str, question: str, results: Sequence[SearchResult], encoder: Encoder) -> list[tuple[str, str]]:
    """What a system quotes, best first, each with its passage."""
    if system == "first":
        text = results[0].passage.text
        start, stop = next(sentences(text))
        return [(text[start:stop], text)]
    weights = Weights() if system == "quotes" else ONLY_VECTORS
    return [
        (quote.text, next(one.passage.text for one in results if one.passage.id == quote.passage.id))
        for quote in quotes_of(question, results, encoder, weights)
    ]


def measure(model: GritLM, marked: Sequence[Marked], asked: Sequence[Marked], folder: Path) -> dict[str, Any]:
    """Shares of right answers: of the first quote, and of any."""
    rows = folder / "passages.jsonl"
    with rows.open("w", encoding="utf-8") as file:
        for text in dict.fromkeys(one.passage for one in marked):
            file.write(json.dumps({"text": text}) + "\n")
    store = Store(folder / "store", model, passage_tokens=2000)
    store.index([rows])
    held = {folded(passage.text): passage for passage in store.passages()}
    encoder = Remembering(model)
    right: dict[str, dict[str, int]] = {}
    for one in asked:
        given = {
            "passage given": [SearchResult(held[folded(one.passage)], 1.0)],
            "searched": store.search(one.question, top=TOP).results,
        }
        for how, results in given.items():
            counts = right.setdefault(how, dict.fromkeys([*SYSTEMS, "any of the quotes", "passage"], 0))
            counts["passage"] += folded(results[0].passage.text) == folded(one.passage)
            for system in SYSTEMS:
                answered = [one.is_answered(*pair) for pair in quoted(system, one.question, results, encoder)]
                counts[system] += answered[0]
                if system == "quotes":
                    counts["any of the quotes"] += any(answered)
    shares = {
        how: {name: round(count / len(asked), 4) for name, count in counts.items()} for how, counts in right.items()
    }
    return {"passages": len(held), "questions": len(asked), **shares}


def main() -> None:
    """Measure both sets, and save the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="default: the built-in model")
    parser.add_argument("--xquad", type=Path, required=True)
    parser.add_argument("--clapnq", type=Path, required=True)
    parser.add_argument("--half", choices=("chosen-on", "other"), default="other", help="which questions to ask")
    parser.add_argument("--dry-run", action="store_true", help="print only")
    options = parser.parse_args()
    model = GritLM(options.model)
    results: dict[str, Any] = {"model": options.model or "grit-tiny", "half": options.half, "top": TOP}
    for name, read in {"xquad": xquad, "clapnq": clapnq}.items():
        marked = list(read(getattr(options, name)))
        order = list(dict.fromkeys(one.passage for one in marked))
        other = {text for number, text in enumerate(order) if number % 2}
        asked = [one for one in marked if (one.passage in other) == (options.half == "other")]
        with TemporaryDirectory() as folder:
            results[name] = measure(model, marked, asked, Path(folder))
        print(name, json.dumps(results[name], indent=1), file=sys.stderr)
    if not options.dry_run:
        save("quotes-cpu", results)


if __name__ == "__main__":
    main()
