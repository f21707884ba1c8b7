"""Conversions from the hub, with its real client, against a server on this machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from grit_mlx.convert import convert
from tests import fake_hub
from tests.convert.conftest import load_tensors, same_tensors, sharded
from tests.fake_hub import FakeHub
from tests.gguf_files import gguf_of

# The client reads its settings from the environment when it is imported, so each run is a process of its own.
CONVERT = """
import json, sys
from grit_mlx.convert import convert
from grit_mlx.errors import GritError
options = json.loads(sys.argv[2])
written = []
def progress(step):
    if step.phase == "write" and (not written or written[-1] != step.tensors):
        written.append(step.tensors)
        print("tensors", step.tensors, flush=True)
for name in sys.argv[3:]:
    try:
        report = convert(name, sys.argv[1], progress=progress, verify=False, **options)
        print(json.dumps(["done", str(report.folder), report.source, report.resumed]))
    except GritError as error:
        print(json.dumps([type(error).__name__, str(error)]))
"""
# Lets the server go on with the file that it holds back, once ten tensors are written.
RELEASE = """written, released = [], []
import os, urllib.request
def release(tensors):
    if tensors >= 10 and not released:
        released.append(tensors)
        urllib.request.urlopen(os.environ["HF_ENDPOINT"] + "/release").read()
        print("released", tensors)
