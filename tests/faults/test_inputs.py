"""Faults, kind 7: anything iterable is taken."""

from __future__ import annotations

import io
from collections import OrderedDict, UserDict, deque, namedtuple
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from grit_mlx import GritLM
from grit_mlx.errors import ArgumentError, TextError
from grit_mlx.model.inputs import documents_of, texts_of

NAN = float("nan")


class Frame:
    """What pandas' and polars' DataFrames have in common: columns, and iterating over it gives their names."""

    def __init__(self, **columns: list[Any]) -> None:
        self.data = columns
        self.columns = list(columns)

    def __getitem__(self, name: str) -> list[Any]:
        return self.data[name]

    def __iter__(self) -> Any:
        return iter(self.columns)

    def __len__(self) -> int:
        return len(next(iter(self.data.values()), []))


class Lazy:
    """polars' LazyFrame."""

    columns = ("text",)

    def collect_schema(self) -> None: ...

    def collect(self) -> None: ...


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> GritLM:
    return GritLM(tiny_model)


Row = namedtuple("Row", ["title", "text"])

TEXTS: dict[str, tuple[Any, list[str]]] = {
    "list": (["a", "b"], ["a", "b"]),
    "tuple": (("a", "b"), ["a", "b"]),
    "generator": ((text for text in "ab"), ["a", "b"]),
    "iterator": (iter(["a", "b"]), ["a", "b"]),
    "map": (map(str, [1, 2]), ["1", "2"]),
    "deque": (deque(["a", "b"]), ["a", "b"]),
    "keys": ({"a": 1, "b": 2}.keys(), ["a", "b"]),
    "values": ({1: "a", 2: "b"}.values(), ["a", "b"]),
    "NumPy": (np.array(["a", "bc"]), ["a", "bc"]),
    "NumPy's objects": (np.array(["a", "b"], dtype=object), ["a", "b"]),
    "NumPy's single": ([np.str_("a"), "b"], ["a", "b"]),
    "Arrow": (pa.array(["a", "b"]), ["a", "b"]),
    "Arrow's chunks": (pa.chunked_array([["a"], ["b"]]), ["a", "b"]),
    "file": (io.StringIO("a\nb\n"), ["a\n", "b\n"]),
    "none": ([], []),
    "empty array": (np.array([], dtype=str), []),
}


@pytest.mark.parametrize("name", TEXTS)
def test_collections_of_texts(name: str) -> None:
    given, expected = TEXTS[name]
    taken = list(texts_of(given))
    assert taken == expected and all(type(text) is str for text in taken)


def test_they_are_embedded(model: GritLM) -> None:
    expected = model.encode(["a", "bc"])
    for given in (("a", "bc"), np.array(["a", "bc"]), (text for text in ["a", "bc"]), pa.array(["a", "bc"])):
        np.testing.assert_array_equal(model.encode(given), expected)
    for make in (lambda: iter(["a", "bc"]), lambda: np.array(["a", "bc"]), lambda: {"a": 1, "bc": 2}.keys()):
        np.testing.assert_array_equal(np.stack(list(model.encode_iter(make()))), expected)
        np.testing.assert_array_equal(model.encode_queries(make(), instruction=""), expected)
        np.testing.assert_array_equal(model.encode_corpus(make(), instruction=""), expected)
    np.testing.assert_array_equal(model.encode(np.array("a")), expected[0])
    np.testing.assert_array_equal(model.encode(np.str_("a")), expected[0])


