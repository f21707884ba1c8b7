"""Connections to LanceDB, in a folder or in a bucket, and what it says of failures as sentences."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from grit_mlx.errors import GritError, OutputError, StoreError, first_line

__all__ = ["BUCKETS", "connected", "endpoint", "is_bucket", "is_remote", "lance_errors", "sql_text", "table_names"]

# The addresses of buckets in which an object can be written only if nobody else has written it since.
BUCKETS: Final = ("s3://", "gs://", "az://")

# What Lance may keep of indices and of metadata, in bytes. Its own limits are 6 and 1 GB, of every connection.
_INDEX_CACHE: Final = 1 << 30
_METADATA_CACHE: Final = 1 << 27

# Where a bucket is, if it is not Amazon's, by the names of Amazon's own tools and then Lance's.
_ENDPOINTS: Final = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")

_DISK_FULL: Final = ("No space left", "os error 28", "File too large", "os error 27", "quota exceeded", "os error 122")

# What is wrong where one of some words stands in what Lance says; the first that fits. "{scheme}" is "s3" or the like.
_CREDENTIALS: Final = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
    "gs": "GOOGLE_SERVICE_ACCOUNT to a key file, or run 'gcloud auth application-default login'",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
    "db": "LANCEDB_API_KEY",
}
_REMOTE: Final[Mapping[tuple[str, ...], str]] = {
    ("nosuchbucket", "bucket does not exist", "containernotfound"): "its bucket does not exist. Create it, or correct "
    "the address.",
    (
        "aws credentials",
        "credentialsnotloaded",
        "169.254.169.254",
        "metadata.google.internal",
        "no azure account name",
        "api_key is required",
    ): "there are no credentials. Set {credentials}.",
    (
        "invalidaccesskeyid",
        "signaturedoesnotmatch",
        "failed to authenticate",
        "expiredtoken",
        "status: 401",
        "unauthorized",
    ): "the credentials are not accepted. Check {credentials}.",
    ("accessdenied", "status: 403", "forbidden"): "the credentials do not permit it. Reading needs permission to list "
    "and get objects, indexing also to put and delete them.",
    ("badscheme",): "its endpoint is not https. Set AWS_ALLOW_HTTP=true if it is in a network that you trust.",
    (
        "dns error",
        "kind: connect",
        "error sending request",
        "tcp connect error",
        "connection refused",
        "connection reset",
        "connection closed",
        "kind: timeout",
        "timed out",
    ): "the server does not answer. Check the network and the address, and run the same command again.",
    ("notimplemented", "status: 501"): "the server does not know conditional writes, which keep two writers apart.",
    ("status: 500", "status: 502", "status: 503", "slowdown"): "the server failed. Run the same command again later.",
    ("did not match any known pattern", "no object store provider"): "it is not an address of a store. Addresses are "
    "s3://BUCKET/PATH, gs://BUCKET/PATH, az://CONTAINER/PATH and db://NAME.",
}

# What Lance says where a file of the store is missing or does not hold what it should.
_DAMAGED: Final = (
    "not found",
    "failed to fill",
    "too small",
    "invalid magic",
    "expected value",
    "corrupt",
    "decode",
    "end of file",
    "eof",
    "out of bounds",
    "checksum",
    "utf-8",
)
_PLACE_IN_SOURCE: Final = re.compile(r",? ?(?:at )?\S*\.rs:\d+(?::\d+)?|, location: Location \{.*|, backtrace: .*")
_REQUEST: Final = re.compile(r"uri: some\([^)]*\)|<(bucketname|key|resource)>[^<]*|retry_timeout")


def is_remote(uri: str) -> bool:
    """Whether a store is on another machine."""
    return "://" in uri


def is_bucket(uri: str) -> bool:
    """Whether a store is in a bucket, beside which there may be other objects."""
    return uri.startswith(BUCKETS)


def sql_text(value: str) -> str:
    """A text as an SQL literal."""
    return "'" + value.replace("'", "''") + "'"


def connected(uri: str) -> Any:
    """A connection to the database at an address.

    Raises:
        StoreError: there is none, or it does not let us in.
    """
    # Its warnings are about calls that users did not make.
    os.environ.setdefault("LANCEDB_LOG", "error")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import lancedb
    with lance_errors(uri):
        if uri.startswith("db://"):
            return lancedb.connect(uri, api_key=os.environ.get("LANCEDB_API_KEY"))
        session = lancedb.Session(index_cache_size_bytes=_INDEX_CACHE, metadata_cache_size_bytes=_METADATA_CACHE)
        return lancedb.connect(uri, session=session, storage_options=endpoint(uri))


def endpoint(uri: str) -> dict[str, str] | None:
    """Where a bucket is, if the environment says so."""
    address = next((os.environ[name] for name in _ENDPOINTS if os.environ.get(name)), None)
    if address is None or not uri.startswith("s3://"):
        return None
    # An address that begins with http:// asks for it.
    return {"endpoint": address, **({"allow_http": "true"} if address.startswith("http://") else {})}


def table_names(database: Any) -> list[str]:
    """The names of a database's tables."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return list(database.table_names(limit=1000))


@contextmanager
def lance_errors(uri: str) -> Iterator[None]:
    """Turn Lance's errors into sentences.

    Raises:
        StoreError: what is wrong, and what to do.
        OutputError: the disk is full.
    """
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        if isinstance(error, GritError):
            raise
        if any(sign in str(error) for sign in _DISK_FULL):
            raise OutputError(
                f"Cannot write to the store {uri}: the disk is full. Make room and run the same command again: it "
                "resumes where it stopped."
            ) from error
        raise StoreError(f"The store {uri} cannot be used: {_reason(uri, error)}") from error


def _reason(uri: str, error: BaseException) -> str:
    if is_remote(uri) and (reason := _remote_reason(uri, str(error).lower())):
        return reason
    said = _PLACE_IN_SOURCE.sub("", first_line(error)).removeprefix("lance error: ")
    if "permission denied" in said.lower():
        return "permission denied. Check the permissions of its files."
    if any(sign in said.lower() for sign in _DAMAGED):
        again = "index again into another store" if is_remote(uri) else "delete the folder and index again"
        return f"a file of it is damaged or missing. Restore it from a backup, or {again}."
    return said if said.endswith(".") else said + "."


def _remote_reason(uri: str, said: str) -> str | None:
    """What is wrong with a store in a bucket or on a server, if that is known."""
    said = _REQUEST.sub("", said)  # a store may be called "forbidden"
    scheme = uri.partition("://")[0].partition("+")[0]
    credentials = _CREDENTIALS.get(scheme, "those of its provider")
    found = (reason for signs, reason in _REMOTE.items() if any(sign in said for sign in signs))
    reason = next(found, None)
    return None if reason is None else reason.format(credentials=credentials)
