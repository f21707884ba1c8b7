"""Both modes on mlx-lm's own classes: they attend as they should, padding changes nothing, the rest is refused."""

from __future__ import annotations

import importlib
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.models.cache import KVCache, make_prompt_cache

from grit_mlx.errors import ArchitectureError, NonFiniteError
from grit_mlx.model import attention
from grit_mlx.model.caches import split_rows

VOCABULARY = 96
BASE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rms_norm_eps": 1e-5,
    "vocab_size": VOCABULARY,
    "rope_theta": 10000.0,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}
WINDOWED = {"sliding_window": 4, "sliding_window_pattern": 2}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {},
    "mixtral": {"num_local_experts": 4},
    "qwen2": {},
    "qwen3": {},
    "qwen3_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "decoder_sparse_step": 1,
        "moe_intermediate_size": 16,
        "mlp_only_layers": [],
        "norm_topk_prob": True,
    },
    "gemma": {},
    "gemma2": {"final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0, "query_pre_attn_scalar": 8.0},
    "gemma3_text": WINDOWED,
    "phi3": {},
    "olmo2": {},
}


def make(kind: str) -> nn.Module:
    module = importlib.import_module(f"mlx_lm.models.{ {'mistral': 'llama'}.get(kind, kind) }")
    mx.random.seed(0)
    return module.Model(module.ModelArgs.from_dict({"model_type": kind, **BASE, **ARCHITECTURES[kind]}))  # type: ignore[no-any-return]


def random_ids(length: int, seed: int = 0) -> mx.array:
    return mx.array(np.random.default_rng(seed).integers(0, VOCABULARY, (1, length)))


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_both_modes_and_padding(kind: str) -> None:
    model = make(kind)
    attention.broadcast_masks(model)
    assert attention.check_both_modes(model, vocabulary_size=VOCABULARY) == 32
    states = attention.decoder_of(model)
    ids = random_ids(9)
    alone = states(ids, cache=attention.embedding_caches(4))
    # The padding is made of real, different tokens: only the mask keeps them out.
    padded_ids = mx.concatenate([ids, random_ids(5, seed=1)], axis=1)
    padding = mx.array([[True] * 9 + [False] * 5])
    padded = states(padded_ids, cache=attention.embedding_caches(4, padding))[:, :9]
    np.testing.assert_allclose(np.array(padded), np.array(alone), atol=2e-6)


@pytest.mark.parametrize("kind", ["llama", "gemma3_text"])
def test_causal_mode_is_what_mlx_lm_computes(kind: str) -> None:
    model = make(kind)
    states = attention.decoder_of(model)
    ids = random_ids(9)
    ours = states(ids, cache=attention.embedding_caches(4, causal=True))
    theirs = states(ids, cache=make_prompt_cache(model))
    np.testing.assert_allclose(np.array(ours), np.array(theirs), atol=2e-6)


def test_sliding_window_reaches_both_ways() -> None:
    mask = attention.bidirectional_mask(6, None, window=3)
    assert mask is not None and mask.shape == (1, 1, 6, 6)
    seen = np.array(mask)[0, 0]
    assert seen[3].tolist() == [False, True, True, True, True, True]
    assert (seen == seen.T).all()
    padded = attention.bidirectional_mask(6, mx.array([[True] * 4 + [False] * 2]), window=3)
    assert padded is not None and np.array(padded)[0, 0, 3].tolist() == [False, True, True, True, False, False]
    assert attention.bidirectional_mask(6, None, window=6) is None


def test_document_cache_is_bidirectional_then_causal() -> None:
    model = make("llama")
    states = attention.decoder_of(model)
    document, following = random_ids(7), random_ids(3, seed=2)
    caches = attention.document_caches(4)
    first = states(document, cache=caches)
    np.testing.assert_allclose(
        np.array(first), np.array(states(document, cache=attention.embedding_caches(4))), atol=2e-6
    )
    second = states(following, cache=caches)
    changed = mx.concatenate([following[:, :-1], (following[:, -1:] + 1) % VOCABULARY], axis=1)
    again = attention.document_caches(4)
    states(document, cache=again)
    other = states(changed, cache=again)
    # What follows the document is causal: its first tokens do not see its last.
    np.testing.assert_allclose(np.array(second[:, :-1]), np.array(other[:, :-1]), atol=2e-6)
    assert caches[0].offset == 10


