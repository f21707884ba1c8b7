"""Vectors to files that other programs read, and that a failure leaves neither half a file nor a damaged old one."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as parquet
import pytest

from grit_mlx.errors import ArgumentError, OutputError
from grit_mlx.text.splitting import Text
from grit_mlx.vectors.compression import DTYPES, CompressedVectors, compress
from grit_mlx.vectors.files import json_lines, open_writer
from tests.vectors.conftest import read_vectors

SUFFIXES = (".npy", ".npz", ".jsonl", ".jsonl.gz", ".parquet")
Array = npt.NDArray[np.float32]


def sample(rows: int = 7, dimensions: int = 13) -> tuple[Array, list[Text]]:
    vectors = np.random.default_rng(0).standard_normal((rows, dimensions)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    words = ["plain", "é\u2028\n\t\"'\\", "\U0001f600" * 40]
    return vectors, [Text(words[row % 3], "a/b.txt", row + 1, row + 2) for row in range(rows)]


def write(path: Path, dtype: str = "float32", *, texts: bool = True, batch: int = 3) -> None:
    vectors, all_texts = sample()
    with open_writer(path, dtype=dtype) as writer:
        for start in range(0, len(vectors), batch):
            rows = slice(start, start + batch)
            writer.write(vectors[rows], all_texts[rows] if texts else None)
        assert writer.rows == len(vectors)


def numbers(stored: npt.NDArray[Any] | CompressedVectors) -> npt.NDArray[Any]:
    return stored.decompress() if isinstance(stored, CompressedVectors) else stored


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- round trips --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("texts", [True, False], ids=["texts", "bare"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_round_trip(tmp_path: Path, suffix: str, dtype: str, texts: bool) -> None:
    path = tmp_path / f"vectors{suffix}"
    if suffix == ".npy" and dtype in ("int8", "binary"):
        with pytest.raises(ArgumentError, match=r"Write \.npz, \.jsonl, \.jsonl\.gz or \.parquet\."):
            write(path, dtype)
        assert listing(tmp_path) == []
        return
    write(path, dtype, texts=texts)
    assert listing(tmp_path) == [path.name]
    vectors, expected_texts = sample()
    stored, read_texts = read_vectors(path)
    expected = compress(vectors, dtype)
    np.testing.assert_array_equal(numbers(stored), numbers(expected))
    if isinstance(expected, CompressedVectors):
        assert isinstance(stored, CompressedVectors)
        assert (stored.dtype, stored.dimensions) == (dtype, 13)
    else:
        assert numbers(stored).dtype == expected.dtype
    assert read_texts == (expected_texts if texts and suffix != ".npy" else None)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_batches_leave_no_trace(tmp_path: Path, suffix: str) -> None:
    for batch in (1, 100):
        write(tmp_path / f"{batch}{suffix}", batch=batch)
    one, all_at_once = (read_vectors(tmp_path / f"{batch}{suffix}") for batch in (1, 100))
    np.testing.assert_array_equal(numbers(one[0]), numbers(all_at_once[0]))
    assert one[1] == all_at_once[1]
    if suffix != ".parquet":
        assert (tmp_path / f"1{suffix}").read_bytes() == (tmp_path / f"100{suffix}").read_bytes()


def test_other_programs_read_them(tmp_path: Path) -> None:
    vectors, texts = sample()
    for suffix in SUFFIXES:
        write(tmp_path / f"v{suffix}")
    np.testing.assert_array_equal(np.load(tmp_path / "v.npy", allow_pickle=False), vectors)
    assert np.load(tmp_path / "v.npy", mmap_mode="r").shape == vectors.shape
    with np.load(tmp_path / "v.npz", allow_pickle=False) as arrays:
        assert arrays["texts"].tolist() == [text.text for text in texts]
        assert arrays["sources"].tolist() == ["a/b.txt"] * 7
        assert arrays["lines"].tolist() == list(range(1, 8))
    first = json.loads((tmp_path / "v.jsonl").read_text().split("\n")[0])
    assert list(first) == ["index", "source", "line", "end_line", "text", "embedding"]
    schema = parquet.read_schema(tmp_path / "v.parquet")
    assert schema.names == ["text", "source", "line", "end_line", "embedding"]
    assert schema.field("embedding").type.list_size == 13


def test_row_groups_are_gathered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grit_mlx.vectors.files._ROW_GROUP_ROWS", 4)
    write(tmp_path / "v.parquet", batch=1)
    assert parquet.ParquetFile(tmp_path / "v.parquet").num_row_groups == 2
    np.testing.assert_array_equal(numbers(read_vectors(tmp_path / "v.parquet")[0]), sample()[0])


def test_json_lines_hold_short_numbers_that_read_back() -> None:
    vectors = np.array([[0.1, 1e-30, -1, 0]], np.float32)
    (line,) = json_lines(vectors, first=5)
    assert json.loads(line)["index"] == 5
    assert np.array_equal(np.array(json.loads(line)["embedding"], np.float32), vectors[0])
    half = np.random.default_rng(0).standard_normal((20, 50)).astype(np.float16)
    back = [json.loads(line)["embedding"] for line in json_lines(half)]
    assert np.array_equal(np.array(back, np.float16), half)


@pytest.mark.parametrize("suffix", [".npz", ".jsonl", ".parquet"])
def test_names_that_are_not_utf8(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"v{suffix}"
    with open_writer(path) as writer:
        writer.write([[1.0]], [Text("a", "caf\udce9.txt", 1, 1)])
    texts = read_vectors(path)[1]
    assert texts is not None
    assert texts[0].source == "caf?.txt"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_memory_does_not_grow_with_the_rows(tmp_path: Path, suffix: str) -> None:
    batch = np.full((100, 16), 0.25, np.float32)
    texts = [Text("text", "source", 1, 1)] * 100
    with open_writer(tmp_path / f"warm{suffix}") as writer:  # imports count once
        writer.write(batch, texts)

    def peak(batches: int) -> int:
        tracemalloc.start()
        with open_writer(tmp_path / f"v{suffix}") as writer:
            for _ in range(batches):
                writer.write(batch, texts)
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    assert peak(150) < peak(50) + 500_000  # bytes; the vectors of the difference alone are 640,000


# --- what cannot be written ---------------------------------------------------------------------------------


def test_bad_targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.npy").mkdir()
    os.mkfifo(tmp_path / "pipe.npy")
    cases = {
        "v.txt": "name a file that ends in .npy, .npz, .jsonl, .jsonl.gz or .parquet, or a folder, in /.",
        "v": "name a file that ends in",
        "missing/v.npy": "its folder does not exist. Create it first.",
        "file/v.npy": "a part of its path is a file, not a folder.",
        "folder.npy": "it is a folder. Name a file in it.",
        "pipe.npy": "it is a device or a pipe, which a file cannot replace.",
        "a\0b.npy": "it is not a file name.",
        "a" * 5000 + ".npy": "the name is too long.",
    }
    monkeypatch.chdir(tmp_path)
    before = listing(tmp_path)
    for name, message in cases.items():
        with pytest.raises(OutputError) as caught, open_writer(name):
            pytest.fail(f"{name!r} was accepted")
        assert str(caught.value).startswith("Cannot write ")
        assert message in str(caught.value)
        assert listing(tmp_path) == before


def test_existing_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "v.npy"
    path.write_bytes(b"old")
    with pytest.raises(OutputError, match="it exists already"), open_writer(path, overwrite=False):
        pass
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anything
    with pytest.raises(OutputError, match="permission denied"), open_writer(path):
        pass
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    path = tmp_path / f"v{suffix}"
    path.write_bytes(b"old")

    class FullDisk(io.FileIO):
        def write(self, _: object, /) -> NoReturn:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda self, mode: io.BufferedWriter(FullDisk(self, mode)))
        with pytest.raises(OutputError, match="the disk is full"), open_writer(path) as writer:
            for _ in range(50):
                writer.write(*sample())
    assert path.read_bytes() == b"old"
    assert listing(tmp_path) == [path.name]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1), ValueError("x"), ConnectionError("net")])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_failure_leaves_all_as_it_was(tmp_path: Path, suffix: str, error: BaseException) -> None:
    path = tmp_path / f"v{suffix}"
    path.write_bytes(b"old")
    with pytest.raises(type(error)), open_writer(path) as writer:
        writer.write(*sample())
        raise error
    assert path.read_bytes() == b"old"
    assert listing(tmp_path) == [path.name]


def test_a_signal_turned_into_an_exception_leaves_nothing(tmp_path: Path) -> None:
    code = """