"""
OPTIONS: dict[str, Any] = {"quantize": True, "group_size": 32}
THIRD = "model-00003-of-00003.safetensors"


@pytest.fixture
def server(tiny_mixtral: Path, tmp_path: Path) -> Iterator[FakeHub]:
    folder = sharded(tiny_mixtral, tmp_path / "repository", 3)
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_text("{}")
    (pickled / "pytorch_model.bin").write_bytes(b"x")
    with fake_hub.running() as running:
        running.repositories = {"own/tiny": folder, "own/pickled": pickled, "own/gated": folder}
        running.gated = {"own/gated"}
        yield running


def run(server: FakeHub, tmp_path: Path, *names: str, code: str = CONVERT, **environment: str) -> list[str]:
    command = [sys.executable, "-c", code, str(tmp_path / "out"), json.dumps(OPTIONS), *names]
    process = subprocess.run(
        command,
        env={
            **os.environ,
            "HF_ENDPOINT": server.url,
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_DISABLE_XET": "1",
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout.splitlines()


def test_converted_while_it_is_downloaded(server: FakeHub, tiny_mixtral: Path, tmp_path: Path) -> None:
    """The last shard is held back until tensors of the first are written."""
    server.drop_after["model-00002-of-00003.safetensors"] = 20_000
    lines = run(server, tmp_path, "own/tiny")
    done: list[Any] = json.loads(lines[-1])
    assert done == ["done", str(tmp_path / "out"), "own/tiny", False]
    local = convert(tiny_mixtral, tmp_path / "local", verify=False, **OPTIONS)
    assert not same_tensors(load_tensors(tmp_path / "out"), load_tensors(local.folder))
    # The connection for the second shard broke off after 20,000 bytes, so it was asked for once more.
    spans = [span for span in server.downloads("model-00002-of-00003.safetensors") if span != "bytes=0-100000"]
    assert len(spans) == 2
    card = (tmp_path / "out" / "README.md").read_text()
    assert "base_model: own/tiny" in card and "https://huggingface.co/own/tiny" in card


def test_the_first_tensors_are_written_before_the_last_file_comes(server: FakeHub, tmp_path: Path) -> None:
    server.hold = {THIRD}
    watched = CONVERT.replace("written = []", RELEASE).replace("flush=True)", "flush=True); release(step.tensors)")
    lines = run(server, tmp_path, "own/tiny", code=watched)
    # Ten tensors were written before the server let go of the last file; else it would never have done so.
    assert json.loads(lines[-1])[0] == "done"
    assert int(next(line for line in lines if line.startswith("released")).split()[1]) >= 10


def test_a_download_that_fails_goes_on_next_time(server: FakeHub, tmp_path: Path) -> None:
    whole = server.repositories["own/tiny"] / THIRD
    aside = whole.rename(tmp_path / "aside")
    server.missing = {THIRD: aside}
    first = json.loads(run(server, tmp_path, "own/tiny")[-1])
    assert first[0] == "DownloadError" and not (tmp_path / "out").exists()
    server.missing = {}
    aside.rename(whole)
    again = json.loads(run(server, tmp_path, "own/tiny")[-1])
    assert again[0] == "done"
    fetched = server.downloads("model-00001-of-00003.safetensors")
    assert len([span for span in fetched if span != "bytes=0-100000"]) == 1, "it was in the cache the second time"


def test_refusals(server: FakeHub, tmp_path: Path) -> None:
    pickled, gated, none = (json.loads(line) for line in run(server, tmp_path, "own/pickled", "own/gated", "own/none"))
    assert pickled[0] == "CheckpointError"
    assert 'from_pretrained("own/pickled").save_pretrained("folder")' in pickled[1]
    assert gated[0] == "DownloadError" and "accept its terms" in gated[1]
    assert none[0] == "ModelNotFoundError" and "The hub has no model 'own/none'" in none[1]
    assert not (tmp_path / "out").exists()


def test_a_repository_of_a_gguf_file(server: FakeHub, tiny_mixtral: Path, tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    gguf_of(tiny_mixtral, folder / "Mixtral.gguf")
    server.repositories["own/gguf"] = folder
    assert json.loads(run(server, tmp_path, "own/gguf")[-1])[:3] == ["done", str(tmp_path / "out"), "Mixtral.gguf"]
    local = convert(tiny_mixtral, tmp_path / "local", verify=False, **OPTIONS)
    assert not same_tensors(load_tensors(tmp_path / "out"), load_tensors(local.folder))
    server.repositories["own/more"] = shutil.copytree(folder, tmp_path / "more")
    (tmp_path / "more" / "Mixtral.gguf").rename(tmp_path / "more" / "Mixtral-F32.gguf")
    (tmp_path / "more" / "Mixtral-Q2_K.gguf").write_bytes(b"x")
    (tmp_path / "out").rename(tmp_path / "first")
    assert json.loads(run(server, tmp_path, "own/more:f32")[-1])[2] == "Mixtral-F32.gguf"


def test_offline(server: FakeHub, tmp_path: Path) -> None:
    absent = json.loads(run(server, tmp_path, "own/tiny", HF_HUB_OFFLINE="1")[-1])
    assert absent[0] == "DownloadError" and "HF_HUB_OFFLINE is set" in absent[1]
    code = "from grit_mlx.model import hub; hub.download('own/tiny')"
    run(server, tmp_path, code=code)
    cached = json.loads(run(server, tmp_path, "own/tiny", HF_HUB_OFFLINE="1")[-1])
    assert cached[:3] == ["done", str(tmp_path / "out"), "own/tiny"]


PULL = """
import sys
from grit_mlx.cli.main import main
sys.argv = ["grit", "models", *sys.argv[3:]]
main()
"""


def test_pull_with_bits(server: FakeHub, tmp_path: Path) -> None:
    home = tmp_path / "grit"
    folder = home / "models" / "tiny-4bit"
    hub_folder = sharded(server.repositories["own/tiny"], tmp_path / "wide", 1)
    config = json.loads((hub_folder / "config.json").read_text())
    (hub_folder / "config.json").write_text(json.dumps({**config, "bos_token_id": 1}))
    names = {"GRIT_HOME": str(home)}
    server.repositories["mlx-community/ready-4bit"] = hub_folder
    server.repositories["own/ready"] = hub_folder
    ready = run(server, tmp_path, "pull", "own/ready", "--bits", "4", code=PULL, **names)
    assert "models--mlx-community--ready-4bit" in ready[-1]
    assert not folder.exists()
    # Rows of 32 numbers do not divide into the default groups of 64: this one is copied, the way to it is the same.
    made = run(server, tmp_path, "pull", "own/tiny", "--bits", "4", code=PULL, **names)
    assert made == [str(folder)] and (folder / "grit.json").exists()
    assert run(server, tmp_path, "pull", "own/tiny", "--bits", "4", code=PULL, **names) == [str(folder)]
    run(server, tmp_path, "use", "tiny-4bit", code=PULL, **names)
    assert any(line.startswith("* tiny-4bit") for line in run(server, tmp_path, "list", code=PULL, **names))
