"""Cached documents that machines share in a bucket: found by all, within one budget, whatever is killed or damaged."""

from __future__ import annotations

import logging
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import obstore
import pytest
from obstore.store import MemoryStore

from grit_mlx.errors import DependencyError, StoreError
from grit_mlx.rag import DocumentCaches
from grit_mlx.rag.caches import bucket, sharing
from grit_mlx.rag.caches.bucket import CacheBucket, DamagedError
from grit_mlx.rag.caches.budget import Held, giving_way
from grit_mlx.rag.caches.ledger import ABANDONED_SECONDS, Ledger
from grit_mlx.rag.caches.objects import Bucket
from grit_mlx.rag.caches.sharing import Sharing
from grit_mlx.rag.database import is_bucket
from tests.rag.test_caches import layers_of

URI = "s3://notes/store/caches"
A, B, C = "a" * 40, "b" * 40, "c" * 40


# A store in memory and Python's own lock wait for each other in earlier versions of obstore.
ONE_REQUEST = threading.Lock()


class Counted(Bucket):
    """Counts requests, and fails on demand."""

    def __init__(self, store: Any) -> None:
        self.requests: list[str] = []
        self.fails = False
        super().__init__(URI, store=store)
        self.requests.clear()

    @contextmanager
    def _sentences(self) -> Iterator[None]:  # around every request
        if self.fails:
            raise StoreError("The store s3://notes/store cannot be used: the server does not answer.")
        self.requests.append(sys._getframe(2).f_code.co_name)
        with ONE_REQUEST, super()._sentences():
            yield


class Machines:
    """Machines with folders of their own, and their bucket."""

    def __init__(self, tmp_path: Path) -> None:
        self.tmp_path = tmp_path
        self.store: Any = MemoryStore()

    def place(self, budget: int = 10**9) -> CacheBucket:
        return CacheBucket(Counted(self.store), budget=budget)

    def caches(self, name: str, *, budget: int = 10**9, **options: Any) -> DocumentCaches:
        caches = DocumentCaches(self.tmp_path / name, **options)
        place = self.place(budget)
        caches.sharing = Sharing(caches.local, lambda: place)
        return caches

    def listed(self) -> dict[str, int]:
        """Sizes of the documents in the bucket."""
        with ONE_REQUEST:
            found = obstore.list(self.store).collect()
        return {one["path"]: one["size"] for one in found if one["path"] != "ledger.json"}

    def bytes(self) -> int:
        return sum(self.listed().values())

    def names(self) -> set[str]:
        return set(self.listed())


@pytest.fixture
def machines(tmp_path: Path) -> Machines:
    return Machines(tmp_path)


def put(place: CacheBucket, documents: dict[str, bytes]) -> None:
    reserved = place.reserve({key: len(content) for key, content in documents.items()})
    written = {key: place.write(reserved, key, documents[key]) for key in reserved.keys}
    place.register(reserved, {key: done for key, done in written.items() if done is not None})


# The rule, and the list as a value


def test_the_least_recently_used_gives_way() -> None:
    held = [Held("a", 10, last=3), Held("b", 10, last=1), Held("c", 10, last=2, is_fixed=True)]
    assert giving_way(held, size=5, budget=35) == []
    assert giving_way(held, size=5, budget=30) == ["b"]
    assert giving_way(held, size=15, budget=30) == ["b", "a"]
    assert giving_way(held, size=25, budget=30) is None  # what is being written cannot go
    assert giving_way(held, size=10**9, budget=None) == []


def test_a_list_comes_back_from_its_object() -> None:
    ledger = Ledger(100).reserved({A: 10, B: 20}, "t", time=None).registered("t", {A: (7, "x")}, ())
    assert Ledger.parse(ledger.dump()) == ledger
    assert list(ledger.written) == [A] and ledger.bytes == 10 and len(ledger.doomed) == 1
    for content in (b"", b"{", b"[]", b'{"format": 1}', b'{"format": 1, "budget": 1, "turn": 1, "documents": 3}'):
        with pytest.raises(ValueError):
            Ledger.parse(content)


