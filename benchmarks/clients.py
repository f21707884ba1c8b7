"""Programs that people have, against ``grit serve``: each must get from it what the SDK computes.

    python -m venv clients && clients/bin/pip install . -r benchmarks/clients.txt
    clients/bin/python benchmarks/clients.py [--url http://127.0.0.1:8080]

Without ``--url`` a server with the tests' random checkpoint is started. The exit code is 1 if a client fails; those
that are not installed are named.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grit_mlx  # noqa: F401 - before mlx, to load the fast BLAS

# isort: split
import numpy as np

from grit_mlx import GritLM

MODEL = Path(__file__).parents[1] / "tests" / "golden" / "mistral"
TEXTS = ["Rain falls from clouds.", "The boiler is serviced in October."]
QUESTION = "What falls from clouds?"
SCHEMA = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "blue"]}},
    "required": ["colour"],
    "additionalProperties": False,
}


class Case:
    """What every client is compared with."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.model = GritLM(MODEL)
        self.name = MODEL.name
        self.vectors = self.model.encode(TEXTS, role="document")
        self.answer = self.model.generate(QUESTION, max_tokens=12)

    def same(self, vectors: Any) -> None:
        np.testing.assert_allclose(np.array(vectors, dtype=np.float32), self.vectors, atol=2e-6)


def openai(case: Case) -> None:
    import openai

    client = openai.OpenAI(base_url=f"{case.url}/v1", api_key="none")
    case.same([one.embedding for one in client.embeddings.create(model=case.name, input=TEXTS).data])
    messages: Any = [{"role": "user", "content": QUESTION}]
    chunks = client.chat.completions.create(model=case.name, messages=messages, max_tokens=12, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == case.answer


def langchain_openai(case: Case) -> None:
    from langchain_openai import ChatOpenAI, OpenAIEmbeddings

    settings: Any = {"base_url": f"{case.url}/v1", "api_key": "none", "model": case.name}
    try:
        OpenAIEmbeddings(**settings).embed_documents(TEXTS)
    except OSError:
        print("langchain-openai: its default was not tried, for tiktoken cannot download its encoding")
    except Exception as error:
        assert "check_embedding_ctx_length=False" in str(error), error
    else:
        raise AssertionError("token ids of another tokenizer were embedded")
    case.same(OpenAIEmbeddings(**settings, check_embedding_ctx_length=False).embed_documents(TEXTS))
    chat = ChatOpenAI(**settings, max_completion_tokens=12, temperature=0)
    assert chat.invoke(QUESTION).content == case.answer
    assert "".join(str(chunk.content) for chunk in chat.stream(QUESTION)) == case.answer
    form = {"title": "Colour", **SCHEMA}
    limited = ChatOpenAI(**settings, max_completion_tokens=100)
    assert limited.with_structured_output(form, method="json_schema").invoke("A colour?")["colour"] in ("red", "blue")


def llama_index(case: Case) -> None:
    from llama_index.embeddings.openai_like import OpenAILikeEmbedding

    embedder = OpenAILikeEmbedding(model_name=case.name, api_base=f"{case.url}/v1", api_key="none")
    case.same(embedder.get_text_embedding_batch(TEXTS))


def litellm(case: Case) -> None:
    import litellm

    settings: Any = {"model": f"openai/{case.name}", "api_base": f"{case.url}/v1", "api_key": "none"}
    case.same([one["embedding"] for one in litellm.embedding(input=TEXTS, **settings).data])
    messages = [{"role": "user", "content": QUESTION}]
    answer = litellm.completion(messages=messages, max_tokens=12, **settings)
    assert answer.choices[0].message.content == case.answer


def cohere(case: Case) -> None:
    import cohere

    for client in (cohere.Client("none", base_url=case.url), cohere.ClientV2("none", base_url=case.url)):
        ranked = client.rerank(model=case.name, query=QUESTION, documents=TEXTS, top_n=2)
        assert sorted(one.index for one in ranked.results) == [0, 1]
        scores = [one.relevance_score for one in ranked.results]
        assert scores == sorted(scores, reverse=True)


def anthropic(case: Case) -> None:
    import anthropic

    client = anthropic.Anthropic(base_url=case.url, api_key="none")
    messages: Any = [{"role": "user", "content": QUESTION}]
    with client.messages.stream(model=case.name, max_tokens=12, messages=messages) as stream:
        assert "".join(stream.text_stream) == case.answer


def llm(case: Case) -> None:
    """The command, with a model of its own settings file: it always streams, and sends schemas."""
    with tempfile.TemporaryDirectory() as home:
        entry = {"model_id": "local", "model_name": case.name, "api_base": f"{case.url}/v1"}
        # JSON is YAML.
        (Path(home) / "extra-openai-models.yaml").write_text(json.dumps([{**entry, "supports_schema": True}]))
        environment = {**os.environ, "LLM_USER_PATH": home, "OPENAI_API_KEY": "none"}

        def run(*arguments: str) -> str:
            command = [sys.executable, "-m", "llm", "prompt", "-m", "local", *arguments]
            return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()

        assert run(QUESTION, "-o", "max_tokens", "12", "-o", "temperature", "0") == case.answer.strip()
        assert json.loads(run("A colour?", "--schema", json.dumps(SCHEMA)))["colour"] in ("red", "blue")


CLIENTS: dict[str, tuple[str, Callable[[Case], None]]] = {
    "openai": ("openai", openai),
    "langchain-openai": ("langchain_openai", langchain_openai),
    "llama-index-embeddings-openai-like": ("llama_index", llama_index),
    "litellm": ("litellm", litellm),
    "cohere": ("cohere", cohere),
    "anthropic": ("anthropic", anthropic),
    "llm": ("llm", llm),
}


@contextlib.contextmanager
def server() -> Iterator[str]:
    """A server with the model."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    program = "from grit_mlx.cli.main import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", program, "serve", "--quiet", "--model", str(MODEL), "--port", str(port)]
    )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health"):
                break
            time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(30)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url")
    parser.add_argument("--only", choices=CLIENTS)
    options = parser.parse_args()
    failed = False
    with contextlib.nullcontext(options.url) if options.url else server() as url:
        case = Case(url)
        for name, (module, check) in CLIENTS.items():
            if options.only not in (None, name):
                continue
            if importlib.util.find_spec(module) is None:
                print(f"{name:<36} not installed")
                continue
            try:
                check(case)
            except Exception as error:
                failed = True
                print(f"{name:<36} FAILED: {type(error).__name__}: {error}")
            else:
                print(f"{name:<36} ok")
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
