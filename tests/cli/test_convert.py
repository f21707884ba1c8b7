"""grit convert, as it is called."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from grit_mlx.options import bytes_of_size

Grit = Any


def test_quantised_verified_and_told(grit: Grit, tiny_model: Path, notes: Path, tmp_path: Path) -> None:
    run = grit("convert", tiny_model, "-o", tmp_path / "out", "-q", "--q-group-size", 32)
    assert run.code == 0, run.err
    assert run.out.splitlines()[0].split() == ["folder", str(tmp_path / "out")]
    for label in ("bits per weight", "mean cosine", "KL of next token", "same 10 nearest neighbours"):
        assert label in run.out
    verdict, following = run.out.splitlines()[-2:]
    assert verdict.startswith("Searches will find ") and "of the nearest neighbours changed" in verdict
    assert verdict.endswith("--q-bits 6 stays closer.") or "nearly the same" in verdict
    assert following == f'Next: grit search "your question" FILE --model {tmp_path}/out'
    again = grit("convert", tiny_model, "-o", tmp_path / "out", "-q", "--q-group-size", 32)
    assert (again.code, again.out) == (1, "")
    assert again.err == (f"error: {tmp_path}/out exists. Choose another --output, or replace it with --force.\n")
    assert grit("embed", "-m", tmp_path / "out", notes, "--quiet").code == 0


def test_json_and_default_folder(grit: Grit, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = grit("convert", tiny_model, "--q-mode", "mxfp4", "--no-verify", "--json", "--quiet")
    assert (run.code, run.err) == (0, "")
    found = json.loads(run.out)
    assert found["folder"] == "mistral-mxfp4" and found["drift"] is None and set(found["bits"]) >= {"4", "8"}
    assert (tmp_path / "mistral-mxfp4" / "config.json").exists()


def test_target_bits_and_texts(grit: Grit, tiny_model: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("The keel keeps a ship upright.\n\nBread needs flour, water and time.\n")
    options = ("--q-target-bits", 6.5, "--q-group-size", 32, "--texts", texts)
    run = grit("convert", tiny_model, "-o", tmp_path / "out", *options)
    assert run.code == 0, run.err
    assert "texts compared" in run.out and " 2\n" in run.out
    fit = grit("convert", tiny_model, "-o", tmp_path / "fit", "--fit", "60kB", *options[2:], "--no-verify", "--json")
    assert fit.code == 0, fit.err
    assert json.loads(fit.out)["output_bytes"] < 60_000


def test_verify_only(grit: Grit, tiny_model: Path, tiny_mixtral: Path) -> None:
    same = grit("convert", "--verify-only", tiny_model, tiny_model, "--json")
    assert same.code == 0, same.err
    assert json.loads(same.out)["cosine_worst"] == pytest.approx(1, abs=1e-6)
    other = grit("convert", "--verify-only", tiny_model, tiny_mixtral)
    assert other.code == 0 and "mean cosine" in other.out and "partly other passages" in other.out


@pytest.mark.parametrize(
    ("arguments", "code", "problem"),
    [
        (("a", "b"), 2, "Name one model, not 2"),
        (("a", "--verify-only"), 2, "Name two models, not 1"),
        (("a", "--fit", "much"), 2, "Invalid value for '--fit': 'much' is not a size. Write it like 16GB"),
        (("nowhere/x/y", "-q"), 1, "There is no folder nowhere/x/y"),
        (("{}", "--q-bits", "7"), 1, "Mode affine has no --q-bits 7"),
        (("{}", "-q", "-d"), 1, "Choose one of --quantize and --dequantize."),
        (("{}", "--texts", "none.txt"), 1, "none.txt does not exist"),
        (("{}", "--adapter", "none"), 1, "There is no adapter folder none"),
    ],
)
def test_bad_usage(
    arguments: tuple[str, ...], code: int, problem: str, grit: Grit, tiny_model: Path, tmp_path: Path
) -> None:
    run = grit("convert", *(a.format(tiny_model) for a in arguments), *(() if code == 2 else ("-o", tmp_path / "o")))
    assert (run.code, run.out) == (code, "")
    assert problem in " ".join(run.err.replace("│", " ").split())
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("text", "count"),
    [("16GB", 16 * 10**9), ("8.5G", 8_500_000_000), ("16 GiB", 16 << 30), ("512", 512), ("64mb", 64_000_000)],
)
def test_sizes(text: str, count: int) -> None:
    assert bytes_of_size(text) == count
