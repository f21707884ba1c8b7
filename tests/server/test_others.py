"""Completions, messages, reranking, structured answers and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anthropic
import mlx.core as mx
import numpy as np
import openai
import pytest

from grit_mlx.model.prompts import raw_tokens
from tests.server.conftest import Server


@pytest.fixture(scope="module")
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def claude(server: Server) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0)


# Completions


def test_completions_of_texts_and_ids(server: Server, client: openai.OpenAI) -> None:
    prompts = ["Once upon", "The rain"]
    expected = [server.model.generate(prompt, max_tokens=12, raw=True) for prompt in prompts]
    for prompt in (prompts, [raw_tokens(server.model.tokenizer, one) for one in prompts]):
        answer = client.completions.create(model="tiny", prompt=prompt, max_tokens=12)
        assert [choice.text for choice in answer.choices] == expected
    assert client.completions.create(model="tiny", prompt="Once upon").usage.completion_tokens <= 16  # type: ignore[union-attr]


def test_a_stream_of_several_completions(client: openai.OpenAI) -> None:
    prompts = ["Once upon", "The rain"]
    whole = client.completions.create(model="tiny", prompt=prompts, max_tokens=12)
    texts = ["", ""]
    for chunk in client.completions.create(model="tiny", prompt=prompts, max_tokens=12, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [choice.text for choice in whole.choices]


@pytest.mark.parametrize("length", [5, 400])
def test_echo_with_logprobs_is_what_the_model_computes(server: Server, client: openai.OpenAI, length: int) -> None:
    """What lm-eval's local-completions lives on; also for prompts that are read in several parts."""
    model = server.model
    ids = (raw_tokens(model.tokenizer, "Once upon a time there was rain. ") * 50)[:length]
    answer = client.completions.create(model="tiny", prompt=ids, max_tokens=1, echo=True, logprobs=3)
    told = answer.choices[0].logprobs
    assert told is not None and told.token_logprobs is not None and told.top_logprobs is not None
    logits = model.model(mx.array([ids]))[0]
    logprobs = np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
    assert told.token_logprobs[0] is None
    expected = [logprobs[i - 1, ids[i]] for i in range(1, length)]
    np.testing.assert_allclose(told.token_logprobs[1:length], expected, atol=1e-3)
    assert len(told.tokens or ()) == len(told.text_offset or ()) == len(told.top_logprobs) == length + 1
    best = [max(top.values()) for top in told.top_logprobs[1:]]
    np.testing.assert_allclose(best, logprobs[:length].max(axis=1), atol=1e-3)
    assert told.token_logprobs[-1] == pytest.approx(best[-1], abs=1e-3)  # greedy


def test_echo_alone_scores_and_writes_nothing(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="tiny", prompt="Once upon", max_tokens=0, echo=True, logprobs=1)
    assert answer.choices[0].text == "Once upon"
    assert answer.usage is not None and answer.usage.completion_tokens == 0


def test_logprobs_of_a_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "Hi"}], max_tokens=5, logprobs=True, top_logprobs=2
    )
    content = answer.choices[0].logprobs.content  # type: ignore[union-attr]
    assert content is not None and len(content) == 5
    assert all(one.logprob == one.top_logprobs[0].logprob and len(one.top_logprobs) == 2 for one in content)


# Characters of several tokens
SPELLED = "Ja 😀語é, gut"


def test_bytes_of_tokens_that_are_parts_of_characters(server: Server, client: openai.OpenAI) -> None:
    """Joined, the bytes are those of the answer, which the texts of such tokens are not."""
    pytest.importorskip("llguidance")
    answer = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "Hi"}],
        max_tokens=60,
        logprobs=True,
        top_logprobs=2,
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"const": SPELLED}}},
    )
    choice = answer.choices[0]
    assert choice.message.content == f'"{SPELLED}"' and choice.logprobs is not None
    assert all(one.logprob >= -9999 for one in choice.logprobs.content or ())  # JSON has no infinity
    told = [one for one in choice.logprobs.content or () if one.token not in server.model.tokenizer.all_special_tokens]
    assert b"".join(bytes(one.bytes or ()) for one in told) == choice.message.content.encode()
    assert any("\ufffd" in one.token for one in told)  # else this would show nothing


def test_places_of_tokens_that_are_parts_of_characters(client: openai.OpenAI) -> None:
    prompt = SPELLED + " end"
    answer = client.completions.create(model="tiny", prompt=prompt, max_tokens=0, echo=True, logprobs=0)
    told = answer.choices[0].logprobs
    assert told is not None and told.tokens is not None and told.text_offset is not None
    text = " " + prompt  # as SentencePiece reads it
    for token, place in zip(told.tokens, told.text_offset, strict=True):
        if token != "<s>" and not token.startswith("bytes:"):
            assert text[place:].startswith(token), (token, place)
    parts = [token for token in told.tokens if token.startswith("bytes:")]
    assert b"\xf0" in b"".join(bytes.fromhex(part[6:].replace("\\x", "")) for part in parts)
    assert not any("\ufffd" in token for token in told.tokens)


