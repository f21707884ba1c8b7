"""Numbers from elsewhere: the official GritLM's outputs (../shared), and our own NumPy reference's (golden/)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from grit_mlx import GritLM
from grit_mlx.model.caches import concatenate_caches
from grit_mlx.model.prompts import rag_prompt
from tests import reference
from tests.conftest import GOLDEN, SHARED

ARCHITECTURES = ("mistral", "mixtral")
SETTINGS = {"pooling": "pooling_method", "attn": "attn", "normalized": "normalized"}
ARGUMENTS = ("instruction", "embed_instruction", "max_length", "add_special_tokens")


def encode(folder: Path, texts: list[str], case: dict[str, Any]) -> Any:
    model = GritLM(folder, **{SETTINGS[key]: case[key] for key in SETTINGS if key in case})
    return model.encode(texts, **{key: case[key] for key in ARGUMENTS if key in case})


def own(architecture: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((GOLDEN / architecture / "golden.json").read_text(encoding="utf-8"))
    return content


def official(shared: Path, architecture: str) -> tuple[Path, dict[str, Any], Any]:
    folder = shared / "golden" / architecture
    return folder / "checkpoint", json.loads((folder / "golden.json").read_text()), np.load(folder / "golden.npz")


def official_cases() -> list[tuple[str, int]]:
    # Named one by one where the files are there, so that a failure says which case it was.
    cases = []
    for architecture in ARCHITECTURES:
        path = SHARED / "golden" / architecture / "golden.json"
        count = len(json.loads(path.read_text())["encode"]) if path.exists() else 1
        cases += [(architecture, i) for i in range(count)]
    return cases


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_own_vectors(architecture: str) -> None:
    golden = own(architecture)
    for case in golden["encode"]:
        vectors = encode(GOLDEN / architecture, golden["texts"], case["options"])
        np.testing.assert_allclose(vectors, case["vectors"], atol=1e-5, err_msg=case["name"])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_own_generation(architecture: str) -> None:
    model = GritLM(GOLDEN / architecture)
    for case in own(architecture)["generate"]:
        responses = list(model.stream_responses(case["prompt"], max_tokens=12))
        assert responses[0].prompt_tokens == len(case["ids"])
        assert [response.token for response in responses] == case["greedy"]
        logits = np.array(model.model(mx.array([case["ids"]]))[0, -1])
        np.testing.assert_allclose(logits, case["logits"], atol=1e-4)


@pytest.mark.parametrize(("architecture", "index"), official_cases())
def test_official_vectors(shared: Path, architecture: str, index: int) -> None:
    folder, golden, arrays = official(shared, architecture)
    case = golden["encode"][index]
    vectors = encode(folder, case["texts"], case)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, arrays["encode/" + case["name"]], atol=1e-5, err_msg=case["name"])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_official_generation(shared: Path, architecture: str) -> None:
    folder, golden, arrays = official(shared, architecture)
    model = GritLM(folder)
    for i, case in enumerate(golden["generate"]):
        responses = list(model.stream_responses(case["prompt"], max_tokens=len(case["greedy"])))
        assert responses[0].prompt_tokens == len(case["ids"])
        assert [response.token for response in responses] == case["greedy"]
        logits = np.array(model.model(mx.array([case["ids"]]))[0, -8:])
        np.testing.assert_allclose(logits, arrays[f"generate/{i}/logits"], atol=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_official_cached_answers(shared: Path, architecture: str) -> None:
    """The four cached modes: a cache from ``encode(get_cache=True)``, continued by ``generate(cache=...)``."""
    folder, golden, arrays = official(shared, architecture)
    model = GritLM(folder)
    cases = {case["name"]: case for case in golden["encode"]}
    documents, queries = cases["documents"]["texts"], cases["queries_instructed"]["texts"]

    def cached(text: str, instruction: str, special: bool = True) -> Any:
        return model.encode(text, instruction=instruction, add_special_tokens=special, get_cache=True)[1]

    names = {"docquery": "doc-query", "querydoc": "query-doc"}
    for case in golden["rag"]:
        query, document = queries[case["index"]], documents[case["index"]]
        mode = names.get(case["mode"], case["mode"])
        # Two caches side by side, as the official code does it: the second is not rotated again.
        if mode == "doc":
            cache = cached(document, "<|embed|>\n")
        elif mode == "query":
            cache = cached(query, "<|embed|>\n")
        elif mode == "doc-query":
            cache = concatenate_caches(cached(document, "<|embed|>\n"), cached(query, "<|embed|>\n"))
        else:
            second = cached(document, "\n<|embed|>\n", special=False)
            cache = concatenate_caches(cached(query, "<|embed|>\n"), second)
        assert cache[0].offset == case["cached_tokens"], mode
        prompt = rag_prompt(mode, query=query, document=document)
        responses = list(model.stream_responses(prompt, max_tokens=len(case["greedy"]), cache=cache))
        assert responses[0].prompt_tokens == len(case["prompt_ids"]), mode
        assert [response.token for response in responses] == case["greedy"], mode
        again = list(model.stream_responses(case["prompt_ids"], max_tokens=1, cache=cache))
        expected = arrays[f"rag/{case['index']}/{case['mode']}/logits"].reshape(-1)
        expected = expected - np.logaddexp.reduce(expected)
        np.testing.assert_allclose(np.array(again[0].logprobs), expected, atol=1e-3, err_msg=mode)
        if mode == "doc":
            keys = arrays[f"rag/{case['index']}/doc_keys_layer0"]
            np.testing.assert_allclose(np.array(cache[0].keys[0]), keys, atol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_reference_equals_official(shared: Path, architecture: str) -> None:
    """The reference that made golden/ agrees with the official code, so golden/ can be trusted without it."""
    folder, golden, arrays = official(shared, architecture)
    weights, config = reference.load_weights(folder), json.loads((folder / "config.json").read_text())
    for i, case in enumerate(golden["generate"]):
        logits = reference.logits(weights, config, case["ids"])[-8:]
        np.testing.assert_allclose(logits, arrays[f"generate/{i}/logits"], atol=1e-4)
    tokenizer = GritLM(folder).tokenizer
    for case in golden["encode"][:2]:
        begin = len(tokenizer.encode(case["instruction"]))
        for text, expected in zip(case["texts"], arrays["encode/" + case["name"]], strict=True):
            ids = tokenizer.encode(case["instruction"] + text)
            vector = reference.embed(weights, config, ids, skipped=begin)
            np.testing.assert_allclose(vector, expected, atol=1e-5)
