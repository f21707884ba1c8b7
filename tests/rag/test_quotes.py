"""Answers without a writer: the right sentence, word for word, with its place."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from grit_mlx import GritLM
from grit_mlx.errors import ModeError
from grit_mlx.rag import Document, Rag, Store
from grit_mlx.rag.answering import Answerer
from grit_mlx.rag.quotes import quotes_of, stem

HARBOUR = """\
# Harbour of Grey Sands

[![state](https://x.io/s.svg)](https://x.io)

[Home](a.md) | [Ships](b.md) | [Tides](c.md) | [Lights](d.md)

The harbour master keeps this page. Ask her by telephone, e.g. at noon.

## Opening hours

The gate opens at six in the morning and is shut at
ten in the evening. In winter it is shut at eight.

## How much does a berth cost?

| length | price |
|---|---|
| up to 8 m | 12 euros |

A berth costs 12 euros a night for boats of up to 8 metres.

## Install the tide table

You need Python. Install it with:

```sh
pip install tide-table
tide-table --harbour "Grey Sands"
```

Then restart.
"""
BREAD = "Bread rises because yeast eats sugar. Salt slows the yeast. Bakers bake it at 230 degrees.\n"


@pytest.fixture(scope="module")
def embedder() -> GritLM:
    """The built-in model, which only embeds."""
    return GritLM("grit-tiny")


@pytest.fixture
def rag(embedder: GritLM, tmp_path: Path) -> Rag:
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "harbour.md").write_text(HARBOUR, encoding="utf-8")
    (folder / "bread.txt").write_text(BREAD, encoding="utf-8")
    store = Store(tmp_path / "store", embedder)
    store.index([folder])
    return Rag(embedder, store, min_score=-1.0)


@pytest.mark.parametrize(
    ("question", "text", "first", "last"),
    [
        ("When does the gate open?", "The gate opens at six in the morning and is shut at ten in the evening.", 11, 12),
        ("When is it shut in winter?", "In winter it is shut at eight.", 12, 12),
        ("What does a berth cost?", "A berth costs 12 euros a night for boats of up to 8 metres.", 20, 20),
        ("Why does bread rise?", "Bread rises because yeast eats sugar.", 1, 1),
    ],
)
def test_the_sentence_that_answers(rag: Rag, question: str, text: str, first: int, last: int) -> None:
    response = rag.ask(question)
    best = response.quotes[0]
    assert (best.text, best.passage.line, best.passage.end_line) == (text, first, last)
    assert 1 <= len(response.quotes) <= 3 and not best.is_code
    assert response.answer is not None and response.answer.mode == "quote"
    assert best.place in str(response.text) and text in str(response.text)
    assert "".join(response.answer) == "" or response.text  # iterating gives the pieces of the same text
    assert {quote.passage.id for quote in response.quotes} == {source.passage.id for source in response.sources}


def test_every_quote_stands_in_its_file_at_its_place(rag: Rag) -> None:
    for question in ("Who keeps the page?", "What is the harbour?", "How do I install it?", "yeast", "Grey Sands"):
        for quote in rag.ask(question).quotes:
            lines = Path(quote.passage.source).read_text(encoding="utf-8").split("\n")
            there = "\n".join(lines[quote.passage.line - 1 : quote.passage.end_line])
            assert quote.text in (there if quote.is_code else " ".join(there.split()))
            assert not quote.text.startswith(("#", "|", "[", "```")) and "x.io" not in quote.text


def test_how_to_do_something_is_answered_with_the_command(rag: Rag) -> None:
    best = rag.ask("How do I install the tide table?").quotes[0]
    assert best.is_code and best.text == 'pip install tide-table\ntide-table --harbour "Grey Sands"'
    assert (best.passage.line, best.passage.end_line) == (27, 28)
    # Nobody asks for a command here.
    assert not any(quote.is_code for quote in rag.ask("What is the tide table?").quotes)


def test_a_file_that_changed_is_quoted_as_it_was(rag: Rag, tmp_path: Path) -> None:
    path = tmp_path / "files" / "harbour.md"
    path.write_text("# Harbour\n\nIt burnt down.\n" + "\n" * 40, encoding="utf-8")
    best = rag.ask("When does the gate open?").quotes[0]
    assert best.text.startswith("The gate opens at six") and best.passage.end_line <= 31


def test_rows_and_their_places(embedder: GritLM, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    texts = ["A buoy floats. It is red.", "An anchor holds the ship in place.", "boiler serviced in May"]
    rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    store = Store(tmp_path / "store", embedder)
    store.index([rows])
    rag = Rag(embedder, store, min_score=-1.0)
    best = rag.ask("What holds a ship in place?").quotes[0]
    assert (best.text, best.passage.line) == (texts[1], 2) and best.place.endswith("rows.jsonl:2")
    assert rag.ask("When was the boiler serviced?").quotes[0].text == texts[2]


def test_pages_of_a_pdf(embedder: GritLM, tmp_path: Path) -> None:
    canvas = pytest.importorskip("reportlab.pdfgen.canvas")
    path = tmp_path / "book.pdf"
    book = canvas.Canvas(str(path))
    for line in ("The keel keeps a ship upright.", "The mast carries the sails.", "An anchor holds the ship."):
        book.drawString(72, 720, line)
        book.showPage()
    book.save()
    store = Store(tmp_path / "store", embedder)
    store.index([path])
    best = Rag(embedder, store, min_score=-1.0).ask("What carries the sails?").quotes[0]
    assert best.text == "The mast carries the sails." and best.place.endswith("book.pdf, page 2")


def test_nothing_relevant_is_not_quoted(embedder: GritLM, rag: Rag) -> None:
    response = Rag(embedder, rag.store, min_score=0.99).ask("When does the gate open?")
    assert response.answer is None and not response.quotes and response.text is None


def test_a_conversation(rag: Rag) -> None:
    first = rag.chat("When does the gate open?")
    rag.remember("When does the gate open?", str(first.text))
    assert rag.chat("And in winter?").quotes[0].text == "In winter it is shut at eight."


def test_a_model_that_writes_quotes_if_asked_to(model: GritLM, make_store: Callable[..., Store], folder: Path) -> None:
    store = make_store()
    store.index([folder])
    options: dict[str, Any] = {"min_score": -1.0, "method": "bm25"}
    quoted = Rag(model, store, answer="quote", **options).ask("What keeps a ship upright?")
    assert quoted.quotes[0].text in (folder / "ships.md").read_text(encoding="utf-8")
    written = Rag(model, store, **options).ask("What keeps a ship upright?", max_tokens=3)
    assert written.answer is not None and not written.quotes and written.answer.mode != "quote"
    # It need not be able to write then.
    Rag(GritLM(model.folder, mode="embedding"), make_store(), answer="quote")


def test_what_cannot_write_says_so(embedder: GritLM, rag: Rag) -> None:
    for make in (
        lambda: Rag(embedder, rag.store, answer="write"),
        lambda: Rag(embedder, rag.store, rerank=True),
        lambda: Answerer(embedder).answer("Why?", [Document("Because.")]),
    ):
        with pytest.raises(ModeError, match=r"grit-tiny only embeds.*grit models pull"):
            make()


def test_files_without_sentences(embedder: GritLM, tmp_path: Path) -> None:
    path = tmp_path / "tide.py"
    path.write_text("def tide(hour):\n    return 2.0 * hour\n", encoding="utf-8")
    store = Store(tmp_path / "store", embedder)
    store.index([path])
    [quote] = Rag(embedder, store, min_score=-1.0).ask("What is the tide?").quotes
    assert quote.is_code and quote.text == path.read_text(encoding="utf-8").rstrip()
    assert quotes_of("?", [], Rag(embedder, store).answerer.encoder) == []


@pytest.mark.parametrize(
    "words", ["install installs installed installing installation", "service serviced", "move moves moved moving"]
)
def test_forms_of_a_word(words: str) -> None:
    assert len(set(map(stem, words.split()))) == 1


def rag_of(embedder: GritLM, folder: Path, text: str) -> Rag:
    """Answers from one file, however little it has to do with a question."""
    (folder / "notes.md").write_text(text, encoding="utf-8")
    store = Store(folder / "store", embedder)
    store.index([folder / "notes.md"])
    return Rag(embedder, store, min_score=-1.0)


def test_the_sentence_behind_answers_what_the_best_one_leaves_open(embedder: GritLM, tmp_path: Path) -> None:
    rag = rag_of(
        embedder,
        tmp_path,
        "Ships moor here.\n\nIf a captain fails to answer within this time, the gate is closed. "
        "The default is 2 minutes. Bread is sold at the gate.\n\n- Other boats: 10 days\n- Rafts wait;\n",
    )
    best = rag.ask("How long may a captain take to answer before the gate is closed?").quotes[0]
    assert best.text.endswith("the gate is closed. The default is 2 minutes.") and best.passage.line == 3
    assert rag.ask("Why is the gate closed if a captain fails to answer?").quotes[0].text.endswith("gate is closed.")
    assert rag.ask("How long do other boats wait?").quotes[0].text == "Other boats: 10 days"


def test_the_reason_comes_along(embedder: GritLM, tmp_path: Path) -> None:
    rag = rag_of(
        embedder,
        tmp_path,
        "Many captains say that the gate closes more slowly than it did in older times. This is because its chain "
        "was greased with butter. Bread is sold at the gate.\n",
    )
    assert "greased with butter" in rag.ask("Why does the gate close more slowly than in older times?").quotes[0].text


def test_an_address_is_sought(embedder: GritLM, tmp_path: Path) -> None:
    text = "The harbour master reads the email of ships every day. Write to post@harbour.example for a berth.\n"
    best = rag_of(embedder, tmp_path, text).ask("Which email address does the harbour master read?").quotes[0]
    assert "post@harbour.example" in best.text
