"""What can be wrong with a URL, each in one line, within seconds, and without a traceback."""

from __future__ import annotations

import json
import multiprocessing
import re
import socket

import pytest
from click.testing import CliRunner
from stores import make_store, split_writer

import featstore
from featstore.cli import cli
from featstore.errors import FeatstoreError, RemoteError, StoreNotFound, UsageError
from featstore.extract.shards import find_shards
from featstore.remote import open_remote
from featstore.store.copy import copy_store
from featstore.store.maintenance import gc_store
from featstore.store.verify import verify_store
from servers import S3


def error_of(kind: type[FeatstoreError], url: str) -> str:
    with pytest.raises(kind) as error:
        featstore.open(url)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 700
    return str(error.value)


def test_unknown_schemes_and_urls_without_a_bucket(s3):
    message = error_of(UsageError, "ftp://host/x")
    assert all(
        each in message for each in ("s3://", "gs://", "az://", "hf://", "https://", "memory://", "'ftp://host/x'")
    )
    assert "s3:///x.zarr" in error_of(UsageError, "s3:///x.zarr")
    assert "gs://NAME/path" in error_of(UsageError, "gs://")


def test_a_bucket_that_does_not_exist_and_a_store_that_does_not(s3, bucket):
    assert "NoSuchBucket" in error_of(RemoteError, "s3://no-such-bucket-here/x.zarr")
    assert "/nothing.zarr" in error_of(StoreNotFound, f"{bucket}/nothing.zarr")
    with pytest.raises(RemoteError, match="bucket does not exist"):
        split_writer("s3://no-such-bucket-here/x.zarr")


