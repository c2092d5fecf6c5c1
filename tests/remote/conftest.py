"""An S3 server for all tests, and a bucket for each."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from servers import S3, s3_server

_number = itertools.count()


@pytest.fixture(scope="session")
def _server() -> Iterator[S3]:
    with s3_server() as s3:
        yield s3


@pytest.fixture
def s3(_server: S3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[S3]:
    """The server without faults, its address and credentials in the environment, and an empty cache."""
    for name, value in _server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("FEATSTORE_CACHE", str(tmp_path / "cache"))
    _server.forget()
    yield _server
    _server.forget()


@pytest.fixture
def bucket(s3: S3) -> str:
    """URL of a new bucket."""
    import urllib.request

    name = f"bucket-{next(_number)}"
    with urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{s3.port}/{name}", method="PUT")):
        pass
    s3.forget()
    return f"s3://{name}"
