"""Four processes extract one task into one store at the same time, again and again, and some are killed."""

from __future__ import annotations

import random
import signal
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path

import harness
import pytest
from stores import Contents, assert_equal_contents, contents_by_plain_zarr

import featstore
from featstore.errors import StoreNotFound
from featstore.store.copy import copy_store
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


def write_together(folder: Path, store: str, *, rng: random.Random, within_seconds: float) -> None:
    """Run writers of one store side by side to their end, each as likely as not killed at some moment."""
    with ExitStack() as running:
        children = [running.enter_context(harness.extracting(folder, store)) for _ in range(N_WRITERS)]
        began = time.monotonic()
        for moment, doomed in sorted(
            (rng.uniform(0, within_seconds), number) for number in range(N_WRITERS) if rng.random() < 0.5
        ):
            time.sleep(max(0.0, began + moment - time.monotonic()))
            children[doomed].kill()
        ended = [child.wait() for child in children]
    assert {end for end in ended if end[0] != -signal.SIGKILL} <= {(0, "")}


def harry(
    folder: Path, alone: Contents, store: str, *, rng: random.Random, within_seconds: float, tmp_path: Path
) -> None:
    """Waves of writers on one store, then one that is not killed."""
    before = set[str]()
    for _ in range(rng.randint(1, AT_MOST_WAVES)):
        write_together(folder, store, rng=rng, within_seconds=within_seconds)
        now = set(counted(store))
        assert before <= now  # what counted once counts for ever
        before = now
    assert harness.run(folder, store) == (0, "")
    gc_store(store)
    assert len(counted(store)) == harness.N_SHARDS + 1
    report = verify_store(store)
    assert (report.findings, report.parts) == ((), harness.N_SHARDS + 1)  # a part for each shard, and nothing else
    copy_store(store, str(tmp_path / "copy.zarr"), only="everything", encoder=None, dataset=None, split=None)
    assert_equal_contents(alone, contents_by_plain_zarr(tmp_path / "copy.zarr"), ignoring=())


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(STORES))
def test_writers_of_one_folder_lose_and_double_nothing(
    seed: int, folder: Path, alone: Contents, tmp_path: Path
) -> None:
    store = str(tmp_path / "s.zarr")
    harry(folder, alone, store, rng=random.Random(seed), within_seconds=0.8, tmp_path=tmp_path)


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
        harry(folder, alone, store, rng=random.Random(seed), within_seconds=2.5, tmp_path=tmp_path)
