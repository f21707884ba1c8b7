"""grit search and grit similarity."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grit_mlx import GritLM
from grit_mlx.cli import console
from grit_mlx.cli.inputs import Sources
from grit_mlx.cli.search import best
from grit_mlx.model.prompts import embedding_prompt
from grit_mlx.text.options import ReadingOptions, WalkOptions
from grit_mlx.text.splitting import Text
from grit_mlx.vectors.compression import cosine
from tests.text import documents

Grit = Any


@pytest.fixture(scope="session")
def library(tiny_model: Path) -> GritLM:
    return GritLM(tiny_model, mode="embedding")


def test_hits_are_ranked_by_cosine(grit: Grit, notes: Path, library: GritLM) -> None:
    run = grit("search", "what keeps a ship upright?", notes, "--json")
    assert (run.code, run.err) == (0, "")
    hits = [json.loads(line) for line in run.out.splitlines()]
    lines = {1: "The keel keeps a ship upright.", 2: "A sail catches the wind.", 4: "Bread needs flour."}
    scores = cosine(library.encode_queries("what keeps a ship upright?"), library.encode_corpus(list(lines.values())))
    expected = sorted(zip(scores.tolist(), lines.items(), strict=True), reverse=True)
    assert [(hit["line"], hit["text"]) for hit in hits] == [item for _, item in expected]
    np.testing.assert_allclose([hit["score"] for hit in hits], [score for score, _ in expected], atol=1e-5)
    assert all(hit["source"] == str(notes) for hit in hits)


def test_a_pipe_gets_a_line_for_each_hit(grit: Grit, tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_text("# Title\n\nTwo lines\nof\x1b[31m prose.\n")
    run = grit("search", "prose", path, "--by", "paragraph")
    assert run.code == 0
    places = [line.split(": ", 1)[0] for line in run.out.splitlines()]
    assert sorted(places) == [f"{path}:1", f"{path}:3"]
    passages = grit("search", "prose", path, "--json")  # by default Markdown is ranked by passage, as in a store
    assert [json.loads(line)["end_line"] for line in passages.out.splitlines()] == [4]
    assert "Two lines of\\x1b[31m prose." in run.out


def test_a_hit_says_what_its_place_counts(grit: Grit, tmp_path: Path) -> None:
    path = documents.pdf(tmp_path / "a.pdf", [[("A keel.", 72, 700, 12)], [("A mast.", 72, 700, 12)]])
    run = grit("search", "keel", path, "--chunk-size", "4")
    assert {line.split(": ")[0] for line in run.out.splitlines()} == {f"{path}, page 1", f"{path}, page 2"}
    hits = [json.loads(line) for line in grit("search", "keel", path, "--json", "--chunk-size", "4").out.splitlines()]
    assert {(hit["page"], hit["end_page"]) for hit in hits} == {(1, 1), (2, 2)}


def test_patterns_that_take_no_file_are_named(grit: Grit, notes: Path) -> None:
    run = grit("search", "keel", notes.parent, "--include", "*.xyz")
    assert run.code == 1 and "none is taken by --include and --exclude." in run.err


def test_how_many_texts_there_are_is_estimated(notes: Path) -> None:
    sources = Sources([str(notes)], ReadingOptions(), WalkOptions())
    sources.check()
    seen: list[tuple[float, int | None]] = []
    advance = sources.with_total(lambda done, total: seen.append((done, total)))
    advance(0, None)
    for done, _ in enumerate(sources.read(len), start=1):
        advance(done, None)
    advance(3, None)
    totals = [total for _, total in seen if total is not None]
    assert seen[0] == (0, None) and totals[-1] == 3 and all(total >= 1 for total in totals)


def test_top_and_min_score(grit: Grit, notes: Path) -> None:
    everything = grit("search", "a ship", notes, "-n", "3").out.splitlines()
    assert len(everything) == 3
    assert grit("search", "a ship", notes, "--top", "1").out.splitlines() == everything[:1]
    second = float(everything[1].split(": ")[1].split()[0])
    some = grit("search", "a ship", notes, "--min-score", f"{second - 0.001}")
    assert some.out.splitlines() == everything[:2]
    none = grit("search", "a ship", notes, "--min-score", "0.9999")
    assert (none.code, none.out) == (0, "")
    assert none.err.startswith("note: none of 3 texts scores 0.9999; the best has 0.")


def test_standard_input_and_files_together(grit: Grit, notes: Path) -> None:
    run = grit("search", "a ship", notes, "-", stdin="A ship sails.\n")
    assert len(run.out.splitlines()) == 4
    assert "\n-:1: " in "\n" + run.out


def test_hits_in_colours_are_cut_to_a_few_rows(grit: Grit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "stdout_is_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("[red]sail[/red] " * 100 + "\n")
    run = grit("search", "sail", "a.txt", "-q")
    assert run.out.startswith("a.txt:1: ")
    assert "[red]sail[/red]" in run.out
    assert len(run.out.rstrip("\n")) == 120
    assert run.out.rstrip().endswith("…")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder of several kinds of files, some of them damaged or ignored."""
    root = tmp_path / "tree"
    (root / "deep").mkdir(parents=True)
    (root / ".git").mkdir()
    (root / ".gitignore").write_text("*.log\n")
    (root / "ships.md").write_text("# Ships\n\nA keel keeps a ship upright.\n\n## Rigging\n\nThe mast carries sails.\n")
    (root / "deep" / "code.py").write_text("def tide():\n    return 2\n")
    (root / "page.html").write_text("<html><body><h1>Harbours</h1><p>A harbour shelters ships.</p></body></html>")
    (root / "rows.csv").write_text("text,year\nAn anchor holds.,1999\n")
    (root / "noise.log").write_text("ignored\n")
    (root / "bad.txt").write_bytes(bytes(range(256)))
    (root / "bad.jsonl").write_text('{"text": ')
    return root


