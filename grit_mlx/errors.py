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
    ├── OutputError                       a result cannot be written
    └── DependencyError (ImportError)     an optional package is not installed

Each message is one or two plain sentences: what is wrong, where, and what to do about it.
The command line prints that message alone and exits with 1 (see ``grit_mlx.cli``).
"""

from __future__ import annotations

from pathlib import Path

__all__ = [
    "AdapterError",
    "ArchitectureError",
    "ArgumentError",
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
    "OutputError",
    "StoreBusyError",
    "StoreError",
    "TextError",
    "TokenizerError",
]


class GritError(Exception):
    """Base of all errors raised on purpose by grit-mlx."""


class ArgumentError(GritError, ValueError):
    """A value passed by the caller cannot work."""


class TextError(ArgumentError):
    """One text of many cannot be embedded.

    Attributes:
        index: position of the text in the sequence that was passed, from 0.
    """

    def __init__(self, message: str, *, index: int) -> None:
        super().__init__(message)
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

    def __init__(self, message: str, *, path: str | Path, line: int | None = None) -> None:
        super().__init__(message)
        self.path = str(path)
        self.line = line


class StoreError(GritError):
    """A store of passages cannot be opened, or belongs to another model."""


class StoreBusyError(StoreError):
    """Another process writes to the store."""


class OutputError(GritError):
    """A result cannot be written."""


class DependencyError(GritError, ImportError):
    """An optional package is not installed."""
