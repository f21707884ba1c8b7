"""Faults, kind 6: "programs written for the official package carry over"."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections import UserDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from grit_mlx import GritLM, embedding_prompt
from grit_mlx.errors import ArgumentError, TextError
from grit_mlx.model import official, prompts
from tests.faults.conftest import Program

# The program of the official README (section "Basic"), with the name of its package replaced, and the model's.
README = """
from grit_mlx import GritLM

# Loads the model for both capabilities; If you only need embedding pass `mode="embedding"` to save memory (no lm head)
model = GritLM(MODEL, torch_dtype="auto")

### Embedding/Representation ###
instruction = "Given a scientific paper title, retrieve the paper's abstract"
queries = ['Bitcoin: A Peer-to-Peer Electronic Cash System', 'Generative Representational Instruction Tuning']
documents = [
    "A purely peer-to-peer version of electronic cash would allow online payments to be sent directly.",
    "All text-based language problems can be reduced to either generation or embedding.",
]

def gritlm_instruction(instruction):
    return "<|user|>\\n" + instruction + "\\n<|embed|>\\n" if instruction else "<|embed|>\\n"

# No need to add instruction for retrieval documents
d_rep = model.encode(documents, instruction=gritlm_instruction(""))
q_rep = model.encode(queries, instruction=gritlm_instruction(instruction))

from math import isfinite
import numpy as np
def cosine(a, b):  # scipy.spatial.distance's
    return 1 - np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b)

cosine_sim_q0_d0 = 1 - cosine(q_rep[0], d_rep[0])
print("Cosine similarity between \\"%s\\" and \\"%s\\" is: %.3f" % (
    queries[0][:15], documents[0][:15], cosine_sim_q0_d0))
assert isfinite(cosine_sim_q0_d0)

