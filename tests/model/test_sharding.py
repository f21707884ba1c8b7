"""One model in several processes: vectors, logits and tokens are those of one process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models import llama

from grit_mlx import GritLM
from grit_mlx.model.options import ModelChoice
from tests.processes import finished, launch

TEXTS = ["A keel keeps a ship upright.", "Bread.", "A sail catches the wind, and the ship moves on and on."] * 2
PROMPT = [1, 7, 90, 33, 12, 5, 200, 17]

# Every process runs this; the first one writes what it found.
PROGRAM = """
import json, sys
import mlx.core as mx, numpy as np
from grit_mlx import GritLM
from grit_mlx.model.options import ModelChoice
from grit_mlx.model.team import Team
from grit_mlx.model.world import World
world = World()
found = []
for case in json.loads(sys.argv[1]):
    team = Team(world, split=case["split"])
    grit = GritLM.from_choice(ModelChoice(**case["choice"]), team=team)
    logits = np.array(grit.model(mx.array([case["prompt"]]))[0, -1].astype(mx.float32))
    read = sum(value.nbytes for value in grit.model.parameters()["model"]["layers"][0]["self_attn"]["q_proj"].values())
    if not team.leads:
        team.follow(grit.jobs)
        continue
    vectors = [grit.with_attention(attn).encode(case["texts"]) for attn in ("bbcc", "cccc")]
    answers = [
        [one.token for one in grit.stream_responses(case["prompt"], 5, temperature, seed=3, prefill_step_size=3)]
        for temperature in (0.0, 1.0)
    ]
    team.end()
    found.append({"vectors": np.array(vectors).tolist(), "logits": logits.tolist(), "answers": answers, "read": read,
                  "layers": len(grit.model.layers)})
if world.is_first:
    print(json.dumps(found))
"""


def odd_model(tiny_model: Path, folder: Path) -> Path:
    """Three heads of keys and values, six of queries, five layers: nothing that two or four divide."""
    config = json.loads((tiny_model / "config.json").read_text())
    config |= {"num_attention_heads": 6, "num_key_value_heads": 3, "num_hidden_layers": 5, "head_dim": 8}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    for path in tiny_model.glob("*token*"):
        (folder / path.name).write_bytes(path.read_bytes())
    mx.random.seed(5)
    made: Any = llama.Model(llama.ModelArgs.from_dict(config))
    made.update({"model": {"norm": {"weight": mx.ones(32)}}})
    flat: Any = tree_flatten(made.parameters())
    weights = {name: value * (4 if value.ndim == 2 else 1) for name, value in flat}
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "pt"})
    return folder


def alone(choice: dict[str, Any]) -> dict[str, Any]:
    grit = GritLM.from_choice(ModelChoice(**choice))
    logits = grit.model(mx.array([PROMPT]))[0, -1].astype(mx.float32)
    return {
        "vectors": [grit.with_attention(attn).encode(TEXTS) for attn in ("bbcc", "cccc")],
        "logits": np.array(logits),
        "tokens": [one.token for one in grit.stream_responses(PROMPT, 5, prefill_step_size=3)],
        "layers": len(grit.model.layers),
    }


@pytest.mark.parametrize("size", [2, 4])
def test_a_model_that_is_split_equals_a_whole_one(
    tiny_model: Path, tiny_mixtral: Path, tmp_path: Path, size: int
) -> None:
    odd = odd_model(tiny_model, tmp_path / "odd")
    cases = [(tiny_model, "tensor"), (tiny_mixtral, "tensor"), (odd, "tensor"), (odd, "pipeline")]
    if size == 2:
        cases += [(tiny_model, "pipeline"), (tiny_mixtral, "pipeline")]
    asked = [{"choice": {"model": str(model)}, "split": how, "prompt": PROMPT, "texts": TEXTS} for model, how in cases]
    out, err = finished(launch(size, "-c", PROGRAM, json.dumps(asked)))
    assert out, err
    for case, (model, how), found in zip(asked, cases, json.loads(out), strict=True):
        whole = alone(case["choice"])  # type: ignore[arg-type]
        closest = 0 if how == "pipeline" else 1e-5
        np.testing.assert_allclose(found["vectors"], whole["vectors"], atol=closest, err_msg=f"{model.name} {how}")
        np.testing.assert_allclose(found["logits"], whole["logits"], atol=10 * closest, err_msg=f"{model.name} {how}")
        greedy, drawn = found["answers"]
        assert greedy == whole["tokens"]
        assert len(drawn) == 5 and drawn != greedy
        if how == "pipeline":
            assert found["layers"] == -(-whole["layers"] // size)
