"""Labelled data from files: retrieval sets in BEIR's layout, pairs of sentences (STS), questions with answers.

What a path holds is seen from its files and their first row; ``load_set`` reads any of the three.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

from grit_mlx.datasets.examples import ChatRow, EmbeddingRow, TextRow, examples
from grit_mlx.errors import DocumentError, unreadable
from grit_mlx.text.kinds import is_listed, kind_of, stem
from grit_mlx.text.reading import read_lines, read_rows
from grit_mlx.text.rows import Row, failure, missing, table, text_of

__all__ = ["AnswerSet", "LabelledSet", "PairSet", "RetrievalSet", "find_sets", "limited", "load_set"]

_CORPUS, _QUERIES = "corpus.jsonl", "queries.jsonl"
_QRELS = ("qrels.tsv", "qrels/test.tsv")

_KINDS = (
    f"a folder with {_CORPUS}, {_QUERIES} and {_QRELS[0]}, a table of sentence pairs (.csv, .tsv, .jsonl), or answers "
    "(.jsonl)"
)

# The names of columns and fields in common STS files, in lower case.
_SENTENCES = (
    ("sentence1", "sentence2"),
    ("sentence_1", "sentence_2"),
    ("sentence_a", "sentence_b"),
    ("text1", "text2"),
    ("first", "second"),
)
_SCORES = ("score", "similarity_score", "similarity", "relatedness_score", "label", "gold")


@dataclass(frozen=True)
class RetrievalSet:
    """Queries, documents, and which of them belong together.

    Attributes:
        name: the folder's.
        documents: text of each document by id, after its title.
        queries: text of each query by id.
        relevant: for each query the gain of each judged document.
    """

    kind: ClassVar[str] = "retrieval"

    name: str
    documents: dict[str, str]
    queries: dict[str, str]
    relevant: dict[str, dict[str, float]]

    @property
    def asked(self) -> list[str]:
        """Ids of the queries that are scored: those with a relevant document."""
        return [query for query in self.queries if any(gain > 0 for gain in self.relevant.get(query, {}).values())]


@dataclass(frozen=True)
class PairSet:
    """Pairs of sentences and how similar people find them.

    Attributes:
        name: the file's or its folder's.
        first: one sentence of each pair.
        second: the other.
        scores: the higher the more similar.
    """

    kind: ClassVar[str] = "pairs"

    name: str
    first: list[str]
    second: list[str]
    scores: list[float]


@dataclass(frozen=True)
class AnswerSet:
    """Texts to predict: the answers of conversations, or plain texts.

    Attributes:
        name: the file's or its folder's.
        rows: as training reads them.
        path: where they come from, for messages about a row.
        lines: the line of each row.
    """

    kind: ClassVar[str] = "answers"

    name: str
    rows: list[ChatRow | TextRow]
    path: str
    lines: list[int]


LabelledSet = RetrievalSet | PairSet | AnswerSet


def find_sets(path: Path) -> list[Path]:
    """The sets that a path means: itself, or those in the folder that it is.

    Raises:
        DocumentError: there is nothing to score.
    """
    if not path.is_dir() or _is_retrieval(path):
        return [path]
    # Every folder and file that may be a set by its name: one that is damaged is then reported and not ignored.
    found = [child for child in sorted(path.iterdir()) if (_is_set(child) if child.is_dir() else _is_table(child))]
    if len(found) == 1 and not found[0].is_dir():
        return [path]  # under the folder's name
    if not found:
        raise failure(path, None, f"holds nothing to score. A set is {_KINDS}")
    return found


def load_set(path: Path) -> LabelledSet:
    """Read a set, of the kind that its files and first row show.

    Args:
        path: a folder of ``corpus.jsonl``, ``queries.jsonl`` and ``qrels.tsv`` (or ``qrels/test.tsv``); a table of two
            sentences and a score; rows of answers, in the formats of training; or a folder with one such file. Each
            may be gzipped.

    Raises:
        DocumentError: it is none of these, or one of its lines cannot be used.
    """
    if path.is_dir():
        if _is_retrieval(path):
            return _load_retrieval(path)
        files = _tables(path)
        if len(files) == 1:
            return _load_file(files[0], path.name)
    elif kind_of(path).rows:
        return _load_file(path, stem(path))
    try:
        path.stat()
    except (OSError, ValueError) as error:
        raise DocumentError(unreadable(path, error), path=path) from error
    raise failure(path, None, f"is not a set to score. A set is {_KINDS}")


def limited(data: LabelledSet, count: int | None) -> LabelledSet:
    """The first ``count`` queries (with all documents), pairs or answers of a set; all of them for None."""
    if count is None:
        return data
    if isinstance(data, RetrievalSet):
        return replace(data, queries={query: data.queries[query] for query in data.asked[:count]})
    if isinstance(data, PairSet):
        return replace(data, first=data.first[:count], second=data.second[:count], scores=data.scores[:count])
    return replace(data, rows=data.rows[:count], lines=data.lines[:count])


def _is_set(folder: Path) -> bool:
    return _is_retrieval(folder) or len(_tables(folder)) == 1


def _is_retrieval(folder: Path) -> bool:
    return folder.is_dir() and any(_optional(folder, name) for name in (_CORPUS, _QUERIES, *_QRELS))


def _tables(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.glob("*")) if path.is_file() and _is_table(path)]


def _is_table(path: Path) -> bool:
    """Whether a file of a folder may be a set by its name."""
    return kind_of(path).rows and is_listed(path)


# Retrieval


def _load_retrieval(folder: Path) -> RetrievalSet:
    corpus, asked = _find(folder, _CORPUS), _find(folder, _QUERIES)
    documents: dict[str, str] = {}
    for line, identifier, row in _identified(corpus, documents):
        title = text_of(row, "title", corpus, line) if "title" in row else ""
        text = text_of(row, "text", corpus, line) if "text" in row or not title else ""
        documents[identifier] = f"{title} {text}" if title else text
    queries: dict[str, str] = {}
    for line, identifier, row in _identified(asked, queries):
        queries[identifier] = text_of(row, "text", asked, line)
        if not queries[identifier].strip():
            raise failure(asked, line, "the text of this row is empty. Remove the row")
    qrels = _find(folder, *_QRELS)
    relevant: dict[str, dict[str, float]] = {}
    for line, query, document, gain in _judgements(qrels):
        if query not in queries:
            raise failure(qrels, line, f"there is no query {query!r} in {_QUERIES}")
        if document not in documents:
            raise failure(qrels, line, f"there is no document {document!r} in {_CORPUS}")
        relevant.setdefault(query, {})[document] = gain
    found = RetrievalSet(folder.name, documents, queries, relevant)
    if not found.asked:
        raise failure(qrels, None, "names no relevant document: it needs lines with a score above 0.")
    return found


def _identified(path: Path, seen: Mapping[str, str]) -> Iterator[tuple[int, str, dict[str, Any]]]:
    line = 0
    for row, line, _ in read_rows(path):
        identifier = row.get("_id")
        if "_id" not in row:
            raise failure(path, line, missing(["_id"], row))
        if not isinstance(identifier, str | int) or isinstance(identifier, bool):
            raise failure(path, line, "the _id must be a string or a whole number")
        if str(identifier) in seen:
            raise failure(path, line, f"an earlier row has the _id {str(identifier)!r}, too")
        yield line, str(identifier), row
    if not line:
        raise failure(path, None, "is empty: a set needs at least one row")


def _judgements(path: Path) -> Iterator[tuple[int, str, str, float]]:
    """Lines of BEIR's three columns, or of trec_eval's four, whose second is unused."""
    for number, line in enumerate(read_lines(path), start=1):
        parts = line.split("\t") if "\t" in line else line.split()
        if not line.strip() or (number == 1 and parts[-1].strip() == "score"):
            continue
        if len(parts) == 4:
            del parts[1]
        gain = _number(parts[-1])
        if len(parts) != 3 or gain is None:
            raise failure(path, number, "the line needs a query, a document and a score")
        yield number, parts[0], parts[1], gain


def _find(folder: Path, *names: str) -> Path:
    for name in names:
        if (path := _optional(folder, name)) is not None:
            return path
    needed = f"a retrieval set needs {_CORPUS}, {_QUERIES} and {_QRELS[0]}"
    raise failure(folder, None, f"has no {' or '.join(names)}: {needed}")


def _optional(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.exists()), None)


# Pairs and answers


def _load_file(path: Path, name: str) -> PairSet | AnswerSet:
    reader = kind_of(path).reader
    rows = _table_rows(path, reader) if reader in ("csv", "tsv") else read_rows(path)
    first = next(rows, None)
    if first is None:
        raise failure(path, None, "is empty: there is nothing to score")
    rows = chain([first], rows)
    pairs = any(one in {key.lower() for key in first[0]} for one, _ in _SENTENCES)
    return _pairs(path, name, rows) if pairs else _answers(path, name, rows)


def _table_rows(path: Path, reader: str) -> Iterator[Row]:
    """The rows of a table of pairs by column; one of three columns needs no header."""
    names: list[str] = []
    for cells, line, end_line in table(read_lines(path), reader, source=path, header=False):
        if not any(cell.strip() for cell in cells):
            continue
        if not names:
            names = [cell.strip().lower() for cell in cells]
            scored = len(cells) == 3 and _number(cells[2]) is not None
            if scored or (len(cells) == 3 and not any(one in names for one, _ in _SENTENCES)):
                names = [*_SENTENCES[0], _SCORES[0]]
            _pair_names(path, line, names, what="column")
            if not scored:
                continue
        yield dict(zip(names, cells, strict=True)), line, end_line


def _pairs(path: Path, name: str, rows: Iterable[Row]) -> PairSet:
    found = PairSet(name, [], [], [])
    for content, line, _ in rows:
        row = {key.lower(): value for key, value in content.items()}
        first, second, score = (row[name] for name in _pair_names(path, line, list(row)))
        value = _number(score)
        if value is None:
            raise failure(path, line, f"the score {str(score)[:40]!r} is not a number")
        for sentence in (first, second):
            if not isinstance(sentence, str) or not sentence.strip():
                raise failure(path, line, "a sentence is empty")
        found.first.append(first)
        found.second.append(second)
        found.scores.append(value)
    if len(found.scores) < 2:
        raise failure(path, None, "is too short: a correlation needs at least two pairs of sentences")
    return found


def _pair_names(path: Path, line: int, names: Sequence[str], *, what: str = "field") -> tuple[str, str, str]:
    """What the two sentences and the score of a row are called."""
    sentences = next((pair for pair in _SENTENCES if set(pair) <= set(names)), None)
    score = next((name for name in _SCORES if name in names), None)
    if sentences is None or score is None:
        needed = (*(sentences or _SENTENCES[0]), score or _SCORES[0])
        lacking = missing([next(name for name in needed if name not in names)], names, what=what)
        raise failure(path, line, f"{lacking}. Name them {', '.join(_SENTENCES[0])} and {_SCORES[0]}")
    return (*sentences, score)


def _answers(path: Path, name: str, rows: Iterable[Row]) -> AnswerSet:
    found = AnswerSet(name, [], str(path), [])
    for line, row in examples(rows, path):
        if isinstance(row, EmbeddingRow):
            problem = f"this row trains embeddings; to score retrieval make {_CORPUS}, {_QUERIES} and {_QRELS[0]}."
            raise failure(path, line, problem)
        found.rows.append(row)
        found.lines.append(line)
    return found


def _number(value: object) -> float | None:
    if isinstance(value, bool):
        return None
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
