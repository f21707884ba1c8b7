"""Data and settings small enough for runs of a second."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from grit_mlx.training import TrainingSettings

TOPICS = ("keel", "bread", "wind", "ship", "yeast", "sugar", "sail", "page", "answer", "paragraph", "gas", "line")
VERBS = ("keeps", "leans on", "eats", "breathes", "answers", "fills")


def embedding_rows(count: int, negatives: int = 1) -> list[dict[str, Any]]:
    """Queries whose answers share their words, so that there is something to learn."""
    rows = []
    for i in range(count):
        topic, other, verb = TOPICS[i % 12], TOPICS[(i + 5) % 12], VERBS[i // 2 % 6]
        rows.append(
            {
                "query": ["Find the sentence", f"what {verb} the {topic} {i}"],
                "pos": [["", f"The {topic} {verb} number {i}."]],
                "neg": [["", f"A {other} is no {topic}."]] * negatives,
            }
        )
    return rows


def chat_rows(count: int) -> list[dict[str, Any]]:
    return [{"text": [f"Say {TOPICS[i % 12]}.", f"{TOPICS[i % 12]} {TOPICS[i % 12]}"]} for i in range(count)]


def write_rows(path: Path, rows: Sequence[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with two files for embedding and one for generating."""
    folder = tmp_path / "data"
    write_rows(folder / "embedding" / "a.jsonl", embedding_rows(40))
    write_rows(folder / "embedding" / "b.jsonl", embedding_rows(30, negatives=0))
    write_rows(folder / "generative" / "chats.jsonl", chat_rows(40))
    return folder


@pytest.fixture
def settings(tiny_model: Path, data: Path, tmp_path: Path) -> Callable[..., TrainingSettings]:
    """``settings(**changes)``: a run of a few steps."""

    def make(**changes: Any) -> TrainingSettings:
        values: dict[str, Any] = {
            "model": None if "from_scratch" in changes else str(tiny_model),
            "data": str(data),
            "adapter_path": str(tmp_path / "run"),
            "iters": 6,
            "batch_size": 8,
            "generative_batch_size": 4,
            "chunk_size": 6,
            "learning_rate": 3e-3,
            "steps_per_report": 1,
            "steps_per_eval": 0,
            "val_rows": 8,
            "warmup": 0.0,
            "lr_schedule": "constant",
        }
        return TrainingSettings(**{**values, **changes})

    return make