def test_what_changes_nothing_is_no_version() -> None:
    ledger = Ledger(100).reserved({A: 10}, "t", time=None).registered("t", {A: (7, "x")}, ())
    assert ledger.turn == 2
    for same in (
        ledger.forgotten([B]),
        ledger.cleared(["x"]),
        ledger.reserved({A: 10}, "u", time=9.0),
        ledger.reserved({B: 1000}, "u", time=9.0),
        ledger.resized(100),
        ledger.dated(3.0),
    ):
        assert same is ledger
    assert ledger.used([A]).turn == 3


def test_a_document_that_is_forgotten_while_it_is_written_still_counts() -> None:
    ledger = Ledger(100).reserved({A: 60}, "t", time=None).forgotten([A])
    assert ledger.reserved({B: 60}, "u", time=None).mine("u") == []
    done = ledger.registered("t", {A: (7, "x")}, ())
    assert not done.documents and len(done.doomed) == 1


def test_time_is_the_servers() -> None:
    ledger = Ledger(100).reserved({A: 60}, "t", time=None)
    assert ledger.reserved({B: 60}, "u", time=10.0**9).mine("u") == []  # since when is not known
    dated = ledger.dated(50.0)
    assert dated.dated(70.0) is dated
    assert dated.reserved({B: 60}, "u", time=50 + ABANDONED_SECONDS).mine("u") == []
    late = dated.reserved({B: 60}, "u", time=51 + ABANDONED_SECONDS)
    assert late.mine("u") == [B] and len(late.doomed) == 1


# In the bucket


def test_documents_are_found_by_all(machines: Machines) -> None:
    put(machines.place(), {A: b"one", B: b"two"})
    other = machines.place()
    assert other.sizes([A, B, C]) == {A: 3, B: 3}
    found = other.read(A)
    assert found is not None and found[0] == b"one" and other.read(C) is None
    assert machines.names() == machines.place().ledger().objects and machines.bytes() == 6


def test_what_a_question_costs_in_requests(machines: Machines) -> None:
    put(machines.place(), {A: b"one", B: b"two"})
    bucket = Counted(machines.store)
    place = CacheBucket(bucket, budget=1)
    assert place.sizes([A, B, C]) and bucket.requests == ["get"]
    assert place.read(A) and place.read(B) and bucket.requests == ["get"] * 3
    bucket.requests.clear()
    put(place, {C: b"three"})
    assert bucket.requests == ["put"] * 3  # room, the document, the list
    bucket.requests.clear()
    place.note_use([A, C])
    assert bucket.requests == ["put"]


def test_one_that_another_machine_wrote_meanwhile_is_written_once(machines: Machines) -> None:
    first, second = machines.place(), machines.place()
    reserved = first.reserve({A: 3})
    put(second, {A: b"one"})
    assert second.sizes([A]) == {}
    done = first.write(reserved, A, b"one")
    assert done is not None
    first.register(reserved, {A: done})
    put(second, {A: b"one"})
    assert len(machines.names()) == 1 and machines.place().sizes([A]) == {A: 3}


