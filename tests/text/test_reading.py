"""Files to texts: what makes a text, where it stands, and what a user reads when a file cannot be used."""

from __future__ import annotations

import errno
import gzip
import io
import os
import sys
import tracemalloc
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grit_mlx.errors import ArgumentError, DocumentError
from grit_mlx.text.blocks import Block
from grit_mlx.text.encoding import decoded_blocks
from grit_mlx.text.options import ReadingOptions
from grit_mlx.text.packing import Measure, count_words, pack
from grit_mlx.text.readers.markup import markdown_blocks, text_blocks
from grit_mlx.text.readers.source import lines_of
from grit_mlx.text.reading import read_texts
from grit_mlx.text.rows import texts
from grit_mlx.text.splitting import Text


def make(folder: Path, name: str, content: str | bytes) -> str:
    path = folder / name
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return str(path)


def strings(texts: Iterable[Text]) -> list[str]:
    return [text.text for text in texts]


def places(texts: Iterable[Text]) -> list[tuple[str, int, int]]:
    return [(text.text, text.line, text.end_line) for text in texts]


# --- lines, paragraphs, files -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", []),
        (b"\n \n\t\n", []),
        (b"one\ntwo\n", [("one", 1, 1), ("two", 2, 2)]),
        (b"one\n\n  two  ", [("one", 1, 1), ("two", 3, 3)]),
        (b"one\r\n\r\ntwo\r\n", [("one", 1, 1), ("two", 3, 3)]),
        (b"one\rtwo\r", [("one", 1, 1), ("two", 2, 2)]),
        (b"\xef\xbb\xbfone\n", [("one", 1, 1)]),
        (b"a\x0bb\x0cc\xe2\x80\xa8d", [("a\x0bb\x0cc\u2028d", 1, 1)]),  # no ends of lines, as editors count
    ],
)
def test_lines(tmp_path: Path, content: bytes, expected: list[tuple[str, int, int]]) -> None:
    assert places(read_texts(make(tmp_path, "a.txt", content))) == expected


def test_source_is_the_path_as_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "a.txt", "one")
    monkeypatch.chdir(tmp_path)
    assert list(read_texts("./a.txt")) == [Text("one", "./a.txt", 1, 1)]
    assert list(read_texts(Path("a.txt"))) == [Text("one", "a.txt", 1, 1)]


def test_paragraphs_keep_indentation_and_place(tmp_path: Path) -> None:
    path = make(tmp_path, "a.txt", "\n\none  \n  two\n \n\nthree\n# four\n\n")
    assert places(read_texts(path, ReadingOptions(by="paragraph"))) == [("one\n  two", 3, 4), ("three\n# four", 7, 8)]


def test_markdown_keeps_fences_whole_and_breaks_at_headings(tmp_path: Path) -> None:
    lines = ["intro", "# Title", "```py", "a", "", "# no heading", "~~~", "````", "", "end", "#tag"]
    path = make(tmp_path, "a.md", "\n".join(lines))
    assert places(read_texts(path, ReadingOptions(by="paragraph"))) == [
        ("intro", 1, 1),
        ("# Title\n```py\na\n\n# no heading\n~~~\n````", 2, 8),
        ("end\n#tag", 10, 11),
    ]


def test_unclosed_fence_reaches_to_the_end(tmp_path: Path) -> None:
    path = make(tmp_path, "a.md", "~~~\na\n\nb\n\n")
    assert places(read_texts(path, ReadingOptions(by="paragraph"))) == [("~~~\na\n\nb", 1, 4)]


def test_inline_code_opens_no_fence(tmp_path: Path) -> None:
    path = make(tmp_path, "a.md", "```a``` b\n\nc")
    assert len(list(read_texts(path, ReadingOptions(by="paragraph")))) == 2


def test_whole_file(tmp_path: Path) -> None:
    path = make(tmp_path, "a.txt", "\n one\n\ntwo \n\n")
    assert places(read_texts(path, ReadingOptions(by="file"))) == [("one\n\ntwo", 2, 4)]
    assert places(read_texts(make(tmp_path, "b.txt", "\n \n"), ReadingOptions(by="file"))) == []


