"""One model in several processes: vectors, logits and tokens are those of one process."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models import llama
from mlx_lm.utils import quantize_model

from grit_mlx import GritLM
from grit_mlx.errors import ArchitectureError
from grit_mlx.model.options import ModelChoice
from grit_mlx.model.sharding import split
from tests.faults.test_adapters import adapter
from tests.processes import finished, launch

TEXTS = ["A keel keeps a ship upright.", "Bread.", "A sail catches the wind, and the ship moves on and on."] * 2
PROMPT = [1, 7, 90, 33, 12, 5, 200, 17]

# Every process runs this; the first one writes what it found.
PROGRAM = """
import json, sys
from grit_mlx import GritLM  # before mlx, so that it loads the BLAS that this process's models have
import mlx.core as mx, numpy as np
from grit_mlx.model.options import ModelChoice
from grit_mlx.model.team import Team
from grit_mlx.model.world import World
world = World()
found = []
for case in json.loads(sys.argv[1]):
    team = Team(world, split=case["split"])
    grit = GritLM.from_choice(ModelChoice(**case["choice"]), team=team)
    logits = np.array(grit.model(mx.array([case["prompt"]]))[0, -1].astype(mx.float32))
    if not team.leads:
        team.follow(grit.jobs)
        continue
    vectors = [grit.with_attention(attn).encode(case["texts"]) for attn in ("bbcc", "cccc")]
    answers = [
        [one.token for one in grit.stream_responses(case["prompt"], 5, temperature, seed=3, prefill_step_size=3)]
        for temperature in (0.0, 1.0)
    ]
    team.end()
    found.append({"vectors": np.array(vectors).tolist(), "logits": logits.tolist(), "answers": answers,
                  "layers": len(grit.model.layers)})
if world.is_first:
    print(json.dumps(found))
"""


ODD = {"num_attention_heads": 6, "num_key_value_heads": 3, "num_hidden_layers": 5, "head_dim": 8}  # no 2 nor 4 in it
WIDE = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32}  # enough for groups of quantised weights


def random_model(tiny_model: Path, folder: Path, bits: int | None = None, **changes: Any) -> Path:
    """A Llama of another shape than the tiny model, with its tokenizer."""
    config = json.loads((tiny_model / "config.json").read_text()) | changes
    folder.mkdir()
    for path in tiny_model.glob("*token*"):
        (folder / path.name).write_bytes(path.read_bytes())
    mx.random.seed(5)
    made: Any = llama.Model(llama.ModelArgs.from_dict(config))
    made.apply(lambda value: value * (4 if value.ndim == 2 else 1))
    if bits is not None:
        made, config = quantize_model(made, config, group_size=32, bits=bits)
    flat: Any = tree_flatten(made.parameters())
    mx.save_safetensors(str(folder / "model.safetensors"), dict(flat), metadata={"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def alone(choice: dict[str, Any], texts: Sequence[str]) -> dict[str, Any]:
    grit = GritLM.from_choice(ModelChoice(**choice))
    logits = grit.model(mx.array([PROMPT]))[0, -1].astype(mx.float32)
    return {
        "vectors": [grit.with_attention(attn).encode(texts) for attn in ("bbcc", "cccc")],
        "logits": np.array(logits),
        "tokens": [one.token for one in grit.stream_responses(PROMPT, 5, prefill_step_size=3)],
        "layers": len(grit.model.layers),
    }


@pytest.mark.parametrize("size", [2, 4])
def test_a_model_that_is_split_equals_a_whole_one(
    tiny_model: Path, tiny_mixtral: Path, tmp_path: Path, size: int
) -> None:
    odd = {"model": random_model(tiny_model, tmp_path / "odd", **ODD)}
    plain, mixtral = {"model": tiny_model}, {"model": tiny_mixtral}
    cases: list[tuple[dict[str, Any], str]] = [(one, "tensor") for one in (plain, mixtral, odd)]
    cases += [(odd, "pipeline")]
    if size == 2:
        adapter(tmp_path / "adapter", tiny_model)
        quantised = {"model": random_model(tiny_model, tmp_path / "wide", 4, **WIDE), "dtype": "stored"}
        tuned = {"model": tiny_model, "adapter": tmp_path / "adapter"}
        cases += [(quantised, "tensor")] + [(one, "pipeline") for one in (plain, mixtral, quantised, tuned)]
    compare(cases, size)


@pytest.mark.parametrize("how", ["tensor", "pipeline"])
def test_a_real_model_in_four_processes(smollm2: Path, how: str) -> None:
    """Its three heads of keys and values become four."""
    compare([({"model": smollm2}, how)], 4, texts=TEXTS[:2])


def compare(cases: Sequence[tuple[dict[str, Any], str]], size: int, texts: Sequence[str] = TEXTS) -> None:
    """Each choice of a model, split in a way among processes, beside one process."""
    asked = [
        {"choice": {name: str(value) for name, value in choice.items()}, "split": how, "prompt": PROMPT, "texts": texts}
        for choice, how in cases
    ]
    out, err = finished(launch(size, "-c", PROGRAM, json.dumps(asked)))
    assert out, err
    for (choice, how), found in zip(cases, json.loads(out), strict=True):
        whole, about = alone(choice, texts), f"{choice} {how}"
        closest = 0 if how == "pipeline" else 1e-5
        np.testing.assert_allclose(found["vectors"], whole["vectors"], atol=closest, err_msg=about)
        # Relative to the largest logit, as float32 rounds: with the weights of ``random_model`` one process is itself
        # 6e-6 of it from float64, and 3e-6 from the same sums in another order.
        largest = np.abs(whole["logits"]).max()
        np.testing.assert_allclose(found["logits"], whole["logits"], rtol=0, atol=closest * largest, err_msg=about)
        greedy, drawn = found["answers"]
        assert greedy == whole["tokens"], about
        assert len(drawn) == 5 and drawn != greedy, about
        if how == "pipeline":
            assert found["layers"] == -(-whole["layers"] // size)


def test_what_cannot_be_split_says_so(tiny_model: Path, tmp_path: Path) -> None:
    group = SimpleNamespace(size=lambda: 4, rank=lambda: 0)

    def refused(how: str, message: str, **changes: Any) -> None:
        folder = random_model(tiny_model, tmp_path / f"{how}-{len(changes)}", **changes)
        model = GritLM.from_choice(ModelChoice(folder)).model
        with pytest.raises(ArchitectureError, match=message):
            split(model, how, group)  # type: ignore[arg-type]

    refused("pipeline", "A model of 2 layers cannot be a pipeline of 4 processes: start fewer.")
    refused("tensor", "cannot be divided among 4 processes: .* Use another number", intermediate_size=50)
    other: Any = nn.Module()
    for how, name in (("tensor", "pipeline"), ("pipeline", "tensor")):
        with pytest.raises(ArchitectureError, match=f"cannot be split by shard='{how}'. Try shard='{name}'"):
            split(other, how, group)  # type: ignore[arg-type]
