"""Files that are the old one or the complete new one, and what may stand in their way."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import NoReturn

import pytest

from grit_mlx.errors import OutputError
from grit_mlx.files.atomic import atomic_path, atomic_write


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "v"
    with pytest.raises(OutputError, match="it exists already"), atomic_write(path, overwrite=False) as file:
        file.write(b"new")
        path.write_bytes(b"theirs")
    assert path.read_bytes() == b"theirs"
    assert listing(tmp_path) == ["v"]


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.EDQUOT, 12345])
def test_folders_that_refuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise OSError(code, "odd")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(OutputError) as caught, atomic_write(tmp_path / "v"):
        pass
    assert str(caught.value).startswith(f"Cannot write {tmp_path / 'v'}: ")
    assert code != 12345 or str(caught.value).endswith(": odd.")


def test_links_are_kept_and_what_they_point_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real" / "v")
    for content in (b"one", b"two"):  # dangling at first
        with atomic_write(tmp_path / "link") as file:
            file.write(content)
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "real" / "v").read_bytes() == content
    assert listing(tmp_path / "real") == ["v"]


def test_permissions(tmp_path: Path) -> None:
    path = tmp_path / "v"
    previous = os.umask(0o027)
    try:
        with atomic_write(path):
            pass
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        path.chmod(0o604)
        with atomic_write(path):
            pass
        assert stat.S_IMODE(path.stat().st_mode) == 0o604
    finally:
        os.umask(previous)


def test_atomic_path(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 240 + ".safetensors")
    with atomic_path(path) as one, atomic_path(path) as two:
        assert one != two
        assert one.parent == tmp_path
        assert one.suffix == ".safetensors"
        one.write_bytes(b"one")
        two.write_bytes(b"two")
        assert not path.exists()
    assert path.read_bytes() == b"one"
    assert listing(tmp_path) == [path.name]


def test_only_errors_of_the_disk_are_put_down_to_the_output(tmp_path: Path) -> None:
    with pytest.raises(ConnectionError), atomic_path(tmp_path / "v"):
        raise ConnectionError("the network")
    with pytest.raises(OutputError, match="the disk is full"), atomic_path(tmp_path / "v"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert listing(tmp_path) == []