@given(st.text(alphabet="ab \n\r\té\u2028\U0001f600"), st.integers(1, 5))
def test_lines_agree_with_python_for_any_block_size(content: str, block: int) -> None:
    data = content.encode()
    blocks = (data[start : start + block] for start in range(0, len(data), block))
    lines = list(lines_of(decoded_blocks(blocks, name="-", encoding="utf-8")))
    expected = [line.rstrip("\n") for line in io.TextIOWrapper(io.BytesIO(data), encoding="utf-8")]
    assert lines == expected


# --- rows ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "A.JSONL", "a.jsonl.gz"])
def test_jsonl(tmp_path: Path, name: str) -> None:
    path = make(tmp_path, name, '\ufeff{"text": " one\\ntwo ", "id": 1}\r\n\n"three"\n')
    assert places(read_texts(path)) == [(" one\ntwo ", 1, 1), ("three", 3, 3)]


def test_field(tmp_path: Path) -> None:
    path = make(tmp_path, "a.jsonl", '{"text": "no", "body": "yes"}\n')
    assert strings(read_texts(path, ReadingOptions(field="body"))) == ["yes"]
    path = make(tmp_path, "unknown", '{"body": "yes"}\n')
    assert strings(read_texts(path, ReadingOptions(field="body"))) == ["yes"]


def test_json_array_with_lines(tmp_path: Path) -> None:
    path = make(tmp_path, "a.json", '\n[\n  {"text":\n "one"},\n  "two"\n]\n')
    assert places(read_texts(path)) == [("one", 3, 4), ("two", 5, 5)]


@pytest.mark.parametrize(
    ("content", "count"), [("", 0), (" [ ] ", 0), ('{"text": "a"}', 1), ('["a"]', 1), ('["a","b"]', 2)]
)
def test_json_shapes(tmp_path: Path, content: str, count: int) -> None:
    assert len(list(read_texts(make(tmp_path, "a.json", content)))) == count


def test_csv_quotes_and_lines(tmp_path: Path) -> None:
    path = make(tmp_path, "a.csv", '\nid,text\n1,"one, ""x""\r\nmore"\n\n2,two\n')
    assert places(read_texts(path)) == [('one, "x"\nmore', 3, 4), ("two", 6, 6)]
    assert strings(read_texts(path, ReadingOptions(field="id"))) == ["1", "2"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "id;text\n1;one, two\n"),
        ("a.csv", '\ufefftext\n"one, two"\n'),
        ("a.csv", 'only\n"one, two"\n'),
        ("a.tsv", "id\ttext\n1\tone, two\n"),
        ("a.tsv.gz", "id\ttext\n1\tone, two\n"),
    ],
)
def test_csv_dialects(tmp_path: Path, name: str, content: str) -> None:
    assert strings(read_texts(make(tmp_path, name, content))) == ["one, two"]


def test_header_alone_has_no_texts(tmp_path: Path) -> None:
    assert list(read_texts(make(tmp_path, "a.csv", "id,text\n"))) == []
    assert list(read_texts(make(tmp_path, "b.csv", ""))) == []


def test_rows_are_split_but_never_joined_across(tmp_path: Path) -> None:
    path = make(tmp_path, "a.jsonl", '"a b\\r\\n\\r\\nc d"\n\n"e"\n')
    assert places(read_texts(path, ReadingOptions(by="paragraph"))) == [("a b", 1, 1), ("c d", 1, 1), ("e", 3, 3)]
    chunks = read_texts(path, ReadingOptions(by="chunk", chunk_size=3))
    assert places(chunks) == [("a b", 1, 1), ("c d", 1, 1), ("e", 3, 3)]
    assert places(read_texts(path, ReadingOptions(by="file"))) == [("a b\r\n\r\nc d\n\ne", 1, 3)]


@pytest.mark.parametrize("row", ['{"text": ""}', '{"text": null}', '" "'])
def test_empty_rows_are_an_error_or_skipped_when_asked(tmp_path: Path, row: str) -> None:
    path = make(tmp_path, "a.jsonl", f'"one"\n{row}\n"two"\n')
    texts = read_texts(path)
    assert next(texts).text == "one"
    with pytest.raises(DocumentError, match="line 2: the text of this row is empty"):
        next(texts)
    assert strings(read_texts(path, ReadingOptions(skip_empty=True))) == ["one", "two"]
    assert strings(read_texts(path, ReadingOptions(by="chunk"))) == ["one", "two"]


