"""``grit rag``: indexing, asking, talking, looking after a store; every failure a sentence."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from grit_mlx.errors import GritError
from grit_mlx.rag import Answerer, Store, fingerprint, table
from grit_mlx.rag.options import METHODS, StoreOptions, budget_of
from grit_mlx.rag.table import PassageTable

Grit = Any


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to index, in which the commands run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GRIT_STORE", raising=False)
    root = tmp_path / "notes"
    root.mkdir()
    (root / "ships.md").write_text("# Ships\n\nA keel keeps a ship upright.\n\nThe mast carries the sails.\n")
    (root / "bread.txt").write_text("Bread rises because yeast eats sugar.\n")
    (root / "rows.jsonl").write_text(
        '{"text": "An anchor holds.", "year": 1999}\n{"text": "A buoy floats.", "year": 1}\n'
    )
    return root


@pytest.fixture
def indexed(grit: Grit, folder: Path) -> Path:
    assert grit("rag", "index", folder).code == 0
    return folder


@pytest.fixture
def quoting(grit: Grit, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store of the built-in model, which only embeds and is the default."""
    monkeypatch.delenv("GRIT_MODEL", raising=False)
    assert grit("rag", "index", folder).code == 0
    return folder


def test_index_tells_what_it_did(grit: Grit, folder: Path) -> None:
    (folder / "bad.txt").write_bytes(bytes(range(256)))
    run = grit("rag", "index", "notes")
    assert run.code == 0
    assert run.out.startswith("Files: 3 new. 4 passages embedded in ") and run.out.endswith("; .grit holds 4.\n")
    assert "bad.txt: " in run.err and "skipped: 1 binary or damaged" in run.err
    (folder / "bread.txt").unlink()
    (folder / "ships.md").write_text("Sails.\n")
    values = json.loads(grit("rag", "index", "notes", "--json").out)
    assert (values["changed"], values["removed"], values["unchanged"], values["total"]) == (1, 1, 1, 3)
    assert values["problems"][0]["source"] == str(folder / "bad.txt") and values["skipped"] == {"binary": 1}


def test_dry_run_counts_only(grit: Grit, folder: Path) -> None:
    run = grit("rag", "index", "notes", "--dry-run")
    assert run.out.startswith("3 files to embed, 0 unchanged: 4 passages, ")
    assert not Path(".grit").exists()
    values = json.loads(grit("rag", "index", "notes", "--dry-run", "--json").out)
    assert values["cache_bytes"]["full"] > values["cache_bytes"]["8"] > values["cache_bytes"]["4"] > 0
    assert grit("rag", "index", "notes", "--cache-ahead", "all").code == 0
    files = list(Path(".grit/caches").glob("??/*.safetensors"))
    held = sum(path.stat().st_size - 8 - int.from_bytes(path.read_bytes()[:8], "little") for path in files)
    assert len(files) == 4 and held == pytest.approx(values["cache_bytes"]["full"], rel=0.05)


def test_ask_answers_and_names_its_sources(grit: Grit, indexed: Path) -> None:
    run = grit("rag", "ask", "What keeps a ship upright?", "--min-score", -1, "--max-tokens", 4, "--top", 4, "-v")
    answer, _, sources = run.out.partition("\n\nSources:\n")
    assert answer and len(sources.splitlines()) == 4
    assert "notes/ships.md:1-5  " in sources and "notes/rows.jsonl:2  0." in sources
    assert "from caches" in run.err and "--max-tokens allows more" in run.err
    again = grit(
        "rag", "ask", "What keeps a ship upright?", "--min-score", -1, "--max-tokens", 4, "--cache", "doc", "-v"
    )
    assert again.out.startswith(answer)
    assert "--cache doc: 0 tokens" not in again.err  # the first answer left them behind


def test_ask_in_json(grit: Grit, indexed: Path) -> None:
    for cache in ("none", "doc", "query", "doc-query", "query-doc", "auto"):
        run = grit("rag", "ask", "What floats?", "--json", "--min-score", -1, "--max-tokens", 3, "--cache", cache)
        values = json.loads(run.out)
        assert values["mode"] == cache or cache == "auto"
        assert values["answer"] and values["relevant"] and values["generated_tokens"] == 3
        source = next(one for one in values["sources"] if one["source"].endswith("rows.jsonl") and one["line"] == 2)
        assert source["text"] == "A buoy floats." and source["end_line"] == 2 and -1 <= source["cosine"] <= 1
        assert 0 < values["seconds_to_first_token"] <= values["seconds"]


