"""``grit serve`` in several processes: what one process answers, and all of them in step whatever clients do."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import processes
from tests.cli.test_launch import process_of
from tests.server.conftest import Server

_QUEUE = 3000

TEXTS = ["A keel keeps a ship upright.", "Bread.", "A sail catches the wind, and the ship moves on and on."]


@dataclass
class Split:
    """A server that several processes share."""

    launcher: subprocess.Popen[str]
    port: int
    known: tuple[str, int]

    def process(self, rank: int) -> int:
        """One of its processes."""
        return process_of("\0".join(map(str, self.known)) + "\0", rank=rank)

    def post(self, path: str, **body: Any) -> Any:
        """The JSON of a response that must be one."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        connection.request("POST", path, json.dumps(body))
        response = connection.getresponse()
        data = response.read()
        connection.close()
        assert response.status == 200, data
        return json.loads(data)

    def chat(self, text: str, **options: Any) -> Any:
        """An answer to one message."""
        return self.post("/v1/chat/completions", **asked(text, **options))


def asked(text: str, **options: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 12, **options}


def said(answer: Any) -> Any:
    """What does not differ between two equal answers."""
    choice = answer["choices"][0]
    return choice["message"]["content"], choice["finish_reason"], answer["usage"]


@pytest.fixture(scope="module")
def begin() -> Iterator[Callable[..., Split]]:
    running: list[Split] = []

    def start(*options: object, size: int = 2) -> Split:
        known = ("--max-queue", _QUEUE + len(running))  # what its processes are found by
        launcher = processes.launch(size, *processes.GRIT, "serve", *options, *known, "--port", 0)
        assert launcher.stderr is not None
        notes: list[str] = []
        while "serving" not in (line := launcher.stderr.readline()):
            assert line, (notes, launcher.communicate())
            notes.append(line)
        running.append(Split(launcher, int(line.rpartition(":")[2]), known))
        return running[-1]

    yield start
    held = [split.process(rank) for split in running if split.launcher.poll() is None for rank in (0, 1)]
    for launcher in (split.launcher for split in running):
        launcher.terminate()
        launcher.wait(30)
        for pipe in (launcher.stdout, launcher.stderr):
            assert pipe is not None
            pipe.close()
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{process}").exists() for process in held):  # they notice that it has ended
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(scope="module", params=["tensor", "pipeline"])
def split(request: pytest.FixtureRequest, begin: Callable[..., Split], tiny_model: Path, notes: Path) -> Split:
    store = f"notes={notes / 'store'}"
    # Memory for a few prompts: others are dropped, in all processes.
    return begin("-m", tiny_model, "--store", store, "--shard", request.param, "--prompt-memory", "300KB")


def test_it_answers_as_one_process_does(split: Split, server: Server) -> None:
    both: list[Callable[..., Any]] = [split.post, lambda path, **body: server.post(path, body)]

    def equal(path: str, take: Callable[[Any], Any], **body: Any) -> None:
        found, expected = (take(post(path, **body)) for post in both)
        np.testing.assert_allclose(found, expected, atol=1e-5)

    equal("/v1/embeddings", lambda reply: [one["embedding"] for one in reply["data"]], input=TEXTS)
    equal("/v1/embeddings", lambda reply: [one["embedding"] for one in reply["data"]], input=TEXTS * 100)

    def scores(reply: Any) -> list[float]:
        return [one["relevance_score"] for one in sorted(reply["results"], key=lambda one: one["index"])]

    equal("/v1/rerank", scores, query="What keeps a ship upright?", documents=TEXTS)

    def logprobs(reply: Any) -> list[float]:
        return list(reply["choices"][0]["logprobs"]["token_logprobs"][1:])

    long = " ".join(TEXTS * 5)  # more than one part
    equal("/v1/completions", logprobs, prompt=long, max_tokens=3, echo=True, logprobs=2)
    for options in ({}, {"temperature": 1, "seed": 5}, {"logprobs": True, "top_logprobs": 2}, {"stop": "e"}):
        found, expected = (said(post("/v1/chat/completions", **asked("Name a ship.", **options))) for post in both)
        assert found[:2] == expected[:2] and found[2]["completion_tokens"] == expected[2]["completion_tokens"]
    schema = {"type": "json_schema", "json_schema": {"schema": {"enum": ["sloop", "ketch"]}}}
    assert json.loads(said(split.chat("Which?", response_format=schema, max_tokens=40))[0]) in ("sloop", "ketch")


