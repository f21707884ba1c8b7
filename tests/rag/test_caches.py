"""Cached documents on disk: found again, checked, kept within a budget; whatever happens to the files, all goes on."""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models.cache import KVCache

from grit_mlx.errors import ArgumentError
from grit_mlx.rag import DocumentCaches
from grit_mlx.rag.caches.folder import CacheFolder
from grit_mlx.rag.caches.kvfiles import bytes_of, checksum, load_layers, rounded, save_layers
from tests.rag.writers import watch


def layers_of(seed: int, *, length: int = 5, dtype: mx.Dtype = mx.float32) -> list[Any]:
    """Two layers of two heads of size 8, with the room behind them that mlx-lm keeps."""
    made = []
    for layer in range(2):
        cache = KVCache()
        cache.keys = mx.random.normal((1, 2, 16, 8), key=mx.random.key(seed + layer)).astype(dtype)
        cache.values = mx.random.normal((1, 2, 16, 8), key=mx.random.key(seed + layer + 10)).astype(dtype)
        cache.offset = length
        made.append(cache)
    return made


def saved(folder: Path, keys: str, **options: object) -> DocumentCaches:
    caches = DocumentCaches(folder, **options)  # type: ignore[arg-type]
    for number, key in enumerate(keys):
        assert caches.save(key * 40, f"passage-{key}", layers_of(number))
        time.sleep(0.002)  # so that "least recently" is decided
    return caches


@pytest.mark.parametrize("precision", ["full", "8", "4"])
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_files_give_back_what_was_saved(tmp_path: Path, precision: str, dtype: mx.Dtype) -> None:
    path, layers = tmp_path / "x.safetensors", layers_of(0, dtype=dtype)
    one: Any
    expected: Any
    save_layers(path, layers, precision=precision)
    loaded = load_layers(path, crc=checksum(path))
    for one, expected in zip(loaded, rounded(layers, precision=precision), strict=True):
        assert one.offset == 5 and one.keys.dtype == dtype and one.keys.shape == (1, 2, 5, 8)
        assert mx.array_equal(one.keys, expected.keys) and mx.array_equal(one.values, expected.values)
    header = int.from_bytes(path.read_bytes()[:8], "little")
    assert path.stat().st_size - 8 - header == bytes_of(layers, precision=precision)
    assert "__metadata__" in json.loads(path.read_bytes()[8 : 8 + header])  # any reader of safetensors can open it
    if precision != "full":
        step = {"8": 6 / 255, "4": 6 / 15}[precision]  # the numbers lie within about 6
        assert mx.all(mx.abs(one.keys - layers[-1].keys[..., :5, :]) < step)


def test_fewer_bits_take_less_room() -> None:
    layers = layers_of(0, length=16)
    full, eight, four = (bytes_of(layers, precision=precision) for precision in ("full", "8", "4"))
    # Of float32: 8 and 4 bits, and a scale and an offset for each 64 numbers.
    assert eight / full == pytest.approx((8 + 1) / 32) and four / full == pytest.approx((4 + 1) / 32)


def test_another_process_finds_what_was_saved(tmp_path: Path) -> None:
    saved(tmp_path, "a")
    again = DocumentCaches(tmp_path)
    assert "a" * 40 in again and "b" * 40 not in again
    found: Any = again.get("a" * 40)
    assert found is not None and mx.array_equal(found[1].keys, layers_of(0)[1].keys[..., :5, :])
    assert again.get("b" * 40) is None
    assert again.stats().hits == 1 and again.stats().files == 1