@pytest.mark.parametrize("method", METHODS)
def test_sources_stand_in_the_order_of_the_score_that_is_shown(grit: Grit, indexed: Path, method: str) -> None:
    args = ("rag", "ask", "What keeps a ship upright?", "--min-score", -1, "--sources-only", "--method", method)
    lines = grit(*args).out.splitlines()
    shown = [float(line.split("  ")[1]) for line in lines]
    assert lines and shown == sorted(shown, reverse=True)
    sources = json.loads(grit(*args, "--json").out)["sources"]
    assert [round(source["score"], 3) for source in sources] == shown
    assert {"score", "cosine", "bm25"} <= sources[0].keys()


def test_a_model_that_only_embeds_answers_with_quotes(grit: Grit, quoting: Path) -> None:
    asked = grit("rag", "ask", "What keeps a ship upright?", "-q")
    assert (asked.code, asked.err) == (0, "")
    assert asked.out.startswith("“A keel keeps a ship upright.”\n  notes/ships.md:3\n")
    values = json.loads(grit("rag", "ask", "What keeps a ship upright?", "--json").out)
    best = values["quotes"][0]
    assert best["text"] == "A keel keeps a ship upright." and not best["is_code"]
    assert (best["source"], best["line"], best["end_line"]) == (str(quoting / "ships.md"), 3, 3)
    assert values["mode"] == "quote" and values["answer"].startswith(
        "“A keel keeps a ship upright.” (notes/ships.md:3)"
    )
    talk = grit("rag", "chat", "-q", stdin="What keeps a ship upright?\n/sources\n")
    assert (
        talk.code == 0 and talk.out.startswith("“A keel keeps a ship upright.”\n") and "ships.md:1-5  1.000" in talk.out
    )


def test_what_only_embeds_is_not_asked_to_write(grit: Grit, quoting: Path) -> None:
    asked = grit("rag", "ask", "Why?", "--answer", "write")
    assert asked.code == 1 and "grit-tiny only embeds." in asked.err and "grit models pull" in asked.err


def test_any_model_can_quote(grit: Grit, indexed: Path) -> None:
    asked = grit("rag", "ask", "What keeps a ship upright?", "--answer", "quote", "--method", "bm25")
    assert asked.code == 0 and asked.out.splitlines()[0][1:-1] in (indexed / "ships.md").read_text()


def test_sources_alone(grit: Grit, indexed: Path) -> None:
    run = grit("rag", "ask", "yeast", "--sources-only", "--method", "bm25")
    assert run.out.startswith("notes/bread.txt:1  ") and run.out.count("\n") == 1
    run = grit("rag", "ask", "yeast", "--no-generate", "--method", "bm25")
    assert run.out.splitlines()[1] == "    Bread rises because yeast eats sugar."
    run = grit("rag", "ask", "yeast", "--no-generate", "--min-score", -1, "--json", "--rerank", "--top", 2)
    assert len(json.loads(run.out)["sources"]) == 2
    run = grit("rag", "ask", "anchor", "--sources-only", "--min-score", -1, "--where", "year=1999")
    assert run.out.startswith("notes/rows.jsonl:1  ") and run.out.count("\n") == 1
    run = grit("rag", "ask", "anchor", "--sources-only", "--min-score", -1, "--path", "notes/*.md")
    assert run.out.startswith("notes/ships.md:1-5  ") and run.out.count("\n") == 1


