"""Ray Data with a real cluster of two workers, by the class of the example."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from grit_mlx import GritLM
from tests.integrations.tools import tool

Embed: Any = tool("examples.embed_with_ray").Embed
ROOT = Path(__file__).parents[2]


class EmbedSomewhere(Embed):
    """Also notes which process a row was in, and begins when both have rows: one alone would be done too soon."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = Path(folder)

    def __call__(self, rows: pa.Table) -> pa.Table:
        (self.folder / str(os.getpid())).touch()
        deadline = time.monotonic() + 30
        while len(list(self.folder.iterdir())) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        return super().__call__(rows).append_column("process", pa.array([os.getpid()] * len(rows)))


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    ray = tool("ray")
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GRIT_HOME": os.environ["GRIT_HOME"]}
    ray.init(num_cpus=4, runtime_env={"env_vars": environment}, log_to_driver=False, include_dashboard=False)
    yield ray
    ray.shutdown()


def test_rows_of_many_files_keep_their_ids(ray: Any, tmp_path: Path) -> None:
    texts = {number: f"Ship {number} sails {'on and ' * (number % 9)}on." for number in range(60)}
    for name in ("corpus", "processes"):
        (tmp_path / name).mkdir()
    for part in range(6):
        rows = [{"id": number, "text": texts[number]} for number in range(10 * part, 10 * part + 10)]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "corpus" / f"part-{part:05}.parquet")
    two = ray.data.ActorPoolStrategy(size=2)
    corpus = ray.data.read_parquet(str(tmp_path / "corpus")).repartition(6)  # small files are read together
    embedded = corpus.map_batches(
        EmbedSomewhere,
        fn_constructor_args=[str(tmp_path / "processes")],
        batch_format="pyarrow",
        batch_size=10,
        compute=two,
    )
    embedded.write_parquet(str(tmp_path / "vectors"))
    found = {row["id"]: row for row in pq.read_table(tmp_path / "vectors").to_pylist()}
    assert sorted(found) == sorted(texts) and all(found[number]["text"] == text for number, text in texts.items())
    processes = {row["process"] for row in found.values()}
    assert len(processes) == 2 and os.getpid() not in processes
    expected = GritLM(mode="embedding").encode_corpus(list(texts.values()))
    np.testing.assert_allclose([found[number]["embedding"] for number in texts], expected, atol=1e-6)