@pytest.mark.parametrize("damage", ["bit", "cut", "empty", "gone", "unlisted"])
def test_a_damaged_file_is_not_used(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    saved(tmp_path, "ab")
    path = next(tmp_path.glob("aa/*"))
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    if damage == "gone":
        path.unlink()
    elif damage == "unlisted":
        (tmp_path / "caches.sqlite").write_bytes(b"no database" * 100)
    else:
        path.write_bytes({"bit": bytes(content), "cut": bytes(content[:-8]), "empty": b""}[damage])
    caches = DocumentCaches(tmp_path)
    assert caches.get("a" * 40) is None
    assert "a" * 40 not in caches
    if damage in ("bit", "cut", "empty"):
        assert caches.stats().damaged == 1 and not path.exists()
        assert "damaged" in caplog.text
    # It is written anew, and is whole again.
    assert caches.save("a" * 40, "passage-a", layers_of(0))
    assert DocumentCaches(tmp_path).get("a" * 40) is not None


def test_verify_tells_and_removes(tmp_path: Path) -> None:
    caches = saved(tmp_path, "abc")
    assert caches.verify() == []
    damaged, gone = next(tmp_path.glob("aa/*")), next(tmp_path.glob("bb/*"))
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\1")
    gone.unlink()
    problems = caches.verify()
    assert len(problems) == 2 and "is damaged" in problems[0] and "is missing" in problems[1]
    assert not damaged.exists() and caches.verify() == []


def test_the_least_recently_used_is_given_up(tmp_path: Path) -> None:
    one = saved(tmp_path / "size", "a").stats().bytes
    caches = saved(tmp_path, "ab", budget=2 * one + one // 2)
    caches.note_use([("a" * 40, "passage-a")])
    assert caches.save("c" * 40, "passage-c", layers_of(7))
    fresh = DocumentCaches(tmp_path)
    assert fresh.get("b" * 40) is None and fresh.get("a" * 40) is not None and fresh.get("c" * 40) is not None
    assert caches.stats().bytes <= 2 * one + one // 2
    assert caches.stats().bytes == sum(path.stat().st_size for path in tmp_path.glob("??/*.safetensors"))


# Saves, reads, uses and removes documents as fast as it can until it is killed.
WRITER = """
import random, sys
from pathlib import Path
from grit_mlx.rag import DocumentCaches
from tests.rag.test_caches import layers_of
import mlx.core as mx

folder, budget, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
chance = random.Random(seed)
caches = DocumentCaches(folder, budget=budget, memory=0)
print("ready", flush=True)
while True:
    number = chance.randrange(12)
    key = f"{number:02d}" * 20
    found = caches.get(key)
    if found is None:
        caches.save(key, f"passage-{number}", layers_of(100 * number))
    else:
        assert mx.array_equal(found[1].keys, layers_of(100 * number)[1].keys[..., :5, :]), number
        caches.note_use([(key, f"passage-{number}")])
    if chance.random() < 0.05:
        caches.remove([key])
    if caches.stats().damaged:
        sys.exit("damaged")
"""


def test_processes_share_the_budget(tmp_path: Path) -> None:
    """As machines that share a file system do; every third second one of them is killed."""
    one = saved(tmp_path / "size", "a").stats().bytes
    folder, budget = tmp_path / "caches", 5 * (one + 4096)
    arguments = [(folder, budget, seed) for seed in range(3)]
    found = watch(WRITER, arguments, lambda: sizes_in(folder), killed=(0, 1), seconds=3, environment=dict(os.environ))
    assert found.said[2] == (True, ""), found.said  # it went on to the end, and found nothing damaged
    assert not any(text for _, text in found.said), found.said
    assert len(found.seen) >= 10 and found.largest <= budget, (found, budget)
    caches = DocumentCaches(folder, budget=budget)
    listed = [f"{number:02d}" * 20 for number in range(12) if f"{number:02d}" * 20 in caches]
    held = sizes_in(folder)
    assert caches.stats().bytes == sum(size for name, size in held.items() if name in listed)
    assert caches.save("ff" * 20, "passage", layers_of(7)) and caches.get("ff" * 20) is not None
    assert not [problem for problem in caches.verify() if "is damaged" in problem]


def sizes_in(folder: Path) -> dict[str, int]:
    """The documents in a folder by their keys, unfinished ones as well."""
    sizes = {}
    for path in folder.glob("*/*"):
        with suppress(FileNotFoundError):
            sizes[path.stem] = path.stat().st_size
    return sizes


def test_a_file_that_another_process_writes_is_not_counted_twice(tmp_path: Path) -> None:
    caches, other = DocumentCaches(tmp_path), DocumentCaches(tmp_path)
    assert other.local.reserve("a" * 40, "passage-a", 1000)
    assert "a" * 40 not in caches and caches.get("a" * 40) is None and caches.stats().files == 0
    assert not caches.save("a" * 40, "passage-a", layers_of(0))
    # It was killed.
    module = sys.modules[CacheFolder.__module__]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_ABANDONED_SECONDS", 0.0)
        assert caches.save("a" * 40, "passage-a", layers_of(0)) and caches.get("a" * 40) is not None


def test_what_is_larger_than_the_budget_is_not_saved(tmp_path: Path) -> None:
    for budget in (0, 10):
        caches = DocumentCaches(tmp_path, budget=budget)
        assert not caches.save("a" * 40, "passage-a", layers_of(0))
    assert not list(tmp_path.glob("??/*"))


def test_the_most_used_can_be_cached_ahead(tmp_path: Path) -> None:
    caches = saved(tmp_path, "a")
    for key, times in (("b", 3), ("c", 1), ("a", 9)):
        for _ in range(times):
            caches.note_use([(key * 40, f"passage-{key}")])
    assert caches.most_used(5) == ["passage-b", "passage-c"]


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    caches = DocumentCaches(tmp_path / "file" / "caches")
    assert not caches.save("a" * 40, "passage-a", layers_of(0))
    assert not caches.save("b" * 40, "passage-b", layers_of(0))
    caches.note_use([("a" * 40, "passage-a")])
    assert caplog.text.count("not kept on disk") == 1


def test_memory_holds_the_last_ones(tmp_path: Path) -> None:
    one = bytes_of(layers_of(0))
    caches = DocumentCaches(tmp_path, memory=2 * one)
    for key in "abc":
        caches.keep(key * 40, layers_of(0))
    assert ["a" * 40 in caches, "b" * 40 in caches, "c" * 40 in caches] == [False, True, True]


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="Unknown cache precision '16'"):
        DocumentCaches(tmp_path, precision="16")
    with pytest.raises(ArgumentError, match="must be 0 bytes or more, not -1"):
        DocumentCaches(tmp_path, budget=-1)
