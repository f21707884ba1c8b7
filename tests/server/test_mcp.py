"""Tools for programs with a model of their own: over HTTP at ``/mcp``, and over stdio by ``grit mcp``."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from grit_mlx.cli.mcp import Connection, Indexing
from grit_mlx.errors import ArgumentError, ServerError
from grit_mlx.server.client import ServerClient, UnreachableError
from grit_mlx.server.running import RunningServer, announced, package_version, running_servers

mcp = pytest.importorskip("mcp", reason="needs mcp: pip install 'grit-mlx[mcp]'")

Server = Any  # of conftest

_PROGRAM = "from grit_mlx.cli.main import main; main()"


def _with(target: Any, use: Callable[[Any], Awaitable[Any]]) -> Any:
    """What ``use`` returns of a connected client."""

    async def connected() -> Any:
        async with mcp.Client(target) as client:
            return await use(client)

    return asyncio.run(connected())


def _calls(target: Any, *calls: tuple[str, dict[str, Any]]) -> list[Any]:
    """The structured result of each call, or the text of its error."""

    async def use(client: Any) -> list[Any]:
        results = [await client.call_tool(name, arguments) for name, arguments in calls]
        return [one.content[0].text if one.is_error else one.structured_content for one in results]

    return _with(target, use)  # type: ignore[no-any-return]


def _stdio(*arguments: str, **environment: str) -> Any:
    return mcp.StdioServerParameters(
        command=sys.executable, args=["-c", _PROGRAM, "mcp", *arguments], env={**os.environ, **environment}
    )


def _announced(server: Server, folder: Path, key_file: Path | None = None) -> Any:
    stores = {"notes": str(folder / "store")}
    key = None if key_file is None else str(key_file)
    return announced(RunningServer(os.getpid(), server.url, package_version(), {"tiny": ""}, stores, key))


def test_tools_over_http(server: Server, notes: Path) -> None:
    async def use(client: Any) -> Any:
        return (await client.list_tools()).tools

    tools = {tool.name: tool for tool in _with(f"{server.url}/mcp", use)}
    assert set(tools) == {"search", "read", "ask", "status"}  # nothing that writes
    assert all(tool.annotations.read_only_hint for tool in tools.values())
    assert all(tool.output_schema for tool in tools.values())
    assert set(tools["search"].input_schema["properties"]) == {"query", "top", "paths"}
    assert set(tools["read"].input_schema["properties"]) == {"file", "line", "count"}

    path = str(notes / "boiler.md")
    found, only, part, status = _calls(
        f"{server.url}/mcp",
        ("search", {"query": "boiler", "top": 2}),
        ("search", {"query": "boiler", "paths": [str(notes / "garden.md")]}),
        ("read", {"file": path, "line": 3, "count": 1}),
        ("status", {}),
    )
    assert path in [one["path"] for one in found["passages"]]
    assert {one["path"] for one in only["passages"]} == {str(notes / "garden.md")}
    assert part["text"] == "The boiler is serviced each October by Frank."
    assert (part["line"], part["end_line"], part["unit"], part["total"]) == (3, 3, "line", 5)
    assert [(one["name"], one["files"]) for one in status["stores"]] == [("notes", 2)]


def test_an_answer_has_its_sources(server: Server, notes: Path) -> None:
    question = "When is the boiler serviced?"
    found, answer = _calls(f"{server.url}/mcp", ("search", {"query": question}), ("ask", {"question": question}))
    assert "Sources:" not in answer["answer"]
    paths = {one["path"] for one in answer["sources"]}
    assert paths <= {str(notes / "boiler.md"), str(notes / "garden.md")}
    assert bool(paths) == found["relevant"]


def test_read_never_leaves_what_was_indexed(server: Server, notes: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.md"
    secret.write_text("# Secret\n\nThe password.\n", encoding="utf-8")
    (notes / "secret.md").write_text("not indexed", encoding="utf-8")
    (notes / "link.md").unlink(missing_ok=True)
    (notes / "link.md").symlink_to(secret)
    tries = [str(secret), str(notes / "secret.md"), str(notes / "link.md"), f"{notes}/../{notes.name}/boiler.md"]
    tries += [
        f"{notes / 'boiler.md'}/../../../etc/passwd",
        "/etc/passwd",
        "",
        "../../etc/passwd",
        "boiler.md\x00",
        "%",
        "'",
    ]
    results = _calls(f"{server.url}/mcp", *(("read", {"file": one}) for one in tries))
    assert all(isinstance(one, str) for one in results), results  # errors
    assert not any("password" in one or "root:" in one for one in results)


def test_a_link_in_place_of_an_indexed_file_is_not_followed(server: Server, notes: Path, tmp_path: Path) -> None:
    target, content = notes / "boiler.md", (notes / "boiler.md").read_bytes()
    secret = tmp_path / "secret.md"
    secret.write_text("The password.", encoding="utf-8")
    target.unlink()
    target.symlink_to(secret)
    try:
        [part] = _calls(f"{server.url}/mcp", ("read", {"file": str(target)}))
    finally:
        target.unlink()
        target.write_bytes(content)
    assert "password" not in str(part)
    assert isinstance(part, str) or "October" in part["text"]  # refused, or what was indexed


def test_errors_reach_the_model_in_words(server: Server) -> None:
    empty, few, unknown = _calls(
        f"{server.url}/mcp",
        ("search", {"query": ""}),
        ("search", {"query": "x", "top": 0}),
        ("search", {"query": "x", "paths": ["/nowhere/*.md"]}),
    )
    assert "is empty" in empty
    assert "greater than or equal to 1" in few
    assert "/nowhere/*.md" in unknown
    assert not any("Traceback" in one for one in (empty, few, unknown))


def test_a_key_is_needed_over_http_too(start: Callable[..., Server], notes: Path, tmp_path: Path) -> None:
    guarded = start(stores={"notes": str(notes / "store")}, keys=["secret"])
    assert guarded.request("POST", "/mcp", {})[0] == 401
    (tmp_path / "key").write_text("# comment\nsecret\n", encoding="utf-8")
    target = _stdio("--address", guarded.url, "--api-key-file", str(tmp_path / "key"))
    [status] = _calls(target, ("status", {}))
    assert status["stores"][0]["name"] == "notes"


def test_stdio_uses_the_running_server(server: Server, notes: Path) -> None:
    with _announced(server, notes):
        status, found = _calls(
            _stdio("--store", str(notes / "store")), ("status", {}), ("search", {"query": "boiler", "top": 1})
        )
    assert status["stores"][0]["folder"] == str(notes / "store")
    assert len(found["passages"]) == 1


def test_stdio_starts_a_server_that_ends_with_it(tiny_model: Path, notes: Path) -> None:
    assert running_servers() == []
    seen: list[RunningServer] = []

    async def use(client: Any) -> Any:
        result = await client.call_tool("search", {"query": "boiler"})
        seen.extend(running_servers())
        return result.structured_content

    found = _with(_stdio("--store", str(notes / "store"), "--model", str(tiny_model)), use)
    assert found["passages"]
    [server] = seen
    assert server.stores == {"store": str(notes / "store")}
    deadline = time.monotonic() + 30
    while _is_alive(server.process):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert running_servers() == []


def test_a_server_that_ended_is_replaced(server: Server, start: Callable[..., Server], notes: Path) -> None:
    first = start(stores={"notes": str(notes / "store")})
    connection = Connection([str(notes / "store")], None, None, "")
    with _announced(first, notes):
        assert connection.request(lambda client: client.get("/v1/stores"))["data"]
    first.stop()
    with _announced(server, notes):
        assert connection.request(lambda client: client.get("/v1/stores"))["data"]
        assert connection.client().address == server.url
    with pytest.raises(UnreachableError, match="does not answer"):
        Connection([], None, first.url, "").request(lambda client: client.get("/v1/stores"))


def test_a_server_of_other_stores_models_or_versions_is_not_used(server: Server, notes: Path) -> None:
    with _announced(server, notes):
        assert Connection([str(notes / "store")], None, None, "")._found() is not None
        assert Connection([str(notes / "other")], None, None, "")._found() is None
        assert Connection([str(notes / "store")], "another", None, "")._found() is None
    stale = RunningServer(2**22 + 1, server.url, package_version(), {}, {"notes": str(notes / "store")})
    with announced(stale):  # its process does not exist
        assert running_servers() == []


def test_only_named_stores_are_used(server: Server, start: Callable[..., Server], notes: Path, tmp_path: Path) -> None:
    both = start(stores={"a": str(notes / "store"), "b": str(notes / "store")})
    assert len(_calls(f"{both.url}/mcp", ("status", {}))[0]["stores"]) == 2
    with _announced(server, notes):
        [status] = _calls(_stdio("--store", str(notes / "store")), ("status", {}))
    assert len(status["stores"]) == 1


def test_indexing_only_in_allowed_folders(tiny_model: Path, notes: Path, tmp_path: Path) -> None:
    allowed, outside = tmp_path / "allowed", tmp_path / "outside"
    allowed.mkdir()
    outside.mkdir()
    (allowed / "new.md").write_text("# New\n\nThe violin is tuned on Mondays.\n", encoding="utf-8")
    (outside / "old.md").write_text("elsewhere", encoding="utf-8")
    (allowed / "link").symlink_to(outside)
    indexing = Indexing(str(tmp_path / "store"), [str(allowed)], None)
    assert indexing.checked(str(allowed / "new.md")) == str(allowed / "new.md")
    for path in (outside, allowed / "link", allowed / ".." / "outside", allowed / "missing", "new.md", "~", "--help"):
        with pytest.raises(ArgumentError, match="may not be indexed: only what exists in"):
            indexing.checked(str(path))

    target = _stdio("--store", str(tmp_path / "store"), "--model", str(tiny_model), "--allow-index", str(allowed))
    refused, done, found = _calls(
        target, ("index", {"path": str(outside)}), ("index", {"path": str(allowed)}), ("search", {"query": "violin"})
    )
    assert "may not be indexed" in refused
    assert "1 new" in done["summary"]
    assert [one["path"] for one in found["passages"]] == [str(allowed / "new.md")]


def test_what_cannot_work_is_said_at_once(grit_line: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    code, told = grit_line("mcp", "--store", str(tmp_path / "missing"))
    assert code == 1
    assert told.startswith(f"error: There is no store at {tmp_path / 'missing'}. Create one with 'grit rag index")
    code, told = grit_line("mcp", "--allow-index", str(tmp_path / "nowhere"))
    assert (code, "does not exist" in told) == (1, True)


@pytest.fixture
def grit_line() -> Callable[..., tuple[int, str]]:
    import subprocess

    def run(*arguments: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        assert done.stdout == ""
        return done.returncode, done.stderr

    return run


def test_what_the_server_says_is_an_error(server: Server) -> None:
    client = ServerClient(server.url)
    with pytest.raises(ServerError, match="There is no store 'nothing' here"):
        client.get("/v1/stores/nothing")
    with pytest.raises(ServerError, match="is not something that this server does"):
        client.get("/v1/näht", {"a b": "ü"})


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True
