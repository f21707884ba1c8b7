"""Documents that another machine has cached in a bucket: seconds to have their keys and values, against computing them.

    python benchmarks/shared_caches.py [--model NAME] [--documents N ...] [--rounds N]

The bucket is on this machine (moto's server, which ``make integrations`` installs), so the network costs nothing: what
is measured is the work around it. ``--documents`` are lengths in tokens. The columns are:

- ``compute``: the document's pass through the model;
- ``bucket``: the list, the document, its checksum, the copy on this machine, and its arrays, in a process that has not
  used the bucket yet; ``bucket, again``: a second document of the same process;
- ``disk``: the same from this machine's own folder;
- ``give``: room in the list, the document, the list again: in the background, after an answer.

For lists of some lengths, the seconds to read one and to note a use in it. The best round counts,
to exclude other load on a shared machine.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grit_mlx  # noqa: F401 - before mlx, to load the fast BLAS

# isort: split
import mlx.core as mx
from common import machine, random_model, save, seconds
from rag import Texts

from grit_mlx import GritLM
from grit_mlx.rag import DocumentCaches
from grit_mlx.rag.caches.bucket import CacheBucket
from grit_mlx.rag.caches.ledger import Ledger, Shared
from grit_mlx.rag.caches.objects import Bucket
from grit_mlx.rag.caches.sharing import Sharing
from grit_mlx.rag.encoding import Encoder

URI = "s3://grit/store"
SERVER = "from moto.server import main; main(['-H', '127.0.0.1', '-p', '0'])"
LISTED = (100, 1_000, 10_000)


@contextlib.contextmanager
def bucket() -> Iterator[None]:
    """An empty bucket, which the environment names."""
    import boto3

    with TemporaryDirectory() as name:
        log = Path(name) / "log"
        with log.open("w") as file:
            server = subprocess.Popen([sys.executable, "-u", "-c", SERVER], stdout=file, stderr=file)
        try:
            while not (found := re.search(r"http://127\.0\.0\.1:\d+", log.read_text())):
                if server.poll() is not None:
                    sys.exit(log.read_text())
                time.sleep(0.1)
            os.environ |= {"AWS_ENDPOINT_URL": found[0], "AWS_REGION": "us-east-1"}
            os.environ |= {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
            boto3.client("s3", endpoint_url=found[0]).create_bucket(Bucket="grit")
            yield
        finally:
            server.terminate()
            server.wait()


def opened(folder: Path) -> DocumentCaches:
    """The caches of a machine that has just started."""
    caches = DocumentCaches(folder)
    caches.sharing = Sharing(caches.local, lambda: CacheBucket.of(URI, 10**12))
    return caches


def measure(encoder: Encoder, texts: Texts, tokens: int, folder: Path) -> dict[str, Any]:
    contents = [texts.next(tokens) for _ in range(2)]
    keys = [f"{time.time_ns()}{number}".zfill(40)[-40:] for number in range(2)]
    found: dict[str, float] = {}
    layers: list[Any] = []

    def compute() -> None:
        layers.append(encoder.vectors_and_caches(contents[:1])[1][0])
        mx.eval([(layer.keys, layer.values) for layer in layers[0]])

    found["compute"] = seconds(compute)
    giving, here = opened(folder / f"{keys[0]}-giving"), folder / f"{keys[0]}-here"
    assert giving.save(keys[0], "passage", layers[0])
    giving.settle()
    found["give"] = seconds(lambda: (giving.save(keys[1], "passage", layers[0]), giving.settle()))
    caches = opened(here)

    def have(caches: DocumentCaches, key: str) -> None:
        if not caches.sizes(key)[0]:
            caches.fetch({key: "passage"})
        assert caches.get(key) is not None

    found["bucket"] = seconds(lambda: have(caches, keys[0]))
    found["bucket, again"] = seconds(lambda: have(caches, keys[1]))
    found["disk"] = seconds(lambda: have(opened(here), keys[0]))
    return {**found, "bytes": caches.local.entry(keys[0])[0]}


def lists(rounds: int) -> list[dict[str, Any]]:
    """What a list costs by its length."""
    rows = []
    for count in LISTED:
        uri = f"s3://grit/{count}"
        documents = {f"{number:040x}": Shared("0" * 16, 30_000_000, number, 1, "0" * 32) for number in range(count)}
        content = Ledger(10**15, 1, documents).dump()
        Bucket(f"{uri}/caches").put("ledger.json", content)
        used = list(documents)[:4]
        read, note = [], []
        for _ in range(rounds):
            place = CacheBucket.of(uri, 0)
            read.append(seconds(partial(place.sizes, used)))
            note.append(seconds(partial(place.note_use, used)))
        rows.append({"documents": count, "bytes": len(content), "read": min(read), "note": min(note)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="model to use (default: a random Mistral with 23 M parameters)")
    parser.add_argument("--documents", type=int, nargs="+", default=[256, 1000, 4000])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        stack.enter_context(bucket())
        folder = Path(stack.enter_context(TemporaryDirectory()))
        name = options.model or stack.enter_context(random_model(hidden=1024, layers=2, intermediate=2816, kv_heads=2))
        model = GritLM(name)
        encoder, texts = Encoder(model), Texts(model.tokenizer)
        measure(encoder, texts, 64, folder)  # warm-up
        rows = []
        for tokens in options.documents:
            runs = [measure(encoder, texts, tokens, folder) for _ in range(options.rounds)]
            rows.append({"tokens": tokens, **{side: min(run[side] for run in runs) for side in runs[0]}})
            print(rows[-1], file=sys.stderr)
        results = {
            "model": options.model or "random Mistral, 2 layers of 1024 (23 M parameters)",
            "rounds": options.rounds,
            "rows": rows,
            "lists": lists(options.rounds),
        }
        save(f"shared_caches-{machine()['device']}", results)


if __name__ == "__main__":
    main()