def found_in(run: Any, root: Path) -> set[str]:
    return {Path(json.loads(line)["source"]).relative_to(root).as_posix() for line in run.out.splitlines()}


def test_folders_are_searched_and_bad_files_passed_over(grit: Grit, tree: Path) -> None:
    run = grit("search", "a ship", tree, "--json", "-n", 50)
    assert run.code == 0
    assert found_in(run, tree) == {"ships.md", "deep/code.py", "page.html", "rows.csv"}
    assert run.err.count("warning: ") == 2 and "bad.txt looks like" in run.err and "bad.jsonl, line 1" in run.err
    run = grit("search", "a ship", tree / "bad.txt", tree / "ships.md", tree / "none.txt", "--json")
    assert run.code == 0 and found_in(run, tree) == {"ships.md"}
    assert "none.txt does not exist" in run.err and run.err.count("warning: ") == 2


@pytest.mark.parametrize("names", [("bad.txt",), ("bad.txt", "bad.jsonl"), ("none.txt", "bad.txt"), ("no.txt", "x.md")])
def test_if_every_file_is_bad_the_exit_code_is_1(grit: Grit, tree: Path, names: tuple[str, ...]) -> None:
    run = grit("search", "a ship", *(tree / name for name in names))
    assert (run.code, run.out) == (1, "")
    assert run.err.count("error: ") == 1 and run.err.count("warning: ") == (len(names) if len(names) > 1 else 0)


def test_patterns_choose_files(grit: Grit, tree: Path) -> None:
    run = grit("search", "a ship", tree, "--json", "--include", "*.md", "--include", "*.py", "-q")
    assert found_in(run, tree) == {"ships.md", "deep/code.py"}
    run = grit("search", "a ship", tree, "--json", "--exclude", "deep/", "--exclude", "bad.*")
    assert found_in(run, tree) == {"ships.md", "page.html", "rows.csv"} and run.err == ""


def test_documents_are_searched_by_the_passages_of_a_store(grit: Grit, tree: Path, tmp_path: Path) -> None:
    text = "\n\n".join(f"## Part {i}\n\n" + "The mast carries the sails. " * 9 for i in range(9))
    (tree / "long.md").write_text("# Ships\n\n" + text)
    assert grit("rag", "index", tree / "long.md", "--store", tmp_path / "store", "-q").code == 0
    from grit_mlx.rag import Store

    stored = {(one.line, one.end_line, one.text) for one in Store(tmp_path / "store").passages()}
    rows = map(json.loads, grit("search", "mast", tree / "long.md", "--json", "-n", 99).out.splitlines())
    assert {(row["line"], row["end_line"], row["text"]) for row in rows} == stored and len(stored) > 3


