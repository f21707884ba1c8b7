"""What clients do wrong, by accident or on purpose: the server answers, says why, and keeps nothing."""

from __future__ import annotations

import gc
import gzip
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlx_lm.models.cache import BatchKVCache, KVCache

from grit_mlx.server.decoding import Answer
from grit_mlx.server.work import Work
from tests.server.conftest import Server

POSTS = [
    "/v1/embeddings",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/messages",
    "/rerank",
    "/v1/stores/notes/search",
]
FIELDS = [
    *("model", "input", "messages", "prompt", "max_tokens", "temperature", "top_p", "top_k", "stop", "stream", "query"),
    *(
        "documents",
        "top_n",
        "encoding_format",
        "dimensions",
        "input_type",
        "instruction",
        "truncate",
        "stream_options",
        "n",
        "seed",
    ),
    *("logprobs", "top_logprobs", "echo", "response_format", "tools", "paths", "system", "stop_sequences", "min_p"),
    *(
        "max_completion_tokens",
        "repetition_penalty",
        "presence_penalty",
        "logit_bias",
        "thinking",
        "return_documents",
        "nonsense",
    ),
]
# Many more where time does not matter.
EXAMPLES = int(os.environ.get("GRIT_TEST_REQUESTS", "1000"))

texts = st.text(max_size=20) | st.sampled_from(
    ["tiny", "tiny:query", "rag:notes", "a" * 3000, "\ud800", "</s>", "<|user|>"]
)
leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | texts
    | st.sampled_from([0, 1, -1, 3, {"type": "json_object"}, {"type": "text", "text": "hi"}])
)
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=3), max_leaves=8
)
messages = st.lists(
    st.fixed_dictionaries(
        {
            "role": st.sampled_from(["user", "assistant", "system", "developer", "tool"]) | values,
            "content": texts | values,
        }
    ),
    max_size=3,
)
bodies = st.dictionaries(st.sampled_from(FIELDS), values, max_size=6).flatmap(
    lambda body: st.tuples(st.just(body), messages).map(
        lambda pair: {**pair[0], **({"messages": pair[1]} if pair[1] else {})}
    )
)


def dumped(body: Any) -> bytes:
    return json.dumps(body).encode()  # halves of surrogate pairs are escaped, NaN is not JSON


def damaged(body: Any, seed: int) -> bytes:
    """A body cut off, or with a byte that is not UTF-8."""
    data, chance = dumped(body), random.Random(seed)
    at = chance.randrange(len(data))
    return data[:at] if chance.random() < 0.5 else data[:at] + b"\xff" + data[at:]


def check(server: Server, path: str, body: bytes) -> None:
    status, headers, data = server.request("POST", path, body)
    assert status in (200, 400, 404, 503), (status, data)
    assert b"Traceback" not in data
    if "event-stream" in headers["content-type"]:
        return
    answer = json.loads(data)
    if status != 200:
        error = answer["error"]
        assert isinstance(error["message"], str) and error["message"]
        assert status != 503, error  # nothing here is the server's fault


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(POSTS), bodies, st.integers(0, 2**32), st.booleans())
def test_malformed_requests(server: Server, path: str, body: Any, seed: int, damage: bool) -> None:
    if isinstance(body.get("max_tokens"), int | float) and body["max_tokens"] > 20:
        body["max_tokens"] = 5  # to be done soon
    elif path == "/v1/chat/completions" and body.get("max_completion_tokens") is None:
        body.setdefault("max_tokens", 5)
        if body["max_tokens"] is None or body["max_tokens"] == -1:
            body["max_tokens"] = 5
    if isinstance(body.get("max_completion_tokens"), int | float) and not 0 < body["max_completion_tokens"] < 20:
        body["max_completion_tokens"] = 5
    check(server, path, damaged(body, seed) if damage else dumped(body))
    server.settle()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b'"text"',
        b"{",
        b'{"input": "\xff"}',
        b'{"input": NaN}',
        b'{"input": ' + b"9" * 10_000 + b"}",
        b'{"input": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"messages": ' + b'[{"content":' * 5_000 + b"1" + b"}]" * 5_000 + b"}",
        b'{"a": 1, "a": 2}',
        b"\x00" * 100,
    ],
)
@pytest.mark.parametrize("path", POSTS)
def test_bodies_that_are_no_requests(server: Server, path: str, body: bytes) -> None:
    status, _, data = server.request("POST", path, body)
    assert status == 400, data
    assert json.loads(data)["error"]["message"]


