"""grit embed: what it reads, what it writes, and how it tells."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grit_mlx import GritLM
from grit_mlx.cli import console, inputs
from grit_mlx.cli import embed as embed_command
from grit_mlx.model.prompts import embedding_prompt
from grit_mlx.text.splitting import Text
from grit_mlx.vectors.compression import CompressedVectors
from tests.vectors.conftest import read_vectors

Grit = Any


def rows(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


@pytest.fixture(scope="session")
def library(tiny_model: Path) -> GritLM:
    return GritLM(tiny_model, mode="embedding")


def test_a_pipe_gets_json_lines(grit: Grit, notes: Path, library: GritLM) -> None:
    run = grit("embed", notes)
    assert (run.code, run.err) == (0, "")
    found = rows(run.out)
    assert [(row["index"], row["source"], row["line"], row["end_line"]) for row in found] == [
        (0, str(notes), 1, 1),
        (1, str(notes), 2, 2),
        (2, str(notes), 4, 4),
    ]
    texts = [row["text"] for row in found]
    assert texts == ["The keel keeps a ship upright.", "A sail catches the wind.", "Bread needs flour."]
    expected = library.encode_corpus(texts)
    np.testing.assert_array_equal(np.array([row["embedding"] for row in found], np.float32), expected)


def test_query_and_instruction_precede_the_text(grit: Grit, notes: Path, library: GritLM) -> None:
    first = "The keel keeps a ship upright."
    query = rows(grit("embed", notes, "--query").out)[0]["embedding"]
    np.testing.assert_allclose(query, library.encode_queries(first), atol=1e-6)
    chosen = rows(grit("embed", notes, "--instruction", "Find ships").out)[0]["embedding"]
    expected = library.encode(first, instruction=embedding_prompt("Find ships"))
    np.testing.assert_allclose(chosen, expected, atol=1e-6)
    assert not np.allclose(query, chosen)


def test_settings_of_the_model_and_their_overrides(grit: Grit, notes: Path, model_copy: Any) -> None:
    folder = model_copy()
    (folder / "grit.json").write_text(json.dumps({"document_instruction": "Represent it", "pooling": "cls"}))
    by_settings = grit("embed", notes, "-m", folder).out
    by_options = grit("embed", notes, "--instruction", "Represent it", "--pooling", "cls").out
    assert by_settings == by_options != grit("embed", notes).out


@pytest.mark.parametrize("option", [("--pooling", "lasttoken"), ("--attn", "cccc"), ("--max-length", "12")])
def test_options_reach_the_model(grit: Grit, notes: Path, option: tuple[str, str]) -> None:
    run = grit("embed", notes, *option, "--quiet")
    assert run.code == 0
    assert run.out != grit("embed", notes).out


@pytest.mark.parametrize(
    ("by", "places"),
    [("line", [(1, 1), (2, 2), (4, 4)]), ("paragraph", [(1, 2), (4, 4)]), ("file", [(1, 4)])],
)
def test_by(grit: Grit, notes: Path, by: str, places: list[tuple[int, int]]) -> None:
    run = grit("embed", notes, "--by", by)
    assert [(row["line"], row["end_line"]) for row in rows(run.out)] == places


def test_chunks_are_measured_in_the_models_tokens(grit: Grit, tmp_path: Path, library: GritLM) -> None:
    path = tmp_path / "long.txt"
    path.write_text("A sail catches the wind. " * 40)
    run = grit("embed", path, "--by", "chunk", "--chunk-size", "60", "--overlap", "20")
    texts = [row["text"] for row in rows(run.out)]
    lengths = [len(library.tokenizer.encode(text, add_special_tokens=False)) for text in texts]
    assert len(texts) > 3
    assert 20 < max(lengths) <= 60


def test_fields_of_json_lines_csv_and_gzip(grit: Grit, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"body": "one", "id": 1}\n\n{"body": "two"}\n')
    (tmp_path / "b.csv").write_text('id,body\n1,"three, with a comma"\n')
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(b'{"body": "four"}\n'))
    run = grit("embed", *sorted(tmp_path.iterdir()), "--field", "body")
    assert [row["text"] for row in rows(run.out)] == ["one", "two", "three, with a comma", "four"]
    piped = grit("embed", "-", "--field", "body", stdin='{"body": "one"}\n')
    np.testing.assert_allclose(rows(piped.out)[0]["embedding"], rows(run.out)[0]["embedding"], atol=1e-6)
    assert rows(piped.out)[0]["source"] == "-"


def test_rows_without_text_are_skipped_only_when_asked(grit: Grit, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n{"text": ""}\n{"text": "two"}\n')
    assert grit("embed", path).code == 1
    run = grit("embed", path, "--skip-empty")
    assert [row["line"] for row in rows(run.out)] == [1, 3]
    assert run.err == "note: skipped 1 row without text\n"


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        (name, dtype)
        for name in ("v.npy", "v.npz", "v.jsonl", "v.jsonl.gz", "v.parquet")
        for dtype in ("float32", "float16", "int8", "binary")
        if name != "v.npy" or dtype in {"float32", "float16"}  # it has no place for scales
    ],
)
def test_output_files(grit: Grit, notes: Path, tmp_path: Path, library: GritLM, name: str, dtype: str) -> None:
    if name == "v.parquet":
        pytest.importorskip("pyarrow")
    path = tmp_path / name
    run = grit("embed", notes, "-o", path, "--dtype", dtype)
    assert (run.code, run.out) == (0, "")
    assert run.err == f"note: 3 vectors of {library.embedding_size} numbers -> {path}\n"
    vectors, texts = read_vectors(path)
    found = vectors.decompress() if isinstance(vectors, CompressedVectors) else vectors
    expected = library.encode_corpus(
        ["The keel keeps a ship upright.", "A sail catches the wind.", "Bread needs flour."]
    )
    near = {"float32": 0.999999, "float16": 0.9999, "int8": 0.999, "binary": 0.6}[dtype]
    cosines = (found * expected).sum(1) / np.linalg.norm(found, axis=1)
    assert cosines.min() > near
    assert name == "v.npy" or (texts is not None and [text.line for text in texts] == [1, 2, 4])
    assert sorted(tmp_path.iterdir()) == sorted([notes, path])


def test_an_existing_file_is_replaced_unless_refused(grit: Grit, notes: Path, tmp_path: Path) -> None:
    path = tmp_path / "v.npy"
    path.write_bytes(b"old")
    refused = grit("embed", notes, "-o", path, "--no-overwrite")
    assert refused.code == 1
    assert "exists already" in refused.err
    assert path.read_bytes() == b"old"
    assert grit("embed", notes, "-o", path).code == 0
    assert len(np.load(path)) == 3


def test_quiet_says_nothing(grit: Grit, notes: Path, tmp_path: Path) -> None:
    run = grit("embed", notes, "-o", tmp_path / "v.npy", "--max-length", "12", "-q")
    assert (run.code, run.out, run.err) == (0, "", "")


def test_cut_texts_are_counted_once(
    grit: Grit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: GritLM
) -> None:
    monkeypatch.setattr("grit_mlx.model.batching.WINDOW_TEXTS", 4)  # three windows, each with a warning of its own
    path = tmp_path / "a.txt"
    path.write_text("short\n" + "A sail catches the wind. \n" * 9)
    run = grit("embed", path, "--max-length", "14")
    assert run.code == 0
    assert run.err == (
        "warning: 9 of 10 texts were truncated at 14 tokens. Raise --max-length, or embed complete texts with "
        "--long average or --by chunk.\n"
    )
    assert grit("embed", path, "--max-length", "14", "--long", "average").err == ""


def test_unicode_survives(grit: Grit, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("Grüße aus Zürich\n日本語 👩‍🚀\n", encoding="utf-8")
    run = grit("embed", path)
    assert [row["text"] for row in rows(run.out)] == ["Grüße aus Zürich", "日本語 👩‍🚀"]
    assert "日本語" in run.out  # itself, and no \u escapes


def test_a_line_of_megabytes(grit: Grit, tmp_path: Path) -> None:
    path = tmp_path / "huge.txt"
    path.write_text("word " * 1_000_000)
    run = grit("embed", path)
    assert run.code == 0
    assert len(rows(run.out)) == 1
    assert run.err.startswith("warning: 1 of 1 text was truncated at 512 tokens.")


def test_the_table_of_a_terminal(grit: Grit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "stdout_is_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    path = tmp_path / "a.txt"
    path.write_text(
        "[bold]no markup[/bold] \x1b[31mred\x07\n" + "A sail catches the wind and the ship moves on.\n" * 30
    )
    run = grit("embed", path)
    lines = run.out.splitlines()
    assert "[bold]no markup[/bold] \\x1b[31mred" in run.out
    assert "\x1b[31m" not in run.out
    assert max(map(len, lines)) <= 80
    assert sum(line.rstrip().endswith("1.000") for line in lines) == 20
    assert run.err == ("note: these are the first 20; to embed all: --output vectors.npz (or .npy, .jsonl, .parquet)\n")


def test_the_table_names_files_where_there_are_several(
    grit: Grit, notes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "stdout_is_terminal", lambda: True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "more.txt").write_text("More.\n")
    run = grit("embed", "notes.txt", "more.txt")
    assert "notes.txt:4" in run.out
    assert "more.txt:1" in run.out
    assert run.err == "note: to save the vectors: --output vectors.npz (or .npy, .jsonl, .parquet)\n"


def test_files_are_checked_before_the_model_is_loaded(
    grit: Grit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(embed_command, "load_model", never)
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "good"}\n' * 500 + "{bad\n")
    run = grit("embed", path, "-o", tmp_path / "v.npz")
    assert run.code == 1
    assert "line 501" in run.err
    assert grit("embed", tmp_path / "a.jsonl", "-o", tmp_path / "v.xyz").code == 1


def test_texts_are_paired_with_their_vectors_in_constant_memory() -> None:
    alive = 0
    most = 0

    def texts() -> Iterator[Text]:
        nonlocal alive, most
        for i in range(10_000):
            alive += 1
            most = max(most, alive)
            yield Text(str(i), "-", i, i)

    def encode(strings: Iterator[str]) -> Iterator[Any]:
        window = []
        for string in strings:
            window.append(string)
            if len(window) == 64:
                yield from (np.array([float(s)]) for s in window)
                window = []
        yield from (np.array([float(s)]) for s in window)

    for text, vector in inputs.paired(texts(), encode):
        assert float(text.text) == vector[0]
        alive -= 1
    assert alive == 0
    assert most == 64


def test_nothing_typed_is_an_error_that_says_where(grit: Grit) -> None:
    run = grit("embed", "-", stdin=b"\n  \n")
    assert (run.code, run.out) == (1, "")
    assert run.err == "error: There is no text in standard input.\n"


@pytest.mark.skipif(sys.platform == "win32", reason="no named pipes")
def test_named_pipes_are_read_once(grit: Grit, tmp_path: Path) -> None:
    import os
    import threading

    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=("one\ntwo\n",), daemon=True)
    writer.start()
    run = grit("embed", pipe)
    writer.join(10)
    assert [row["text"] for row in rows(run.out)] == ["one", "two"]
