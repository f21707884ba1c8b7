"""Words of every script: what texts and questions agree on, and that a store finds by it."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from grit_mlx.errors import StoreError
from grit_mlx.rag import Store, schema, table
from grit_mlx.rag.schema import PARTS, WORDS
from grit_mlx.rag.words import asked, indexed_parts, indexed_words, parts_of, terms_of
from tests.rag.conftest import rows_of

MakeStore = Callable[..., Store]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("caf\u00e9", "cafe\u0301"),
        ("CAF\u00c9", "cafe"),
        ("\ufb01nance", "finance"),
        ("\uff21\uff22\uff23\uff11", "abc1"),  # full width
        ("\uff76\uff80\uff76\uff85", "\u30ab\u30bf\u30ab\u30ca"),  # half width
        ("Stra\u00dfe", "STRASSE"),
        ("soft\u00adhyphen", "softhyphen"),
        ("\u0130STANBUL", "istanbul"),
        ("I\u015eIK", "\u0131\u015f\u0131k"),
        ("\u0645\u064f\u062f\u0631\u0651\u0633", "\u0645\u062f\u0631\u0633"),  # vowel signs
        ("\u0627\u0644\u0643\u062a\u0640\u0640\u0627\u0628", "\u0627\u0644\u0643\u062a\u0627\u0628"),  # tatweel
        ("\u0623\u062d\u0645\u062f", "\u0627\u062d\u0645\u062f"),  # alef with hamza
        ("\u05e9\u05b8\u05c1\u05dc\u05d5\u05b9\u05dd", "\u05e9\u05dc\u05d5\u05dd"),
        ("\u0401\u043b\u043a\u0430", "\u0435\u043b\u043a\u0430"),
        ("\u0661\u0669\u0665\u0666", "1956"),
        ("\u17e1\u17e2", "12"),
        ("don\u2019t", "don't"),
        ("\u1112\u1161\u11ab\u1100\u1173\u11af", "\ud55c\uae00"),  # letters of Hangul and syllables
    ],
)
def test_one_word_however_it_is_written(one: str, other: str) -> None:
    assert terms_of(one) == terms_of(other) != []
    assert parts_of(one) == parts_of(other)


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("os.path.join", {"os.path.join", "os", "path", "join"}),
        ("my_function_name()", {"my_function_name", "my", "function", "name"}),
        ("TemporaryDirectory", {"temporarydirectory", "temporary", "directory"}),
        ("parseHTTPResponse2", {"parsehttpresponse2", "parse", "http", "response", "2"}),
        ("error[E0308]", {"error", "e0308", "0308"}),
        ("3.11.2", {"3.11.2", "3.11", "3", "11", "2"}),
        ("config.yaml", {"config.yaml", "config", "yaml"}),
        ("e-mail", {"e", "mail", "email"}),
        ("UTF-8", {"utf", "8", "utf8"}),
        ("the U.S.", {"the", "u", "s", "us", "u.s"}),
        ("__init__", {"__init__", "init"}),
        ("C++ and C#", {"c", "c++", "and", "c#"}),
        ("l'\u00e9cole", {"l", "ecole"}),
        ("\u5168\u6587\u691c\u7d22", {"\u5168\u6587", "\u6587\u691c", "\u691c\u7d22"}),
        ("\u732b", {"\u732b"}),
        ("Python\u6559\u7a0b", {"python", "\u6559\u7a0b"}),
        ("\u0e04\u0e49\u0e19\u0e2b\u0e32", {"\u0e04\u0e49\u0e19", "\u0e19\u0e2b", "\u0e2b\u0e32"}),  # marks stay
        ("\u0939\u093f\u0928\u094d\u0926\u0940", {"\u0939\u093f\u0928\u094d\u0926\u0940"}),
        ("--- ... ___ !", set()),
        ("", set()),
    ],
)
def test_terms(text: str, terms: set[str]) -> None:
    assert set(terms_of(text)) - {"___"} == terms


def test_parts_are_of_foreign_words_only() -> None:
    english = "The boiler is serviced by an engineer, and the radiators are bled as well."
    assert indexed_parts(english) is None
    assert indexed_parts("class TemporaryDirectoryManagerFactory: pass") is None
    german = indexed_parts("Der Krankenversicherungsbeitrag ist zu zahlen.")
    assert german is not None and set(parts_of("Beitrag")) <= set(german.split())
    assert indexed_parts("\u6771\u4eac") == "\u6771 \u4eac"
    # A root of three letters, and endings beside a short stem.
    assert set(parts_of("\u0645\u062f\u0631\u0633")) & set(parts_of("\u0645\u062f\u0631\u0633\u0629"))
    assert set(parts_of("\u0432\u043e\u0434\u0430")) & set(parts_of("\u0432\u043e\u0434\u0443"))


def test_a_question_is_what_it_asks_for() -> None:
    assert asked("How do I read a CSV file?").split() == ["read", "CSV", "file?"]
    assert asked("to be or not to be") == "to be or not to be"
    assert asked("What does IT do?").split() == ["IT", "?"]
    assert terms_of(asked("WHAT DOES IT DO")) == ["what", "does", "it", "do"]


def test_long_terms_are_cut_alike() -> None:
    assert indexed_words("x" * 5000) == "x" * 64 == indexed_words("X" * 999)


TEXTS = {
    "de": "Der Krankenversicherungsbeitrag wird im Fr\u00fchjahr gezahlt.",
    "zh": "\u9505\u7089\u6bcf\u5e74\u79cb\u5929\u68c0\u4fee\u3002",
    "ja": "\u30dc\u30a4\u30e9\u30fc\u306f\u6bce\u5e74\u79cb\u306b\u70b9\u691c\u3057\u307e\u3059\u3002",
    "ko": "\ub3c4\uc11c\uad00\uc5d0\uc11c \ucc45\uc744 \ube4c\ub9bd\ub2c8\ub2e4.",
    "th": "\u0e2b\u0e49\u0e2d\u0e07\u0e2a\u0e21\u0e38\u0e14\u0e40\u0e1b\u0e34\u0e14\u0e40\u0e0a\u0e49\u0e32",
    "km": "\u1794\u178e\u17d2\u178e\u17b6\u179b\u17d0\u1799\u1794\u17be\u1780\u1798\u17c9\u17c4\u1784",
    "en": "A keel keeps the ship upright; os.path.join is in version 3.11.2.",
    "hamlet": "To be, or not to be, that is the question.",
}
ASKED = {
    "Beitrag zur Versicherung": "de",
    unicodedata.normalize("NFD", "FR\u00dcHJAHR"): "de",
    "Fruehjahr": "de",
    "\u68c0\u4fee": "zh",
    "\u9505": "zh",
    "\u70b9\u691c": "ja",
    "\u30dc\u30a4\u30e9\u30fc": "ja",
    "\ub3c4\uc11c\uad00": "ko",
    "\ucc45": "ko",
    "\u0e2b\u0e49\u0e2d\u0e07\u0e2a\u0e21\u0e38\u0e14": "th",
    "\u1794\u178e\u17d2\u178e\u17b6\u179b\u17d0\u1799": "km",
    "keeping ships": "en",
    "path join": "en",
    "3.11": "en",
    "to be or not to be": "hamlet",
}


@pytest.fixture
def indexed(make_store: MakeStore, tmp_path: Path) -> Store:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text, "name": name}) + "\n" for name, text in TEXTS.items()))
    store = make_store()
    store.index([path])
    return store


@pytest.mark.parametrize("question", ASKED)
def test_a_store_finds_words_of_every_script(indexed: Store, question: str) -> None:
    best = indexed.search(question, method="bm25")[0]
    assert f"name={ASKED[question]}" in best.passage.metadata


def test_the_best_are_the_same_however_many_are_asked_for(indexed: Store) -> None:
    rows = indexed.require()
    for question in ("Beitrag zur Versicherung \u9505\u7089", "keel \u68c0\u4fee upright", "to be or not to be"):
        everything = rows.matching(question, 50)
        assert everything == sorted(everything, key=lambda pair: -pair[1])
        for count in (1, 2, 3):
            assert rows.matching(question, count) == [pytest.approx(pair) for pair in everything[:count]]


@contextmanager
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Stores are written without the columns of words, as format 1."""

    def old_schema(size: int, fingerprint: Any) -> pa.Schema:
        new = schema.schema(size, fingerprint)
        about = json.dumps({"format": 1, "fingerprint": dict(fingerprint)})
        return pa.schema([field for field in new if field.name not in (WORDS, PARTS)], metadata={"grit": about})

    with monkeypatch.context() as patch:
        patch.setattr(table, "schema", old_schema)
        patch.setattr("grit_mlx.rag.schema.with_words", lambda rows: rows)
        patch.setattr(table, "_SEARCHED", {})
        patch.setattr(table, "FORMAT", 1)
        yield


def test_a_store_of_an_earlier_version_is_renewed_without_embedding(
    make_store: MakeStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _as_before(monkeypatch):
        make_store().index([folder])
        before = rows_of(make_store())
        vectors = np.concatenate([block for _, block in make_store().require().vectors()])
    with pytest.raises(StoreError, match="earlier version of grit-mlx"):
        make_store().search("yeast")
    report = make_store().index([folder])
    assert (report.passages, report.unchanged, report.removed) == (0, 5, 0)
    store = make_store()
    assert rows_of(store) == before
    after = np.concatenate([block for _, block in store.require().vectors()])
    assert np.array_equal(np.sort(vectors, axis=0), np.sort(after, axis=0))
    assert Path(store.search("yeast", method="bm25")[0].passage.source).name == "bread.txt"
    assert store.unrelated is not None


def test_purging_keeps_words_and_index(indexed: Store) -> None:
    indexed.remove([], purge=True)
    assert indexed.search("Beitrag", method="bm25")[0].passage.text == TEXTS["de"]
