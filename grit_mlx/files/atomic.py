"""Files that are either the old one or the complete new one: written under a temporary name, renamed at the end.

A process that is killed by a signal leaves its temporary file behind, unless the signal is turned into an
exception (as Python does with Ctrl-C, and the command line with SIGTERM).
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from os import PathLike, fspath
from pathlib import Path
from typing import BinaryIO, Final

from grit_mlx.errors import OutputError, unwritable

__all__ = ["atomic_path", "atomic_write", "output_errors"]

# What only a write can fail with. Other OSErrors inside a `with atomic_path` are the caller's, such as a lost
# network.
_DISK_ERRORS: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


@contextmanager
def atomic_path(path: str | PathLike[str], *, overwrite: bool = True) -> Iterator[Path]:
    """Lends a temporary file that takes the place of `path` when the block ends, and vanishes if it raises.

    The temporary file exists (empty) in the folder of the target and keeps its suffix. A symbolic link is
    kept: what it points to is replaced. An existing file's permissions are kept.

    Args:
        path: the target.
        overwrite: whether an existing file may be replaced.

    Yields:
        The temporary path, to be written and closed in the block.

    Raises:
        OutputError: the target cannot be written, its folder is missing, the disk is full.
    """
    name = fspath(path)
    with output_errors(name):
        target = _target(name, overwrite=overwrite)
        # O_EXCL and a random part: no other process, nor anyone who guesses names, shares this file. The
        # prefix leaves the suffix in place, by which some libraries choose a format; 0o666 lets the umask
        # decide.
        temporary = target.with_name(f".part-{os.getpid()}-{secrets.token_hex(4)}-{target.name[-48:]}")
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        with output_errors(name, only=_DISK_ERRORS):
            yield temporary
        with output_errors(name):
            _sync(temporary)
            if target.exists():
                shutil.copymode(target, temporary)
            _target(name, overwrite=overwrite)  # again: hours may have passed
            temporary.replace(target)
    finally:
        with suppress(OSError):  # after the rename there is nothing left to remove
            temporary.unlink()


@contextmanager
def atomic_write(path: str | PathLike[str], *, overwrite: bool = True) -> Iterator[BinaryIO]:
    """As `atomic_path`, but lends the temporary file opened for binary writing.

    Raises:
        OutputError: as `atomic_path`.
    """
    with atomic_path(path, overwrite=overwrite) as temporary, temporary.open("wb") as file:
        yield file


def _target(name: str, *, overwrite: bool) -> Path:
    """The file that a path leads to, past symbolic links."""
    target = Path(os.path.realpath(name))
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if target.exists() and not target.is_file():
        raise OutputError(f"Cannot write {name}: it is a device or a pipe, which a file cannot replace.")
    if target.exists() and not os.access(target, os.W_OK):  # a rename would not mind
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    if target.exists() and not overwrite:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
    return target


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


@contextmanager
def output_errors(name: str, *, only: Sequence[int] | None = None) -> Iterator[None]:
    """Turn what the system says about a file that cannot be written into a sentence.

    Args:
        name: the file, as the user knows it.
        only: the error numbers that this block can have caused; None for all.

    Raises:
        OutputError: what is wrong and what to do.
    """
    try:
        yield
    except OSError as error:
        if only is not None and error.errno not in only:
            raise
        raise OutputError(unwritable(name, error)) from error
    except ValueError as error:
        if only is not None or "null" not in str(error):
            raise
        raise OutputError(f"Cannot write {name!r}: it is not a file name.") from error
