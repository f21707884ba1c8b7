"""Systems on small sets: what is scored is what the model, BM25 and their fusion say."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from grit_mlx import GritLM, embedding_prompt
from grit_mlx.errors import DependencyError, DocumentError, ModelError
from grit_mlx.evaluation.metrics import ndcg, ranked, spearman
from grit_mlx.evaluation.plots import plot_scores
from grit_mlx.evaluation.scoring import Score, evaluate, evaluate_set
from grit_mlx.evaluation.sets import PairSet, RetrievalSet, find_sets, load_set
from grit_mlx.evaluation.systems import BM25System, GritSystem, SentenceTransformerSystem
from grit_mlx.progress import Progress
from grit_mlx.vectors.fusion import fuse_shares

# What the data came with: nDCG@10 of BM25, with an English stemmer.
BM25_SCORES = {
    "clapnq_dev": 0.911,
    "fairytaleqa_val": 0.699,
    "pubmedqa": 0.975,
    "scitldr_test": 0.952,
    "xquad_en": 0.961,
}


@pytest.fixture(scope="module")
def model() -> GritLM:
    return GritLM(Path(__file__).parents[1] / "golden" / "mistral", mode="embedding")


def retrieval(path: Path) -> RetrievalSet:
    found = load_set(path)
    assert isinstance(found, RetrievalSet)
    return found


def test_a_model_on_a_retrieval_set(beir: Path, model: GritLM) -> None:
    data = retrieval(beir)
    scores = model.encode_queries(list(data.queries.values())) @ model.encode_corpus(list(data.documents.values())).T
    expected = []
    for number, query in enumerate(("q1", "q2")):
        order = [list(data.documents)[i] for i in np.argsort(-scores[number])]
        expected.append(ndcg(order, data.relevant[query]))
    assert evaluate_set(model, data) == pytest.approx(np.mean(expected), abs=1e-6)


def test_a_model_on_pairs(pairs: Path, model: GritLM) -> None:
    data = load_set(pairs)
    assert isinstance(data, PairSet)
    prompt = embedding_prompt(model.settings.similarity_instruction)
    first, second = (model.encode(side, instruction=prompt) for side in (data.first, data.second))
    expected = spearman(np.sum(first * second, axis=1), data.scores)
    (score,) = evaluate([lambda: GritSystem(model)], [data])
    assert (score.kind, score.main, score.count) == ("pairs", "Spearman", 4)
    assert score.values["Spearman"] == pytest.approx(expected) and -1 <= score.values["Pearson"] <= 1


def test_vectors_of_a_corpus_are_computed_once(beir: Path, model: GritLM) -> None:
    seen: list[tuple[str, int]] = []

    @contextmanager
    def watch(label: str, total: int) -> Iterator[Progress]:
        seen.append((label, total))
        yield lambda done, known: None

    data = retrieval(beir)
    other = replace(data, name="others", queries={"q2": data.queries["q2"]})
    system = GritSystem(model, name="tiny")
    both = list(evaluate([lambda: system], [data, other], watch=watch))
    assert [score.set for score in both] == ["boats", "others"]
    assert seen == [("tiny: boats", 4)]
    system.rankings(replace(data, documents={**data.documents, "new": "A sail."}), 10, watch)
    assert len(seen) == 2


def test_instructions(beir: Path, model: GritLM) -> None:
    data = retrieval(beir)

    def asked(system: GritSystem) -> NDArray[np.float32]:
        return np.asarray(system.encode(["a boat"], "query", data.name)[0])

    def expected(instruction: str) -> NDArray[np.float32]:
        return np.asarray(model.encode("a boat", instruction=embedding_prompt(instruction)))

    np.testing.assert_allclose(asked(GritSystem(model)), expected(model.settings.query_instruction), atol=1e-6)
    np.testing.assert_allclose(asked(GritSystem(model, instruction="Find")), expected("Find"), atol=1e-6)
    one = GritSystem(model, instruction="Find", instructions={"boats": "Seek"})
    np.testing.assert_allclose(asked(one), expected("Seek"), atol=1e-6)


def test_a_query_does_not_find_itself_and_nobody_finds_an_empty_document(model: GritLM) -> None:
    texts = {"a": "A boat.", "b": "A ship.", "empty": " ", "c": "Bread."}
    data = RetrievalSet("set", texts, {"a": "A boat.", "b": "A boat."}, {"a": {"b": 1}, "b": {"b": 1}})
    found = GritSystem(model).rankings(data, 3)
    assert set(found["a"]) == {"b", "c"}, "the query's own document is no hit"
    assert set(found["b"]) == {"a", "b", "c"}, "another text under the query's id is one"
    judged = replace(data, relevant={"a": {"a": 1}, "b": {"b": 1}})
    assert "a" in GritSystem(model).rankings(judged, 3)["a"], "unless it is judged"
    with pytest.raises(DocumentError, match="All documents of set are empty"):
        GritSystem(model).rankings(replace(data, documents={"a": "", "b": " "}), 3)


def test_equal_documents_are_ordered_as_trec_eval_does(model: GritLM) -> None:
    data = RetrievalSet("set", {"a": "A boat.", "c": "A boat.", "b": "A boat."}, {"q": "boat"}, {"q": {"a": 1}})
    assert GritSystem(model).rankings(data, 2) == {"q": {"c": 1, "b": 1}}


def test_bm25_and_fusion(beir: Path, model: GritLM) -> None:
    pytest.importorskip("bm25s", reason="needs bm25s, of the extra eval")
    data = retrieval(beir)
    lexical = BM25System().rankings(data, 10)
    # "boats" is stemmed; "does", "a" and "what" are no words that count; "moon" shares none with either query
    assert {query: list(found) for query, found in lexical.items()} == {"q1": ["keel", "tack"], "q2": ["yeast"]}
    assert lexical["q1"]["keel"] == 1 and 0 < lexical["q1"]["tack"] < 1
    found = {score.system: score for score in evaluate([lambda: GritSystem(model, name="m")], [data], hybrid=True)}
    assert list(found) == ["m", "m+BM25"]
    dense = GritSystem(model).rankings(data, 100)
    for scores in map(list, map(dict.values, dense.values())):
        assert scores[0] == 1 and scores[-1] == 0 and scores == sorted(scores, reverse=True)
    both = {query: ranked(fuse_shares([dense[query], lexical[query]])) for query in ("q1", "q2")}
    expected = [ndcg(both[query], data.relevant[query]) for query in both]
    assert found["m+BM25"].values["nDCG@10"] == pytest.approx(np.mean(expected))
    no_words = replace(data, documents={"keel": "?", "tack": "!", "yeast": ".", "moon": ""})
    with pytest.raises(DocumentError, match="without words"):
        BM25System().rankings(no_words, 3)


def test_bm25_on_the_development_sets(shared: Path) -> None:
    pytest.importorskip("bm25s", reason="needs bm25s, of the extra eval")
    folder = shared / "data" / "dev"
    sets = [load_set(path) for path in find_sets(folder) if path.name in BM25_SCORES]
    found = {score.set: round(score.values["nDCG@10"], 3) for score in evaluate([BM25System], sets)}
    assert found == BM25_SCORES


def test_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("bm25s", "sentence_transformers", "matplotlib"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(DependencyError, match=r"BM25 needs bm25s: pip install 'grit-mlx\[eval\]'"):
        BM25System()
    with pytest.raises(DependencyError, match=r"pip install 'grit-mlx\[sentence-transformers\]'"):
        SentenceTransformerSystem("x")
    with pytest.raises(DependencyError, match=r"pip install 'grit-mlx\[plots\]'"):
        plot_scores(Path("x.png"), [])


def test_a_model_of_sentence_transformers(beir: Path, pairs: Path, tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers", reason="needs the extra sentence-transformers")
    from sentence_transformers.sentence_transformer.modules import BoW

    words = ["keel", "boat", "yeast", "bread", "moon", "tack", "upright"]
    library.SentenceTransformer(modules=[BoW(vocab=words)], device="cpu").save(str(tmp_path / "words"))
    system = SentenceTransformerSystem(str(tmp_path / "words"))
    # q1 shares two words with the keel, q2 one with the yeast.
    scores = list(evaluate([lambda: system], [load_set(beir), load_set(pairs)]))
    assert [(score.system, score.kind) for score in scores] == [("words", "retrieval"), ("words", "pairs")]
    assert scores[0].values["MRR@10"] == 1
    with pytest.raises(ModelError, match="cannot load"):
        SentenceTransformerSystem(str(tmp_path / "nothing"))


def test_a_chart(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs matplotlib, of the extra plots")
    scores = [
        *(Score("boats", "retrieval", name, {"nDCG@10": value}, 9, 1) for name, value in (("a", 0.5), ("b", 1.0))),
        Score("pairs", "pairs", "a", {"Spearman": -0.2}, 9, 1),
        Score("texts", "answers", "a", {"perplexity": 310.0}, 9, 1),
    ]
    plot_scores(tmp_path / "chart", scores)
    assert (tmp_path / "chart").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["chart"]
