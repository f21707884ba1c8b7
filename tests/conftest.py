"""Fixtures that many tests share: the tiny checkpoints of this folder, and what lies beside the project."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from grit_mlx.model.gguf.folder import unpacked
from tests import real_model

GOLDEN = Path(__file__).parent / "golden"
SHARED = Path(__file__).parents[2] / "shared"

# What was started with "&" or nohup ignores these, and so would the commands that tests start and interrupt.
for _number, _handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _handler)


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test reads or writes the user's own choices, model cache or network."""
    home = tmp_path_factory.mktemp("home")
    for name in ("GRIT_MODEL", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GRIT_HOME", str(home))
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    yield


@pytest.fixture(autouse=True)
def _installed_from_an_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages name the commands of pip, however this checkout was installed."""
    monkeypatch.setattr("grit_mlx.optional._origin", dict)
    monkeypatch.setattr("grit_mlx.optional._made_by_uv", lambda prefix: False)


@pytest.fixture(autouse=True)
def _own_log() -> Iterator[None]:
    """A command that ran in this process leaves neither its way of showing warnings nor its flags to the next test."""
    _forget_commands()
    yield
    _forget_commands()


def _forget_commands() -> None:
    logger = logging.getLogger("grit_mlx")
    logger.handlers = [one for one in logger.handlers if not type(one).__module__.endswith("cli.console")]
    logger.propagate = True
    logger.setLevel(logging.NOTSET)
    if console := sys.modules.get("grit_mlx.cli.console"):
        console.reset()


@pytest.fixture(scope="session")
def tiny_model() -> Path:
    """A tiny random Mistral checkpoint in Hugging Face's layout. Read only: ``model_copy`` gives one to change."""
    return GOLDEN / "mistral"


@pytest.fixture(scope="session")
def tiny_mixtral() -> Path:
    """The same as a Mixtral with four experts."""
    return GOLDEN / "mixtral"


@pytest.fixture
def model_copy(tiny_model: Path, tmp_path: Path) -> Callable[..., Path]:
    """``model_copy(**config)``: a copy of the tiny model that a test may damage, with changes to its config.json.

    A value of None removes the key.
    """

    def copy(source: Path = tiny_model, name: str = "model", **changes: Any) -> Path:
        folder = tmp_path / name
        shutil.copytree(source, folder)
        os.chmod(folder, 0o755)  # noqa: PTH101 - the source may be read-only
        path = folder / "config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        config.update(changes)
        config = {key: value for key, value in config.items() if value is not None or key not in changes}
        path.unlink()
        path.write_text(json.dumps(config), encoding="utf-8")
        return folder

    return copy


@pytest.fixture(scope="session")
def stories() -> Path:
    """A small model that writes English: stories that a child understands (260,000 parameters)."""
    folder = SHARED / "models" / "stories260k"
    if not folder.is_dir():
        pytest.skip("needs ../shared/models/stories260k, which is not beside this checkout")
    return folder


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of inputs beside the project; tests that need it are skipped where it is missing."""
    if not (SHARED / "golden").is_dir():
        pytest.skip("needs ../shared (golden outputs of the official code), which is not beside this checkout")
    return SHARED


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """A real language model of 135 million parameters, as a GGUF file; see ``tests/real_model.py``."""
    try:
        return real_model.gguf_file()
    except RuntimeError as error:
        if os.environ.get("GRIT_REQUIRE_REAL_MODEL"):
            pytest.fail(str(error))
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def smollm2(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a model folder, made by this version."""
    return unpacked(smollm2_gguf, tmp_path_factory.mktemp("models"))