def test_bm25_needs_no_model(grit: Grit, indexed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRIT_MODEL", "no-such-model")
    assert grit("rag", "ask", "yeast", "--sources-only", "--method", "bm25").code == 0
    for command in (["stats"], ["verify"], ["remove", "notes/bread.txt"]):
        assert grit("rag", *command).code == 0


LOOKING = """
import sys
from typer.testing import CliRunner
from grit_mlx.cli.main import app
for command in ("stats", "verify", "ask yeast --sources-only --method bm25", "remove notes/bread.txt"):
    result = CliRunner().invoke(app, ["rag", *command.split()])
    assert result.exit_code == 0, (command, result.output, result.exception)
    print(*sorted({"mlx_lm", "transformers", "torch"} & sys.modules.keys()), end="")
"""


def test_looking_at_a_store_imports_no_model_code(indexed: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", LOOKING]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert (run.returncode, run.stdout) == (0, ""), run.stderr


@pytest.mark.parametrize(
    ("args", "fingerprints"),
    [
        (["--max-tokens", "2"], 1),
        (["--max-tokens", "2", "--rerank", "--cache", "doc"], 1),
        (["--sources-only"], 1),
        (["--no-generate", "--method", "bm25"], 0),
    ],
)
def test_a_question_opens_its_store_once(
    grit: Grit, indexed: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], fingerprints: int
) -> None:
    calls: Counter[str] = Counter()

    def count(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def counted(*args: Any, **options: Any) -> Any:
            calls[name] += 1
            return original(*args, **options)

        monkeypatch.setattr(owner, name, counted)

    count(Store, "__init__")
    count(PassageTable, "__init__")
    count(table, "connected")
    count(PassageTable, "read_state")
    count(fingerprint, "_sampled")  # the weights
    fingerprint._hashed.cache_clear()
    run = grit("rag", "ask", "yeast", *args)
    assert run.code == 0
    assert calls == Counter({"__init__": 2, "connected": 1, "read_state": 1, "_sampled": fingerprints})


def test_nothing_relevant_is_said(grit: Grit, indexed: Path) -> None:
    run = grit("rag", "ask", "What floats?", "--min-score", 1)
    assert (run.code, run.out) == (0, "Nothing relevant was found among 4 passages.\n")
    assert "must be exceeded; --min-score -1 accepts any" in run.err
    values = json.loads(grit("rag", "ask", "What floats?", "--min-score", 1, "--json").out)
    assert values == {"answer": None, "question": "What floats?", "relevant": False, "sources": []}


def test_a_filter_that_matches_nothing_is_named(grit: Grit, indexed: Path) -> None:
    for args, said in (
        (["--path", "docs/*.md"], "error: --path 'docs/*.md' matches no file of the store"),
        (["--path", "notes/ships.md", "--where", "year=1999"], "satisfies all filters together"),
        (["--where", "year=2"], "error: --where 'year=2' matches no passage of the store"),
    ):
        for more in (["--sources-only"], [], ["--json"]):
            run = grit("rag", "ask", "What floats?", *args, *more)
            assert (run.code, run.out) == (1, "") and said in run.err


def test_if_every_file_fails_so_does_the_command(grit: Grit, folder: Path) -> None:
    (folder / "bad.txt").write_bytes(bytes(range(256)))
    run = grit("rag", "index", folder / "bad.txt")
    assert run.code == 1 and "bad.txt: " in run.err
    assert grit("rag", "index", folder / "bad.txt", "--json").code == 1
    assert grit("rag", "index", folder).code == 0


def test_what_was_kept_reused_and_removed_is_told(grit: Grit, indexed: Path) -> None:
    with (indexed / "rows.jsonl").open("ab") as file:
        file.write(b"\x00\x01" * 99)
    (indexed / "bread.txt").rename(indexed / "loaf.txt")
    (indexed / "ships.md").unlink()
    run = grit("rag", "index", "notes")
    assert run.code == 0 and run.out.startswith("Files: 1 new, 2 removed. 0 passages embedded, 1 reused, 2 removed in ")
    assert run.out.endswith("; .grit holds 3.\n")
    assert "what was stored of 1 file that cannot be read was kept" in run.err and "rows.jsonl: looks like" in run.err


def test_what_has_no_room_is_left_out_with_a_note(grit: Grit, indexed: Path) -> None:
    (indexed / "many.txt").write_text("\n\n".join(f"Paragraph {i} of many sails. " * 4 for i in range(90)))
    assert grit("rag", "index", "notes").code == 0
    args = ("rag", "ask", "What floats?", "--min-score", -1, "--top", 200, "--max-tokens", 4)
    run = grit(*args)
    assert run.code == 0 and "left out, as the model's context has no room for them: " in run.err
    values = json.loads(grit(*args, "--json").out)
    assert values["left_out"] > 0 and len(values["sources"]) == run.out.count("\n", run.out.index("Sources:")) - 1
    run = grit("rag", "ask", "keel " * 17_600)
    assert (run.code, run.out) == (1, "") and "tokens, but the model's context is 1,024 tokens. Shorten it." in run.err
    assert grit("rag", "ask", "keel " * 17_600, "--method", "bm25", "--sources-only").code == 0


def test_chat(grit: Grit, indexed: Path) -> None:
    lines = "What floats?\n/sources\nAnd what holds?\n/help\n/reset\n/quit\nnot read\n"
    run = grit("rag", "chat", "--min-score", -1, "--max-tokens", 3, "--top", 1, stdin=lines)
    assert run.code == 0
    assert run.out.count("Sources:\n") == 2 and "/sources    the sources" in run.out
    assert "the conversation is forgotten" in run.err
    run = grit("rag", "chat", "--min-score", -1, stdin="/dance\n")
    assert run.code == 1 and "There is no command /dance" in run.err


def test_ctrl_c_stops_the_answer_and_keeps_the_sources(
    grit: Grit, indexed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Answerer._written

    def pressed(self: Answerer, *args: Any) -> Any:
        for number, piece in enumerate(original(self, *args)):
            if number == 2:
                os.kill(os.getpid(), signal.SIGINT)
            yield piece

    monkeypatch.setattr(Answerer, "_written", pressed)
    run = grit("rag", "ask", "What floats?", "--min-score", -1, "--max-tokens", 400)
    assert run.code == 0 and "Sources:\nnotes/" in run.out


def test_ctrl_c_while_indexing(grit: Grit, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Store._read

    def pressed(self: Store, path: Path, *how: Any, **others: Any) -> Any:
        if path.name == "ships.md":
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)  # it is the main thread that hears it
        return original(self, path, *how, **others)

    monkeypatch.setattr(Store, "_read", pressed)
    run = grit("rag", "index", "notes")
    assert run.code == 130 and run.err.count("stopping; the passages that were embedded are kept") == 1
    assert "the same command resumes" in run.err
    assert grit("rag", "stats").code == 1  # nothing was published
    monkeypatch.setattr(Store, "_read", original)
    assert "holds 4." in grit("rag", "index", "notes").out


def test_stats_remove_verify(grit: Grit, indexed: Path) -> None:
    assert "passages        4 of at most 256 tokens, overlap 32\n" in grit("rag", "stats").out
    values = json.loads(grit("rag", "stats", "--json").out)
    assert (values["files"], values["passages"], values["model"]) == (3, 4, "mistral")
    run = grit("rag", "verify")
    assert (run.code, run.out) == (0, "")
    (indexed / "bread.txt").write_text("changed")
    run = grit("rag", "verify")
    assert run.code == 1 and run.out == f"{indexed / 'bread.txt'} has changed since it was indexed.\n"
    run = grit("rag", "remove", "notes/bread.txt", "notes/*.md")
    assert run.code == 0 and "2 files removed from .grit" in run.err
    assert json.loads(grit("rag", "stats", "--json").out)["files"] == 1


def test_another_model_is_refused(grit: Grit, indexed: Path, tiny_mixtral: Path) -> None:
    run = grit("rag", "ask", "What floats?", "--model", tiny_mixtral)
    assert run.code == 1 and run.out == ""
    assert "was made with another model (mistral; now mixtral). What differs: the weights" in run.err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["ask", "x"], "There is no store at"),
        (["stats", "--store", "elsewhere"], "There is no store at"),
        (["ask", " "], "The question is empty."),
        (["index", "nothing"], "nothing does not exist. Check the name."),
        (
            ["index", "notes", "--passage-tokens", "16", "--overlap", "16"],
            "--overlap must be below --passage-tokens (16), not 16.",
        ),
    ],
)
def test_failures_are_sentences(grit: Grit, folder: Path, args: list[str], message: str) -> None:
    run = grit("rag", *args)
    assert (run.code, run.out) == (1, "")
    assert run.err.startswith("error: ") and message in run.err and run.err.count("\n") == 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["index", "notes", "--cache-budget", "much"], "'much' is not a size"),
        (["index", "notes", "--cache-ahead", "some"], "'some' is neither a number nor 'all'"),
        (["ask", "x", "--cache", "both"], "'both' is not one of"),
        (["ask", "x", "--top", "0"], "Invalid value for '--top'"),
    ],
)
def test_wrong_usage(grit: Grit, folder: Path, args: list[str], message: str) -> None:
    run = grit("rag", *args)
    assert run.code == 2 and message in " ".join(run.err.replace("│", " ").split())


