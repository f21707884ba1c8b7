"""Which files are found, and what becomes of those that cannot or should not be read."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from grit_mlx.errors import DocumentError
from grit_mlx.rag import Store, walk
from tests.rag.conftest import rows_of


def names(found: object, root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in found.files]  # type: ignore[attr-defined]


def make(root: Path, *files: str, text: str = "Some text.") -> None:
    for name in files:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_kinds_and_hidden_names(tmp_path: Path) -> None:
    make(tmp_path, "b.md", "a.txt", "c/d.py", "x.bin", "README", ".hidden.md", ".git/config", "node_modules/m.js")
    found = walk([tmp_path])
    assert names(found, tmp_path) == ["README", "a.txt", "b.md", "c/d.py"]
    assert found.skipped == {"kind": 1}
    assert names(walk([tmp_path / "x.bin", tmp_path / "x.bin"]), tmp_path) == ["x.bin"]  # it was named; once


def test_gitignore(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    make(tmp_path, "keep.md", "out/a.md", "sub/a.log", "sub/b.txt", "sub/deep/b.txt", "sub/deep/important.log")
    (tmp_path / ".gitignore").write_text("*.log\n/out/\n")
    (tmp_path / "sub" / ".gitignore").write_text("/b.txt\n")
    (tmp_path / "sub" / "deep" / ".gitignore").write_text("!important.log\n")
    kept = ["keep.md", "sub/deep/b.txt", "sub/deep/important.log"]
    found = walk([tmp_path])
    assert names(found, tmp_path) == kept and found.skipped == {"ignored": 3}
    assert names(walk([tmp_path / "sub"]), tmp_path) == kept[1:]  # the rules above the folder hold too


def test_links_are_not_followed(tmp_path: Path) -> None:
    make(tmp_path / "in", "a.txt")
    make(tmp_path / "out", "secret.txt")
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "up").symlink_to("..")
    (tmp_path / "in" / "out").symlink_to(tmp_path / "out")
    (tmp_path / "in" / "self").symlink_to("self")
    found = walk([tmp_path / "in"])
    assert names(found, tmp_path / "in") == ["a.txt"] and found.skipped == {"link": 4}
    with pytest.raises(DocumentError, match="leads back to itself"):
        walk([tmp_path / "in" / "self"])
    assert names(walk([tmp_path / "in" / "out"]), tmp_path / "out") == ["secret.txt"]  # it was named


def test_what_is_no_file(tmp_path: Path) -> None:
    make(tmp_path, "a.txt", "large.txt")
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "large.txt").write_text("x" * 100)
    found = walk([tmp_path], max_bytes=50)
    assert names(found, tmp_path) == ["a.txt"] and found.skipped == {"special": 1, "large": 1}
    with pytest.raises(DocumentError, match=r"nothing does not exist\. Check the name\. If it was deleted, 'grit rag"):
        walk([tmp_path / "nothing"])
    with pytest.raises(DocumentError, match=r"cannot be read: embedded null byte\."):
        walk(["a\0b"])


def test_how_large_a_file_may_be(tmp_path: Path) -> None:
    """What is named is wanted: a table or a log is read a part at a time, however large it is."""
    for name in ("rows.jsonl", "rows.csv", "long.log", "scan.pdf", "page.html", "rows.json"):
        (tmp_path / name).write_text("x" * 100)
    inside = walk([tmp_path], max_bytes=50)
    assert inside.files == [] and inside.skipped == {"large": 5, "kind": 1}
    said = {Path(name).name: problem for name, problem in inside.problems}
    assert said["rows.csv"] == "has 100 bytes, more than 50. Name the file itself to index it nevertheless"
    assert said["page.html"] == "has 100 bytes, more than 50. Split it: this kind is read as a whole"
    named = walk(sorted(tmp_path.iterdir()), max_bytes=50)
    assert names(named, tmp_path) == ["long.log", "rows.csv", "rows.jsonl", "scan.pdf"]
    assert {Path(name).name for name, _ in named.problems} == {"page.html", "rows.json"}


HOSTILE = [
    "it's a 'name'.txt",
    'a "quoted" name.txt',
    "semi;colon -- drop.txt",
    "new\nline.txt",
    "tab\tand [brackets]*.txt",
    "%s{}$HOME.txt",
    "-rf.txt",
    "emoji \U0001f600 und größe.txt",
    "long" + "g" * 200 + ".txt",
]


def test_hostile_names(make_store: Callable[..., Store], tmp_path: Path) -> None:
    root = tmp_path / "files"
    make(root, *HOSTILE)
    try:
        with open(os.fsencode(root) + b"/bytes\xff.txt", "w") as file:  # noqa: PTH123 - no name that pathlib writes
            file.write("Some text.")
        count = len(HOSTILE) + 1
    except OSError:  # a file system of Unicode names
        count = len(HOSTILE)
    store = make_store()
    assert store.index([root]).added == count
    assert store.index([root]).unchanged == count
    assert {Path(row[0]).name for row in rows_of(store)} >= set(HOSTILE)
    for name in HOSTILE[:4]:
        hits = store.search("text", paths=[str(root / name)])
        assert [Path(hit.passage.source).name for hit in hits] == [name]
        assert store.remove([str(root / name)]) == 1
    assert len(make_store()) == count - 4
    assert [problem for problem in make_store().verify() if "does not exist" not in problem] == []


def test_what_cannot_be_read_is_counted(make_store: Callable[..., Store], tmp_path: Path) -> None:
    root = tmp_path / "files"
    make(root, "good.txt", "other.md")
    (root / "binary.txt").write_bytes(bytes(range(256)) * 20)
    (root / "broken.jsonl").write_text('{"text": "fine"}\n{"text": \n')
    (root / "broken.pdf").write_bytes(b"%PDF-1.7 and no more")
    (root / "broken.docx").write_bytes(b"PK\3\4 and no more")
    (root / "latin.txt").write_bytes("Grüße".encode("latin-1"))
    (root / "empty.md").write_text(" \n\n")
    (root / "old.doc").write_bytes(b"\xd0\xcf\x11\xe0")
    (root / "package-lock.json").write_text("{}")
    (root / "picture.png").write_bytes(b"\x89PNG")
    report = make_store().index([root])
    assert report.added == report.total == 4
    assert report.skipped["empty"] == 1 and report.skipped["binary"] + report.skipped["package"] == 3
    assert report.skipped["junk"] == 1 and report.kinds == {".doc": 1, ".png": 1}
    reasons = dict(report.problems)
    assert set(reasons) == {str(root / name) for name in ("binary.txt", "broken.pdf", "broken.docx", "old.doc")}
    assert all("\n" not in reason for reason in reasons.values())
    assert [warning.removeprefix(f"{root}/") for warning in report.notes.warnings] == [
        "broken.jsonl, line 2: column 10 is not JSON (Expecting value). Fix the line. The row is left out.",
        "latin.txt is not UTF-8; it is read as cp1252, which is a guess. encoding names another.",
    ]
    read = {Path(row[0]).name for row in rows_of(make_store())}
    assert read == {"good.txt", "other.md", "broken.jsonl", "latin.txt"} and not report.failed
    # Once they are fixed, they come in.
    (root / "broken.jsonl").write_text('{"text": "fine"}\n{"text": "too"}\n')
    report = make_store().index([root])
    assert (report.passages, report.reused) == (1, 1)  # one was read before its file was damaged


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_without_permission(make_store: Callable[..., Store], tmp_path: Path) -> None:
    root = tmp_path / "files"
    make(root, "a.txt", "secret.txt", "closed/b.txt")
    (root / "secret.txt").chmod(0)
    (root / "closed").chmod(0)
    try:
        report = make_store().index([root])
    finally:
        (root / "closed").chmod(0o755)
    assert report.added == 1 and report.skipped["unreadable"] == 2
    assert len(report.problems) == 2


def test_what_became_unreadable_stays(
    make_store: Callable[..., Store], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "files"
    make(root, "a.txt", "b.txt")
    make_store().index([root])
    from grit_mlx.rag import indexing

    original = indexing.hash_of

    def failing(path: Path) -> str:
        if path.name == "a.txt":
            raise PermissionError(13, "Permission denied")
        return original(path)

    monkeypatch.setattr(indexing, "hash_of", failing)
    report = make_store().index([root])
    assert report.skipped["unreadable"] == 1 and report.removed == 0 and report.total == 2