@pytest.mark.parametrize(
    "path", ["/v1/nothing", "/v1/chat/completions", "/health", "/v1/stores/none", "/v1/models/none"]
)
def test_wrong_addresses(server: Server, path: str) -> None:
    method = "POST" if path == "/health" else "GET"
    status, _, data = server.request(method, path)
    assert status in (404, 405)
    assert json.loads(data)["error"]["message"]


@pytest.mark.parametrize("path, allowed", [("/v1/chat/completions", {"POST"}), ("/v1/models", {"GET", "HEAD"})])
def test_wrong_methods_name_the_right_ones(server: Server, path: str, allowed: set[str]) -> None:
    status, headers, data = server.request("DELETE", path)
    assert status == 405 and set(headers["allow"].split(", ")) == allowed
    error = json.loads(data)["error"]
    assert error["code"] == "method_not_allowed" and all(method in error["message"] for method in allowed)


@pytest.mark.parametrize("encoding", ["gzip", "br", "Deflate"])
def test_compressed_bodies_are_named(server: Server, encoding: str) -> None:
    body = gzip.compress(b'{"input": "a"}')
    status, _, data = server.request("POST", "/v1/embeddings", body, {"content-encoding": encoding})
    assert status == 415 and encoding in json.loads(data)["error"]["message"]


def test_a_byte_order_mark_is_no_part_of_a_body(server: Server) -> None:
    for headers in ({}, {"content-encoding": "identity"}):
        status, _, data = server.request("POST", "/v1/embeddings", b'\xef\xbb\xbf{"input": "a"}', headers)
        assert status == 200, data


def test_a_chat_of_no_tokens_is_refused(server: Server) -> None:
    """Not answered without a limit."""
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 0}
    status, _, data = server.request("POST", "/v1/chat/completions", body)
    assert status == 400 and "max_tokens must be at least 1" in json.loads(data)["error"]["message"]


def raw(server: Server, body: Any, path: str = "/v1/chat/completions") -> socket.socket:
    """A connection on which a request was sent."""
    connection = socket.create_connection(("127.0.0.1", server.port))
    data = dumped(body)
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n".encode()
    connection.sendall(head + data)
    return connection


LONG = {"messages": [{"role": "user", "content": "Tell me all"}], "max_tokens": 5000}


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_place(server: Server, stream: bool) -> None:
    before = server.host.engine.counts.written_tokens
    connection = raw(server, {**LONG, "stream": stream})
    deadline = time.monotonic() + 20
    while server.host.engine.counts.written_tokens == before:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    connection.close()
    server.settle()
    assert server.host.engine.counts.written_tokens - before < 5000


def held(server: Server) -> dict[str, int]:
    """What answers leave in memory, beside the prompts that are kept on purpose: those are forgotten here."""
    engine = server.host.engine
    forgotten = threading.Event()
    engine.call(lambda: engine.prefixes.trim_to(n_sequences=0))
    engine.call(forgotten.set)
    assert forgotten.wait(20)
    lanes = [model.lane() for model in server.host.models.values()]
    # With nothing to write, mlx-lm's batch is empty; the next answer begins with it.
    for generator in (lane.decoder._batch._generator for lane in lanes if lane.decoder is not None):
        if generator is not None:
            assert not (generator._unprocessed_sequences or generator._currently_processing)
            assert not generator._generation_batch.uids
    gc.collect()
    mine = (Answer, Work, KVCache, BatchKVCache)
    kinds = Counter(type(one).__name__ for one in gc.get_objects() if issubclass(type(one), mine))
    return {"kept": engine.prefixes.nbytes, "waiting": sum(len(lane.waiting) for lane in lanes), **kinds}


