"""Tools that may be missing: their tests are skipped, but fail if GRIT_REQUIRE_INTEGRATIONS is set, as in CI."""

from __future__ import annotations

import importlib
import os
from typing import Any

import pytest

__all__ = ["tool"]


def tool(module: str) -> Any:
    """A tool's module."""
    if os.environ.get("GRIT_REQUIRE_INTEGRATIONS"):
        return importlib.import_module(module)
    return pytest.importorskip(module, reason=f"needs {module.partition('.')[0]}: make integrations")
