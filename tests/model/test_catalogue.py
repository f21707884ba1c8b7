"""The catalogue's formulas against folders that were converted, models that were loaded, and published numbers."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import pytest
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model

from grit_mlx.convert import convert
from grit_mlx.model import catalogue as cat
from grit_mlx.model.checkpoint import read_headers

# As the models' pages on the hub state them.
PUBLISHED = {
    "gritlm-7b": 7_241_732_096,
    "gritlm-8x7b": 46_702_792_704,
    "smollm2-1.7b": 1_711_376_384,
    "smollm2-360m": 361_821_120,
}


def test_parameters_are_the_published_ones() -> None:
    assert {family.name: cat.parameter_count(family.config) for family in cat.CATALOGUE} == PUBLISHED


@pytest.mark.parametrize("bits", [16, 8, 6, 4])
@pytest.mark.parametrize("kind", ["mistral", "mixtral"])
def test_sizes_are_those_of_converted_folders(
    kind: str, bits: int, tiny_model: Path, tiny_mixtral: Path, tmp_path: Path
) -> None:
    source = tiny_model if kind == "mistral" else tiny_mixtral
    options = {"dtype": "bfloat16"} if bits == 16 else {"bits": bits, "dtype": "bfloat16"}
    convert(source, output=tmp_path / "made", verify=False, **options)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    held = sum(tensor.nbytes for tensor in read_headers(tmp_path / "made").values())
    assert cat.weight_bytes(config, bits) == held


def test_keys_and_values_take_what_the_cache_of_a_model_takes(tiny_model: Path) -> None:
    model, config = load_model(tiny_model)
    model.set_dtype(mx.float16)
    cache = make_prompt_cache(model)
    mx.eval(model(mx.zeros((1, 256), dtype=mx.int32), cache=cache))
    assert cat.kv_bytes(config, 256) == sum(layer.keys.nbytes + layer.values.nbytes for layer in cache)


def test_more_bits_and_longer_texts_take_more() -> None:
    for family in cat.CATALOGUE:
        entries = [one for one in cat.catalogue() if one.family is family]
        assert entries == sorted(entries, key=lambda one: -one.size_bytes)
        for one in entries:
            assert one.size_bytes < one.short_bytes < one.long_bytes
            assert one.size_bytes <= one.download_bytes


@pytest.mark.parametrize(("gib", "working_set"), [(8, 5.33), (16, 10.66), (32, 21.33), (36, 27.0), (64, 48.0)])
def test_the_usable_memory_of_a_mac_is_metals(gib: int, working_set: float) -> None:
    assert cat.usable_memory(gib * cat.GIB) / cat.GIB == pytest.approx(working_set, abs=0.01)


@pytest.mark.parametrize(
    ("gib", "name"),
    [
        (2, "smollm2-360m-instruct-8bit"),
        (4, "smollm2-1.7b-instruct-4bit"),
        (8, "gritlm-7b-4bit"),
        (16, "gritlm-7b-6bit"),
        (24, "gritlm-7b-8bit"),
        (512, "gritlm-7b-8bit"),
    ],
)
def test_the_recommended_model_fits(gib: int, name: str) -> None:
    memory = gib * cat.GIB
    found = cat.recommended(memory)
    assert found is not None and found.name == name
    assert found.verdict(memory) == "fits"
    assert found.mac is not None and found.mac <= max(gib, 8)
    assert found in cat.writers(memory)


def test_verdicts_and_macs_agree() -> None:
    for one in cat.catalogue():
        assert one.mac is not None and one.verdict(one.mac * cat.GIB) == "fits"
        smaller = [size for size in (8, 16, 24, 36, 64, 96) if size < one.mac]
        assert all(one.verdict(size * cat.GIB) != "fits" for size in smaller)


def test_a_machine_without_memory_gets_no_model() -> None:
    assert cat.recommended(100_000_000) is None and cat.writers(0) == []
    assert cat.mac_for(10**15) is None


def test_names_are_those_that_pull_gives() -> None:
    names = {one.name: one.command for one in cat.catalogue()}
    assert names["gritlm-7b-4bit"] == "grit models pull gritlm-7b --bits 4"
    assert names["smollm2-1.7b"] == "grit models pull smollm2-1.7b"
