"""Programs written for sentence-transformers run as they are."""

from __future__ import annotations

import numpy as np
import pytest

from grit_mlx import GritLM
from grit_mlx.errors import ArgumentError
from grit_mlx.integrations.sentence_transformers import GritEncoder

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
    with pytest.raises(ArgumentError, match="float32"):
        model.encode(TEXTS, precision="ubinary")
