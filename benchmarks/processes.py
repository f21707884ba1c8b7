"""One process against several of ``mlx.launch`` on one machine: equality, and what a command takes.

    python benchmarks/processes.py MODEL [--texts FILE]

On a machine whose cores the processes share nothing gets faster; what is measured is that results are the same, and
what the exchange costs. On several machines each process has its own device.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from common import RESULTS, corpus, save

GRIT = [sys.executable, "-c", "import sys; from grit_mlx.cli.main import main; sys.exit(main())"]
PROMPT = "The capital of France is"
_IDLE_SECONDS = 20
TRAINING = [
    "--iters",
    "3",
    "--steps-per-report",
    "1",
    "--batch-size",
    "4",
    "--steps-per-eval",
    "0",
    "--mode",
    "embedding",
]


def launcher(size: int) -> list[str]:
    """What starts a command in so many processes."""
    start = "from mlx._distributed_utils.launch import main; main()"
    return [sys.executable, "-c", start, "-n", str(size), "-p", "29300", "--"] if size > 1 else []


def launched(size: int, *arguments: str) -> tuple[str, float]:
    """What ``grit`` prints in so many processes, and its seconds."""
    began = time.perf_counter()
    done = subprocess.run(
        [*launcher(size), *GRIT, *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
    )
    seconds = time.perf_counter() - began
    if "error:" in done.stderr or done.returncode:
        sys.exit(done.stderr)
    return done.stdout, round(seconds, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--texts", type=Path, help="a text a line; default: a development corpus of ../shared")
    parser.add_argument("--count", type=int, default=32)
    parser.add_argument("--sizes", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    asked = parser.parse_args()
    lines = asked.texts.read_text().splitlines() if asked.texts else corpus("xquad_en")
    results: dict[str, Any] = {"model": Path(asked.model).name, "texts": asked.count}
    with TemporaryDirectory() as name:
        folder = Path(name)
        texts = [" ".join(line.split())[:600] for line in lines[: asked.count]]
        (folder / "texts.txt").write_text("".join(f"{text}\n" for text in texts))
        results |= earlier(results) | {part: PARTS[part](asked.model, folder, asked.sizes) for part in asked.parts}
    save("processes", results)
    print(json.dumps(results, indent=1))


def earlier(results: dict[str, Any]) -> dict[str, Any]:
    """The parts that an earlier run measured with the same model and texts."""
    path = RESULTS / "processes.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    alike = all(found.get(name) == value for name, value in results.items())
    return {part: found[part] for part in PARTS if part in found} if alike else {}


def embedded(model: str, folder: Path, size: int, *more: str) -> tuple[bytes, np.ndarray, float]:
    """The file of vectors, the vectors, and the seconds that the command took."""
    output = folder / "v.npy"
    _, seconds = launched(size, "embed", str(folder / "texts.txt"), "-m", model, "-o", str(output), "-q", *more)
    return output.read_bytes(), np.load(output), seconds


def shares(model: str, folder: Path, sizes: list[int]) -> list[dict[str, Any]]:
    """Embedding with the whole model in every process."""
    whole, _, seconds = embedded(model, folder, 1)
    found: list[dict[str, Any]] = [{"processes": 1, "seconds": seconds}]
    for size in sizes:
        content, _, seconds = embedded(model, folder, size)
        found.append({"processes": size, "seconds": seconds, "same_bytes": content == whole})
    return found


def split(model: str, folder: Path, sizes: list[int]) -> list[dict[str, Any]]:
    """Embedding and generating with one model split among the processes."""
    asking = ["generate", PROMPT, "--raw", "-m", model, "--max-tokens", "16", "-q"]
    answer, answering = launched(1, *asking)
    _, whole, seconds = embedded(model, folder, 1)
    found: list[dict[str, Any]] = [{"processes": 1, "embed_seconds": seconds, "generate_seconds": answering}]
    for shard in ("tensor", "pipeline"):
        for size in sizes:
            _, vectors, seconds = embedded(model, folder, size, "--shard", shard)
            text, answering = launched(size, *asking, "--shard", shard)
            found.append(
                {
                    "processes": size,
                    "shard": shard,
                    "embed_seconds": seconds,
                    "generate_seconds": answering,
                    "largest_difference": float(np.abs(vectors - whole).max()),
                    "same_answer": text == answer,
                }
            )
    return found


def training(model: str, folder: Path, sizes: list[int]) -> list[dict[str, Any]]:
    """The same steps in one process and in more."""
    texts = (folder / "texts.txt").read_text().splitlines()
    rows = [{"query": text[:80], "pos": [text[80:240] or text]} for text in texts]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = []
    for size in [1, *sizes]:
        adapter = folder / f"adapter-{size}"
        common = ["--data", str(folder / "rows.jsonl"), "--adapter-path", str(adapter), "-q"]
        _, seconds = launched(size, "train", "-m", model, *common, *TRAINING)
        log = [json.loads(line) for line in (adapter / "log.jsonl").read_text().splitlines()]
        steps = [line for line in log if line["kind"] == "train"]
        found.append({"processes": size, "seconds": seconds, "last_step": steps[-1]})
    return found


def serving(model: str, folder: Path, sizes: list[int]) -> list[dict[str, Any]]:
    """A server whose model is split: what it costs while nobody asks, and how long answers take."""
    found: list[dict[str, Any]] = []
    for size in [1, *sizes]:
        with server(size, model) as (port, processes):
            post(port, "embeddings", {"input": "warm"})
            before = [cpu_seconds(process) for process in processes]
            time.sleep(_IDLE_SECONDS)
            idle = [(cpu_seconds(one) - spent) / _IDLE_SECONDS for one, spent in zip(processes, before, strict=True)]
            rested, answered = [], []
            for number in range(10):
                time.sleep(1)
                rested.append(post(port, "embeddings", {"input": f"after a second, {number}"})[1])
            at_once = [post(port, "embeddings", {"input": f"at once, {number}"})[1] for number in range(30)]
            for _ in range(3):
                asked = {"prompt": PROMPT, "max_tokens": 64, "temperature": 0}
                reply, seconds = post(port, "completions", asked)
                answered.append(seconds / reply["usage"]["completion_tokens"])
            text = reply["choices"][0]["text"]
        found.append(
            {
                "processes": size,
                "idle_cpu": [round(share, 4) for share in idle],
                "embedding_after_a_second_ms": round(1000 * statistics.median(rested), 1),
                "embedding_at_once_ms": round(1000 * statistics.median(at_once), 1),
                "token_ms": round(1000 * statistics.median(answered), 1),
                "answer": text,
            }
        )
    answers = [one.pop("answer") for one in found]
    return [{**one, "same_answer": text == answers[0]} for one, text in zip(found, answers, strict=True)]


@contextmanager
def server(size: int, model: str) -> Iterator[tuple[int, list[int]]]:
    """The port of a server that so many processes share, and the processes."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [*launcher(size), *GRIT, "serve", "-m", model, "--port", str(port), "-q"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as started:
        for _ in range(3000):
            with suppress(OSError):
                connection = http.client.HTTPConnection("127.0.0.1", port)
                connection.request("GET", "/health")
                if connection.getresponse().status == 200:
                    break
            time.sleep(0.1)
        listed = subprocess.run(["ps", "-Ao", "pid=,args="], capture_output=True, text=True, check=True).stdout
        rows = [line.split(None, 1) for line in listed.splitlines() if f"--port {port}" in line]
        known = [int(pid) for pid, args in rows if "_distributed_utils" not in args]
        try:
            yield port, known
        finally:
            started.terminate()


def cpu_seconds(process: int) -> float:
    """Seconds of a processor that a process has taken."""
    stat = Path(f"/proc/{process}/stat")
    if stat.exists():
        return sum(map(int, stat.read_text().rpartition(")")[2].split()[11:13])) / os.sysconf("SC_CLK_TCK")
    shown = subprocess.run(["ps", "-o", "time=", "-p", str(process)], capture_output=True, text=True, check=True)
    *_, minutes, seconds = ["0", *shown.stdout.strip().split(":")]
    return 60 * float(minutes) + float(seconds)


def post(port: int, path: str, body: dict[str, Any]) -> tuple[dict[str, Any], float]:
    """A reply, and the seconds that it took."""
    began = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    connection.request("POST", f"/v1/{path}", json.dumps(body))
    reply = json.loads(connection.getresponse().read())
    return reply, time.perf_counter() - began


PARTS = {"training": training, "shares": shares, "split": split, "serving": serving}

if __name__ == "__main__":
    main()
