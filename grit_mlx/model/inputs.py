"""What callers hand over, as texts, documents and token ids: anything iterable is not a list of texts.

pandas, polars, pyarrow and PyTorch are recognised by what their objects can do, so that none has to be installed.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from grit_mlx.errors import ArgumentError, TextError
from grit_mlx.options import bad_unicode

__all__ = ["checked_text", "documents_of", "is_single", "is_token_array", "texts_of", "token_ids"]


def is_single(given: object) -> bool:
    """Whether this is one text: a str, or NumPy's array of none but one."""
    if isinstance(given, np.ndarray) and given.ndim == 0:
        given = given.item()
    return isinstance(given, str)


def texts_of(given: object) -> Iterator[str]:
    """The texts of a collection, in its order, each checked when it is taken.

    Raises:
        ArgumentError: a collection that is not one of texts, or has no order; at once.
        TextError: names the index of what is not a text.
    """
    return _checked(_collection(given))


def checked_text(index: int, text: object) -> str:
    """A text that tokenizers take.

    Raises:
        TextError: it is of another type, missing, or holds half a surrogate pair.
    """
    if not isinstance(text, str):
        what = f"missing ({text})" if text is not None and _is_missing(text) else f"a {type(text).__name__}, not a str"
        raise TextError(f"Text {index} is {what}.", index=index)
    if problem := bad_unicode(text):
        raise TextError(f"Text {index} {problem}.", index=index)
    return str(text)  # NumPy's are of a subclass


def documents_of(corpus: object) -> str | list[str]:
    """The texts of documents, each with its title before it where it has one: a list, or a single one.

    Args:
        corpus: texts or records with "text" and perhaps "title"; one of these; or columns of these names: a
            DataFrame, a table, a dictionary of lists.

    Raises:
        ArgumentError: there is no text in it.
        TextError: names the index of a document without text.
    """
    if is_single(corpus):
        return str(corpus)
    if isinstance(corpus, Mapping) and not _is_collection(corpus.get("text")):
        if "text" not in corpus and any(isinstance(value, Mapping) for value in corpus.values()):
            raise ArgumentError("Documents by their ids are not a list: pass list(corpus.values()).")
        return _document(0, corpus)
    if _is_row(corpus):
        return _document(0, corpus)
    names = None if _is_lazy(corpus) else _column_names(corpus)
    if names is None:
        return [_document(i, document) for i, document in enumerate(_collection(corpus))]
    if "text" not in names:
        raise ArgumentError(f"Documents need a column 'text'; this has {', '.join(map(repr, names)) or 'none'}.")
    columns: Any = corpus
    texts = list(_collection(columns["text"]))
    titles = list(_collection(columns["title"])) if "title" in names else [None] * len(texts)
    if len(titles) != len(texts):
        raise ArgumentError(f"There are {len(texts)} texts and {len(titles)} titles.")
    return [
        _document(i, {"text": text, "title": title}) for i, (text, title) in enumerate(zip(texts, titles, strict=True))
    ]


def is_token_array(given: object) -> bool:
    """Whether this is an array or tensor of whole numbers: NumPy's, mlx's or PyTorch's."""
    kind = str(getattr(given, "dtype", "")).rpartition(".")[2]
    return hasattr(given, "shape") and (kind.startswith(("int", "uint")) or kind == "long")


def token_ids(given: object, *, rows: int, what: str = "the prompt") -> list[int] | None:
    """Token ids as plain numbers; None where ``given`` is not a sequence of whole numbers.

    Args:
        given: a sequence or array of one dimension.
        rows: of the embedding table, which native code reads without looking.
        what: holds them, for messages.

    Raises:
        ArgumentError: one that the model does not have.
    """
    if is_token_array(given):
        given = np.asarray(given).tolist()
    if not isinstance(given, Sequence) or isinstance(given, str | bytes):
        return None
    ids: list[int] = []
    for one in given:
        if isinstance(one, bool | np.bool_):
            return None
        try:
            ids.append(operator.index(one))
        except TypeError:
            return None
    for place, number in enumerate(ids):
        if not 0 <= number < rows:
            raise ArgumentError(
                f"Token {place} of {what} has the id {number}; the model has {rows:,} tokens, from 0 to {rows - 1}."
            )
    return ids


def _collection(given: object) -> Iterable[object]:
    if _is_lazy(given):
        raise ArgumentError(f"A {type(given).__name__} has no rows yet: call its collect() first.")
    if not isinstance(given, Mapping) and _column_names(given) is not None:
        raise ArgumentError(
            f"A {type(given).__name__} is not a list of texts: pass one of its columns, such as table['text'], or pass "
            "it to encode_corpus, which reads the columns 'text' and 'title'."
        )
    if isinstance(given, Mapping | bytes | bytearray) or not isinstance(given, Iterable):
        hint = ": pass list(texts.values())" if isinstance(given, Mapping) else ""
        raise ArgumentError(f"Texts must be a str or a list of str, not {type(given).__name__}{hint}.")
    if isinstance(given, set | frozenset):
        raise ArgumentError("A set has no order, so its vectors could not be told apart: pass a list.")
    if hasattr(given, "to_pylist"):  # pyarrow's arrays
        return given.to_pylist()  # type: ignore[no-any-return]
    return given


def _is_lazy(given: object) -> bool:
    return hasattr(given, "collect_schema") and hasattr(given, "collect")


def _checked(texts: Iterable[object]) -> Iterator[str]:
    return (checked_text(i, text) for i, text in enumerate(texts))


def _is_collection(value: object) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping)


def _column_names(given: object) -> list[str] | None:
    """The columns of a DataFrame, a table or a dictionary of lists; None for anything else."""
    if isinstance(given, Mapping):
        return list(map(str, given)) if _is_collection(given.get("text")) else None
    if isinstance(given, np.ndarray):
        return list(given.dtype.names) if given.dtype.names else None
    for name in ("column_names", "columns"):  # pyarrow and datasets; pandas and polars
        names = getattr(given, name, None)
        if names is not None and _is_collection(names) and all(isinstance(one, str) for one in names):
            return list(names)
        if names is not None and hasattr(given, "iloc"):  # pandas numbers columns that have no name
            return [str(one) for one in names]
    return None


def _is_row(given: Any) -> bool:
    """Whether this is a row of a DataFrame with a field "text", and not a collection: a named tuple, or its Series."""
    if hasattr(given, "_asdict"):
        return "text" in given._fields
    return hasattr(given, "to_dict") and hasattr(given, "index") and _column_names(given) is None and "text" in given


def _document(index: int, document: object) -> str:
    """A document's text behind its title; the joint is the official package's."""
    as_record = getattr(document, "_asdict", None) or getattr(document, "to_dict", None)
    if as_record is not None:  # rows of DataFrames
        document = as_record()
    if not isinstance(document, Mapping):
        return checked_text(index, document)
    text, title = document.get("text"), document.get("title")
    if not isinstance(text, str):
        raise TextError(f"Document {index} has no 'text'.", index=index)
    if isinstance(title, bytes | Mapping) or _is_collection(title):
        raise TextError(f"The title of document {index} is a {type(title).__name__}, not a str.", index=index)
    return checked_text(index, text if _is_missing(title) or title == "" else f"{title} {text}")


def _is_missing(value: object) -> bool:
    """Whether this stands for no value: None, NaN, pandas' NA and NaT."""
    if value is None:
        return True
    try:
        return bool(value != value)
    except (TypeError, ValueError):  # pandas' NA is neither equal nor unequal to anything; arrays are many
        return type(value).__name__ == "NAType"
