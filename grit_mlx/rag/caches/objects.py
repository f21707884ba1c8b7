"""Objects in a bucket beside a store's tables, read and written by the library that Lance itself uses for buckets."""

from __future__ import annotations

import configparser
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from grit_mlx.optional import importing
from grit_mlx.rag.database import endpoint, lance_errors

__all__ = ["Bucket", "Listed", "Version", "tag_of"]

# A request may take this long, of a large object on a slow line.
_REQUEST_SECONDS: Final = 240
_CONNECT_SECONDS: Final = 10
# Nobody is to wait minutes for a cache: what fails for longer is done without.
_RETRIES: Final = 5
_RETRY_SECONDS: Final = 20

_YES: Final = ("1", "true", "yes", "on")


@dataclass(frozen=True)
class Version:
    """A version of an object that was read or written.

    Attributes:
        name: the server's for it, by which a later write names the version that it replaces.
        time: of its writing, in seconds, by the server's clock; None of one that this process has just written.
    """

    name: Mapping[str, str]
    time: float | None = None


@dataclass(frozen=True)
class Listed:
    """An object."""

    name: str
    bytes: int
    tag: str  # the server's name for its content


class Bucket:
    """The objects below an address.

    Args:
        uri: such as ``s3://bucket/notes/caches``.
        purpose: what they are for, as the subject of a sentence.
        store: of obstore; None for the one at the address, with the credentials that are in the environment.

    Raises:
        DependencyError: obstore is not installed.
        StoreError: the address or the credentials are incomplete.
    """

    def __init__(self, uri: str, *, purpose: str = "This", store: Any = None) -> None:
        with importing(extra="buckets", purpose=purpose):
            import obstore
            from obstore import exceptions
        self.uri = uri
        self._api: Any = obstore
        self._errors: Any = exceptions
        with self._sentences():
            self._store = store if store is not None else _connected(uri)

    def get(self, name: str, *, unless: Version | None = None) -> tuple[bytes, Version] | None:
        """An object with its version; None if it is still a version that is known.

        Raises:
            FileNotFoundError: there is none.
            StoreError: the bucket cannot be read.
        """
        known = unless.name.get("e_tag") if unless is not None else None
        try:
            with self._sentences():
                found = self._api.get(self._store, name, options={"if_none_match": known} if known else {})
                return bytes(found.bytes()), Version(_named(found.meta), found.meta["last_modified"].timestamp())
        except _NotModifiedError:
            return None

    def put(self, name: str, content: bytes, *, instead_of: Version | None = None) -> Version | None:
        """Write an object, in one piece: it is there as a whole or not at all.

        Args:
            name: of the object.
            content: what it holds from now on.
            instead_of: the version that it replaces; None to make a new object.

        Returns:
            The version; None if another process has written it since.

        Raises:
            StoreError: the bucket cannot be written.
        """
        mode = "create" if instead_of is None else dict(instead_of.name)
        try:
            with self._sentences():
                return Version(_named(self._api.put(self._store, name, content, mode=mode, use_multipart=False)))
        except _ChangedError:
            return None

    def delete(self, names: Collection[str]) -> None:
        """Delete objects, whether they are there or not.

        Raises:
            StoreError: the bucket cannot be written.
        """
        wanted = sorted(names)
        if not wanted:
            return
        try:
            with self._sentences():
                self._api.delete(self._store, wanted)
        except FileNotFoundError:  # not of S3, which does not say so; the others are still to be deleted
            for name in wanted:
                with suppress(FileNotFoundError), self._sentences():
                    self._api.delete(self._store, name)

    def list(self) -> list[Listed]:
        """All objects.

        Raises:
            StoreError: the bucket cannot be read.
        """
        with self._sentences():
            found = self._api.list(self._store).collect()
        return [Listed(one["path"], one["size"], tag_of(_named(one))) for one in found]

    def head(self, name: str) -> Listed | None:
        """An object, if it is there.

        Raises:
            StoreError: the bucket cannot be read.
        """
        try:
            with self._sentences():
                found = self._api.head(self._store, name)
        except FileNotFoundError:
            return None
        return Listed(name, found["size"], tag_of(_named(found)))

    @contextmanager
    def _sentences(self) -> Iterator[None]:
        """Turn the library's errors into ours, but those that say what has become of an object."""
        said = self._errors
        try:
            yield
        except FileNotFoundError as error:
            if "nosuchbucket" not in str(error).lower() and "containernotfound" not in str(error).lower():
                raise
            self._refuse(error)
        except said.NotModifiedError as error:
            raise _NotModifiedError from error
        except (said.AlreadyExistsError, said.PreconditionError) as error:
            raise _ChangedError from error
        except (said.BaseError, OSError, ValueError) as error:
            self._refuse(error)

    def _refuse(self, error: Exception) -> None:
        with lance_errors(self.uri):
            raise RuntimeError(str(error)) from error


class _NotModifiedError(Exception):
    pass


class _ChangedError(Exception):
    pass


def tag_of(version: Mapping[str, str]) -> str:
    """A name of a content that a listing gives as well as a write: not all servers quote it in both."""
    return version.get("e_tag", "").strip('"')


def _named(about: Mapping[str, Any]) -> dict[str, str]:
    return {name: about[name] for name in ("e_tag", "version") if about.get(name) is not None}


def _connected(uri: str) -> Any:
    from obstore.store import from_url

    given: dict[str, Any] = dict(endpoint(uri) or {})
    insecure = given.pop("allow_http", None) or os.environ.get("AWS_ALLOW_HTTP", "")
    client: Any = {
        "timeout": timedelta(seconds=_REQUEST_SECONDS),
        "connect_timeout": timedelta(seconds=_CONNECT_SECONDS),
        **({"allow_http": True} if insecure.lower() in _YES else {}),
    }
    retries: Any = {"max_retries": _RETRIES, "retry_timeout": timedelta(seconds=_RETRY_SECONDS)}
    config: Any = {**given, **(_profile() if uri.startswith("s3://") else {})}
    return from_url(uri, config=config, client_options=client, retry_config=retries)


def _profile() -> dict[str, str]:
    """The keys of a profile of Amazon's tools, which Lance reads and this library does not."""
    if os.environ.get("AWS_ACCESS_KEY_ID"):
        return {}
    path = os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials"
    profiles = configparser.ConfigParser(interpolation=None)
    with suppress(configparser.Error, OSError, UnicodeDecodeError):
        profiles.read(Path(path).expanduser(), encoding="utf-8")
    name = os.environ.get("AWS_PROFILE") or "default"
    found = dict(profiles[name]) if profiles.has_section(name) else {}
    wanted = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")
    return {name: found[name] for name in wanted if name in found}
