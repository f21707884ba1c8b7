"""Requests to a running server. Nothing here knows of models: it imports neither mlx nor an HTTP library."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from grit_mlx.errors import ServerError, first_line

__all__ = ["ServerClient", "UnreachableError"]

# A large model may read for minutes before it says anything.
_SECONDS = 900.0


class UnreachableError(ServerError):
    """No server answers at an address."""


class ServerClient:
    """One server.

    Args:
        address: such as ``http://127.0.0.1:8080``.
        key: one of its keys; empty for none.
        timeout: seconds that it may be silent.
    """

    def __init__(self, address: str, key: str = "", *, timeout: float = _SECONDS) -> None:
        self.address = address.rstrip("/")
        self._key = key
        self._timeout = timeout

    def get(self, path: str, query: Mapping[str, Any] | None = None) -> Any:
        """The answer to a question; ``path`` may hold any characters.

        Raises:
            ServerError: what the server says is wrong.
            UnreachableError: it does not answer.
        """
        return self._answer("GET", quote(path) + (f"?{urlencode(query)}" if query else ""), None)

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """The answer to a request; see ``get``."""
        return self._answer("POST", quote(path), json.dumps(body).encode())

    def lines(self, path: str, body: Mapping[str, Any]) -> Iterator[Any]:
        """The lines of an answer of several, as they come; the server stops computing once nobody reads on.

        Raises:
            ServerError: what the server says is wrong.
            UnreachableError: it does not answer, or its answer breaks off.
        """
        connection, response = self._begun("POST", quote(path), json.dumps(body).encode())
        try:
            if response.status >= 400:
                answer_of(response.status, response.read())
            while line := response.readline():
                if line.strip() and not line.startswith(b":"):
                    yield json.loads(line)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise UnreachableError(f"The server at {self.address} does not answer: {first_line(error)}") from error
        finally:
            connection.close()

    def _answer(self, method: str, path: str, body: bytes | None) -> Any:
        connection, response = self._begun(method, path, body)
        try:
            status, content = response.status, response.read()
        except (OSError, http.client.HTTPException) as error:
            raise UnreachableError(f"The server at {self.address} does not answer: {first_line(error)}") from error
        finally:
            connection.close()
        return answer_of(status, content)

    def _begun(self, method: str, path: str, body: bytes | None) -> tuple[Any, http.client.HTTPResponse]:
        parts = urlsplit(self.address)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        headers = {"content-type": "application/json"} if body is not None else {}
        if self._key:
            headers["authorization"] = f"Bearer {self._key}"
        connection = kind(parts.hostname or "", parts.port, timeout=self._timeout)
        try:
            connection.request(method, parts.path + path, body, headers)
            return connection, connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise UnreachableError(f"The server at {self.address} does not answer: {first_line(error)}") from error
        except BaseException:
            connection.close()
            raise


def answer_of(status: int, content: bytes) -> Any:
    """What a response holds.

    Raises:
        ServerError: it is an error.
    """
    try:
        answer = json.loads(content)
    except ValueError:
        answer = None
    if status < 400 and answer is not None:
        return answer
    told = answer.get("error") if isinstance(answer, dict) else None
    message = told.get("message") if isinstance(told, dict) else None
    raise ServerError(str(message) if message else f"The server answered with an error ({status}).")
