"""From a name to a folder. Downloads are tested with the hub's real client, against a server on this machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from grit_mlx import GritLM
from grit_mlx.convert.reading import side_files
from grit_mlx.errors import ConfigError, GritError, ModelNotFoundError, OutputError, TokenizerError
from grit_mlx.model import hub
from grit_mlx.model.options import ModelChoice
from grit_mlx.rag.fingerprint import fingerprint
from grit_mlx.training.scratch import copy_tokenizer
from tests import fake_hub
from tests.fake_hub import COMMIT, FakeHub
from tests.gguf_files import gguf_of

# Says what a resolved folder holds, or which error came out. The client reads its settings from the environment
# when it is imported, so each case is a process of its own, as it is for a user.
RESOLVE = """
import json, sys
from grit_mlx.model import hub
from grit_mlx.model.options import ModelChoice
from grit_mlx.errors import GritError
for name in sys.argv[2:]:
    try:
        folder = hub.resolve(ModelChoice(name, revision=sys.argv[1] or None))
        print(json.dumps([str(folder), sorted(path.name for path in folder.iterdir())]))
    except GritError as error:
        print(json.dumps([type(error).__name__, str(error)]))
print(json.dumps([model.name for model in hub.local_models()]))
"""


@pytest.fixture
def server(tiny_model: Path, tmp_path: Path) -> Iterator[FakeHub]:
    folder = tmp_path / "repository"
    shutil.copytree(tiny_model, folder)
    (folder / "tiktoken.model").write_bytes(b"a vocabulary")
    # None of these may be fetched.
    for name in ("pytorch_model.bin", "modeling_own.py", "consolidated.safetensors", "model.gguf"):
        (folder / name).write_bytes(b"x" * 100)
    with fake_hub.running() as running:
        running.repositories = {"own/tiny": folder, "own/gated": folder, "GritLM/GritLM-7B": folder}
        running.gated = {"own/gated"}
        yield running


def test_repositories_of_gguf_files(server: FakeHub, tiny_model: Path, tmp_path: Path) -> None:
    one, several = tmp_path / "one", tmp_path / "several"
    for folder in (one, several):
        folder.mkdir()
        (folder / "config.json").write_text("{}")
    gguf_of(tiny_model, one / "Tiny.gguf")
    (one / "mmproj-Tiny.gguf").write_bytes(b"x")
    gguf_of(tiny_model, several / "Tiny-Q8_0.gguf")
    for name in ("Tiny-Q4_K_M.gguf", "Tiny-IQ4_XS-00001-of-00002.gguf", "Tiny-IQ4_XS-00002-of-00002.gguf"):
        (several / name).write_bytes(b"x")
    server.repositories |= {"own/one": one, "own/several": several}
    home = tmp_path / "hf"
    names = ("own/one", "own/several:q8_0", "own/several", "own/several:Q2_K", "own/several:IQ4_XS", "own/tiny:Q8_0")
    found = resolve(server.url, home, *names, GRIT_HOME=str(tmp_path / "home"))
    for (place, files), end in zip(found[:2], ("models/tiny", "models/tiny-q8_0"), strict=True):
        assert str(place).endswith(end) and "model.safetensors" in str(files)
    several_said, none_said, broken, other = (tuple(map(str, one)) for one in found[2:6])
    listed = "own/several holds 3 GGUF models{}: Tiny-IQ4_XS.gguf, Tiny-Q4_K_M.gguf, Tiny-Q8_0.gguf. "
    advice = "Name one by its end, such as own/several:Q4_K_M"
    assert several_said == ("ModelNotFoundError", listed.format("") + advice)
    assert none_said == ("ModelNotFoundError", listed.format(", of which not one is Q2_K") + advice)
    assert broken[0] == "CheckpointError" and "is not a GGUF file" in broken[1]
    assert other[0] == "ModelNotFoundError"
    offline = resolve(server.url, home, *names[:2], GRIT_HOME=str(tmp_path / "home"), HF_HUB_OFFLINE="1")
    assert offline[:2] == found[:2]


def resolve(server_url: str, home: Path, *names: str, revision: str = "", **environment: str) -> list[list[object]]:
    process = subprocess.run(
        [sys.executable, "-c", RESOLVE, revision, *names],
        env={**os.environ, "HF_ENDPOINT": server_url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return [json.loads(line) for line in process.stdout.splitlines()]


def test_downloads(server: FakeHub, tmp_path: Path) -> None:
    home = tmp_path / "hf"
    server.drop_after["model.safetensors"] = 50_000
    first, again, alias, missing, gated, local = resolve(
        server.url, home, "own/tiny", "own/tiny", "gritlm-7b", "own/none", "own/gated"
    )
    folder = Path(str(first[0]))
    assert folder.name == COMMIT and again == first
    tokenizer = ["tiktoken.model", "tokenizer.json", "tokenizer_config.json"]
    assert first[1] == ["config.json", "golden.json", "model.safetensors", *tokenizer]
    # The connection broke half-way and the file is whole all the same; the second time nothing was fetched.
    original = server.repositories["own/tiny"] / "model.safetensors"
    assert (folder / "model.safetensors").read_bytes() == original.read_bytes()
    assert len([r for r in server.requests if r[0] == "GET" and r[1].startswith("/own/tiny/resolve")]) == 7
    assert "GritLM--GritLM-7B" in str(alias[0])
    assert missing[0] == "ModelNotFoundError" and "The hub has no model 'own/none', or it is private" in str(missing[1])
    assert gated[0] == "DownloadError" and "accept its terms on its page on the hub, then log in" in str(gated[1])
    assert local == ["grit-tiny", "GritLM/GritLM-7B", "own/tiny"]


def test_revisions_are_pinned(server: FakeHub, tmp_path: Path) -> None:
    found, _ = resolve(server.url, tmp_path / "hf", "own/tiny", revision="v1")
    assert Path(str(found[0])).name == COMMIT
    assert any("/revision/v1" in path for _, path, _ in server.requests)
    wrong, _ = resolve(server.url, tmp_path / "hf", "own/tiny", revision="v9")
    assert wrong == ["ModelNotFoundError", "own/tiny has no revision 'v9'. Name a branch, a tag or a commit."]


def test_offline_uses_what_is_there(server: FakeHub, tmp_path: Path) -> None:
    home = tmp_path / "hf"
    resolve(server.url, home, "own/tiny")
    before = len(server.requests)
    cached, missing, _ = resolve(server.url, home, "own/tiny", "own/other", HF_HUB_OFFLINE="1")
    assert len(server.requests) == before
    assert Path(str(cached[0])).name == COMMIT
    assert missing[0] == "DownloadError"
    assert "own/other is not on this machine and HF_HUB_OFFLINE is set" in str(missing[1])


def test_an_unreachable_hub(server: FakeHub, tmp_path: Path) -> None:
    home = tmp_path / "hf"
    resolve(server.url, home, "own/tiny")
    nobody = "http://127.0.0.1:9"  # the discard port: nothing listens
    cached, missing, _ = resolve(nobody, home, "own/tiny", "own/other")
    assert Path(str(cached[0])).name == COMMIT
    assert missing[0] == "DownloadError" and "own/other is not on this machine and the hub cannot be reached" in str(
        missing[1]
    )


def test_every_part_knows_the_same_files_of_a_tokenizer(model_copy: Callable[..., Path], tmp_path: Path) -> None:
    folder, copy = model_copy(), tmp_path / "copy"
    before = fingerprint(GritLM(folder))["tokenizer"]
    (folder / "tiktoken.model").write_bytes(b"a vocabulary")
    names = ["tiktoken.model", "tokenizer.json", "tokenizer_config.json"]
    assert sorted(path.name for path in hub.tokenizer_files(folder)) == names
    assert set(names) < {path.name for path in side_files(folder, code=False)}  # convert
    copy.mkdir()
    copy_tokenizer(folder, copy)  # training
    assert sorted(path.name for path in copy.iterdir()) == names
    assert fingerprint(GritLM(folder))["tokenizer"] != before
    for name in names[:2]:
        (copy / name).unlink()
    with pytest.raises(TokenizerError, match=r"has no tokenizer \(tokenizer\.json, .*, tiktoken\.model\)"):
        hub.tokenizer_files(copy)


def test_folders_come_first(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hub.resolve(ModelChoice(tiny_model)) == hub.resolve(ModelChoice(str(tiny_model))) == tiny_model
    (tmp_path / "own" / "tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert hub.resolve(ModelChoice("own/tiny")) == Path("own/tiny")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nowhere", r"There is no folder nowhere\."),
        ("/nowhere/at/all", "There is no folder /nowhere/at/all"),
        ("own/Model.Q4_0.gguf", r"There is no file own/Model\.Q4_0\.gguf\."),
        ("a/b/c", "There is no folder a/b/c"),
        ("gritlm7b", "no model called 'gritlm7b'. Did you mean gritlm-7b"),
        ("zebra", "Short names are gritlm-7b, gritlm-8x7b; hub ids look like owner/name"),
        ("own/a--b", "is not a valid hub id: they look like owner/name"),
    ],
)
def test_names_that_are_none(name: str, message: str) -> None:
    with pytest.raises(ModelNotFoundError, match=message):
        hub.resolve(ModelChoice(name))


def test_a_file_is_no_folder(tiny_model: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"is a file\. Name the folder that it is in"):
        hub.resolve(ModelChoice(tiny_model / "config.json"))


def test_the_default_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRIT_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(hub, "EMBEDDED", tmp_path / "none")
    assert hub.default_model() is None
    with pytest.raises(ModelNotFoundError, match="No model was named and there is no default yet"):
        hub.resolve(ModelChoice())
    path = hub.set_default_model("own/tiny")
    assert path == tmp_path / "home" / "config.json" and hub.default_model() == "own/tiny"
    monkeypatch.setenv("GRIT_MODEL", "from-environment")
    assert hub.default_model() == "from-environment"
    monkeypatch.delenv("GRIT_MODEL")
    hub.set_default_model(None)
    assert hub.default_model() is None
    # The embedded model serves where nothing was chosen.
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "config.json").write_text("{}")
    assert hub.default_model() == str(tmp_path / "none")
    path.write_text("{")
    with pytest.raises(ConfigError, match=r"config\.json cannot be read: .* Remove it, then choose again"):
        hub.default_model()


def test_a_home_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GRIT_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(OutputError, match="Set GRIT_HOME to a folder you can write to"):
        hub.set_default_model("own/tiny")


def test_where_the_home_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRIT_HOME")
    monkeypatch.setenv("XDG_CONFIG_HOME", "/config")
    assert hub.home() == Path("/config/grit-mlx")
    monkeypatch.delenv("XDG_CONFIG_HOME")
    assert hub.home() == Path.home() / ".config" / "grit-mlx"


def staged(cache: Path, source: Path, name: str, reference: str | None, *commits: str) -> Path:
    """A repository in the hub's cache, as somebody copies it by hand; returns its folder."""
    folder = cache / f"models--own--{name}"
    shutil.copytree(source, folder / "blobs")
    for commit in commits:
        snapshot = folder / "snapshots" / commit
        snapshot.mkdir(parents=True)
        for file in source.iterdir():
            (snapshot / file.name).symlink_to(Path("../../blobs", file.name))
    (folder / "snapshots" / ".DS_Store").write_bytes(b"")
    if reference is not None:
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text(reference)
    return folder


