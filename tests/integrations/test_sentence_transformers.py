"""Programs written for sentence-transformers run as they are."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

from grit_mlx import GritLM
from grit_mlx.errors import ArgumentError
from grit_mlx.integrations.sentence_transformers import GritEncoder
from tests.integrations.tools import tool

TEXTS = ["Yeast makes bread rise.", "The keel keeps a ship upright."]


def test_the_names_of_sentence_transformer(grit: GritLM) -> None:
    model = GritEncoder(grit, device="cpu", trust_remote_code=True)
    documents = model.encode_document(TEXTS, batch_size=1, show_progress_bar=False)
    queries = model.encode_query(["Why does bread rise?"])
    np.testing.assert_array_equal(documents, grit.encode_corpus(TEXTS))
    np.testing.assert_array_equal(queries, grit.encode_queries(["Why does bread rise?"]))
    assert model.similarity(queries, documents).shape == (1, 2)
    assert model.similarity(queries, documents).argmax() == 0
    np.testing.assert_allclose(model.similarity_pairwise(documents, documents), [1, 1], atol=1e-6)
    assert model.encode(TEXTS[0]).shape == (model.get_sentence_embedding_dimension(),)
    assert model.max_seq_length == grit.settings.max_length


def test_prompts(grit: GritLM) -> None:
    model = GritEncoder(grit, prompts={"facts": "Find facts"}, default_prompt_name="facts")
    expected = grit.encode(TEXTS, role="query", instruction="Find facts")
    np.testing.assert_array_equal(model.encode(TEXTS), expected)
    np.testing.assert_array_equal(model.encode(TEXTS, prompt="Find facts"), expected)
    np.testing.assert_array_equal(model.encode(TEXTS, prompt_name="document"), grit.encode_corpus(TEXTS))
    with pytest.raises(ArgumentError, match="facts"):
        model.encode(TEXTS, prompt_name="fact")
    with pytest.raises(ArgumentError, match="fact"):
        GritEncoder(grit, default_prompt_name="fact")


def test_lengths(grit: GritLM) -> None:
    model = GritEncoder(grit, truncate_dim=16)
    assert model.encode(TEXTS).shape == (2, 16)
    normalised = model.encode(TEXTS, truncate_dim=8, normalize_embeddings=True)
    np.testing.assert_allclose(np.linalg.norm(normalised, axis=1), [1, 1], rtol=1e-6)
    with model.truncate_embeddings(4):
        assert model.encode(TEXTS).shape == (2, 4) and model.get_embedding_dimension() == 4
    assert model.get_embedding_dimension() == 16


def test_what_it_cannot_do_is_one_sentence(grit: GritLM) -> None:
    model = GritEncoder(grit)
    for options, said in (
        ({"output_value": "token_embeddings"}, "token_embeddings"),
        ({"precision": "int4"}, "int4.*ubinary"),
        ({"processing_kwargs": {}}, "processing_kwargs"),
    ):
        with pytest.raises(ArgumentError, match=said):
            model.encode(TEXTS, **options)
    with pytest.raises(ArgumentError, match="two texts"):
        model.encode(TEXTS[:1], precision="int8")
    with pytest.raises(ArgumentError, match="revision"):
        GritEncoder(grit, revision="v2")
    with pytest.raises(ArgumentError, match=r"maxsim.*cosine"):
        GritEncoder(grit, similarity_fn_name="maxsim")


def test_arguments_without_names(grit: GritLM) -> None:
    model = GritEncoder(grit, revision=None, prompts={"passage": "A passage"})
    documents = model.encode(TEXTS, "document", None, 32, False)
    np.testing.assert_array_equal(documents, grit.encode_corpus(TEXTS))
    assert model.prompts["query"] == grit.settings.query_instruction
    np.testing.assert_array_equal(model.encode_document(TEXTS), documents)
    pool = model.start_multi_process_pool()
    np.testing.assert_array_equal(model.encode_multi_process(TEXTS, pool), documents)
    model.stop_multi_process_pool(pool)
    assert model.to("cuda").eval() is model and model.supports("text") and not model.supports("image")


def test_it_signs_as_theirs(grit: GritLM) -> None:
    """What their programs call is here, under the same names and with the same arguments."""
    theirs = tool("sentence_transformers").SentenceTransformer
    for name in ("encode", "encode_query", "encode_document"):
        known = {
            one.name: one.default
            for one in inspect.signature(getattr(theirs, name)).parameters.values()
            if one.kind is one.POSITIONAL_OR_KEYWORD and one.name not in {"self", "inputs"}
        }
        options = {key: value for key, value in known.items() if key not in {"prompt", "prompt_name"}}
        assert getattr(GritEncoder(grit), name)(TEXTS, **options).shape == (2, grit.embedding_size)
    constructor = inspect.signature(theirs).parameters
    values = {name: one.default for name, one in constructor.items() if name not in {"model_name_or_path", "modules"}}
    GritEncoder(grit, **values)


def test_precisions_and_similarities_are_theirs(grit: GritLM) -> None:
    torch, util = tool("torch"), tool("sentence_transformers.util")
    vectors = grit.encode_corpus(TEXTS)
    for precision in ("int8", "uint8", "binary", "ubinary"):
        packed = GritEncoder(grit).encode(TEXTS, precision=precision)
        expected = util.quantize_embeddings(vectors, precision)
        assert packed.dtype == expected.dtype
        np.testing.assert_array_equal(packed, expected)
    for name in ("cosine", "dot", "euclidean", "manhattan"):
        model = GritEncoder(grit, similarity_fn_name=util.SimilarityFunction(name))
        tensors = model.encode(TEXTS, convert_to_tensor=True)
        assert isinstance(tensors, torch.Tensor)
        pairs = util.SimilarityFunction.to_similarity_pairwise_fn(name)
        for own, expected in (
            (model.similarity(tensors, tensors), util.SimilarityFunction.to_similarity_fn(name)(tensors, tensors)),
            (model.similarity_pairwise(tensors, tensors.flip(0)), pairs(tensors, tensors.flip(0))),
        ):
            assert isinstance(own, torch.Tensor)
            np.testing.assert_allclose(
                own.numpy(), expected.numpy(), rtol=1e-5, atol=1e-3 if name == "euclidean" else 1e-6
            )


def test_their_evaluators_and_search(grit: GritLM) -> None:
    evaluation, util = tool("sentence_transformers.sentence_transformer.evaluation"), tool("sentence_transformers.util")
    model = GritEncoder(grit)
    corpus = {"bread": TEXTS[0], "ship": TEXTS[1]}
    found = model.evaluate(
        evaluation.InformationRetrievalEvaluator(
            {"a": "Why does bread rise?", "b": "What keeps a ship upright?"}, corpus, {"a": {"bread"}, "b": {"ship"}}
        )
    )
    assert found["cosine_ndcg@10"] == 1.0
    similar = evaluation.EmbeddingSimilarityEvaluator(TEXTS, ["Bread rises by yeast.", "Rain falls."], [1.0, 0.0])
    assert model.evaluate(similar)["spearman_cosine"] == pytest.approx(1.0)
    documents = model.encode_document(TEXTS, convert_to_tensor=True)
    (hits,) = util.semantic_search(model.encode_query(["Why does bread rise?"], convert_to_tensor=True), documents)
    assert [hit["corpus_id"] for hit in hits] == [0, 1]
