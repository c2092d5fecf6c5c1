"""When a stored shard is encoded again: a higher limit of length, and other content under its size and time."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import featstore
from featstore.encoders import load_encoder
from featstore.errors import ShardError
from featstore.extract import ExtractOptions, extract_task
from featstore.extract import task as run
from featstore.extract.shards import AnyShard
from featstore.store.format import seal, unseal
from featstore.tasks import load_manifest
from handmade import clip, extract, noise, task_toml, write_split, write_tar
from servers import web_server
from tiny import task


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_tar(
        tmp_path / "data/tiny/train-0.tar",
        [*clip("short", noise(0.4)), *clip("half", noise(1.25)), *clip("long", noise(2.0))],
    )
    write_tar(tmp_path / "data/tiny/train-1.tar", clip("other", noise(0.3)))
    return tmp_path / "data"


def keys(store: Path) -> list[str]:
    return sorted(featstore.open(str(store)).select().key)


def test_a_higher_limit_encodes_the_clips_that_are_within_it_and_a_lower_one_nothing(
    data: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    [first] = extract(task(), data, store, max_clip_seconds=1.0)
    assert {skipped.key: skipped.seconds for skipped in first.skipped} == {"half": 1.25, "long": 2.0}
    done = [
        (limit, extract(task(), data, store, max_clip_seconds=limit)[0].shards_done, keys(store))
        for limit in (1.0, 1.2, 1.25, 1.25, 0.5, 1.9, 2.0, 3600.0, 1.0)
    ]
    both, three = ["half", "other", "short"], ["half", "long", "other", "short"]
    assert done == [
        (1.0, 0, ["other", "short"]),
        (1.2, 0, ["other", "short"]),
        (1.25, 1, both),
        (1.25, 0, both),
        (0.5, 0, both),
        (1.9, 0, both),
        (2.0, 1, three),
        (3600.0, 0, three),
        (1.0, 0, three),
    ]


def test_a_limit_that_is_no_whole_number_of_samples_settles(tmp_path: Path) -> None:
    write_tar(tmp_path / "data/tiny/train-0.tar", clip("a", noise(1 / 3, rate=44_100), rate=44_100))
    for limit in (0.1, 14_700 / 44_100, 0.33333333333333337):
        extract(task(), tmp_path / "data", tmp_path / "store", max_clip_seconds=limit)
        [again] = extract(task(), tmp_path / "data", tmp_path / "store", max_clip_seconds=limit)
        assert again.shards_done == 0
    assert keys(tmp_path / "store") == ["a"]


def as_it_was_before(store: Path) -> None:
    """Rewrite commit records, those of catalogues too, with pairs of key and reason."""
    for document in store.rglob("zarr.json"):
        raw = document.read_bytes()
        content = unseal(raw) if b"featstore_sha256" in raw else None
        if content is None:
            continue
        for commit in [content["commit"]] if "commit" in content else content.get("catalogue", []):
            for member in commit["members"]:
                member["skipped"] = [pair[:2] for pair in member["skipped"]]
        document.write_bytes(seal(content))


def test_records_of_before_have_the_length_in_their_reason(tmp_path: Path) -> None:
    write_tar(tmp_path / "data/tiny/train-0.tar", [*clip("short", noise(0.4)), *clip("long", noise(2.0))])
    store = tmp_path / "store"
    extract(task(), tmp_path / "data", store, max_clip_seconds=1.0)
    as_it_was_before(store)
    [skipped] = featstore.open(str(store)).select().skipped
    assert (skipped.key, skipped.seconds) == ("long", None)
    for limit, n_done in ((1.0, 0), (1.9, 0), (2.5, 1), (2.5, 0)):
        [record] = extract(task(), tmp_path / "data", store, max_clip_seconds=limit)
        assert record.shards_done == n_done


def replaced_unseen(path: Path) -> None:
    """Other audio of the same size under the same time."""
    before = path.stat()
    write_tar(path, clip("other", noise(0.3, seed=77)))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def test_check_shards_sees_what_size_and_time_do_not(data: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    extract(task(), data, store)
    old = featstore.open(str(store)).select().utterance[3].copy()
    replaced_unseen(data / "tiny/train-1.tar")
    [unseen] = extract(task(), data, store)
    assert (unseen.shards_done, unseen.shards_reused) == (0, 2)
    [seen] = extract(task(), data, store, check_shards=True)
    assert (seen.shards_done, seen.shards_reused) == (1, 1)
    assert (featstore.open(str(store)).select().utterance[3] != old).any()
    [sound] = extract(task(), data, store, check_shards=True)
    assert (sound.shards_done, sound.shards_reused) == (0, 2)


def test_check_shards_reads_remote_shards(data: Path, tmp_path: Path) -> None:
    write_split(data / "tiny", "valid", [clip("a", noise(0.2))])
    write_split(data / "tiny", "test", [clip("b", noise(0.2))])
    manifest, encoder = load_manifest(task_toml(tmp_path)), load_encoder("logmel")

    def done(*, check: bool) -> int:
        with web_server(data, ranges=True) as (url, _):
            [record] = extract_task(
                manifest,
                encoder,
                data_dir=url,
                store_url=str(tmp_path / "store"),
                options=ExtractOptions(workers=1, check_shards=check),
                splits=["train"],
            )
        return record.shards_done

    assert done(check=False) == 2
    assert done(check=True) == 0
    replaced_unseen(data / "tiny/train-1.tar")
    assert done(check=True) == 1


def test_a_shard_that_cannot_be_hashed_costs_no_other(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extract(task(), data, tmp_path / "store")
    replaced_unseen(data / "tiny/train-1.tar")
    hashed = run.sha256_of_shard

    def refused(shard: AnyShard) -> str:
        if shard.name == "train-0.tar":
            raise ShardError("the server is away for a moment")
        return hashed(shard)

    monkeypatch.setattr(run, "sha256_of_shard", refused)
    [record] = extract(task(), data, tmp_path / "store", check_shards=True)
    assert (record.shards_done, record.broken) == (2, ())
