"""An S3 store on the loopback, and what it holds, seen by boto3 instead of by the package."""

from __future__ import annotations

import os
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
from moto.server import ThreadedMotoServer

from nlrn.batch.manifest import PROBE

KEYS = {"AWS_ACCESS_KEY_ID": "unnamed", "AWS_SECRET_ACCESS_KEY": "nothing", "AWS_DEFAULT_REGION": "us-east-1"}


class Store:
    """A bucket that keeps every version of every object: what was put twice is seen."""

    def __init__(self, client: Any) -> None:
        self.client = client
        client.create_bucket(Bucket="album")
        client.put_bucket_versioning(Bucket="album", VersioningConfiguration={"Status": "Enabled"})

    def put(self, key: str, data: bytes) -> None:
        self.client.put_object(Bucket="album", Key=key, Body=data)

    def fill(self, folder: Path, under: str) -> None:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                self.put(f"{under}/{file.relative_to(folder).as_posix()}", file.read_bytes())

    def get(self, key: str) -> Any:
        return self.client.get_object(Bucket="album", Key=key)

    def files(self, under: str) -> dict[str, bytes]:
        """Keys below a folder and what they hold, but for the object that tries the store's conditions."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket="album", Prefix=f"{under}/")
        keys = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
        names = [name for key in keys if (name := key.removeprefix(f"{under}/")).rpartition("/")[2] != PROBE]
        return {name: self.get(f"{under}/{name}")["Body"].read() for name in names}

    def puts(self, under: str) -> dict[str, int]:
        """How often each object was put."""
        pages = self.client.get_paginator("list_object_versions").paginate(Bucket="album", Prefix=f"{under}/")
        count: dict[str, int] = {}
        for page in pages:
            for entry in page.get("Versions", []):
                key = entry["Key"].removeprefix(f"{under}/")
                count[key] = count.get(key, 0) + 1
        return count


@contextmanager
def serving() -> Iterator[str]:
    """Where a server is, which this process and those that it starts find in the environment."""
    before = dict(os.environ)
    for name in [name for name in os.environ if name.startswith(("AWS_", "FSSPEC_"))]:  # of whoever runs the tests
        del os.environ[name]
    running = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    try:
        host, port = running.get_host_and_port()
        os.environ.update(KEYS, AWS_ENDPOINT_URL=f"http://{host}:{port}")
        yield f"http://{host}:{port}"
    finally:
        running.stop()
        os.environ.clear()
        os.environ.update(before)


def emptied(url: str) -> Store:
    """The store as it was at first."""
    urllib.request.urlopen(f"{url}/moto-api/reset", data=b"").close()
    return Store(boto3.client("s3"))