# --- standard input -----------------------------------------------------------------------------------------


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"one\n\ntwo")))
    assert list(read_texts("-")) == [Text("one", "-", 1, 1), Text("two", "-", 3, 3)]
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b'{"body": "one"}\n')))
    assert strings(read_texts("-", ReadingOptions(field="body"))) == ["one"]
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"one\n\xff")))
    with pytest.raises(DocumentError, match=r"^Standard input, line 2: byte 0xff"):
        list(read_texts("-"))


def test_texts_come_as_they_are_piped_in(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as source, os.fdopen(writing, "wb", buffering=0) as sink:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=source))
        texts = read_texts("-")
        sink.write(b"one\ntw")
        assert next(texts).text == "one"
        sink.write(b"o\n")
        assert next(texts).text == "two"


# --- chunks -------------------------------------------------------------------------------------------------


def chunks(
    text: str, *, size: int, overlap: int = 0, markdown: bool = False, measure: Measure = count_words
) -> list[tuple[str, int, int]]:
    blocks = (markdown_blocks if markdown else text_blocks)(text.split("\n"))
    return [(one.text, one.first, one.last) for one in pack(blocks, size=size, overlap=overlap, measure=measure)]


def test_chunks_pack_whole_paragraphs() -> None:
    assert chunks("a b\nc\n\nd\n\ne f", size=4) == [("a b\nc\n\nd", 1, 4), ("e f", 6, 6)]


def test_chunks_split_at_sentences_then_words_then_anywhere() -> None:
    assert chunks("A b. C d\ne! F g? H.", size=3) == [("A b.", 1, 1), ("C d\ne!", 1, 2), ("F g? H.", 2, 2)]
    assert chunks("a b c d\ne f g", size=3) == [("a b c", 1, 1), ("d\ne f", 1, 2), ("g", 2, 2)]
    assert [text for text, *_ in chunks("abcdefgh ij", size=5, measure=len)] == ["abcde", "fgh", "ij"]


def test_chunks_of_languages_without_spaces() -> None:
    text = "我是学生。你好吗？好。"  # noqa: RUF001 - the point of the test
    assert [chunk for chunk, *_ in chunks(text, size=7, measure=len)] == ["我是学生。", "你好吗？好。"]  # noqa: RUF001


def test_chunks_repeat_complete_sentences() -> None:
    text = "A b. C d. E f. G h."
    assert [chunk for chunk, *_ in chunks(text, size=6, overlap=2)] == ["A b. C d. E f.", "E f. G h."]
    assert [chunk for chunk, *_ in chunks("a b c d e f", size=4, overlap=1)] == ["a b c d", "e f"]


def test_overlap_gives_way_to_what_follows() -> None:
    assert [chunk for chunk, *_ in chunks("a b c\n\nd e f", size=3, overlap=2)] == ["a b c", "d e f"]


def test_headings_begin_chunks_that_are_half_full_and_end_none() -> None:
    text = "# A\na b\n\n# B\nc d\n\n# C\ne"
    assert chunks(text, markdown=True, size=100) == [("# A\na b\n\n# B\nc d\n\n# C\ne", 1, 8)]
    halves = chunks(text, markdown=True, size=6)
    assert halves == [("# A\na b", 1, 2), ("# B\nc d", 4, 5), ("# C\ne", 7, 8)]
    assert chunks("a b\n\n# B\n\nc d e", markdown=True, size=6, overlap=1) == [("a b", 1, 1), ("# B\n\nc d e", 3, 5)]
    # A heading beside which what follows does not fit stays behind; it is never lost.
    assert chunks("a b\n\n# B\n\nc d e f", markdown=True, size=5) == [("a b\n\n# B", 1, 3), ("c d e f", 5, 5)]


@given(
    st.text(alphabet="ab .!\n#`-1|", max_size=300),
    st.integers(1, 20),
    st.sampled_from([count_words, len]),
    st.booleans(),
)
def test_chunks_lose_nothing_and_fit(text: str, size: int, measure: Measure, markdown: bool) -> None:
    lines = text.split("\n")
    made = chunks(text, size=size, measure=measure, markdown=markdown)
    assert all(measure(chunk) <= size for chunk, *_ in made)
    if not markdown:  # of tables the line under the header is left out, and the header repeated
        assert "".join("".join(chunk.split()) for chunk, *_ in made) == "".join(text.split())
        for chunk, first, last in made:
            assert "".join(chunk.split()) in "".join("".join(lines[first - 1 : last]).split())


