"""Cached documents in a bucket: real processes of two machines and a real server of S3's interface, some killed."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from grit_mlx.rag.caches.bucket import CacheBucket
from tests.integrations.moto_server import MOTO, Bucket, address, bucket
from tests.integrations.remote import GRIT, serving
from tests.rag.writers import watch

__all__ = ["address", "bucket"]  # fixtures

STORE = "s3://notes/store"
PLACE = "store/caches/"
NOTES = {
    "boiler.md": "The boiler of the house is serviced in October by Mr Smith, who has the key of the cellar.",
    "ship.md": "A keel keeps a ship upright when the wind leans on its sails.",
    "bread.md": "Bread rises because yeast eats sugar and breathes out gas.",
}
QUESTION = "What keeps a ship upright?"


class Machines:
    """Machines that use the bucket's store with a small model that writes."""

    def __init__(self, bucket: Bucket, model: Path, files: Path) -> None:
        self.bucket, self.model, self.files = bucket, str(model), files

    def index(self, *options: str, machine: str = "one", **environment: str) -> str:
        arguments = (
            "index",
            str(self.files),
            "--store",
            STORE,
            "--model",
            self.model,
            "--passage-tokens",
            "64",
            *options,
        )
        code, said = self.bucket.run(*arguments, machine=machine, **environment)
        assert code == 0, said
        return said

    def ask(self, machine: str, *options: str, **environment: str) -> tuple[dict[str, Any], str]:
        """The answer, and what else was said."""
        arguments = ("ask", QUESTION, "--store", STORE, "--model", self.model, "--no-server", "--top", "3", "--json")
        how = ("--min-score", "-1", "--max-tokens", "4", "--cache", "doc", *options)
        code, said = self.bucket.run(*arguments, *how, machine=machine, **environment)
        assert code == 0, said
        start = said.index("{")
        answer, end = json.JSONDecoder().raw_decode(said[start:])
        return answer, said[:start] + said[start + end :]

    def objects(self) -> dict[str, int]:
        """Sizes of the documents in the bucket."""
        found = self.bucket.client.list_objects_v2(Bucket="notes", Prefix=PLACE).get("Contents", [])
        return {one["Key"]: one["Size"] for one in found if not one["Key"].endswith("ledger.json")}

    def listed(self) -> set[str]:
        """The documents that the list has."""
        content = self.bucket.client.get_object(Bucket="notes", Key=f"{PLACE}ledger.json")["Body"].read()
        ledger = json.loads(content)
        return {f"{PLACE}{key}-{one[0]}.safetensors" for key, one in ledger["documents"].items()}


@pytest.fixture
def machines(bucket: Bucket, tiny_model: Path, tmp_path: Path) -> Machines:
    files = tmp_path / "files"
    files.mkdir()
    for name, text in NOTES.items():
        (files / name).write_text(text)
    return Machines(bucket, tiny_model, files)


def test_what_one_machine_has_read_is_not_read_by_another(machines: Machines) -> None:
    machines.index("--shared-cache", "10MB")
    first, _ = machines.ask("one")
    assert first["cached_tokens"] == 0 and first["computed_tokens"] > 60
    assert len(machines.objects()) == 3 and set(machines.objects()) == machines.listed()
    second, said = machines.ask("two")
    assert second["answer"] == first["answer"] and not said.strip()
    assert (
        second["cached_tokens"] > 60 and second["cached_tokens"] + second["computed_tokens"] == first["computed_tokens"]
    )
    code, said = machines.bucket.run("stats", "--store", STORE, machine="three")
    assert code == 0 and re.search(r"shared +3 documents, .* of at most 10.0 MB", said), said
    code, said = machines.bucket.run("stats", "--store", STORE, "--json", machine="three")
    assert json.loads(said)["caches"]["shared"] == {
        "files": 3,
        "bytes": sum(machines.objects().values()),
        "budget": 10**7,
    }
    # A document that changes or goes takes its cache along, whoever indexes.
    (machines.files / "ship.md").unlink()
    (machines.files / "bread.md").write_text("Salt slows the yeast.")
    machines.index(machine="two")
    assert len(machines.objects()) == 1 and set(machines.objects()) == machines.listed()
    assert "no problems found" in machines.bucket.run("verify", "--store", STORE, machine="two")[1]
    machines.index("--shared-cache", "0")
    assert not machines.objects()
    assert "shared" not in machines.bucket.run("stats", "--store", STORE)[1]


def test_all_passages_are_cached_ahead_for_all(machines: Machines) -> None:
    machines.index("--shared-cache", "10MB", "--cache-ahead", "all")
    assert len(machines.objects()) == 3
    answer, _ = machines.ask("two")
    assert answer["cached_tokens"] > 60


def test_without_the_option_nothing_is_shared(machines: Machines) -> None:
    machines.index()
    machines.ask("one")
    assert not machines.bucket.keys(PLACE)
    # Documents that this machine has kept so far are shared once they are.
    machines.index("--shared-cache", "10MB", "--cache-ahead", "all")
    assert len(machines.objects()) == 3