def test_vectors_are_kept_for_the_next_search(
    grit: Grit, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedded: list[str] = []
    original = GritLM.encode_iter

    def counted(self: GritLM, texts: Any, **options: Any) -> Any:
        def noted() -> Any:
            for text in texts:
                embedded.append(text)
                yield text

        return original(self, noted(), **options)

    monkeypatch.setattr(GritLM, "encode_iter", counted)
    args = ("search", "a ship", tree, "--json", "-n", 50, "-q")
    first = grit(*args)
    count = len(embedded)
    assert count == len(set(embedded)) > 4
    embedded.clear()
    assert grit(*args).out == first.out and embedded == []
    (tree / "ships.md").rename(tree / "boats.md")  # moved files and copies are known too
    (tree / "copy.py").write_text((tree / "deep" / "code.py").read_text())
    (tree / "new.txt").write_text("A new line.\n")
    assert grit(*args).code == 0 and embedded == ["A new line."]
    embedded.clear()
    assert grit(*args, "--no-cache").code == 0 and len(embedded) >= count + 1
    embedded.clear()
    assert grit(*args, "--max-length", 300).code == 0 and embedded  # other vectors
    embedded.clear()
    for damage in (b"garbage" * 99, b""):
        next(iter(_cache_files())).write_bytes(damage)
        assert grit(*args).code == 0
    assert embedded


def _cache_files() -> list[Path]:
    from grit_mlx.model import hub

    return list(hub.home().glob("vectors.sqlite"))


def test_best_keeps_the_first_of_equal_texts_and_no_more_than_asked() -> None:
    vectors = [np.array([score, 1.0], np.float32) for score in (0, 3, 1, 3, 2, 3)]
    random.Random(0).shuffle(vectors)
    pairs = [(Text(str(i), "-", i, i), vector) for i, vector in enumerate(vectors)]
    hits, seen = best(iter(pairs), np.array([1.0, 0.0], np.float32), count=4)
    assert seen == 6
    order = sorted(range(6), key=lambda i: (-vectors[i][0], i))[:4]
    assert [int(hit.text.text) for hit in hits] == order
    assert best(iter(pairs), np.array([1.0, 0.0], np.float32), count=99)[0][:4] == hits


def test_two_texts_give_a_number(grit: Grit, library: GritLM) -> None:
    run = grit("similarity", "red wine", "white wine")
    assert (run.code, run.err) == (0, "")
    prompt = embedding_prompt(library.settings.similarity_instruction)
    one, other = library.encode(["red wine", "white wine"], instruction=prompt)
    assert float(run.out) == pytest.approx(float(one @ other), abs=1e-4)
    chosen = grit("similarity", "red wine", "white wine", "--instruction", "Find boats")
    assert chosen.out != run.out


def test_more_texts_give_a_matrix(grit: Grit) -> None:
    texts = ["red wine", "white wine", "boat"]
    run = grit("similarity", *texts)
    matrix = np.array([[float(cell) for cell in line.split("\t")] for line in run.out.splitlines()])
    assert matrix.shape == (3, 3)
    np.testing.assert_array_equal(matrix, matrix.T)
    np.testing.assert_array_equal(np.diag(matrix), 1)
    found = json.loads(grit("similarity", *texts, "--json").out)
    assert found["texts"] == texts
    np.testing.assert_allclose(found["cosines"], matrix, atol=1e-4)


def test_two_texts_in_json(grit: Grit) -> None:
    found = json.loads(grit("similarity", "Füße", "feet", "--json").out)
    assert list(found) == ["texts", "cosine"]
    assert found["texts"] == ["Füße", "feet"]


def test_the_matrix_on_a_terminal(grit: Grit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "stdout_is_terminal", lambda: True)
    run = grit("similarity", "red wine", "white [bold]wine[/bold]", "boat\x1b[2J")
    assert "white [bold]wine[/bold]" in run.out
    assert "boat\\x1b[2J" in run.out
    assert run.out.count("1.000") == 3
