"""Folders that are complete or absent: written beside their place, flushed to the disk, renamed at the end.

A process that is killed leaves hidden folders beside the target: ``.NAME.unfinished`` or ``.NAME.unfinished-...``,
and ``.NAME.replaced`` if it died while one folder took the place of another.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from grit_mlx.errors import CheckpointError, NonFiniteError, Option, OutputError, unwritable
from grit_mlx.files.atomic import output_errors
from grit_mlx.files.lock import writing

__all__ = ["atomic_folder", "discard", "require_space", "resumable_folder", "sweep"]

logger = logging.getLogger("grit_mlx")

_REPLACED = ".replaced"

_RESUME = "run the same command again to resume"


@contextmanager
def atomic_folder(path: str | PathLike[str], *, replace: bool = True) -> Iterator[Path]:
    """Lends an empty folder that takes the place of `path` when the block ends, and vanishes if it raises.

    A symbolic link is kept: the folder that it leads to is replaced. Parents are made.

    Args:
        path: the target.
        replace: whether a folder that is at the target when the block ends is replaced; otherwise it stays.

    Raises:
        OutputError: the folder cannot be written, the disk is full.
    """
    target = Path(os.path.realpath(path))
    folder = target.with_name(f".{target.name}.unfinished-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        with output_errors(fspath(path)):
            folder.mkdir(parents=True)
        yield folder
        _put_in_place(folder, target, replace=replace)
    except OSError as error:
        raise OutputError(unwritable(path, error)) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # after the rename there is nothing left to remove


@contextmanager
def resumable_folder(path: str | PathLike[str], *, identity: Any) -> Iterator[tuple[Path, bool]]:
    """As `atomic_folder`, but what the block has written when it raises is kept for the next one.

    Unless it raises because its source is damaged.

    A file in it counts as complete, so the block has to write each under another name first (or atomically).

    Args:
        path: the target.
        identity: all that the contents depend on, for JSON: what was left by a block of another identity is removed.

    Yields:
        The folder, and whether it holds what an earlier block has left.

    Raises:
        OutputError: as `atomic_folder`, or another process is writing it.
    """
    target = Path(os.path.realpath(path))
    folder = target.with_name(f".{target.name}.unfinished")
    # Beside the folder and not in it: what is put in place must hold nothing else.
    note, lock = folder.with_name(f"{folder.name}.json"), folder.with_name(f"{folder.name}.lock")
    text = json.dumps(identity, sort_keys=True, default=str)
    with writing(Path(path), lock=lock, busy=OutputError):
        try:
            with output_errors(fspath(path)):
                _restore(target)
                resumed = folder.is_dir() and note.exists() and note.read_text(encoding="utf-8") == text
                if not resumed:
                    shutil.rmtree(folder, ignore_errors=True)
                    folder.mkdir()
                    note.write_text(text, encoding="utf-8")
                    _sync(note)
            yield folder, resumed
            _put_in_place(folder, target)
        except OSError as error:
            raise OutputError(f"{unwritable(path, error)} What is done so far is kept: {_RESUME}.") from error
        except (CheckpointError, NonFiniteError):
            shutil.rmtree(folder, ignore_errors=True)  # the source is damaged, and no other run will get further
            raise
        except (KeyboardInterrupt, SystemExit):
            if folder.is_dir() and any(folder.iterdir()):
                logger.info("Stopped. What is done so far is kept in %s: %s.", folder, _RESUME)
            raise
        finally:
            if not (folder.is_dir() and any(folder.iterdir())):
                shutil.rmtree(folder, ignore_errors=True)
                note.unlink(missing_ok=True)
            lock.unlink()  # while it is held: whoever waits for it starts anew


def sweep(parent: Path) -> None:
    """Remove what killed processes left in a folder of folders, and put back what they were about to replace."""
    for path in parent.glob(f".*{_REPLACED}"):
        _restore(parent / path.name[1:].removesuffix(_REPLACED))
    for path in parent.glob(".*.unfinished*"):
        shutil.rmtree(path, ignore_errors=True)


def discard(folder: Path) -> None:
    """Delete a folder: it is gone by one renaming, and what an interruption leaves of it, ``sweep`` removes.

    Raises:
        OSError: it cannot be renamed; then all of it is still there.
    """
    doomed = folder.with_name(f".{folder.name}.unfinished-removal")
    folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def require_space(target: Path, nbytes: int, *advice: str | Option) -> None:
    """Refuse to begin what the disk cannot hold.

    Args:
        target: what is to be written, perhaps in folders that do not exist yet.
        nbytes: that it takes.
        advice: what to do, in a sentence.

    Raises:
        OutputError: says how much is free.
    """
    place = target.parent
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if nbytes > free:
        size = f"{target} needs {nbytes / 1e9:.2f} GB and {free / 1e9:.2f} GB are free on its disk. "
        raise OutputError(size, *advice)


def _put_in_place(folder: Path, target: Path, *, replace: bool = True) -> None:
    """Give a complete folder its name; what had it before is removed after that."""
    for path in folder.rglob("*"):
        _sync(path)
    _sync(folder)
    replaced = _replaced(target)
    if replace and target.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        target.rename(replaced)
    try:
        folder.rename(target)
    except OSError:
        if replace or not target.is_dir():
            raise
    _sync(target.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _restore(target: Path) -> None:
    """Put back what was moved aside by a process that died before the new folder was in its place."""
    replaced = _replaced(target)
    if replaced.exists() and not target.exists():
        replaced.rename(target)
    shutil.rmtree(replaced, ignore_errors=True)


def _replaced(target: Path) -> Path:
    return target.with_name(f".{target.name}{_REPLACED}")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