def test_it_answers_from_a_store(split: Split) -> None:
    question = "When is the boiler serviced?"
    answer = split.post("/v1/chat/completions", **asked(question, model="rag:notes"))
    assert answer["choices"][0]["message"]["citations"][0]["path"].endswith("boiler.md")
    assert answer["usage"]["completion_tokens"] > 1
    again = split.post("/v1/chat/completions", **asked(question, model="rag:notes"))
    assert said(again)[0] == said(answer)[0]
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] > 20


def test_a_second_turn_continues_the_first(split: Split, server: Server) -> None:
    turns = [{"role": "user", "content": "What is a keel, and what is a sail? " * 3}]
    reply = said(split.post("/v1/chat/completions", messages=turns, max_tokens=8))
    turns += [{"role": "assistant", "content": reply[0]}, {"role": "user", "content": "And a rudder?"}]
    second = said(split.post("/v1/chat/completions", messages=turns, max_tokens=8))
    assert second[2]["prompt_tokens_details"]["cached_tokens"] > 30
    assert second[:2] == said(server.post("/v1/chat/completions", {"messages": turns, "max_tokens": 8}))[:2]


def test_many_at_once(split: Split, server: Server) -> None:
    """Answers of several lengths, drawn and not, that begin and end within one another, and vectors between them."""
    bodies = [asked(f"Story {i}: {'go on ' * i}", max_tokens=3 * i + 2, temperature=i % 2, seed=i) for i in range(6)]
    alone = [said(server.post("/v1/chat/completions", body))[:2] for body in bodies]
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(split.post, "/v1/chat/completions", **body) for body in bodies]
        vectors = [pool.submit(split.post, "/v1/embeddings", input=TEXTS[i % 3]) for i in range(8)]
        assert [said(answer.result())[:2] for answer in answers] == alone
        found = [one.result()["data"][0]["embedding"] for one in vectors]
    expected = [server.post("/v1/embeddings", {"input": TEXTS[i % 3]})["data"][0]["embedding"] for i in range(8)]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_who_goes_away_and_what_fails_leave_all_in_step(split: Split, server: Server) -> None:
    for _ in range(2):
        connection = http.client.HTTPConnection("127.0.0.1", split.port, timeout=60)
        connection.request("POST", "/v1/chat/completions", json.dumps(asked("All", max_tokens=5000, stream=True)))
        assert connection.getresponse().read(200)
        connection.close()
    connection = http.client.HTTPConnection("127.0.0.1", split.port, timeout=60)
    for wrong in (asked("A", response_format={"type": "json_schema", "json_schema": {"schema": {"type": 3}}}), {}):
        connection.request("POST", "/v1/chat/completions", json.dumps(wrong))
        response = connection.getresponse()
        assert response.status == 400 and response.read()
    connection.close()
    assert said(split.chat("Name a ship."))[:2] == said(server.post("/v1/chat/completions", asked("Name a ship.")))[:2]


def test_a_mixture_of_experts(begin: Callable[..., Split], start: Callable[..., Server], tiny_mixtral: Path) -> None:
    split, alone = begin("-m", tiny_mixtral), start(models={"mixtral": tiny_mixtral})
    for text in ("Name a ship.", "Name a ship. Or two."):
        assert said(split.chat(text)) == said(alone.post("/v1/chat/completions", asked(text)))
    replies = split.post("/v1/embeddings", input=TEXTS), alone.post("/v1/embeddings", {"input": TEXTS})
    found, expected = ([one["embedding"] for one in reply["data"]] for reply in replies)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_commands_do_not_use_it(split: Split) -> None:
    """They would compute in an order that the other processes do not know."""
    connection = http.client.HTTPConnection("127.0.0.1", split.port, timeout=60)
    connection.request("POST", "/v1/warm/encode", json.dumps({"text": "a", "options": {}}))
    assert connection.getresponse().status == 404


@pytest.mark.parametrize("busy", [False, True])
def test_a_process_that_is_killed_ends_the_server(begin: Callable[..., Split], tiny_model: Path, busy: bool) -> None:
    split = begin("-m", tiny_model, "--shard", "pipeline" if busy else "tensor")
    leader, follower = map(split.process, (0, 1))
    connection = http.client.HTTPConnection("127.0.0.1", split.port, timeout=60)
    if busy:
        connection.request("POST", "/v1/chat/completions", json.dumps(asked("All", max_tokens=9000, stream=True)))
        assert connection.getresponse().read(200)
    os.kill(follower, signal.SIGKILL)
    started = time.monotonic()
    _, err = processes.finished(split.launcher, timeout=60)
    assert err.count("error: ") == 1 and "nother" in err and "has ended" in err and "Traceback" not in err, err
    assert not Path(f"/proc/{leader}").exists()
    assert time.monotonic() - started < 20
    connection.close()