def test_no_credentials(s3, bucket, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    message = error_of(RemoteError, f"{bucket}/x.zarr")
    assert "s3://" in message
    assert "AWS_ACCESS_KEY_ID" in message
    assert "AZURE_STORAGE_ACCOUNT_NAME" in error_of(RemoteError, "az://container/x.zarr")


def test_credentials_of_a_profile_are_found(s3, bucket, monkeypatch, tmp_path):
    make_store(f"{bucket}/x.zarr", shards=["a.tar"])
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    (tmp_path / "credentials").write_text("[work]\naws_access_key_id = key\naws_secret_access_key = secret\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "work")
    assert len(featstore.open(f"{bucket}/x.zarr").select()) == 5


def test_credentials_that_are_refused(s3: S3, bucket):
    s3.fault = lambda _: "refuse"
    assert "credentials" in error_of(RemoteError, f"{bucket}/x.zarr")


def test_a_server_that_is_not_there(s3, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("FEATSTORE_RETRIES", "1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    message = error_of(RemoteError, "s3://bucket/x.zarr")
    assert re.search(r"s3://bucket/x\.zarr/zarr\.json.*http://127\.0\.0\.1:", message)
    assert message.endswith("Connection refused (after 1 retries)")
    assert f"http://127.0.0.1:{port}" in error_of(RemoteError, f"http://127.0.0.1:{port}/x.zarr")


@pytest.mark.parametrize(
    ("name", "url"),
    [("AWS_ENDPOINT_URL", "s3://b/x"), ("GOOGLE_BASE_URL", "gs://b/x"), ("AZURE_STORAGE_ENDPOINT", "az://c/x")],
)
def test_the_address_of_a_server_without_its_scheme(name, url, monkeypatch):
    monkeypatch.setenv(name, "minio:9000")
    assert error_of(UsageError, url).partition(" ")[0] == name


@pytest.mark.parametrize("fault", ["500", "slow down", "stall"])
def test_a_server_that_fails_for_ever(fault, s3: S3, bucket, monkeypatch):
    monkeypatch.setenv("FEATSTORE_RETRIES", "2")
    monkeypatch.setenv("FEATSTORE_TIMEOUT", "0.2")
    s3.fault = lambda _: fault
    assert f"{bucket}/x.zarr" in error_of(RemoteError, f"{bucket}/x.zarr")


def test_what_is_not_installed_is_named(monkeypatch):
    import sys

    for library, url in (
        ("obstore", "s3://bucket/x.zarr"),
        ("fsspec", "memory://x.zarr"),
        ("aiohttp", "http://127.0.0.1:9/"),
    ):
        with monkeypatch.context() as without:
            for name in [name for name in sys.modules if name.split(".")[0] == library]:
                without.delitem(sys.modules, name)
            without.setitem(sys.modules, library, None)
            with pytest.raises(UsageError, match=rf"{library}.*`pip install 'featstore\[cloud\]'`"):
                open_remote(url).children("")


def test_a_number_in_the_environment_that_is_none(monkeypatch, bucket):
    for name in ("FEATSTORE_RETRIES", "FEATSTORE_TIMEOUT"):
        with monkeypatch.context() as wrong:
            wrong.setenv(name, "many")
            assert name in error_of(UsageError, f"{bucket}/x.zarr")
    make_store(f"{bucket}/x.zarr", shards=["a.tar"])
    monkeypatch.setenv("FEATSTORE_CACHE_GB", "-1")
    assert "FEATSTORE_CACHE_GB" in told_by_reading(f"{bucket}/x.zarr")


def told_by_reading(url: str) -> str:
    with pytest.raises(UsageError) as error:
        featstore.open(url).select().utterance  # noqa: B018
    return str(error.value)


def test_a_cache_that_cannot_be_written_names_the_variable(bucket, monkeypatch, tmp_path):
    make_store(f"{bucket}/x.zarr", shards=["a.tar"])
    (tmp_path / "file").touch()
    monkeypatch.setenv("FEATSTORE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(FeatstoreError, match="FEATSTORE_CACHE"):
        featstore.open(f"{bucket}/x.zarr").select().utterance  # noqa: B018


def test_a_forked_worker_gets_advice_and_does_not_hang(bucket):
    make_store(f"{bucket}/x.zarr")
    fs = featstore.open(f"{bucket}/x.zarr").select()
    assert len(fs.frames[0])
    answer, ask = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=_read_frames, args=(fs, ask))
    child.start()
    assert answer.poll(20)
    assert "multiprocessing_context='spawn'" in answer.recv()
    child.join()


def _read_frames(fs, ask) -> None:
    try:
        ask.send(str(fs.frames[14].shape))
    except RemoteError as error:
        ask.send(str(error))


def test_the_command_line_shows_and_verifies_a_bucket(bucket):
    make_store(f"{bucket}/x.zarr")
    shown = CliRunner().invoke(cli, ["inspect", "--store", f"{bucket}/x.zarr", "--json"], catch_exceptions=False)
    assert [each["windows"] for each in json.loads(shown.output)] == [15]
    verified = CliRunner().invoke(cli, ["verify", "--store", f"{bucket}/x.zarr"], catch_exceptions=False)
    assert re.search(r"\b3\b.*\b42\b", verified.output)


STRANGE_URLS = (
    "hf://datasets/no/such", "hf://datasets/no/such/x.zarr", "hf://datasets", "hf://datasets/a", "hf://nonsense", "hf://",
    "hf://datasets/a/b@nope/../x", "hf://spaces/a/b/c", "hf://datasets/a/b@/x", "hf://datasets//", "memory://",
    "memory://x/../../y", "http://[bad/x", "http://host:99999/x", "http://host:port/x", "http://a b/x", "http:///x",
    "http://no-such-host.invalid/x", "http://127.0.0.1:1/x", "http://./x", "http://a..b/x", "http://\udcff/x",
    "http://h\x00st/x", "http://host/\n/x", "s3://UPPER_case/x", "s3://b\x00/x", "s3://bucket/../x", "az://container/x",
    "gs:///x", "s3://[bad/x", "https://xn--/x", "://x", "x://", "file://host/x y",
)  # fmt: skip


@pytest.mark.parametrize("path", ["../x", "a/../x", "a/%2e%2e/x", "./x", "a/.."])
def test_a_url_does_not_lead_up_its_path(path, s3):
    for scheme in ("s3", "https", "hf"):
        with pytest.raises(UsageError):
            open_remote(f"{scheme}://bucket/{path}")
    assert s3.requests == []


@pytest.mark.parametrize("url", STRANGE_URLS)
def test_whatever_a_url_names_no_command_shows_a_traceback(url, s3, tmp_path, monkeypatch):
    """Whatever fsspec, huggingface_hub, httpx, aiohttp and obstore raise is an error of featstore, of one line."""
    monkeypatch.setenv("FEATSTORE_RETRIES", "0")
    monkeypatch.setenv("FEATSTORE_TIMEOUT", "2")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.chdir(tmp_path)
    make_store(tmp_path / "x.zarr", shards=["a.tar"])
    calls = [
        lambda: featstore.open(url).select().utterance,
        lambda: copy_store(url, "y.zarr", only="everything", encoder=None, dataset=None, split=None),
        lambda: verify_store(url),
        lambda: gc_store(url),
        lambda: find_shards(url, "x-*.tar"),
    ]
    if "://" in url and not url.startswith(("memory", "file")):
        calls.append(lambda: copy_store("x.zarr", url, only="everything", encoder=None, dataset=None, split=None))
    for call in calls:
        with pytest.raises(FeatstoreError) as error:
            call()
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 700


def test_the_hub_without_a_network_is_one_line_for_every_operation(monkeypatch):
    """Its client raises what is no OSError, from a library that is not ours."""
    import fsspec

    class Broken(Exception):
        pass

    def breaks(*_: object, **__: object) -> None:
        raise Broken("first line\nsecond line")

    remote = open_remote("memory://x")
    for name in ("cat_file", "pipe_file", "info", "ls", "find", "rm_file"):
        monkeypatch.setattr(fsspec.implementations.memory.MemoryFileSystem, name, breaks)
    for call in (
        lambda: remote.get("k"),
        lambda: remote.get_range("k", 0, 1),
        lambda: remote.put("k", b""),
        lambda: remote.head("k"),
        lambda: remote.children("k"),
        lambda: list(remote.objects("k")),
        lambda: remote.delete(["k"]),
    ):
        with pytest.raises(RemoteError, match="first line second line"):
            call()
