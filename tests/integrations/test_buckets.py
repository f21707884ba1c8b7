"""Stores in a bucket: a real server of S3's interface (moto), real processes, some of them killed."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from grit_mlx.rag.lease import Lease
from tests.integrations.moto_server import MOTO, Bucket, address, bucket
from tests.integrations.remote import notes_in, serving

__all__ = ["address", "bucket"]  # fixtures


@pytest.fixture
def houses(tmp_path: Path) -> Path:
    return notes_in(tmp_path / "files", count=30, sentences=40)


def test_indexed_on_one_machine_and_asked_on_another(bucket: Bucket, houses: Path) -> None:
    store = "s3://notes/a/store"
    (houses / "keel.md").write_text("A keel keeps a ship upright.")
    code, said = bucket.run("index", str(houses), "--store", store)
    assert code == 0 and "31 new" in said, said
    code, said = bucket.run("ask", "what keeps a ship upright?", "--store", store, machine="two")
    assert code == 0 and "A keel keeps a ship upright." in said, said
    (houses / "keel.md").unlink()
    code, said = bucket.run("index", str(houses), "--store", store, machine="two")
    assert code == 0 and "1 removed" in said, said
    before = bucket.keys("a/store/passages.lance/data") + bucket.keys("a/store/passages.lance/_indices")
    code, said = bucket.run("remove", "--purge", str(houses / "3.md"), "--store", store)
    assert code == 0, said
    assert before and not set(before) & set(bucket.keys("a/store"))  # whatever held the removed text
    code, said = bucket.run("search", "boiler", "--path", str(houses / "4.md"), "--store", store)
    assert code == 0 and "4.md" in said, said


def test_two_machines_index_at_once(bucket: Bucket, houses: Path, tmp_path: Path) -> None:
    store = "s3://notes/store"
    others = tmp_path / "others"
    others.mkdir()
    (others / "keel.md").write_text("A keel keeps a ship upright.")
    first = bucket.start("index", str(houses), "--store", store, "--wait", "200", machine="one")
    second = bucket.start("index", str(others), "--store", store, "--wait", "200", machine="two")
    said = [process.communicate(timeout=400)[0] for process in (first, second)]
    assert first.returncode == second.returncode == 0, said
    whole = bucket.passages(store)
    assert bucket.run("index", str(houses), str(others), "--store", store)[1].count("31 unchanged") == 1
    assert bucket.passages(store) == whole
    assert not any("interrupted" in words for words in said)


def test_another_machine_is_told_who_writes(bucket: Bucket, houses: Path, tmp_path: Path) -> None:
    store = "s3://notes/store"
    assert bucket.run("index", str(houses), "--store", store)[0] == 0
    # A lease as another machine holds it and renews it: this process.
    folder = tmp_path / "three"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in bucket.environment.items():
            patch.setenv(name, value)
        with Lease(store, folder).held(wait=120):
            code, said = bucket.run("index", str(houses), "--store", store, machine="two")
            assert code == 1 and f"Process {os.getpid()} on " in said and "is writing to s3://notes/store" in said, said
            assert bucket.run("search", "boiler", "--store", store, machine="two")[0] == 0  # readers do not wait


def test_killed_while_uploading(bucket: Bucket, houses: Path) -> None:
    store = "s3://notes/store"
    keel = houses / "keel.md"
    keel.write_text("A keel keeps a ship upright.")
    assert bucket.run("index", str(keel), "--store", store)[0] == 0
    before = bucket.passages(store)
    objects = len(bucket.keys("store"))
    for more in (2, 8):  # objects that are there when the process is killed
        process = bucket.start("index", str(houses), "--store", store)
        deadline = time.time() + 120
        while process.poll() is None and len(bucket.keys("store")) < objects + more and time.time() < deadline:
            time.sleep(0.01)
        process.kill()
        process.communicate()
        seen = bucket.passages(store)
        if seen != before:  # it was done
            break
        code, said = bucket.run("search", "keel", "--store", store, "--method", "bm25")
        assert code == 0 and "keel.md" in said, said
    # The lease of the dead process holds nobody up on its own machine.
    code, said = bucket.run("index", str(houses), "--store", store)
    assert code == 0, said
    whole = bucket.passages(store)
    assert bucket.run("index", str(houses), "--store", "s3://notes/fresh")[0] == 0
    assert bucket.passages("s3://notes/fresh") == whole
    assert "no problems found" in bucket.run("verify", "--store", store)[1]


@pytest.mark.parametrize(
    ("store", "environment", "said"),
    [
        ("s3://nowhere/store", {}, "its bucket does not exist"),
        ("s3://notes/store", {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "the server does not answer"),
        ("s3://notes/store", {}, "There is no store at s3://notes/store."),
        ("ftp://notes/store", {}, "it is not an address of a store"),
    ],
)
def test_what_is_wrong_is_one_sentence(bucket: Bucket, store: str, environment: dict[str, str], said: str) -> None:
    code, output = bucket.run("stats", "--store", store, **environment)
    assert code == 1
    assert output.startswith("error: ") and said in output and output.count("\n") == 1, output


def test_credentials_that_are_missing(bucket: Bucket) -> None:
    del bucket.environment["AWS_ACCESS_KEY_ID"], bucket.environment["AWS_SECRET_ACCESS_KEY"]
    code, said = bucket.run("stats", "--store", "s3://notes/store", AWS_EC2_METADATA_DISABLED="true")
    assert code == 1 and "there are no credentials. Set AWS_ACCESS_KEY_ID" in said and said.count("\n") == 1, said


def test_credentials_that_are_not_accepted(bucket: Bucket, houses: Path, tmp_path: Path) -> None:
    with serving(MOTO, tmp_path, INITIAL_NO_AUTH_ACTION_COUNT="0") as strict:
        code, said = bucket.run("index", str(houses), "--store", "s3://notes/store", AWS_ENDPOINT_URL=strict)
    assert code == 1 and "the credentials are not accepted" in said and said.count("\n") == 1, said
