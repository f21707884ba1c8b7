"""Updates lose nothing: what cannot be read stays, what is gone goes, and equal texts are embedded and cited once."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from grit_mlx import GritLM
from grit_mlx.errors import ArgumentError, StoreError
from grit_mlx.rag import Store
from grit_mlx.rag.table import PassageTable
from grit_mlx.text import kinds
from grit_mlx.text.options import WalkOptions
from tests.rag.conftest import rows_of

MakeStore = Callable[..., Store]


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def table(tmp_path: Path) -> Path:
    lines = "".join(f"Question {i}?,Answer number {i}.\n" for i in range(6))
    return write(tmp_path / "files" / "faq.csv", "question,answer\n" + lines)


def contents(store: Store) -> list[str]:
    return sorted(content for *_, content in rows_of(store))


# Reading options


def test_the_field_of_a_table_is_remembered(make_store: MakeStore, table: Path) -> None:
    make_store().index([table], field="answer")
    before = rows_of(make_store())
    report = make_store().index([table.parent])
    assert (report.unchanged, report.passages, report.removed_passages, report.problems) == (1, 0, 0, [])
    assert rows_of(make_store()) == before and len(before) == 6
    table.write_text(table.read_text() + "Question 6?,Answer number 6.\n")
    report = make_store().index([table.parent])
    assert (report.changed, report.passages, report.reused) == (1, 1, 6)
    assert contents(make_store()) == [f"Answer number {i}." for i in range(7)]


def test_another_field_or_none_replaces_it(make_store: MakeStore, table: Path) -> None:
    make_store().index([table], field="answer")
    assert make_store().index([table], field="question").changed == 1
    assert make_store().index([table]).unchanged == 1
    assert contents(make_store())[0] == "Question 0?"
    write(table, "text,answer\nA keel.,A mast.\n")
    make_store().index([table], field="text")
    make_store().index([table], field="answer")
    make_store().index([table], field="")
    assert contents(make_store()) == ["A keel."]
    assert make_store().index([table]).unchanged == 1


def test_the_field_is_remembered_for_each_file(make_store: MakeStore, table: Path) -> None:
    write(table.parent / "other.csv", "text,note\nA buoy floats.,none\n")
    make_store().index([table], field="answer")
    assert make_store().index([table.parent]).added == 1
    assert "A buoy floats." in contents(make_store()) and len(make_store()) == 7


def test_a_better_reader_reads_files_again(
    make_store: MakeStore, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is embedded again that comes out as before, and other kinds stay."""
    write(table.parent / "notes.txt", "A keel keeps a ship upright.\n")
    make_store().index([table.parent])
    kind = kinds.kind_of(table)
    monkeypatch.setitem(kinds._SUFFIXES, ".csv", replace(kind, edition=kind.edition + 1))
    report = make_store().index([table.parent])
    assert (report.changed, report.unchanged, report.reused, report.passages) == (1, 1, 6, 0)
    assert make_store().index([table.parent]).unchanged == 2 and len(make_store()) == 7


# Files that cannot be read


@pytest.mark.parametrize(
    ("name", "good", "more"),
    [
        ("a.jsonl", '{"text": "A keel."}\n{"text": "A mast."}\n', b"\x00\x01" * 99),
        ("a.csv", "text,n\nA keel.,1\nA mast.,2\n", b"\x00\x01\x02\x00" * 99),
        ("a.txt", "A keel.\n\nA mast.\n", bytes(range(256))),
        ("a.jsonl.gz", "", b"\x1f\x8b broken"),
    ],
)
def test_what_cannot_be_read_keeps_its_passages(
    make_store: MakeStore, tmp_path: Path, name: str, good: str, more: bytes
) -> None:
    path = tmp_path / "files" / name
    path.parent.mkdir()
    if name.endswith(".gz"):
        import gzip

        path.write_bytes(gzip.compress(b'{"text": "A keel."}\n'))
    else:
        path.write_text(good)
    make_store().index([path.parent])
    before, old = rows_of(make_store()), path.read_bytes()
    assert before
    path.write_bytes(more if name.endswith(".gz") else old + more)
    for _ in range(2):
        report = make_store().index([path.parent])
        assert (report.kept, report.removed_passages, report.total) == (1, 0, len(before))
        assert report.failed and report.problems[0][0] == str(path)
        assert rows_of(make_store()) == before
    path.write_bytes(old)
    report = make_store().index([path.parent])
    assert (report.unchanged, report.passages) == (1, 0) and rows_of(make_store()) == before


