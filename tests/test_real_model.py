"""A real model through everything: SmolLM2-135M-Instruct against transformers' numbers (golden/make_smollm2.py)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from grit_mlx import GritLM
from grit_mlx.convert import ConversionReport, convert
from grit_mlx.model.caches import concatenate_caches
from grit_mlx.model.prompts import rag_prompt
from grit_mlx.training import TrainingSettings, train
from tests.conftest import GOLDEN
from tests.convert.conftest import load_tensors, same_tensors
from tests.server.conftest import Server
from tests.training.conftest import chat_rows, embedding_rows, write_rows

TOLERANCE = 1e-3  # relative to the largest number


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((GOLDEN / "smollm2" / "golden.json").read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def numbers() -> Any:
    return np.load(GOLDEN / "smollm2" / "golden.npz")


@pytest.fixture(scope="module")
def model(smollm2: Path) -> GritLM:
    return GritLM(smollm2, dtype="float32")


def assert_close(found: Any, expected: Any, name: str) -> None:
    scale = np.abs(expected).max()
    assert np.abs(np.array(found) - expected).max() < TOLERANCE * scale, name


def test_logits(model: GritLM, golden: dict[str, Any], numbers: Any) -> None:
    for number, prompt in enumerate(golden["prompts"]):
        assert model.tokenizer.encode(prompt["text"]) == prompt["ids"]
        logits = model.model(mx.array([prompt["ids"]]))[0, -1]
        assert_close(logits[mx.array(numbers[f"ids_{number}"])], numbers[f"logits_{number}"], prompt["text"])
        assert mx.argmax(logits).item() == numbers[f"ids_{number}"][0]


def test_bidirectional_means(model: GritLM, golden: dict[str, Any], numbers: Any) -> None:
    texts = [text["text"] for text in golden["texts"]]
    assert [model.tokenizer.encode(text) for text in texts] == [text["ids"] for text in golden["texts"]]
    vectors = model.encode(texts, instruction="", normalized=False)
    for text, vector, mean in zip(texts, vectors, numbers["means"], strict=True):
        assert_close(vector, mean, text)


def test_greedy_continuations(model: GritLM, golden: dict[str, Any]) -> None:
    ends = set(model.engine_tokenizer.eos_token_ids)
    for prompt in golden["prompts"]:
        count = len(prompt["continued"])
        tokens = [response.token for response in model.stream_responses(prompt["ids"], count)]
        expected = [token for token in prompt["continued"] if token not in ends]
        assert [token for token in tokens if token not in ends] == expected, prompt["text"]


def test_batches_and_the_prompt_cache_write_the_same(model: GritLM, golden: dict[str, Any]) -> None:
    texts = [prompt["text"] for prompt in golden["prompts"][3:7]]
    alone = [model.generate(text, max_tokens=8, raw=True) for text in texts]
    assert model.generate_batch(texts, max_tokens=8, raw=True) == alone


def test_the_chat_template(model: GritLM, golden: dict[str, Any]) -> None:
    messages = [
        {"role": "system", "content": "You are a helpful AI assistant."},
        {"role": "user", "content": "What is gravity?"},
    ]
    assert model.prompt_tokens(messages, raw=False, continues=False) == golden["prompts"][3]["ids"]
    assert "force" in model.generate(messages, max_tokens=20)


def kl(report: ConversionReport) -> float:
    """Of the next token, in nats."""
    assert report.drift is not None and report.drift.kl is not None
    return report.drift.kl


def test_conversion_keeps_every_bit(smollm2_gguf: Path, smollm2: Path, tmp_path: Path) -> None:
    report = convert(smollm2_gguf, tmp_path / "converted")
    assert same_tensors(load_tensors(tmp_path / "converted"), load_tensors(smollm2)) == []
    assert report.drift is not None and report.drift.cosine_mean > 0.999999 and kl(report) < 1e-6
    assert report.bits == {"4": 106_168_320, "8": 28_311_552, "16": 35_136}


def test_quantised_anew(smollm2_gguf: Path, tmp_path: Path) -> None:
    report = convert(smollm2_gguf, tmp_path / "eight", bits=8, recipe="uniform")
    assert report.drift is not None and report.drift.cosine_mean > 0.95 and kl(report) < 0.02
    three = convert(smollm2_gguf, tmp_path / "three", bits=3, recipe="uniform")
    assert kl(report) < kl(three) / 10


DOCUMENT = (
    "The lighthouse on Skerry Point was built in 1843 by Ada Wren. Its lamp burned whale oil until it was changed to "
    "electricity. The keeper's password for the lamp room is heron."
)


def test_document_caches(model: GritLM) -> None:
    others = ["Bread rises because yeast eats sugar.", "A mean is a sum divided by a count. " * 8]
    _, alone = model.encode([DOCUMENT], instruction="", get_cache=True)
    _, among = model.encode([others[0], DOCUMENT, others[1]], instruction="", get_cache=True)
    question = rag_prompt("doc", query="Who built the lighthouse?")
    answers = [model.generate(question, max_tokens=16, cache=caches) for caches in (alone[0], among[1], alone[0])]
    assert answers[0] == answers[1] == answers[2]
    both = concatenate_caches(alone[0], among[0])
    assert isinstance(model.generate(question, max_tokens=4, cache=both), str)


def test_a_schema_over_http(smollm2: Path) -> None:
    pytest.importorskip("llguidance")
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}, "population": {"type": "integer"}},
        "required": ["city", "population"],
        "additionalProperties": False,
    }
    server = Server({"smollm2": smollm2}, {}, [])
    try:
        answer = server.post(
            "/v1/chat/completions",
            {
                "model": "smollm2",
                "messages": [{"role": "user", "content": "Name the capital of France and its population."}],
                "response_format": {"type": "json_schema", "json_schema": {"name": "city", "schema": schema}},
                "temperature": 0,
                "max_tokens": 60,
            },
        )
        value = json.loads(answer["choices"][0]["message"]["content"])
        assert value["city"] == "Paris" and isinstance(value["population"], int)
        vectors = server.post("/v1/embeddings", {"model": "smollm2", "input": ["a cat", "a kitten"]})
        assert len(vectors["data"][1]["embedding"]) == 576
    finally:
        server.stop()


def test_a_lora_step(smollm2: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "data" / "a.jsonl", embedding_rows(8))
    write_rows(tmp_path / "data" / "b.jsonl", chat_rows(8))
    settings = TrainingSettings(
        model=str(smollm2),
        data=str(tmp_path / "data"),
        adapter_path=str(tmp_path / "run"),
        iters=3,
        batch_size=4,
        generative_batch_size=2,
        learning_rate=1e-2,
        num_layers=4,
        lora_parameters={"rank": 4, "scale": 2.0, "dropout": 0.0},
        steps_per_eval=0,
    )
    train(settings)
    tuned, plain = GritLM(smollm2, adapter_path=tmp_path / "run"), GritLM(smollm2)
    first, second = (one.encode(["The keel keeps a ship upright."])[0] for one in (tuned, plain))
    assert 0.5 < float(first @ second) < 0.99999
