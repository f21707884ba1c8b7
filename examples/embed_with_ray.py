"""Embed Parquet files with Ray Data: each worker loads the model once, and ids stay with their vectors."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from grit_mlx import GritLM


class Embed:
    """What a worker does with a batch of rows."""

    def __init__(self) -> None:
        self.model = GritLM(mode="embedding")

    def __call__(self, rows: pa.Table) -> pa.Table:
        """The rows with their vectors."""
        vectors = self.model.encode_corpus(rows["text"].to_pylist(), progress=False)  # (rows, E)
        column = pa.FixedSizeListArray.from_arrays(vectors.ravel(), vectors.shape[1])
        return rows.append_column("embedding", column)


if __name__ == "__main__":
    texts = ["Yeast makes bread rise.", "The keel keeps a ship upright.", "Rain falls in spring."]
    corpus, vectors = Path("corpus").resolve(), Path("vectors").resolve()
    corpus.mkdir()
    for number, text in enumerate(texts):
        pq.write_table(pa.table({"id": [number], "text": [text]}), corpus / f"part-{number:05}.parquet")

    # A cluster on this machine; ray.init("auto") joins one that runs. Reading and writing take a CPU each, too: with no
    # more than the two that the workers hold, Ray would wait forever.
    ray.init(num_cpus=4)
    rows = ray.data.read_parquet(str(corpus))
    embedded = rows.map_batches(
        Embed, batch_format="pyarrow", batch_size=1024, compute=ray.data.ActorPoolStrategy(size=2)
    )
    embedded.write_parquet(str(vectors))

    found = pq.read_table(vectors).to_pylist()
    query = GritLM(mode="embedding").encode_queries("Why does bread rise?")
    best = max(found, key=lambda row: np.dot(row["embedding"], query))
    print(texts[best["id"]])
