"""Extraction from and into buckets: shards by URL, a killed run, ranks that share, and connections that drop."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import pytest
from harness import N_SHARDS, make_shards, run
from stores import assert_equal_contents, contents_by_plain_zarr

import featstore
from featstore.encoders import load_encoder
from featstore.encoders.encoder import Encoder
from featstore.errors import ShardError
from featstore.extract import ExtractOptions, extract_task
from featstore.extract.distributed import Share
from featstore.extract.shards import find_shards
from featstore.records import ExtractRecord
from featstore.shard_patterns import matches_glob
from featstore.store.copy import copy_store
from featstore.store.filesystem import open_objects
from featstore.store.verify import verify_store
from featstore.tasks import Manifest, load_manifest
from servers import S3, Request, web_server


@pytest.fixture(scope="session")
def encoder() -> Encoder:
    return load_encoder("logmel")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("audio"))


@pytest.fixture(scope="session")
def manifest(folder: Path) -> Manifest:
    return load_manifest(folder / "harm.toml")


@pytest.fixture(scope="session")
def expected(folder, manifest, encoder, tmp_path_factory):
    """The result of an extraction from a folder into a folder."""
    store = tmp_path_factory.mktemp("expected") / "expected.zarr"
    extract(manifest, encoder, folder / "data", store)
    return contents_by_plain_zarr(store)


def extract(manifest: Manifest, encoder: Encoder, data: object, store: object, **asked: object) -> list[ExtractRecord]:
    options = ExtractOptions(frames="always", workers=2, device="cpu")
    data = data if isinstance(data, Path) else str(data)
    return list(extract_task(manifest, encoder, data_dir=data, store_url=str(store), options=options, **asked))


def upload(s3: S3, bucket: str, data: Path) -> str:
    for path in data.rglob("*.tar"):
        put(s3, bucket, f"data/{path.relative_to(data).as_posix()}", path.read_bytes())
    return f"{bucket}/data"


def put(s3: S3, bucket: str, key: str, body: bytes) -> None:
    from featstore.remote import open_remote

    open_remote(bucket).put(key, body)


def contents(url: str, tmp_path: Path):
    copy_store(url, str(tmp_path / "pulled.zarr"), only="everything", encoder=None, dataset=None, split=None)
    return contents_by_plain_zarr(tmp_path / "pulled.zarr")


def test_from_a_bucket_into_a_bucket_gives_the_same(s3, bucket, folder, manifest, encoder, expected, tmp_path):
    data, store = upload(s3, bucket, folder / "data"), f"{bucket}/out.zarr"
    faults: list[Request] = []

    def now_and_then(request: Request) -> str:
        if request.number == 1 and len(s3.requests) % 5 == 2:
            faults.append(request)
            return ("500", "slow down", "cut" if request.method == "GET" else "500")[len(faults) % 3]
        return ""

    s3.forget()
    s3.fault = now_and_then
    first = extract(manifest, encoder, data, store)
    assert len(faults) > 10
    s3.forget()
    assert sum(record.shards_done for record in first) == N_SHARDS + 1
    assert_equal_contents(contents(store, tmp_path), expected, ignoring=("mtime_ns", "etag"))
    assert verify_store(store).sound
    member = featstore.open(store).select(split="train").segments[0].member
    assert (member.shard.mtime_ns, bool(member.shard.etag)) == (None, True)
    s3.forget()
    again = extract(manifest, encoder, data, store)
    assert [record.shards_done for record in again] == [0, 0]
    assert not s3.asked("PUT", "POST", "DELETE")
    # a listing of encoders, which may be there by another name, and two of shards; of each split its document, and a
    # listing of its parts
    assert len(s3.requests) == 7
    # a shard that changed is encoded again, and it alone; the store's part of it is replaced
    changed = find_shards(f"{data}/harm", "train-0.tar")[0].fetch()
    put(s3, bucket, "data/harm/train-0.tar", changed.path.read_bytes() + b"\0" * 10240)
    changed.close()
    assert [record.shards_done for record in extract(manifest, encoder, data, store)] == [1, 0]
    assert verify_store(store).sound


def test_a_shard_copied_to_another_bucket_is_not_encoded_again(s3, bucket, folder, manifest, encoder, tmp_path):
    extract(manifest, encoder, folder / "data", tmp_path / "x.zarr")
    data = upload(s3, bucket, folder / "data")
    assert [record.shards_done for record in extract(manifest, encoder, data, tmp_path / "x.zarr")] == [0, 0]


def test_from_a_web_server(s3, folder, manifest, encoder, expected, tmp_path):
    with web_server(folder / "data", ranges=True, first_time="cut") as (url, _):
        extract(manifest, encoder, url, tmp_path / "x.zarr")
        assert [record.shards_done for record in extract(manifest, encoder, url, tmp_path / "x.zarr")] == [0, 0]
    assert_equal_contents(contents_by_plain_zarr(tmp_path / "x.zarr"), expected)


def test_a_shard_that_never_comes_whole_leaves_no_part(s3, bucket, folder, manifest, encoder, monkeypatch, tmp_path):
    monkeypatch.setenv("FEATSTORE_RETRIES", "1")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    data, store = upload(s3, bucket, folder / "data"), f"{bucket}/out.zarr"
    s3.fault = lambda request: "cut" if "train-1.tar" in request.path and request.method == "GET" else ""
    with pytest.raises(ShardError, match=r"\b1\b.*\b5\b.*train-1\.tar"):
        extract(manifest, encoder, data, store)
    s3.forget()
    assert {segment.member.shard.name for segment in featstore.open(store).select(split="train").segments} == {
        "train-0.tar",
        "train-2.tar",
        "train-3.tar",
    }
    half = (folder / "data" / "harm" / "train-1.tar").read_bytes()[:5000]
    put(s3, bucket, "data/harm/train-1.tar", half)  # a tar that is half there is no tar, wherever it is
    with pytest.raises(ShardError, match=r"s3://.*/harm/train-1\.tar"):
        extract(manifest, encoder, data, store)
    assert not list(tmp_path.glob("featstore-*"))


def test_a_shard_that_changes_while_it_is_read_is_an_error(s3, bucket, folder):
    data = upload(s3, bucket, folder / "data")
    [shard] = find_shards(f"{data}/harm", "train-1.tar")
    put(s3, bucket, "data/harm/train-1.tar", b"\0" * shard.size)
    with pytest.raises(ShardError, match=r"train-1\.tar"):
        shard.fetch()


def test_shards_at_a_url_are_found_as_in_a_folder(s3, bucket, folder):
    data = upload(s3, bucket, folder / "data")
    for pattern in ("train-*.tar", "train-{0,2}.tar", "{test,train}-0.tar", "train-?.tar"):
        there = [(shard.name, shard.identity().size) for shard in find_shards(f"{data}/harm", pattern)]
        assert there == [
            (shard.name, shard.identity().size) for shard in find_shards(folder / "data" / "harm", pattern)
        ]
    with pytest.raises(ShardError, match=r"'train-9\.tar'.*'train-\{0,9\}\.tar'.*s3://"):
        find_shards(f"{data}/harm", "train-{0,9}.tar")
    with pytest.raises(ShardError, match=r"'x\*\.tar'.*s3://"):
        find_shards(f"{data}/nothing", "x*.tar")
    with pytest.raises(ShardError, match="NoSuchBucket"):
        find_shards("s3://no-such-bucket-here/data", "x*.tar")
    assert matches_glob("a/b/c.tar", "**/c.tar")
    assert not matches_glob("a/c.tar", "c.tar")


def test_a_killed_run_goes_on_in_the_bucket(s3, bucket, folder, manifest, encoder, expected, tmp_path):
    store = f"{bucket}/killed.zarr"
    code, _ = run(folder, store, FEATSTORE_FAULT_POINT="arrays-synced:3")
    assert code == -signal.SIGKILL
    assert len(featstore.open(store).select().segments) == 2
    assert verify_store(store).sound
    records = extract(manifest, encoder, folder / "data", store)
    assert sum(record.shards_reused for record in records) == 2
    assert_equal_contents(contents(store, tmp_path), expected)
    assert len(open_objects(store).children(featstore.open(store).select(split="train").path)) == N_SHARDS + 1


def test_ranks_share_the_shards_and_any_of_them_may_come_last(
    s3, bucket, folder, manifest, encoder, expected, tmp_path
):
    store = f"{bucket}/ranks.zarr"
    failed: list[BaseException] = []

    def rank(number: int) -> None:
        try:
            extract(manifest, encoder, folder / "data", store, share=Share(rank=number, world_size=3))
        except BaseException as error:  # noqa: BLE001 - told by the test
            failed.append(error)

    threads = [threading.Thread(target=rank, args=(number,)) for number in (0, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert len(featstore.open(store).select(split="train").segments) == 3
    [train, test] = extract(manifest, encoder, folder / "data", store, share=Share(rank=1, world_size=3))
    assert (train.shards_total, train.shards_done, test.shards_total) == (1, 1, 0)
    assert_equal_contents(contents(store, tmp_path), expected)
    s3.forget()
    for number in range(3):  # any of them again: nothing is done twice, and nothing is written
        rank(number)
    assert not s3.asked("PUT", "POST", "DELETE")
