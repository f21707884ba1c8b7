"""``grit embed`` and ``grit search``: fields of rows are kept, and a run that was stopped is continued."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow.dataset import dataset

from grit_mlx.errors import OutputError
from grit_mlx.vectors.journal import Journal
from tests.cli.conftest import run

ROWS = [
    {"id": "a1", "text": "A keel keeps a ship upright.", "topic": "ships", "year": 3},
    {"id": "a2", "text": "Bread is made of yeast.", "topic": "food", "year": None},
]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def test_json_lines_have_the_id(corpus: Path, tiny_model: Path, tmp_path: Path) -> None:
    assert run("embed", corpus, "-m", tiny_model, "-o", tmp_path / "v.jsonl", "-q").code == 0
    found = [json.loads(line) for line in (tmp_path / "v.jsonl").read_text().splitlines()]
    assert [row["id"] for row in found] == ["a1", "a2"] and "topic" not in found[0]


def test_fields_are_kept_in_every_format(corpus: Path, tiny_model: Path, tmp_path: Path) -> None:
    for suffix in ("jsonl", "npz", "parquet"):
        target = tmp_path / f"v.{suffix}"
        assert run("embed", corpus, "-m", tiny_model, "-o", target, "--keep", "topic", "--keep", "year", "-q").code == 0
    found = [json.loads(line) for line in (tmp_path / "v.jsonl").read_text().splitlines()]
    assert [(row["topic"], row["year"]) for row in found] == [("ships", 3), ("food", None)]
    arrays = np.load(tmp_path / "v.npz", allow_pickle=False)
    assert arrays["topic"].tolist() == ["ships", "food"] and arrays["year"].tolist() == ["3", ""]
    table = pq.read_table(tmp_path / "v.parquet")
    assert table["topic"].to_pylist() == ["ships", "food"] and table["year"].to_pylist() == ["3", None]


def test_a_field_is_the_id(corpus: Path, tiny_model: Path, tmp_path: Path) -> None:
    for suffix in ("jsonl", "npz", "parquet"):
        target = tmp_path / f"v.{suffix}"
        assert run("embed", corpus, "-m", tiny_model, "-o", target, "--id", "topic", "--keep", "year", "-q").code == 0
    found = [json.loads(line) for line in (tmp_path / "v.jsonl").read_text().splitlines()]
    assert [(row["id"], row["year"]) for row in found] == [("ships", 3), ("food", None)]
    assert np.load(tmp_path / "v.npz", allow_pickle=False)["id"].tolist() == ["ships", "food"]
    assert pq.read_table(tmp_path / "v.parquet")["id"].to_pylist() == ["ships", "food"]
    both = run("embed", corpus, "-m", tiny_model, "--id", "topic", "--keep", "id")
    assert both.code == 1 and "--id topic and --keep id would both be the id" in both.err
    taken = run("embed", corpus, "-m", tiny_model, "-o", tmp_path / "v.parquet", "--keep", "text")
    assert taken.code == 1 and "has a column 'text' of its own: leave it out of --keep" in taken.err


def test_a_folder_of_parquet_files_to_another(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Spark writes them: with hidden files, a file that says it is done, and folders by a column."""
    data, target = tmp_path / "data", tmp_path / "vectors"
    for number in range(3):
        path = data / f"lang={number % 2}" / f"part-{number:05}.snappy.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [{"key": 10 * number + i, "body": f"A ship of number {i}"} for i in range(5)]
        pq.write_table(pa.Table.from_pylist(rows), path)
    (data / "_SUCCESS").touch()
    (data / "lang=0" / "_temporary.parquet").write_bytes(b"half")
    monkeypatch.setattr("grit_mlx.vectors.files._FILE_BYTES", 32 * 4 * 6)
    monkeypatch.setattr("grit_mlx.cli.embed._WRITTEN_TEXTS", 3)
    command = ("embed", data, "--field", "body", "--id", "key", "-m", tiny_model)
    assert run(*command, "-o", f"{target}/", "-q").code == 0
    assert [path.name for path in sorted(target.iterdir())] == [f"part-{i:05}.parquet" for i in range(3)]
    found = dataset(target).to_table().to_pylist()
    assert [row["id"] for row in found] == [10 * n + i for n in (0, 2, 1) for i in range(5)]
    again = run(*command, "-o", f"{target}/")
    assert again.code == 1 and "it holds files" in again.err
    by_pattern = run("embed", data / "*" / "part-*.parquet", *command[2:], "-o", tmp_path / "v.parquet", "-q")
    assert by_pattern.code == 0
    assert pq.read_table(tmp_path / "v.parquet")["embedding"].to_pylist() == [row["embedding"] for row in found]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "v.parquet", "vectors"]


