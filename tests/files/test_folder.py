"""Folders that are the old one or the complete new one, also after a process was killed."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from grit_mlx.errors import OutputError
from grit_mlx.files import folder as folders
from grit_mlx.files.folder import atomic_folder, require_space, resumable_folder, sweep


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write(path: Path, text: str) -> None:
    with atomic_folder(path) as folder:
        (folder / "deeper").mkdir()
        (folder / "deeper" / "a").write_text(text)


def read(path: Path) -> str:
    return (path / "deeper" / "a").read_text()


def test_a_folder_is_made_and_replaced(tmp_path: Path) -> None:
    target = tmp_path / "new" / "target"
    for text in ("one", "two"):
        write(target, text)
        assert read(target) == text and listing(target.parent) == ["target"]
    with atomic_folder(target, replace=False) as folder:
        (folder / "b").touch()
    assert read(target) == "two" and listing(target.parent) == ["target"]


def test_a_link_is_kept_and_what_it_leads_to_is_replaced(tmp_path: Path) -> None:
    write(tmp_path / "real", "old")
    (tmp_path / "link").symlink_to("real")
    write(tmp_path / "link", "new")
    with resumable_folder(tmp_path / "link", identity=1) as (folder, _):
        assert read(tmp_path / "real") == "new"
        (folder / "b").touch()
    assert (tmp_path / "link").is_symlink() and listing(tmp_path / "real") == ["b"]
    assert listing(tmp_path) == ["link", "real"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("null"), OSError(errno.ENOSPC, "full")])
def test_a_failure_leaves_the_old_folder(tmp_path: Path, error: BaseException) -> None:
    write(tmp_path / "target", "old")
    expected = OutputError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected), atomic_folder(tmp_path / "target") as folder:
        (folder / "a").touch()
        raise error
    assert read(tmp_path / "target") == "old" and listing(tmp_path) == ["target"]


def test_everything_is_on_the_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    rename = Path.rename

    def renamed(self: Path, target: Path) -> Path:
        events.append("rename")
        return rename(self, target)

    monkeypatch.setattr(folders, "_sync", lambda path: events.append(path.name))
    monkeypatch.setattr(Path, "rename", renamed)
    write(tmp_path / "target", "new")
    assert events.index("a") < events.index("rename") < events.index(tmp_path.name)


def test_work_is_resumed_by_the_same_identity_only(tmp_path: Path) -> None:
    target = tmp_path / "target"

    def run(identity: object, *, stop: bool = True) -> bool:
        with resumable_folder(target, identity=identity) as (folder, resumed):
            assert listing(folder) == (["done"] if resumed else [])
            (folder / "done").touch()
            if stop:
                raise KeyboardInterrupt
        return resumed

    with pytest.raises(KeyboardInterrupt):
        run({"bits": 4})
    assert listing(tmp_path) == [".target.unfinished", ".target.unfinished.json"]
    with pytest.raises(KeyboardInterrupt):
        run({"bits": 3})
    assert run({"bits": 3}, stop=False)
    assert listing(tmp_path) == ["target"]
    assert not run({"bits": 3}, stop=False)


def test_a_failure_before_anything_is_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10**7))
    target = tmp_path / "target"
    with (
        pytest.raises(OutputError, match=r"target needs 1\.50 GB and 0\.01 GB are free on its disk\. Use less\."),
        resumable_folder(target, identity=1),
    ):
        require_space(target, 1_500_000_000, "Use less.")
    assert listing(tmp_path) == []
    require_space(tmp_path / "not" / "there" / "yet", 10**7)


def test_a_full_disk_says_how_it_goes_on(tmp_path: Path) -> None:
    message = r"the disk is full\. .* What is done so far is kept: run the same command again to resume\."
    with pytest.raises(OutputError, match=message), resumable_folder(tmp_path / "target", identity=1) as (folder, _):
        (folder / "a").touch()
        raise OSError(errno.ENOSPC, "No space left on device")
    (tmp_path / "file").touch()
    for use in (atomic_folder, lambda path: resumable_folder(path, identity=1)):
        with (
            pytest.raises(OutputError, match=r"a part of its path is a file, not a folder\.$"),
            use(tmp_path / "file" / "x"),
        ):
            pass


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with (
        resumable_folder(tmp_path / "target", identity=1),
        pytest.raises(OutputError, match=rf"^Process {os.getpid()} is writing to .*target\. Stop it, .* done\.$"),
        resumable_folder(tmp_path / "target", identity=1),
    ):
        pass


KILLED = """
import os, signal, sys
from pathlib import Path
from grit_mlx.files import folder
def die(*arguments, **options):
    os.kill(os.getpid(), signal.SIGKILL)
def rename(self, target, original=Path.rename):
    original(self, target)
    if str(target).endswith(".replaced"):
        die()
if sys.argv[3] == "writing":
    folder._put_in_place = die
else:
    Path.rename = rename
kinds = {"atomic": folder.atomic_folder, "resumable": lambda path: folder.resumable_folder(path, identity=1)}
with kinds[sys.argv[2]](Path(sys.argv[1])) as lent:
    lent = lent if isinstance(lent, Path) else lent[0]
    (lent / "new").touch()
"""


@pytest.mark.parametrize("moment", ["writing", "replacing"])
@pytest.mark.parametrize("kind", ["atomic", "resumable"])
def test_killed(tmp_path: Path, kind: str, moment: str) -> None:
    write(tmp_path / "target", "old")
    command = [sys.executable, "-c", KILLED, str(tmp_path / "target"), kind, moment]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert (tmp_path / "target").exists() == (moment == "writing")
    if kind == "resumable":
        with resumable_folder(tmp_path / "target", identity=1) as (folder, resumed):
            assert resumed and listing(folder) == ["new"] and read(tmp_path / "target") == "old"
        assert listing(tmp_path / "target") == ["new"]
    else:
        sweep(tmp_path)
        assert read(tmp_path / "target") == "old"
    assert listing(tmp_path) == ["target"]
