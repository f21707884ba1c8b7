"""Measured sensitivity: the streamed trials equal plain runs of whole models, and budgets are kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from grit_mlx import GritLM
from grit_mlx.convert import convert, sensitivity
from grit_mlx.convert.layout import parameters
from grit_mlx.convert.plan import ConversionPlan, make_plan
from grit_mlx.convert.quantization import Quantization
from grit_mlx.convert.reading import Folder
from grit_mlx.convert.sensitivity import Budget, Costs, spend
from grit_mlx.convert.streaming import Stream
from grit_mlx.evaluation.drift import TEXTS
from grit_mlx.model.attention import decoder_of, embedding_caches
from tests.conftest import GOLDEN

GROUP = 32


def stream_of(folder: Path) -> Stream:
    source = Folder(folder)
    plan, model = make_plan(source)
    return Stream(plan, source, model)


def brute_force(folder: Path, module: str, tokens: mx.array, bits: int) -> tuple[float, float]:
    """A whole model with one module rounded, run in both modes."""

    def outputs(model: Any) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        states = decoder_of(model)(tokens, cache=embedding_caches(2)).mean(axis=1)
        logits = model(tokens)
        return (
            np.array(states / mx.linalg.norm(states, axis=-1, keepdims=True)),
            np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True)),
        )

    model = GritLM(folder).model
    vectors, log_p = outputs(model)
    name = f"{module}.weight"
    model.load_weights([(name, sensitivity.rounded(parameters(model)[name], Quantization(bits, GROUP)))], strict=False)
    other, log_q = outputs(model)
    return float(1 - (vectors * other).sum(axis=1).mean()), float((np.exp(log_p) * (log_p - log_q)).sum(axis=-1).mean())


@pytest.mark.parametrize("architecture", ["mistral", "mixtral"])
def test_streamed_trials_equal_whole_models(architecture: str) -> None:
    folder = GOLDEN / architecture
    stream, trial = stream_of(folder), Quantization(4, GROUP)
    tokenize = GritLM(folder).tokenizer.encode
    modules = sensitivity._modules(stream, trial)
    steps: list[tuple[int, int]] = []
    costs = sensitivity.measure(stream, modules, tokenize, trial, progress=lambda *step: steps.append(step))
    assert costs.keys() == modules.keys() and not any(name.endswith(".gate") for name in modules)
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]
    tokens = sensitivity._token_rows(tokenize, TEXTS, sensitivity._TRIAL_TOKENS)
    assert tokens.shape == (16, 32)
    for name in ("model.embed_tokens", "model.layers.0.self_attn.v_proj", "model.layers.1.self_attn.o_proj", "lm_head"):
        cosine, kl = brute_force(folder, name, tokens, 4)
        assert costs[name].cosine == pytest.approx(cosine, abs=2e-6, rel=1e-3)
        assert costs[name].kl == pytest.approx(kl, abs=2e-6, rel=1e-3)


def made_up(sizes: dict[str, int]) -> tuple[ConversionPlan, dict[str, Any]]:
    from grit_mlx.convert.layout import Layout
    from grit_mlx.convert.plan import Weight

    weights = tuple(Weight(f"{name}.weight", (rows, 64), mx.bfloat16, None, None) for name, rows in sizes.items())
    return ConversionPlan(weights, Layout({}, {}, ()), {}), {weight.module: weight for weight in weights}


def test_bits_go_where_they_help() -> None:
    plan, modules = made_up({"weak": 100, "strong": 100, "strong_but_large": 1000})
    costs = {"weak": Costs(0.001, 0.001), "strong": Costs(0.1, 0.1), "strong_but_large": Costs(0.1, 0.1)}
    previous = float("inf")
    for bits in (3.0, 4.5, 6.0, 9.0):
        chosen = spend(plan, modules, costs, Budget(bits, None, 64))
        spent = sum(modules[name].rows * 64 * q.bits_per_weight(mx.bfloat16) for name, q in chosen.items())
        assert spent <= bits * plan.parameters
        # The weak one may get what is left over, where a step of the large one would not fit.
        assert chosen["strong"].bits >= max(chosen["weak"].bits, chosen["strong_but_large"].bits)
        # One module may lose a bit when a larger one fits in; the expected drift of all never grows.
        drift = sum(costs[name].cosine * sensitivity.noise(q.bits) for name, q in chosen.items())
        assert drift < previous
        previous = drift
    assert {q.bits for q in chosen.values()} == {8}, "with room for all, all get the most"


def test_memory_is_a_budget_too() -> None:
    plan, modules = made_up({"a": 1000})
    costs = {"a": Costs(0.1, 0.1)}
    # 64,000 numbers at 4.5 bits are 36,000 bytes, which are 75 % of 48,000.
    assert spend(plan, modules, costs, Budget(None, 48_000, 64))["a"].bits == 4
    assert spend(plan, modules, costs, Budget(None, 47_000, 64))["a"].bits == 3


def test_modules_without_effect_need_no_bits() -> None:
    plan, modules = made_up({"a": 10, "b": 10})
    assert len(spend(plan, modules, {"a": Costs(0, 0), "b": Costs(0, 0)}, Budget(4.5, None, 64))) == 2


@pytest.mark.parametrize("architecture", ["mistral", "mixtral"])
def test_measured_bits_beat_uniform_ones_of_the_same_size(architecture: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"group_size": GROUP}
    uniform = convert(GOLDEN / architecture, tmp_path / "4", quantize=True, recipe="uniform", bits=4, **options)
    measured = convert(GOLDEN / architecture, tmp_path / "m", target_bits=uniform.bits_per_weight, **options)
    assert measured.bits_per_weight <= uniform.bits_per_weight
    assert uniform.drift is not None and measured.drift is not None
    assert uniform.drift.kl is not None and measured.drift.kl is not None
    assert measured.drift.cosine_mean > uniform.drift.cosine_mean
    assert measured.drift.kl < uniform.drift.kl
    about = json.loads((measured.folder / "grit.json").read_text())["about"]
    assert about["recipe"] == "measured" and len(about["parameters_by_bits"]) > 2