@given(st.text(alphabet="abc .\n", max_size=300), st.integers(2, 20), st.data())
def test_overlapping_chunks_fit_and_repeat_what_came_before(text: str, size: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(1, size - 1))
    made = [chunk for chunk, *_ in chunks(text, size=size, overlap=overlap)]
    assert all(count_words(chunk) <= size for chunk in made)
    done: list[str] = []
    for chunk in made:
        words = chunk.split()
        shared = next(n for n in range(min(overlap, len(done)), -1, -1) if done[len(done) - n :] == words[:n])
        done += words[shared:]
    # Repeated words of the text itself may look like overlap, so this is a bound, not an equality.
    assert len(done) <= len(text.split())
    assert set(done) == set(text.split())


def test_a_huge_line_is_never_measured_whole_twice() -> None:
    measured = 0

    def measure(text: str) -> int:
        nonlocal measured
        measured += len(text)
        return len(text)

    text = "word " * 40_000
    made = list(pack([Block(text, 1, 1)], size=100, measure=measure))
    assert all(len(chunk.text) <= 100 for chunk in made)
    assert measured < 5 * len(text)


def test_a_line_of_50_megabytes(tmp_path: Path) -> None:
    path = make(tmp_path, "a.txt", b"x" * 50_000_000 + b"\ny")
    assert [len(text.text) for text in read_texts(path)] == [50_000_000, 1]


