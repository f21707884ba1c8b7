"""Stores in an Azure container: Azurite, Microsoft's own emulator, and real processes."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import sys
from collections.abc import Iterator
from datetime import datetime, timezone
from http.client import HTTPConnection
from pathlib import Path

import pytest

from tests.integrations.remote import Remote, notes_in, serving

NODE = Path(sys.prefix) / "node"  # where scripts/integrations.sh puts the packages
AZURITE = NODE / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js"

pytestmark = pytest.mark.skipif(not AZURITE.exists(), reason="needs what scripts/integrations.sh installs for Node")

STORE = "az://notes/a/store"

# Of every Azurite, as its documentation says.
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


def create_container(address: str, name: str) -> None:
    date = datetime.now(timezone.utc).strftime("%a, %d %b %Y %H:%M:%S GMT")
    resource = f"/{ACCOUNT}/{ACCOUNT}/{name}\nrestype:container"
    signed = "PUT" + "\n" * 12 + f"x-ms-date:{date}\nx-ms-version:2021-08-06\n" + resource
    digest = hmac.new(base64.b64decode(KEY), signed.encode(), hashlib.sha256).digest()
    headers = {
        "x-ms-date": date,
        "x-ms-version": "2021-08-06",
        "Authorization": f"SharedKey {ACCOUNT}:{base64.b64encode(digest).decode()}",
    }
    connection = HTTPConnection(address.removeprefix("http://"))
    connection.request("PUT", f"/{ACCOUNT}/{name}?restype=container", headers=headers)
    response = connection.getresponse()
    assert response.status == 201, response.read()
    connection.close()


@pytest.fixture
def container(tmp_path: Path) -> Iterator[Remote]:
    own = NODE / "node_modules" / ".bin" / "node"
    folder = tmp_path / "azurite"
    folder.mkdir()
    options = ["--blobHost", "127.0.0.1", "--blobPort", "0", "--location", str(folder), "--skipApiVersionCheck"]
    command = [str(own) if own.exists() else "node", str(AZURITE), *options, "--disableTelemetry"]
    with serving(command, folder) as address:
        create_container(address, "notes")
        environment = {
            "AZURE_STORAGE_USE_EMULATOR": "true",
            "AZURITE_BLOB_STORAGE_URL": address,
            "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
            "AZURE_STORAGE_ACCOUNT_KEY": KEY,
        }
        yield Remote(environment, tmp_path)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = notes_in(tmp_path / "files", count=12, sentences=20)
    (folder / "keel.md").write_text("A keel keeps a ship upright.")
    return folder


def test_two_machines_index_at_once_and_a_third_asks(container: Remote, files: Path, tmp_path: Path) -> None:
    others = tmp_path / "others"
    others.mkdir()
    (others / "anchor.md").write_text("An anchor holds a ship in place.")
    first = container.start("index", str(files), "--store", STORE, "--wait", "200", machine="one")
    second = container.start("index", str(others), "--store", STORE, "--wait", "200", machine="two")
    said = [process.communicate(timeout=400)[0] for process in (first, second)]
    assert first.returncode == second.returncode == 0, said
    for question, answer in (("what keeps a ship upright?", "A keel keeps"), ("what holds a ship?", "An anchor holds")):
        code, found = container.run("ask", question, "--store", STORE, machine="three")
        assert code == 0 and answer in found, found
    (files / "keel.md").unlink()
    code, found = container.run("index", str(files), "--store", STORE, machine="three")
    assert code == 0 and "1 removed" in found, found
    assert "no problems found" in container.run("verify", "--store", STORE)[1]


def test_machines_share_cached_documents(container: Remote, files: Path, tiny_model: Path) -> None:
    model = ("--model", str(tiny_model))
    how = ("--no-server", "--cache", "doc", "--min-score", "-1", "--max-tokens", "4", "--top", "2", "--json")
    code, said = container.run("index", str(files), "--store", STORE, *model, "--shared-cache", "1MB")
    assert code == 0, said
    answers = []
    for machine in ("one", "two"):
        code, said = container.run("ask", "what keeps a ship?", "--store", STORE, *model, *how, machine=machine)
        assert code == 0, said
        answers.append(json.loads(said))
    first, second = answers
    assert first["cached_tokens"] == 0 < second["cached_tokens"] and first["answer"] == second["answer"]
    shared = json.loads(container.run("stats", "--store", STORE, "--json")[1])["caches"]["shared"]
    assert shared["files"] == 2 and shared["bytes"] <= shared["budget"] == 10**6
    code, said = container.run("remove", *(str(path) for path in files.iterdir()), "--store", STORE)
    assert code == 0, said
    assert json.loads(container.run("stats", "--store", STORE, "--json")[1])["caches"]["shared"]["files"] == 0
    assert "no problems found" in container.run("verify", "--store", STORE)[1]


@pytest.mark.parametrize(
    ("store", "environment", "said"),
    [
        ("az://nowhere/store", {}, "its bucket does not exist"),
        ("az://notes/store", {}, "There is no store at az://notes/store."),
        ("az://notes/store", {"AZURE_STORAGE_ACCOUNT_KEY": "d3Jvbmc="}, "the credentials are not accepted"),
        ("az://notes/store", {"AZURITE_BLOB_STORAGE_URL": "http://127.0.0.1:9"}, "the server does not answer"),
    ],
    ids=["container", "store", "key", "server"],
)
def test_what_is_wrong_is_one_sentence(container: Remote, store: str, environment: dict[str, str], said: str) -> None:
    code, output = container.run("stats", "--store", store, **environment)
    assert code == 1
    assert output.startswith("error: ") and said in output and output.count("\n") == 1, output