def test_split_rows_equal_each_text_alone() -> None:
    model = make("llama")
    states = attention.decoder_of(model)
    ids, lengths = random_ids(8), [8, 5]
    batch = mx.concatenate([ids, mx.concatenate([ids[:, :5], random_ids(3, seed=3)], axis=1)])
    padding = mx.array([[True] * 8, [True] * 5 + [False] * 3])
    caches = attention.document_caches(4, padding)
    states(batch, cache=caches)
    rows = split_rows(caches, lengths)
    for row, length in zip(rows, lengths, strict=True):
        alone = attention.document_caches(4)
        states(ids[:, :length], cache=alone)
        kept: Any
        single: Any
        for kept, single in zip(row, alone, strict=True):
            assert kept.offset == length and kept.keys.shape == (1, 2, length, 8) and type(kept) is KVCache
            np.testing.assert_allclose(np.array(kept.keys), np.array(single.keys[..., :length, :]), atol=2e-6)
            np.testing.assert_allclose(np.array(kept.values), np.array(single.values[..., :length, :]), atol=2e-6)


class IgnoresTheHook(nn.Module):
    """An mlx-lm decoder as some ports write it: with a causal mask of its own."""

    model_type = "stubborn"

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        inner: Any = make("llama")
        self.inner = inner.model
        self.layers = inner.layers

    def model(self, ids: mx.array, cache: Any = None) -> mx.array:
        return self.inner(ids, cache=attention.embedding_caches(4, causal=True))  # type: ignore[no-any-return]


class SeesAhead(IgnoresTheHook):
    """The opposite: bidirectional whatever it is told."""

    def model(self, ids: mx.array, cache: Any = None) -> mx.array:
        return self.inner(ids, cache=attention.embedding_caches(4))  # type: ignore[no-any-return]


def test_an_architecture_that_ignores_the_hook_is_refused_by_name() -> None:
    with pytest.raises(ArchitectureError, match="'stubborn' cannot embed bidirectionally: its first token does not"):
        attention.check_both_modes(IgnoresTheHook(), vocabulary_size=VOCABULARY)
    with pytest.raises(ArchitectureError, match="its first token sees the last one in causal mode"):
        attention.check_both_modes(SeesAhead(), vocabulary_size=VOCABULARY)


def test_a_recurrent_architecture_is_refused_by_name() -> None:
    from mlx_lm.models import mamba

    args = {"model_type": "mamba", **BASE, "state_size": 8, "conv_kernel": 4, "use_bias": False}
    model = mamba.Model(mamba.ModelArgs.from_dict({**args, "use_conv_bias": True, "time_step_rank": 4}))
    with pytest.raises(ArchitectureError, match=r"'mamba' cannot embed bidirectionally: it does not run"):
        attention.check_both_modes(model, vocabulary_size=VOCABULARY)


def test_damaged_weights_are_told_from_a_wrong_architecture() -> None:
    model = make("llama")
    model.model.norm.weight = mx.full((32,), float("nan"))
    with pytest.raises(NonFiniteError, match="damaged"):
        attention.check_both_modes(model, vocabulary_size=VOCABULARY)


def test_gradients_flow_through_both_modes() -> None:
    """Training uses the same caches."""
    model = make("llama")
    states = attention.decoder_of(model)
    ids = random_ids(6)

    def loss(parameters: Any, causal: bool) -> mx.array:
        model.update(parameters)
        return states(ids, cache=attention.embedding_caches(4, causal=causal))[:, 0].square().sum()

    gradients = {}
    for causal in (True, False):
        gradient = mx.grad(lambda p, c=causal: loss(p, c))(model.parameters())
        gradients[causal] = np.array(gradient["model"]["embed_tokens"]["weight"])
        model.update(make("llama").parameters())
    numbers: Any = ids[0].tolist()
    later = numbers[-1]
    assert later != numbers[0]
    assert np.abs(gradients[True][later]).max() == 0  # the first token cannot see the last
    assert np.abs(gradients[False][later]).max() > 0
