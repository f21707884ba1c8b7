"""Indexing that is killed, doubled or starved of disk: what readers see stays whole, and the next run finishes it."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from grit_mlx.errors import StoreBusyError
from grit_mlx.files.lock import writing
from grit_mlx.rag import Passage, Store, indexing
from grit_mlx.rag.table import PassageTable
from tests.rag.conftest import rows_of

KILLS = int(os.environ.get("GRIT_TEST_KILLS", "4"))

# Forks a process for each line "ACTION EVENT DELAY" on its input: it indexes or purges, reports each step, and is
# killed DELAY seconds after that many steps, or ends before. Forking spares ten starts of Python; lancedb, which starts
# threads when it is imported, is left to the forked ones, and so is loading the model.
KILLER = """
import os, signal, sys, time
from grit_mlx import GritLM
import grit_mlx.gritlm, mlx_lm, transformers
from grit_mlx.progress import Progress

model_folder, store_folder, files = sys.argv[1:]

def act(action, report):
    from grit_mlx.rag import Store, indexing, table
    indexing._ROWS_AT_ONCE, indexing._ROWS_UNWRITTEN = 8, 16
    for name in ("create", "add", "delete", "update_text_index", "rewrite", "purge", "publish", "write_state"):
        def stepped(self, *args, _original=getattr(table.PassageTable, name), **options):
            os.write(report, b".")
            result = _original(self, *args, **options)
            os.write(report, b".")
            return result
        setattr(table.PassageTable, name, stepped)
    store = Store(store_folder, GritLM(model_folder), passage_tokens=64, overlap=0)
    store.index([files]) if action == "index" else store.remove([files + "/secret.txt"], purge=True)

for line in sys.stdin:
    action, events, delay = line.split()[0], int(line.split()[1]), float(line.split()[2])
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.close(read)
        try:
            act(action, write)
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(3)
    os.close(write)
    seen = 0
    while seen < events and os.read(read, 1):
        seen += 1
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    os.close(read)
    print("killed" if os.WIFSIGNALED(status) else os.WEXITSTATUS(status), seen, flush=True)
