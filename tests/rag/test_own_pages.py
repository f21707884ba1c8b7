"""Questions that a newcomer asks of this project's own pages, with the built-in model.

They were written down before anyone saw an answer; the second ten were looked at only when the first were right.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from grit_mlx import GritLM
from grit_mlx.rag import Quote, Rag, Store

ROOT = Path(__file__).parents[2]

FIRST = {
    "How do I install it?": "README.md",
    "How do I quantise a model to 4 bits?": "README.md convert.md",
    "What happens to the passages of a file that was deleted?": "rag.md",
    "How can one model have both bidirectional and causal attention?": "README.md architecture.md",
    "How do I resume training that was interrupted?": "training.md",
    "Which scores does grit eval compute?": "evaluation.md",
    "Do programs written for the official gritlm package work?": "README.md python.md architecture.md",
    "What happens if no passage is relevant to my question?": "rag.md",
    "How do I fine-tune a model with LoRA?": "README.md training.md",
    "How much faster is it with OpenBLAS?": "README.md performance.md",
}
SECOND = {
    "Does it run on Linux?": "README.md performance.md",
    "Can I use an NVIDIA GPU?": "README.md performance.md training.md",
    "How do I merge an adapter into the weights?": "training.md convert.md README.md",
    "Can the text of a document inject special tokens into the prompt?": "README.md rag.md architecture.md python.md",
    "How much disk space does a cached document take?": "rag.md README.md",
    "What format must the training data have?": "training.md",
    "How do I evaluate a model on my own data?": "evaluation.md",
    "How many texts are embedded per second?": "performance.md",
    "Are hidden files indexed?": "rag.md",
    "How do I get int8 or binary vectors?": "python.md cli.md README.md",
}
# Of ten. Nothing was chosen by the second ten.
RIGHT = {"first": 8, "second": 7}


@pytest.fixture(scope="module")
def rag(tmp_path_factory: pytest.TempPathFactory) -> Rag:
    model = GritLM("grit-tiny")
    store = Store(tmp_path_factory.mktemp("own") / "store", model)
    store.index([ROOT / "docs", ROOT / "README.md"])
    return Rag(model, store)


def best(rag: Rag, question: str) -> Quote | None:
    return next(iter(rag.ask(question).quotes), None)


@pytest.mark.parametrize("name", RIGHT)
def test_the_right_page_is_quoted(rag: Rag, name: str) -> None:
    asked = {"first": FIRST, "second": SECOND}[name]
    found = {question: best(rag, question) for question in asked}
    pages = {question: quote and Path(quote.passage.source).name for question, quote in found.items()}
    wrong = {
        question: (pages[question], quote and quote.text)
        for question, quote in found.items()
        if pages[question] not in asked[question].split()
    }
    assert len(asked) - len(wrong) >= RIGHT[name], wrong


MARKUP = re.compile(r"#{1,6} |\||```|~~~|\[!|<\w|!\[|---|===")


def test_no_quote_is_a_heading_or_markup(rag: Rag) -> None:
    for question in [*FIRST, *SECOND]:
        for quote in rag.ask(question).quotes:
            lines = Path(quote.passage.source).read_text(encoding="utf-8").split("\n")
            own = lines[quote.passage.line - 1 : quote.passage.end_line]
            titles = {line.lstrip("# ").strip() for line in lines if line.startswith("#")}
            assert not MARKUP.match(quote.text) and quote.text not in titles, quote
            assert quote.text in ("\n".join(own) if quote.is_code else " ".join(" ".join(own).split())), quote
