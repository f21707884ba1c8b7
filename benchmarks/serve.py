"""``grit serve`` under load, against ``mlx_lm.server`` with the same weights in the same run.

    python benchmarks/serve.py [--rounds N] [--tokens N] [--requests N]

- 64 clients with a text each, against one request with all 64: the goal is at most 1.5 times as long, in under a
  quarter as many batches as requests.
- 1, 4 and 16 completions at a time, streamed, greedy, with the same prompts on both sides, which take turns. Then the
  same while another client embeds: mlx_lm.server cannot embed, so a second process with the same weights does.
- The first token of a second turn, and of an answer from a store, the first and the second time.
- Memory after N requests and after ten times as many: the goal is a growth of at most 5 %.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grit_mlx  # noqa: F401 - before mlx, to load the fast BLAS

# isort: split
from common import corpus, machine, random_model, save

from grit_mlx import GritLM
from grit_mlx.rag.store import Store

CLIENTS = 64
SERVE = "import sys; from grit_mlx.cli.main import main; sys.argv[0] = 'grit'; main()"
# With the same BLAS: mlx's own on Linux is a third as fast.
THEIRS = "import grit_mlx, sys; from mlx_lm.server import main; sys.argv[0] = 'server'; main()"


class Program:
    """A server in a process of its own."""

    def __init__(self, *command: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.process = subprocess.Popen([*command, "--port", str(self.port)], stderr=subprocess.DEVNULL)
        for _ in range(1200):
            with contextlib.suppress(OSError):
                if self.request("GET", "/health")[0] == 200:
                    return
            time.sleep(0.1)
        raise SystemExit(f"did not start: {command}")

    def request(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        data = None if body is None else json.dumps(body)
        connection.request(method, path, data, {"Content-Type": "application/json"})
        response = connection.getresponse()
        text = response.read()
        connection.close()
        return response.status, text

    def post(self, path: str, body: Any) -> Any:
        status, text = self.request("POST", path, body)
        assert status == 200, text
        return json.loads(text)

    def stream(self, path: str, body: Any) -> tuple[float, int]:
        """Seconds to the first text, and how many tokens came."""
        for _ in range(3):  # http.server, which mlx_lm.server is, resets connections beyond five at a time
            with contextlib.suppress(ConnectionResetError):
                return self._stream(path, body)
        raise SystemExit("the connection was reset three times")

    def _stream(self, path: str, body: Any) -> tuple[float, int]:
        start, first, tokens = time.perf_counter(), 0.0, 0
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        asked = {**body, "stream": True, "stream_options": {"include_usage": True}}
        connection.request("POST", path, json.dumps(asked), {"Content-Type": "application/json"})
        response = connection.getresponse()
        assert response.status == 200, response.read()
        for line in response:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            for choice in event["choices"]:
                if not first and (choice.get("text") or choice.get("delta", {}).get("content")):
                    first = time.perf_counter() - start
            tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
        connection.close()
        return first, tokens

    def metric(self, name: str) -> float:
        lines = self.request("GET", "/metrics")[1].decode().splitlines()
        return float(next(line.split()[1] for line in lines if line.startswith(f"grit_{name}_total ")))

    def memory(self) -> int:
        """Resident bytes."""
        output = subprocess.run(["ps", "-o", "rss=", "-p", str(self.process.pid)], capture_output=True, check=True)
        return int(output.stdout) * 1024

    def cpu(self) -> float:
        """Seconds of all cores so far, ended threads included."""
        status = Path(f"/proc/{self.process.pid}/stat")
        if status.exists():
            counts = status.read_text().rpartition(")")[2].split()
            return (int(counts[11]) + int(counts[12])) / os.sysconf("SC_CLK_TCK")
        output = subprocess.run(["ps", "-o", "time=", "-p", str(self.process.pid)], capture_output=True, check=True)
        seconds = 0.0
        for part in output.stdout.decode().strip().replace("-", ":").split(":"):  # hours, minutes and seconds
            seconds = 60 * seconds + float(part)
        return seconds

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)


@contextlib.contextmanager
def running(*command: str) -> Iterator[Program]:
    program = Program(*command)
    try:
        yield program
    finally:
        program.stop()


def grit(folder: str, *more: str) -> tuple[str, ...]:
    return (sys.executable, "-c", SERVE, "serve", "--model", folder, *more)


def at_once(count: int, work: Callable[[int], Any]) -> tuple[float, list[Any]]:
    """Seconds that so many threads take together, and their results."""
    results: list[Any] = [None] * count

    def run(i: int) -> None:
        results[i] = work(i)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(count)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - start, results


def embeddings(ours: Program, rounds: int) -> dict[str, Any]:
    texts = [text[:300] for text in corpus("scitldr_test", CLIENTS)]
    ratios, many, one, batches = [], [], [], []
    for i in range(rounds + 1):
        before = ours.metric("embedding_batches")
        apart, _ = at_once(CLIENTS, lambda n: ours.post("/v1/embeddings", {"input": texts[n]}))
        used = ours.metric("embedding_batches") - before
        together, _ = at_once(1, lambda _: ours.post("/v1/embeddings", {"input": texts}))
        if i:  # the first round warms up
            many.append(apart)
            one.append(together)
            ratios.append(apart / together)
            batches.append(used)
    row = {
        "clients": CLIENTS,
        "seconds": round(statistics.median(many), 3),
        "one_request_seconds": round(statistics.median(one), 3),
        "time_ratio": round(statistics.median(ratios), 3),
        "batches": statistics.median(batches),
    }
    print(f"embeddings: {row}", file=sys.stderr)
    return row


def completions(program: Program, count: int, tokens: int, number: int) -> tuple[float, float, float]:
    """Tokens a second, the median of the seconds to the first, and milliseconds of the CPU for each token."""
    # Prompts that no round has in common with another: what is cached is measured elsewhere.
    prompts = [f"Round {number}, story {i}. Wind leans on the sails of a ship. " * 8 for i in range(count)]
    body = {"max_tokens": tokens, "temperature": 0.0}
    before = program.cpu()
    seconds, answers = at_once(count, lambda i: program.stream("/v1/completions", {**body, "prompt": prompts[i]}))
    written = sum(got for _, got in answers)
    used = 1000 * (program.cpu() - before) / written
    return written / seconds, statistics.median(first for first, _ in answers), used


@contextlib.contextmanager
def embedding(program: Program) -> Iterator[Callable[[], int]]:
    """A client that embeds for as long as this lasts; yields how many texts it has had embedded."""
    texts = [text[:600] for text in corpus("pubmedqa", 4)]
    done, stopped = [0], threading.Event()

    def work() -> None:
        while not stopped.is_set():
            program.post("/v1/embeddings", {"input": texts})
            done[0] += len(texts)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield lambda: done[0]
    finally:
        stopped.set()
        thread.join()


def generation(ours: Program, theirs: Program, second: Program, rounds: int, tokens: int) -> list[dict[str, Any]]:
    rows = []
    for mixed in (False, True):
        for count in (1, 4, 16):
            found: dict[str, list[tuple[float, float, float, float]]] = {"ours": [], "theirs": []}
            for i in range(rounds + 1):
                sides = [("ours", ours, ours), ("theirs", theirs, second)]
                for name, program, embedder in sides if i % 2 else reversed(sides):
                    start = time.perf_counter()
                    with embedding(embedder) if mixed else contextlib.nullcontext(lambda: 0) as embedded:
                        speed, first, used = completions(program, count, tokens, 1000 * count + i + 100_000 * mixed)
                        texts = embedded() / (time.perf_counter() - start)
                    if i:
                        found[name].append((speed, first, texts, used))
            middle = {
                name: [statistics.median(column) for column in zip(*runs, strict=True)] for name, runs in found.items()
            }
            pairs = list(zip(found["ours"], found["theirs"], strict=True))
            row = {
                "at_once": count,
                "with_embeddings": mixed,
                "tokens_per_second": round(middle["ours"][0], 1),
                "mlx_lm_tokens_per_second": round(middle["theirs"][0], 1),
                "speed_ratio": round(statistics.median(a[0] / b[0] for a, b in pairs), 3),
                "first_token_seconds": round(middle["ours"][1], 4),
                "mlx_lm_first_token_seconds": round(middle["theirs"][1], 4),
            }
            if not mixed:
                row |= {"cpu_ms_per_token": round(middle["ours"][3], 2)}
                row |= {"mlx_lm_cpu_ms_per_token": round(middle["theirs"][3], 2)}
                row |= {"cpu_ratio": round(statistics.median(a[3] / b[3] for a, b in pairs), 3)}
            if mixed:
                row |= {"texts_per_second": round(middle["ours"][2], 1)}
                row |= {"second_process_texts_per_second": round(middle["theirs"][2], 1)}
            print(row, file=sys.stderr)
            rows.append(row)
    return rows


def first_tokens(ours: Program, questions: list[str]) -> dict[str, Any]:
    """Seconds to the first token: of a chat's turns, and of answers from a store."""
    rows: dict[str, list[float]] = {
        "first turn": [],
        "second turn": [],
        "store": [],
        "store again": [],
        "store, next question": [],
    }
    for i, question in enumerate(questions):
        chat: list[dict[str, str]] = [
            {"role": "user", "content": f"{i}. {question} " + "Wind leans on the sails. " * 150}
        ]
        path, body = "/v1/chat/completions", {"max_tokens": 8}
        rows["first turn"].append(ours.stream(path, {**body, "messages": chat})[0])
        said = ours.post(path, {**body, "messages": chat})["choices"][0]["message"]["content"]
        chat += [{"role": "assistant", "content": said}, {"role": "user", "content": "And then?"}]
        rows["second turn"].append(ours.stream(path, {**body, "messages": chat})[0])
        asked = {**body, "model": "rag:papers", "messages": [{"role": "user", "content": question}]}
        rows["store"].append(ours.stream(path, asked)[0])
        rows["store again"].append(ours.stream(path, asked)[0])
        asked["messages"] = [{"role": "user", "content": question + " Why?"}]
        rows["store, next question"].append(ours.stream(path, asked)[0])
    medians = {name: round(statistics.median(found), 4) for name, found in rows.items()}
    print(f"first tokens: {medians}", file=sys.stderr)
    return medians


