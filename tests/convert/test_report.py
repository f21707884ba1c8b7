"""What is said of a conversion: figures, their meaning, a next step, an interruption."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path
from typing import Any

import pytest

from grit_mlx.convert import convert, verify
from grit_mlx.convert.options import ConversionOptions
from grit_mlx.convert.report import meaning
from grit_mlx.evaluation.drift import Drift
from tests.convert.test_conversion import make_adapter

QUANTIZED: dict[str, Any] = {"bits": 4, "group_size": 32}


def drift(overlap: float | None, cosine: float, top_token: float | None = 0.9) -> Drift:
    return Drift(5 if overlap is None else 64, cosine, cosine, cosine, overlap, 0.1, top_token)


def said(found: Drift, **options: Any) -> str:
    return "".join(map(str, meaning(found, ConversionOptions(**options))))


@pytest.mark.parametrize(
    ("options", "step"),
    [
        ({"quantize": True}, "bits=6"),
        ({"bits": 3}, "bits=6"),
        ({"bits": 6}, "bits=8"),
        ({"bits": 8}, None),
        ({"mode": "mxfp4"}, "mode='mxfp8'"),
        ({"mode": "nvfp4"}, "mode='mxfp8'"),
        ({"mode": "mxfp8"}, None),
        ({"target_bits": 4.5}, "target_bits='5.5'"),
        ({"fit_bytes": 10**9}, None),
        ({"dtype": "float16"}, None),
    ],
)
def test_the_next_step_loses_less(options: dict[str, Any], step: str | None) -> None:
    text = said(drift(0.74, 0.99), **options)
    assert text.startswith("Searches will find partly other passages: 26 % of the nearest neighbours changed, 90 %")
    assert text.endswith("are the same." if step is None else f" {step} stays closer.")
    assert "closer" not in said(drift(0.97, 0.9999), **options)


def test_few_texts_are_judged_by_their_cosine_and_say_so() -> None:
    assert said(drift(None, 0.97), bits=4).startswith("Searches will find partly other passages: mean cosine 0.9700")
    close = said(drift(None, 0.9995), bits=8)
    assert "nearly the same" in close and close.endswith("Only 5 texts were compared: verify=True takes all.")
    assert "Only" not in said(drift(None, 0.9995), bits=8, texts=("a", "b"))
    assert "tokens" not in said(drift(1.0, 1.0, None), bits=8)
    assert "".join(map(str, meaning(drift(0.9, 0.99)))).endswith("are the same.")


def test_a_fused_adapter_is_on_the_card(tiny_model: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tiny_model, tmp_path / "sailing")
    convert(tiny_model, tmp_path / "out", adapter=adapter, verify=False)
    assert "| adapter fused into the weights | sailing |" in (tmp_path / "out" / "README.md").read_text()
    convert(tiny_model, tmp_path / "plain", verify=False)
    assert "adapter" not in (tmp_path / "plain" / "README.md").read_text()


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("phase", ["write", "verify"])
def test_an_interruption_says_what_is_kept(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, stop: type[BaseException], phase: str
) -> None:
    def progress(step: Any) -> None:
        if step.phase == phase:
            raise stop

    with pytest.raises(stop), caplog.at_level(logging.INFO, "grit_mlx"):
        convert(tiny_model, tmp_path / "out", progress=progress, **QUANTIZED)
    kept = tmp_path / ".out.unfinished"
    assert f"kept in {kept}: run the same command again to resume" in caplog.text and kept.is_dir()
    assert convert(tiny_model, tmp_path / "out", **QUANTIZED).resumed and not kept.exists()


@pytest.mark.parametrize("model", ["tiny_model", "tiny_mixtral"])
def test_the_proof_moves_from_beginning_to_end(model: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []

    def progress(step: Any) -> None:
        if step.phase == "verify":
            steps.append((step.done, step.total))

    source = request.getfixturevalue(model)
    convert(source, tmp_path / "out", progress=progress, **QUANTIZED)
    shares = [done / total for done, total in steps]
    assert shares[0] == 0 and shares[-1] == 1 and shares == sorted(shares)
    assert max(b - a for a, b in itertools.pairwise(shares)) < 0.1

    steps.clear()
    verify(source, tmp_path / "out", progress=lambda done, total: steps.append((done, total)))
    shares = [done / total for done, total in steps]
    assert shares[-1] == 1 and shares == sorted(shares) and len(set(shares)) > 100
