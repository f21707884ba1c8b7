"""Every error that grit-mlx raises on purpose, in one tree.

::

    GritError
    ├── ArgumentError (ValueError)        a value passed by the caller cannot work
    │   └── TextError                     one text of many cannot be embedded (has .index)
    ├── ModeError                         the model was loaded for another job
    ├── ModelError                        a model cannot be loaded or used
    │   ├── ModelNotFoundError            no such folder or hub repository
    │   ├── DownloadError                 the hub did not deliver (network, gated, offline)
    │   ├── ConfigError                   config.json or grit.json is missing, broken or incomplete
    │   ├── CheckpointError               weights are missing, truncated or of the wrong shape
    │   ├── TokenizerError                the tokenizer's files are missing or broken
    │   ├── ArchitectureError             mlx-lm does not know it, or it ignores the attention hook
    │   ├── AdapterError                  an adapter does not fit the model
    │   └── NonFiniteError                the model computed NaN or infinity
    ├── MemoryLimitError (MemoryError)    one text alone does not fit into the device's memory
    ├── DocumentError                     a file of the user's cannot be read (has .path and .line)
    ├── StoreError                        a store of passages cannot be opened, or is another model's
    │   └── StoreBusyError                another process writes to it
    ├── ServerError                       a server cannot start, is stopping, or does not answer
    │   └── BusyError                     it has as many requests as it takes
    ├── OutputError                       a result cannot be written
    ├── ProcessError                      another process of the run has ended, or cannot be reached
    └── DependencyError (ImportError)     an optional package is not installed

Each message is one or two plain sentences: what is wrong, where, and what to do about it. Options are mentioned in
it as `Option`, so that Python shows ``max_length`` and the command line ``--max-length``. The command line prints the
message alone and exits with 1 (see ``grit_mlx.cli``).

What the operating system and other libraries raise is worded here as well: ``unreadable``, ``unwritable``,
``first_line``.
"""

from __future__ import annotations

import errno
import os
from os import PathLike, fspath
from pathlib import Path, PurePath
from typing import Any, Final

__all__ = [
    "AdapterError",
    "ArchitectureError",
    "ArgumentError",
    "BusyError",
    "CheckpointError",
    "ConfigError",
    "DependencyError",
    "DocumentError",
    "DownloadError",
    "GritError",
    "MemoryLimitError",
    "ModeError",
    "ModelError",
    "ModelNotFoundError",
    "NonFiniteError",
    "Option",
    "OutputError",
    "ProcessError",
    "Sentence",
    "ServerError",
    "StoreBusyError",
    "StoreError",
    "TextError",
    "TokenizerError",
    "first_line",
    "full_disk",
    "impossible_path",
    "lost_process",
    "lost_working_folder",
    "unreadable",
    "unwritable",
]


class Option:
    """An option as a message mentions it: Python's name and, where one is recommended, a value.

    ``str()`` spells it as Python does; ``grit_mlx.cli`` shows the flag of the command that is running. Warnings that
    are logged take it as an argument: ``logger.warning("Raise %s.", Option("max_length"))``.
    """

    def __init__(self, name: str, value: Any = None) -> None:
        self.name = name
        self.value = value

    def __str__(self) -> str:
        return self.name if self.value is None else f"{self.name}={self.value!r}"


class Sentence(str):
    """A message that is kept for later, a warning or the reason of a failure, and the options that it mentions."""

    parts: tuple[str | Option, ...]

    def __new__(cls, *parts: str | Option) -> Sentence:
        """Of strings and options, as a `GritError`."""
        sentence = super().__new__(cls, "".join(map(str, parts)))
        sentence.parts = parts
        return sentence


class GritError(Exception):
    """Base of all errors raised on purpose by grit-mlx.

    Args:
        *parts: the message; strings and the options that it mentions.

    Attributes:
        parts: these.
    """

    def __init__(self, *parts: str | Option) -> None:
        super().__init__(*parts)
        self.parts = parts

    def __str__(self) -> str:
        return "".join(map(str, self.parts))

    def __reduce__(self) -> tuple[Any, ...]:
        """Between processes errors are pickled, and would be made anew from their parts alone."""
        return _remade, (type(self), self.parts, self.__dict__)

    @property
    def option(self) -> str | None:
        """The name of the first option that the message mentions."""
        return next((part.name for part in self.parts if isinstance(part, Option)), None)


def _remade(kind: type[GritError], parts: tuple[str | Option, ...], attributes: dict[str, Any]) -> GritError:
    error = kind.__new__(kind, *parts)
    error.__dict__.update(attributes)
    return error


class ArgumentError(GritError, ValueError):
    """A value passed by the caller cannot work."""


class TextError(ArgumentError):
    """One text of many cannot be embedded.

    Attributes:
        index: position of the text in the sequence that was passed, from 0.
    """

    def __init__(self, *parts: str | Option, index: int) -> None:
        super().__init__(*parts)
        self.index = index


class ModeError(GritError):
    """The model was loaded for another job than the one asked for."""


class ModelError(GritError):
    """A model cannot be loaded or used."""


class ModelNotFoundError(ModelError):
    """There is no such folder or hub repository."""


class DownloadError(ModelError):
    """The hub did not deliver: no network, a gated repository, offline mode."""


class ConfigError(ModelError):
    """``config.json`` or ``grit.json`` is missing, broken or incomplete."""


class CheckpointError(ModelError):
    """Weights are missing, truncated or of the wrong shape."""


class TokenizerError(ModelError):
    """The tokenizer's files are missing or broken."""


class ArchitectureError(ModelError):
    """mlx-lm does not know the architecture, or it ignores the attention hook."""


class AdapterError(ModelError):
    """An adapter does not fit the model."""