"""


def text_of(name: str, version: int) -> str:
    return "\n\n".join(f"Paragraph {i} of {name}, version {version}: {'word ' * (i % 7)}end." for i in range(12))


@pytest.fixture
def killer(tiny_model: Path, tmp_path: Path) -> Iterator[Callable[..., tuple[str, int]]]:
    command = [sys.executable, "-c", KILLER, tiny_model, tmp_path / "store", tmp_path / "files"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.Popen(
        list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdin is not None and process.stdout is not None

    def kill(events: int, delay: float, action: str = "index") -> tuple[str, int]:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(f"{action} {events} {delay}\n")
        process.stdin.flush()
        outcome, seen = process.stdout.readline().split()
        return outcome, int(seen)

    yield kill
    process.stdin.close()
    process.wait(30)


def test_killed_at_any_point(
    make_store: Callable[..., Store], tmp_path: Path, killer: Callable[..., tuple[str, int]]
) -> None:
    files = tmp_path / "files"
    files.mkdir()
    for i in range(6):
        (files / f"{i}.txt").write_text(text_of(str(i), 1))
    make_store().index([files])
    old = rows_of(make_store())
    # Changed, deleted, new and unchanged files, so that every kind of step is there to be interrupted.
    for name in ("0", "1", "2"):
        (files / f"{name}.txt").write_text(text_of(name, 2))
    (files / "3.txt").unlink()
    for name in ("a", "b", "c", "d"):
        (files / f"{name}.txt").write_text(text_of(name, 1))
    wanted = Store(tmp_path / "whole", make_store().model, passage_tokens=64, overlap=0)
    wanted.index([files])
    new = rows_of(wanted)
    chance = random.Random(5)
    shutil.copytree(tmp_path / "store", tmp_path / "old")
    outcomes = []
    for _ in range(KILLS):
        outcomes.append(killer(chance.randrange(1, 14), chance.random() * 0.02))
        rows = rows_of(make_store())
        assert rows in (old, new), outcomes
        if rows == new:  # there is nothing left to interrupt
            shutil.rmtree(tmp_path / "store")
            shutil.copytree(tmp_path / "old", tmp_path / "store")
    assert [outcome for outcome, _ in outcomes].count("killed") >= KILLS // 2, outcomes
    assert not {outcome for outcome, _ in outcomes} - {"killed", "0"}, outcomes
    make_store().index([files])
    store = make_store()
    assert rows_of(store) == new
    assert len({row.id for row in store.passages()}) == len(new)
    assert store.unrelated is not None
    assert [hit.passage.text for hit in store.search("version 2 Paragraph 11", top=3)]
    assert store.verify() == []


def test_a_first_run_that_was_killed(
    make_store: Callable[..., Store], tmp_path: Path, killer: Callable[..., tuple[str, int]]
) -> None:
    files = tmp_path / "files"
    files.mkdir()
    for i in range(8):
        (files / f"{i}.txt").write_text(text_of(str(i), 1))
    assert killer(6, 0.0)[0] == "killed"
    assert not make_store().exists  # nothing was published
    report = make_store().index([files])
    assert 0 < report.passages < report.total
    rows = rows_of(make_store())
    shutil.rmtree(tmp_path / "store")
    make_store().index([files])
    assert rows_of(make_store()) == rows


def test_killed_while_purging(
    make_store: Callable[..., Store], tmp_path: Path, killer: Callable[..., tuple[str, int]]
) -> None:
    """Nothing else is lost, and what was to go is gone from the disk after the next run of any kind."""
    files = tmp_path / "files"
    files.mkdir()
    for i in range(4):
        (files / f"{i}.txt").write_text(text_of(str(i), 1))
    make_store().index([files])  # an older version, too
    (files / "secret.txt").write_text("The password is xyzzyplugh.")
    make_store().index([files], cache_ahead="all", approximate=True)
    old = rows_of(make_store())
    new = [row for row in old if not row[0].endswith("secret.txt")]
    shutil.copytree(tmp_path / "store", tmp_path / "old")
    (files / "secret.txt").unlink()
    (tmp_path / "other.txt").write_text("Another file.")
    chance = random.Random(7)
    outcomes = []
    for kill in range(2 * KILLS):
        outcomes.append(killer(chance.randrange(2, 16), chance.random() * 0.05, "purge"))
        store = make_store()
        assert rows_of(store) in (old, new), outcomes
        assert store.search("Paragraph 11", top=3)
        assert not [
            problem for problem in store.verify() if "secret.txt" not in problem and "is missing" not in problem
        ]
        if kill % 2:
            make_store().remove([], purge=True)
        else:
            make_store().index([tmp_path / "other.txt"])
        rows = [row for row in rows_of(make_store()) if row[0] != str(tmp_path / "other.txt")]
        if outcomes[-1][1] < 2:  # before it was noted what to purge
            assert rows in (old, new), outcomes
        else:
            assert rows == new, outcomes
            left = [path.read_bytes() for path in (tmp_path / "store").rglob("*") if path.is_file()]
            assert not [content for content in left if b"xyzzyplugh" in content], outcomes
        assert make_store().stats().caches.files >= len(new)
        shutil.rmtree(tmp_path / "store")
        shutil.copytree(tmp_path / "old", tmp_path / "store")
    assert [outcome for outcome, _ in outcomes].count("killed") >= KILLS, outcomes
    assert not {outcome for outcome, _ in outcomes} - {"killed", "0"}, outcomes


@pytest.fixture
def stopped(make_store: Callable[..., Store], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose second run of indexing was stopped in the middle of its second file."""
    files = tmp_path / "files"
    files.mkdir()
    for name in ("a", "b", "c"):
        (files / f"{name}.txt").write_text(text_of(name, 1))
    make_store().index([files])
    for name in ("a", "b", "d"):
        (files / f"{name}.txt").write_text(text_of(name, 2))
    original = Store._read
    monkeypatch.setattr(indexing, "_ROWS_AT_ONCE", 8)

    def stop(self: Store, path: Path, *how: Any, **others: Any) -> Iterator[Passage]:
        for number, passage in enumerate(original(self, path, *how, **others)):
            if path.name == "b.txt" and number == 9:
                raise KeyboardInterrupt
            yield passage

    with monkeypatch.context() as patch:
        patch.setattr(Store, "_read", stop)
        with pytest.raises(KeyboardInterrupt):
            make_store().index([files])
    left = [row.source for row in PassageTable(make_store().uri, published=False).passages_where()]
    assert len(left) > len(make_store())  # there is something that must not be published
    return files