def test_a_broken_file_among_others_changes_only_the_others(make_store: MakeStore, folder: Path) -> None:
    make_store().index([folder])
    before = {row for row in rows_of(make_store()) if row[0].endswith("rows.jsonl")}
    with (folder / "rows.jsonl").open("ab") as file:
        file.write(b"\x00\x01" * 99)
    (folder / "bread.txt").write_text("Rye.\n")
    (folder / "page.html").unlink()
    report = make_store().index([folder])
    assert (report.changed, report.removed, report.kept, report.failed) == (1, 1, 1, False)
    after = rows_of(make_store())
    assert before == {row for row in after if row[0].endswith("rows.jsonl")}
    assert report.removed_passages == 2 and "Rye." in contents(make_store())


def test_half_a_row_costs_no_other_row(make_store: MakeStore, tmp_path: Path) -> None:
    path = write(tmp_path / "f" / "a.jsonl", '{"text": "A keel."}\n{"text": "A mast."}\n')
    make_store().index([path])
    path.write_text(path.read_text() + '{"text": "half a r')
    report = make_store().index([path])
    assert contents(make_store()) == ["A keel.", "A mast."] and "line 3" in report.notes.warnings[0]
    assert (report.passages, report.reused, report.failed) == (0, 2, False)


def test_an_emptied_file_loses_its_passages_and_says_so(make_store: MakeStore, folder: Path) -> None:
    make_store().index([folder])
    (folder / "bread.txt").write_text("\n")
    report = make_store().index([folder])
    assert (report.changed, report.removed_passages, report.skipped["empty"]) == (1, 1, 1)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_keeps_its_passages(make_store: MakeStore, folder: Path) -> None:
    make_store().index([folder])
    before = rows_of(make_store())
    (folder / "bread.txt").chmod(0)
    report = make_store().index([folder])
    assert report.kept == 1 and rows_of(make_store()) == before


# Files that are gone


def test_a_deleted_file_is_not_cited(make_store: MakeStore, folder: Path) -> None:
    make_store().index([folder])
    (folder / "bread.txt").unlink()
    for method in ("bm25", "dense", "hybrid", "rrf"):
        found = make_store().search("yeast sugar gas", method=method)
        assert not [hit for hit in found if hit.passage.source.endswith("bread.txt")], method
    make_store().index([folder], keep_missing=True)
    assert make_store().search("yeast sugar gas", method="bm25")  # it was kept on purpose


def test_a_moved_file_is_neither_embedded_again_nor_left_behind(
    make_store: MakeStore, folder: Path, tmp_path: Path
) -> None:
    make_store().index([folder])
    count = len(make_store())
    (folder / "bread.txt").rename(folder / "code" / "loaf.txt")
    report = make_store().index([folder])
    assert (report.added, report.removed, report.passages, report.reused) == (1, 1, 0, 1)
    assert len(make_store()) == count
    shutil.move(folder, tmp_path / "elsewhere")  # the folder is gone, and another one is indexed
    report = make_store().index([tmp_path / "elsewhere"])
    assert (report.removed, report.passages, report.reused) == (report.added, 0, count)
    assert all(row[0].startswith(str(tmp_path / "elsewhere")) for row in rows_of(make_store()))


def test_a_folder_that_is_not_mounted_stays(make_store: MakeStore, folder: Path, tmp_path: Path) -> None:
    make_store().index([folder])
    folder.rename(tmp_path / "unmounted")
    other = write(tmp_path / "other" / "a.txt", "Another place.")
    report = make_store().index([other])
    assert report.removed == 0 and len(make_store()) > 1
    assert {hit.passage.source for hit in make_store().search("keel ship", top=50)} == {str(other)}


def test_a_store_from_another_machine_is_read(make_store: MakeStore, folder: Path, tmp_path: Path) -> None:
    make_store().index([folder])
    shutil.rmtree(folder)
    assert make_store().search("yeast", method="bm25")