def test_caches_that_were_copied_by_hand(tiny_model: Path, tmp_path: Path) -> None:
    cache = tmp_path / "hub"
    references = {"plain": COMMIT, "line": f"{COMMIT}\n", "none": None, "empty": "", "stale": "0" * 40}
    for name, reference in references.items():
        staged(cache, tiny_model, name, reference, COMMIT)
    damaged = staged(cache, tiny_model, "damaged", COMMIT, COMMIT)
    (damaged / "blobs" / "model.safetensors").unlink()
    settings = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache)}
    names = [f"own/{name}" for name in references]
    *found, listed = resolve("http://127.0.0.1:1", tmp_path, *names, **settings)
    assert [Path(str(one[0])).parent.parent.name for one in found] == [f"models--own--{name}" for name in references]
    assert set(names) < set(listed) and "own/damaged" in listed  # what is used is listed, what is broken can be removed
    other = "1" * 40
    (missing, _) = resolve("http://127.0.0.1:1", tmp_path, "own/none", revision=other, **settings)
    assert missing[0] == "DownloadError"  # not some other revision than the one that was asked for


def test_a_model_in_the_cache_is_removed_also_if_a_part_is_gone(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRIT_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = staged(tmp_path / "hub", tiny_model, "damaged", COMMIT, COMMIT)
    (folder / "blobs" / "model.safetensors").unlink()
    (model,) = [one for one in hub.local_models() if one.name == "own/damaged"]
    with pytest.raises(GritError, match=r"model\.safetensors is a symbolic link to \.\./\.\./blobs/.*, which does not"):
        GritLM(model.folder)
    hub.remove(model)
    assert list((tmp_path / "hub").iterdir()) == []
