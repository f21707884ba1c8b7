"""What importing mlx-lm does to a process, and what it needs of one.

It sets the limit of open files to 2048, and the hard limit to 4096 (ml-explore/mlx-lm#1589): where that is lower the
import fails, and where it is higher the process cannot have it back. So the limit is left alone. And transformers,
which it brings, asks for the working folder: one that was deleted is an error of ours.

Standard library only: this runs when ``grit_mlx`` is imported.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

from grit_mlx.errors import lost_working_folder

__all__ = ["prepare_import"]

_MODULE = "mlx_lm.utils"


def prepare_import() -> None:
    """Take care of mlx-lm's import, whenever and by whomever it is imported."""
    if _MODULE not in sys.modules and not any(isinstance(one, _Finder) for one in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder:
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """The spec of mlx-lm's module, which then leaves the limit alone.

        Raises:
            ConfigError: the working folder was deleted.
        """
        if name != _MODULE:
            return None
        if lost := lost_working_folder():
            raise lost
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            loader: Any = spec.loader
            execute = loader.exec_module
            loader.exec_module = lambda module: _execute(execute, module)
        return spec


def _execute(execute: Any, module: ModuleType) -> None:
    import resource

    change = resource.setrlimit

    def change_others(which: int, limits: tuple[int, int]) -> None:
        if which != resource.RLIMIT_NOFILE:
            change(which, limits)

    resource.setrlimit = change_others
    try:
        execute(module)
    finally:
        resource.setrlimit = change
