"""Labelled data from files: retrieval sets in BEIR's layout, pairs of sentences (STS), questions with answers.

What a path holds is seen from its files and their first row; ``load_set`` reads any of the three.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from grit_mlx.datasets.examples import EMBEDDING, ChatRow, TextRow, kind_of, row_from
from grit_mlx.errors import ArgumentError, DocumentError
from grit_mlx.text.reading import read_lines

__all__ = ["AnswerSet", "LabelledSet", "PairSet", "RetrievalSet", "find_sets", "limited", "load_set"]

_CORPUS, _QUERIES = "corpus.jsonl", "queries.jsonl"
_QRELS = ("qrels.tsv", "qrels/test.tsv")

# Suffixes of files that are a set of their own, each perhaps with .gz.
_TABLES = {".csv": ",", ".tsv": "\t"}
_ROWS = (".jsonl", ".ndjson")

# What columns and keys are called in the STS files that people have, in lower case.
_SENTENCES = (
    ("sentence1", "sentence2"),
    ("sentence_1", "sentence_2"),
    ("sentence_a", "sentence_b"),
    ("text1", "text2"),
    ("first", "second"),
)
_SCORES = ("score", "similarity_score", "similarity", "relatedness_score", "label", "gold")
_COLUMNS = "name them sentence1, sentence2 and score"


@dataclass(frozen=True)
class RetrievalSet:
    """Queries, documents, and which of them belong together.

    Attributes:
        name: the folder's.
        documents: text of each document by id; a title stands before it.
        queries: text of each query by id.
        relevant: for each query the gain of each judged document.
    """

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

    name: str
    first: list[str]
    second: list[str]
    scores: list[float]


@dataclass(frozen=True)
class AnswerSet:
    """Texts to be predicted: the answers of conversations, or plain texts.

    Attributes:
        name: the file's or its folder's.
        rows: as training reads them.
        path: where they come from, for messages about a row.
        lines: the line of each row.
    """

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
    # Every folder and file of a suffix that may be a set: one that is damaged is then told, and not passed over.
    found = [child for child in sorted(path.iterdir()) if (_is_set(child) if child.is_dir() else _suffix(child))]
    if len(found) == 1 and not found[0].is_dir():
        return [path]  # under the folder's name
    if not found:
        raise DocumentError(
            f"{path} holds nothing to score: a set is a folder with {_CORPUS}, {_QUERIES} and {_QRELS[0]}, a table of "
            "sentence pairs (.csv, .tsv, .jsonl), or answers (.jsonl).",
            path=path,
        )
    return found


def load_set(path: Path) -> LabelledSet:
    """Read a set, of the kind that its files and first row show.

    Args:
        path: a folder of ``corpus.jsonl``, ``queries.jsonl`` and ``qrels.tsv`` (or ``qrels/test.tsv``); a ``.csv``,
            ``.tsv`` or ``.jsonl`` of two sentences and a score; a ``.jsonl`` of answers, in the formats of training;
            or a folder that holds one such file. Each may be gzipped.

    Raises:
        DocumentError: it is neither, or one of its lines cannot be used.
    """
    if path.is_dir():
        if _is_retrieval(path):
            return _load_retrieval(path)
        files = _single_files(path)
        if len(files) == 1:
            return _load_file(files[0], path.name)
    elif _suffix(path) is not None:
        return _load_file(path, _stem(path))
    if not path.exists():
        raise DocumentError(f"{path} does not exist. Check the name.", path=path)
    raise DocumentError(
        f"{path} is no set to score: name a folder with {_CORPUS}, {_QUERIES} and {_QRELS[0]}, a table of sentence "
        "pairs (.csv, .tsv, .jsonl), or answers (.jsonl).",
        path=path,
    )


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
    return _is_retrieval(folder) or len(_single_files(folder)) == 1


def _is_retrieval(folder: Path) -> bool:
    return folder.is_dir() and any(_optional(folder, name) for name in (_CORPUS, _QUERIES, *_QRELS))


def _single_files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.glob("*")) if path.is_file() and _suffix(path) is not None]


def _suffix(path: Path) -> str | None:
    """``.csv``, ``.tsv``, ``.jsonl`` or ``.ndjson``, with ``.gz`` taken off; None for other files."""
    suffix = Path(path.name.lower().removesuffix(".gz")).suffix
    return suffix if suffix in _TABLES or suffix in _ROWS else None


def _stem(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).stem


def _failure(path: Path, line: int, problem: str) -> DocumentError:
    return DocumentError(f"{path}, line {line}: {problem}.", path=path, line=line)


# Retrieval


def _load_retrieval(folder: Path) -> RetrievalSet:
    documents: dict[str, str] = {}
    for line, identifier, row in _identified(_find(folder, _CORPUS), documents):
        title = row.get("title") or ""
        text = row.get("text", "") if title else row.get("text")
        if not isinstance(title, str) or not isinstance(text, str):
            raise _failure(_find(folder, _CORPUS), line, "a document needs its text as a string")
        documents[identifier] = f"{title} {text}" if title else text
    queries: dict[str, str] = {}
    for line, identifier, row in _identified(_find(folder, _QUERIES), queries):
        if not isinstance(row.get("text"), str) or not row["text"].strip():
            raise _failure(_find(folder, _QUERIES), line, "a query needs its text as a string that is not empty")
        queries[identifier] = row["text"]
    qrels = _find(folder, *_QRELS)
    relevant: dict[str, dict[str, float]] = {}
    for line, query, document, gain in _judgements(qrels):
        for kind, identifier, known, file in (
            ("query", query, queries, _QUERIES),
            ("document", document, documents, _CORPUS),
        ):
            if identifier not in known:
                raise _failure(qrels, line, f"there is no {kind} {identifier!r} in {file}")
        relevant.setdefault(query, {})[document] = gain
    found = RetrievalSet(folder.name, documents, queries, relevant)
    if not found.asked:
        raise DocumentError(f"{qrels} names no relevant document: it needs lines with a score above 0.", path=qrels)
    return found


def _identified(path: Path, seen: Mapping[str, str]) -> Iterator[tuple[int, str, dict[str, Any]]]:
    line = 0
    for line, row in _json_rows(path):
        identifier = row.get("_id")
        if not isinstance(identifier, str | int) or isinstance(identifier, bool):
            raise _failure(path, line, "it needs an _id and a text")
        if str(identifier) in seen:
            raise _failure(path, line, f"the _id {str(identifier)!r} stands on an earlier line too")
        yield line, str(identifier), row
    if not line:
        raise DocumentError(f"{path} is empty: a set needs one row at least.", path=path)


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
            raise _failure(path, number, "needs a query, a document and a score")
        yield number, parts[0], parts[1], gain


def _find(folder: Path, *names: str) -> Path:
    for name in names:
        if (path := _optional(folder, name)) is not None:
            return path
    raise DocumentError(
        f"{folder} has no {' or '.join(names)}: a retrieval set needs {_CORPUS}, {_QUERIES} and {_QRELS[0]}.",
        path=folder,
    )


def _optional(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.exists()), None)


# Pairs and answers


def _load_file(path: Path, name: str) -> PairSet | AnswerSet:
    suffix = _suffix(path) or ""
    if suffix in _TABLES:
        return _pairs(path, name, _table_rows(path, _TABLES[suffix]))
    rows = _json_rows(path)
    first = next(rows, None)
    if first is None:
        raise DocumentError(f"{path} is empty: there is nothing to score.", path=path)
    rows = chain([first], rows)
    if any(one in {key.lower() for key in first[1]} for one, _ in _SENTENCES):
        return _pairs(path, name, _keyed_rows(path, rows))
    return _answers(path, name, rows)


def _pairs(path: Path, name: str, rows: Iterable[tuple[int, str, str, Any]]) -> PairSet:
    found = PairSet(name, [], [], [])
    for line, first, second, score in rows:
        value = _number(score)
        if value is None:
            raise _failure(path, line, f"the score {str(score)[:40]!r} is no number")
        for sentence in (first, second):
            if not isinstance(sentence, str) or not sentence.strip():
                raise _failure(path, line, "a sentence is empty")
        found.first.append(first)
        found.second.append(second)
        found.scores.append(value)
    if len(found.scores) < 2:
        raise DocumentError(f"{path} is too short: a correlation needs two pairs of sentences at least.", path=path)
    return found


def _table_rows(path: Path, delimiter: str) -> Iterator[tuple[int, str, str, str]]:
    """Sentences and scores of a table with a heading, or of one with three columns and none."""
    csv.field_size_limit(max(csv.field_size_limit(), 2**31 - 1))
    # STS files with tabs hold quotation marks as they stand.
    quoting: Literal[0, 3] = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    lines = (f"{line}\n" for line in read_lines(path))
    reader = csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=True)
    columns: list[int] | None = None
    width = 0
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise _failure(path, line, f"it cannot be read ({error}); check the quotes") from error
        if row is None:
            return
        if not any(cell.strip() for cell in row):
            continue
        if columns is None:
            columns, width = _columns(path, line, row), len(row)
            if columns != [0, 1, 2] or _number(row[2]) is None:
                continue  # a heading
        if len(row) != width:
            problem = "needs two sentences and a score" if width == 3 else f"needs {width} columns, not {len(row)}"
            raise _failure(path, line, problem)
        first, second, score = (row[column] for column in columns)
        yield line, first, second, score


def _columns(path: Path, line: int, row: Sequence[str]) -> list[int]:
    names = [cell.strip().lower() for cell in row]
    try:
        return [names.index(name) for name in _named(names)]
    except ArgumentError as error:
        if len(row) == 3 and (_number(row[2]) is not None or not any(one in names for one, _ in _SENTENCES)):
            return [0, 1, 2]
        raise _failure(path, line, str(error)) from error


def _keyed_rows(path: Path, rows: Iterable[tuple[int, dict[str, Any]]]) -> Iterator[tuple[int, Any, Any, Any]]:
    for line, content in rows:
        row = {key.lower(): value for key, value in content.items()}
        try:
            first, second, score = (row[name] for name in _named(list(row)))
        except ArgumentError as error:
            raise _failure(path, line, str(error)) from error
        yield line, first, second, score


def _named(names: Sequence[str]) -> tuple[str, str, str]:
    """The names of the two sentences and of the score among names of columns.

    Raises:
        ArgumentError: they are not there.
    """
    sentences = next((pair for pair in _SENTENCES if set(pair) <= set(names)), None)
    score = next((name for name in _SCORES if name in names), None)
    there = ", ".join(name[:40] for name in names[:8])
    if sentences is None:
        raise ArgumentError(f"the columns of the two sentences are not among {there}; {_COLUMNS}")
    if score is None:
        raise ArgumentError(f"there is no column of scores among {there}; {_COLUMNS}")
    return (*sentences, score)


def _answers(path: Path, name: str, rows: Iterable[tuple[int, dict[str, Any]]]) -> AnswerSet:
    found = AnswerSet(name, [], str(path), [])
    for line, content in rows:
        try:
            if kind_of(content) == EMBEDDING:
                files = f"{_CORPUS}, {_QUERIES} and {_QRELS[0]}"
                raise ArgumentError(f"it is a row to train embeddings with; to score retrieval make {files}")
            row = row_from(content)
        except ArgumentError as error:
            raise _failure(path, line, str(error)) from error
        assert isinstance(row, ChatRow | TextRow)
        found.rows.append(row)
        found.lines.append(line)
    return found


# Lines


def _json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Objects of a file of JSON lines, with their line."""
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise _failure(path, number, f"it is not JSON ({error.msg} at column {error.colno})") from error
        except (RecursionError, ValueError) as error:
            raise _failure(path, number, f"the JSON value cannot be read ({error})") from error
        if not isinstance(row, dict):
            raise _failure(path, number, "it is no JSON object")
        if not line.isascii() or "\\u" in line:
            _check_characters(path, number, row.values())
        yield number, row


def _check_characters(path: Path, line: int, values: Iterable[Any]) -> None:
    for value in values:
        try:
            if isinstance(value, str):
                value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise _failure(path, line, "it holds half of a character (a lone surrogate such as \\ud800)") from error


def _number(value: object) -> float | None:
    if isinstance(value, bool):
        return None
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