### Generation ###
# We did not finetune GritLM models with system prompts, as you can just include system-like instructions together
messages = [
    {"role": "user", "content": "Please write me a poem about my recent hike of Mt. Fuji at midnight."},
]
encoded = model.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
encoded = encoded.to(model.device)
gen = model.generate(encoded, max_new_tokens=256, do_sample=False)
decoded = model.tokenizer.batch_decode(gen)
print(decoded[0])
"""


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> GritLM:
    return GritLM(tiny_model)


@pytest.fixture(autouse=True)
def _nothing_noted_yet() -> Iterator[None]:
    official._noted.clear()
    yield


@pytest.fixture(params=["PyTorch", "no PyTorch"])
def torch(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """PyTorch where it is installed, and a program without it."""
    if request.param == "PyTorch":
        return pytest.importorskip("torch")
    monkeypatch.setattr("transformers.utils.import_utils.is_torch_available", lambda: False)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    return None


def notes(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "ignores" in record.getMessage()]


@pytest.mark.parametrize("torch", [True, False])
@pytest.mark.parametrize("name", ["tiny_model", "tiny_mixtral", "stories", "template"])
def test_the_readmes_program(
    program: Program, request: pytest.FixtureRequest, model_copy: Callable[..., Path], name: str, torch: bool
) -> None:
    if name == "template":  # with a chat template of its own
        folder = model_copy()
        path = folder / "tokenizer_config.json"
        template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
        config = json.loads(path.read_text()) | {"chat_template": template}
        path.unlink()
        path.write_text(json.dumps(config))
    else:
        folder = request.getfixturevalue(name)
    if torch and importlib.util.find_spec("torch") is None:
        pytest.skip("needs torch")
    without = (
        ""
        if torch
        else "import importlib.util\nreal = importlib.util.find_spec\n"
        + ("importlib.util.find_spec = lambda name, *rest: None if name == 'torch' else real(name, *rest)\n")
    )
    result = program(f"MODEL = {str(folder)!r}\n{without}{README}")
    assert 'Cosine similarity between "Bitcoin: A Peer"' in result.stdout
    assert "Please write me a poem about my recent hike" in result.stdout
    assert "ignores" not in result.stderr  # nothing in it is left out
    if name != "template":
        assert re.search(r"<s>\s?<\|user\|>\nPlease write", result.stdout)
        assert "<|assistant|>\n" in result.stdout


def test_the_chat_as_a_template_is_the_chat(model: GritLM, torch: Any) -> None:
    turns = [
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "Two."},
        {"role": "user", "content": "Three?"},
    ]
    for messages in (turns[:1], turns):
        text = model.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert text == prompts.render_chat(model.tokenizer, messages, prompt=True).text
        encoded = model.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
        assert encoded["input_ids"].tolist() == [prompts.chat_tokens(model.tokenizer, messages)]


CONSTRUCTOR: list[dict[str, Any]] = [
    {"torch_dtype": "auto"},
    {"torch_dtype": "float32"},
    {"torch_dtype": None},
    {"torch_dtype": mx.float32},
    {"torch_dtype": np.float32},
    {"torch_dtype": np.dtype("float32")},
    {"dtype": mx.float32},
    {"projection": None, "is_inference": True, "embed_eos": ""},
    {"attn": None, "pooling_method": "mean", "normalized": True},
    {"pooling_method": "weighted_mean"},
    {"trust_remote_code": True, "revision": None},
]
IGNORED: list[tuple[dict[str, Any], str]] = [
    ({"attn_implementation": "sdpa"}, "GritLM ignores attn_implementation"),
    ({"device_map": "auto", "attn_implementation": "flash_attention_2"}, "ignores device_map and attn_implementation"),
    ({"device": "cuda"}, "ignores device"),
    ({"is_inference": False}, "ignores is_inference"),
    ({"low_cpu_mem_usage": True, "load_in_4bit": True}, "ignores low_cpu_mem_usage and load_in_4bit"),
    ({"use_cache": False, "cache_dir": "x", "token": "t"}, "ignores use_cache and cache_dir and token"),
]


@pytest.mark.parametrize("options", CONSTRUCTOR, ids=str)
def test_arguments_of_the_constructor(
    tiny_model: Path, model: GritLM, caplog: pytest.LogCaptureFixture, options: dict[str, Any]
) -> None:
    made = GritLM(tiny_model, **options)
    assert not notes(caplog)
    if options.get("pooling_method") == "weighted_mean":
        assert made.pooling_method == "weightedmean"
    else:
        np.testing.assert_array_equal(made.encode("x"), model.encode("x"))


@pytest.mark.parametrize(("options", "note"), IGNORED, ids=str)
def test_arguments_that_mean_nothing_here(
    tiny_model: Path, caplog: pytest.LogCaptureFixture, options: dict[str, Any], note: str
) -> None:
    GritLM(tiny_model, **options)
    GritLM(tiny_model, **options)
    assert len(notes(caplog)) == 1 and note in notes(caplog)[0]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", mx.bfloat16, "torch.bfloat16", np.float16])
def test_dtypes_of_other_libraries(tiny_model: Path, dtype: Any) -> None:
    class Torch:
        """PyTorch's dtypes are told by what they print."""

        def __str__(self) -> str:
            return "torch.bfloat16"

    given = Torch() if dtype == "torch.bfloat16" else dtype
    made = GritLM(tiny_model, torch_dtype=given)
    wanted = mx.float16 if "float16" in str(dtype).replace("bfloat16", "") else mx.bfloat16
    assert made.model.model.embed_tokens.weight.dtype == wanted


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"torch_dtypes": "auto"}, "GritLM has no argument 'torch_dtypes'"),
        ({"pooling": "mean"}, "GritLM has no argument 'pooling': did you mean 'pooling_method'"),
        ({"rope_scaling": {}}, "GritLM has no argument 'rope_scaling'"),
        ({"projection": 16}, "has no projection to 16 dimensions"),
        ({"embed_eos": "<none>"}, "The tokenizer has no token '<none>'"),
        ({"torch_dtype": "int8"}, "Unknown dtype"),
    ],
)
def test_arguments_that_cannot_be_taken(tiny_model: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        GritLM(tiny_model, **options)


def test_a_projection(model_copy: Callable[..., Path]) -> None:
    folder = model_copy()
    weight = mx.array(np.random.default_rng(0).normal(size=(5, 32)).astype(np.float32))
    mx.save_safetensors(str(folder / "projection.safetensors"), {"weight": weight})
    assert GritLM(folder, projection=5).encode("x").shape == (5,)
    assert GritLM(folder).projection is not None
    with pytest.raises(ArgumentError, match="has no projection to 6 dimensions"):
        GritLM(folder, projection=6)


def test_embed_eos(tiny_model: Path, model: GritLM) -> None:
    ended = GritLM(tiny_model, embed_eos="</s>", pooling_method="lasttoken")
    plain = GritLM(tiny_model, pooling_method="lasttoken")
    assert ended.embed_eos == "</s>"
    np.testing.assert_array_equal(ended.encode(["a", "b c"]), plain.encode(["a</s>", "b c</s>"]))
    np.testing.assert_array_equal(np.stack(list(ended.encode_iter(["a"]))), plain.encode(["a</s>"]))


def test_attributes_and_methods(model: GritLM) -> None:
    assert model.device == "cpu" and model.normalized is True and model.attn == "bbcc"
    assert model.pooling_method == "mean" and model.mode == "unified" and model.projection is None
    assert model.eval() is model and model.to("cuda") is model and model.to(device="cpu") is model
    assert model.train(False) is model and model.half().cuda().cpu().bfloat16().requires_grad_(False) is model
    assert model.tokenizer.padding_side == "right" and model.tokenizer.pad_token is not None


ENCODE: list[dict[str, Any]] = [
    {"batch_size": 256, "max_length": 512, "instruction": "", "embed_instruction": False, "get_cache": False},
    {"convert_to_tensor": False, "recast": False, "add_special_tokens": True},
    {"show_progress_bar": False},
    {"show_progress_bar": None},
    {"prompt_name": None, "task_name": None},
    {"normalize_embeddings": True},
    {"precision": "float32"},
    {"device": None, "output_value": None},
]


def test_vectors_of_tokens_are_not_replaced_by_those_of_texts(model: GritLM) -> None:
    assert model.encode("a", output_value="sentence_embedding").shape == model.encode("a").shape
    for value in ("token_embeddings", "all"):
        with pytest.raises(ArgumentError, match=f"one vector a text, not output_value='{value}'"):
            model.encode("a", output_value=value)


@pytest.mark.parametrize("options", ENCODE, ids=str)
def test_arguments_of_encode(model: GritLM, caplog: pytest.LogCaptureFixture, options: dict[str, Any]) -> None:
    for encode in (model.encode, model.encode_queries, model.encode_corpus):
        expected = encode(["a", "b c"]) if "instruction" not in options else encode(["a", "b c"], instruction="")
        np.testing.assert_array_equal(encode(["a", "b c"], **options), expected)
    assert not notes(caplog)


@pytest.mark.parametrize(
    ("options", "note"),
    [
        ({"recast": True}, "encode ignores recast"),
        ({"task_name": "NFCorpus", "prompt_type": "query"}, "encode ignores task_name and prompt_type"),
        ({"request_qid": "x", "device": "cuda"}, "encode ignores request_qid and device"),
        ({"something_of_mtebs": 3}, "encode ignores something_of_mtebs"),
    ],
    ids=str,
)
def test_arguments_of_encode_that_mean_nothing_here(
    model: GritLM, caplog: pytest.LogCaptureFixture, options: dict[str, Any], note: str
) -> None:
    for _ in range(3):
        np.testing.assert_array_equal(model.encode(["a"], **options), model.encode(["a"]))
        np.testing.assert_array_equal(model.encode_corpus(["a"], **options), model.encode_corpus(["a"]))
        list(model.encode_iter(["a"], **options))
    assert len(notes(caplog)) == 1 and note in notes(caplog)[0]


def test_tensors(model: GritLM, torch: Any) -> None:
    array = model.encode(["a", "b"], convert_to_tensor=True)
    assert isinstance(array, torch.Tensor if torch else mx.array) and array.shape == (2, 32)
    np.testing.assert_array_equal(np.array(array), model.encode(["a", "b"]))
    single, cache = model.encode("a", convert_to_tensor=True, get_cache=True)
    assert single.shape == (32,) and len(cache) == 2
    assert model.encode(["a"], precision="int8").values.dtype == np.int8
    np.testing.assert_array_equal(model.encode("a", prompt="q: "), model.encode("a", instruction="q: "))


def test_generate_with_arrays(model: GritLM, torch: Any) -> None:
    encoded = model.tokenizer(["<|user|>\nWhy?\n<|assistant|>\n"], return_tensors="pt")
    ids = encoded["input_ids"]
    assert encoded.to(model.device) is encoded and ids.to(model.device).shape == ids.shape
    assert isinstance(ids, torch.Tensor if torch else official.TokenArray)
    answer = [one.token for one in model.stream_responses(ids[0].tolist(), max_tokens=9)]
    expected = [ids[0].tolist() + answer]
    for prompt in (ids, encoded, np.array(ids), mx.array(np.array(ids)), dict(encoded)):
        gen = model.generate(prompt, max_new_tokens=9, do_sample=False)
        assert gen.tolist() == expected, type(prompt)
        given = prompt if not isinstance(prompt, dict | UserDict) else ids
        plain = isinstance(given, np.ndarray)
        assert isinstance(gen, official.TokenArray if plain else type(given))
    assert model.generate(**encoded, max_new_tokens=9, do_sample=False).tolist() == expected
    assert model.generate(input_ids=ids, max_length=ids.shape[1] + 9, use_cache=True).tolist() == expected
    assert model.generate(ids, 9).tolist() == expected
    assert model.tokenizer.batch_decode(model.generate(ids, max_new_tokens=9))[0].startswith("<s>")
    sampled = model.generate(ids, max_new_tokens=9, do_sample=True, temperature=0.7, top_p=0.9, seed=2)
    assert sampled.tolist() == model.generate(ids, max_new_tokens=9, temperature=0.7, top_p=0.9, seed=2).tolist()
    assert model.generate(ids, max_new_tokens=9, do_sample=True, seed=2).shape[1] > ids.shape[1]
    greedy = model.generate(ids, max_new_tokens=9, do_sample=False, temperature=0.7)
    assert greedy.tolist() == expected


def test_generate_with_several_rows(model: GritLM, torch: Any) -> None:
    texts = ["<|user|>\nWhy?\n<|assistant|>\n", "<|user|>\nWhat keeps a ship upright?\n<|assistant|>\n"]
    rows = [model.tokenizer(text)["input_ids"] for text in texts]
    answers = [[one.token for one in model.stream_responses(row, max_tokens=6)] for row in rows]
    for side in ("left", "right"):
        encoded = model.tokenizer(texts, padding=True, padding_side=side, return_tensors="pt")
        gen = model.generate(**encoded, max_new_tokens=6, do_sample=False)
        for row, prompt, answer in zip(gen.tolist(), rows, answers, strict=True):
            assert row[: len(prompt) + len(answer)] == prompt + answer


def test_generate_ends_with_the_end_token(model: GritLM, torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = model.tokenizer(["Why?"], return_tensors="pt")["input_ids"]
    plain = model.generate(ids, max_new_tokens=9)[0].tolist()
    end = plain[ids.shape[1] + 3]
    monkeypatch.setattr(model._engine_tokenizer, "_eos_token_ids", {end})
    gen = model.generate(ids, max_new_tokens=9)[0].tolist()
    assert gen == plain[: plain.index(end, ids.shape[1]) + 1]


def test_generate_from_a_cache_in_transformers_layout(model: GritLM, torch: Any) -> None:
    _, cache = model.encode("The keel keeps it upright.", instruction=embedding_prompt(), get_cache=True)
    layers = tuple((np.array(layer.keys), np.array(layer.values)) for layer in cache)
    text = "\n<|user|>\nWhy?\n<|assistant|>\n"
    inputs = model.tokenizer(text, return_tensors="pt", add_special_tokens=False).to(model.device)
    inputs["use_cache"] = True
    inputs["attention_mask"] = np.ones((1, layers[0][0].shape[2] + inputs["input_ids"].shape[1]))
    gen = model.generate(**inputs, max_new_tokens=8, past_key_values=layers, do_sample=False)
    ids = inputs["input_ids"][0].tolist()
    expected = [one.token for one in model.stream_responses(ids, max_tokens=8, cache=cache)]
    assert gen.tolist() == [ids + expected]
    with pytest.raises(ArgumentError, match="keys and values of shape"):
        model.generate(inputs["input_ids"], past_key_values=((np.ones(3), np.ones(3)),))


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 1, "num_return_sequences": 1, "early_stopping": False},
        {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "length_penalty": 1.0},
        {"return_dict_in_generate": False, "output_scores": False, "streamer": None},
        {"early_stopping": True, "length_penalty": 0.8, "diversity_penalty": 0.5},
    ],
    ids=str,
)
def test_arguments_of_transformers_that_ask_for_nothing(
    model: GritLM, caplog: pytest.LogCaptureFixture, options: dict[str, Any]
) -> None:
    assert model.generate("Why?", max_new_tokens=5, **options) == model.generate("Why?", max_tokens=5)
    assert not notes(caplog)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 4}, "generate does not support num_beams=4"),
        ({"num_beams": 4, "early_stopping": True}, "generate does not support early_stopping=True"),
        ({"num_return_sequences": 2}, "generate does not support num_return_sequences=2"),
        ({"streamer": object()}, "generate does not support streamer="),
        ({"max_tokens_new": 5}, "no option 'max_tokens_new'"),
        ({"max_new_tokens": 0}, "max_tokens must be at least 1"),
    ],
)
def test_arguments_of_transformers_that_cannot_be_taken(model: GritLM, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        model.generate("Why?", **options)


def test_ignored_arguments_of_generate_are_noted_once(model: GritLM, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        model.generate("Why?", max_new_tokens=2, pad_token_id=2, eos_token_id=2)
    assert len(notes(caplog)) == 1 and "generate ignores pad_token_id and eos_token_id" in notes(caplog)[0]


def test_the_tokenizer_is_what_it_was(model: GritLM, tmp_path: Path, torch: Any) -> None:
    """Arrays are given where PyTorch's are asked for, and nothing else changes."""
    from transformers import AutoTokenizer, PreTrainedTokenizerBase

    tokenizer = model.tokenizer
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    assert tokenizer("a b")["input_ids"] == tokenizer.encode("a b")
    assert isinstance(tokenizer(["a"], return_tensors="np")["input_ids"], np.ndarray)
    assert not isinstance(tokenizer(["a"], return_tensors="np")["input_ids"], official.TokenArray)
    one = tokenizer.encode("a b", return_tensors="pt")
    assert one.shape == (1, len(tokenizer.encode("a b"))) and one.cpu().numpy().tolist() == one.tolist()
    tokenizer.save_pretrained(tmp_path)
    assert type(AutoTokenizer.from_pretrained(tmp_path)).__name__ == type(tokenizer).__name__


# White space


BLANKS = [" ", "   ", "\n", "\t", " \n\t ", "\u00a0", "\u3000", "\r\n", "\u200b"]


@pytest.mark.parametrize("text", BLANKS)
@pytest.mark.parametrize("instruction", ["", "<|embed|>\n", "<|user|>\nFind it\n<|embed|>\n"])
@pytest.mark.parametrize("pooling", ["mean", "weightedmean", "lasttoken", "cls"])
def test_white_space_is_embedded(tiny_model: Path, text: str, instruction: str, pooling: str) -> None:
    """Equal to the mean over its own tokens: the official code, written out."""
    from grit_mlx.model.attention import decoder_of, embedding_caches

    model = GritLM(tiny_model, pooling_method=pooling)
    vectors = model.encode(["before", text, "after it"], instruction=instruction)
    ids = model.tokenizer(instruction + text)["input_ids"]
    skipped = len(model.tokenizer(instruction)["input_ids"]) if instruction and "mean" in pooling else 0
    if len(ids) == skipped:
        return
    states = np.array(decoder_of(model.model)(mx.array([ids]), cache=embedding_caches(2))[0])
    weights = np.arange(1, len(ids) - skipped + 1) if pooling == "weightedmean" else np.ones(len(ids) - skipped)
    by_hand = {
        "lasttoken": states[-1],
        "cls": states[0],
        "mean": np.average(states[skipped:], axis=0),
        "weightedmean": np.average(states[skipped:], axis=0, weights=weights),
    }[pooling]
    np.testing.assert_allclose(vectors[1], by_hand / np.linalg.norm(by_hand), atol=1e-5)
    np.testing.assert_allclose(model.encode(text, instruction=instruction), vectors[1], atol=1e-6)
    np.testing.assert_allclose(next(model.encode_iter([text], instruction=instruction)), vectors[1], atol=1e-6)


@pytest.mark.parametrize("call", ["encode", "encode_queries", "encode_corpus"])
def test_only_what_has_no_tokens_is_an_error(model: GritLM, call: str) -> None:
    with pytest.raises(TextError, match="Text 1 is empty") as caught:
        getattr(model, call)(["a", ""])
    assert caught.value.index == 1
    assert getattr(model, call)(["a", " "]).shape == (2, 32)


# What programs for sentence-transformers and mlx-lm call.


@pytest.mark.parametrize("normalize", [True, False, None])
@pytest.mark.parametrize("size", [None, 1, 8, 32])
def test_vectors_of_another_length(tiny_model: Path, normalize: bool | None, size: int | None) -> None:
    for loaded in (True, False):
        one = GritLM(tiny_model, normalized=loaded)
        raw = GritLM(tiny_model, normalized=False).encode(["a", "b c", "d"])[:, :size]
        found = one.encode(["a", "b c", "d"], normalize_embeddings=normalize, truncate_dim=size)
        if loaded if normalize is None else normalize:
            raw = raw / np.linalg.norm(raw, axis=1, keepdims=True)
        np.testing.assert_allclose(found, raw, atol=1e-5)
        again = np.stack(list(one.encode_iter(["a", "b c", "d"], normalize_embeddings=normalize, truncate_dim=size)))
        np.testing.assert_array_equal(again, found)


def test_too_many_dimensions(model: GritLM) -> None:
    with pytest.raises(ArgumentError, match="truncate_dim must be at most 32, the length of a vector, not 33"):
        model.encode("a", truncate_dim=33)
    with pytest.raises(ArgumentError, match="truncate_dim must be at least 1"):
        model.encode("a", truncate_dim=0)


def test_methods_of_sentence_transformers(model: GritLM) -> None:
    texts = ["a keel", "b", "some bread"]
    queries, documents = model.encode_query(texts), model.encode_document(texts)
    np.testing.assert_array_equal(queries, model.encode_queries(texts))
    np.testing.assert_array_equal(documents, model.encode_corpus(texts))
    for name, expected in {"query": queries, "document": documents, "passage": documents}.items():
        np.testing.assert_array_equal(model.encode(texts, prompt_name=name), expected)
    np.testing.assert_array_equal(model.encode_query(texts, prompt="x: "), model.encode(texts, instruction="x: "))
    np.testing.assert_array_equal(
        model.encode(texts, prompt="x: ", prompt_name="query"), model.encode(texts, instruction="x: ")
    )
    with pytest.raises(ArgumentError, match="There is no prompt 'poem': use one of query, document, similarity"):
        model.encode(texts, prompt_name="poem")
    matrix = model.similarity(queries, documents)
    assert matrix.shape == (3, 3)
    np.testing.assert_allclose(matrix, queries @ documents.T, atol=1e-5)
    np.testing.assert_allclose(model.similarity_pairwise(queries, documents), np.diag(matrix), atol=1e-5)
    assert model.similarity(queries[0], documents).shape == (1, 3)
    assert model.get_sentence_embedding_dimension() == model.get_embedding_dimension() == 32
    assert model.max_seq_length == 512


def test_names_of_sampling(model: GritLM) -> None:
    expected = model.generate("Why?", max_tokens=5, temperature=0.7, seed=1)
    assert model.generate("Why?", max_new_tokens=5, temp=0.7, seed=1) == expected
    assert model.generate("Why?", num_predict=5, temp=0.7, seed=1, verbose=False) == expected
    assert model.generate("Why?", max_tokens=5, temp=0.0) == model.generate("Why?", max_tokens=5)
    with pytest.raises(ArgumentError, match="temp and temperature mean the same"):
        model.generate("Why?", temp=0.7, temperature=0.5)


def test_a_model_says_what_it_is(tiny_model: Path, model: GritLM) -> None:
    assert repr(model) == (
        "GritLM('mistral', mode='unified', embedding_size=32, pooling='mean', max_length=512, dtype='float32')"
    )
    assert repr(GritLM(tiny_model, mode="generative")) == "GritLM('mistral', mode='generative', dtype='float32')"