def test_places_of_tokens_in_a_stream(client: openai.OpenAI) -> None:
    given: Any = {"model": "tiny", "prompt": "Once upon", "max_tokens": 12, "logprobs": 1}
    whole = client.completions.create(**given).choices[0].logprobs
    chunks = [chunk.choices[0].logprobs for chunk in client.completions.create(**given, stream=True)]
    assert whole is not None and len(set(whole.text_offset or ())) > 5
    assert [place for told in chunks if told for place in told.text_offset or ()] == whole.text_offset


# Structured answers


SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "form",
    [
        {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, "strict": True}},
        {"type": "json_schema", "schema": SCHEMA},
        {"type": "json_object", "schema": SCHEMA},  # llama.cpp's
        {"type": "json_object"},
    ],
)
def test_json_of_a_schema(client: openai.OpenAI, form: Any, stream: bool) -> None:
    pytest.importorskip("llguidance")
    given: Any = {"model": "tiny", "messages": [{"role": "user", "content": "A number"}], "response_format": form}
    given |= {"temperature": 0.7, "seed": 4, "max_tokens": 300}
    if stream:
        chunks = [chunk.choices[0] for chunk in client.chat.completions.create(**given, stream=True)]
        text, reason = "".join(chunk.delta.content or "" for chunk in chunks), chunks[-1].finish_reason
    else:
        choice = client.chat.completions.create(**given).choices[0]
        text, reason = choice.message.content or "", choice.finish_reason
    if reason == "stop":
        value = json.loads(text)
        assert isinstance(value, dict)
        assert form == {"type": "json_object"} or list(value) == ["n"]
    else:
        assert text.startswith("{")
    if form.get("schema"):
        assert '"n"' in text


def test_schemas_that_cannot_be_followed(client: openai.OpenAI) -> None:
    pytest.importorskip("llguidance")
    for form in (
        {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}},
        {"type": "json_schema"},
        {"type": "grammar"},
        {"type": ["text"]},
        {"type": "text", "schema": SCHEMA},
        {"type": "json_object", "json_schema": {"schema": SCHEMA}},
        {"type": "json_object", "schema": "n"},
    ):
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(
                model="tiny",
                messages=[{"role": "user", "content": "Hi"}],
                response_format=form,  # type: ignore[call-overload]
            )


def test_biases_and_penalties(server: Server) -> None:
    """In a batch with others, each answer has its own."""
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 6}
    own: dict[str, Any] = {"logit_bias": {"70": 100}, "presence_penalty": 1.5, "frequency_penalty": -0.5}
    with ThreadPoolExecutor(4) as pool:
        asked = [{**body, **own}, body] * 2
        replies = list(pool.map(lambda one: server.post("/v1/chat/completions", one), asked))
    texts = [reply["choices"][0]["message"]["content"] for reply in replies]
    chat = [{"role": "user", "content": "Hi"}]
    expected = server.model.generate(chat, max_tokens=6, **own), server.model.generate(chat, max_tokens=6)
    assert texts == [*expected, *expected] and expected[0] == server.model.tokenizer.decode([70] * 6)


def test_tools_that_may_not_be_called_change_nothing(server: Server) -> None:
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 6}
    tools = {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "none"}
    plain, told = (server.post("/v1/chat/completions", one)["choices"] for one in (body, body | tools))
    assert plain == told


# What is refused


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"n": 2}, "n must be 1"),
        ({"logit_bias": {"5": 101}}, "logit_bias must be"),
        ({"logit_bias": {"five": 1}}, "ids of tokens, not 'five'"),
        ({"logit_bias": {"100000000": 1}}, "logit_bias"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools are not supported"),
        ({"presence_penalty": 2.5}, "presence_penalty must be"),
        ({"temprature": 1}, "did you mean 'temperature'"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "text only"),
        ({"messages": []}, "messages is empty"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, "end with a user"),
        ({"top_logprobs": 3}, "needs logprobs"),
        ({"temperature": -1}, "temperature must be at least 0"),
        ({"max_tokens": "many"}, "max_tokens must be a whole number"),
        ({"messages": [{"role": "user", "content": "word " * 9000}]}, "the model's context is"),
    ],
)
def test_what_is_not_done_is_refused(client: openai.OpenAI, fields: Any, said: str) -> None:
    given = {"messages": [{"role": "user", "content": "Hi"}], **fields}
    with pytest.raises(openai.BadRequestError) as caught:
        client.post("/chat/completions", body={"model": "tiny", **given}, cast_to=object)
    assert said in caught.value.message
    assert caught.value.response.headers["x-should-retry"] == "false"