def test_sockets_that_close_at_random_moments(server: Server) -> None:
    chance = random.Random(5)
    bodies = [{**LONG, "stream": True}, {**LONG, "max_tokens": 30}, {**LONG, "model": "rag:notes", "max_tokens": 30}]

    def visit(seed: int) -> None:
        own = random.Random(seed)
        body = own.choice(bodies)
        if own.random() < 0.3:
            connection = raw(server, {"input": ["some text"] * own.randrange(1, 400)}, "/v1/embeddings")
        else:
            connection = raw(server, body)
        if own.random() < 0.3:
            connection.shutdown(socket.SHUT_WR)
        time.sleep(own.random() * 0.3)
        connection.close()

    visit(5)  # what is made once
    server.settle()
    before = held(server)
    for _ in range(10):
        threads = [threading.Thread(target=visit, args=(chance.random(),)) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    server.settle()
    assert held(server) == before
    assert server.post("/v1/embeddings", {"input": "still here"})["data"]


def test_half_a_request(server: Server) -> None:
    """A connection on which the rest never comes holds nothing up."""
    connections = []
    for part in (
        b"",
        b"POST /v1/emb",
        b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Length: 90\r\n\r\n{",
    ):
        connections.append(socket.create_connection(("127.0.0.1", server.port)))
        connections[-1].sendall(part)
    assert server.get("/health") == {"status": "ok"}
    assert server.host.requests == 0
    for connection in connections:
        connection.close()


def test_a_slow_reader_does_not_hold_up_the_others(server: Server) -> None:
    connection = raw(server, {**LONG, "stream": True, "max_tokens": 400})
    answer = server.post("/v1/chat/completions", {**LONG, "max_tokens": 5})
    assert answer["usage"]["completion_tokens"] == 5
    time.sleep(0.2)
    connection.settimeout(20)
    while b"[DONE]" not in connection.recv(1 << 16):
        pass
    connection.close()
    server.settle()


def test_a_slow_writer_does_not_hold_up_the_others(server: Server) -> None:
    """A body that comes byte by byte is answered in the end; meanwhile others are."""
    data = dumped({"input": "slow"})
    connection = socket.create_connection(("127.0.0.1", server.port))
    connection.sendall(b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(data))
    for number in range(len(data)):
        connection.sendall(data[number : number + 1])
        if number % 5 == 0:
            assert server.post("/v1/embeddings", {"input": "quick"})["data"]
    connection.settimeout(20)
    assert connection.recv(100).startswith(b"HTTP/1.1 200")
    connection.close()
    server.settle()


def test_a_client_that_is_killed_in_mid_stream(server: Server) -> None:
    program = (
        "import sys, openai\n"
        f"client = openai.OpenAI(base_url='{server.url}/v1', api_key='x')\n"
        "stream = client.chat.completions.create(model='tiny', stream=True, max_tokens=5000,"
        " messages=[{'role': 'user', 'content': 'Tell me all'}])\n"
        "for chunk in stream:\n    print(chunk.id, flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    server.settle()


def test_a_full_server_says_when_to_try_again(start: Callable[..., Server]) -> None:
    server = start(max_queue=1)
    connection = raw(server, {**LONG, "stream": True})
    assert connection.recv(100)
    status, headers, data = server.request("POST", "/v1/embeddings", {"input": "a"})
    assert (status, headers["retry-after"]) == (429, "2")
    assert json.loads(data)["error"]["type"] == "rate_limit_error"
    assert b"grit_refused_requests_total 1" in server.request("GET", "/metrics")[2]
    connection.close()
    server.settle()
    assert server.post("/v1/embeddings", {"input": "a"})["data"]
