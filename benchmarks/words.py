"""Search by words in thirteen languages and in code: how often BM25 finds the right one of sixteen documents.

    python benchmarks/words.py

The documents and queries are in words.json. They were written before anything was measured; queries inflect words, take
compounds apart, and are typed in other ways (accents apart, capitals, other digits). Each column is a way to index the
same texts with Lance:

- English: its tokenizer and its English stemmer on the texts as they are, as grit-mlx did before.
- language: the same with its stemmer of the documents' language where it has one, which a store of mixed files cannot
  know.
- words: the terms of ``grit_mlx.rag.words`` alone.
- words, stemmed: these, stemmed by Snowball's algorithm for the documents' language.
- words and parts: what a store does.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
import Stemmer
from common import HERE, machine, save
from lancedb.index import FTS
from lancedb.query import MatchQuery

from grit_mlx.rag.schema import NewPassage, SourceFile, rows, schema
from grit_mlx.rag.table import PassageTable
from grit_mlx.rag.words import indexed_words, terms_of
from grit_mlx.text.passages import Passage

LANCE = {"en": "English", "de": "German", "fr": "French", "es": "Spanish", "ru": "Russian", "tr": "Turkish"}
LANCE |= {"ar": "Arabic", "code": "English"}
SNOWBALL = {code: name.lower() for code, name in LANCE.items()} | {"hi": "hindi"}
SPLIT = {"base_tokenizer": "whitespace", "lower_case": False, "ascii_folding": False, "max_token_length": None}

Search = Callable[[str], list[int]]


def fresh(folder: Path) -> Path:
    return folder / str(len(list(folder.iterdir())))


def with_lance(folder: Path, texts: list[str], read: Callable[[str], str] = str, **config: Any) -> Search:
    """Rows that a query finds, best first, in an index of what is read of texts."""
    table = lancedb.connect(fresh(folder)).create_table("texts", pa.table({"text": list(map(read, texts))}))
    table.create_index("text", config=FTS(remove_stop_words=False, **config))

    def search(query: str) -> list[int]:
        match: Any = MatchQuery(read(query), "text")  # type: ignore[call-arg]
        found = table.search(match, query_type="fts").limit(3).with_row_id(True).to_arrow()
        return list(found["_rowid"].to_pylist())

    return search


def with_store(folder: Path, texts: list[str]) -> Search:
    """The same in a store's table."""
    file = SourceFile("key", "texts", "hash", "line")
    table = PassageTable(str(fresh(folder)))
    table.create(1, {})
    new = [NewPassage(file, number, False, Passage(text, number, number)) for number, text in enumerate(texts)]
    table.add([rows(new, np.ones((len(texts), 1), np.float32)).cast(schema(1, {}))])
    table.update_text_index()
    return lambda query: [passage.line for passage in table.passages([row for row, _ in table.matching(query, 3)])]


def recalls(search: Search, queries: list[tuple[str, int]]) -> list[float]:
    """At 1 and at 3."""
    found = [(search(query), right) for query, right in queries]
    return [round(sum(right in one[:depth] for one, right in found) / len(found), 3) for depth in (1, 3)]


def main() -> None:
    corpora = json.loads((HERE / "words.json").read_text(encoding="utf-8"))
    measured = []
    with TemporaryDirectory() as name:
        folder = Path(name)
        for language, corpus in corpora.items():
            texts, queries = corpus["documents"], corpus["queries"]
            snowball = Stemmer.Stemmer(SNOWBALL[language]) if language in SNOWBALL else None

            def stemmed(text: str, snowball: Any = snowball) -> str:
                terms = terms_of(text)
                return " ".join(snowball.stemWords(terms) if snowball else terms)

            own = LANCE.get(language, "English")
            searches: dict[str, Search] = {
                "English": with_lance(folder, texts),
                "language": with_lance(folder, texts, language=own),
                "words": with_lance(folder, texts, indexed_words, **SPLIT),
                "words, stemmed": with_lance(folder, texts, stemmed, stem=False, **SPLIT),
                "words and parts": with_store(folder, texts),
            }
            ways = {way: recalls(search, queries) for way, search in searches.items()}
            measured.append({"language": language, "documents": len(texts), "queries": len(queries), "recall": ways})
            print(measured[-1], file=sys.stderr)
    save(f"words-{machine()['device']}", {"sets": measured})


if __name__ == "__main__":
    main()
