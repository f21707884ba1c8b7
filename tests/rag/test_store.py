"""A store follows its files, answers from them, and tells whose it is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from grit_mlx import GritLM
from grit_mlx.errors import ArgumentError, ModeError, StoreError
from grit_mlx.rag import Rag, Store
from tests.rag.conftest import FILES, rows_of

MakeStore = Callable[..., Store]


def test_index_and_find(make_store: MakeStore, folder: Path) -> None:
    store = make_store()
    report = store.index([folder])
    assert report.added == len(FILES) and report.total == len(store) == len(rows_of(store))
    assert report.passages == report.total and not report.problems
    (hit,) = store.search("yeast sugar gas", top=1, method="bm25")
    assert Path(hit.passage.source).name == "bread.txt"
    assert hit.passage.line == 1 and "Bread rises" in hit.passage.text
    contents = {content for *_, content in rows_of(store)}
    assert "Anchors An anchor holds the ship." in contents  # the title before the text
    assert any(content.startswith("# Ships") for content in contents)


def test_only_what_changed_is_embedded(make_store: MakeStore, folder: Path) -> None:
    make_store().index([folder])
    before = rows_of(make_store())
    again = make_store().index([folder])
    assert (again.unchanged, again.passages, again.added, again.changed) == (len(FILES), 0, 0, 0)
    (folder / "bread.txt").write_text("Rye makes a dark bread.\n")
    (folder / "ships.md").unlink()
    (folder / "new.txt").write_text("A new file.\n")
    report = make_store().index([folder])
    assert (report.changed, report.added, report.removed, report.passages) == (1, 1, 1, 2)
    store = make_store()
    kept = {row for row in before if Path(row[0]).name not in ("bread.txt", "ships.md")}
    assert set(rows_of(store)) - kept == {
        (str(folder / "bread.txt"), 1, 1, "Rye makes a dark bread."),
        (str(folder / "new.txt"), 1, 1, "A new file."),
    }
    assert kept <= set(rows_of(store))
    found = {Path(hit.passage.source).name for hit in store.search("keel ship sails yeast", method="bm25")}
    assert not found & {"ships.md"}


def test_other_folders_stay(make_store: MakeStore, folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "a.txt").write_text("Another place.")
    store = make_store()
    store.index([folder])
    report = store.index([other])
    assert report.removed == 0 and len(store) == report.total > 1
    (folder / "bread.txt").unlink()
    assert store.index([folder], keep_missing=True).removed == 0
    assert store.index([folder]).removed == 1


def test_an_old_reader_sees_its_version(make_store: MakeStore, folder: Path) -> None:
    make_store().index([folder])
    reader = make_store()
    before = rows_of(reader)
    (folder / "bread.txt").write_text("Something else entirely.\n")
    make_store().index([folder])
    assert rows_of(reader) == before
    assert rows_of(make_store()) != before


def test_a_field_is_remembered_file_by_file(make_store: MakeStore, tmp_path: Path) -> None:
    folder = tmp_path / "tables"
    folder.mkdir()
    (folder / "faq.csv").write_text("question,answer\nWhat floats?,A keel.\nWhat rises?,Bread.\n")
    store = make_store()
    store.index([folder / "faq.csv"], field="answer")
    (folder / "towns.csv").write_text("name,town\nAda,London\n")
    report = store.index([folder])
    assert (report.added, report.changed, report.unchanged, report.total) == (1, 0, 1, 3)
    assert {row.text for row in store.passages()} == {"A keel.", "Bread.", "name: Ada\ntown: London"}
    assert store.index([folder], field="question").changed == 1
    assert {row.text for row in store.passages()} == {"What floats?", "What rises?", "name: Ada\ntown: London"}


def test_another_field_is_read_again(make_store: MakeStore, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("text,other\none,two\n")
    store = make_store()
    store.index([path])
    assert [row[3] for row in rows_of(store)] == ["one"]
    assert store.index([path], field="other").changed == 1
    assert [row[3] for row in rows_of(store)] == ["two"]


def test_remove(make_store: MakeStore, folder: Path) -> None:
    store = make_store()
    store.index([folder], cache_ahead="all")
    cached = store.caches.stats().files
    assert store.remove([str(folder / "code")]) == 1
    assert store.caches.stats().files == cached - 1
    assert not [row for row in rows_of(make_store()) if row[0].endswith("tide.py")]
    assert (folder / "code" / "tide.py").exists()
    with pytest.raises(ArgumentError, match="holds no passages of"):
        store.remove([str(folder / "nothing.txt")])


def test_caches_of_what_is_gone_go(make_store: MakeStore, folder: Path) -> None:
    store = make_store()
    store.index([folder], cache_ahead="all")
    assert store.caches.stats().files == len(store)
    (folder / "bread.txt").unlink()
    store.index([folder])
    assert store.caches.stats().files == len(store)
    assert store.verify() == []


def test_filters(make_store: MakeStore, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store()
    store.index([folder])
    monkeypatch.chdir(folder)
    for method in ("hybrid", "rrf", "dense", "bm25"):
        hits = store.search("ship anchor tide", method=method, paths=["code", "rows.*"])
        assert {Path(hit.passage.source).name for hit in hits} <= {"tide.py", "rows.jsonl"}, method
        assert hits, method
        hits = store.search("ship anchor", method=method, metadata=["year=1999"])
        assert [hit.passage.text for hit in hits] == ["An anchor holds the ship."], method
    assert not store.search("ship", paths=["elsewhere"])
    assert not store.search("ship", paths=["it's.txt"], metadata=["a=b'c"])
    with pytest.raises(ArgumentError, match="KEY=VALUE"):
        store.search("ship", metadata=["year"])


def test_hybrid_is_both_fused_by_scores(make_store: MakeStore, folder: Path) -> None:
    store = make_store()
    store.index([folder])
    question = "Why is there salt in bread?"
    dense = {hit.passage.id: hit.score for hit in store.search(question, method="dense", top=50)}
    words = {hit.passage.id: hit.score for hit in store.search(question, method="bm25", top=50)}
    low, high, best = min(dense.values()), max(dense.values()), max(words.values())
    assert len(words) < len(dense)  # the lowest BM25 score is 0
    scores = {row: 0.55 * (dense[row] - low) / (high - low) + 0.45 * words.get(row, 0.0) / best for row in dense}
    hits = store.search(question, top=50)
    assert [hit.score for hit in hits] == pytest.approx(sorted(scores.values(), reverse=True), abs=1e-4)
    assert all(hit.score == pytest.approx(scores[hit.passage.id], abs=1e-4) for hit in hits)
    assert all(hit.cosine is not None for hit in hits)


def test_rrf_is_both_fused_by_ranks(make_store: MakeStore, folder: Path) -> None:
    store = make_store()
    store.index([folder])
    question = "Why is there salt in bread?"
    dense = [hit.passage.id for hit in store.search(question, method="dense", top=50)]
    words = [hit.passage.id for hit in store.search(question, method="bm25", top=50)]
    scores = {
        row: sum(1 / (61 + ranking.index(row)) for ranking in (dense, words) if row in ranking)
        for row in {*dense, *words}
    }
    hits = store.search(question, method="rrf", top=50)
    assert [hit.score for hit in hits] == pytest.approx(sorted(scores.values(), reverse=True))
    assert all(hit.score == pytest.approx(scores[hit.passage.id]) for hit in hits)


def test_dense_is_the_cosine(make_store: MakeStore, model: GritLM, folder: Path) -> None:
    store = make_store()
    store.index([folder])
    vector = model.encode_queries("What floats?")
    for hit in store.search("What floats?", method="dense", top=50):
        own = model.encode_corpus(hit.passage.content)
        assert hit.score == pytest.approx(float(vector @ own), abs=2e-3)  # stored in half precision


def test_approximate_search_finds_what_exact_search_finds(make_store: MakeStore, tmp_path: Path) -> None:
    path = tmp_path / "many.jsonl"
    path.write_text("".join(json.dumps({"text": f"Thing {i} is {i * i % 97} wide."}) + "\n" for i in range(600)))
    exact = make_store()
    exact.index([path])
    wanted = [hit.passage.id for hit in exact.search("Thing 77", method="dense", top=10)]
    small = make_store(exact_bytes=0)
    small.index([path], approximate=True)
    assert not small.stats().approximate  # nothing changed, so nothing was built
    with path.open("a") as file:
        file.write('{"text": "One more thing."}\n')
    small = make_store(exact_bytes=0)
    small.index([path])
    stats = small.stats()
    assert stats.approximate and stats.recall is not None and stats.recall >= 0.9
    found = [hit.passage.text for hit in small.search("Thing 77", method="dense", top=10)]
    exact = make_store()
    texts = [hit.passage.text for hit in exact.search("Thing 77", method="dense", top=10)]
    assert len(wanted) == 10 and len(set(found) & set(texts)) >= 9
    # What only its words found has its cosine as well.
    known = {hit.passage.id: hit.cosine for hit in exact.search("Thing 77", method="dense", top=len(exact))}
    hits = small.search("Thing 77")
    assert [hit.cosine for hit in hits] == [pytest.approx(known[hit.passage.id], abs=1e-3) for hit in hits]


def test_rerank_puts_what_makes_the_question_likely_first(make_store: MakeStore, model: GritLM, folder: Path) -> None:
    store = make_store()
    store.index([folder])
    rag = Rag(model, store, top=3, rerank=True, min_score=-1)
    results = rag.find("A buoy floats.")
    scores = [hit.score for hit in results]
    assert scores == sorted(scores, reverse=True) and len(scores) == 3
    assert scores == pytest.approx(rag.likelihoods("A buoy floats.", results), abs=1e-4)


def test_nothing_relevant_is_said(make_store: MakeStore, model: GritLM, folder: Path) -> None:
    store = make_store()
    store.index([folder])
    refused = Rag(model, store, min_score=1.1).ask("When is the boiler serviced?")
    assert refused.answer is None and refused.text is None and refused.sources == []
    assert refused.results and not refused.results.relevant
    asked = Rag(model, store, min_score=-1).ask("When is the boiler serviced?", max_tokens=4)
    assert asked.text and asked.sources == asked.results.results
    assert store.unrelated is not None and -1 <= store.unrelated.median <= 1 and store.stats().unrelated


def test_answers_come_from_the_caches_of_the_store(make_store: MakeStore, model: GritLM, folder: Path) -> None:
    store = make_store()
    store.index([folder], cache_ahead="all")
    response = Rag(model, store, top=2, cache="doc", min_score=-1).ask("What floats?", max_tokens=4)
    assert response.text is not None and response.answer is not None
    assert response.answer.cached_tokens > 0 and store.caches.stats().built == 0
    none = Rag(model, make_store(cache_budget=0), top=2, cache="none", min_score=-1).ask("What floats?", max_tokens=4)
    assert none.answer is not None and none.answer.cached_tokens == 0


def test_a_damaged_cache_is_rebuilt_with_the_same_answer(make_store: MakeStore, model: GritLM, folder: Path) -> None:
    make_store().index([folder], cache_ahead="all")
    before = Rag(model, make_store(), cache="doc", min_score=-1).ask("What floats?", max_tokens=8).text
    store = make_store()
    for path in store.caches.folder.glob("??/*.safetensors"):
        content = bytearray(path.read_bytes())
        content[-5] ^= 64
        path.write_bytes(content)
    assert Rag(model, store, cache="doc", min_score=-1).ask("What floats?", max_tokens=8).text == before
    assert store.caches.stats().damaged == store.caches.stats().built > 0
    again = make_store()
    assert Rag(model, again, cache="doc", min_score=-1).ask("What floats?", max_tokens=8).text == before
    assert again.caches.stats().damaged == 0


def test_the_most_used_are_cached_ahead(make_store: MakeStore, model: GritLM, folder: Path) -> None:
    store = make_store(cache_budget=0)
    store.index([folder])
    rag = Rag(model, store, top=2, cache="doc", min_score=-1)
    assert rag.ask("What floats?", max_tokens=2).text is not None
    store = make_store()
    assert store.caches.stats().files == 0
    assert store.cache_most_used(10) == 2 == store.caches.stats().files


def test_chat_goes_on_with_its_documents(make_store: MakeStore, model: GritLM, folder: Path) -> None:
    store = make_store()
    store.index([folder])
    rag = Rag(model, store, top=1, cache="doc", min_score=-1)
    first = rag.chat("What floats?", max_tokens=4)
    assert first.text is not None
    rag.remember("What floats?", first.text)
    second = rag.chat("What floats?", max_tokens=4)
    assert second.text is not None and second.sources[0].passage.id == first.sources[0].passage.id
    rag.reset()
    assert rag.history == []


# Whose it is


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pooling_method": "cls"}, r"the pooling \('mean' there, 'cls' here\)"),
        ({"attn": "cccc"}, "the attention"),
        ({"normalized": False}, "the normalisation"),
        ({"weights": True}, "What differs: the weights[.]"),
        ({"tokenizer": True}, "What differs: the tokenizer[.]"),
        ({"instruction": True}, "the query instruction"),
    ],
)
def test_another_model_is_refused_with_what_differs(
    make_store: MakeStore,
    folder: Path,
    tmp_path: Path,
    model_copy: Callable[..., Path],
    change: dict[str, object],
    said: str,
) -> None:
    make_store().index([folder])
    copy = model_copy()
    options = {}
    if "weights" in change:
        path = copy / "model.safetensors"
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    elif "tokenizer" in change:
        path = copy / "tokenizer.json"
        path.write_text(path.read_text() + "\n")
    elif "instruction" in change:
        (copy / "grit.json").write_text(json.dumps({"query_instruction": "Find it"}))
    else:
        options = change
    with pytest.raises(StoreError, match=said):
        Store(tmp_path / "store", GritLM(copy, **options))  # type: ignore[arg-type]


def test_a_copy_of_the_model_is_the_same_model(
    make_store: MakeStore, folder: Path, tmp_path: Path, model_copy: Callable[..., Path]
) -> None:
    make_store().index([folder])
    store = Store(tmp_path / "store", GritLM(model_copy()))
    assert store.search("What floats?") and store.passage_tokens == 64


def test_refusals(make_store: MakeStore, model: GritLM, folder: Path, tmp_path: Path, tiny_model: Path) -> None:
    with pytest.raises(StoreError, match="There is no store at"):
        make_store().search("x")
    assert not (tmp_path / "store").exists()  # looking makes no folder
    make_store().index([folder])
    with pytest.raises(StoreError, match="passage_tokens=64, not 65"):
        make_store(passage_tokens=65)
    with pytest.raises(ArgumentError, match="question is empty"):
        make_store().search(" ")
    with pytest.raises(ArgumentError, match="Unknown method 'best'"):
        make_store().search("x", method="best")
    with pytest.raises(ArgumentError, match="top must be at least 1"):
        make_store().search("x", top=0)
    with pytest.raises(ModeError, match="opened without a model"):
        Store(tmp_path / "store").search("x")
    assert Store(tmp_path / "store").search("ship", method="bm25")
    with pytest.raises(ModeError, match="needs mode='unified'"):
        Rag(GritLM(tiny_model, mode="embedding"), make_store())


def test_a_table_that_is_not_ours_is_refused(tmp_path: Path, model: GritLM) -> None:
    import lancedb

    lancedb.connect(tmp_path / "store").create_table("passages", [{"id": 1}])
    with pytest.raises(StoreError, match="did not make"):
        Store(tmp_path / "store", model)


def test_a_damaged_store_is_told(make_store: MakeStore, folder: Path, tmp_path: Path) -> None:
    make_store().index([folder])
    shutil.rmtree(tmp_path / "store" / "passages.lance" / "data")
    with pytest.raises(StoreError, match="cannot be used"):
        make_store().search("ship", method="dense")


def test_verify(make_store: MakeStore, folder: Path) -> None:
    make_store().index([folder])
    store = make_store()
    assert store.verify() == []
    (folder / "bread.txt").write_text("changed")
    (folder / "ships.md").unlink()
    problems = store.verify()
    assert len(problems) == 2 and "has changed since" in problems[0] and "does not exist" in problems[1]


def test_vectors_are_stored_in_order(make_store: MakeStore, folder: Path) -> None:
    store = make_store()
    store.index([folder])
    for hit in store.search("anything", method="dense", top=50):
        assert hit.cosine is not None and np.isfinite(hit.cosine)
    stats = store.stats()
    assert stats.files == len(FILES) and stats.passages == len(store) and stats.bytes and stats.bytes > 1000
