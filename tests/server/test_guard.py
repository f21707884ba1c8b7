"""Who may send requests: names, pages and keys."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import openai
import pytest

from tests.server.conftest import Server


def status_of(server: Server, path: str = "/v1/models", method: str = "GET", **headers: str) -> int:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return server.request(method, path, None, named)[0]


@pytest.mark.parametrize("host", ["localhost", "localhost:8080", "127.0.0.1:9", "[::1]:8080", "10.0.0.7", "LOCALHOST"])
def test_names_of_this_machine(server: Server, host: str) -> None:
    assert status_of(server, Host=host) == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "", "[", "a@b", "::"]
)
def test_names_that_were_bound_to_this_machine(server: Server, host: str) -> None:
    """DNS rebinding."""
    assert status_of(server, Host=host) == 403


@pytest.mark.parametrize(
    "origin",
    ["http://localhost:3000", "http://localhost", "http://127.0.0.1:1", "app://obsidian.md", "vscode-webview://1ab"],
)
def test_pages_that_may_use_the_server(server: Server, origin: str) -> None:
    _, headers, _ = server.request("GET", "/v1/models", None, {"Origin": origin})
    assert headers["access-control-allow-origin"] == origin
    asked = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,x-stainless-os",
        "Access-Control-Request-Private-Network": "true",
    }
    status, headers, _ = server.request("OPTIONS", "/v1/chat/completions", None, asked)
    assert status == 204
    assert "x-stainless-os" in headers["access-control-allow-headers"]
    assert headers["access-control-allow-private-network"] == "true"


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "null",
        "http://localhost.evil.example",
        "http://localhost:3000.evil.example",
        "http://[",
        "x",
    ],
)
def test_pages_that_may_not(server: Server, origin: str) -> None:
    for method, path in (("GET", "/v1/models"), ("POST", "/v1/embeddings"), ("OPTIONS", "/v1/embeddings")):
        status, headers, data = server.request(method, path, None, {"Origin": origin})
        assert status == 403
        assert "access-control-allow-origin" not in headers
        assert "--origin" in json.loads(data)["error"]["message"]


def test_pages_that_were_allowed(start: Callable[..., Server]) -> None:
    server = start(origins=["https://example.org", "https://*.example.com/"])
    assert status_of(server, Origin="https://example.org") == 200
    assert status_of(server, Origin="https://a.example.com") == 200
    assert status_of(server, Origin="https://a.example.net") == 403


def test_keys(start: Callable[..., Server]) -> None:
    server = start(keys=["first key", "zweiter-schlüssel"])
    good: list[dict[str, Any]] = [{"Authorization": "Bearer first key"}, {"x_api_key": "first key"}]
    for headers in good:
        assert status_of(server, **headers) == 200
    bad: list[dict[str, Any]] = [
        {},
        {"Authorization": "Bearer first"},
        {"Authorization": "first key"},
        {"x_api_key": "first key2"},
    ]
    for headers in bad:
        assert status_of(server, **headers) == 401
    assert status_of(server, "/health") == 200
    assert status_of(server, "/metrics") == 401
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0).models.list()
    # A page may read why it was refused.
    _, headers, _ = server.request("GET", "/v1/models", None, {"Origin": "http://localhost:1"})
    assert headers["access-control-allow-origin"] == "http://localhost:1"


def test_a_body_that_is_too_long(server: Server) -> None:
    status, _, data = server.request("POST", "/v1/embeddings", None, {"Content-Length": "100000000000"})
    assert (status, json.loads(data)["error"]["code"]) == (413, "body_too_large")
