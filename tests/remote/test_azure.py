"""A store in a container of Azurite, Microsoft's own server of the Azure protocol (`npm install --global azurite`)."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

import numpy as np
import pytest
from stores import assert_same_contents, make_store, shard_windows, split_writer, write_part

import featstore
from featstore.errors import RemoteError, ShardError
from featstore.extract.shards import find_shards, is_committed
from featstore.remote import open_remote
from featstore.store import Commit, Member, Segment
from featstore.store.copy import copy_store
from featstore.store.maintenance import gc_store
from featstore.store.verify import verify_store

ACCOUNT = "devstoreaccount1"  # Azurite's own, with its published key
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
SERVER = shutil.which("azurite-blob")
pytestmark = pytest.mark.skipif(SERVER is None, reason="azurite-blob is not on the PATH: npm install --global azurite")


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--inMemoryPersistence", "--disableTelemetry", "--silent", "--blobPort", str(port)]
    process = subprocess.Popen(
        [str(SERVER), *options],
        cwd=tmp_path_factory.mktemp("azurite"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
    )
    try:
        limit = time.monotonic() + 60
        while time.monotonic() < limit:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.1)
        yield port
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def container(port: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """URL of a new container, the credentials in the environment."""
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", ACCOUNT)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", KEY)
    monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", f"http://127.0.0.1:{port}/{ACCOUNT}")
    monkeypatch.setenv("FEATSTORE_CACHE", str(tmp_path / "cache"))
    name = f"container-{time.monotonic_ns()}"
    date, version = formatdate(usegmt=True), "2021-12-02"
    signed = (
        "PUT" + 12 * "\n" + f"x-ms-date:{date}\nx-ms-version:{version}\n/{ACCOUNT}/{ACCOUNT}/{name}\nrestype:container"
    )
    signature = base64.b64encode(hmac.digest(base64.b64decode(KEY), signed.encode(), hashlib.sha256)).decode()
    headers = {"x-ms-date": date, "x-ms-version": version, "Authorization": f"SharedKey {ACCOUNT}:{signature}"}
    url = f"http://127.0.0.1:{port}/{ACCOUNT}/{name}?restype=container"
    urllib.request.urlopen(urllib.request.Request(url, method="PUT", headers=headers)).close()
    return f"az://{name}"


def test_a_container_holds_what_a_folder_would(container: str, tmp_path: Path) -> None:
    url = f"{container}/deep/x.zarr"
    make_store(url)
    make_store(tmp_path / "local.zarr")
    mine, theirs = featstore.open(url).select(), featstore.open(str(tmp_path / "local.zarr")).select()
    np.testing.assert_array_equal(mine.utterance, theirs.utterance)
    assert mine.key.tolist() == theirs.key.tolist()
    np.testing.assert_array_equal(mine.frames[9], theirs.frames[9])
    assert verify_store(url).sound
    copy_store(url, str(tmp_path / "back.zarr"), only="everything", encoder=None, dataset=None, split=None)
    assert_same_contents(tmp_path / "back.zarr", tmp_path / "local.zarr", ignoring=())


def test_a_newer_part_of_a_shard_takes_the_place_of_the_old_one(container: str) -> None:
    url = f"{container}/x.zarr"
    make_store(url)
    writer = split_writer(url)
    write_part(writer, "a.tar", shard_windows("a.tar", seed=5), size=2)
    [record] = gc_store(url)
    assert [name.split(".")[0] for name in record.deleted] == ["a"]
    assert (verify_store(url).parts, len(featstore.open(url).select())) == (3, 15)


def test_a_shard_is_the_same_listed_or_asked_for_by_name(container: str) -> None:
    remote = open_remote(f"{container}/words")
    remote.put("train-0.tar", b"\0" * 10240)
    [listed], [named] = (find_shards(f"{container}/words", pattern) for pattern in ("train-*.tar", "train-0.tar"))
    member = Member(shard=listed.identity(), clips=0, windows=0, frames=0, audio_seconds=0.0, skipped=())
    commit = Commit(
        part="p", members=(member,), frames_stored=False, recipe_fingerprint="", crop_seconds=None, committed_at="",
        seconds=0.0, versions={}, objects={},
    )  # fmt: skip
    segment = Segment(commit=commit, member=member, start=0)
    assert is_committed(named, segment, wants_frames=False, max_clip_seconds=9.0)  # and is not read
    file = listed.fetch()
    assert file.path.read_bytes() == b"\0" * 10240
    file.close()
    remote.put("train-0.tar", b"\1" * 10240)
    with pytest.raises(ShardError):
        listed.fetch()


def test_what_is_wrong_is_one_line(container: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for url, key, result in (
        ("az://no-such-container/x.zarr", KEY, "The specified container does not exist"),
        (f"{container}/x.zarr", "d3Jvbmc=", "refuses these credentials: .*AZURE_STORAGE_ACCOUNT_KEY"),
    ):
        monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", key)
        with pytest.raises(RemoteError, match=result) as error:
            featstore.open(url)
        assert "\n" not in str(error.value)
        assert "RequestId" not in str(error.value)
