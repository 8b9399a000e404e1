"""A real S3 server on this machine: moto's, in a thread."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

NAME = "photos"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "key-of-tests",
    "AWS_SECRET_ACCESS_KEY": "sesame",
    "AWS_DEFAULT_REGION": "us-east-1",
}


@dataclass(frozen=True)
class Bucket:
    """A bucket with the environment in which it is found."""

    client: Any
    environment: Mapping[str, str]

    def put(self, key: str, content: bytes | Path) -> str:
        """Put a file into it; its address."""
        body = content if isinstance(content, bytes) else content.read_bytes()
        self.client.put_object(Bucket=NAME, Key=key, Body=body)
        return f"s3://{NAME}/{key}"


@contextlib.contextmanager
def s3_bucket() -> Iterator[Bucket]:
    """An empty bucket as long as the context lasts."""
    pytest.importorskip("s3fs")
    server_class = pytest.importorskip("moto.server").ThreadedMotoServer
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = server_class("127.0.0.1", 0)
    server.start()
    import boto3

    address = "http://{}:{}".format(*server.get_host_and_port())
    client = boto3.client(
        "s3",
        endpoint_url=address,
        aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
        region_name=CREDENTIALS["AWS_DEFAULT_REGION"],
    )
    client.create_bucket(Bucket=NAME)
    try:
        yield Bucket(client, {"AWS_ENDPOINT_URL": address, **CREDENTIALS})
    finally:
        client.close()
        server.stop()