@pytest.mark.parametrize("by", ["line", "paragraph", "chunk"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, by: str) -> None:
    def peak(paragraphs: int) -> int:
        path = make(tmp_path, "a.txt", ("some words in a line\n" * 10 + "\n") * paragraphs)
        tracemalloc.start()
        assert sum(1 for _ in read_texts(path, ReadingOptions(by=by))) >= paragraphs // 5
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    assert peak(4000) < peak(1000) + 200_000  # bytes; the difference of the files is 630,000


# --- what cannot be read ------------------------------------------------------------------------------------

AS_UTF8 = {"encoding": "utf-8"}

BAD_FILES: list[tuple[str, str | bytes, dict[str, str], str, int | None]] = [
    # name, content, options, what the message says after the path, line
    ("nul.txt", b"ab\0c", {}, " looks like a binary file (it holds NUL bytes). Name a text file.", None),
    ("pdf.txt", b"%PDF-1.7 ...", {}, " is a PDF, not text. Give it a name that ends in .pdf.", None),
    (
        "docx.txt",
        b"PK\x03\x04 ..",
        {},
        " is a zip archive or an office document, not text. Give it the suffix of",
        None,
    ),
    ("a.pdf", b"%PDF-1.7 ...", {}, " is damaged, or not a PDF file.", None),
    ("a.docx", b"PK\x03\x04 ..", {}, " cannot be read as Word document: File is not a zip file.", None),
    ("a.bin", gzip.compress(b"abc"), {}, " holds gzipped data. Give it a name that ends in .gz", None),
    (
        "utf16.txt",
        "one".encode("utf-16"),
        AS_UTF8,
        " is encoded in UTF-16. Read it with encoding='utf-16'.",
        None,
    ),
    (
        "utf32.txt",
        "one".encode("utf-32"),
        AS_UTF8,
        " is encoded in UTF-32. Read it with encoding='utf-32'.",
        None,
    ),
    (
        "latin.txt",
        b"one\ntw\xe9o\n",
        AS_UTF8,
        ", line 2: byte 0xe9 at offset 6 is not UTF-8. Name the encoding of the file, for example encoding='latin-1'.",
        2,
    ),
    ("cut.txt", "one\r\né".encode()[:-1], AS_UTF8, ", line 2: byte 0xc3 at offset 5 is not UTF-8.", 2),
    ("bom.txt", b"\xef\xbb\xbf\xff", {}, ", line 1: byte 0xff at offset 3 is not UTF-8.", 1),
    ("ascii.txt", "é", {"encoding": "ascii"}, ", line 1: byte 0xc3 at offset 0 is not ASCII.", 1),
    ("odd.txt", "abc", {"encoding": "utf-16-le"}, ", line 1: byte 0x63 at offset 2 is not UTF-16-LE.", 1),
    (
        "a.txt",
        "one",
        {"field": "body"},
        " holds text, not rows. Name a .jsonl, .json, .csv or .tsv file, or omit",
        None,
    ),
    ("bad.jsonl", '"a"\n\n{"text": }', {}, ", line 3: column 10 is not JSON (Expecting value). Fix the line.", 3),
    ("two.jsonl", '"a" "b"', {}, ", line 1: the JSON value ends before column 4. Put one value on each line.", 1),
    ("number.jsonl", "5", {}, ", line 1: the row is a number, not an object.", 1),
    ("list.jsonl", '["a"]', {}, ", line 1: the row is an array, not an object.", 1),
    ("string.jsonl", '"a"', {"field": "b"}, ", line 1: the row is a string, not an object.", 1),
    (
        "field.jsonl",
        '{"text": "a"}\n{"title": 1, "body": 2}',
        {},
        ", line 2: there is no field 'text'; the fields are 'title', 'body'. Choose one with field.",
        2,
    ),
    ("none.jsonl", "{}", {}, ", line 1: there is no field 'text'; the fields are none.", 1),
    ("many.jsonl", str({str(i): i for i in range(20)}).replace("'", '"'), {}, "'11' and 8 more. Choose", 1),
    ("type.jsonl", '{"text": 3.5}', {}, ", line 1: the field 'text' is a number, not a string.", 1),
    ("bool.jsonl", '{"text": true}', {}, ", line 1: the field 'text' is a boolean, not a string.", 1),
    ("half.jsonl", '{"text": "a\\ud800"}', {}, ", line 1: the field 'text' holds half of a character", 1),
    ("deep.jsonl", "[" * 200_000, {}, ", line 1: the JSON value is nested too deeply.", 1),
    ("digits.jsonl", '{"text": ' + "1" * 5000 + "}", {}, ", line 1: the", 1),
    ("open.json", '[\n"a"\n', {}, ', line 2: expected "," or "]" in the JSON array.', 2),
    ("comma.json", '["a",]', {}, ", line 1: column 6 is not JSON", 1),
    ("bad.json", '[\n"a",\n{"text":\n x}]', {}, ", line 4: column 2 is not JSON (Expecting value).", 4),
    ("lines.json", '"a"\n"b"', {}, ", line 2: there is more after the JSON value. If the file holds one value", 2),
    (
        "column.csv",
        "id,body\n1,a",
        {"field": "text"},
        ", line 1: there is no column 'text'; the columns are 'id', 'body'.",
        1,
    ),
    ("wide.csv", "text\none, two", {}, ", line 2: the row has 2 columns, but the first row has 1. Put texts that", 2),
    ("quote.csv", 'text\n"a\nb', {}, ", line 2: cannot be read as CSV (unexpected end of data).", 2),
    ("null.csv", "text\n" + "a" * 9000 + "\0", {}, ", line 2: there is a NUL byte.", 2),
]


@pytest.mark.parametrize(
    ("name", "content", "options", "message", "line"), BAD_FILES, ids=[case[0] for case in BAD_FILES]
)
def test_bad_files(
    tmp_path: Path, name: str, content: str | bytes, options: dict[str, str], message: str, line: int | None
) -> None:
    path = make(tmp_path, name, content)
    with pytest.raises(DocumentError) as caught:
        list(read_texts(path, ReadingOptions(by="line", **options)))  # type: ignore[arg-type]
    told = str(caught.value)
    assert told.startswith(path)
    assert message in told
    assert "\n" not in told
    assert caught.value.path == path
    assert caught.value.line == line


def test_utf16_without_its_mark(tmp_path: Path) -> None:
    # Python 3.13 says where, those before it do not.
    with pytest.raises(DocumentError, match=r"is not UTF-16"):
        list(read_texts(make(tmp_path, "a.txt", "abcd"), ReadingOptions(encoding="utf-16")))


def test_missing_files_and_folders_are_refused_at_the_call(tmp_path: Path) -> None:
    make(tmp_path, "a.txt", "")
    with pytest.raises(DocumentError, match=r"missing\.txt does not exist\. Check the name\."):
        read_texts(tmp_path / "missing.txt")
    with pytest.raises(DocumentError, match=r"is a folder, not a file\. Name the files in it, .*/\*\.txt"):
        read_texts(tmp_path)
    with pytest.raises(DocumentError, match=r"a part of its path is a file"):
        read_texts(tmp_path / "a.txt" / "b.txt")
    with pytest.raises(DocumentError, match=r"is too long"):
        read_texts("a" * 5000)
    with pytest.raises(DocumentError, match=r"cannot be read: embedded null byte\."):
        read_texts("a\0b")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(DocumentError, match=r"leads back to itself"):
        read_texts(tmp_path / "loop")


def test_braces_in_a_name(tmp_path: Path) -> None:
    (tmp_path / "{x}").mkdir()
    with pytest.raises(DocumentError, match=r"\{x\} is a folder"):
        read_texts(tmp_path / "{x}")


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(tmp_path, "a.txt", "one")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # as root, no file of one's own is unreadable
    with pytest.raises(DocumentError, match=r"a\.txt cannot be read: permission denied\. Check its permissions\."):
        read_texts(path)


def test_file_that_vanishes_or_fails_while_being_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(tmp_path, "a.txt", "one")
    texts = read_texts(path)
    Path(path).unlink()
    with pytest.raises(DocumentError, match="does not exist"):
        next(texts)

    class Broken(io.BytesIO):
        def read1(self, size: int | None = -1, /) -> bytes:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=Broken()))
    with pytest.raises(DocumentError, match=r"Standard input cannot be read: Input/output error\."):
        next(read_texts("-"))


