"""Programs that people have, against ``grit serve``: each must get from it what the library computes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from grit_mlx import GritLM
from tests.integrations.tools import tool
from tests.server.conftest import Server, start

__all__ = ["start"]  # a fixture

TEXTS = ["Rain falls from clouds.", "The boiler is serviced in October."]
QUESTION = "What falls from clouds?"
TOKENS = 12
SCHEMA = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "blue"]}},
    "required": ["colour"],
    "additionalProperties": False,
}
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # or importing it asks for a list of prices

NODE = Path(sys.prefix) / "node"  # where scripts/integrations.sh puts the packages


class Case:
    """A server, and what every client is compared with."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.url, self.name = server.url, "tiny"
        self.model = model = server.model
        self.documents = model.encode(TEXTS, role="document")
        self.queries = model.encode(TEXTS, role="query")
        self.answer = model.generate(QUESTION, max_tokens=TOKENS)

    def same(self, vectors: Any, expected: Any = None) -> None:
        wanted = self.documents if expected is None else expected
        np.testing.assert_allclose(np.array(vectors, dtype=np.float32), wanted, atol=2e-6)


@pytest.fixture(scope="module")
def case(start: Callable[..., Server]) -> Case:
    return Case(start())


@pytest.fixture
def chat(case: Case) -> Iterator[Any]:
    """Settings that all of OpenAI's clients take; afterwards nothing is left of what they asked."""
    yield {"base_url": f"{case.url}/v1", "api_key": "none", "model": case.name}
    case.server.settle()


# LangChain