# Equal texts


def test_copies_are_embedded_and_cited_once(make_store: MakeStore, folder: Path, monkeypatch: Any) -> None:
    shutil.copy(folder / "ships.md", folder / "copy.md")
    write(folder / "crlf.md", (folder / "ships.md").read_text().replace("\n", "\r\n"))
    embedded: list[str] = []
    original = GritLM.encode

    def counted(self: GritLM, texts: Any, *args: Any, **options: Any) -> Any:
        embedded.extend(texts if isinstance(texts, list) else [texts])
        return original(self, texts, *args, **options)

    monkeypatch.setattr(GritLM, "encode", counted)
    report = make_store().index([folder])
    passages = [text for text in embedded if "keel" in text]
    assert len(passages) == len(set(passages)) and report.reused > 0
    assert report.passages + report.reused == report.total
    hits = make_store().search("What keeps a ship upright?", top=50)
    texts = [" ".join(hit.passage.content.split()) for hit in hits]
    assert len(texts) == len(set(texts))
    # As many as were asked for, if there are as many.
    assert len(make_store().search("ship", method="dense", top=3)) == 3


def test_unchanged_passages_of_a_changed_file_are_not_embedded_again(make_store: MakeStore, tmp_path: Path) -> None:
    path = write(tmp_path / "f" / "a.jsonl", "".join(f'{{"text": "Row {i}."}}\n' for i in range(40)))
    make_store().index([path])
    vectors = {hit.passage.text: hit.score for hit in make_store().search("Row", method="dense", top=50)}
    path.write_text('{"text": "A new row."}\n' + path.read_text())
    report = make_store().index([path])
    assert (report.passages, report.reused, report.removed_passages, report.total) == (1, 40, 40, 41)
    again = {hit.passage.text: hit.score for hit in make_store().search("Row", method="dense", top=50)}
    assert {text: again[text] for text in vectors} == pytest.approx(vectors, abs=1e-6)


def test_cached_documents_of_a_moved_file_stay(make_store: MakeStore, folder: Path) -> None:
    make_store().index([folder], cache_ahead="all")
    count = make_store().caches.stats().files
    (folder / "bread.txt").rename(folder / "loaf.txt")
    store = make_store()
    store.index([folder], cache_ahead="all")
    assert store.caches.stats().files == count and store.caches.stats().built == 0


# What is said


def test_a_store_in_the_making_is_said(make_store: MakeStore, folder: Path, monkeypatch: Any) -> None:
    seen: list[str] = []
    original = Store._read

    def look(self: Store, *args: Any, **how: Any) -> Any:
        with pytest.raises(StoreError) as error:
            make_store().search("ship")
        seen.append(str(error.value))
        return original(self, *args, **how)

    monkeypatch.setattr(Store, "_read", look)
    make_store().index([folder])
    assert f"is being built by process {os.getpid()}" in seen[0]


def test_an_interrupted_first_run_is_said(make_store: MakeStore, folder: Path, monkeypatch: Any) -> None:
    def stop(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Store, "_read", stop)
        make_store().index([folder])
    with pytest.raises(StoreError, match=r"was interrupted\. Run the same command again"):
        make_store().search("ship")


def test_filters_that_match_nothing_are_named(make_store: MakeStore, folder: Path) -> None:
    store = make_store()
    store.index([folder])
    for filters, said in (
        ({"paths": ["elsewhere/*.md"]}, r"paths 'elsewhere/\*.md' matches no file"),
        ({"metadata": ["year=3000"]}, "metadata 'year=3000' matches no passage"),
        ({"paths": [str(folder / "bread.txt")], "metadata": ["year=1999"]}, "all filters together"),
    ):
        with pytest.raises(ArgumentError, match=said):
            store.check_filters(**filters)
    store.check_filters([str(folder / "bread.txt")])


