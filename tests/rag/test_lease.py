"""The lease of a store that several machines share: one of them writes, and a dead one is succeeded."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from lancedb.db import LanceDBConnection

from grit_mlx.errors import StoreBusyError, StoreError
from grit_mlx.rag import lease as module
from grit_mlx.rag.database import lance_errors
from grit_mlx.rag.lease import Lease
from grit_mlx.rag.table import PassageTable

# A machine of its own: tries at a given moment to have the lease, and counts in a file while it has it.
WRITER = """
import sys, time
from pathlib import Path
from typing import Any
from grit_mlx.errors import StoreBusyError
from grit_mlx.rag import lease
lease._POLLED = 0.05

uri, folder, start, rounds, wait = sys.argv[1], Path(sys.argv[2]), *map(float, sys.argv[3:])
counter = folder.parent / "counter"
time.sleep(max(0, start - time.time()))
for _ in range(int(rounds)):
    try:
        with lease.Lease(uri, folder).held(wait=wait):
            count = int(counter.read_text())
            time.sleep(0.02)  # in which another writer's count would be lost
            counter.write_text(str(count + 1))
            print("wrote", flush=True)
    except StoreBusyError:
        print("busy", flush=True)
"""


@pytest.fixture
def machines(tmp_path: Path) -> list[Path]:
    folders = [tmp_path / name for name in ("one", "two", "three")]
    for folder in folders:
        folder.mkdir()
    return folders


@pytest.fixture(autouse=True)
def _in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_EXPIRES", 1.0)
    monkeypatch.setattr(module, "_RENEWED", 0.2)
    monkeypatch.setattr(module, "_POLLED", 0.05)


def started(uri: str, folder: Path, start: float, *, rounds: int, wait: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, uri, str(folder), str(start), str(rounds), str(wait)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def test_processes_of_several_machines_write_in_turn(tmp_path: Path, machines: list[Path]) -> None:
    (tmp_path / "counter").write_text("0")
    start = time.time() + 5
    writers = [started(str(tmp_path / "store"), machine, start, rounds=4, wait=60) for machine in machines]
    said = [writer.communicate(timeout=120)[0].split() for writer in writers]
    assert said == [["wrote"] * 4] * 3
    assert (tmp_path / "counter").read_text() == "12"


def test_one_of_those_that_come_at_once(tmp_path: Path, machines: list[Path]) -> None:
    with Lease(str(tmp_path / "store"), machines[0]).held():
        pass
    (tmp_path / "counter").write_text("0")
    start = time.time() + 5
    writers = [started(str(tmp_path / "store"), machine, start, rounds=1, wait=0) for machine in machines]
    said = [writer.communicate(timeout=120)[0].split() for writer in writers]
    wrote = sum(words == ["wrote"] for words in said)
    assert wrote >= 1 and (tmp_path / "counter").read_text() == str(wrote), said


def test_two_machines_that_make_a_store_at_once(
    tmp_path: Path, machines: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a bucket the second to make the lease's table replaces it: who has the lease keeps it, and renews it."""
    uri = str(tmp_path / "store")
    mine, other = Lease(uri, machines[0]), Lease(uri, machines[1])
    with mine.held():
        create: Any = LanceDBConnection.create_table
        with monkeypatch.context() as late:
            late.setattr(module, "table_names", lambda _database: [])
            late.setattr(LanceDBConnection, "create_table", lambda *args: create(*args, mode="overwrite"))
            with pytest.raises(StoreBusyError, match="is writing to"):
                other._acquire(0, None)
        with suppress(StoreError):  # of the table as it was before
            mine._renew()
        assert mine._renew()
    with other.held():
        pass


def test_who_is_writing(tmp_path: Path, machines: list[Path]) -> None:
    uri = str(tmp_path / "store")
    assert Lease(uri, machines[0]).holder() is None
    with Lease(uri, machines[0]).held():
        time.sleep(1.5)  # longer than it lasts without a renewal
        assert (Lease(uri, machines[1]).holder() or "").startswith(f"process {os.getpid()} on ")
        with (
            pytest.raises(
                StoreBusyError, match=rf"Process {os.getpid()} on .+ is writing to .*store\. Stop it, or wait"
            ),
            Lease(uri, machines[1]).held(),
        ):
            pass
    assert Lease(uri, machines[0]).holder() is None
    with Lease(uri, machines[1]).held(), pytest.raises(StoreBusyError), Lease(uri, machines[0]).held(wait=0.2):
        pass


def test_a_dead_writer_of_this_machine_is_succeeded_at_once(tmp_path: Path, machines: list[Path]) -> None:
    uri = str(tmp_path / "store")
    dead = Lease(uri, machines[0])
    dead._acquire(0.0, None)
    with Lease(uri, machines[0]).held():  # the lock of a file keeps living ones apart
        pass


def test_a_dead_writer_of_another_machine_is_succeeded_when_its_lease_ends(
    tmp_path: Path, machines: list[Path]
) -> None:
    uri = str(tmp_path / "store")
    dead = Lease(uri, machines[0])
    dead._acquire(0.0, None)
    with pytest.raises(StoreBusyError), Lease(uri, machines[1]).held():  # for all it knows
        pass
    time.sleep(1.1)
    told: list[str] = []
    with Lease(uri, machines[1]).held(on_wait=told.append):
        assert told and "seems to have died" in told[0]
        # It was suspended, not dead, and goes on.
        table = PassageTable(uri, published=False, check=dead.check)
        with pytest.raises(StoreBusyError, match="another one is writing to"):
            table.create(4, {})
        dead._release()  # which is not its own to give back
        assert Lease(uri, machines[2]).holder()


@pytest.mark.parametrize("ahead", [-1e6, 1e6])
def test_clocks_that_differ(tmp_path: Path, machines: list[Path], ahead: float) -> None:
    """A living writer keeps its lease, whatever its clock says."""
    uri = str(tmp_path / "store")
    held = Lease(uri, machines[0], clock=lambda: time.time() + ahead).held()
    with held, pytest.raises(StoreBusyError), Lease(uri, machines[1]).held():
        pass


SAID = {
    'Status { status: 404, body: Some("<Error><Code>NoSuchBucket</Code>': "its bucket does not exist",
    "Failed to get AWS credentials: ProviderError(": "there are no credentials",
    "Status { status: 403, <Error><Code>InvalidAccessKeyId</Code>": "the credentials are not accepted",
    "Status { status: 403, <Error><Code>AccessDenied</Code>": "the credentials do not permit it",
    "uri: Some(http://127.0.0.1:9/forbidden-timed out?list-type=2), retry_timeout: 180s, HttpError { kind: Connect": (
        "the server does not answer"
    ),
    "uri: Some(http://a/forbidden/timeout), retry_timeout: 180s, Object at location x not found": "damaged or missing",
    "HttpError { kind: Unknown, source: reqwest::Error { kind: Builder, source: BadScheme } }": "is not https",
    "Status { status: 501, <Error><Code>NotImplemented</Code>": "conditional writes",
}


@pytest.mark.parametrize("said", SAID)
def test_errors_of_buckets_are_sentences(said: str) -> None:
    with pytest.raises(StoreError) as caught, lance_errors("s3://bucket/store"):
        raise RuntimeError(f"Invalid input, Failed: {said} {{ }}, location: Location {{ file: '/x.rs' }}")
    message = str(caught.value)
    assert SAID[said] in message and "\n" not in message and ".rs" not in message