class NonFiniteError(ModelError):
    """The model computed NaN or infinity."""


class MemoryLimitError(GritError, MemoryError):
    """One text alone does not fit into the device's memory."""


class DocumentError(GritError):
    """A file of the user's cannot be read.

    Attributes:
        path: the file.
        line: the line in it, from 1, or None where the whole file is at fault.
    """

    def __init__(self, *parts: str | Option, path: str | Path, line: int | None = None) -> None:
        super().__init__(*parts)
        self.path = str(path)
        self.line = line


class StoreError(GritError):
    """A store of passages cannot be opened, or belongs to another model."""


class StoreBusyError(StoreError):
    """Another process writes to the store."""


class ServerError(GritError):
    """A server cannot start, is stopping, or does not answer."""


class BusyError(ServerError):
    """The server has as many requests as it takes."""


class OutputError(GritError):
    """A result cannot be written."""


class ProcessError(GritError):
    """Another process of a run under ``mlx.launch`` has ended, or cannot be reached.

    Attributes:
        told: whether another process says so.
    """

    told = False


class DependencyError(GritError, ImportError):
    """An optional package is not installed."""


_UNREADABLE: Final[dict[int, str]] = {
    errno.ENOENT: "does not exist. Check the name.",
    errno.ENOTDIR: "does not exist: a part of its path is a file, not a folder.",
    errno.EISDIR: "is a folder, not a file.",
    errno.EACCES: "cannot be read: permission denied. Check its permissions.",
    errno.EPERM: "cannot be read: permission denied. Check its permissions.",
    errno.ENAMETOOLONG: "is too long for a file name.",
    errno.ELOOP: "is a symbolic link that leads back to itself.",
}

_UNWRITABLE: Final[dict[int, str]] = {
    errno.ENOENT: "its folder does not exist. Create it first.",
    errno.ENOTDIR: "a part of its path is a file, not a folder.",
    errno.EISDIR: "it is a folder. Name a file in it.",
    errno.EACCES: "permission denied. Check the permissions, or choose another place.",
    errno.EPERM: "permission denied. Check the permissions, or choose another place.",
    errno.EROFS: "it is on a read-only disk. Choose another place.",
    errno.ENOSPC: "the disk is full. Make room, or choose another place.",
    errno.EDQUOT: "your disk quota is used up. Make room, or choose another place.",
    errno.EFBIG: "the file would be larger than the disk or its limits allow.",
    errno.ENAMETOOLONG: "the name is too long.",
    errno.ELOOP: "it is a symbolic link that leads back to itself.",
    errno.EEXIST: "it exists already. Allow overwriting, or choose another name.",
    errno.EIO: "the disk reports an error.",
}


def unreadable(name: str | PathLike[str], error: BaseException) -> str:
    """The sentence for a file or folder that cannot be read.

    Args:
        name: as the user knows it.
        error: what was raised on reading it; of an error that is not the operating system's, the first line.
    """
    if isinstance(error, FileNotFoundError) and Path(name).is_symlink():
        return f"{fspath(name)} is a symbolic link to {Path(name).readlink()}, which does not exist."
    if isinstance(error, OSError) and error.errno is not None:
        return f"{fspath(name)} {_UNREADABLE.get(error.errno) or f'cannot be read: {error.strerror or error}.'}"
    return f"{fspath(name)} cannot be read: {first_line(error)}"


def unwritable(name: str | PathLike[str], error: BaseException) -> str:
    """The sentence for a file or folder that cannot be written; see ``unreadable``."""
    found = error.filename if isinstance(error, FileExistsError) else None
    if found is not None and PurePath(os.fsdecode(found)) in PurePath(name).parents:  # where a folder was to be made
        error = NotADirectoryError(errno.ENOTDIR, "")
    if isinstance(error, OSError) and error.errno is not None:
        return f"Cannot write {fspath(name)}: {_UNWRITABLE.get(error.errno) or f'{error.strerror or error}.'}"
    return f"Cannot write {fspath(name)}: {first_line(error)}"


def lost_working_folder() -> ConfigError | None:
    """The error of a process whose working folder was deleted; None if it exists."""
    try:
        os.getcwd()  # noqa: PTH109 - the call that fails in other libraries
    except OSError:
        return ConfigError("The working folder no longer exists. Change to another one: cd")
    return None


def impossible_path(error: BaseException) -> GritError | None:
    """The error of a path that cannot even be looked up, such as a name too long; None for any other error."""
    if isinstance(error, OSError) and error.filename is not None:
        return ConfigError(unreadable(os.fsdecode(error.filename), error))
    if isinstance(error, RuntimeError) and "home directory" in str(error):  # pathlib's
        return ConfigError("A path begins with ~ and the name of a user that this machine does not have.")
    return None


def full_disk(error: BaseException) -> OutputError | None:
    """The error of output that other libraries could not write, help for example; None for any other error."""
    if isinstance(error, OSError) and error.filename is None and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(unwritable("the output", error))
    return None


def lost_process(error: BaseException) -> ProcessError | None:
    """The error of a process whose peers under ``mlx.launch`` have ended; None for any other error."""
    if isinstance(error, RuntimeError) and "connection to a peer" in str(error):  # mlx's
        return ProcessError("Another process of this run has ended, so this one stops too.")
    return None


def first_line(error: BaseException) -> str:
    """The first line of what another library says, with a full stop; the error's class where it says nothing.

    A line that ends with a colon announces the next one, which then belongs to it.
    """
    lines = [line.strip() for line in (str(error).strip() or type(error).__name__).splitlines() if line.strip()]
    line = " ".join(lines[: 2 if lines[0].endswith(":") else 1]).rstrip(":")
    return line if line.endswith((".", "!", "?")) else line + "."