@pytest.mark.parametrize("damage", ["cut", "flipped", "not gzip"])
def test_broken_gzip(tmp_path: Path, damage: str) -> None:
    packed = bytearray(gzip.compress(b"".join(b"%d\n" % number for number in range(1000))))
    if damage == "flipped":
        packed[len(packed) // 2] ^= 0xFF
    data = {"cut": bytes(packed[:-20]), "flipped": bytes(packed), "not gzip": b"plain text"}[damage]
    path = tmp_path / "a.txt.gz"
    path.write_bytes(data)
    reason = {
        "cut": "Compressed file ended before the end-of-stream marker was reached.",
        "flipped": "Error -3 while decompressing data",
        "not gzip": "Not a gzipped file",
    }[damage]
    with pytest.raises(DocumentError, match=rf"a\.txt\.gz cannot be read: {reason}"):
        list(read_texts(path))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": "word"}, "Unknown by 'word': use one of line, paragraph, file, chunk."),
        ({"encoding": "klingon"}, "The encoding 'klingon' is unknown."),
        ({"encoding": "base64"}, "The encoding 'base64' is unknown."),
        ({"chunk_size": 0}, "chunk_size must be at least 1, not 0."),
        ({"chunk_size": 5, "overlap": 5}, "overlap must be at least 0 and below chunk_size (5), not 5."),
    ],
)
def test_bad_options(tmp_path: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        read_texts(make(tmp_path, "a.txt", "one"), ReadingOptions(**options))  # type: ignore[arg-type]
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("encoding", "warned"), [("utf-16", False), ("utf-32", False), ("utf-8-sig", False), ("latin-1", True)]
)
def test_encodings_are_found_out(tmp_path: Path, encoding: str, warned: bool, caplog: pytest.LogCaptureFixture) -> None:
    path = make(tmp_path, "a.txt", "one\ntwé\n".encode(encoding))
    assert strings(read_texts(path)) == ["one", "twé"]
    assert [record.getMessage() for record in caplog.records] == (
        [f"{path} is not UTF-8; it is read as cp1252, which is a guess. encoding names another."] if warned else []
    )


def test_tables_without_a_text_column_are_read_with_all(tmp_path: Path) -> None:
    path = make(tmp_path, "a.csv", "id,Text,note\n1,one,\n2,two,x\n")
    assert places(read_texts(path)) == [("id: 1\nText: one", 2, 2), ("id: 2\nText: two\nnote: x", 3, 3)]


def test_other_encodings(tmp_path: Path) -> None:
    for encoding in ("latin-1", "utf-16", "utf-16-le", "utf-32"):
        path = make(tmp_path, "a.txt", "é\nü\n".encode(encoding))
        assert strings(read_texts(path, ReadingOptions(encoding=encoding))) == ["é", "ü"]


def test_field_limit_of_csv_is_lifted(tmp_path: Path) -> None:
    assert len(next(read_texts(make(tmp_path, "a.csv", "text\n" + "x" * 200_000))).text) == 200_000


def test_lines_may_be_any_iterable() -> None:
    def lines() -> Iterator[str]:
        yield '{"text": "one"}'
        raise AssertionError("read further than asked")

    assert next(texts(lines(), "jsonl", source="x")) == Text("one", "x", 1, 1)