@pytest.fixture
def encodings(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenAI's token ids without a download: litellm's wheel has the file of cl100k_base."""
    folder = Path(tool("litellm").__file__).parent / "litellm_core_utils" / "tokenizers"
    assert any(folder.iterdir())
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(folder))
    monkeypatch.setenv("CUSTOM_TIKTOKEN_CACHE_DIR", str(folder))


@pytest.mark.usefixtures("encodings")
def test_langchains_default_is_refused_with_what_to_set(case: Case, chat: Any) -> None:
    """It sends ids of another tokenizer, which are within this one's vocabulary and mean other words."""
    openai, langchain = tool("openai"), tool("langchain_openai")
    for method, texts in (("embed_documents", TEXTS), ("embed_query", QUESTION)):
        with pytest.raises(openai.BadRequestError, match="set check_embedding_ctx_length=False") as caught:
            getattr(langchain.OpenAIEmbeddings(**chat), method)(texts)
        assert caught.value.status_code == 400 and caught.value.param == "input"
    right = langchain.OpenAIEmbeddings(**chat, check_embedding_ctx_length=False)
    case.same(right.embed_documents(TEXTS))
    queries = langchain.OpenAIEmbeddings(**{**chat, "model": "tiny:query"}, check_embedding_ctx_length=False)
    case.same([queries.embed_query(text) for text in TEXTS], case.queries)


def test_langchains_chat(case: Case, chat: Any) -> None:
    model = tool("langchain_openai").ChatOpenAI(**chat, max_completion_tokens=TOKENS, temperature=0, stream_usage=True)
    whole = model.invoke(QUESTION)
    assert whole.content == case.answer
    chunks = list(model.stream(QUESTION))
    assert "".join(str(chunk.content) for chunk in chunks) == case.answer
    usages = [chunk.usage_metadata for chunk in chunks if chunk.usage_metadata]
    assert usages[-1]["output_tokens"] == whole.usage_metadata["output_tokens"] == TOKENS
    limited = tool("langchain_openai").ChatOpenAI(**chat, max_completion_tokens=200)
    colour = limited.with_structured_output({"title": "Colour", **SCHEMA}, method="json_schema").invoke("A colour?")
    jsonschema.validate(colour, SCHEMA)


# LlamaIndex


def test_llama_index(case: Case, chat: Any) -> None:
    embedder = tool("llama_index.embeddings.openai_like").OpenAILikeEmbedding(
        model_name=case.name, api_base=chat["base_url"], api_key="none", embed_batch_size=1
    )
    case.same(embedder.get_text_embedding_batch(TEXTS))
    case.same([embedder.get_text_embedding(text) for text in TEXTS])
    queries = tool("llama_index.embeddings.openai_like").OpenAILikeEmbedding(
        model_name="tiny:query", api_base=chat["base_url"], api_key="none"
    )
    case.same([queries.get_query_embedding(text) for text in TEXTS], case.queries)


# litellm


def test_litellm(case: Case, chat: Any) -> None:
    litellm = tool("litellm")
    settings: Any = {"model": f"openai/{case.name}", "api_base": chat["base_url"], "api_key": "none"}
    case.same([one["embedding"] for one in litellm.embedding(input=TEXTS, **settings).data])
    asked: Any = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": TOKENS, **settings}
    assert litellm.completion(**asked).choices[0].message.content == case.answer
    chunks = list(litellm.completion(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(one.delta.content or "" for chunk in chunks for one in chunk.choices) == case.answer
    assert chunks[-1].usage.completion_tokens == TOKENS
    with pytest.raises(litellm.BadRequestError, match="one answer a request"):
        litellm.completion(**asked, n=2)
    with pytest.raises(litellm.NotFoundError, match="other"):
        litellm.completion(**{**asked, "model": "openai/other"})


@pytest.mark.parametrize("route", ["cohere", "jina_ai", "infinity", "hosted_vllm"])
def test_litellm_reranks(route: str, case: Case, chat: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    litellm = tool("litellm")
    monkeypatch.setenv("INFINITY_API_KEY", "none")
    base = case.url + {"cohere": "/v2/rerank", "jina_ai": "/v1/rerank"}.get(route, "")
    asked: Any = {"query": QUESTION, "documents": TEXTS, "top_n": 2, "api_base": base, "api_key": "none"}
    if route == "infinity":
        asked["return_documents"] = False  # of Infinity it expects them as texts, of all others as objects
    found = litellm.rerank(model=f"{route}/{case.name}", **asked)
    _ranked(case, [(one["index"], one["relevance_score"]) for one in found.results])


def _ranked(case: Case, results: list[tuple[int, float]]) -> None:
    own = case.server.post("/v1/rerank", {"model": case.name, "query": QUESTION, "documents": TEXTS})["results"]
    assert [index for index, _ in results] == [one["index"] for one in own]
    assert [score for _, score in results] == pytest.approx([one["relevance_score"] for one in own], abs=1e-5)


# Cohere and Anthropic


@pytest.mark.parametrize("kind", ["Client", "ClientV2"])
def test_cohere(kind: str, case: Case, chat: Any) -> None:
    client = getattr(tool("cohere"), kind)("none", base_url=case.url)
    ranked = client.rerank(model=case.name, query=QUESTION, documents=TEXTS, top_n=2)
    _ranked(case, [(one.index, one.relevance_score) for one in ranked.results])
    with pytest.raises(tool("cohere").core.ApiError) as caught:
        client.rerank(model=case.name, query=QUESTION, documents=[])
    assert caught.value.status_code == 400 and "documents" in str(caught.value.body)


def test_anthropic(case: Case, chat: Any) -> None:
    client = tool("anthropic").Anthropic(base_url=case.url, api_key="none", max_retries=0)
    messages: Any = [{"role": "user", "content": QUESTION}]
    assert client.messages.create(model=case.name, max_tokens=TOKENS, messages=messages).content[0].text == case.answer
    with client.messages.stream(model=case.name, max_tokens=TOKENS, messages=messages) as stream:
        assert "".join(stream.text_stream) == case.answer
        assert stream.get_final_message().usage.output_tokens == TOKENS


# llm, with a model of its own settings file: it always streams with usage, and sends schemas so


def test_llms_endpoint(case: Case, chat: Any, tmp_path: Path) -> None:
    tool("llm")
    entry = {"model_id": "local", "model_name": case.name, "api_base": chat["base_url"], "supports_schema": True}
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps([entry]))  # JSON is YAML
    environment = {**os.environ, "LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "none"}

    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "llm", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    options = ("-m", "local", "-o", "max_tokens", str(TOKENS), "-o", "temperature", "0")
    assert run("prompt", *options, QUESTION) == case.answer.strip()
    jsonschema.validate(json.loads(run("prompt", "-m", "local", "A colour?", "--schema", json.dumps(SCHEMA))), SCHEMA)
    logged = json.loads(run("logs", "list", "--json", "-n", "2"))
    assert TOKENS in [one["output_tokens"] for one in logged]


# Node


@pytest.mark.skipif(
    not (NODE / "node_modules" / ".bin" / "node").exists(),
    reason="needs what scripts/integrations.sh installs for Node, and Node itself",
)
def test_programs_for_node(case: Case, chat: Any) -> None:
    program = NODE / "clients.mjs"
    shutil.copy(Path(__file__).with_name("node") / "clients.mjs", program)
    asked = json.dumps({"texts": TEXTS, "question": QUESTION, "schema": SCHEMA, "tokens": TOKENS})
    command = [str(NODE / "node_modules" / ".bin" / "node"), str(program), case.url, case.name]
    done = subprocess.run(command, input=asked, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    openai, ai, anthropic, cohere = (found[name] for name in ("openai", "ai", "anthropic", "cohere"))
    for one in (openai, ai, anthropic):
        assert one["answer"] == one["streamed"] == case.answer
    case.same(openai["vectors"])
    case.same(openai["queries"], case.queries)
    assert openai["usage"]["completion_tokens"] == TOKENS and openai["refusal"].startswith("400")
    assert "tiny" in openai["models"]
    case.same(ai["vectors"])
    case.same(ai["first"], case.documents[0])
    assert ai["usage"]["outputTokens"] == TOKENS
    jsonschema.validate(ai["object"], SCHEMA)
    _ranked(case, list(zip(cohere["order"], cohere["scores"], strict=True)))


def test_the_sdk_is_what_they_are_compared_with(case: Case) -> None:
    assert isinstance(case.model, GritLM) and len(case.answer) > 0