def test_null_is_not_set_and_developers_are_systems(server: Server) -> None:
    names = ("n", "tools", "stop", "temperature", "response_format", "logit_bias", "stream", "max_completion_tokens")
    body = {
        "model": None,
        "messages": [
            {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]},
            {"role": "user", "content": "Hi", "name": None, "tool_calls": None},
        ],
        "max_tokens": 6,
        **dict.fromkeys(names),
    }
    answer = server.post("/v1/chat/completions", body)
    expected = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert answer["choices"][0]["message"]["content"] == server.model.generate(expected, max_tokens=6)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"input": []}, "empty"),
        ({"input": ["a", ""]}, "item 1 is empty"),
        ({"input": ["a", 5]}, "item 1 must be text"),
        ({"input": [1, 2, 3]}, "check_embedding_ctx_length=False"),
        ({"input": [[1, 2], [3]]}, "check_embedding_ctx_length=False"),
        ({"input": "a", "dimensions": 3}, "dimensions must be"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ({"input": {"text": "a"}}, "input must be"),
        ({"input": ["a", "a " * 9000], "truncate": False}, "Text 1 is longer than the [0-9]+ tokens"),
        ({"input": "a", "truncate": "END"}, "truncate must be"),
    ],
)
def test_embeddings_that_are_refused(client: openai.OpenAI, fields: Any, said: str) -> None:
    with pytest.raises(openai.BadRequestError, match=said):
        client.post("/embeddings", body={"model": "tiny", **fields}, cast_to=object)


def test_ids_that_are_allowed(start: Callable[..., Server]) -> None:
    server = start(token_ids=True)
    ids = server.model.tokenizer.encode("<|embed|>\nRain falls.")
    answer = server.post("/v1/embeddings", {"input": [ids]})
    # The library leaves the format's tokens out of the mean.
    expected = server.model.encode("<|embed|>\nRain falls.")
    np.testing.assert_allclose(answer["data"][0]["embedding"], expected, atol=1e-6)
    assert server.request("POST", "/v1/embeddings", {"input": [10**6]})[0] == 400


def test_an_unknown_model_is_not_looked_for(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.embeddings.create(model="BAAI/bge-m3", input="a")
    assert caught.value.code == "model_not_found"
    assert "tiny, rag:notes" in caught.value.message


# Reranking


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
@pytest.mark.parametrize("rerank", ["likelihood", "cosine"])
def test_reranking(start: Callable[..., Server], tiny_mixtral: Path, path: str, rerank: str) -> None:
    server = start(rerank=rerank) if rerank == "cosine" else start()
    documents = ["Cars are red.", {"text": "Rain falls."}, "Rain."]
    answer = server.post(path, {"query": "rain", "documents": documents, "top_n": 2, "return_documents": True})
    scores = [one["relevance_score"] for one in answer["results"]]
    assert len(scores) == 2 and scores == sorted(scores, reverse=True)
    texts = ["Cars are red.", "Rain falls.", "Rain."]
    assert [one["document"]["text"] for one in answer["results"]] == [texts[one["index"]] for one in answer["results"]]
    if rerank == "cosine":
        vectors = server.model.encode(texts, role="document") @ server.model.encode("rain", role="query")
        assert scores == pytest.approx(sorted(vectors.tolist(), reverse=True)[:2], abs=1e-5)
    else:
        assert all(0 < score < 1 for score in scores)


# Anthropic's


def test_a_message(server: Server, claude: anthropic.Anthropic) -> None:
    answer = claude.messages.create(
        model="tiny",
        max_tokens=9,
        system="Be brief.",
        messages=[{"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
    )
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert answer.content[0].type == "text"
    assert answer.content[0].text == server.model.generate(chat, max_tokens=9)
    assert (answer.stop_reason, answer.usage.output_tokens) == ("max_tokens", 9)


def test_a_message_as_a_stream(server: Server, claude: anthropic.Anthropic) -> None:
    whole = server.model.generate("Hi", max_tokens=30)
    stop = whole[10:13]
    with claude.messages.stream(
        model="tiny", max_tokens=30, stop_sequences=[stop], messages=[{"role": "user", "content": "Hi"}]
    ) as stream:
        text = "".join(stream.text_stream)
        last = stream.get_final_message()
    assert text == server.model.generate("Hi", max_tokens=30, stop=[stop])
    assert (last.stop_reason, last.stop_sequence) == ("stop_sequence", stop)


def test_a_message_that_is_refused(claude: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.BadRequestError) as caught:
        claude.messages.create(
            model="tiny",
            max_tokens=9,
            messages=[{"role": "user", "content": "Hi"}],
            tools=[{"name": "f", "input_schema": {"type": "object"}}],
        )
    assert caught.value.body["error"]["type"] == "invalid_request_error"  # type: ignore[index]
    count = claude.messages.count_tokens(model="tiny", messages=[{"role": "user", "content": "Hi"}])
    assert count.input_tokens > 1
