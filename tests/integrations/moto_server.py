"""A bucket on a real server of S3's interface, moto's."""

from __future__ import annotations

import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integrations.remote import Remote, serving
from tests.integrations.tools import tool

__all__ = ["MOTO", "Bucket", "address", "bucket"]

boto3 = tool("boto3")
tool("moto")

MOTO = [sys.executable, "-u", "-c", "from moto.server import main; main(['-H', '127.0.0.1', '-p', '0'])"]


class Bucket(Remote):
    """A bucket ``notes`` on a server, and machines that use it."""

    def __init__(self, address: str, tmp_path: Path) -> None:
        environment = {
            "AWS_ENDPOINT_URL": address,
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "a",
            "AWS_SECRET_ACCESS_KEY": "b",
        }
        super().__init__(environment, tmp_path)
        self.client: Any = boto3.client(
            "s3", endpoint_url=address, region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b"
        )
        self.client.create_bucket(Bucket="notes")

    def keys(self, prefix: str) -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket="notes", Prefix=prefix)
        return [entry["Key"] for page in pages for entry in page.get("Contents", [])]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(MOTO, tmp_path_factory.mktemp("moto")) as address:
        yield address


@pytest.fixture
def bucket(address: str, tmp_path: Path) -> Bucket:
    urllib.request.urlopen(urllib.request.Request(f"{address}/moto-api/reset", method="POST")).close()
    return Bucket(address, tmp_path)