def test_another_folder_publishes_no_halves(make_store: Callable[..., Store], tmp_path: Path, stopped: Path) -> None:
    before = rows_of(make_store())
    other = tmp_path / "other.txt"
    other.write_text("Another file.")
    make_store().index([other])
    assert rows_of(make_store()) == sorted([*before, (str(other), 1, 1, "Another file.")])
    make_store().index([stopped])
    texts = {content for *_, content in rows_of(make_store())}
    assert "Paragraph 11 of b, version 2: word word word word end." in " ".join(texts)
    assert not [text for text in texts if " of a, version 1" in text]


def test_removing_publishes_no_halves(make_store: Callable[..., Store], stopped: Path) -> None:
    before = rows_of(make_store())
    make_store().remove([str(stopped / "c.txt")])
    assert rows_of(make_store()) == [row for row in before if not row[0].endswith("c.txt")]


def test_a_second_writer_is_told_or_waits(make_store: Callable[..., Store], folder: Path) -> None:
    make_store().index([folder])
    lock = Path(make_store().uri) / "writer.lock"
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with writing(lock.parent, lock=lock, busy=StoreBusyError):
            held.set()
            release.wait(30)

    other = threading.Thread(target=hold)
    other.start()
    try:
        assert held.wait(30)
        with pytest.raises(StoreBusyError, match=rf"Process {os.getpid()} is writing to"):
            make_store().index([folder])
        assert make_store().search("ship")  # readers do not wait
        told: list[str] = []

        def waited(holder: str) -> None:
            told.append(holder)
            release.set()

        (folder / "late.txt").write_text("Written while waiting.")
        assert make_store().index([folder], wait=30, on_wait=waited).added == 1
        assert told == [f"process {os.getpid()}"]
    finally:
        release.set()
        other.join(30)


FULL = """
import resource, sys
from grit_mlx import GritLM
from grit_mlx.errors import OutputError
from grit_mlx.rag import Store
from pathlib import Path
model, store, files = sys.argv[1:]
store = Store(store, GritLM(model), passage_tokens=64, overlap=0)
# No file may grow beyond this: what the system then says is one step from what it says of a full disk.
resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))
try:
    store.index([files])
except OutputError as error:
    print(error)
"""


def test_a_full_disk_is_a_sentence_and_no_damage(
    make_store: Callable[..., Store], tiny_model: Path, folder: Path, tmp_path: Path
) -> None:
    make_store().index([folder])
    before = rows_of(make_store())
    for i in range(8):
        (folder / f"more-{i}.txt").write_text(text_of(str(i), 1))
    arguments = [sys.executable, "-c", FULL, str(tiny_model), str(tmp_path / "store"), str(folder)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    result = subprocess.run(arguments, capture_output=True, text=True, timeout=120, env=environment)
    assert "the disk is full" in result.stdout and "resumes where it stopped" in result.stdout, result.stderr
    assert rows_of(make_store()) == before
    assert make_store().index([folder]).total > len(before)