def test_a_damaged_object_is_computed_again(machines: Machines) -> None:
    machines.index("--shared-cache", "10MB")
    first, _ = machines.ask("one")
    for key in machines.objects():
        content = machines.bucket.client.get_object(Bucket="notes", Key=key)["Body"].read()
        machines.bucket.client.put_object(Bucket="notes", Key=key, Body=content[:-1] + b"?")
    code, said = machines.bucket.run("verify", "--store", STORE)
    assert code == 1 and said.count("is damaged; it was removed") == 3, said
    assert not machines.objects()
    machines.ask("three")
    [key, *_] = machines.objects()
    machines.bucket.client.put_object(Bucket="notes", Key=key, Body=b"nothing")
    second, said = machines.ask("two")
    assert second["answer"] == first["answer"] and said.count("A shared document is damaged") == 1, said
    assert len(machines.objects()) == 3 and set(machines.objects()) == machines.listed()


# Saves, reads, uses and removes documents as fast as it can until it is killed.
WRITER = """
import random, sys
from pathlib import Path
import mlx.core as mx
from grit_mlx.rag import DocumentCaches
from grit_mlx.rag.caches.bucket import CacheBucket
from grit_mlx.rag.caches.sharing import Sharing
from tests.rag.test_caches import layers_of

folder, uri, budget, seed = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
chance = random.Random(seed)
caches = DocumentCaches(folder, memory=0)
caches.sharing = Sharing(caches.local, lambda: CacheBucket.of(uri, budget))
print("ready", flush=True)
while True:
    number = chance.randrange(12)
    key = f"{number:02d}" * 20
    caches.local.remove([key])
    caches.forget_loaded()
    caches.fetch({key: "passage"})
    found = caches.get(key)
    if found is None:
        caches.save(key, f"passage-{number}", layers_of(100 * number))
    else:
        assert mx.array_equal(found[1].keys, layers_of(100 * number)[1].keys[..., :5, :]), number
    if chance.random() < 0.5:
        caches.settle()
    if chance.random() < 0.05:
        caches.remove([key])
    if caches.stats().damaged:
        sys.exit("damaged")
"""


def test_machines_that_write_at_once_keep_the_budget(machines: Machines, tmp_path: Path) -> None:
    """At every moment; one of them is killed, and the others go on."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    budget = 16_384
    found = watch(
        WRITER,
        [(tmp_path / str(seed), STORE, budget, seed) for seed in range(3)],
        machines.objects,
        killed=(0, None),
        seconds=6,
        environment={**kept, **machines.bucket.environment},
    )
    assert found.said[1:] == [(True, ""), (True, "")], found.said
    assert len(found.seen) > 20 and found.looks > 20 and 0 < found.largest <= budget, (found, budget)
    # What the killed ones left is cleaned up; here without waiting until they are taken for dead.
    with pytest.MonkeyPatch.context() as patch:
        for name, value in machines.bucket.environment.items():
            patch.setenv(name, value)
        patch.setattr("grit_mlx.rag.caches.ledger.ABANDONED_SECONDS", -1.0)
        place = CacheBucket.of(STORE, budget)
        place.verify()
        assert place.verify() == []
    assert set(machines.objects()) == machines.listed() and sum(machines.objects().values()) <= budget


def test_killed_while_uploading(machines: Machines) -> None:
    machines.index("--shared-cache", "10MB")
    arguments = (
        "ask",
        QUESTION,
        "--store",
        STORE,
        "--model",
        machines.model,
        "--no-server",
        "--top",
        "3",
        "--cache",
        "doc",
    )
    process = machines.bucket.start(*arguments, "--min-score", "-1", "--max-tokens", "4", machine="one")
    deadline = time.time() + 120
    while process.poll() is None and not machines.objects() and time.time() < deadline:
        time.sleep(0.002)
    process.kill()
    process.communicate()
    answer, said = machines.ask("two")  # whatever is half done is not used, and holds nobody up
    assert answer["answer"] and "not shared" not in said
    assert machines.bucket.run("verify", "--store", STORE)[0] in (0, 1)
    assert set(machines.objects()) <= machines.listed()
    again, _ = machines.ask("three")
    assert again["answer"] == answer["answer"]


@pytest.fixture
def strict(bucket: Bucket, tmp_path: Path) -> Iterator[str]:
    folder = tmp_path / "strict"
    folder.mkdir()
    with serving(MOTO, folder, INITIAL_NO_AUTH_ACTION_COUNT="0") as address:
        yield address


def test_caches_that_cannot_be_written_cost_no_answer(
    machines: Machines, strict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store can be read and the caches cannot: one warning, and documents are cached on the machine."""
    machines.index("--shared-cache", "10MB")
    code = "from grit_mlx.rag.caches import objects as b; "
    code += "b.endpoint = lambda uri: {{'endpoint': {0!r}, 'allow_http': 'true'}}; "
    for place, reason in {strict: "the credentials are not accepted", "http://127.0.0.1:9": "does not answer"}.items():
        monkeypatch.setattr("tests.integrations.remote.GRIT", code.format(place) + GRIT)
        first, said = machines.ask("one")
        assert first["answer"] and said.count("not shared for now") == 1 and reason in said, said
        second, _ = machines.ask("one")
        assert second["cached_tokens"] > 60 and second["answer"] == first["answer"]
        shutil.rmtree(machines.bucket.tmp_path / "one")
    assert not machines.objects()


def test_a_store_in_a_folder_refuses(machines: Machines, tmp_path: Path) -> None:
    store = str(tmp_path / "local")
    code, said = machines.bucket.run("index", str(machines.files), "--store", store, "--shared-cache", "1GB")
    assert code == 1 and "--shared-cache is for stores at s3://, gs://, az://." in said and said.count("\n") == 1, said