def memory(ours: Program, requests: int) -> dict[str, Any]:
    """Resident memory after some requests and after ten times as many, of every kind."""
    texts = [text[:200] for text in corpus("scitldr_test", 50)]

    def some(count: int) -> None:
        def client(number: int) -> None:
            for i in range(number, count, 8):
                text = f"{i} {texts[i % len(texts)]}"
                if i % 4 == 0:
                    ours.post("/v1/completions", {"prompt": text, "max_tokens": 4})
                else:
                    ours.post("/v1/embeddings", {"input": text})

        at_once(8, client)

    some(requests)
    before = ours.memory()
    some(9 * requests)
    after = ours.memory()
    row = {"requests": requests, "bytes": before, "requests_later": 10 * requests, "bytes_later": after}
    row["growth"] = round(after / before - 1, 4)
    print(f"memory: {row}", file=sys.stderr)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--requests", type=int, default=1000)
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    with contextlib.ExitStack() as stack:
        folder = str(stack.enter_context(random_model(hidden=512, layers=2, intermediate=1408)))
        place = Path(stack.enter_context(TemporaryDirectory()))
        papers = corpus("scitldr_test", 40)
        (place / "papers.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in papers))
        Store(place / "store", GritLM(folder)).index([place / "papers.jsonl"])
        # The small memory of prompts is full before the first measurement of the process' memory.
        more = ("--store", f"papers={place / 'store'}", "--prompt-memory", "100MB")
        ours = stack.enter_context(running(*grit(folder, *more)))
        rows: dict[str, Any] = {"embeddings": embeddings(ours, options.rounds)}
        rows["first_tokens"] = first_tokens(ours, [paper[:80] for paper in papers[:7]])
        theirs = stack.enter_context(running(sys.executable, "-c", THEIRS, "--model", folder))
        second = stack.enter_context(running(*grit(folder)))
        rows["generation"] = generation(ours, theirs, second, options.rounds, options.tokens)
        rows["memory"] = memory(ours, options.requests)
    about = {"model": "random Mistral, 2 layers of 512 (5.9 M parameters), vocabulary 32,000", "tokens": options.tokens}
    save(f"serve-{machine()['device']}", {**about, "rounds": options.rounds, **rows})


if __name__ == "__main__":
    main()