REFUSED: dict[str, tuple[Any, str]] = {
    "dict": ({"a": "b"}, r"must be a str or a list of str, not dict: pass list\(texts.values\(\)\)"),
    "records": ({"text": "a"}, "not dict"),
    "OrderedDict": (OrderedDict(a="b"), "not OrderedDict"),
    "UserDict": (UserDict(a="b"), "not UserDict"),
    "set": ({"a", "b"}, "A set has no order"),
    "frozenset": (frozenset({"a"}), "A set has no order"),
    "bytes": (b"ab", "not bytes"),
    "bytearray": (bytearray(b"ab"), "not bytearray"),
    "int": (3, "not int"),
    "None": (None, "not NoneType"),
    "object": (object(), "not object"),
    "frame": (
        Frame(text=["a"], n=[1]),
        r"A Frame is not a list of texts: pass one of its columns, such as table\['text'\]",
    ),
    "frame without text": (Frame(a=["x"], b=["y"]), "A Frame is not a list of texts"),
    "empty frame": (Frame(text=[]), "A Frame is not a list of texts"),
    "lazy frame": (Lazy(), "A Lazy has no rows yet"),
    "Arrow's table": (pa.table({"text": ["a"]}), "A Table is not a list of texts"),
    "structured array": (np.array([("a", "b")], dtype=[("title", "U3"), ("text", "U3")]), "is not a list of texts"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_list_of_texts(model: GritLM, name: str) -> None:
    given, message = REFUSED[name]
    calls: list[Callable[[Any], Any]] = [model.encode, model.encode_iter, model.encode_queries]
    for call in calls:
        with pytest.raises(ArgumentError, match=message):
            call(given)


@pytest.mark.parametrize(
    ("texts", "index", "message"),
    [
        (["a", None], 1, "Text 1 is a NoneType, not a str"),
        (["a", "b", NAN], 2, r"Text 2 is missing \(nan\)"),
        ([np.float64("nan")], 0, r"Text 0 is missing \(nan\)"),
        (np.array(["a", None], dtype=object), 1, "Text 1 is a NoneType"),
        (np.array([b"a"]), 0, "Text 0 is a bytes_, not a str"),
        (np.array([["a", "b"]]), 0, "Text 0 is a ndarray, not a str"),
        ([["instruction", "text"]], 0, "Text 0 is a list, not a str"),
        ([{"text": "a"}], 0, "Text 0 is a dict, not a str"),
        (["a", 3], 1, "Text 1 is a int, not a str"),
        ([b"a"], 0, "Text 0 is a bytes, not a str"),
        (pa.array(["a", None]), 1, "Text 1 is a NoneType"),
        ([("a", "b")], 0, "Text 0 is a tuple"),
    ],
)
def test_what_is_no_text_is_named(model: GritLM, texts: Any, index: int, message: str) -> None:
    for call in (model.encode, lambda given: list(model.encode_iter(given))):
        with pytest.raises(TextError, match=message) as caught:
            call(texts)
        assert caught.value.index == index


class Pandas:
    """A value that is equal to nothing, not even unequal, as pandas' NA."""

    def __ne__(self, other: object) -> Any:
        return self

    def __bool__(self) -> bool:
        raise TypeError("boolean value of NA is ambiguous")

    __hash__ = None  # type: ignore[assignment]


NA = type("NAType", (Pandas,), {})()


@pytest.mark.parametrize(
    "title", [None, NAN, np.float32("nan"), "", NA, np.datetime64("NaT")], ids=lambda value: type(value).__name__
)
def test_a_missing_title_is_absent(title: Any) -> None:
    assert documents_of([{"title": title, "text": "a"}]) == ["a"]
    assert documents_of({"title": title, "text": "a"}) == "a"
    assert documents_of(Frame(title=[title, "T"], text=["a", "b"])) == ["a", "T b"]
    assert documents_of({"title": [title, "T"], "text": ["a", "b"]}) == ["a", "T b"]


DOCUMENTS: dict[str, tuple[Any, Any]] = {
    "text": ("a", "a"),
    "texts": (["a", "b"], ["a", "b"]),
    "record": ({"title": "T", "text": "a"}, "T a"),
    "records": ([{"title": "T", "text": "a"}, "b", {"text": "c"}], ["T a", "b", "c"]),
    "numbered title": ([{"title": 2020, "text": "a"}], ["2020 a"]),
    "further fields": ([{"_id": "1", "text": "a", "url": None}], ["a"]),
    "frame": (Frame(title=["T", None], text=["a", "b"], n=[1, 2]), ["T a", "b"]),
    "frame without titles": (Frame(n=[1, 2], text=["a", "b"]), ["a", "b"]),
    "empty frame": (Frame(title=[], text=[]), []),
    "columns": ({"text": ["a", "b"], "title": ["T", ""]}, ["T a", "b"]),
    "columns of arrays": ({"text": np.array(["a", "b"])}, ["a", "b"]),
    "Arrow's table": (pa.table({"title": ["T", None], "text": ["a", "b"]}), ["T a", "b"]),
    "Arrow's batch": (pa.record_batch({"text": pa.array(["a"])}), ["a"]),
    "Arrow's rows": (pa.table({"title": ["T", None], "text": ["a", "b"]}).to_pylist(), ["T a", "b"]),
    "structured array": (np.array([("T", "a")], dtype=[("title", "U3"), ("text", "U3")]), ["T a"]),
    "named tuples": ([Row("T", "a"), Row(None, "b")], ["T a", "b"]),
    "named tuple": (Row("T", "a"), "T a"),
    "generator": ((record for record in [{"text": "a"}]), ["a"]),
    "values": ({"d1": {"text": "a"}}.values(), ["a"]),
    "UserDicts": ([UserDict(text="a", title="T")], ["T a"]),
    "rows that make dictionaries": ([SimpleNamespace(to_dict=lambda: {"text": "a", "title": "T"})], ["T a"]),
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_documents(name: str) -> None:
    given, expected = DOCUMENTS[name]
    assert documents_of(given) == expected


def test_documents_are_embedded(model: GritLM) -> None:
    expected = model.encode_corpus(["T a", "b"])
    for given in (
        Frame(title=["T", NAN], text=["a", "b"]),
        [{"title": "T", "text": "a"}, {"title": NAN, "text": "b"}],
        pa.table({"title": ["T", None], "text": ["a", "b"]}),
        ({"title": title, "text": text} for title, text in (("T", "a"), (None, "b"))),
    ):
        np.testing.assert_array_equal(model.encode_corpus(given), expected)
    np.testing.assert_array_equal(model.encode_corpus({"title": "T", "text": "a"}), expected[0])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (Frame(body=["a"]), "Documents need a column 'text'; this has 'body'"),
        (Frame(), "Documents need a column 'text'; this has none"),
        (pa.table({"content": ["a"]}), "Documents need a column 'text'; this has 'content'"),
        (Lazy(), "A Lazy has no rows yet: call its collect"),
        ({"d1": {"text": "a"}}, r"pass list\(corpus.values\(\)\)"),
        ({"title": "a"}, "Document 0 has no 'text'"),
        ([{"text": "a"}, {"title": "b"}], "Document 1 has no 'text'"),
        ([{"text": None}], "Document 0 has no 'text'"),
        ([{"text": "a"}, {"text": NAN, "title": "T"}], "Document 1 has no 'text'"),
        ([{"text": NA}], "Document 0 has no 'text'"),
        ([{"text": "a", "title": ["T"]}], "The title of document 0 is a list, not a str"),
        ([{"text": "a"}, {"text": "a", "title": {"en": "T"}}], "The title of document 1 is a dict"),
        ([{"text": 5}], "Document 0 has no 'text'"),
        (Frame(text=["a", NAN], title=["x", "y"]), "Document 1 has no 'text'"),
        ({"text": ["a"], "title": ["x", "y"]}, "1 texts and 2 titles"),
        ({"a", "b"}, "A set has no order"),
        (b"a", "not bytes"),
        (None, "not NoneType"),
        ([("T", "a")], "Text 0 is a tuple, not a str"),
        ([["T", "a"]], "Text 0 is a list, not a str"),
        (["a", None], "Text 1 is a NoneType"),
        ([{"text": "half \ud800"}], "Text 0 holds half a surrogate pair"),
    ],
)
def test_what_is_no_document_is_named(model: GritLM, given: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        model.encode_corpus(given)


@pytest.mark.parametrize("given", ["one", {"a": 1}, {"a", "b"}, 5, None])
def test_a_batch_of_prompts_is_a_list(model: GritLM, given: Any) -> None:
    with pytest.raises(ArgumentError, match="generate_batch takes a list of prompts"):
        model.generate_batch(given)


def test_prompts_from_anything_in_order(model: GritLM) -> None:
    expected = model.generate_batch(["Why?", "How?"], max_tokens=4)
    for given in (("Why?", "How?"), (text for text in ["Why?", "How?"]), np.array(["Why?", "How?"])):
        assert model.generate_batch(given, max_tokens=4) == expected
    assert model.generate(np.str_("Why?"), max_tokens=4) == expected[0]
    turns = ({"role": "user", "content": "Why?"},)
    assert model.generate(turns, max_tokens=4) == expected[0]


# With the real ones, where they are installed.


def test_pandas(model: GritLM) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"title": ["T", None, NAN, pandas.NA], "text": ["a", "b", "c", "d"], "n": range(4)})
    expected = ["T a", "b", "c", "d"]
    for given in (frame, frame.to_dict("records"), list(frame.itertuples()), [row for _, row in frame.iterrows()]):
        assert documents_of(given) == expected
    assert documents_of(frame.iloc[0]) == "T a" and documents_of(frame.text) == ["a", "b", "c", "d"]
    for kind in ("string", object, "category"):
        series = frame["text"].astype(kind)
        assert list(texts_of(series)) == ["a", "b", "c", "d"]
        np.testing.assert_array_equal(model.encode(series), model.encode(["a", "b", "c", "d"]))
    assert list(texts_of(frame["text"].unique())) == ["a", "b", "c", "d"]
    assert documents_of(frame[frame.n > 1]) == ["c", "d"]
    for given in (frame, frame[["text"]], frame.iloc[:0], pandas.DataFrame([["a"]])):
        for call in (model.encode, model.encode_iter, model.encode_queries):
            with pytest.raises(ArgumentError, match="A DataFrame is not a list of texts"):
                call(given)
    with pytest.raises(ArgumentError, match="Documents need a column 'text'; this has '0', '1'"):
        model.encode_corpus(pandas.DataFrame([["a", "b"]]))
    with pytest.raises(TextError, match=r"Text 1 is missing \(<NA>\)"):
        model.encode(pandas.Series(["a", pandas.NA], dtype="string"))
    with pytest.raises(TextError, match="Text 0 is a tuple"):
        model.encode_corpus(frame.iterrows())


def test_polars(model: GritLM) -> None:
    polars = pytest.importorskip("polars")
    frame = polars.DataFrame({"title": ["T", None, ""], "text": ["a", "b", "c"]})
    assert documents_of(frame) == documents_of(list(frame.iter_rows(named=True))) == ["T a", "b", "c"]
    assert list(texts_of(frame["text"])) == ["a", "b", "c"]
    for given in (frame, frame.select("text"), frame.head(0)):
        with pytest.raises(ArgumentError, match="A DataFrame is not a list of texts"):
            model.encode(given)
    for call in (model.encode, model.encode_corpus, model.encode_iter):
        with pytest.raises(ArgumentError, match="A LazyFrame has no rows yet"):
            call(frame.lazy())
    with pytest.raises(TextError, match="Text 1 is a NoneType"):
        model.encode(frame["title"])