@pytest.mark.parametrize("killed", ["reserved", "written", "doomed"])
def test_a_machine_that_is_killed_between_two_steps(
    machines: Machines, killed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(machines.place(budget=10), {A: b"1234567890"})
    dead = machines.place()
    with monkeypatch.context() as patch:
        if killed == "doomed":  # and nothing was deleted
            patch.setattr(Bucket, "delete", lambda *_: None)
        reserved = dead.reserve({B: 10})
    assert list(reserved.keys) == [B]
    if killed == "written":
        assert dead.write(reserved, B, b"1234567890")
    other = machines.place()
    put(other, {C: b"12345"})
    assert other.sizes([A, B, C]) == {} and machines.bytes() <= 10  # there is no room, as far as anybody knows
    assert other.read(B) is None  # nothing that may be half-written is read
    monkeypatch.setattr("grit_mlx.rag.caches.ledger.ABANDONED_SECONDS", -1.0)
    put(other, {C: b"12345"})
    assert other.sizes([A, B, C]) == {C: 5}
    assert machines.names() == other.ledger().objects and machines.bytes() == 5


def test_a_machine_that_was_taken_for_dead_leaves_nothing(machines: Machines, monkeypatch: pytest.MonkeyPatch) -> None:
    slow, other = machines.place(budget=10), machines.place()
    reserved = slow.reserve({A: 10})
    monkeypatch.setattr("grit_mlx.rag.caches.ledger.ABANDONED_SECONDS", -1.0)
    put(other, {B: b"12345"})
    done = slow.write(reserved, A, b"1234567890")
    assert done is not None
    slow.register(reserved, {A: done})
    assert slow.sizes([A, B]) == {B: 5} and machines.bytes() == 5
    assert slow.write(replace(reserved, until=0.0), A, b"1234567890") is None  # it does not even begin


def test_verify(machines: Machines, monkeypatch: pytest.MonkeyPatch) -> None:
    place = machines.place()
    put(place, {A: b"one", B: b"two", C: b"three"})
    assert place.verify() == []
    [damaged] = [name for name in machines.names() if name.startswith(A)]
    [gone] = [name for name in machines.names() if name.startswith(B)]
    obstore.put(machines.store, damaged, b"two")
    obstore.delete(machines.store, gone)
    obstore.put(machines.store, "stray-1.safetensors", b"?")
    place.reserve({"d" * 40: 5})
    monkeypatch.setattr("grit_mlx.rag.caches.ledger.ABANDONED_SECONDS", -1.0)
    problems = machines.place().verify()
    said = ("is damaged", "is missing", "was never finished", "belongs to no shared document")
    assert len(problems) == 4
    assert all(words in problem for words, problem in zip(said, problems, strict=True))
    assert machines.place().sizes([A, B, C]) == {C: 5} and len(machines.names()) == 1
    assert machines.place().verify() == []


@pytest.mark.parametrize("content", [None, b"", b"{", b'{"format": 1}'])
def test_a_list_that_is_lost_is_started_again(
    machines: Machines, content: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    put(machines.place(), {A: b"one"})
    if content is None:
        obstore.delete(machines.store, "ledger.json")
    else:
        obstore.put(machines.store, "ledger.json", content)
    other = machines.place(budget=10)
    assert other.sizes([A]) == {}
    put(other, {B: b"12345678"})
    assert machines.place().sizes([A, B]) == {B: 8} and machines.bytes() == 8
    assert ("damaged and is started again" in caplog.text) == (content is not None)


def test_a_list_of_a_later_version_is_left_alone(machines: Machines) -> None:
    obstore.put(machines.store, "ledger.json", b'{"format": 2}')
    with pytest.raises(StoreError, match="has format 2: update grit-mlx"):
        machines.place().sizes([A])


def test_damaged_and_missing_objects(machines: Machines) -> None:
    put(machines.place(), {A: b"one", B: b"two"})
    for name in machines.names():
        if name.startswith(A):
            obstore.put(machines.store, name, b"onE")
        else:
            obstore.delete(machines.store, name)
    place = machines.place()
    for key in (A, B):
        with pytest.raises(DamagedError):
            place.read(key)


def test_another_budget(machines: Machines) -> None:
    place = machines.place(budget=100)
    for key in (A, B, C):
        put(place, {key: b"1234567890"})
    machines.place().note_use([A])
    machines.place().resize(20)
    assert machines.place().sizes([A, B, C]) == {A: 10, C: 10} and machines.bytes() == 20
    place.resize(0)
    assert machines.bytes() == 0
    put(machines.place(), {A: b"1"})
    assert machines.bytes() == 0


def test_machines_that_write_at_once_keep_the_budget(machines: Machines) -> None:
    """At any moment, and in the end the list is what is there."""
    contents = {f"{i:02d}" * 20: random.Random(i).randbytes(1000 + 37 * i) for i in range(12)}
    budget, ended, wrong = 5200, threading.Event(), []

    def machine(seed: int) -> None:
        chance, place = random.Random(seed), machines.place(budget)
        try:
            while not ended.is_set():
                keys = chance.sample(list(contents), chance.randrange(1, 4))
                for key in keys:
                    found = place.read(key)
                    assert found is None or found[0] == contents[key]
                put(place, {key: contents[key] for key in keys if not place.sizes([key])})
                if chance.random() < 0.3:
                    place.note_use(keys)
                if chance.random() < 0.05:
                    place.forget(keys)
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=machine, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    largest, until = 0, time.monotonic() + 3
    while time.monotonic() < until:
        largest = max(largest, machines.bytes())
    ended.set()
    for thread in threads:
        thread.join()
    assert not wrong and 2000 < largest <= budget
    ledger = machines.place().ledger()
    assert machines.names() == ledger.objects and machines.bytes() == ledger.bytes and ledger.turn > 100
    assert machines.place().verify() == []


# On a machine


def test_what_one_machine_has_read_is_not_read_by_another(machines: Machines) -> None:
    first = machines.caches("one")
    assert first.save(A, "passage-a", layers_of(0))
    first.settle()
    second = machines.caches("two")
    assert A in second and second.sizes(A) == (0, first.sizes(A)[0] or first.local.size(A))
    second.fetch({A: "passage-a"})
    found: Any = second.get(A)
    assert found is not None and mx.array_equal(found[1].keys, layers_of(0)[1].keys[..., :5, :])
    stats = second.stats()
    assert (stats.hits, stats.built, stats.files) == (1, 0, 1)
    assert stats.shared is not None and (stats.shared.files, stats.shared.bytes) == (1, machines.bytes())
    # It is on this machine now: nothing is asked of the bucket.
    place = machines.place()
    again = DocumentCaches(machines.tmp_path / "two")
    again.sharing = Sharing(again.local, lambda: place)
    again.fetch({key: "x" for key in [A] if again.sizes(key)[1]})
    assert again.get(A) is not None and not place._bucket.requests  # type: ignore[attr-defined]


def test_a_machine_without_room_reads_what_is_shared(machines: Machines) -> None:
    first = machines.caches("one")
    first.save(A, "passage-a", layers_of(0))
    first.settle()
    second = machines.caches("two")
    second.local.budget = 0
    second.fetch({A: "passage-a"})
    assert second.get(A) is not None and second.stats().files == 0


def test_a_damaged_object_is_computed_again(machines: Machines, caplog: pytest.LogCaptureFixture) -> None:
    first = machines.caches("one")
    first.save(A, "passage-a", layers_of(0))
    first.settle()
    [name] = machines.names()
    content = bytearray(obstore.get(machines.store, name).bytes())
    content[-3] ^= 4
    obstore.put(machines.store, name, bytes(content))
    second = machines.caches("two")
    second.fetch({A: "passage-a"})
    assert second.get(A) is None and second.stats().damaged == 1 and "damaged" in caplog.text
    assert second.save(A, "passage-a", layers_of(0))
    second.settle()
    third = machines.caches("three")
    third.fetch({A: "passage-a"})
    assert third.get(A) is not None


def test_a_damaged_file_is_not_given_to_others(machines: Machines) -> None:
    caches = machines.caches("one")
    caches.local.save(A, "passage-a", 10**6, lambda path: _saved(path))
    file = caches.local.file(A)
    file.write_bytes(file.read_bytes()[:-1] + b"\1")
    caches.share_held([A])
    caches.settle()
    assert not machines.names() and machines.place().ledger().documents == {}


def _saved(path: Path) -> None:
    path.write_bytes(b"0" * 100)


def test_what_was_there_before_is_shared_while_there_is_room(machines: Machines) -> None:
    alone = DocumentCaches(machines.tmp_path / "one")
    for number, key in enumerate((A, B, C)):
        alone.save(key, "passage", layers_of(number))
    size = alone.local.size(A)
    caches = machines.caches("one", budget=0)
    place = machines.place()
    place.resize(2 * size + 10)
    caches.share_held([A, B, C])
    caches.settle()
    assert set(machines.place().sizes([A, B, C])) == {A, B}


def test_a_bucket_that_fails_is_told_once_and_tried_again(
    machines: Machines, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caches = machines.caches("one")
    assert caches.sharing is not None
    place: Any = caches.sharing.bucket
    place._bucket.fails = True
    with caplog.at_level(logging.INFO, logger="grit_mlx"):  # which the command line shows as notes
        for key in (A, B):
            caches.fetch({key: "passage"})
            assert caches.save(key, "passage", layers_of(0)) and caches.get(key) is not None
            caches.note_use([(key, "passage")])
            caches.settle()
    assert caplog.text.count("not shared for now") == 1 and "the server does not answer" in caplog.text
    assert caches.stats().shared is None
    with pytest.raises(StoreError):  # what was promised is not lost in silence
        caches.remove([A])
    place._bucket.fails = False
    monkeypatch.setattr(sharing, "_PAUSE_SECONDS", 0.0)
    caches.sharing._paused_until.update(read=0.0, write=0.0)
    caches.save(C, "passage", layers_of(0))
    caches.settle()
    assert place.sizes([C])


def test_a_machine_that_may_only_read(machines: Machines, caplog: pytest.LogCaptureFixture) -> None:
    first = machines.caches("one")
    for key in (A, B):
        first.save(key, "passage", layers_of(0))
    first.settle()
    reader = machines.caches("two")
    assert reader.sharing is not None
    reader.sharing.bucket._bucket.put = lambda *_, **__: _denied()  # type: ignore[method-assign]
    reader.save(C, "passage", layers_of(0))
    reader.settle()
    for key in (A, B):
        reader.fetch({key: "passage"})
        reader.note_use([(key, "passage")])
        reader.settle()
    assert reader.get(A) is not None and reader.get(B) is not None
    assert caplog.text.count("not shared for now") == 1


def _denied() -> None:
    raise StoreError("The store s3://notes/store cannot be used: the credentials do not permit it.")


def test_without_the_package(
    machines: Machines, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "obstore", None)
    caches = DocumentCaches(machines.tmp_path / "one")
    caches.sharing = Sharing(caches.local, lambda: CacheBucket.of("s3://notes/store", 10))
    assert caches.save(A, "passage-a", layers_of(0)) and caches.get(A) is not None
    caches.settle()
    assert "Sharing cached documents needs obstore: " in caplog.text and "grit-mlx[buckets]" in caplog.text
    with pytest.raises(DependencyError):
        caches.remove([A])


def test_uses_are_told_once_in_a_while(machines: Machines, monkeypatch: pytest.MonkeyPatch) -> None:
    first = machines.caches("one")
    for key in (A, B):
        first.save(key, "passage", layers_of(0))
        first.settle()
    turns = {}
    for moment in ("first", "soon", "later"):
        if moment == "later":
            monkeypatch.setattr(sharing, "_NOTED_SECONDS", 0.0)
        time.sleep(0.01)
        first.note_use([(A, "passage")])
        first.settle()
        turns[moment] = machines.place().ledger().documents[A].used
    assert turns["first"] == turns["soon"] < turns["later"]
    assert machines.place().ledger().documents[B].used < turns["later"]


def test_removed_documents_go_from_the_bucket(machines: Machines) -> None:
    first, second = machines.caches("one"), machines.caches("two")
    first.save(A, "passage-a", layers_of(0))
    first.settle()
    second.remove([A])
    assert not machines.names() and machines.place().ledger().documents == {}


def test_where_documents_can_be_shared() -> None:
    assert all(map(is_bucket, ("s3://a/b", "gs://a", "az://a/b")))
    assert not any(map(is_bucket, ("/s3", "s3", "db://a", "ftp://a", "s3+ddb://a", ".grit")))


def test_processes_agree_on_names(machines: Machines, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process that is faster is not overwritten: the step is made again on what it wrote."""
    first, second = machines.place(), machines.place()
    first.resize(100)
    second.ledger()
    puts: list[Callable[[], None]] = [lambda: put(first, {A: b"one"})]
    step = Ledger.used

    def raced(ledger: Ledger, keys: Any) -> Ledger:
        if puts:
            puts.pop()()
        return step(ledger, keys)

    monkeypatch.setattr(Ledger, "used", raced)
    second.note_use([A, B])
    assert list(machines.place().ledger().written) == [A]
    assert bucket._ATTEMPTS > 10