import signal, sys, time
from grit_mlx.vectors.files import open_writer
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
with open_writer(sys.argv[1]) as writer:
    writer.write([[1.0]])
    print("written", flush=True)
    while True:  # not signal.pause(): a signal just before it would be slept through
        time.sleep(0.05)
"""
    command = [sys.executable, "-c", code, str(tmp_path / "v.npy")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "written\n"
        assert len(listing(tmp_path)) == 1
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 143
    assert listing(tmp_path) == []


def test_nothing_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="there are no vectors to write"), open_writer(tmp_path / "v.npy") as writer:
        writer.write(np.empty((0, 4), np.float32))
    assert listing(tmp_path) == []


def test_batches_that_do_not_fit_together(tmp_path: Path) -> None:
    vectors, texts = sample()
    cases: list[tuple[npt.ArrayLike, list[Text] | None, str]] = [
        (vectors[:, :5], texts, "After vectors of 13 dimensions came some of 5"),
        (vectors, None, "Either all batches come with texts or none does"),
        (vectors, texts[:2], "There are 7 vectors, but 2 texts"),
        (vectors * np.nan, texts, "NaN or infinity"),
    ]
    for batch, batch_texts, message in cases:
        with pytest.raises(ArgumentError, match=message), open_writer(tmp_path / "v.jsonl") as writer:
            writer.write(vectors, texts)
            writer.write(batch, batch_texts)
    with pytest.raises(ArgumentError, match="use one of"), open_writer(tmp_path / "v.npz", dtype="int4"):
        pass
    assert listing(tmp_path) == []


def test_texts_too_uneven_for_an_array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grit_mlx.vectors.files._UNICODE_LIMIT_BYTES", 1000)
    with pytest.raises(OutputError, match=r"Write \.parquet or \.jsonl instead"):
        write(tmp_path / "v.npz")