@pytest.mark.parametrize("odd", [None, "x", 1.5, True, 1 << 63])
def test_integers_stay_integers_if_all_are(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, odd: object
) -> None:
    """Whenever the first row comes that has none: before a group of rows is written, and after files were."""
    from grit_mlx.vectors import files

    monkeypatch.setattr(files, "_ROW_GROUP_ROWS", 4)
    monkeypatch.setattr(files, "_FILE_BYTES", 32 * 4 * 12)
    monkeypatch.setattr("grit_mlx.cli.embed._WRITTEN_TEXTS", 2)
    big = (1 << 63) - 1

    def written(name: str, rows: list[object]) -> Path:
        lines = [json.dumps({"text": f"A ship, {i}", "n": n, "whole": -i * big // 30}) for i, n in enumerate(rows)]
        (tmp_path / "rows.jsonl").write_text("\n".join(lines))
        target = tmp_path / name
        output = target if target.suffix else f"{target}/"
        command = ("embed", tmp_path / "rows.jsonl", "-m", tiny_model, "--id", "whole", "--keep", "n")
        assert run(*command, "-o", output, "-q").code == 0
        return target

    whole: list[object] = list(range(30))
    ids = [-i * big // 30 for i in range(30)]
    for at in (0, 7, 29):
        rows = [*whole[:at], odd, *whole[at + 1 :]]
        expected = [None if n is None else n if isinstance(n, str) else json.dumps(n) for n in rows]
        for name in (f"{at}.parquet", f"{at}"):
            table = dataset(written(name, rows)).to_table()
            assert table["n"].to_pylist() == expected and table["id"].to_pylist() == ids
            assert table["id"].type == pa.int64() and table["n"].type == pa.string()
        arrays = np.load(written(f"{at}.npz", rows))
        assert arrays["n"].tolist() == [one or "" for one in expected] and arrays["id"].tolist() == ids
    table = pq.read_table(written("v.parquet", whole))
    assert table["n"].to_pylist() == whole and table["n"].type == pa.int64()
    arrays = np.load(written("v.npz", whole))
    assert arrays["n"].dtype == np.int64 and arrays["n"].tolist() == whole and arrays["id"].tolist() == ids


def test_search_prints_the_id(corpus: Path, tiny_model: Path) -> None:
    result = run("search", "keel", corpus, "-m", tiny_model, "--json", "--keep", "topic", "-q")
    found = [json.loads(line) for line in result.out.splitlines()]
    assert {(row["id"], row["topic"]) for row in found} == {("a1", "ships"), ("a2", "food")}


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_field_that_is_not_there(corpus: Path, tiny_model: Path, tmp_path: Path, suffix: str) -> None:
    result = run("embed", corpus, "-m", tiny_model, "-o", tmp_path / f"v.{suffix}", "--keep", "titel")
    assert result.code == 1 and "line 1: there is no field 'titel'; the fields are 'id'" in result.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.jsonl"]


# Interruptions


def texts(tmp_path: Path, count: int) -> Path:
    path = tmp_path / "many.txt"
    path.write_text("".join(f"text number {i} of many, about a keel\n" for i in range(count)))
    return path


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_run_that_was_stopped_is_continued(tiny_model: Path, tmp_path: Path, how: signal.Signals) -> None:
    many = texts(tmp_path, 2500)
    code = "import sys; from grit_mlx.cli.main import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "embed", str(many), "-m", str(tiny_model), "-o", "v.npy"]
    journal = tmp_path / ".v.npy.part" / "parts.u32"
    process = subprocess.Popen(command, cwd=tmp_path, env={**os.environ}, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not (journal.exists() and journal.stat().st_size) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    if process.poll() is None:
        process.send_signal(how)
    process.communicate(timeout=60)
    assert not (tmp_path / "v.npy").exists() and journal.stat().st_size
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert again.returncode == 0 and "embedded already" in again.stderr
    assert not journal.parent.exists()
    whole = subprocess.run([*command[:-1], "w.npy"], cwd=tmp_path, capture_output=True, timeout=300, check=False)
    assert whole.returncode == 0
    assert (tmp_path / "v.npy").read_bytes() == (tmp_path / "w.npy").read_bytes()


def test_a_journal_of_other_texts_or_settings_is_not_used(tmp_path: Path) -> None:
    output, vectors = tmp_path / "v.npz", np.arange(6, dtype=np.float32).reshape(2, 3)

    def opened(texts: int) -> Journal:
        return Journal(output, {"texts": texts}, 3, part=2)

    first = opened(1)
    assert (first.done, first.changed) == (0, [])
    with pytest.raises(OutputError, match="is writing to"):
        opened(1)
    first.append(vectors)
    first.append(-vectors)
    first.close()
    same = opened(1)
    assert same.done == 4 and [vector[0] for vector in same.vectors()] == [0, 3, 0, -3]
    same.close()
    folder = tmp_path / ".v.npz.part"
    damage: dict[str, Callable[[bytes], bytes]] = {
        "parts.u32": lambda content: content[:-1],  # killed before the checksum was complete
        "vectors.f32": lambda content: content[:-1] + b"\1",  # as a machine leaves it that lost its power
    }
    for name, change in damage.items():
        (folder / name).write_bytes(change((folder / name).read_bytes()))
        again = opened(1)
        assert again.done == 2 and [vector[0] for vector in again.vectors()] == [0, 3]
        again.append(-vectors)
        again.close()
    other = opened(2)
    assert (other.done, other.changed) == (0, ["texts"])
    other.close()
    assert not folder.exists()
