"""Four processes extract one task into one store at the same time, again and again, and some are killed."""

from __future__ import annotations

import random
import urllib.request
from pathlib import Path

import harness
import pytest
from many_writers import writers
from stores import Contents, assert_equal_contents, contents_by_plain_zarr

import featstore
from featstore.errors import StoreNotFound
from featstore.store.copying import copy_store
from featstore.store.maintenance import gc_store
from featstore.store.verify import verify_store
from servers import s3_server

N_WRITERS = 4
STORES = 12
AT_MOST_WAVES = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return harness.make_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def alone(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Contents:
    store = tmp_path_factory.mktemp("whole") / "embeddings.zarr"
    assert harness.run(folder, store) == (0, "")
    return contents_by_plain_zarr(store)


def counted(store: str) -> dict[str, str]:
    """The part that counts for each shard, of all splits."""
    try:
        return {
            f"{fs.split}/{segment.member.shard.name}": segment.commit.part
            for fs in featstore.open(store).feature_sets()
            for segment in fs.segments
        }
    except StoreNotFound:
        return {}


def harry(
    folder: Path, alone: Contents, store: str, *, rng: random.Random, environment: dict[str, str], tmp_path: Path
) -> int:
    """Waves of writers on one store, then one that nobody kills; returns how many were killed."""
    (told := tmp_path / "told").mkdir()
    killed, before = 0, set[str]()
    for _ in range(rng.randint(1, AT_MOST_WAVES)):
        killed += writers(folder, store, n=N_WRITERS, environment=environment, told=told, kill=rng)
        now = set(counted(store))
        assert before <= now  # what counted once counts for ever
        before = now
    writers(folder, store, n=1, environment=environment, told=told, kill=None)
    gc_store(store)
    assert [path.read_text() for path in told.iterdir()] == []
    assert len(counted(store)) == harness.N_SHARDS + 1
    report = verify_store(store, repair=False)
    assert (report.findings, report.parts) == ((), harness.N_SHARDS + 1)  # a part for each shard, and nothing else
    copy_store(store, str(tmp_path / "copy.zarr"), only="everything", encoder=None, dataset=None, split=None)
    assert_equal_contents(alone, contents_by_plain_zarr(tmp_path / "copy.zarr"), ignoring=())
    return killed


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(STORES))
def test_writers_of_one_folder_lose_and_double_nothing(
    seed: int, folder: Path, alone: Contents, tmp_path: Path
) -> None:
    harry(folder, alone, str(tmp_path / "s.zarr"), rng=random.Random(seed), environment={}, tmp_path=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(STORES))
def test_writers_of_one_bucket_lose_and_double_nothing(
    seed: int, folder: Path, alone: Contents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3_server() as s3:
        for name, value in s3.environment.items():
            monkeypatch.setenv(name, value)
        bucket = urllib.request.Request(f"http://127.0.0.1:{s3.port}/bucket", method="PUT")
        urllib.request.urlopen(bucket).close()
        store = "s3://bucket/s.zarr"
        harry(folder, alone, store, rng=random.Random(seed), environment=s3.environment, tmp_path=tmp_path)