@pytest.mark.parametrize("pattern", ["data/*", "_versions/*", "_refs/*/*"])
@pytest.mark.parametrize("damage", ["missing", "garbage", "half"])
def test_a_damaged_store_is_one_sentence(make_store: MakeStore, folder: Path, pattern: str, damage: str) -> None:
    make_store().index([folder])
    for path in (Path(make_store().uri) / "passages.lance").glob(pattern):
        if damage == "missing":
            path.unlink()
        else:
            path.write_bytes(b"garbage" * 9 if damage == "garbage" else path.read_bytes()[: path.stat().st_size // 2])
    try:
        store = make_store()
        for method in ("dense", "bm25"):
            store.search("ship", method=method)
    except StoreError as error:
        said = str(error)
        assert str(folder.parent / "store") in said and "\n" not in said
        assert ".rs" not in said and "lance" not in said.replace("passages.lance", "").lower()
        assert "index again" in said or "There is no store" in said or "was interrupted" in said
    else:
        pytest.fail("the damage was not seen")


def test_a_store_of_another_machine_is_searched_without_looking_for_each_file(
    make_store: MakeStore, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.move(folder, tmp_path / "there" / "files")
    make_store().index([tmp_path / "there"])
    shutil.move(tmp_path / "there", tmp_path / "away")
    scans: list[str] = []
    names = PassageTable.names

    def scanned(self: PassageTable) -> Iterator[str]:
        scans.append(self.uri)
        return names(self)

    monkeypatch.setattr(PassageTable, "names", scanned)
    store = make_store()
    for question in ("ship", "yeast", "anchor"):
        assert len(store.search(question, top=3)) == 3
    assert len(scans) == 1
    (tmp_path / "there" / "files").mkdir(parents=True)  # the folder is here, and the file is gone
    assert not [hit for hit in store.search("ship", top=3) if hit.passage.source.endswith("ships.md")]


# Purging and patterns


def bytes_of_store(store: Store) -> bytes:
    return b"".join(path.read_bytes() for path in Path(store.uri).rglob("*") if path.is_file())


def test_purged_text_is_gone_from_the_disk(make_store: MakeStore, folder: Path) -> None:
    write(folder / "secret.txt", "The password is xyzzyplugh.\n")
    write(folder / "old.txt", "An older word: frobnicate.\n")
    make_store().index([folder], cache_ahead="all")
    (folder / "old.txt").unlink()
    make_store().index([folder])
    store = make_store()
    assert b"xyzzyplugh" in bytes_of_store(store) and b"frobnicate" in bytes_of_store(store)
    before = [row for row in rows_of(store) if not row[0].endswith("secret.txt")]
    vectors = {hit.passage.id: hit.score for hit in store.search("ship", method="dense", top=50)}
    assert store.remove([str(folder / "secret.txt")], purge=True) == 1
    for word in (b"xyzzyplugh", b"frobnicate"):
        assert word not in bytes_of_store(store)
    store = make_store()
    assert rows_of(store) == before and store.verify() == []
    assert {hit.passage.id: hit.score for hit in store.search("ship", method="dense", top=50)} == {
        key: pytest.approx(score, abs=1e-6) for key, score in vectors.items() if key in {p.id for p in store.passages()}
    }
    assert store.search("yeast", method="bm25")
    assert store.remove([], purge=True) == 0 and rows_of(make_store()) == before
    report = make_store().index([folder])  # the store is as usable as before
    assert report.added == 1 and make_store().search("xyzzyplugh", method="bm25")


def test_patterns_choose_what_is_indexed(make_store: MakeStore, folder: Path) -> None:
    def names() -> set[str]:
        return {Path(row[0]).relative_to(folder).as_posix() for row in rows_of(make_store())}

    report = make_store().index([folder], patterns=WalkOptions(include=["*.md", "code/**"]))
    assert names() == {"ships.md", "code/tide.py"} and report.skipped["excluded"] == 3
    make_store().index([folder], patterns=WalkOptions(exclude=["code/", "/rows.*"]))
    assert names() == {"ships.md", "bread.txt", "page.html"}
    assert make_store().index([folder], patterns=WalkOptions(include=["*.md"], exclude=["ships.*"])).removed == 3


# How files were read


def test_a_field_is_not_that_of_every_table(make_store: MakeStore, table: Path) -> None:
    other = write(table.parent / "notes.csv", "title,body\nA keel,It holds.\n")
    third = write(table.parent / "rows.jsonl", '{"text": "A buoy.", "year": 3}\n')
    make_store().index([table], field="answer")
    make_store().index([other], field="body")
    report = make_store().index([table.parent], field="question")
    assert (report.changed, report.added, report.unchanged) == (1, 1, 1)
    assert {"A keel It holds.", "A buoy.", "Question 0?"} <= set(contents(make_store()))  # a title is a heading
    assert sorted(report.notes.warnings) == [
        f"{other} has no field or column 'question'; it is read as before.",
        f"{third} has no field or column 'question'; it is read as if none were named.",
    ]
    assert make_store().index([table.parent]).unchanged == 3


def test_the_encoding_is_remembered_file_by_file(make_store: MakeStore, tmp_path: Path) -> None:
    files = tmp_path / "files"
    files.mkdir()
    (files / "old.txt").write_bytes("Ein Käfer.".encode("cp850"))
    (files / "new.txt").write_text("Ein Kiel.")
    assert "Ein Käfer." not in contents_after(make_store(), files)
    report = make_store().index([files / "old.txt"], encoding="cp850")
    assert (report.changed, contents(make_store())) == (1, ["Ein Kiel.", "Ein Käfer."])
    before = rows_of(make_store())
    assert make_store().index([files]).unchanged == 2 and rows_of(make_store()) == before
    (files / "old.txt").write_bytes("Zwei Käfer.".encode("cp850"))
    assert make_store().index([files]).changed == 1
    assert contents(make_store()) == ["Ein Kiel.", "Zwei Käfer."]


def contents_after(store: Store, files: Path) -> list[str]:
    store.index([files])
    return contents(store)


def test_stores_of_before_remember_their_fields(make_store: MakeStore, table: Path) -> None:
    make_store().index([table], field="answer")
    store = make_store()
    noted = store.require().read_state()
    assert noted["reading"] == {str(table): {"field": "answer"}}
    store.require().write_state(reading={}, fields={str(table): "answer"})  # as earlier versions did
    assert make_store().index([table]).unchanged == 1


def test_the_estimate_knows_what_is_reused(make_store: MakeStore, table: Path) -> None:
    first = make_store().estimate([table])
    assert (first.files, first.passages, first.reused) == (1, 6, 0)
    make_store().index([table])
    (table.parent / "copy.csv").write_bytes(table.read_bytes())
    again = make_store().estimate([table.parent])
    assert (again.files, again.passages, again.reused, again.tokens) == (1, 0, 6, 0)
    report = make_store().index([table.parent])
    assert (report.passages, report.reused) == (again.passages, again.reused)


# Small updates


def test_small_updates_do_not_let_a_store_grow(make_store: MakeStore, tmp_path: Path) -> None:
    files = tmp_path / "files"
    files.mkdir()
    for name in range(4):
        write(files / f"{name}.txt", "\n\n".join(f"Paragraph {n} of {name} on keels and masts." for n in range(60)))
    make_store().index([files])
    reader = make_store()
    before = rows_of(reader)
    sizes = []
    for number in range(50):
        write(files / "diary.txt", f"Day {number}.")
        assert make_store().index([files]).reused == 0
        sizes.append(make_store().stats().bytes or 0)
    assert max(sizes[25:]) < 1.5 * max(sizes[:25])
    # What was open all the time goes on with the newest version.
    found = reader.search("What was on day 49?", min_score=-1, top=3, method="bm25")
    assert any(one.passage.text == "Day 49." for one in found) and len(rows_of(reader)) == len(before) + 1


def test_killed_while_cleaning_up(make_store: MakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = tmp_path / "files"
    files.mkdir()
    write(files / "a.txt", "A keel.")
    monkeypatch.setattr("grit_mlx.rag.table._KEPT_VERSIONS", 1)
    make_store().index([files])
    lance = type(make_store().require()._table)
    optimize = lance.optimize

    def killed(self: object, **options: object) -> None:
        optimize(self, **options)
        raise SystemExit(137)

    for number in range(3):
        write(files / f"{number}.txt", f"Day {number}.")
        with monkeypatch.context() as patch:
            patch.setattr(lance, "optimize", killed)
            with pytest.raises(SystemExit):
                make_store().index([files])
        make_store().index([files])
        assert contents(make_store()) == sorted(["A keel.", *(f"Day {n}." for n in range(number + 1))])
