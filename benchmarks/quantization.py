"""The effect of quantisation on vectors and predictions: the tables behind the recipe `grit`.

    python benchmarks/quantization.py [MODEL...]

For each model: drift by recipe and bits, and the effect of quantising only one kind of module, to 3 bits. The default
models are the golden checkpoints (random weights) and stories260k (trained, but tiny) in ../shared.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import SHARED, machine, save

from grit_mlx import GritLM
from grit_mlx.convert import convert
from grit_mlx.convert.plan import make_plan
from grit_mlx.convert.quantization import Quantization, quantizable
from grit_mlx.convert.reading import Folder
from grit_mlx.convert.sensitivity import measure, noise
from grit_mlx.convert.streaming import Stream

MODELS = {
    "golden Mistral (random)": SHARED / "golden" / "mistral" / "checkpoint",
    "golden Mixtral (random)": SHARED / "golden" / "mixtral" / "checkpoint",
    "stories260k (trained)": SHARED / "models" / "stories260k",
}
BITS = (3, 4, 6, 8)
TRIAL = 3
KINDS: dict[str, Callable[[str, int], bool]] = {
    "token embeddings": lambda path, last: "embed_tokens" in path,
    "head": lambda path, last: path == "lm_head",
    **{
        name: lambda path, last, name=name: path.endswith(f".{name}")  # type: ignore[misc]
        for name in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    },
    "router": lambda path, last: path.endswith("block_sparse_moe.gate"),
    "first layer": lambda path, last: ".layers.0." in path,
    "last layer": lambda path, last: f".layers.{last}." in path,
}


def drifts(source: Path, group_size: int) -> list[dict[str, Any]]:
    """Drift of each recipe."""
    ways: list[tuple[str, dict[str, Any]]] = [
        (f"{recipe}, {bits} bits", {"quantize": True, "recipe": recipe, "bits": bits, "group_size": group_size})
        for recipe in ("uniform", "grit")
        for bits in (8, 6, 4, 3)
    ]
    ways.append(("mixed_3_6", {"quantize": True, "recipe": "mixed_3_6", "group_size": group_size}))
    ways += [(f"grit, {mode}", {"quantize": True, "mode": mode}) for mode in ("mxfp4", "nvfp4", "mxfp8")]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, options in ways:
            report = convert(source, Path(folder) / name.replace(", ", "-").replace(" ", "-"), verify=True, **options)
            assert report.drift is not None
            rows.append({"way": name, "bits_per_weight": round(report.bits_per_weight, 2), **report.drift.as_dict()})
            if name in ("uniform, 4 bits", "uniform, 3 bits"):
                target = report.bits_per_weight
                report = convert(
                    source, Path(folder) / f"m{target}", verify=True, target_bits=target, group_size=group_size
                )
                assert report.drift is not None
                name = f"measured, as large as {name}"
                rows.append(
                    {"way": name, "bits_per_weight": round(report.bits_per_weight, 2), **report.drift.as_dict()}
                )
    return rows


def sensitivity(folder: Path, group_size: int) -> dict[str, Any]:
    """The effect of each kind of module and of the number of bits, measured by trials."""
    source = Folder(folder)
    tokenize = GritLM(folder, mode="generative").tokenizer.encode
    found = {}
    for bits in BITS:
        plan, model = make_plan(source)
        weights = {weight.module: weight for weight in plan.weights if weight.name.endswith(".weight")}
        trial = Quantization(bits, group_size)
        modules = {  # including the router
            path: weights[path]
            for path, module in model.named_modules()
            if path in weights and quantizable(module, trial)
        }
        found[bits] = measure(Stream(plan, source, model), modules, tokenize, trial)
    kinds = []
    last = plan.config["num_hidden_layers"] - 1
    for kind, belongs in KINDS.items():
        names = [name for name in found[TRIAL] if belongs(name, last)]
        if names:
            count = sum(weights[name].rows * weights[name].width for name in names)
            cosine = sum(found[TRIAL][name].cosine for name in names)
            kl = sum(found[TRIAL][name].kl for name in names)
            kinds.append({"kind": kind, "parameters": count, "cosine": cosine, "kl": kl})
    total = {bits: sum(cost.cosine + cost.kl for cost in costs.values()) for bits, costs in found.items()}
    law = [{"bits": b, "measured": total[b] / total[TRIAL], "predicted": noise(b)} for b in BITS]
    return {"kinds": kinds, "law": law}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path)
    arguments = parser.parse_args()
    models = {path.name: path for path in arguments.models} or MODELS
    results = []
    for name, folder in models.items():
        # The tiny trained model has rows of 172, which are not divisible by the usual 64.
        group_size = 32 if folder.name == "stories260k" else 64
        print(name, file=sys.stderr)
        results.append(
            {
                "model": name,
                "group_size": group_size,
                "drift": drifts(folder, group_size),
                **sensitivity(folder, group_size),
            }
        )
    save(f"quantization-{machine()['device']}", {"models": results})


if __name__ == "__main__":
    main()