@pytest.mark.parametrize(
    ("text", "count"), [("0", 0), ("500MB", 500_000_000), ("1.5 gb", 1_500_000_000), ("7k", 7000), ("none", None)]
)
def test_sizes(text: str, count: int | None) -> None:
    assert budget_of(text) == count


def test_the_default_budget_is_the_one_shown(grit: Grit, indexed: Path) -> None:
    assert budget_of("10GB") == StoreOptions().cache_budget
    assert grit("rag", "ask", "yeast", "--max-tokens", 1, "--min-score", -1, "--cache-budget", "none").code == 0
    assert list(Path(".grit/caches").glob("??/*.safetensors"))


def test_errors_of_the_library_are_of_one_tree() -> None:
    from grit_mlx.errors import StoreBusyError, StoreError

    assert issubclass(StoreBusyError, StoreError) and issubclass(StoreError, GritError)


def test_files_that_fail_are_named_and_a_run_without_any_fails(grit: Grit, tmp_path: Path) -> None:
    folder = tmp_path / "documents"
    folder.mkdir()
    (folder / "a.pdf").write_bytes(b"no pdf")
    (folder / "b.xyz").write_bytes(b"x")
    run = grit("rag", "index", folder, "--store", tmp_path / "store")
    assert run.code == 1 and "a.pdf: is damaged, or not a PDF file." in run.err
    assert "1 of other kinds (.xyz 1)" in run.err
    (folder / "c.txt").write_bytes("Москва, столица России".encode("cp866"))
    run = grit("rag", "index", folder, "--store", tmp_path / "store", "--encoding", "cp866", "--json")
    report = json.loads(run.out)
    assert run.code == 0 and report["added"] == 1 and report["kinds"] == {".xyz": 1}
    assert report["notes"] == {"warnings": [], "left_out": {}}
    assert [row.text for row in Store(tmp_path / "store").passages()] == ["Москва, столица России"]
