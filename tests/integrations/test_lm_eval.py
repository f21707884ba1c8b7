"""A task of lm-evaluation-harness on local data, against a score computed by hand."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from tests.integrations.tools import tool

tool("lm_eval")

from grit_mlx import GritLM
from grit_mlx.errors import ArgumentError, ModeError
from grit_mlx.evaluation.harness import SUITES, HarnessTasks, score_tasks

ROWS = [
    {"question": "Bread rises because of", "choices": ["yeast", "sand", "a long cold winter"], "answer": 0},
    {"question": "A ship stays upright because of its", "choices": ["sail", "keel"], "answer": 1},
    {"question": "Rain falls from", "choices": ["clouds", "stones", "trees", "books"], "answer": 0},
    {"question": "Two and two is", "choices": ["three", "four"], "answer": 1},
]

TASK = """
task: local_choices
dataset_path: json
dataset_kwargs:
  data_files: {data}
output_type: multiple_choice
test_split: train
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
target_delimiter: " "
metric_list:
  - metric: acc
"""

WRITTEN = """
task: local_written
dataset_path: json
dataset_kwargs:
  data_files: {data}
output_type: generate_until
test_split: train
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{written}}}}"
generation_kwargs: {{until: ["\\n\\n\\n"], max_gen_toks: 5}}
metric_list:
  - metric: exact_match
"""


@pytest.fixture
def task(tmp_path: Path) -> Path:
    data = tmp_path / "rows.json"
    data.write_text("\n".join(json.dumps(row) for row in ROWS))
    path = tmp_path / "local_choices.yaml"
    path.write_text(TASK.format(data=data))
    return path


def log_likelihood(model: GritLM, question: str, answer: str) -> float:
    """From the logits alone: no cache, no batch."""
    context, tokens = model.tokenizer.encode(question), model.tokenizer.encode(f"{question} {answer}")
    start = len(context)
    if tokens[:start] != context or len(tokens) == start:  # the tokenizer merges across the border
        tokens = context + model.tokenizer.encode(f" {answer}", add_special_tokens=False)
    logits = np.array(model.model(mx.array([tokens]))[0].astype(mx.float32), dtype=np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    log_probabilities = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return float(sum(log_probabilities[i - 1, tokens[i]] for i in range(start, len(tokens))))


def test_the_score_is_the_one_computed_by_hand(task: Path, tiny_model: Path, tmp_path: Path) -> None:
    model = GritLM(tiny_model)
    right = 0
    for row in ROWS:
        found = [log_likelihood(model, str(row["question"]), choice) for choice in row["choices"]]  # type: ignore[attr-defined]
        right += int(np.argmax(found)) == row["answer"]
    written = tmp_path / "scores.json"
    grit = [sys.executable, "-c", "from grit_mlx.cli.main import main; main()"]
    subprocess.run([*grit, "eval", "--lm-eval", task, "--model", tiny_model, "--json", written], check=True)
    (score,) = json.loads(written.read_text())["scores"]
    assert score["set"] == "local_choices"
    assert score["kind"] == "lm-eval"
    assert score["values"] == {"acc": right / len(ROWS)}


def test_chats_are_in_the_models_format(tiny_model: Path, tmp_path: Path) -> None:
    model = GritLM(tiny_model)
    rows = [{"question": question, "written": model.generate(question, max_tokens=5)} for question in ("Hello", "Why?")]
    data = tmp_path / "rows.json"
    data.write_text("\n".join(json.dumps(row) for row in rows))
    path = tmp_path / "local_written.yaml"
    path.write_text(WRITTEN.format(data=data))
    (score,) = score_tasks(model, HarnessTasks([str(path)]), chat=True)
    assert score.values["exact_match"] == 1.0


def test_what_cannot_work_is_one_sentence(task: Path, tiny_model: Path) -> None:
    with pytest.raises(ArgumentError, match="gsm8k"):
        HarnessTasks(["gsm8kk"])
    with pytest.raises(ArgumentError, match="no file"):
        HarnessTasks(["nowhere.yaml"])
    with pytest.raises(ModeError):
        next(score_tasks(GritLM(tiny_model, mode="embedding"), HarnessTasks([str(task)])))


def test_the_papers_suite_is_known() -> None:
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    assert set(SUITES["grit"]) <= set(HarnessTasks(["grit"]).names)
